"""ayyar2021, sections 4.5, 5.1 and 7: SmoothGrad is smoother and sharper, a larger epsilon leaves fewer pixels, LRP is sparse.

Measured by the galleries' numbers: participation ratio (the share of pixels that hold a map's energy) and total variation.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from matplotlib.figure import Figure
from torch import Tensor

from experiments.ayyar2021.by_method import ByMethod
from experiments.ayyar2021.gallery import Gallery
from vis.oldclaims import Claim
from vis.store.run_folder import Results

SMOOTHER = "a smoother map with sharper visualizations by averaging over multiple noisy maps"
EPSILON = (
    "If the value of epsilon is increased then [...] only the stronger connections receive the redistributed relevance"
)
SPARSE = "LRP heat maps are sparse"


class Sparsity(ByMethod):
    """Compare the sparsity of maps. Methods `lrp_epsilon_<number>` are LRP with that epsilon, rising."""

    axes: ClassVar = {
        "participation ratio": {"": "spread"},
        "total variation": {"": "variation"},
        "pixels above half of the maximum": {"": "high"},
    }
    ranges: ClassVar = {
        "participation ratio": (0, 1),
        "total variation": (0, math.inf),
        "pixels above half of the maximum": (0, 1),
    }
    sentence = "On how many pixels a map lies, how uneven it is, how many of its pixels are high"

    def title(self, config: Any, method: str) -> str:
        if method.startswith("lrp"):
            return f"LRP\n$\\epsilon$ = {config.methods[method].epsilon:g}"
        return super().title(config, method)

    def measured(self, values: Mapping[str, Mapping[str, Tensor]]) -> list[Claim]:
        spread, variation = values["spread"], values["variation"]
        last = [method for method in spread if method.startswith("lrp_epsilon")][-1:] or ["lrp_epsilon"]
        return [
            self.claim(
                "smoother",
                SMOOTHER,
                metric="total variation, gradient - SmoothGrad",
                values=lambda: variation["saliency"] - variation["smoothgrad"],
            ),
            self.claim(
                "sharper",
                SMOOTHER,
                metric="participation ratio, gradient - SmoothGrad",
                values=lambda: spread["saliency"] - spread["smoothgrad"],
            ),
            self.claim(
                "epsilon",
                EPSILON,
                metric="participation ratio, LRP with the smallest - with the largest epsilon",
                values=lambda: spread["lrp"] - spread[last[0]],
            ),
            self.claim(
                "sparse", SPARSE, metric="participation ratio, FEM - LRP", values=lambda: spread["fem"] - spread["lrp"]
            ),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        return super().draw(results, claims) | {"maps": Gallery.draw(self, results, claims)["figure"]}
