"""taimeskhanov2024, Figure 2: the network of the theory, [CNN], drawn with the sizes of the model at hand."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from vis.errors import UserError
from vis.figures.layout import PAGE_WIDTH, plot, styled, typeset
from vis.methods.forward import Forward
from vis.oldclaims import Claim, Criterion
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results

SENTENCE = "(h, w) = (H - k + 1, W - k + 1) and (h', w') = (h, w) / k'"


class Figure2(Experiment):
    """Draw one convolution, ReLU, max-pooling and dense layers, with the sizes that the network computes."""

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"images": [0]}]

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        names = {
            kind: [name for name, m in model.net.named_modules() if isinstance(m, kind)]
            for kind in (nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Linear)
        }
        if len(names[nn.Conv2d]) != 1 or len(names[nn.MaxPool2d]) != 1 or not names[nn.Linear]:
            raise UserError(
                f"{model.name} is not a CNN of one convolution, one max-pooling and dense layers: model=cnn_masked"
            )
        layers = [names[nn.Conv2d][0], names[nn.ReLU][0], names[nn.MaxPool2d][0], *names[nn.Linear]]
        batch = run.batch(model, task["images"])
        with Forward(model.net, batch.x, layers) as forward:
            shapes = [list(batch.x.shape[1:]), *(list(forward.layers[name].shape[1:]) for name in layers)]
        conv: Any
        pool: Any
        conv, pool = (model.net.get_submodule(names[kind][0]) for kind in (nn.Conv2d, nn.MaxPool2d))
        dense = [f"$h_{{{i}}}$" for i in range(1, len(names[nn.Linear]) + 1)]
        labels = ["$\\xi$", "$A$", "$B$", "$C$", *dense]
        rows = [{"what": label, "shape": shape} for label, shape in zip(labels, shapes, strict=True)]
        sizes = {"k": conv.kernel_size[0], "pool": pool.kernel_size, "live": model.net.wall_rows}
        return Output(tables={"table": rows, "sizes": [sizes]})

    def claims(self, results: Results) -> list[Claim]:
        (_, H, _), (_, h, _), _, (_, pooled, _) = (row["shape"] for row in results.rows()[:4])
        (sizes,) = results.rows("sizes")
        wrong = [h - (H - sizes["k"] + 1), pooled - h / sizes["pool"]]
        exact = Criterion("both 0", lambda values: not any(values))
        return [
            Claim(
                "sizes",
                SENTENCE,
                source="Section 2.1",
                metric="h and h' less what the formulas say",
                criterion=exact,
                values=wrong,
            )
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows, (sizes,) = results.rows(), results.rows("sizes")
        words = [
            "input image",
            f"convolution C,\n{rows[1]['shape'][0]} filters {sizes['k']}x{sizes['k']}",
            "ReLU",
            f"max pooling\n{sizes['pool']}x{sizes['pool']}",
            *["dense layer"] * (len(rows) - 4),
        ]
        caption = [
            "[CNN]: one convolution, ReLU, max-pooling, dense layers, with the sizes of the model at hand",
            f"Hatched: the rows of C that the dense layer does not read ({rows[3]['shape'][1] - sizes['live']} of "
            f"{rows[3]['shape'][1]})",
        ]
        figure, (axes,) = plot(PAGE_WIDTH, 1.9, caption)
        with styled():
            x = 0.0
            for row, word in zip(rows, words, strict=True):
                flat = len(row["shape"]) == 1
                side = 0.9 if flat else 0.6 * (row["shape"][1] / rows[0]["shape"][1]) ** 0.5 + 0.2
                width = 0.12 if flat else side
                sheets = 1 if flat or row["shape"][0] == 1 else 4
                for sheet in reversed(range(sheets)):
                    place = (x + 0.06 * sheet, 0.05 * sheet - side / 2)
                    axes.add_patch(Rectangle(place, width, side, facecolor="white", edgecolor="0.3", linewidth=0.8))
                if row["what"] == "$C$":
                    dead = side * (1 - sizes["live"] / row["shape"][1])
                    box: dict[str, Any] = {
                        "facecolor": (1, 0, 0, 0.1),
                        "edgecolor": "red",
                        "hatch": "////",
                        "linewidth": 0,
                    }
                    axes.add_patch(Rectangle((x, -side / 2), width, dead, **box))
                shape = "x".join(map(str, row["shape"][1:] if row["shape"][0] == 1 and not flat else row["shape"]))
                middle = x + width / 2
                axes.text(middle, 0.66, f"{row['what']}\n{typeset(shape)}", ha="center", va="bottom")
                axes.text(middle, -0.62, typeset(word), ha="center", va="top", fontsize=7)
                end = x + width + 0.06 * (sheets - 1)
                x = end + 0.55
                if row is not rows[-1]:
                    axes.annotate("", (x - 0.1, 0), (end + 0.1, 0), arrowprops={"arrowstyle": "->", "linewidth": 0.8})
            axes.set_xlim(-0.3, x - 0.2)
            axes.set_ylim(-1.0, 1.0)
            axes.set_axis_off()
        return {"figure": figure}
