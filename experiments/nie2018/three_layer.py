"""Maps of random three-layer networks (nie2018, section 3.1), and numbers of how well a map recovers the input.

Numbers of a map m of an input x (mean-subtracted), one row of the table for each seed, image, network, logit and method:

    pear, SSIM    correlation of m and x over all values; structural similarity
    HP, blocks    correlation of the gray high-passed images, and of block means, also in units of their null, see `verdicts`
    cosine, cosL  cosine of m and x; of A^-1 m and x, with A the weights sum_j 1/||y_j|| of Theorem 1
    tan2          tan^2 of the angle of cosL: noise energy over signal energy, about 9.3 d'/N with d' inputs per filter
    logits        correlation of the maps of two logits, in the rows of the second
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.nie2018.verdicts import against_others
from vis import metrics
from vis.figures import display
from vis.models import Model
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results

LABELS = {"gbp": "GBP", "deconvnet": "Deconv", "saliency": "Sal"}  # the paper's labels, in its order
BATCH = 4  # images at a time where batch_size is auto
WEIGHTS = {"init": "truncated_normal", "std": 0.1}
CNN = {"kernel_size": 7, "stride": 2, "pool": None, "input_size": 224, **WEIGHTS}
POOL = {key: value for key, value in CNN.items() if key != "pool"}  # the paper does not state the window
FCN = {"input_size": 224, **WEIGHTS}
SIZES = ("num_filters", "stride", "kernel_size", "padding", "hidden", "input_size")


@dataclass
class Shown:
    """One task's network, images x [B, C, H, W] with A of Theorem 1, and maps: {method: [B, C, H, W]} for each target."""

    net: Any
    x: Tensor
    weight: Tensor
    names: list[str]
    units: list[list[int] | None]
    maps: list[dict[str, Tensor]]


class ThreeLayer(Experiment):
    """Explain random three-layer networks. models: {name: config node}. Arrays are kept for the first seed only."""

    metrics = ("pear", "HP", "cosL")
    series = "method"

    def __init__(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        self.models = models

    def settings(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Return {name of a setting: (network, changes to its config node)}."""
        return {network: (network, {}) for network in self.models}

    def numbers(self, shown: Shown, target: int, method: str) -> dict[str, Tensor]:
        """Compute the columns of the table for the maps of one target and method, [B] each."""
        map_, x = shown.maps[target][method], shown.x
        cosL = metrics.cosine_weighted(map_, x, shown.weight)
        found = {
            "pear": metrics.pearson(map_, x),
            "SSIM": metrics.ssim(map_, x),
            "cosine": metrics.cosine(map_, x),
            "cosL": cosL,
            "tan2": metrics.tan2(cosL),
            **against_others(map_, x, shown.names),
        }
        return found | ({"logits": metrics.pearson(map_, shown.maps[0][method])} if target else {})

    def tasks(self, run: Run) -> Sequence[Task]:
        return [
            {"seed": seed, "setting": setting, "images": batch}
            for seed in run.seeds
            for setting in self.settings()
            for batch in run.batches(len(run.dataset), BATCH)
        ]

    def load(self, run: Run, task: Task) -> Load:
        network, changes = self.settings()[task["setting"]]
        images, maps = len(task["images"]), len(run.methods)
        stored = images * (1 + maps) if task["seed"] == run.seeds[0] else 0
        return Load({**self.models[network], **changes}, task["seed"], images, maps, stored)

    def compute(self, run: Run, task: Task) -> Output:
        seed, setting = task["seed"], task["setting"]
        network, changes = self.settings()[setting]
        node = {**self.models[network], **changes}
        model = run.model(node, seed)
        batch = run.batch(model, task["images"])
        units = [run.units_of(model, target, batch.names) for target in run.targets]
        x = batch.x.cpu()
        maps = run.explain(model, batch.x, units).maps
        shown = Shown(model.net, x, _patch_weight(model, x), batch.names, units, maps)
        size: dict[str, Any] = {key: node[key] for key in SIZES if key in node}
        output = Output(tables={"table": []})
        keep = seed == run.seeds[0]
        if keep:
            output.arrays |= {f"{n}/{setting}/input": batch.pixels[i].numpy() for i, n in enumerate(batch.names)}
        for t, target in enumerate(map(str, run.targets)):
            for method, map_ in maps[t].items():
                numbers = self.numbers(shown, t, method)
                for i, image in enumerate(batch.names):
                    row = {"seed": seed, "image": image, "setting": setting, "network": network, **size}
                    values = {name: each[i].item() for name, each in numbers.items()}
                    output.tables["table"].append({**row, "target": target, "method": method, **values})
                    if keep:
                        output.arrays[f"{image}/{setting}/{target}/{method}"] = map_[i].numpy()
        return output


def column(results: Results, name: str, **where: Any) -> list[float]:
    """Return a column of the table for the rows whose other columns have the given values."""
    return [row[name] for row in results.rows(**where)]


def images(results: Results) -> list[str]:
    """The names of the images."""
    return list(dict.fromkeys(row["image"] for row in results.rows()))


def targets(results: Results) -> list[str]:
    """Return the logits that were explained; figures show the first."""
    return list(dict.fromkeys(row["target"] for row in results.rows()))


def photographs(results: Results) -> list[str]:
    """Return the difference of the run's images from the paper's; it shows ImageNet's tabby, as `image=FILE` may."""
    return [] if results.config.image else ["scikit-image's photographs instead of ImageNet's tabby"]


def slope(x: Iterable[float], y: Iterable[float]) -> float:
    """Return the slope of the least-squares line."""
    return float(np.polyfit(list(x), list(y), 1)[0])


def limit(values: Mapping[int, float], power: int = 2) -> float:
    """Extrapolate {N: cosine} from its three largest N to infinity: 1/cosine^power = a + b/N.

    Noise falls as 1/N: power is 2 for a noisy map and a clean one, 1 for two noisy ones.
    """
    N = np.array(sorted(values)[-3:], dtype=float)
    a = np.polyfit(1 / N, [1 / values[int(n)] ** power for n in N], 1, w=N)[1]
    return float(a ** (-1 / power)) if a > 0 else float("nan")


def random_networks(results: Results) -> list[str]:
    """Return the caption's sentences on the random weights, the targets and the display."""
    config, target = results.config, targets(results)[0]
    node = next(iter(config.experiment.models.values()))
    init = {"truncated_normal": "truncated Gaussian"}.get(node.init, node.init)
    logit = {"max": "the maximum logit", "random": "a random logit"}.get(target, f"logit {target}")
    spread = f"; numbers are mean ± standard deviation over {config.seeds} seeds" if config.seeds > 1 else ""
    return [
        f"Weights: {init}, std {node.std}, zero biases. Explained: {logit}",
        f"Maps of seed {config.seed}, {display.scaling('minmax')[1]}{spread}",
    ]


def _patch_weight(model: Model, x: Tensor) -> Tensor:
    """Return A of Theorem 1; the hidden units of the FCN see one patch, the whole image."""
    conv = getattr(model.net, "conv1", None)
    if isinstance(conv, torch.nn.Conv2d):
        return metrics.patch_weight(x, conv.kernel_size[0], conv.stride[0], int(conv.padding[0]))
    return torch.ones_like(x[:, :1])
