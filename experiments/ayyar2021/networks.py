"""ayyar2021, sections 3.1 and 4.6: what torchvision's CNNs, one of each family, are made of, and whether Grad-CAM explains them.

The networks have the heads and the random weights of their constructors.
"""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.overrides import TorchFunctionMode

from vis.claims import Claim, Column, Compared, above, exactly
from vis.figures.layout import plot, styled
from vis.methods import GradCAM, NotApplicable
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results

SIDE = 128  # of the image: enough for each network, and fast
COLUMNS = {"relu": "ReLU", "max_pool": "max-pooling", "gradcam": "Grad-CAM"}


class Calls(TorchFunctionMode):
    """Records the names of the functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


class Networks(Experiment):
    """Look at torchvision's classifiers by name. A task is a network."""

    metrics = ("relu", "max_pool", "gradcam")

    def __init__(self, archs: Sequence[str]) -> None:
        self.archs = list(archs)

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"arch": arch} for arch in self.archs]

    def compute(self, run: Run, task: Task) -> Output:
        from torchvision import models

        torch.manual_seed(run.config.seed)
        slow = {"init_weights": False} if task["arch"] in ("googlenet", "inception_v3") else {}
        net = models.get_model(task["arch"], weights=None, **slow).eval().requires_grad_(False)
        x = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
        with Calls() as calls:
            logits = net(x)
        classes = models.get_model_weights(task["arch"]).DEFAULT.meta["categories"]
        row = {
            **task,
            "outputs": logits.shape[1],
            "classes": len(classes),
            "difference": logits.shape[1] - len(classes),
        }
        row |= {"relu": int(bool({"relu", "relu_"} & calls.names))}
        row |= {"max_pool": int(any("max_pool2d" in name for name in calls.names))}
        order = logits[0].argsort(descending=True).tolist()
        try:
            maps = torch.cat([GradCAM()(net, x, [c]) for c in (order[0], order[len(order) // 2], order[-1])])
            varies = (maps.amax((1, 2, 3)) > maps.amin((1, 2, 3))) & maps.isfinite().all(3).all(2).all(1)
            row |= {"gradcam": int(varies.any())}
        except NotApplicable as error:
            row |= {"gradcam": 0, "why": str(error)}
        return Output(tables={"table": [row]})

    def claims(self, results: Results) -> list[Claim]:
        def column(name: str) -> Column:
            return Column(results.rows(), name, "arch")

        common = [
            Compared(
                f"share of networks with {COLUMNS[name]}",
                column(name),
                above(0.5, of="share"),
                null=0.5,
                control="half",
            )
            for name in ("relu", "max_pool")
        ]
        heads = Compared(
            "outputs - classes of ImageNet", column("difference"), exactly(0), null=1.0, control="one more: 1"
        )
        runs = Compared("1 where Grad-CAM runs and varies for one of three classes, else 0", column("gradcam"), exactly(1),
                        null=0.0, control="a constant map: 0")  # fmt: skip
        return [Claim("A-3.1-a", [heads]), Claim("A-3.1-d", common), Claim("A-4.6-f", [runs])]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows = results.rows()
        caption = [
            "Which of torchvision's CNNs, one of each family, have a ReLU and a max-pooling, and which Grad-CAM explains"
        ]
        figure, (axes,) = plot(3.4, 0.6 + 0.17 * len(rows), caption)
        with styled():
            for y, row in enumerate(rows):
                for x, name in enumerate(COLUMNS):
                    axes.plot(x, y, "o", color="C0", markerfacecolor="C0" if row[name] else "none")
            axes.set_xticks(range(len(COLUMNS)), list(COLUMNS.values()))
            axes.set_yticks(range(len(rows)), [row["arch"] for row in rows])
            axes.set(xlim=(-0.5, len(COLUMNS) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        return {"figure": figure}
