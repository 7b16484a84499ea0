"""taimeskhanov2024, Figure 5: training loss and top-5 validation accuracy of a VGG with and without a wall.

The first dense layer of the masked network does not read the lower rows of the last feature map: those weights are 0 at
initialisation and again after each step. "The unmasked [VGG] (baseline) and our masked [VGG] yield 87.0%, resp. 90.4% top-5
accuracy and 66.5% resp. 71.5% top-1": the caption swaps the two, section 4 has them right (masked 66.5 / 87.0).

Both are trained one after the other by the same recipe; the figure can be drawn at any time (`vis-run --redraw FOLDER`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure

from experiments.train import Train
from vis.figures.layout import PAGE_WIDTH, plot, styled
from vis.oldclaims import Claim, Criterion, below, departures, increasing, within
from vis.runner.experiment import Run
from vis.store.run_folder import Results
from vis.training.loop import Training

ACCURACY = {  # section 4, "Training"
    ("masked", "top1"): 0.665,
    ("masked", "top5"): 0.870,
    ("unmasked", "top1"): 0.715,
    ("unmasked", "top5"): 0.904,
}
SENTENCE = "masked 66.5 % top-1 and 87.0 % top-5, unmasked 71.5 % and 90.4 % on the validation set"
DROP = "the slight accuracy drop induced by masking a significant part of images"
WALL = "masking: the weights of the wall are 0 during the whole training"
RECIPE = {
    "epochs": 90,
    "batch_size": 256,
    "optimiser": "sgd",
    "lr": 0.03,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": "step",
    "step_epochs": 30,
    "gamma": 0.1,
    "warmup": 0.0,
    "crop": 0,
    "flip": True,
    "area": [0.1, 1.0],
    "aspect": [0.8, 1.25],
}
PAPER: dict[str, Any] = {
    "batch_size": "auto",
    "dataset": {"_target_": "vis.data.imagenet", "preprocess": "model", "resize": None, "limit": None},
    "experiment": {
        "recipe": RECIPE,
        "models": {
            "masked": {"_target_": "vis.models.MaskedVGG16", "num_classes": 1000, "input_size": 224, "wall": {"rows": 5}},
            "unmasked": {"_target_": "vis.models.MaskedVGG16", "num_classes": 1000, "input_size": 224, "wall": {"rows": 14}},
        },
    },
}  # fmt: skip
IMAGES = {"train_images": 1_281_167, "val_images": 50_000}


class Figure5(Train):
    """Train both networks. models: their config nodes, masked and unmasked; the other parameters are those of `Train`."""

    series = "network"

    def __init__(self, models: Mapping[str, Mapping[str, Any]], **training: Any) -> None:
        super().__init__(**training)
        self.models = models

    def networks(self, run: Run) -> Mapping[str, Mapping[str, Any]]:
        return self.models

    def result(self, training: Training) -> dict[str, Any]:
        return super().result(training) | {"wall": behind_wall(training.net)}

    def claims(self, results: Results) -> list[Claim]:
        networks, epochs = results.rows("networks"), results.config.experiment.recipe.epochs
        reason = departures(results.config, PAPER)
        if (data := results.config.dataset._target_) != PAPER["dataset"]["_target_"]:
            reason = f"trained on {data.rpartition('.')[2]}, not on ImageNet-1k"
        reason = reason or ", ".join(
            f"{row['network']} has {row[key]} of ImageNet's {count} {key.replace('_', ' ')}"
            for row in networks
            for key, count in IMAGES.items()
            if row[key] != count
        )
        found: list[Claim] = []

        def last(network: str, key: str) -> list[float]:
            return [row[f"val_{key}"] for row in results.rows(network=network, epoch=epochs)]

        for (network, key), value in ACCURACY.items():
            metric = f"{network}: validation {key.replace('top', 'top-')}"
            rule = within(value, 0.02)
            found.append(
                Claim(
                    f"{network}_{key}",
                    SENTENCE,
                    source="Section 4, Figure 5",
                    metric=metric,
                    criterion=rule,
                    values=last(network, key),
                    paper=value,
                    reason=reason,
                )
            )
        for key in ("top1", "top5"):
            metric = f"validation {key.replace('top', 'top-')}"
            values = {name: last(name, key) for name in ("masked", "unmasked")}
            found.append(
                Claim(
                    f"drop_{key}",
                    DROP,
                    source="Section 4",
                    metric=metric,
                    criterion=increasing(),
                    values=values,
                    reason=reason,
                )
            )
            if reason:
                lost = [b - a for a, b in zip(*values.values(), strict=False)]
                here = f"Of these networks: {DROP}"
                metric = f"{metric} of unmasked less that of masked"
                found.append(
                    Claim(
                        f"here_drop_{key}",
                        here,
                        source="Section 4",
                        metric=metric,
                        criterion=below(0.1),
                        values=lost,
                        origin="project",
                    )
                )
        zero = Criterion("each exactly 0", lambda values: all(value == 0 for value in values))
        walls = [row["wall"] for row in networks if row["network"] == "masked" and row["wall"] is not None]
        found.append(
            Claim(
                "wall",
                WALL,
                source="Section 3.1",
                metric="masked: largest |weight| behind the wall after training",
                criterion=zero,
                values=walls,
            )
        )
        return found

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, recipe = results.config, results.config.experiment.recipe
        names = list(dict.fromkeys(row["network"] for row in results.rows()))
        lines = {name: results.rows(network=name, seed=config.seed) for name in names}
        ends = [
            f"{name} ({config.experiment.models[name].name}) top-1 {rows[-1]['val_top1']:.1%}, top-5 {rows[-1]['val_top5']:.1%}"
            + (f" after {rows[-1]['epoch']} of {recipe.epochs} epochs" if rows[-1]["epoch"] < recipe.epochs else "")
            for name, rows in lines.items()
            if rows
        ]
        data = str(config.dataset._target_).rpartition(".")[2]
        caption = [
            f"Training loss (left) and top-5 accuracy on the validation set (right), trained on {data}, seed {config.seed}",
            "; ".join(ends),
            "Paper, on ImageNet-1k after 90 epochs: masked 66.5% and 87.0%, unmasked 71.5% and 90.4% (its caption swaps the two)",
        ]
        figure, axes = plot(PAGE_WIDTH, 2.6, caption, columns=2)
        with styled():
            for axis, key, label in zip(
                axes, ("train_loss", "val_top5"), ("Training loss", "Top-5 validation accuracy (%)"), strict=True
            ):
                for name, rows in lines.items():
                    values = [row[key] * (100 if key == "val_top5" else 1) for row in rows]
                    axis.plot(
                        [row["epoch"] for row in rows], values, marker="." if recipe.epochs <= 30 else "", label=name
                    )
                axis.set(xlabel="Epoch", ylabel=label, xlim=(0, recipe.epochs + 1))
                axis.xaxis.get_major_locator().set_params(integer=True)
            axes[0].legend()
        return {"figure": figure}


def behind_wall(net: torch.nn.Module) -> float | None:
    """Return the largest |weight| behind a network's wall, which must be 0; None without a wall in a dense layer."""
    wall: Any = getattr(net, "apply_wall", None)
    if not hasattr(wall, "linear"):
        return None
    weight = wall.linear.weight.detach()
    return weight.view(-1, *wall.shape)[:, :, wall.rows :].abs().max().item()
