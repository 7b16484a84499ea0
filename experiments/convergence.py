"""Test whether a method's maps depend on the later layers: cosine similarity convergence (Sixt et al. 2020, arXiv 1912.09818).

A backward pass multiplies the relevance of the output by a matrix for each layer, r_l = C_l r_(l+1). If the product of the
matrices converges to rank 1, all relevance gets the same direction, and the map says nothing about the layers above. So random
relevance, drawn from N(0, 1) at a late layer, is carried down, and pairs of the results are compared, at each layer

    by position   |cos| of the two vectors of channels at a position: their median and percentiles over positions and pairs
    as a whole    |cos| of the two tensors, which are the maps if the layer is the image

The first is the paper's. It ignores the factor lambda(x) between the vectors at position x; if that varies, the vectors converge
and the maps do not. The control is the median |cos| of Gaussian vectors with as many channels.
"""

import itertools
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor, nn

from vis import metrics
from vis.claims import Claim, Column, Compared, above, mean
from vis.errors import UserError
from vis.figures.layout import PAGE_WIDTH, plot, styled
from vis.methods import Forward, NotApplicable
from vis.methods.base import naming
from vis.methods.flow import IMAGE, LOGITS
from vis.models import Model, resolve_layer
from vis.runner.experiment import Batch, Experiment, Load, Run, Task, method_title, method_words
from vis.runner.explainer import applying
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

PERCENTILES = (1, 5, 50, 95, 99)
CONVERGED = 0.99  # of |cos|, the paper's
FLOOR = 1e-14  # of 1 - |cos|, about the square of float32's rounding error
BY_POSITION, WHOLE = "channels at each position", "whole tensors"
_PASSIVE = (nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Identity)
_LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)


class Convergence(Experiment):
    """Measure how similar random relevance becomes on its way to the image.

    starts: layers where relevance is drawn, `logits` or modules. layers: modules at which it is compared; None finds them.
    vectors: how many are drawn at each start. times_activation: they are multiplied by the activation, for methods whose
    relevance is proportional to it.
    """

    metrics = ("pos", "flat")
    series = "method"

    def __init__(
        self, starts: Sequence[str], layers: Sequence[str] | None, vectors: int, times_activation: bool = False
    ) -> None:
        if vectors < 2:
            raise UserError(f"experiment.vectors={vectors}: give 2 or more, to compare pairs")
        if not starts:
            raise UserError("experiment.starts is empty: give logits, or names of layers")
        self.starts, self.layers, self.vectors = list(starts), layers, vectors
        self.times_activation = times_activation

    def tasks(self, run: Run) -> Sequence[Task]:
        seeds = run.seeds[: 1 if run.config.model.get("weights") else None]
        return [{"seed": seed, "images": images} for seed in seeds for images in run.batches(len(run.dataset), 4)]

    def load(self, run: Run, task: Task) -> Load:
        passes = len(self.starts) * self.vectors * len(run.methods)
        return Load(run.config.model, task["seed"], len(task["images"]), passes, 0)

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model(seed=task["seed"])
        rows = self.measured(run, model, run.batch(model, task["images"]))
        found = [{"seed": task["seed"]} | row for row in rows]
        return Output(tables={"table": found, "network": [{"seed": task["seed"], "weights": model.weights}]})

    def measured(
        self, run: Run, model: Model, batch: Batch, methods: Sequence[str] = (), times_activation: bool = False
    ) -> Rows:
        """Return a row for each image, method, start and layer below it. methods: some of the run's; all by default."""
        times_activation |= self.times_activation
        layers, rows = self.layers_of(model.net, batch.x[:1]), []
        starts = [start if start == LOGITS else resolve_layer(model.net, start) for start in self.starts]
        with applying(model), Forward(model.net, batch.x, layers, run.preprocess(model)) as forward:
            order = [LOGITS, *reversed(forward.layers), IMAGE]
            aliases = {layer: name for name, layer in getattr(model.net, "layer_names", {}).items()}
            for name in methods or run.methods:
                method = run.methods[name]
                with naming(name, method):
                    flow = method.flow(forward, list(forward.layers))
                    for start, given in zip(starts, self.starts, strict=True):
                        if start not in flow.values:
                            raise NotApplicable(f"start {given}: its batch norm is folded into it; name the batch norm")
                        drawn = [
                            self._drawn(run, flow.values[start], batch.names, given, k) for k in range(self.vectors)
                        ]
                        found = [flow(start, each, times_activation) for each in drawn]
                        if IMAGE not in found[0]:
                            raise NotApplicable(f"no relevance gets from {given} to the image")
                        for layer in sorted(found[0], key=order.index):
                            place = {"method": name, "start": given, "layer": aliases.get(layer, layer)}
                            place["depth"] = order.index(layer)
                            numbers = similarities([each[layer] for each in found])
                            rows += [{"image": i} | place | n for i, n in zip(batch.names, numbers, strict=True)]
        return rows

    def layers_of(self, net: nn.Module, image: Tensor) -> list[str]:
        """Return the modules whose outputs take part: those given, or the blocks of the network and its single layers."""
        starts = [resolve_layer(net, start) for start in self.starts if start != LOGITS]
        if self.layers is not None:
            return list(dict.fromkeys([*(resolve_layer(net, layer) for layer in self.layers), *starts]))
        return list(dict.fromkeys([*blocks(net, image), *starts]))

    def _drawn(self, run: Run, value: Tensor, images: Sequence[str], start: str, k: int) -> Tensor:
        """Draw relevance from N(0, 1) for the value [B, ...] of a layer; it depends on seed, image, layer and k alone."""
        seeds = [[run.config.seed, zlib.crc32(f"{image}/{start}".encode()), k] for image in images]
        noise = [np.random.default_rng(seed).standard_normal(value.shape[1:]) for seed in seeds]
        return torch.from_numpy(np.stack(noise)).to(value)

    # --- from what is stored ------------------------------------------------------------------------------------------

    def column(self, results: Results, name: str, method: str, start: str = LOGITS, layer: str = IMAGE) -> Column:
        """Return one number for each random network, or for each image if there is one network."""
        unit = "seed" if len({row["seed"] for row in results.rows()}) > 1 else "image"
        return Column(results.rows(method=method, start=start, layer=layer), name, unit)

    def compared(
        self, results: Results, name: str, method: str, rule: Any, start: str = LOGITS, layer: str = IMAGE
    ) -> Compared:
        """Compare |cos| of relevance at a layer with a rule; the control is that of Gaussian vectors."""
        of = {"pos": "median |cos| of the channels at a position", "flat": "|cos| of the whole tensors"}[name]
        where = f"{of}, {title(results.config, method)}, from {start} to {layer}"
        null = "baseline" if name == "pos" else "flat_baseline"
        return Compared(where, self.column(results, name, method, start, layer), rule,
                        null=self.column(results, null, method, start, layer), control="Gaussian vectors")  # fmt: skip

    def claims(self, results: Results) -> list[Claim]:
        found = []
        for method, start in itertools.product(map(str, results.config.methods), self.starts):
            for name, what in (("pos", "the direction of the channels at each position"), ("flat", "the whole map")):
                sentence = f"{title(results.config, method)}: from {start} to the image, {what} converges."
                compared = [self.compared(results, name, method, above(CONVERGED, ours="ours"), start)]
                found.append(Claim(f"{method}_{start}_{name}", compared, sentence=sentence, source="The project"))
        return found

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return, for each method and start, the similarities at the image."""
        rows: Rows = []
        for start, method in itertools.product(self.starts, map(str, results.config.methods)):
            own = results.rows(method=method, start=start, layer=IMAGE)
            row: dict[str, Any] = {"start": start, "method": title(results.config, method), "images": len(own)}
            for name in ("pos", *(f"p{p}" for p in PERCENTILES if p != 50), "flat", "dropped"):
                values = [r[name] for r in own if r[name] is not None]
                row[name] = mean(values) if values else None
            rows.append(row)
        return {"at_the_image": rows}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        return {
            "figure" if len(self.starts) == 1 else f"from_{start}": self._curves(results, start)
            for start in self.starts
        }

    def _curves(self, results: Results, start: str) -> Figure:
        """Draw 1 - |cos| over the layers, by position on the left and as a whole on the right."""
        config, rows = results.config, results.rows(start=start)
        layers = [row["layer"] for row in sorted(rows, key=lambda row: row["depth"])]
        layers = list(dict.fromkeys(layers))
        images, pairs = len({row["image"] for row in rows}), self.vectors * (self.vectors - 1) // 2
        networks = len({row["seed"] for row in rows})
        times = " times the activation" * self.times_activation
        drawn = f"drawn from N(0, 1){times} at {start}" if start in self.starts else start
        caption = [
            f"1 - |cos| of {plural(pairs, 'pair')} of random relevance, {drawn}, carried down: mean "
            f"over {plural(images, 'image')}"
            + f" and {networks} random networks" * (networks > 1)
            + ". Low: the relevance of the output is lost",
            "Left: of the channels at a position, the median over positions; the paper's CSC. Right: of the whole tensors; at "
            "the image these are the maps",
            "Dotted: Gaussian vectors with as many channels",
            *words(config),
            f"{config.model.name}, {results.rows('network')[0]['weights']}",
        ]
        figure, axes = plot(PAGE_WIDTH, 3.1, caption, columns=2)
        with styled():
            for axis, name, what in zip(axes, ("pos", "flat"), (BY_POSITION, WHOLE), strict=True):
                for i, method in enumerate(map(str, config.methods)):
                    if not results.rows(start=start, method=method):
                        continue
                    points = [_mean(results.rows(start=start, method=method, layer=layer), name) for layer in layers]
                    shown = [max(FLOOR, 1 - value) if value is not None else math.nan for value in points]
                    axis.plot(range(len(layers)), shown, color=f"C{i % 9}", linestyle=("-", "--")[i % 2],
                              marker="os^"[i // 9 % 3], markersize=2.5, label=title(config, method))  # fmt: skip
                if name == "pos":
                    gauss = [1 - (_mean(results.rows(start=start, layer=layer), "baseline") or 0) for layer in layers]
                    axis.plot(range(len(layers)), gauss, color="0.4", linestyle=":", linewidth=1)
                axis.set_yscale("log")
                axis.set_ylim(min(0.05, axis.get_ylim()[0]), 2)
                axis.set_xticks(range(len(layers)), layers, rotation=60, ha="right", rotation_mode="anchor", fontsize=6)
                axis.set_title(what.capitalize())
            axes[0].set_ylabel("1 − |cos|")
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside right center", fontsize=6)
        return figure


def title(config: DictConfig, method: str) -> str:
    """Return the name of a method in figures and sentences; variants of LRP are told apart by their config names."""
    return (
        method.replace("lrp_", "LRP ", 1).replace("_", " ")
        if method.startswith("lrp_")
        else method_title(config, method)
    )


def words(config: DictConfig) -> list[str]:
    """Return a caption's sentences on the settings of methods whose title does not say them."""
    named = tuple(method_title(config, m) for m in map(str, config.methods) if m.startswith("lrp_"))
    return [text for text in method_words(config) if not text.startswith(named or ("\n",))]


def _mean(rows: Rows, name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return mean(values) if values else None


def similarities(relevances: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Return for each image how similar several relevances [B, C, ...] of a layer are, over all pairs of them.

    pos, p1, p5, ...: median and percentiles of |cos| of the channels, over positions; dropped: the share of positions where a
    vector is 0, which have no angle. flat: median of |cos| of the whole. baseline, flat_baseline: of Gaussian vectors.
    """
    pairs = list(itertools.combinations(relevances, 2))
    of_positions = torch.stack([position_cosines(a, b) for a, b in pairs], 1).flatten(1)
    whole = torch.stack([metrics.cosine(a, b).abs() for a, b in pairs], 1)
    rows = []
    for cosines, flat in zip(of_positions, whole, strict=True):
        defined = cosines[~cosines.isnan()].cpu().numpy()
        shares = np.percentile(defined, PERCENTILES).tolist() if len(defined) else [None] * len(PERCENTILES)
        named = dict(zip((f"p{p}" for p in PERCENTILES), shares, strict=True))
        rows.append({
            "pos": named.pop("p50"), **named, "dropped": 1 - len(defined) / len(cosines),
            "flat": flat.median().item() if len(defined) else None, "channels": relevances[0].shape[1],
            "baseline": gaussian_cosine(relevances[0].shape[1]),
            "flat_baseline": gaussian_cosine(relevances[0][0].numel()),
        })  # fmt: skip
    return rows


def position_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return |cos| of the channel vectors of a and b [B, C, ...] at each position, [B, positions]; NaN where one is 0."""
    a, b = (
        each.detach().double().flatten(2) if each.ndim > 2 else each.detach().double()[..., None] for each in (a, b)
    )
    a, b = (each / each.abs().amax(1, keepdim=True) for each in (a, b))  # lest squares underflow; 0 / 0 is NaN
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).abs().clamp(max=1)


def gaussian_cosine(n: int) -> float:
    """Return the median |cos| of two Gaussian vectors of n values: cos^2 has the distribution Beta(1/2, (n - 1)/2)."""
    from scipy.stats import beta

    return math.sqrt(beta.ppf(0.5, 0.5, (n - 1) / 2)) if n > 1 else 1.0


@torch.no_grad()
def blocks(net: nn.Module, image: Tensor) -> list[str]:
    """Return the modules that make up a network in sequence: blocks (not what is in them), poolings, activations, layers.

    A convolution, dense layer or batch norm is left out if a batch norm or ReLU follows it, and so is a module that an
    image [1, C, H, W] does not pass exactly once.
    """

    def descend(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        for name, child in module.named_children():
            if isinstance(child, nn.Sequential):
                yield from descend(child, f"{prefix}{name}.")
            elif not isinstance(child, _PASSIVE):
                yield prefix + name, child

    found, calls = dict(descend(net, "")), Counter[nn.Module]()
    handles = [
        m.register_forward_hook(lambda m, _, y: calls.update([m] * isinstance(y, Tensor))) for m in found.values()
    ]
    try:
        net(image)
    finally:
        for handle in handles:
            handle.remove()
    following = dict(itertools.pairwise([*found.values(), None]))
    return [
        name
        for name, module in found.items()
        if calls[module] == 1
        and not (isinstance(module, _LAYERS) and isinstance(following[module], nn.ReLU | nn.BatchNorm2d))
    ]
