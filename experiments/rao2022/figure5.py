"""rao2022, Figure 5, Tables 1 and 2: IxG and IntGrad, smoothed by a Gaussian window of K pixels with sigma = K / 4.

Tables 1 and 2 are rank correlations, over the maps of a network, of the scores with those of Grad-CAM at the final layer. Their
intervals over grids are those of the jackknife: each grid gives a pseudo-value n r - (n - 1) r', r' without it.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from experiments.rao2022.localisation import OURS, Localisation, scored, smoothed, title, upsampled
from vis.claims import Claim, Column, Compared, above, below, interval, jackknife, mean
from vis.figures.layout import PAGE_WIDTH, plot, styled
from vis.methods.grid import Cell
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

SMOOTHED = ("input_x_gradient", "integrated_gradients")


class Figure5(Localisation):
    """Score smoothed maps.

    kernels: {layer: K, in positions of the layer, the last one the largest}. The other parameters are those of `Localisation`.
    """

    def __init__(self, kernels: Mapping[str, Sequence[int]], **other: Any) -> None:
        super().__init__(**other)
        self.kernels = {layer: list(sizes) for layer, sizes in kernels.items()}

    def measure(self, output: Output, key: dict[str, Any], cell: Cell, map_: Tensor, size: Sequence[int]) -> None:
        sizes = self.kernels.get(key["layer"], []) if key["method"] in SMOOTHED else []
        for kernel in (0, *sizes):
            row = key | {"kernel": kernel} | scored(upsampled(smoothed(map_, kernel), size), cell, self.n)
            output.tables["table"].append(row)

    def of(
        self, results: Results, method: str, kernel: int = 0, setting: str = "gridpg", layer: str = "input"
    ) -> Column:
        return self.column(results, setting, layer, method, kernel=kernel)

    def claims(self, results: Results) -> list[Claim]:
        names = [m for m in SMOOTHED if m in results.config.methods]
        sizes = self.kernels["input"]
        gradcam = self.of(results, "gradcam", layer="final")

        def beyond(what: str, column: Column, method: str) -> Compared:
            return Compared(what, column, above(0, least=self.least_of(method)), null=0.0, control="no difference: 0")

        gains, steps, drops, ranks = [], [], [], []
        for method in names:
            name = f"S-{title(results.config, method)}"
            for kernel in sizes:
                gain = self.of(results, method, kernel) - self.of(results, method)
                gains.append(beyond(f"{name}, K = {kernel} - K = 0", gain, method))
                drop = self.of(results, method, setting="difull") - self.of(results, method, kernel, "difull")
                rule = below(0.1, least=self.least_of(method), ours=OURS)
                drops.append(
                    Compared(
                        f"{name}, DiFull: K = 0 - K = {kernel}",
                        drop,
                        rule,
                        null=1 - self.chance,
                        control="the whole way to chance",
                    )
                )
            for small, large in pairwise(sizes):
                step = self.of(results, method, large) - self.of(results, method, small)
                steps.append(beyond(f"{name}, K = {large} - K = {small}", step, method))
            with_, without = (
                Column(results.rows("correlation", method=method, kernel=k), "pseudo-value", "grid")
                for k in (sizes[-2], 0)
            )
            ranks.append(
                beyond(f"rank correlation with GradCAM: {name}, K = {sizes[-2]} - K = 0", with_ - without, method)
            )
        found = [
            Claim("R-5.2-a", gains + steps),
            Claim("R-5.2-c", drops),
            Claim("R-5.3-a", ranks, paper=".34 -> .80, VGG11; .18 -> .63, ResNet18"),
        ]
        if "integrated_gradients" in names:
            ahead = {k: self.of(results, "integrated_gradients", k) - gradcam for k in sizes[-2:]}
            words = "S-IntGrad at the input, K = {} - GradCAM at the final layer"
            found += [
                Claim("R-5.2-b", [beyond(words.format(sizes[-1]), ahead[sizes[-1]], "integrated_gradients")]),
                Claim(
                    "one_kernel_less",
                    [beyond(words.format(sizes[-2]), ahead[sizes[-2]], "integrated_gradients")],
                    sentence=f"Smoothed with K = {sizes[-2]}, IntGrad at the input beats GradCAM at the final layer.",
                    source="The project, beside Section 5.2",
                ),
            ]
        return self.judged(results, found)

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return beside the scores Tables 1 and 2, and the pseudo-values that their intervals come from."""
        final = {
            (row["grid"], row["cell"]): row["score"]
            for row in results.rows(setting="gridpg", layer="final", method="gradcam")
        }
        correlations: Rows = []
        table: Rows = []
        for method in SMOOTHED:
            line: dict[str, Any] = {
                "method": f"S-{title(results.config, method)}" if method in results.config.methods else method
            }
            for kernel in (0, *self.kernels["input"]):
                rows = [
                    r
                    for r in results.rows(setting="gridpg", layer="input", method=method, kernel=kernel)
                    if (r["grid"], r["cell"]) in final
                ]
                pairs = {
                    grid: [(r["score"], final[r["grid"], r["cell"]]) for r in rows if r["grid"] == grid]
                    for grid in dict.fromkeys(r["grid"] for r in rows)
                }
                values = jackknife(list(pairs.values()), lambda some: rank_correlation([*chain.from_iterable(some)]))
                correlations += [
                    {"method": method, "kernel": kernel, "grid": grid, "pseudo-value": value}
                    for grid, value in zip(pairs, values, strict=False)
                ]
                if len(values) > 1:
                    low, high = interval(values)
                    every = list(chain.from_iterable(pairs.values()))
                    line |= {
                        f"K = {kernel}": f"{rank_correlation(every):.2f} [{low:.2f}, {high:.2f}]",
                        "grids": len(values),
                    }
            if len(line) > 1:
                table.append(line)
        return super().summaries(results) | {"correlation": correlations} | ({"tables1_2": table} if table else {})

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        settings = [each for each in self.settings if results.rows(setting=each)]
        panels = [("gridpg", layer) for layer in self.kernels] + [(s, "input") for s in settings if s != "gridpg"]
        panels = [p for p in panels if results.rows(setting=p[0], layer=p[1])]
        caption = [
            "Score of smoothed maps, mean over the grids and its 95 % interval",
            "Dashed: GradCAM at the final layer" + (", GridPG" if len(settings) > 1 else ""),
            f"Dotted: chance, {self.chance:.2f}",
            *self.about(results),
        ]
        figure, axes = plot(PAGE_WIDTH, 2.2, caption, columns=len(panels))
        with styled():
            for axis, (setting, layer) in zip(axes, panels, strict=True):
                sizes = [0, *self.kernels[layer]]
                for method in SMOOTHED:
                    columns = [self.of(results, method, k, setting, layer).values for k in sizes]
                    shown = [(i, values) for i, values in enumerate(columns) if values]
                    if shown:
                        limits = [interval(v) if len(v) > 1 else (mean(v), mean(v)) for _, v in shown]
                        middle = [mean(v) for _, v in shown]
                        errors = [
                            [m - low for m, (low, _) in zip(middle, limits, strict=True)],
                            [high - m for m, (_, high) in zip(middle, limits, strict=True)],
                        ]
                        axis.errorbar(
                            [i for i, _ in shown],
                            middle,
                            errors,
                            marker="o",
                            capsize=2,
                            label=f"S-{title(results.config, method)}",
                        )
                if setting == "gridpg":
                    axis.axhline(
                        mean(self.of(results, "gradcam", layer="final").values),
                        color="0.3",
                        linewidth=0.9,
                        linestyle="--",
                        zorder=0,
                    )
                axis.axhline(self.chance, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
                axis.set_ylim(0, 1.03)
                axis.set_xticks(range(len(sizes)), [str(k) if k else "none" for k in sizes])
                axis.set_xlabel("size K of the window")
                axis.set_title(("GridPG" if setting == "gridpg" else "DiFull") + f", {layer}")
            axes[0].set_ylabel("score")
            axes[0].legend(loc="upper left")
        return {"figure": figure}


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Return Spearman's correlation; 0 if one of the two is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(each) for each in zip(*pairs, strict=True))
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else 0.0
