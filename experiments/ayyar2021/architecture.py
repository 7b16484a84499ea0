"""ayyar2021, Figures 2 and 3: an AlexNet-like CNN and its first conv block, drawn from a real model's layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from vis.claims import Claim, Column, Compared, exactly
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import PAGE_WIDTH, Panel, PanelRow, panel_grid, plot, styled, typeset
from vis.methods.forward import Forward, NotApplicable
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

KINDS = {nn.Conv2d: "conv", nn.ReLU: "ReLU", nn.MaxPool2d: "max pool", nn.Linear: "FC"}


class Architecture(Experiment):
    """Draw the layers of a model with their sizes, or the output of its first conv block for an image.

    show: network (Figure 2) or block (Figure 3). maps: channels of the block that are drawn.
    """

    def __init__(self, show: str, maps: int = 3) -> None:
        if show not in ("network", "block"):
            raise UserError(f"experiment.show is network or block, not {show}")
        self.show, self.maps = show, maps

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"images": [0]}]

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        kinds = {
            name: next((words for kind, words in KINDS.items() if isinstance(module, kind)), "")
            for name, module in model.net.named_modules()
        }
        names = [name for name, kind in kinds.items() if kind]
        kept = [kinds[name] for name in names]
        pools = [i for i, kind in enumerate(kept) if kind == "max pool"]
        wrong = UserError(
            f"{model.name} is no chain of convolution, ReLU and max-pooling modules with dense layers behind: model=alexnet"
        )
        if not pools or kept[0] != "conv" or kept[-1] != "FC" or "ReLU" not in kept[: pools[0]]:
            raise wrong
        batch = run.batch(model, task["images"])
        try:
            with Forward(model.net, batch.x, names) as forward:
                shapes = [list(forward.layers[name].shape[1:]) for name in names]
        except NotApplicable as error:  # a module that is called several times
            raise wrong from error
        rows: Rows = [{"layer": "", "kind": "input", "shape": list(batch.x.shape[1:])}]
        rows += [{"layer": n, "kind": k, "shape": shape} for n, k, shape in zip(names, kept, shapes, strict=True)]
        output = Output({"pixels": batch.pixels[0].numpy()}, {"table": rows})
        fact: dict[str, Any] = {"image": batch.names[0], "weights": model.weights}
        h = batch.x
        with torch.no_grad():
            for name in names[: pools[0] + 1]:
                module, t = model.net.get_submodule(name), h
                h = module(h.clone())  # a clone: a ReLU may work in place
                if kinds[name] == "ReLU":
                    fact |= {"relu": (h - t.clamp(min=0)).abs().max().item(), "identity": (h - t).abs().max().item()}
                channels = np.linspace(0, h.shape[1] - 1, self.maps).astype(int)
                output.arrays[name] = h[0, channels].cpu().numpy()
        output.tables["network"] = [fact]
        return output

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return for each convolution whether a ReLU and a max-pooling follow, which makes a conv block."""
        rows = results.rows()
        return {
            "convolutions": [
                {"layer": row["layer"], "block": int([r["kind"] for r in rows[i + 1 : i + 3]] == ["ReLU", "max pool"])}
                for i, row in enumerate(rows)
                if row["kind"] == "conv"
            ]
        }

    def claims(self, results: Results) -> list[Claim]:
        if self.show == "block":
            rows = results.rows("network")
            relu, identity = (Column(rows, name, "image") for name in ("relu", "identity"))
            metric = "largest |output of the ReLU - max(0, t)|"
            return [Claim("A-3.1-c", [Compared(metric, relu, exactly(0), null=identity, control="t itself")])]
        block = Column(results.rows("convolutions"), "block", "layer")
        metric = "1 for a convolution that ReLU and max-pooling follow, else 0"
        return [Claim("A-3.1-b", [Compared(metric, block, exactly(1), null=0.0, control="no pooling: 0")])]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        return {"figure": self._block(results) if self.show == "block" else self._network(results)}

    def _block(self, results: Results) -> Figure:
        """Draw a column for each step of the block and a row for each channel."""
        (fact,), rows = results.rows("network"), results.rows()
        steps = [row for row in rows if row["layer"] in results.arrays]
        grid = []
        for channel in range(self.maps):
            image = display.picture(results.arrays["pixels"]) if channel == 0 else None
            panels = [Panel(image, "" if channel else f"input\n{size(rows[0])}")]
            for row in steps:
                title = "" if channel else f"{row['kind']}\n{size(row)}"
                panels.append(Panel(display.diverging(results.arrays[row["layer"]][channel][None]), title))
            grid.append(PanelRow(panels))
        caption = [
            f"The first conv block of {results.config.model.name}, {fact['weights']}: what it makes of an image, {self.maps} of "
            f"{steps[0]['shape'][0]} channels; red is positive, blue negative, each map to its own maximum"
        ]
        return panel_grid(grid, caption, panel=1.3)

    def _network(self, results: Results) -> Figure:
        """Draw feature maps as sheets and dense layers as bars; a ReLU is named with the layer before it."""
        drawn: Rows = []
        for row in results.rows():
            if row["kind"] == "ReLU":
                drawn[-1]["kind"] += "\n+ ReLU"
            else:
                drawn.append(dict(row))
        caption = [f"{results.config.model.name} with the sizes of its layers, channels x height x width"]
        figure, (axes,) = plot(PAGE_WIDTH, 1.9, caption)
        x, widest = 0.0, drawn[0]["shape"][1]
        with styled():
            for row in drawn:
                flat = len(row["shape"]) == 1
                side = 0.9 if flat else 0.7 * (row["shape"][1] / widest) ** 0.5 + 0.1
                width, sheets = (0.12, 1) if flat else (0.6 * side, 4)
                for sheet in reversed(range(sheets)):
                    place = (x + 0.04 * sheet, 0.04 * sheet - side / 2)
                    axes.add_patch(Rectangle(place, width, side, facecolor="white", edgecolor="0.3", linewidth=0.8))
                axes.text(x + width / 2, 0.62, typeset(size(row).replace("x", "\n", 1)), ha="center", fontsize=6)
                axes.text(x + width / 2, -0.6, row["kind"], ha="center", va="top", fontsize=6.5)
                x += width + 0.04 * (sheets - 1) + 0.3
            axes.set(xlim=(-0.1, x - 0.1), ylim=(-0.95, 0.85))
            axes.set_axis_off()
        return figure


def size(row: dict[str, Any]) -> str:
    """Format a size as channels x height x width, or as the number of units of a dense layer."""
    return "x".join(map(str, row["shape"]))
