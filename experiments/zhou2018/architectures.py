"""zhou2018, Section 2: "it holds for most of modern CNN architectures". The approximation's error (see figure11) by network.

In each network the error at one window is compared with that of PDA with 10 draws, over images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.zhou2018.evidence import learn, learnt, windows
from experiments.zhou2018.figure11 import Figure11
from vis.claims import Claim, Column, Compared, above, interval, on_digits, replicated
from vis.figures.layout import plot, styled
from vis.models.published import instead_of_published, is_published
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows


class Architectures(Figure11):
    """Measure the error in several networks. models: {name: config node, or null for none}; for the others see Figure11."""

    def __init__(self, models: Mapping[str, Any], **one: Any) -> None:
        super().__init__(**one)
        self.models = {name: node for name, node in models.items() if node is not None}

    def tasks(self, run: Run) -> Sequence[Task]:
        if run.folder is not None:
            for node in self.models.values():
                run.model(node)  # missing weights are reported before anything is computed
        return [{"network": name, "images": [i]} for name in self.models for i in range(len(run.dataset))]

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model(self.models[task["network"]])
        learn(run, model, self.own_images)
        row = self.row(run, model, run.batch(model, task["images"]), next(iter(run.methods.values())))
        return Output(tables={"table": [row | learnt(run, model, self.own_images)]})

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the errors of each image, and whether the interval over images is below PDA's, for each network."""
        errors, rows = super().summaries(results)["errors"], []
        for name in dict.fromkeys(row["network"] for row in errors):
            values = [row["log_ten"] for row in errors if row["network"] == name]
            low, high = interval(values)
            rows.append({"network": name, "low": low, "high": high, "better": float(high < 0)})
        return {"errors": errors, "networks": rows}

    def claims(self, results: Results) -> list[Claim]:
        most = Compared(
            "networks whose error is below that of PDA with 10 draws, by the interval over images of log10 of their ratio",
            Column(results.rows("networks"), "better", "network"),
            above(0.5, of="share", least=6),
            null=0.5,
            control="half of the networks",
        )
        nodes = results.config.experiment.models.items()
        others = [f"{name}: {instead_of_published(node)}" for name, node in nodes if node and not is_published(node)]
        others += windows(results, results.rows()[0])
        return replicated([Claim("Z-2.1-y", [most])], others, on_digits(results.config))

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows, first = results.rows("networks"), results.rows()[0]
        caption = [
            f"Error of the conditional mean over that of PDA with 10 draws, log10, at the window in the middle: mean and 95 % "
            f"interval over {len(results.rows(network=first['network']))} images, {self.samples} draws for the truth; below the "
            "line the efficient algorithm is the more accurate one",
            "; ".join(f"{row['network']}: {results.rows(network=row['network'])[0]['weights']}" for row in rows),
        ]
        figure, (axes,) = plot(4.4, 2.4, caption)
        limits = np.array([(row["low"], row["high"]) for row in rows])
        with styled():
            axes.errorbar(range(len(rows)), limits.mean(1), limits[:, 1] - limits.mean(1), fmt="o", capsize=3)
            axes.axhline(0, color="0.7", linewidth=0.8, linestyle="--")
            axes.set_xticks(range(len(rows)), [row["network"].replace("_", " ") for row in rows])
            axes.set(ylabel="log10 of the ratio")
        return {"figure": figure}
