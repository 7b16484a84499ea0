"""ayyar2021, section 4.5: is SmoothGrad smoother and sharper, at which noise, and on which methods?

Smoother is a smaller total variation and a higher correlation of neighbouring pixels. Sharper is a higher correlation of the
map's gradient magnitude with the image's; a blurred gradient map is smoother too, and SmoothGrad has to be sharper than that. A
sharper map need not be more focused, so the Gini coefficient is judged on its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from experiments.ayyar2021.by_method import ByMethod
from experiments.ayyar2021.gallery import SHARPNESS, Gallery, numbers_of
from experiments.ayyar2021.verdicts import lead, on_trained
from vis import metrics
from vis.claims import Claim, above, below
from vis.metrics import strength
from vis.runner.experiment import Batch, Run
from vis.store.run_folder import Results
from vis.store.tables import Rows

BASES = ("gbp", "integrated_gradients", "deconvnet", "gradcam")
TITLES = {"gbp": "GBP", "integrated_gradients": "IG", "deconvnet": "DeconvNet", "gradcam": "GradCAM"}
MARGIN = 0.01  # of a correlation


class Sparsity(ByMethod):
    """Compare maps with and without SmoothGrad.

    Methods `smoothgrad_<level>` are SmoothGrad of the gradient at a noise level; `smoothgrad_of_<method>` are of others.
    """

    axes: ClassVar = {"total variation": {"": "variation"}, "sharpness": {"": "sharpness"}, "Gini": {"": "gini"}}
    ranges: ClassVar = {"total variation": (0, math.inf), "sharpness": (-1, 1)}
    sentence = f"How uneven a map is, and how sharp: {SHARPNESS}"

    def title(self, config: Any, method: str) -> str:
        if method.startswith("smoothgrad_of_"):
            return f"SmoothGrad of {TITLES[method.removeprefix('smoothgrad_of_')]}"
        if method.startswith("smoothgrad"):
            return f"SmoothGrad, {config.methods[method].noise_level:.0%}"
        return super().title(config, method)

    def further(
        self, run: Run, images: Sequence[int], batch: Batch, maps: Mapping[str, Tensor], classes: Sequence[int]
    ) -> dict[str, dict[str, Tensor]]:
        run.require_methods("saliency")
        blurred = gaussian_blur(strength(maps["saliency"]), [9, 9], 2.0)
        every = {**maps, "blurred": blurred}
        found = {method: {"gini": gini(map_), "neighbours": neighbours(map_)} for method, map_ in every.items()}
        found["blurred"] |= numbers_of(blurred, batch.pixels)
        return found

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return beside the numbers by method the sharpness of each image at 10 to 20 % of noise, as a method of its own."""
        within: Rows = []
        for image in dict.fromkeys(row["image"] for row in results.rows()):
            rows = [row for row in results.rows(image=image) if 0.1 <= self.level(results, row["method"]) <= 0.2]
            if rows:
                within.append({"image": image, "sharpness": sum(row["sharpness"] for row in rows) / len(rows)})
        outside = [row for row in results.rows() if not 0.1 <= self.level(results, row["method"]) <= 0.2]
        together = [row | {"method": "within"} for row in within]
        return super().summaries(results) | {
            "levels": together + [{key: row[key] for key in ("image", "method", "sharpness")} for row in outside]
        }

    def level(self, results: Results, method: str) -> float:
        """Return the noise level of a method that is SmoothGrad of the gradient, 0 for others."""
        sweep = method.startswith("smoothgrad") and "_of_" not in method
        return float(results.config.methods[method].noise_level) if sweep else 0.0

    def claims(self, results: Results) -> list[Claim]:
        levels = {method: self.level(results, method) for method in results.config.methods}
        others = [method for method, level in levels.items() if level and not 0.1 <= level <= 0.2]
        not_below = above(-MARGIN, ours="the margin is ours")
        best = [lead(results, "sharpness", "within", "saliency", metric=SHARPNESS, table="levels")]
        best += [
            lead(results, "sharpness", "within", other, metric=SHARPNESS, table="levels", rule=not_below)
            for other in others
        ]
        variation = "total variation over the map's sum"
        both = [
            lead(results, "variation", "saliency", "smoothgrad", metric=variation),
            lead(results, "neighbours", "smoothgrad", "saliency", metric="correlation of neighbouring pixels"),
            lead(results, "sharpness", "smoothgrad", "saliency", metric=SHARPNESS),
            lead(results, "sharpness", "smoothgrad", "blurred", metric=SHARPNESS),
        ]
        bases = [lead(results, "variation", base, f"smoothgrad_of_{base}", metric=variation) for base in BASES]
        focus = Claim(
            "focus", [lead(results, "gini", "smoothgrad", "saliency", metric="Gini coefficient of the map", rule=below(0))],
            sentence="SmoothGrad is less focused on few pixels than the gradient.", source="Beside Section 4.5",
        )  # fmt: skip
        return on_trained(results, [Claim("A-4.5-a", both), Claim("A-4.5-b", best), Claim("A-4.5-c", bases), focus])

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config = results.config.copy()
        sweep = sorted((m for m in config.methods if self.level(results, m)), key=lambda m: self.level(results, m))
        config.methods = {method: config.methods[method] for method in ("saliency", *sweep)}
        maps = Gallery.draw(self, replace(results, config=config), claims)["figure"]
        return super().draw(results, claims) | {"maps": maps}


def gini(maps: Tensor) -> Tensor:
    """Return the Gini coefficient [B] of the strength of maps: 0 if all pixels are equal, near 1 if one pixel has everything."""
    values = strength(maps).flatten(1).sort().values
    n = values.shape[1]
    ranks = torch.arange(1, n + 1, dtype=values.dtype)
    return (2 * (values @ ranks) / values.sum(1) - n - 1) / n


def neighbours(maps: Tensor) -> Tensor:
    """Return the correlation [B] of neighbouring pixels of maps [B, C, H, W], the mean of the two directions."""
    pairs = ((maps[:, :, 1:], maps[:, :, :-1]), (maps[..., 1:], maps[..., :-1]))
    return torch.stack([metrics.pearson(a, b) for a, b in pairs]).mean(0)
