"""taimeskhanov2024, Definitions 1 to 7 and what the paper says of them, on small random CNNs in float64.

A map is a weighted sum of the activation maps with global weights if some alpha gives sum_v alpha_v B_v. The CNNs have fewer
maps than positions, so that least squares can tell. One head flattens the maps, another pools them globally.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor, nn

from vis.claims import Claim, Column, Compared, Rule, above, below, each_above, exactly, near
from vis.data import to_pixels
from vis.figures.layout import plot, styled
from vis.methods import (
    AblationCAM,
    ActivationMap,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    OptiCAM,
    ScoreCAM,
    XGradCAM,
)
from vis.methods.cam import masks
from vis.methods.forward import Forward
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results

SIDE, V, LAYER = 28, 16, "4"  # the last ReLU, whose output is B
CAMS: dict[str, ActivationMap] = {
    "GradCAM": GradCAM(LAYER), "XGradCAM": XGradCAM(LAYER), "GradCAM++": GradCAMPlusPlus(LAYER), "ScoreCAM": ScoreCAM(LAYER),
    "Opti-CAM": OptiCAM(LAYER), "AblationCAM": AblationCAM(LAYER), "HiResCAM": HiResCAM(LAYER), "LayerCAM": LayerCAM(LAYER),
}  # fmt: skip
TO = 1e-10  # relative, in float64
STEPS = 500  # of Adam, ten times as many as Opti-CAM takes
YEARS = {  # one classifier of each of torchvision's families
    "alexnet": 2012, "vgg16": 2014, "googlenet": 2014, "resnet50": 2015, "inception_v3": 2015, "squeezenet1_1": 2016,
    "wide_resnet50_2": 2016, "resnext50_32x4d": 2016, "densenet121": 2016, "mobilenet_v2": 2018, "shufflenet_v2_x1_0": 2018,
    "mnasnet1_0": 2018, "mobilenet_v3_small": 2019, "efficientnet_b0": 2019, "regnet_y_400mf": 2020, "vit_b_16": 2020,
    "efficientnet_v2_s": 2021, "swin_t": 2021, "swin_v2_t": 2022, "convnext_tiny": 2022, "maxvit_t": 2022,
}  # fmt: skip


def cnn(head: str, seed: int) -> nn.Sequential:
    """Build two convolutions with a `flatten` or `pooling` head and 10 outputs; PyTorch's own initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = [
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, V, 3, padding=1), nn.ReLU()
        ]  # fmt: skip
        dense = [nn.Flatten(), nn.Linear(V * 196, 16), nn.ReLU(), nn.Linear(16, 10)]
        pooling = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(V, 10)]
        return nn.Sequential(*features, *(dense if head == "flatten" else pooling)).double()


def linear_layers(arch: str) -> int:
    """Count the dense layers in the head of one of torchvision's classifiers."""
    from torchvision import models

    without = {"init_weights": False} if arch in ("googlenet", "inception_v3") else {}
    with torch.device("cpu" if arch.startswith("regnet") else "meta"):  # regnet computes its sizes with tensors
        net = models.get_model(arch, weights=None, **without)
    heads = (getattr(net, name, None) for name in ("fc", "classifier", "head", "heads"))
    return sum(isinstance(m, nn.Linear) for head in heads if isinstance(head, nn.Module) for m in head.modules())


def difference(a: Tensor, b: Tensor) -> float:
    """Return the norm of a - b over that of b; over 1 if b is 0."""
    return (a - b).norm().item() / (b.norm().item() or 1.0)


def global_weights(map_: Tensor, B: Tensor) -> tuple[Tensor, float]:
    """Return the alpha [V] whose sum_v alpha_v B_v is nearest to a map [h, w], and the relative residual."""
    columns = B.flatten(1).mT
    alpha = torch.linalg.lstsq(columns, map_.flatten()[:, None], driver="gelsd").solution
    return alpha[:, 0], difference((columns @ alpha)[:, 0], map_.flatten())


def gradient(head: nn.Module, B: Tensor, class_: int, order: int = 1) -> Tensor:
    """Return the first or second derivatives of a logit by each value of B [V, h, w]."""
    B = B.detach().requires_grad_(True)
    (G,) = torch.autograd.grad(head(B[None])[0, class_], B, create_graph=order == 2)
    if order == 1:
        return G
    if not G.requires_grad:
        return torch.zeros_like(G)
    rows = [
        torch.autograd.grad(g, B, retain_graph=True)[0].flatten()[i] for i, g in enumerate(G.flatten()) if i % 97 == 0
    ]
    return torch.stack(rows)


def variation(G: Tensor) -> float:
    """Return the standard deviation over the positions of each map over its mean magnitude; the mean of the maps."""
    live = G[G.flatten(1).any(1)].flatten(1)
    return (live.std(1) / live.abs().mean(1)).mean().item()


class Definitions(Experiment):
    """Measure what the definitions imply. A task is a random network; one more counts the heads of known architectures."""

    def tasks(self, run: Run) -> Sequence[Task]:
        return [*({"seed": seed} for seed in run.seeds), {}]

    def compute(self, run: Run, task: Task) -> Output:
        if not task:
            rows = [{"architecture": a, "year": year, "linear layers": linear_layers(a)} for a, year in YEARS.items()]
            return Output(tables={"architectures": [r | {"one": float(r["linear layers"] == 1)} for r in rows]})
        seed, flat, pooled = task["seed"], cnn("flatten", task["seed"]), cnn("pooling", task["seed"])
        output = Output(tables={"table": []})
        for i, image in enumerate(run.dataset.names):
            x = to_pixels(run.dataset.read(i), (SIDE, SIDE), 1).double()[None]
            row = {"seed": seed, "image": image} | _measured(flat, x) | _optimum(flat, x)
            with Forward(pooled, x, [LAYER]) as forward:
                row["pooling variation"] = variation(gradient(pooled[5:], forward.layers[LAYER][0], 0))
            output.tables["table"].append(row)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weight = nn.Conv2d(64, 64, 3).weight.detach()
        output.tables["init"] = [
            {"seed": seed, "scaled deviation": (weight.std() * math.sqrt(weight[0].numel())).item()}
        ]
        return output

    def claims(self, results: Results) -> list[Claim]:
        def compared(
            metric: str, name: str, rule: Rule, null: Column | float = 1.0, control: str = "another formula"
        ) -> Compared:
            return Compared(metric, Column(results.rows(), name, ("seed", "image")), rule, null=null, control=control)

        def one(id_: str, metric: str, name: str, rule: Rule, **options: Any) -> Claim:
            return Claim(id_, [compared(metric, name, rule, **options)])

        residual = {
            m: compared(f"{m}: residual of the best global weights", f"{m} residual", rule, control="HiResCAM",
                        null=Column(results.rows(), "HiResCAM residual", ("seed", "image")))
            for m in CAMS
            for rule in [exactly(0, TO)]
        }  # fmt: skip
        position = compared("HiResCAM: residual of the best global weights", "HiResCAM residual", each_above(0.01),
                            null=0.0, control="GradCAM")  # fmt: skip
        pooling = compared(
            "variation of the gradient over the positions of a map, global pooling", "pooling variation", exactly(0, TO)
        )
        flat = compared("the same, flattening head", "flatten variation", above(0.1, ours="a tenth is ours"),
                        null=pooling.column, control="global pooling and one dense layer")  # fmt: skip
        appendix = ("XGradCAM", "GradCAM++", "ScoreCAM", "AblationCAM")
        shortfall = compared("shortfall of Opti-CAM behind 10 times the steps from 3 starts, over the gain", "shortfall",
                             below(0.01, fails=0.05, ours="1 % and 5 % are ours"), null=1.0, control="equal weights")  # fmt: skip
        zero, relative = exactly(0, TO), "relative difference of map and formula"
        hidden = [
            compared(f"{m}: change of the map by the last ReLU", f"{m} ReLU", zero) for m in ("ScoreCAM", "Opti-CAM")
        ]
        ranks = [compared(f"rank correlation of weight and drop, {sign} class score", f"ranks, {sign}", exactly(1, TO))
                 for sign in ("positive", "negative")]  # fmt: skip
        return [
            Claim("T-1-a", [residual[m] for m in CAMS if m != "LayerCAM"]),
            Claim("T-2.2-a", [*(residual[m] for m in appendix), position]),
            Claim("T-1-b", [flat, pooling]),
            one("T-3.3-e", "variation of HiResCAM's coefficients over the positions of a map", "flatten variation", zero),
            one("T-D1", relative, "GradCAM formula", zero),
            one("T-D2", f"{relative}, up to a factor", "XGradCAM formula", zero),
            Claim("T-D3", [
                compared("largest second derivative at some values of B", "second derivative", each_above(0), null=0.0),
                compared("the same, softplus in the head", "second derivative, softplus", each_above(0), null=0.0),
            ]),
            one("T-D5", "largest difference of the method's map from those with baseline x, black or noise", "baselines", zero),
            Claim("T-D7", ranks),
            Claim("T-A-a", hidden),
            self._passes(results),
            Claim("T-D6", [shortfall], differences=["small random CNNs instead of the masked VGG-16"]),
            *self._conventions(results),
        ]  # fmt: skip

    def _passes(self, results: Results) -> Claim:
        """Compare the numbers of passes; for AblationCAM, those of the head."""
        found = []
        for m in ("AblationCAM", "ScoreCAM"):
            per_map, backward = (
                Column(results.rows(), f"{m} {what}", ("seed", "image")) for what in ("forward", "backward")
            )
            gradcam = {
                what: Column(results.rows(), f"GradCAM {what}", ("seed", "image")) for what in ("forward", "backward")
            }
            found += [
                Compared(f"{m}: backward passes", backward, exactly(0), null=gradcam["backward"], control="GradCAM"),
                Compared(f"{m}: forward passes for each map that is not constant", per_map, each_above(0.99),
                         null=gradcam["forward"], control="GradCAM"),
            ]  # fmt: skip
        return Claim("T-A-b", found)

    def _conventions(self, results: Results) -> list[Claim]:
        """Compare PyTorch's default initialisation with He's, and count the dense layers of architectures."""
        deviation, he = Column(results.rows("init"), "scaled deviation", "seed"), math.sqrt(2)
        old, new = (
            Column([r for r in results.rows("architectures") if (r["year"] >= 2015) == recent], "one", "architecture")
            for recent in (False, True)
        )
        init = Compared("standard deviation of Conv2d's weights x sqrt(fan-in); He: sqrt(2)", deviation, near(he, 0.02 * he),
                        null=1 / math.sqrt(3), control="kaiming_uniform with a = sqrt(5), sqrt(1/3)")  # fmt: skip
        heads = Compared("share of torchvision's families since 2015 with one dense layer behind the features", new,
                         above(0.5, of="share", least=10), null=old, control="families before 2015")  # fmt: skip
        return [Claim("T-2.1-b", [init]), Claim("T-2.3-d", [heads])]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows = results.rows()
        caption = [
            "Is a map a weighted sum of the activation maps? Relative residual of the best global weights, a point for each "
            f"random CNN and image ({len(rows)}), {V} maps of 196 positions, float64",
            "Dashed: the bound of the claims. HiResCAM and LayerCAM weigh each position",
        ]
        figure, (axes,) = plot(4.8, 2.2, caption)
        with styled():
            for k, method in enumerate(CAMS):
                axes.plot([k] * len(rows), [max(row[f"{method} residual"], 1e-17) for row in rows], ".", alpha=0.6)
            axes.axhline(TO, color="0.5", linewidth=0.8, linestyle="--")
            axes.set(yscale="log", ylabel="relative residual", ylim=(1e-17, 10))
            axes.set_xticks(range(len(CAMS)), list(CAMS), rotation=30, ha="right", rotation_mode="anchor")
        return {"figure": figure}


def _measured(net: nn.Sequential, x: Tensor) -> dict[str, Any]:
    """Compare the methods' maps of an image [1, 1, 28, 28] with the definitions."""
    head, row = net[5:], dict[str, Any]()
    with Forward(net, x, [LAYER], lambda pixels: pixels) as forward:
        B, class_ = forward.layers[LAYER][0].detach(), int(forward.logits.argmax())
        lowest, y = int(forward.logits.argmin()), forward.logits[0].detach()
        sums = {m: cam.sum(forward, class_, LAYER)[0].detach() for m, cam in CAMS.items()}
        gradcam = CAMS["GradCAM"].explain(forward, class_)[0, 0].detach()
        of_lowest = CAMS["AblationCAM"].sum(forward, lowest, LAYER)[0].detach()
    row |= {f"{m} residual": global_weights(each, B)[1] for m, each in sums.items()}
    row |= {f"{m} ReLU": difference(sums[m].relu(), sums[m]) for m in ("ScoreCAM", "Opti-CAM")}
    G = gradient(head, B, class_)
    row["flatten variation"] = variation(G)
    formula = (G.mean((1, 2))[:, None, None] * B).sum(0).relu()
    row["GradCAM formula"] = difference(
        gradcam, F.interpolate(formula[None, None], (SIDE, SIDE), mode="bilinear")[0, 0]
    )
    norm = B.abs().sum((1, 2)).clamp(min=1e-300)
    formula = ((B / norm[:, None, None] * G).mean((1, 2))[:, None, None] * B).sum(0)
    scale = (sums["XGradCAM"] * formula).sum() / formula.square().sum()
    row["XGradCAM formula"] = difference(sums["XGradCAM"], scale * formula)
    smooth = nn.Sequential(*(nn.Softplus() if isinstance(layer, nn.ReLU) else layer for layer in head))
    for name, each in (("second derivative", head), ("second derivative, softplus", smooth)):
        row[name] = gradient(each, B, class_, order=2).abs().max().item()
    with torch.no_grad():
        row["baselines"] = _baselines(net, x, B, class_, sums["ScoreCAM"])
        live = B.flatten(1).any(1)
        without = torch.stack([head((B * (torch.arange(V) != v)[:, None, None])[None])[0] for v in range(V)])
    for sign, c, map_ in (("positive", class_, sums["AblationCAM"]), ("negative", lowest, of_lowest)):
        if (y[c] > 0) == (sign == "positive"):
            alpha, drop = global_weights(map_, B)[0][live], (y[c] - without[live, c])
            row[f"ranks, {sign}"] = float(stats.spearmanr(alpha.numpy(), drop.numpy()).statistic)
    return row | {
        key: value for m in ("GradCAM", "AblationCAM", "ScoreCAM") for key, value in _passes(net, x, m).items()
    }


def _baselines(net: nn.Module, x: Tensor, B: Tensor, class_: int, method: Tensor) -> float:
    """Return the largest relative difference between ScoreCAM by Definition 5 with three baselines, and the method's map."""
    scores = net(x * masks(B, x.shape[-2:])[:, None])[:, class_]
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    maps = [
        ((scores - net(b)[0, class_]).softmax(0)[:, None, None] * B).sum(0) for b in (x, torch.zeros_like(x), noise)
    ]
    return max(difference(map_, method) for map_ in maps)


def _passes(net: nn.Sequential, x: Tensor, name: str) -> dict[str, float]:
    """Count the passes of a method beside the shared forward pass: images through the last layer for each map, backward."""
    counts = {"forward": -1, "backward": 0}

    def on_forward(module: nn.Module, inputs: Any, output: Tensor) -> None:
        counts["forward"] += len(output)

    def on_backward(module: nn.Module, into: Any, out: Any) -> None:
        counts["backward"] += 1

    handles = [net[-1].register_forward_hook(on_forward), net[-1].register_full_backward_hook(on_backward)]
    with Forward(net, x, [LAYER], lambda pixels: pixels) as forward:
        B = forward.layers[LAYER][0]
        live = int((B.amax((1, 2)) > B.amin((1, 2))).sum())
        CAMS[name].sum(forward, None, LAYER)
    for handle in handles:
        handle.remove()
    return {f"{name} forward": counts["forward"] / live, f"{name} backward": counts["backward"]}


def _optimum(net: nn.Module, x: Tensor) -> dict[str, float | None]:
    """Return how far Opti-CAM's objective stays behind the best of three starts and STEPS steps of Adam, over the gain."""
    with Forward(net, x, [LAYER], lambda pixels: pixels) as forward:
        B, class_ = forward.layers[LAYER][0].detach(), int(forward.logits.argmax())
        reached = CAMS["Opti-CAM"].sum(forward, class_, LAYER).detach()

    def objective(maps: Tensor) -> Tensor:
        return net(x * masks(maps, x.shape[-2:])[:, None])[:, class_]

    random = torch.randn(2, V, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    beta = torch.cat([torch.zeros(1, V, dtype=x.dtype), random]).requires_grad_(True)
    adam, best, start = torch.optim.Adam([beta], 0.1), -math.inf, math.nan
    for step in range(STEPS):
        f = objective(torch.einsum("sv,vhw->shw", beta.softmax(1), B))
        start = f[0].item() if step == 0 else start
        best = max(best, f.max().item())
        beta.grad = torch.autograd.grad(-f.sum(), beta)[0]
        adam.step()
    got = objective(reached).item()
    best = max(best, got)
    return {"shortfall": (best - got) / (best - start) if best > start else None}
