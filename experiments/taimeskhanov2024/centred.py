"""taimeskhanov2024, section 3.1: does a classifier need the lower quarter of ImageNet's images?

54 of 224 rows become the mean colour: at the bottom, at the top, in the middle.
"""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from vis.claims import Claim, Column, Compared, above, below, interval, mean, on_digits
from vis.figures.layout import plot, styled
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

SHARE = 54 / 224  # of the rows
BANDS = ("bottom", "top", "middle")


class Centred(Experiment):
    """Measure the accuracy that is lost when a band of rows is blanked. Without labels, the class of the whole image counts."""

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"images": images} for images in run.batches(len(run.dataset), 16)]

    def load(self, run: Run, task: Task) -> Load:
        return Load(run.config.model, run.config.seed, len(task["images"]), 4, 0)

    @torch.no_grad()
    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        batch = run.batch(model, task["images"])
        whole = model.net(batch.x).argmax(1).tolist()
        labels = [w if label is None else label for label, w in zip(batch.labels, whole, strict=True)]
        height = batch.x.shape[2]
        rows = round(SHARE * height)
        starts = {"bottom": height - rows, "top": 0, "middle": (height - rows) // 2}
        table: Rows = [
            {"image": name, "labelled": label is not None, "whole": float(w == c)}
            for name, label, w, c in zip(batch.names, batch.labels, whole, labels, strict=True)
        ]
        for band, start in starts.items():
            x = batch.x.clone()
            x[:, :, start : start + rows] = 0
            for row, c, label in zip(table, model.net(x).argmax(1).tolist(), labels, strict=True):
                row[f"lost, {band}"] = row["whole"] - float(c == label)
        facts = {"weights": model.weights, "standin": model.standin, "trained": model.trained}
        return Output(tables={"table": table, "network": [facts] if task["images"][0] == 0 else []})

    def claims(self, results: Results) -> list[Claim]:
        bottom, middle = (Column(results.rows(), f"lost, {band}", "image") for band in ("bottom", "middle"))
        compared = [
            Compared("accuracy lost by blanking 54 of 224 rows in the middle minus at the bottom", middle - bottom, above(0),
                     null=0.0, control="the same loss"),
            Compared("accuracy lost at the bottom", bottom, below(0.1, ours="10 points are ours"),
                     null=middle, control="the middle"),
        ]  # fmt: skip
        config = results.config
        other = (
            [] if config.model["_target_"] == "vis.models.MaskedVGG16" else [f"{config.model.name} instead of the VGG"]
        )
        count, unlabelled = len(results.rows()), not all(row["labelled"] for row in results.rows())
        other += [f"{count} images instead of ImageNet's 50,000"] if count != 50_000 else []
        other += ["agreement with the class of the whole image instead of accuracy"] if unlabelled else []
        return [Claim("T-3.1-h", compared, differences=other, reason=on_digits(config))]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows = results.rows()
        caption = [
            f"Accuracy lost when 54 of 224 rows become the mean colour, 95 % interval, {len(rows)} images",
            f"{results.config.model.name}, {results.rows('network')[0]['weights']}",
        ]
        figure, (axes,) = plot(3.4, 2.0, caption)
        with styled():
            for x, band in enumerate(BANDS):
                values = [100 * row[f"lost, {band}"] for row in rows]
                error = mean(values) - interval(values)[0] if len(values) > 1 else 0.0
                axes.bar(x, mean(values), 0.7, yerr=error, color="C0", ecolor="0.4", capsize=2)
            axes.set_xticks(range(len(BANDS)), BANDS)
            axes.set_ylabel("accuracy lost (points)")
        return {"figure": figure}
