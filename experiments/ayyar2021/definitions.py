"""ayyar2021, sections 3.2 to 4.6: what definitions and equalities say, on random networks in float64.

DeconvNet is written out here as in section 4.1, with the switches of its own forward pass: unpooling, rectification, filtering
by the transposed convolution. The network is conv, ReLU, max-pool 2, conv, ReLU, max-pool 2, dense.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from vis.claims import Claim, Column, Compared, Rule, exactly
from vis.figures.layout import plot, styled
from vis.methods import CAM, DeconvNet, GradCAM, Saliency, explain_all
from vis.runner.experiment import Experiment, Run, Task, method_title
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

SIDE, CLASSES = 12, 5
ROUNDING = exactly(0, 1e-12)
POOLS = {"2/2": (2, 2), "3/3": (3, 3), "2/2, ties": (2, 2), "3/2, overlapping": (3, 2)}  # kernel and stride


class Definitions(Experiment):
    """Measure how far definitions and equalities are off. A task is a random network and image, by its seed."""

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed} for seed in run.seeds]

    def compute(self, run: Run, task: Task) -> Output:
        generator = torch.Generator().manual_seed(task["seed"])
        net = randomise(chain(), generator)
        x = torch.rand(1, 2, SIDE, SIDE, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            logits = net(x)
        c = int(logits.argmax())
        row = {**task, "softmax_sum": logits.softmax(1).sum().item(), "logit_sum": logits.sum().item()}
        row |= deconvnet_numbers(net, x, c) | taylor_numbers(net, x, c) | training_numbers(net, x, c)
        row |= cam_numbers(generator, x)
        (maps,), _ = explain_all(run.methods, net, x, [[c]], lambda pixels: pixels)
        ranges: Rows = [
            {**task, "method": method, "low": map_.min().item(), "high": map_.max().item(),
             "outside": max(0.0, -map_.min().item(), map_.max().item() - 1)}
            for method, map_ in maps.items()
        ]  # fmt: skip
        y = torch.randn(1, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
        pools: Rows = [
            {
                **task,
                "pool": name,
                "difference": unpooling_difference(y.round() if "ties" in name else y, *sizes, generator),
            }
            for name, sizes in POOLS.items()
        ]
        return Output(tables={"table": [row], "maps": ranges, "pools": pools})

    def claims(self, results: Results) -> list[Claim]:
        rows = results.rows()

        def one(metric: str, name: str, null: str, control: str, rule: Rule = ROUNDING) -> Compared:
            return Compared(metric, Column(rows, name, "seed"), rule, null=Column(rows, null, "seed"), control=control)

        def pools(*names: str) -> Compared:
            chosen, overlapping = (
                Column([r for r in results.rows("pools") if r["pool"] in some], "difference", ("seed", "pool"))
                for some in (names, ["3/2, overlapping"])
            )
            return Compared("largest |gradient of max-pooling - unpooling with its switches|", chosen, exactly(0),
                            null=overlapping, control="overlapping pools, where one overwrites and the other adds")  # fmt: skip

        outside = Column(results.rows("maps"), "outside", ("seed", "method"))
        disjoint = "Max-unpooling is the gradient of a max-pooling whose windows do not overlap."
        learnt = [
            one("largest change of the parameters by DeconvNet", "changed", "changed_by_training", "a training step",
                exactly(0)),
            one("largest |DeconvNet - the network's own filters, transposed|", "deconvnet", "without_rectification",
                "without rectification"),
        ]  # fmt: skip
        stops = [
            one("gradients computed for the image in a training step", "image_gradients", "image_gradients_explained",
                "an explanation", exactly(0)),
            one("gradients computed for the first filters", "filter_gradients", "image_gradients", "the image", exactly(1)),
        ]  # fmt: skip
        return [
            Claim("A-3.2-a", [one("sum of the scores behind the softmax", "softmax_sum", "logit_sum",
                                  "the logits, which methods explain", exactly(1, 1e-12))]),
            Claim("A-3.2-b", [Compared("distance of a map's values from [0, 1]", outside, exactly(0), null=1.0,
                                       control="a map that leaves [0, 1] by 1")]),
            Claim("A-4.1-a", learnt),
            Claim("A-4.1-b", [one("largest |unpooled map| off the maxima", "off_switches", "off_switches_averaged",
                                  "the unpooling of average pools", exactly(0))]),
            Claim("A-4.2-c", [one("|wᵀx₀ + b - S(x₀)| / |S(x₀)| with b = f(x₀)", "b_printed", "b_taylor",
                                  "b = f(x₀) - wᵀx₀")]),
            Claim("A-4.2-d", stops),
            Claim("A-4.2-f", [pools(*POOLS)]),
            Claim("A-4.2-g", [one("largest |gradient - DeconvNet|, no rectification in either", "no_relu", "with_relu",
                                  "with rectification")]),
            Claim("A-4.6-c", [one("largest |difference| of the mean and the sum over maps, each over its maximum",
                                  "mean_and_sum", "mean_and_sum_unscaled", "without scaling to [0, 1]")]),
            Claim("A-4.6-e", [one("largest |Grad-CAM · Z - CAM| over CAM's largest value", "cam", "cam_of_another_class",
                                  "CAM of another class")]),
            Claim("disjoint_pools", [pools(*list(POOLS)[:3])], sentence=disjoint, source="Beside Section 4.2"),
        ]  # fmt: skip

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, rows = results.config, results.rows("maps")
        caption = [
            f"Smallest and largest values of the raw maps of {config.seeds} random networks and images: without scaling, a map "
            "does not lie in [0, 1] (gray)",
        ]
        figure, (axes,) = plot(4.5, 0.6 + 0.24 * len(config.methods), caption)
        with styled():
            axes.axvspan(0, 1, color="0.9", linewidth=0)
            for y, method in enumerate(config.methods):
                own = [row for row in rows if row["method"] == method]
                axes.plot([row["low"] for row in own], [y] * len(own), "|", color="C0")
                axes.plot([row["high"] for row in own], [y] * len(own), "|", color="C3")
            axes.set_yticks(range(len(config.methods)), [method_title(config, m) for m in config.methods])
            axes.set_xlabel("values of the map")
        return {"figure": figure}


def chain() -> nn.Sequential:
    """Return conv, ReLU, max-pool, conv, ReLU, max-pool, dense, for images [B, 2, 12, 12]."""
    convolutions = [(nn.Conv2d(i, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)) for i in (2, 4)]
    return nn.Sequential(*(layer for block in convolutions for layer in block), nn.Flatten(), nn.Linear(36, CLASSES))


def randomise(net: nn.Sequential, generator: torch.Generator) -> nn.Sequential:
    """Draw all parameters from N(0, 1/4), in float64."""
    net = net.double().eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net


def deconvolved(
    net: nn.Sequential, x: Tensor, c: int, rectify: bool = True
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Return DeconvNet's map of class c with the switches of its own forward pass, and (input, unpooled map) of each pool."""
    inputs, switches, h = [], [], x
    for layer in net:
        inputs.append(h)
        h, switch = F.max_pool2d(h, 2, return_indices=True) if isinstance(layer, nn.MaxPool2d) else (layer(h), None)
        switches.append(switch)
    R, pools = torch.eye(CLASSES).to(x)[c : c + 1], []
    for layer, h, switch in reversed(list(zip(net, inputs, switches, strict=True))):
        if isinstance(layer, nn.Linear):
            R = R @ layer.weight
        elif isinstance(layer, nn.Flatten):
            R = R.view_as(h)
        elif switch is not None:
            R = F.max_unpool2d(R, switch, [2, 2])
            pools.append((h, R))
        elif isinstance(layer, nn.ReLU) and rectify:
            R = R.relu()
        elif isinstance(layer, nn.Conv2d):
            R = F.conv_transpose2d(R, layer.weight, padding=1)
    return R, pools


def deconvnet_numbers(net: nn.Sequential, x: Tensor, c: int) -> dict[str, Any]:
    """Compare DeconvNet as written out with the methods, and its unpooled maps with the maxima."""
    before = [parameter.clone() for parameter in net.parameters()]
    found = DeconvNet()(net, x, [c])
    changed = max((a - b).abs().max().item() for a, b in zip(before, net.parameters(), strict=True))
    own, pools = deconvolved(net, x, c)
    plain, _ = deconvolved(net, x, c, rectify=False)
    off, averaged = [], []
    for h, unpooled in pools:
        rest = h != F.interpolate(F.max_pool2d(h, 2), scale_factor=2)
        off.append((unpooled.abs() * rest).max().item())
        averaged.append((F.interpolate(F.avg_pool2d(unpooled, 2), scale_factor=2).abs() * rest).max().item())
    linear = nn.Sequential(*(nn.Identity() if isinstance(layer, nn.ReLU) else layer for layer in net))
    without, _ = deconvolved(linear, x, c)
    return {
        "changed": changed,
        "deconvnet": (found - own).abs().max().item(),
        "without_rectification": (found - plain).abs().max().item(),
        "off_switches": max(off),
        "off_switches_averaged": max(averaged),
        "no_relu": (Saliency()(linear, x, [c]) - without).abs().max().item(),
        "with_relu": (Saliency()(net, x, [c]) - own).abs().max().item(),
    }


def taylor_numbers(net: nn.Sequential, x: Tensor, c: int) -> dict[str, float]:
    """Return the relative error at x0 of the linear model with either b."""
    w = Saliency()(net, x, [c])
    S, product = net(x)[0, c].item(), (w * x).sum().item()
    return {"b_printed": abs(product + S - S) / abs(S), "b_taylor": abs(product + (S - product) - S) / abs(S)}


def training_numbers(net: nn.Sequential, x: Tensor, c: int) -> dict[str, Any]:
    """Count the gradients that a training step computes, and what it changes."""
    trained, pixels = copy.deepcopy(net).requires_grad_(True), x.clone()
    F.cross_entropy(trained(pixels), torch.tensor([c])).backward()
    first, explained = trained[0].weight, x.clone().requires_grad_(True)
    found = {"image_gradients": int(pixels.grad is not None), "filter_gradients": int(first.grad is not None)}
    net(explained)[0, c].backward()
    found["image_gradients_explained"] = int(explained.grad is not None)
    assert isinstance(first, Tensor)
    assert first.grad is not None
    return found | {"changed_by_training": (0.1 * first.grad).abs().max().item()}


def cam_numbers(generator: torch.Generator, x: Tensor) -> dict[str, float]:
    """Compare Grad-CAM with CAM on a network of global average pooling and one dense layer; and the mean of maps with Eq. 10."""
    layers = nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU()
    net = randomise(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)), generator)
    net[-1].bias.zero_()  # type: ignore[operator]  # so that the largest logit's map has positive values
    net[-1].weight.copy_(net[-1].weight * net(x)[0].max().sign())  # type: ignore[operator]  # a dense layer
    order = net(x)[0].argsort(descending=True).tolist()
    Z = (x.shape[2] - 4) * (x.shape[3] - 4)
    gradcam, cam, other = (
        method(net, x, [c]) for method, c in ((GradCAM(), order[0]), (CAM(), order[0]), (CAM(), order[1]))
    )
    A = net[:4](x)
    alpha = net[-1].weight[order[0]] / Z  # type: ignore[index]  # Eq. 9 of this network
    mean, total = ((alpha.view(1, -1, 1, 1) * A).mean(1).relu(), (alpha.view(1, -1, 1, 1) * A).sum(1).relu())
    largest = cam.max()
    return {
        "cam": ((Z * gradcam - cam).abs().max() / largest).item(),
        "cam_of_another_class": ((Z * gradcam - other).abs().max() / largest).item(),
        "mean_and_sum": (mean / mean.max() - total / total.max()).abs().max().item(),
        "mean_and_sum_unscaled": (mean - total).abs().max().item(),
    }


def unpooling_difference(y: Tensor, kernel: int, stride: int, generator: torch.Generator) -> float:
    """Return the largest difference of the gradient of max-pooling from unpooling with its switches, for random R."""
    y = y.requires_grad_(True)
    pooled, switches = F.max_pool2d(y, kernel, stride, return_indices=True)
    R = torch.randn(pooled.shape, generator=generator, dtype=y.dtype)
    (gradient,) = torch.autograd.grad(pooled, y, R)
    unpooled = F.max_unpool2d(R, switches, kernel, stride, output_size=y.shape[2:])  # type: ignore[arg-type]  # a size
    return (gradient - unpooled).abs().max().item()
