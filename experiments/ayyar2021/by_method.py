"""Chart numbers of many images by method, with mean and 95 % interval, for the claims of ayyar2021, section 7."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from experiments.ayyar2021.gallery import Gallery
from vis.claims import Claim, interval, mean, spread
from vis.figures.layout import PAGE_WIDTH, plot, styled
from vis.runner.experiment import method_words
from vis.store.run_folder import Results
from vis.store.tables import Rows, numbers


class ByMethod(Gallery):
    """A Gallery that draws a chart instead of maps. axes: {axis label: {legend entry: column of the table}}.

    controls: {what stands as a method in the table: its title}, drawn in gray.
    """

    axes: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}  # {axis: range of its numbers}
    controls: ClassVar[Mapping[str, str]] = {}
    sentence: str = ""  # first sentence of the caption

    def __init_subclass__(cls) -> None:
        cls.metrics = [column for columns in cls.axes.values() for column in columns.values()]

    def values(self, results: Results, method: str, column: str) -> list[float]:
        """Return a column of the table for a method, without the images that have no value."""
        return numbers(results.rows(method=method), column)

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return a row for each method: mean, 95 % interval and standard deviation over the images."""
        rows: Rows = []
        for method in (*results.config.methods, *(c for c in self.controls if results.rows(method=c))):
            row: dict[str, Any] = {"method": self.heading(results, method)}
            for column in self.metrics:
                values = self.values(results, method, column)
                if len(values) > 1:
                    low, high = interval(values)
                    row |= {column: mean(values), f"{column} low": low, f"{column} high": high}
                    row |= {f"{column} std": spread(values)}
            rows.append(row)
        return {"summary": rows}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, first, names = (
            results.config,
            next(iter(self.metrics)),
            {name for row in results.rows() for name in row},
        )
        shown = [m for m in (*config.methods, *self.controls) if self.values(results, m, first)]
        shown.sort(key=lambda method: mean(self.values(results, method, first)))
        count = len({row["image"] for row in results.rows()})
        caption = [
            self.sentence,
            f"Ticks: images ({count}); bars: mean and its 95 % interval, cut at the ends of the number's range",
            *self.remarks(results),
            *method_words(config),
            f"{config.model.name}, {results.rows()[0]['weights']}",
        ]
        shown_axes = {label: columns for label, columns in self.axes.items() if names & {*columns.values()}}
        width = min(PAGE_WIDTH, 1.6 + 2.4 * len(shown_axes))
        figure, axes = plot(width, 0.6 + 0.24 * len(shown), caption, columns=len(shown_axes))
        with styled():
            for axis, (label, columns) in zip(axes, shown_axes.items(), strict=True):
                for j, (entry, column) in enumerate(columns.items()):
                    shift = 0.18 * (j - (len(columns) - 1) / 2)
                    for y, method in enumerate(shown):
                        values = self.values(results, method, column)
                        if not values:
                            continue
                        color = "0.5" if method in self.controls else f"C{j}"
                        axis.plot(values, np.full(len(values), y + shift), "|", color=color, alpha=0.4, markersize=6)
                        low, high = np.clip(interval(values), *self.ranges.get(label, (-np.inf, np.inf)))
                        middle = mean(values)
                        bars = [[max(0, middle - low)], [max(0, high - middle)]] if len(values) > 1 else None
                        axis.errorbar(middle, y + shift, xerr=bars, fmt="o", color=color, markersize=3.5, capsize=2,
                                      label="" if y else entry)  # fmt: skip
                titles = [self.heading(results, method) for method in shown]
                axis.set_yticks(range(len(shown)), titles if axis is axes[0] else [""] * len(shown))
                axis.set_ylim(-0.6, len(shown) - 0.4)
                axis.grid(axis="y", color="0.92", linewidth=0.6)
                axis.set_xlabel(label)
                if len(columns) > 1 and axis is axes[0]:
                    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(columns))
        return {"figure": figure}

    def heading(self, results: Results, method: str) -> str:
        """Return the title of a method or a control in one line."""
        return self.controls.get(method) or self.title(results.config, method).replace("\n", ", ")

    def remarks(self, results: Results) -> list[str]:
        """Return further sentences of the caption."""
        return []
