"""zhou2018, Figure 13: MNIST, one digit of each class, the evidence by PDA and by the efficient algorithm.

"Both algorithms use a window size of 4x4 [...]. Also, marginal sampling is used instead of conditional sampling." The
network has two convolutional, two max-pooling and two dense layers; the project trains it itself, as the paper's authors
did theirs. "This model achieves an accuracy of 99.2% on the MNIST test set."
"""

from collections.abc import Sequence
from typing import Any

import torch

from experiments.zhou2018.evidence import EvidenceMaps
from vis.oldclaims import Claim, above, departures
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output, Results

PAPER = {"methods": {name: {"window": 4, "conditional": False} for name in ("pda", "pda_fast")}}
ACCURACY = "this model achieves an accuracy of 99.2% on the MNIST test set"


class Figure13(EvidenceMaps):
    """EvidenceMaps of the first image of each class."""

    def pictures(self, run: Run) -> list[int]:
        labels = list(run.dataset.labels)
        return [labels.index(label) for label in sorted({v for v in labels if v is not None})] or super().pictures(run)

    def tasks(self, run: Run) -> Sequence[Task]:
        labelled = [i for i, label in enumerate(run.dataset.labels) if label is not None]
        return [*super().tasks(run), *({"accuracy": labelled[i : i + 2000]} for i in range(0, len(labelled), 2000))]

    def load(self, run: Run, task: Task) -> Any:
        return None if "accuracy" in task else super().load(run, task)

    def compute(self, run: Run, task: Task) -> Output:
        if "accuracy" not in task:
            return super().compute(run, task)
        model = run.model()
        batch = run.batch(model, task["accuracy"])
        with torch.no_grad():
            found = torch.cat([model.net(x).argmax(1) for x in batch.x.split(250)]).cpu()
        right = int((found == torch.tensor(batch.labels)).sum())
        return Output(tables={"accuracy": [{"right": right, "images": len(found), "data": run.dataset.origin}]})

    def not_the_papers(self, results: Results) -> str:
        node, data = results.config.model, {row.get("data") for row in results.rows("accuracy")}
        trained_on = str(node.get("trained_on")) if node.weights == "standin" else ""
        if not trained_on.startswith("mnist") or data != {"MNIST test"}:
            return "weights or images not MNIST's"
        return departures(results.config, PAPER)

    def claims(self, results: Results) -> list[Claim]:
        counted = results.rows("accuracy")
        share = [sum(r["right"] for r in counted) / sum(r["images"] for r in counted)] if counted else []
        metric, why = "share of the test images whose class is right", self.not_the_papers(results)
        return [
            Claim(
                "accuracy",
                ACCURACY,
                source="Section 3",
                metric=metric,
                criterion=above(0.99),
                values=share,
                paper=0.992,
                reason=why,
            ),
            *super().claims(results),
        ]
