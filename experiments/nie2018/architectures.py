"""nie2018, section 3.1.1: "GBP visualizations are human-interpretable in most of the CNNs": torchvision's, with random weights.

One network of each family whose activations are ReLUs; batch norm in evaluation mode with its initial statistics. A network
counts if the HP of its maps (mean over seeds and images) exceeds READABLE.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from experiments.nie2018.three_layer import BATCH, LABELS, WEIGHTS, images
from experiments.nie2018.verdicts import against_others
from vis.claims import Claim, Column, Compared, above, mean, mean_and_spread
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

READABLE = 0.2  # HP


class Architectures(Experiment):
    """Explain random networks of many architectures. architectures: names of torchvision."""

    metrics = ("HP",)
    series = "method"

    def __init__(self, architectures: Sequence[str]) -> None:
        self.architectures = list(architectures)

    def _node(self, arch: str) -> dict[str, object]:
        target = {"_target_": "vis.models.torchvision_classifier", "num_classes": 10, "preprocess": "mean_subtraction"}
        return {**target, "name": arch, "arch": arch, **WEIGHTS}

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed, "architecture": arch} for arch in self.architectures for seed in run.seeds]

    def load(self, run: Run, task: Task) -> Load:
        return Load(self._node(task["architecture"]), task["seed"], len(run.dataset), len(run.methods), 1)

    def compute(self, run: Run, task: Task) -> Output:
        seed, arch = task["seed"], task["architecture"]
        model = run.model(self._node(arch), seed)
        output = Output(tables={"table": []})
        for indices in run.batches(len(run.dataset), BATCH):
            batch = run.batch(model, indices)
            maps = run.explain(model, batch.x, [run.units_of(model, run.targets[0], batch.names)]).maps[0]
            for method, each in maps.items():
                output.tables["table"] += self._rows(task, method, each, batch.x.cpu(), batch.names)
                if seed == run.seeds[0] and 0 in indices:
                    output.arrays[f"{arch}/{method}"] = each[0].numpy()
        return output

    def _rows(self, task: Task, method: str, maps: Tensor, x: Tensor, names: Sequence[str]) -> Rows:
        numbers = against_others(maps, x, names)
        return [
            {**task, "image": image, "method": method, **{name: each[i].item() for name, each in numbers.items()}}
            for i, image in enumerate(names)
        ]

    def summaries(self, results: Results) -> dict[str, Rows]:
        """By architecture and method, the mean HP and whether it is readable, 1 or 0."""
        rows = []
        for arch in self.architectures:
            for method in results.config.methods:
                HP = mean([row["HP"] for row in results.rows(architecture=arch, method=method)])
                rows.append({"architecture": arch, "method": method, "HP": HP, "readable": float(HP > READABLE)})
        return {"architectures": rows}

    def claims(self, results: Results) -> list[Claim]:
        gbp, saliency = (
            Column(results.rows("architectures", method=m), "readable", "architecture") for m in ("gbp", "saliency")
        )
        metric, ours = f"share of architectures with HP of GBP above {READABLE}", f"the {READABLE} is ours"
        most = Compared(metric, gbp, above(0.5, of="share", ours=ours), null=saliency, control="the saliency map")
        return [Claim("N-3.1.1-f", [most])] if {"gbp", "saliency"} <= set(results.config.methods) else []

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows, half = [], -(-len(self.architectures) // 2)
        methods = [m for m in LABELS if m in results.config.methods]
        for part in (self.architectures[:half], self.architectures[half:]):
            for method in methods:
                panels = []
                for arch in part:
                    HP = mean_and_spread([row["HP"] for row in results.rows(architecture=arch, method=method)])
                    title = arch if method == methods[0] else ""
                    panels.append(Panel(display.minmax(results.arrays[f"{arch}/{method}"]), title, HP))
                rows.append(PanelRow(panels, LABELS[method]))
        caption = [
            f"Networks of torchvision with random weights, input {images(results)[0]}",
            "Batch norm in evaluation mode with its initial statistics",
            f"Under each map: HP, its correlation with the input after a high-pass; a map counts as readable above {READABLE}",
        ]
        return {"figure": panel_grid(rows, caption, panel=1.1)}
