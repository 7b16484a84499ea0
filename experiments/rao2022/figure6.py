"""rao2022, Figures 6 and 8: AggAtt, the mean of maps that are sorted by their scores and binned, for the first cell of grids.

Bins hold the maps from 0 to 2, 5, 50, 95, 98 and 100 % of the ranks, the best first, and one map at least. Maps are positive,
have a sum of 1, and are shown on one scale for each row, up to the 99.5th percentile of its means.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from experiments.rao2022.localisation import OURS, Localisation, scored, smoothed, title, upsampled
from vis import metrics
from vis.claims import Claim, Column, Compared, above, mean
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.methods.grid import Cell, place
from vis.store.run_folder import Output, Results

SMOOTH = "smooth_ixg"
BINS = (0, 2, 5, 50, 95, 98, 100)
SIDE = 56  # of stored maps


class Figure6(Localisation):
    """Draw AggAtt of IxG, S-IxG and Grad-CAM.

    kernels: {layer: K of S-IxG, in positions of the layer}. The other parameters are those of `Localisation`.
    """

    def __init__(self, kernels: Mapping[str, int], **other: Any) -> None:
        super().__init__(**other)
        self.kernels = dict(kernels)

    def measure(self, output: Output, key: dict[str, Any], cell: Cell, map_: Tensor, size: Sequence[int]) -> None:
        found = {key["method"]: map_}
        if key["method"] == "input_x_gradient" and key["layer"] in self.kernels:
            found[SMOOTH] = smoothed(map_, self.kernels[key["layer"]])
        for method, each in found.items():
            full = upsampled(each, size)
            row = key | {"method": method} | scored(full, cell, self.n)
            last = (self.n - 1, self.n - 1)
            row["twin"] = metrics.localisation(full, *place(last, self.n, *full.shape[-2:])).nan_to_num().item()
            row["others"] = (1 - row["score"] - row["twin"]) / (self.n**2 - 2)
            output.tables["table"].append(row)
            small = adaptive_avg_pool2d(full.relu(), SIDE)
            name = f"{key['setting']}/{key['layer']}/{method}/{key['grid']}"
            output.arrays[name] = (small / (small.sum() or 1))[0, 0].numpy().astype(np.float32)

    def keep(self, output: Output, setting: str, number: int, pixels: Tensor) -> None:
        picture = adaptive_avg_pool2d(pixels, 2 * SIDE)[0]
        output.arrays[f"{setting}/pixels/{number}"] = (255 * picture).round().byte().numpy()

    def claims(self, results: Results) -> list[Claim]:
        def of(method: str, layer: str, setting: str = "gridpg", name: str = "score") -> Column:
            return Column(results.rows(setting=setting, layer=layer, method=method), name, "grid")

        least = self.least_of()
        gains = [
            Compared(
                f"{title(results.config, m)}: final - input",
                of(m, "final") - of(m, "input"),
                above(0, least=least),
                null=0.0,
                control="no difference: 0",
            )
            for m in ("input_x_gradient", "gradcam")
        ]
        well = [
            Compared(
                f"S-IxG, {layer}",
                of(SMOOTH, layer),
                above(self.chance + 0.1, least=least, ours=OURS),
                null=self.chance,
                control="chance",
            )
            for layer in self.kernels
        ]
        twin = of("gradcam", "final", "difull", "twin") - of("gradcam", "final", "difull", "others")
        compared = Compared(
            "GradCAM, DiFull, final: share in the second instance - in a cell of another class",
            twin,
            above(0, least=least),
            null=0.0,
            control="cells of other classes",
        )
        return self.judged(results, [Claim("R-5.3-b", [*gains, *well]), Claim("R-5.3-c", [compared])])

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        methods = ["input_x_gradient", SMOOTH, "gradcam"]
        grid = [("gridpg", method, layer) for method in methods for layer in self.layers]
        cells = [("difull", "input_x_gradient", "input"), ("difull", SMOOTH, "input"), ("difull", "gradcam", "final")]
        return {
            name: self._aggatt(results, rows)
            for name, rows in (("figure", grid), ("figure8", cells))
            if results.rows(setting=rows[0][0])
        }

    def _aggatt(self, results: Results, wanted: Sequence[tuple[str, str, str]]) -> Figure:
        rows: list[PanelRow] = []
        for setting, method, layer in wanted:
            found = results.rows(setting=setting, layer=layer, method=method)
            if not found:
                continue
            ranked = sorted(found, key=lambda row: (-row["score"], row["grid"]))
            maps = [results.arrays[f"{setting}/{layer}/{method}/{row['grid']}"] for row in ranked]
            bins = binned(len(ranked))
            means = [np.mean([maps[i] for i in some], 0) for some in bins]
            top = np.percentile(np.stack(means), 99.5)
            panels = []
            for which, words in ((bins[0], "best"), (bins[-1], "worst")):
                i = which[len(which) // 2]
                pixels = results.arrays[f"{setting}/pixels/{ranked[i]['grid']}"] / 255
                sharp = np.kron(maps[i] / max(np.percentile(maps[i], 99.5), 1e-12), np.ones((2, 2))).clip(0, 1)
                panels.append(
                    Panel(
                        framed(green(sharp, pixels), self.n),
                        "" if rows else f"{words}: an example",
                        f"{ranked[i]['score']:.2f}",
                    )
                )
            shown = [
                Panel(
                    framed(green((each / top).clip(0, 1)), self.n),
                    "" if rows else f"{low} to {high} %",
                    f"{mean([ranked[i]['score'] for i in some]):.2f}",
                )
                for each, some, low, high in zip(means, bins, BINS, BINS[1:], strict=False)
            ]
            name = f"S-IxG {self.kernels[layer]}" if method == SMOOTH else title(results.config, method)
            rows.append(PanelRow([panels[0], *shown, panels[1]], f"{name}\n{layer}"))
        caption = [
            f"{'DiFull' if wanted[0][0] == 'difull' else 'GridPG'}: mean positive attribution for the class of the upper left "
            "cell (framed), of maps in the order of their scores, the best first; below: the mean score of the bin",
            "S-IxG: with its K. Green: from 0 to the 99.5th percentile of a row",
            f"Chance: {self.chance:.2f}",
            *self.about(results),
        ]
        return panel_grid(rows, caption, panel=0.85)


def binned(count: int) -> list[list[int]]:
    """Return the ranks of each bin, one at least."""
    edges = [round(count * each / 100) for each in BINS]
    found = []
    for low, high in pairwise(edges):
        low = min(low, count - 1)
        found.append(list(range(low, max(high, low + 1))))
    return found


def green(map_: np.ndarray, pixels: np.ndarray | None = None) -> display.Picture:
    """Draw a map [H, W] in [0, 1] in green on white, or over the pale gray image [3, H, W]."""
    ground = (
        np.ones((*map_.shape, 3)) if pixels is None else 0.4 + 0.6 * display.picture(pixels).mean(-1, keepdims=True)
    )
    return (1 - map_[..., None]) * ground + map_[..., None] * np.array([0.0, 0.45, 0.1])


def framed(picture: display.Picture, n: int, cell: Cell = (0, 0)) -> display.Picture:
    """Draw the borders of an n x n grid in gray, and a frame around a cell in orange."""
    picture = picture.copy()
    h, w = picture.shape[0] // n, picture.shape[1] // n
    for i in range(1, n):
        picture[i * h, :], picture[:, i * w] = 0.75, 0.75
    top, left, t = cell[0] * h, cell[1] * w, max(1, h // 40)
    colour = (0.9, 0.35, 0.0)
    picture[top : top + t, left : left + w] = picture[top + h - t : top + h, left : left + w] = colour
    picture[top : top + h, left : left + t] = picture[top : top + h, left + w - t : left + w] = colour
    return picture
