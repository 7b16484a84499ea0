"""zhou2018, Table 2: three techniques and how each weighs the gradient of the decision function f at a pixel i.

    class saliency map     R_i = |df/dx_i|
    deep Taylor            R_i = df/dx~_i (x_i - x~_i),    f(x~) = 0
    the paper's            R_i = df/dx_i (x_i - x'_i),     x'_i the conditional mean of x_i given the pixels around it

The last is Algorithm 3 with windows of one pixel, exactly; Algorithm 3 itself adds a window's sum to all of its pixels. The
first two explain the logit, as their papers have it; f = P(c|x) in the last.
"""

import copy
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.zhou2018.evidence import OnePicture, chosen_class, learnt
from experiments.zhou2018.setting import another_network
from vis import metrics
from vis.claims import Claim, Column, Compared, above, exactly, on_digits, replicated
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.methods import PDAGradient, Saliency
from vis.methods.forward import Forward
from vis.methods.perturbation import windows_of
from vis.methods.target import Target
from vis.metrics.deletion import curves
from vis.runner.experiment import Run, Task, method_title
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

FORMULAS = {"saliency": "|∂f/∂x|", "deep_taylor": "∂f/∂x̃ (x − x̃)", "pda_gradient": "∂f/∂x (x − x'), windows"}
NEURONS = 16  # of each layer, whose roots are computed


def extent(map_: Tensor) -> float:
    """Return the share of pixels that hold 80 % of a map's absolute values [1, C, H, W], the largest first."""
    sizes = map_.abs().sum(1).flatten().double().sort(descending=True)[0]
    return float((sizes.cumsum(0) < 0.8 * sizes.sum()).sum() + 1) / len(sizes)


def kept(net: nn.Module, x: Tensor, map_: Tensor, c: int) -> float:
    """Return the mean probability lost while pixels are deleted in a map's order, the largest first, into their mean."""
    auc = curves(net, x, map_, [c], x.mean((2, 3), keepdim=True), steps=32).deletion_auc
    with torch.no_grad():
        return float(net(x).softmax(1)[0, c].double() - auc[0])


def at_roots(net: nn.Module, x: Tensor, low: Tensor, high: Tensor) -> Rows:
    """Return |output of a neuron at its root| over its output, for active neurons of each convolution and dense layer.

    The roots are those of the rules: at the pixels between low and high (z^B), behind them where weights are positive (z+).
    """
    net, rows, inputs = copy.deepcopy(net).double(), [], {}
    layers = {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}

    def keep(layer: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
        inputs[layer] = given[0].detach()

    hooks = [m.register_forward_hook(keep) for m in layers.values()]
    with torch.no_grad():
        net(x.double())
    for hook in hooks:
        hook.remove()
    for number, (name, layer) in enumerate(layers.items()):
        a = inputs[layer].requires_grad_()
        z = layer(a).flatten()
        for j in z.argsort(descending=True)[:NEURONS].tolist():
            if z[j] <= 0:
                continue
            (w,) = torch.autograd.grad(z[j], a, retain_graph=True)
            way = a.detach() * (w > 0)
            if number == 0:
                way = a.detach() * (w != 0) - low * (w > 0) - high * (w < 0)
            root = a.detach() - z[j].item() / (w * way).sum() * way
            rows.append({"layer": name, "neuron": j, "root": abs(float((layer(root).flatten()[j] / z[j]).detach()))})
    return rows


def of_one_root(net: nn.Module, x: Tensor, c: int, steps: int = 50) -> Tensor:
    """Return df/dx~ (x - x~) [1, C, H, W] at a root x~ of the logit, found by Newton's steps along its gradient."""
    root = x.detach().clone()
    for _ in range(steps):
        root.requires_grad_(True)
        f = net(root)[0, c]
        (g,) = torch.autograd.grad(f, root)
        root = (root - f.detach() * g / g.square().sum().clamp(min=1e-12)).detach()
        if abs(f.item()) < 1e-4:
            break
    return g * (x - root)


class Table2(OnePicture):
    """Draw the three techniques, the run's methods. own_images: see EvidenceMaps."""

    def __init__(self, own_images: bool) -> None:
        self.own_images = own_images

    def compute(self, run: Run, task: Task) -> Output:
        model, batch, _ = self.begin(run, task)
        c, logits = chosen_class(run, model, batch)
        simplified: Any = next(m for m in run.methods.values() if isinstance(m, PDAGradient))
        one = PDAGradient(window=1, patch=simplified.patch)
        one.learnt = simplified.learnt
        with Forward(model.net, batch.x) as forward:
            g = forward.gradient(Target(c, output="prob"))[0]
        x = batch.x[0]
        expected = simplified.learnt.means(x, windows_of(x.shape[1:], 1), 1)  # [H W, C, 1, 1]
        formula = (g * (x - expected[:, :, 0, 0].T.reshape(x.shape))).sum(0, keepdim=True)
        algorithm = one(model.net, batch.x, [c])[0]
        image = batch.names[0]
        arrays = {f"{image}/pixels": batch.pixels[0].numpy(), f"{image}/formula": formula.cpu().numpy()}
        arrays |= {
            f"{image}/{name}": m(model.net, batch.x, [c], run.preprocess(model))[0].cpu().numpy()
            for name, m in run.methods.items()
        }
        row = {"image": image, "class": model.class_name(c), "p": float(logits.softmax(0)[c]), "weights": model.weights}
        own = run.preprocess(model)
        maps: dict[str, Tensor] = {n: torch.from_numpy(arrays[f"{image}/{n}"])[None].to(x) for n in run.methods}
        row |= learnt(run, model, self.own_images) | {"window": simplified.window}
        row |= {"single": distance(algorithm, formula), "windows": distance(maps["pda_gradient"][0], formula)}
        root, bounds = of_one_root(model.net, batch.x, c), [own(torch.full_like(batch.x, v)) for v in (0.0, 1.0)]
        row["one_root"] = distance(maps["deep_taylor"].sum(1), root.sum(1))
        row |= self._weights(maps["pda_gradient"], g, x, expected[:, :, 0, 0].T.reshape(x.shape))
        of_p = Saliency()(model.net, batch.x, [Target(c, output="prob")])
        row["extent_logit"] = extent(maps["saliency"]) / extent(maps["deep_taylor"])
        row["extent_p"] = extent(of_p) / extent(maps["pda_gradient"])
        parts = [m.abs().sum(1, keepdim=True) for m in (maps["deep_taylor"], maps["pda_gradient"])]
        order = torch.randperm(parts[1].numel(), generator=torch.Generator().manual_seed(0))
        mixed = parts[1].flatten()[order].view_as(parts[1])
        alone = max(kept(model.net, batch.x, part, c) for part in parts)
        for name, other in (("product", parts[1]), ("product_shuffled", mixed)):
            row[name] = kept(model.net, batch.x, parts[0] * other, c) - alone
        roots = at_roots(model.net, batch.x, *(bound.double() for bound in bounds))
        return Output(arrays, {"table": [row], "roots": [{"image": image} | each for each in roots]})

    def _weights(self, map_: Tensor, g: Tensor, x: Tensor, expected: Tensor) -> dict[str, float]:
        """Correlate the weight that Algorithm 3 gives to the gradient with how far a pixel is from its expectation."""
        weight = (map_[0].abs().sum(0) / g.abs().sum(0).clamp(min=1e-30))[None, None]
        residual = (x - expected).abs().sum(0)[None, None]
        order = torch.randperm(residual.numel(), generator=torch.Generator().manual_seed(0))
        shuffled = residual.flatten()[order].view_as(residual)
        pairs = {"unexpected": residual, "unexpected_shuffled": shuffled}
        return {name: float(metrics.spearman(weight, each)) for name, each in pairs.items()}

    def claims(self, results: Results) -> list[Claim]:
        rows, each = results.rows(), ("image", "layer", "neuron")

        def compared(metric: str, name: str, rule: Any, null: str | float, control: str) -> Compared:
            other = Column(rows, null, "image") if isinstance(null, str) else null
            return Compared(metric, Column(rows, name, "image"), rule, null=other, control=control)

        roots = Compared(
            "|output of a neuron at its root| over its output, roots of the z+ and z^B rules",
            Column(results.rows("roots"), "root", each), exactly(0, within=1e-6), null=1.0, control="the input itself",
        )  # fmt: skip
        k, largest = rows[0]["window"], "largest difference over the largest value"
        pixels = "share of pixels that hold 80 % of a map"
        noisy = [
            compared(f"{pixels}, saliency of the {of} over {other}", name, above(1), 1.0, "equal maps")
            for of, other, name in (
                ("logit", "deep Taylor", "extent_logit"), ("probability", "the simplified algorithm", "extent_p"),
            )
        ]  # fmt: skip
        product, noise = (Column(rows, name, "image") for name in ("product", "product_shuffled"))
        gain = "probability lost by deletion in the order of deep Taylor x the simplified map - in that of"
        combined = [
            Compared(f"{gain} the better one", product, above(0), null=0.0, control="the better one itself"),
            Compared(
                f"{gain} deep Taylor x the simplified map with its pixels shuffled", product - noise, above(0),
                null=0.0, control="noise in place of the simplified map",
            ),
        ]  # fmt: skip
        small = on_digits(results.config)
        general = [
            Claim("Z-1-k", [roots]),
            Claim("Z-T2-a", [compared(
                f"Algorithm 3 with windows of {k}x{k} against the formula, {largest}", "windows", exactly(0, within=1e-3),
                "single", "windows of one pixel: equal",
            )]),
            Claim("Z-T2-b", [compared(
                f"deep Taylor by its rules against df/dx~ (x - x~) at one root, {largest}", "one_root", exactly(0, within=1e-3),
                0.0, "a linear network: equal",
            )]),
            Claim("Z-T2-c", [compared(
                "rank correlation of |map| / |gradient| with a pixel's distance from its conditional mean", "unexpected",
                above(0), "unexpected_shuffled", "the distances of other pixels",
            )], reason=small),
            Claim("Z-T2-d", noisy, reason=small),
            Claim("Z-T2-e", combined, reason=small),
        ]  # fmt: skip
        return replicated(general, another_network(results, "VGG-16", rows[0]["weights"]))

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows: list[PanelRow] = []
        for row in results.rows()[:3]:
            pixels = results.arrays[f"{row['image']}/pixels"]
            panels = [Panel(display.picture(pixels), "" if rows else "input\n", f"{row['class']}, P = {row['p']:.3f}")]
            for name in results.config.methods:
                map_ = results.arrays[f"{row['image']}/{name}"]
                show = display.absolute if name == "saliency" else display.diverging
                panels.append(
                    Panel(show(map_), "" if rows else f"{method_title(results.config, name)}\n{FORMULAS.get(name, '')}")
                )
            formula = display.diverging(results.arrays[f"{row['image']}/formula"])
            panels.append(Panel(formula, "" if rows else "of single pixels\n∂f/∂x (x − x')"))
            rows.append(PanelRow(panels))
        first = results.rows()[0]
        caption = [
            f"Table 2: three weighting rules of the gradient, drawn; saliency: {display.scaling('absolute')[1]}; the others: "
            "red for, blue against",
            "Of single pixels: the formula of Table 2; Algorithm 3 adds the sum of a window to all of its pixels instead",
            f"{results.config.model.name}, {first['weights']}; conditional means learnt from {first['learnt_from']}",
        ]
        return {"figure": panel_grid(rows, caption)}


def distance(a: Tensor, b: Tensor) -> float:
    """Return the largest |a - b|, over the largest |b|."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
