"""ayyar2021, section 7: "a network with a higher classification accuracy generally produces more intuitive maps".

Networks of several depths and widths are trained for the same time. Then each map of the true class (Eq. 6) is scored by the
area under its ROC curve for the ink of the digit, the pixels brighter than half of the brightest: an intuitive map lies on the
ink. The networks of one seed give one number: the rank correlation of accuracy and score, mean over methods.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure

from experiments.ayyar2021.verdicts import POSITIVE
from experiments.train import Train
from vis import metrics
from vis.claims import Claim, Column, Compared, at_small_sizes, mean, replicated
from vis.errors import UserError
from vis.figures.layout import plot, styled
from vis.methods import explain_all
from vis.metrics import strength
from vis.runner.experiment import Run, Task, method_title, method_words
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows
from vis.training.images import Images


class Accuracy(Train):
    """Train networks and score their maps.

    images: number of validation images whose maps are scored. depths, widths: of the networks, each with each; the other
    parameters are those of Train.
    """

    metrics = ("auc",)
    series: ClassVar[str] = "method"

    def __init__(self, images: int, depths: Sequence[int], widths: Sequence[float], **training: Any) -> None:
        super().__init__(**training)
        self.images, self.depths, self.widths = images, list(depths), list(widths)
        if len(self.depths) * len(self.widths) < 3:
            raise UserError("experiment.depths and widths must give three networks or more")

    def networks(self, run: Run) -> Mapping[str, Mapping[str, Any]]:
        model = dict(run.config.model)
        return {
            f"depth{depth}_width{width:g}": model | {"depth": depth, "width": width}
            for depth, width in itertools.product(self.depths, self.widths)
        }

    def compute(self, run: Run, task: Task) -> Output:
        trained = super().compute(run, task)
        (row,) = trained.tables.pop("table")
        trained.tables["training"] = [row]
        if task["epoch"] < self.recipe.epochs - 1:
            return trained
        training = self._trained(run, {key: task[key] for key in ("network", "seed")})
        assert isinstance(training.val, Images)
        pixels = training.val.pixels[: self.images].to(training.dtype) / 255
        labels = training.val.labels[: self.images].tolist()
        ink = pixels.mean(1, keepdim=True)
        mask = ink > ink.amax((1, 2, 3), keepdim=True) / 2
        (maps,), _ = explain_all(run.methods, training.net, training.preprocess(pixels), [labels], training.preprocess)
        place = {key: row[key] for key in ("network", "seed", "val_top1")} | {"trained_on": training.train.origin}
        trained.tables["table"] = [
            {**place, "method": method, "image": i, "auc": value}
            for method, each in maps.items()
            for i, value in enumerate(metrics.auc_judd(strength(each), mask).tolist())
        ]
        return trained

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return for each seed and method the rank correlation over networks, and that of shuffled accuracies."""
        rows: Rows = []
        for seed, method in itertools.product(dict.fromkeys(r["seed"] for r in results.rows()), results.config.methods):
            of: dict[str, list[float]] = {}
            accuracy = {}
            for row in results.rows(seed=seed, method=method):
                of.setdefault(row["network"], []).append(row["auc"])
                accuracy[row["network"]] = row["val_top1"]
            scores = torch.tensor([[mean(values) for values in of.values()]], dtype=torch.float64)
            top1 = torch.tensor([[accuracy[name] for name in of]], dtype=torch.float64)
            order = torch.randperm(len(of), generator=torch.Generator().manual_seed(seed))
            both = {"correlation": top1, "shuffled": top1[:, order]}
            found = {name: metrics.spearman(each, scores).item() for name, each in both.items()}
            rows.append({"seed": seed, "method": method} | found)
        return {"correlations": rows}

    def claims(self, results: Results) -> list[Claim]:
        found = results.rows("correlations")
        metric = "rank correlation of accuracy and AUC for the ink over networks, mean over methods"
        higher = Compared(metric, Column(found, "correlation", "seed"), POSITIVE, null=Column(found, "shuffled", "seed"),
                          control="shuffled accuracies")  # fmt: skip
        differences = ["small networks on digits", "the ink of the digit instead of people's intuition"]
        return replicated([Claim("A-7-a", [higher])], differences, at_small_sizes(results.config))

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, rows = results.config, results.rows()
        count = len({row["network"] for row in rows})
        caption = [
            f"{config.model.name} with {count} depths and widths, each after {plural(self.recipe.epochs, 'epoch')} on "
            f"{rows[0]['trained_on']}; {config.seeds} trainings of each; a dot is a network",
            f"Area under the ROC curve of the maps of {self.images} images for the ink of the digit (chance: 0.5), the mean",
            *method_words(config),
        ]
        figure, (axes,) = plot(5.4, 2.8, caption)
        with styled():
            for k, method in enumerate(config.methods):
                dots: dict[tuple[Any, Any, float], list[float]] = {}
                for row in results.rows(method=method):
                    dots.setdefault((row["network"], row["seed"], row["val_top1"]), []).append(row["auc"])
                xs, ys = [key[2] for key in dots], [mean(values) for values in dots.values()]
                axes.plot(xs, ys, ".", color=f"C{k}", markersize=4, label=method_title(config, method))
            axes.set(xlabel="accuracy on validation images", ylabel="AUC")
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        return {"figure": figure}
