"""rao2022, section 5.2: what smoothing gives on a network with batch norm, and why.

Batch norm is affine, so it can be folded into the layer before it: no map changes, and what it centres becomes a bias. In a
network of ReLUs without biases, IxG sums to the logit. So the sum of IxG over the logit is the share that contributions carry,
and the rest is that of the biases. It is measured for the class that the network predicts, on a network with batch norm
and one without.
"""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from experiments.rao2022.figure5 import Figure5
from experiments.rao2022.localisation import FEW, OURS
from vis.claims import Claim, Column, Compared, Rule, above, below, near
from vis.figures.layout import plot, styled
from vis.methods import InputXGradient
from vis.methods.forward import Forward
from vis.models import Model
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output, Results

WITH, WITHOUT = "batch norm", "no batch norm"
IMAGES = 40  # at most, of each network


class BatchNorm(Figure5):
    """Score smoothed maps of a network with batch norm, and sum IxG.

    without: a `network` without batch norm and its `images`, as config nodes. The other parameters are those of `Figure5`.
    """

    def __init__(self, without: Mapping[str, Mapping[str, Any]], **other: Any) -> None:
        super().__init__(**other)
        self.without = without

    def compute(self, run: Run, task: Task) -> Output:
        output = super().compute(run, task)
        if task["grids"][0] == 0:
            output.tables["sums"] = []
            on = run.on({"preprocess": "model", "resize": None, "limit": None, **self.without["images"]})
            for kind, model, where in ((WITH, run.model(), run), (WITHOUT, run.model(self.without["network"]), on)):
                self._sums(where, model, kind, output)
        return output

    def _sums(self, run: Run, model: Model, kind: str, output: Output) -> None:
        for some in run.batches(min(len(run.dataset), IMAGES), 8):
            batch = run.batch(model, some)
            with Forward(model.net, batch.x) as forward:
                sums = InputXGradient().explain(forward, None).detach().flatten(1).sum(1)
                logits = forward.scores(None).detach()
            for image, share in zip(batch.names, (sums / logits).tolist(), strict=True):
                if math.isfinite(share):
                    output.tables["sums"].append(
                        {"network": kind, "name": model.name, "weights": model.weights, "image": image, "share": share}
                    )

    def claims(self, results: Results) -> list[Claim]:
        names = {"input_x_gradient": "S-IxG", "integrated_gradients": "S-IntGrad"}
        sizes = self.kernels["input"]

        def gain(method: str, kernel: int, rule: Rule) -> Compared:
            column = self.of(results, method, kernel) - self.of(results, method)
            return Compared(
                f"{names[method]}, K = {kernel} - K = 0",
                column,
                rule,
                null=0.0 if method != "input_x_gradient" else 0.14,
                control="no difference: 0"
                if method != "input_x_gradient"
                else "the gain without batch norm, of Figure 5",
            )

        gains = [
            gain("input_x_gradient", k, near(0, 0.05, least=self.least_of("input_x_gradient"), ours=OURS))
            for k in sizes
        ]
        gains.append(
            gain("integrated_gradients", sizes[-1], above(0.1, least=self.least_of("integrated_gradients"), ours=OURS))
        )

        def share(kind: str, rule: Rule) -> Compared:
            return Compared(
                f"sum of IxG / logit, {kind}",
                Column(results.rows("sums", network=kind), "share", "image"),
                rule,
                null=1.0 if kind == WITH else 0.0,
                control="biases without effect" if kind == WITH else "biases alone",
            )

        half = "half is ours"
        shares = [
            share(WITH, below(0.5, least=FEW, ours=half)),
            share(WITHOUT, above(0.5, least=min(FEW, 6), ours=half)),
        ]
        return self.judged(results, [Claim("R-5.2-d", gains), Claim("R-5.2-e", shares)])

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows = results.rows("sums")
        of = {kind: next((row for row in rows if row["network"] == kind), None) for kind in (WITH, WITHOUT)}
        caption = [
            "Sum of IxG over the image, over the logit of the predicted class: a point for each image, a line at the median",
            "Dashed: 1, as in a network without biases",
            "; ".join(f"{kind}: {row['name']}, {row['weights']}" for kind, row in of.items() if row),
        ]
        figure, (axes,) = plot(3.4, 2.2, caption)
        with styled():
            for i, kind in enumerate((WITHOUT, WITH)):
                values = sorted(row["share"] for row in rows if row["network"] == kind)
                axes.plot(
                    [i + 0.3 * (((7 * k) % 11) / 11 - 0.5) for k in range(len(values))],
                    values,
                    "o",
                    markersize=3,
                    alpha=0.6,
                )
                if values:
                    axes.plot([i - 0.25, i + 0.25], [values[len(values) // 2]] * 2, color="0.2")
            axes.axhline(1, color="0.5", linewidth=0.8, linestyle="--", zorder=0)
            axes.axhline(0, color="0.8", linewidth=0.6, zorder=0)
            axes.set_xticks([0, 1], [WITHOUT, WITH])
            axes.set_xlim(-0.6, 1.6)
            axes.set_ylabel("sum of IxG / logit")
        return super().draw(results, claims) | {"sums": figure}
