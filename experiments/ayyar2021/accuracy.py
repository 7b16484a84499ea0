"""ayyar2021, section 7: "a network with a higher classification accuracy generally produces more intuitive maps".

After each epoch of a training, each map of the true class (Eq. 6) is scored by the area under its ROC curve for the ink of the
digit, the pixels brighter than half of the brightest: an intuitive map lies on the ink. For each image, this score is rank-
correlated over the epochs with the network's accuracy. A training gives one number, the mean over its images, since the claim
is about networks.
"""

from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure

from experiments.ayyar2021.gallery import strength
from experiments.train import Train
from vis import metrics
from vis.figures.layout import plot, styled
from vis.methods import explain_all
from vis.oldclaims import POSITIVE, Claim, mean, paper_and_here
from vis.runner.experiment import Load, Run, Task, method_title, method_words
from vis.store.run_folder import Output, Results
from vis.training.images import Images

INTUITIVE = "a network with a higher classification accuracy generally produces more intuitive maps"


class Accuracy(Train):
    """Train a network and score its maps after each epoch.

    images: number of validation images whose maps are scored; the other parameters are those of Train.
    """

    metrics = ("auc",)
    series: ClassVar[str] = "method"

    def __init__(self, images: int, **training: Any) -> None:
        super().__init__(**training)
        self.images = images

    def load(self, run: Run, task: Task) -> Load:
        load = super().load(run, task)
        return Load(load.model, load.seed, load.images, load.passes + run.passes * self.images / load.images, 0)

    def compute(self, run: Run, task: Task) -> Output:
        trained = super().compute(run, task)
        training = self._trained(run, {"seed": task["seed"]})
        assert isinstance(training.val, Images)
        pixels = training.val.pixels[: self.images].to(training.dtype) / 255
        labels = training.val.labels[: self.images].tolist()
        ink = pixels.mean(1, keepdim=True)
        mask = ink > ink.amax((1, 2, 3), keepdim=True) / 2
        (maps,), _ = explain_all(run.methods, training.net, training.preprocess(pixels), [labels], training.preprocess)
        (row,) = trained.tables["table"]
        trained.tables["training"] = [row | {"trained_on": training.train.origin}]
        place = {key: row[key] for key in ("seed", "epoch", "val_top1")}
        trained.tables["table"] = [
            {**place, "method": method, "image": i, "auc": value}
            for method, each in maps.items()
            for i, value in enumerate(metrics.auc_judd(strength(each), mask).tolist())
        ]
        return trained

    def claims(self, results: Results) -> list[Claim]:
        measured = []
        for method in results.config.methods:
            paths: dict[Any, dict[Any, list[tuple[float, float]]]] = {}
            for row in results.rows(method=method):
                of_seed = paths.setdefault(row["seed"], {})
                of_seed.setdefault(row["image"], []).append((row["val_top1"], row["auc"]))
            both = [torch.tensor(list(each.values()), dtype=torch.float64).unbind(-1) for each in paths.values()]
            values = [metrics.spearman(*each).mean().item() for each in both]
            metric = f"rank correlation of accuracy and AUC over the epochs, mean over images, one value a training, {method}"
            claim = Claim(method, INTUITIVE, source="Section 7", metric=metric, criterion=POSITIVE, values=values)
            measured.append(claim)
        return paper_and_here(measured, "a small network on digits, and ink in place of people")

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, rows = results.config, results.rows("training")
        epochs = list(dict.fromkeys(row["epoch"] for row in rows))
        caption = [
            f"{config.model.name} after each epoch of its training on {rows[0]['trained_on']}; {config.seeds} trainings",
            f"Area under the ROC curve of the maps of {self.images} images for the ink of the digit (chance: 0.5), the mean; "
            "dashed: accuracy on validation images",
            *method_words(config),
        ]
        figure, (axes,) = plot(5.4, 2.6, caption)
        with styled():
            for method in config.methods:
                curve = [mean([row["auc"] for row in results.rows(method=method, epoch=epoch)]) for epoch in epochs]
                axes.plot(epochs, curve, "o-", linewidth=1, label=method_title(config, method))
            accuracy = [mean([row["val_top1"] for row in rows if row["epoch"] == epoch]) for epoch in epochs]
            axes.plot(epochs, accuracy, "--", color="black", label="Accuracy")
            axes.set(xlabel="epoch", ylabel="AUC, accuracy")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        return {"figure": figure}
