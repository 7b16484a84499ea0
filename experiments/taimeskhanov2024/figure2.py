"""taimeskhanov2024, Figure 2: the network of the theory, [CNN], drawn with the sizes that it computes on a digit."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from experiments.taimeskhanov2024.proposition1 import SIDE, cnn
from vis.claims import Claim, Column, Compared, exactly
from vis.data import to_pixels
from vis.figures.display import picture
from vis.figures.layout import PAGE_WIDTH, plot, styled, typeset
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

SPACE = 10.0  # between layers, in pixels


class Figure2(Experiment):
    """Draw [CNN]. filters, layers: V and L; kernel, pool: k and k'; width: units of the hidden dense layers."""

    def __init__(self, filters: int, layers: int, kernel: int, pool: int, width: int) -> None:
        self.filters, self.layers, self.kernel, self.pool, self.width = filters, layers, kernel, pool, width

    def compute(self, run: Run, task: Task) -> Output:
        net = cnn(self.filters, self.layers, self.kernel, self.pool, self.width, run.config.seed)
        pixels = to_pixels(run.dataset.read(0), (SIDE, SIDE), 1)
        x = pixels.double()[None]
        rows: Rows = [{"what": "$\\xi$", "layer": "image", "shape": [SIDE, SIDE]}]
        names = iter(["$A$", "$B$", "$C$", *(f"$h_{{{i}}}$" for i in range(1, self.layers + 1))])
        words = {nn.Conv2d: "convolution", nn.ReLU: "ReLU", nn.MaxPool2d: "max-pooling", nn.Linear: "dense"}
        dense = False
        for layer in net:
            x, dense = layer(x), dense or isinstance(layer, nn.Linear)
            if type(layer) in words and not (dense and isinstance(layer, nn.ReLU)):
                rows.append({"what": next(names), "layer": words[type(layer)], "shape": list(x.shape[1:])})
        h = SIDE - self.kernel + 1
        expected = {"$A$": [h, h], "$C$": [h // self.pool, h // self.pool]}
        sizes = [
            {"what": f"{row['what']}, axis {axis}", "error": row["shape"][1 + axis] - side}
            for row in rows if row["what"] in expected
            for axis, side in enumerate(expected[row["what"]])
        ]  # fmt: skip
        return Output({"pixels": pixels.numpy()}, {"table": rows, "sizes": sizes})

    def claims(self, results: Results) -> list[Claim]:
        column = Column(results.rows("sizes"), "error", "what")
        words = "height and width of A and C, measured minus by the formulas"
        return [Claim("T-2.1-a", [Compared(words, column, exactly(0), null=2.0, control="a padding of 1")])]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows = results.rows()
        words = {
            "image": "input image",
            "convolution": f"convolution C,\n{self.filters} filters {self.kernel}x{self.kernel}",
            "ReLU": "ReLU",
            "max-pooling": f"max-pooling\n{self.pool}x{self.pool}",
            "dense": f"{self.layers} dense layers",
        }
        caption = [
            f"[CNN]: one convolution, ReLU, max-pooling, and L = {self.layers} dense layers with ReLUs between them; sizes as "
            "the network computes them on one of scikit-learn's digits"
            if "digits" in results.config.dataset._target_
            else f"[CNN]: one convolution, ReLU, max-pooling, and L = {self.layers} dense layers with ReLUs between them",
        ]
        figure, (axes,) = plot(PAGE_WIDTH, 1.9, caption)
        with styled():
            x, dense = 0.0, results.rows(layer="dense")
            for row in rows:
                width = self._draw_layer(axes, row, x, picture(results.arrays["pixels"]))
                middle = x + width / 2
                axes.text(
                    middle, 24, f"{row['what']}\n{typeset('x'.join(map(str, row['shape'])))}", ha="center", va="bottom"
                )
                if row["layer"] != "dense" or row is dense[len(dense) // 2]:
                    axes.text(middle, -23, typeset(words[row["layer"]]), ha="center", va="top", fontsize=7)
                if row is not rows[-1]:
                    axes.annotate(
                        "",
                        (x + width + SPACE - 1.5, 0),
                        (x + width + 1.5, 0),
                        arrowprops={"arrowstyle": "->", "linewidth": 0.8},
                    )
                x += width + SPACE
            axes.set_xlim(-4, x - SPACE + 6)
            axes.set_ylim(-36, 40)
            axes.set_aspect("equal")
            axes.set_axis_off()
        return {"figure": figure}

    def _draw_layer(self, axes: Any, row: dict[str, Any], x: float, digit: Any) -> float:
        """Draw a layer at x, one unit a pixel: the image, a stack of square maps, or a column of units; return its width."""
        box: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.3", "linewidth": 0.8}
        if row["layer"] == "image":
            axes.imshow(digit, extent=(x, x + SIDE, -SIDE / 2, SIDE / 2), interpolation="nearest", aspect="equal")
            return float(SIDE)
        if len(row["shape"]) == 1:
            height = 3 * row["shape"][0] ** 0.9
            axes.add_patch(Rectangle((x, -height / 2), 3, height, **box))
            return 3.0
        side, sheets = row["shape"][1], min(4, row["shape"][0])
        for sheet in reversed(range(sheets)):
            axes.add_patch(Rectangle((x + 2 * sheet, 2 * sheet - side / 2 - sheets + 1), side, side, **box))
        return side + 2.0 * (sheets - 1)
