"""rao2022, sections 3 and 4: how much of the positive attribution lies in the cell of a grid whose class is explained.

    L = sum of the positive part of the map in the cell / sum of the positive part        Eq. 1

Maps of the gradient and of guided backpropagation are made absolute and then summed over their channels, all others summed. They
are upsampled (bilinear) to the grid, and then made positive. A map without a positive part scores 0, and is counted.

Photographs are those that the network classifies with a probability above `least`, correctly where they have labels. A grid has
n x n of them, of distinct classes. In DiFull and DiPart its first and last cells have the same class: another photograph of the
class if there is one, else the same one mirrored, which is harder (the paper has others). Photographs are used in more than one
grid. The control in each place is a map of Gaussian noise, which has to score 1/n^2.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import Tensor

from vis import metrics
from vis.claims import Claim, Column, Rule, mean, on_digits, replicated
from vis.config.instantiate import locate, parameters_of
from vis.errors import NotApplicable, UserError
from vis.methods import ActivationMap, DeconvNet, GuidedBackprop, IntegratedGradients, Method, Occlusion, Saliency
from vis.methods.grid import Cell, OneCell, cells, features, joined, logits_of, place
from vis.methods.layers import feature_layer
from vis.models import Model
from vis.runner.experiment import Experiment, Load, Run, Task, method_title
from vis.runner.explainer import Explainer, build_method
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

RANDOM = "random_map"
DISTINCT = "difull_distinct"  # DiFull of distinct classes: what the repetition of a class adds
SETTINGS = {"gridpg": "GridPG", "difull": "DiFull", DISTINCT: "DiFull, distinct classes", "dipart": "DiPart"}
OF_A_LOGIT = (
    Saliency,
    GuidedBackprop,
    DeconvNet,
    IntegratedGradients,
    ActivationMap,
    Occlusion,
)  # whatever the others are
ABSOLUTE = (Saliency, GuidedBackprop)  # before the sum over channels
TITLES = {"saliency": "Gradient", "gbp": "Guided BP", "input_x_gradient": "IxG", "integrated_gradients": "IntGrad"}
OURS = "the bound is the specification's, fixed before the measurement"
GRIDS, FEW = 40, 8  # the fewest grids for a verdict; FEW for the methods that `limits` names
PHOTOGRAPHS = 16  # fewer are repeated so often that their grids tell nothing about others


class Photograph(NamedTuple):
    """An image of the dataset and the class that its network predicts."""

    image: int
    unit: int
    mirrored: bool = False


class Localisation(Experiment):
    """Score the maps of methods at layers, in grids.

    layers: {name: module}; "" is the image, None finds the last feature maps. settings: of SETTINGS. grids: their number. n:
    cells on a side. least: of the class's probability. correct: leave out photographs whose label the network does not predict.
    limits: {method: number of grids}, for expensive methods. only: {method: its layers}. scored: the number of cells that are
    explained, None for all.
    """

    metrics = ("score",)
    series = "method"

    def __init__(
        self,
        layers: Mapping[str, str | None],
        settings: Sequence[str],
        grids: int,
        n: int = 2,
        least: float = 0.7,
        correct: bool = True,
        limits: Mapping[str, int] = {},
        only: Mapping[str, Sequence[str]] = {},
        scored: int | None = None,
    ) -> None:
        if unknown := [each for each in settings if each not in SETTINGS]:
            raise UserError(f"experiment.settings={unknown[0]} is none of {', '.join(SETTINGS)}")
        if n < 2 or grids < 1:
            raise UserError(f"experiment.n={n}, experiment.grids={grids}: n is 2 or more, grids 1 or more")
        self.layers, self.settings, self.grids, self.n = dict(layers), list(settings), grids, n
        self.least, self.correct, self.limits, self.only, self.scored = least, correct, limits, only, scored
        self._pools: dict[str, list[Photograph]] = {}
        self._explainers: dict[tuple[str | None, ...], Explainer] = {}

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"grids": grids} for grids in run.batches(self.grids, 1)]

    def load(self, run: Run, task: Task) -> Load:
        grids = task["grids"]
        part = {
            name: 1 - i / len(self.layers) for i, name in enumerate(self.layers)
        }  # of the network, behind the layer

        def of(method: str) -> float:
            scored = sum(number < self.limits.get(method, self.grids) for number in grids) / len(grids)
            return scored * sum(part[layer] for layer in self.only.get(method, self.layers))

        passes = sum(of(method) * each for method, each in run.explainer.passes_of.items())
        maps = sum(len(self._cells(each)) for each in self.settings)
        return Load(run.config.model, run.config.seed, self.n**2 * len(grids), maps * passes, 0)

    # --- photographs and grids ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def pool(self, run: Run, model: Model) -> list[Photograph]:
        """Return the photographs that the network knows. Raises UserError if they have fewer classes than a grid has cells."""
        if model.name not in self._pools:
            found = []
            for some in run.batches(len(run.dataset), 16):
                batch = run.batch(model, some)
                p, units = model.net(batch.x).softmax(1).max(1)
                for i, label, p_, unit in zip(some, batch.labels, p.tolist(), units.tolist(), strict=True):
                    if p_ > self.least and (not self.correct or label in (None, unit)):
                        found.append(Photograph(i, unit))
            classes = len({each.unit for each in found})
            if classes < self.n**2:
                raise UserError(
                    f"{model.name} classifies {len(found)} of {len(run.dataset)} images with p > {self.least:g}"
                    f"{' and correctly' if self.correct else ''}, of {classes} classes; a grid takes {self.n**2}: give more "
                    "images (dataset=folder dataset.path=FOLDER), a smaller experiment.least= or experiment.correct=false"
                )
            self._pools[model.name] = found
        return self._pools[model.name]

    def grid(self, pool: Sequence[Photograph], seed: int, number: int) -> list[Photograph]:
        """Draw the cells of a grid, of distinct classes."""
        random = np.random.default_rng([seed, number])
        by_class: dict[int, list[Photograph]] = {}
        for each in pool:
            by_class.setdefault(each.unit, []).append(each)
        chosen = random.choice(sorted(by_class), self.n**2, replace=False).tolist()
        return [by_class[unit][int(random.integers(len(by_class[unit])))] for unit in chosen]

    def repeated(self, pool: Sequence[Photograph], grid: Sequence[Photograph]) -> list[Photograph]:
        """Replace the last cell by another instance of the first one's class."""
        first = grid[0]
        other = next((each for each in pool if each.unit == first.unit and each.image != first.image), None)
        return [*grid[:-1], other or first._replace(mirrored=True)]

    def _cells(self, setting: str) -> list[Cell]:
        every = cells(self.n)
        return (every if setting == "gridpg" else [every[0], every[-1]])[: self.scored]

    # --- maps -----------------------------------------------------------------------------------------------------------

    def _explainer(self, run: Run, model: Model, names: Sequence[str], net: OneCell, values: Tensor) -> Explainer:
        """Return an explainer of some of the run's methods, with the feature maps of `OneCell.at`.

        Where no ReLU follows the layer, the rules for ReLUs are the gradient.
        """
        key = (model.name, net.layer, *names)
        if key not in self._explainers:
            explainer = self._explainers[key] = Explainer(run.config, run.reader)
            explainer.methods = {name: at_layer(run, name, "at") for name in names}
            ruled = [name for name in names if isinstance(run.methods[name], (GuidedBackprop, DeconvNet))]
            if net.layer is not None and ruled and not _has_relus(net, values):
                explainer.methods |= dict.fromkeys(ruled, Saliency())
        return self._explainers[key]

    def found_layers(self, model: Model, x: Tensor) -> dict[str, str | None]:
        """Return {name: module, or None for the image}."""
        return {
            name: feature_layer(model.net, x, module) if module != "" else None for name, module in self.layers.items()
        }

    def maps(
        self, run: Run, model: Model, grid: list[Photograph], setting: str, number: int
    ) -> Iterator[tuple[str, Cell, dict[str, Tensor]]]:
        """Yield layer, cell and the maps [1, 1, h, w] of the cell's class by method, signed or absolute, at the layer's size."""
        pixels = self._pixels(run, model, grid)
        x = run.preprocess(model)(pixels.to(run.dtype)).to(run.device, memory_format=model.memory_format)
        kind = "difull" if setting == DISTINCT else setting
        layers = self.found_layers(model, x[:, :, : model.input_size[0], : model.input_size[1]])
        head = next((module for module in reversed(list(layers.values())) if module), "")
        scored = self._cells(setting)
        with torch.no_grad():
            self._check_size(model, x, kind)
        for layer, module in layers.items():
            names = [str(name) for name in run.methods if layer in self.only.get(name, [layer])]
            names = [name for name in names if number < self.limits.get(name, self.grids)]
            with torch.no_grad():
                values = features(model.net, x, kind, module, self.n)
            targets = [[grid[cell[0] * self.n + cell[1]].unit] for cell in scored]
            nets = {cell: OneCell(model.net, kind, cell, self.n, x, module, head) for cell in scored}
            if kind == "gridpg":  # one network for all cells: one forward pass
                explained = self._explain(run, model, names, nets[scored[0]], values, targets)
            else:
                explained = [
                    self._explain(run, model, names, nets[cell], values, [target])[0]
                    for cell, target in zip(scored, targets, strict=True)
                ]
            for cell, found in zip(scored, explained, strict=True):
                found = {name: reduced(run.methods[name], map_) for name, map_ in found.items()}
                seed = zlib.crc32(f"{number}/{setting}/{layer}/{cell}".encode())
                noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 1, *values.shape[-2:])))
                yield layer, cell, found | {RANDOM: noise.to(values.dtype)}

    def _pixels(self, run: Run, model: Model, grid: Sequence[Photograph]) -> Tensor:
        """Return the pixels of a grid, [1, C, n H, n W]."""
        indices = list(dict.fromkeys(each.image for each in grid))
        pictures = dict(zip(indices, run.batch(model, indices).pixels, strict=True))
        return joined(
            torch.stack([pictures[p.image].flip(-1) if p.mirrored else pictures[p.image] for p in grid]), self.n
        )

    def _explain(
        self, run: Run, model: Model, names: Sequence[str], net: OneCell, values: Tensor, targets: Sequence[list[int]]
    ) -> list[dict[str, Tensor]]:
        if not names:
            return [{} for _ in targets]
        explainer = self._explainer(run, model, names, net.eval(), values)
        if not all(isinstance(run.methods[name], OF_A_LOGIT) for name in names):
            return explainer.explain(replace(model, net=net), values, targets).maps
        units = [unit for (unit,) in targets]
        with logits_of(model.net, units, values, net) as few:
            chosen = [[i] for i in range(len(units))] if few else targets
            return explainer.explain(replace(model, net=net), values, chosen).maps

    def _check_size(self, model: Model, x: Tensor, kind: str) -> None:
        if kind == "difull":
            return
        try:
            model.net(x)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{model.name} takes no images of {self.n} times its size, which {SETTINGS[kind]} needs: a network with global "
                "pooling, or experiment.settings=[difull]"
            ) from error

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        pool, output = self.pool(run, model), Output(tables={"table": [], "network": []})
        if task["grids"][0] == 0:
            output.tables["network"].append(
                {
                    "weights": model.weights,
                    "standin": model.standin,
                    "trained": model.trained,
                    "photographs": len(pool),
                    "images": len(run.dataset),
                }
                | {
                    "classes": len({each.unit for each in pool}),
                    "data": run.dataset.origin,
                    "labelled": any(label is not None for label in run.dataset.labels),
                }
            )
        for number in task["grids"]:
            distinct = self.grid(pool, run.config.seed, number)
            size = [self.n * side for side in model.input_size]
            for setting in self.settings:
                grid = self.repeated(pool, distinct) if setting in ("difull", "dipart") else distinct
                self.keep(output, setting, number, self._pixels(run, model, grid))
                for layer, cell, maps in self.maps(run, model, grid, setting, number):
                    key = {"grid": number, "cell": f"{cell[0]},{cell[1]}", "setting": setting, "layer": layer}
                    for method, map_ in maps.items():
                        self.measure(output, key | {"method": method}, cell, map_, size)
        return output

    def measure(self, output: Output, key: dict[str, Any], cell: Cell, map_: Tensor, size: Sequence[int]) -> None:
        """Add the rows and arrays of a map [1, 1, h, w]; size: of the grid."""
        output.tables["table"].append(key | scored(upsampled(map_, size), cell, self.n))

    def keep(self, output: Output, setting: str, number: int, pixels: Tensor) -> None:
        """Add arrays of a grid, whose pixels are [1, C, H, W]."""

    # --- from what is stored ------------------------------------------------------------------------------------------

    @property
    def chance(self) -> float:
        return 1 / self.n**2

    def column(self, results: Results, setting: str, layer: str, method: str, **other: Any) -> Column:
        """The scores of a method, one for each grid."""
        return Column(results.rows(setting=setting, layer=layer, method=method, **other), "score", "grid")

    def least_of(self, *methods: str) -> int:
        """The fewest grids for a verdict on methods."""
        return FEW if any(method in self.limits for method in methods) else GRIDS

    def judged(self, results: Results, claims: Sequence[Claim]) -> list[Claim]:
        """Add the differences from the paper's setting, or why there is no verdict."""
        network, config = results.rows("network")[0], results.config
        reason = on_digits(config)
        if not reason and network["standin"]:
            reason = "the project trained the network itself, on small images: give model.weights=FILE"
        elif not network["trained"]:
            reason = "the weights are random: give model.weights=FILE"
        elif not reason and network["photographs"] < PHOTOGRAPHS:
            reason = f"the grids repeat only {network['photographs']} photographs: dataset=folder dataset.path=FOLDER has more"
        arch = str(config.model.get("arch", config.model.name))
        differences = (
            [] if arch in ("vgg11", "resnet18") else [f"{arch}, {network['weights']}, instead of VGG11 and ResNet18"]
        )
        differences += [f"p > {self.least:g} instead of .99"] * (self.least != 0.99)
        differences += ["photographs without labels: the class is the predicted one"] * (
            not network["labelled"] or not self.correct
        )
        differences += ["a mirrored copy is the second photograph of a class"] * (
            network["classes"] == network["photographs"]
        )
        differences.append(f"{self.grids} grids instead of 500 and 1,000, of {network['photographs']} photographs")
        found: list[Claim] = []
        for claim in claims:
            exact = claim.id == "chance" or all(each.rule.of == "each" for each in claim.compared)  # of any network
            why = "" if exact else reason
            found += [replace(claim, reason=why)] if claim.kind == "finding" else replicated([claim], differences, why)
        return found

    def summaries(self, results: Results) -> dict[str, Rows]:
        rows: Rows = []
        keys = [key for key in ("setting", "layer", "method", "kernel") if key in results.rows()[0]]
        for values in dict.fromkeys(tuple(row[key] for key in keys) for row in results.rows()):
            some = results.rows(**dict(zip(keys, values, strict=True)))
            of = Column(some, "score", "grid")
            low, high = Rule(((0, 1),)).interval(of.values)
            quartiles = np.percentile([row["score"] for row in some], [25, 50, 75]).tolist()
            rows.append(
                dict(zip(keys, values, strict=True))
                | {"mean": mean(of.values), "low": low, "high": high}
                | dict(zip(("quartile 1", "median", "quartile 3"), quartiles, strict=True))
                | {
                    "maps": len(some),
                    "grids": len(of.values),
                    "without positive part": sum(row["empty"] for row in some),
                }
            )
        return {"summary": rows}

    def about(self, results: Results) -> list[str]:
        """The last sentences of a caption: photographs and network."""
        network = results.rows("network")[0]
        count = len({row["grid"] for row in results.rows()})
        fewer = [
            f"{title(results.config, m)}: {k}"
            for m, k in self.limits.items()
            if 0 < k < count and m in results.config.methods
        ]
        empty = sum(bool(row["empty"]) for row in results.rows())
        return [
            f"{count} grids of {self.n} x {self.n}"
            + (f" ({', '.join(fewer)})" if fewer else "")
            + f", of {network['photographs']} of {network['images']} images whose class has p > {self.least:g}",
            f"{empty} of {len(results.rows())} maps have no positive part and score 0" if empty else "",
            f"{results.config.model.name}, {network['weights']}; {network['data']}",
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        raise NotImplementedError


def title(config: Any, method: str) -> str:
    """Return the paper's name of a method."""
    return "Random map" if method == RANDOM else TITLES.get(method) or method_title(config, method)


def at_layer(run: Run, name: str, layer: str) -> Method:
    """Build a method of the run; if it takes a layer, with this one."""
    node = run.config.methods[name]
    if "layer" not in parameters_of(locate(str(node._target_), f"methods.{name}._target_")):
        return run.methods[name]
    config = OmegaConf.create({"methods": {name: OmegaConf.to_container(node, resolve=True)}})
    config.methods[name].layer = layer
    return build_method(config, name)


def reduced(method: Method, maps: Tensor) -> Tensor:
    """Sum maps [B, V, h, w] over the channels, those of ABSOLUTE methods without their signs: [B, 1, h, w]."""
    absolute = isinstance(method, ABSOLUTE) and type(method).explain in {each.explain for each in ABSOLUTE}
    return (maps.abs() if absolute else maps).sum(1, keepdim=True)


def upsampled(maps: Tensor, size: Sequence[int]) -> Tensor:
    return maps if maps.shape[-2:] == torch.Size(size) else F.interpolate(maps, tuple(size), mode="bilinear")


def scored(map_: Tensor, cell: Cell, n: int) -> dict[str, float]:
    """Return the score of a map [1, 1, H, W], the rest to 1, and whether the map has no positive part."""
    score = metrics.localisation(map_, *place(cell, n, *map_.shape[-2:])).item()
    empty = np.isnan(score)
    return {"score": 0.0 if empty else score, "missed": 1.0 if empty else 1 - score, "empty": float(empty)}


def smoothed(maps: Tensor, kernel: int) -> Tensor:
    """Smooth maps [B, 1, H, W] by a Gaussian window of K pixels with sigma = K / 4, 0 outside the map; K = 0 changes nothing."""
    if not kernel:
        return maps
    at = torch.arange(kernel, dtype=maps.dtype) - (kernel - 1) / 2
    g = torch.exp(-0.5 * (at / (kernel / 4)) ** 2)
    g = g / g.sum()
    by_row = F.conv2d(maps, g.view(1, 1, 1, -1), padding=(0, kernel // 2))
    return F.conv2d(by_row, g.view(1, 1, -1, 1), padding=(kernel // 2, 0))


def _has_relus(net: OneCell, values: Tensor) -> bool:
    try:
        GuidedBackprop()(net, values)
    except NotApplicable as error:
        if "no ReLU was found" not in str(error):
            raise
        return False
    return True
