"""nie2018, section 3.1.1: "GBP visualizations are human-interpretable in most of the CNNs", on architectures of torchvision.

The architectures are one of each family of torchvision whose every activation is a ReLU, the smallest that it has, with the
paper's random weights. A map is readable if HP, its correlation with the input after a high-pass, exceeds .2.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.nie2018.trained import LABELS
from experiments.nie2018.verdicts import READABLE
from vis import metrics
from vis.claims import Claim, Column, Compared, above, mean, mean_and_spread, replicated
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows


class Families(Experiment):
    """Explain random networks. architectures: names in torchvision; node: the rest of their config node."""

    metrics = ("HP",)
    series = "method"

    def __init__(self, architectures: Sequence[str], node: Mapping[str, Any]) -> None:
        self.architectures, self.node = list(architectures), node

    def _node(self, task: Task) -> dict[str, Any]:
        return {**self.node, "arch": task["arch"], "name": task["arch"]}

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"arch": arch, "seed": seed} for arch in self.architectures for seed in run.seeds]

    def load(self, run: Run, task: Task) -> Load:
        return Load(self._node(task), task["seed"], len(run.dataset), len(run.methods), len(run.methods))

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model(self._node(task), task["seed"])
        batch = run.batch(model, range(len(run.dataset)))
        output = Output(tables={"table": []})
        for method, maps in run.explain(model, batch.x, [None]).maps[0].items():
            HP = metrics.high_pass_pearson(maps, batch.x.cpu()).tolist()
            output.tables["table"] += [
                {**task, "image": n, "method": method, "HP": v} for n, v in zip(batch.names, HP, strict=True)
            ]
            if task["seed"] == run.seeds[0]:
                output.arrays[f"{task['arch']}/{method}"] = maps[0].numpy()
        return output

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return 1 for each architecture whose maps are readable on average over seeds and photographs, otherwise 0."""
        rows: Rows = []
        for arch in dict.fromkeys(row["arch"] for row in results.rows()):
            HP = {m: mean([row["HP"] for row in results.rows(arch=arch, method=m)]) for m in results.config.methods}
            rows.append({"arch": arch, **{f"readable_{m}": float(v > 0.2) for m, v in HP.items()}})
        return {"families": rows}

    def claims(self, results: Results) -> list[Claim]:
        rows = results.rows("families")
        most = Compared("share of architectures whose GBP is readable", Column(rows, "readable_gbp", "arch"),
                        above(0.5, of="share", ours=READABLE), null=Column(rows, "readable_saliency", "arch"),
                        control="the saliency map")  # fmt: skip
        return replicated([Claim("N-3.1.1-f", [most])], ["random weights alone, without trained ones"])

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        archs = list(dict.fromkeys(row["arch"] for row in results.rows()))
        rows = []
        for method in results.config.methods:
            for start in range(0, len(archs), 7):
                panels = []
                for arch in archs[start : start + 7]:
                    values = [row["HP"] for row in results.rows(arch=arch, method=method)]
                    map_ = display.minmax(results.arrays[f"{arch}/{method}"])
                    panels.append(Panel(map_, arch.replace("_", " "), f"HP {mean_and_spread(values, 2)}"))
                rows.append(PanelRow(panels, "" if start else LABELS.get(method, method)))
        image = results.rows()[0]["image"]
        caption = [
            f"Random weights (truncated Gaussian, std {results.config.experiment.node.std}), the largest logit; input {image}",
            f"Maps of seed {results.config.seed}, {display.scaling('minmax')[1]}",
            "Under each map: HP, the correlation with the input after a high-pass, over seeds and photographs",
        ]
        return {"figure": panel_grid(rows, caption)}
