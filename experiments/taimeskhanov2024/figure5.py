"""taimeskhanov2024, Figure 5: training loss and top-5 validation accuracy of a VGG with and without a wall.

The first dense layer of the masked network does not read the lower rows of the last feature map: those weights are 0 at
initialisation and again after each step. "The unmasked [VGG] (baseline) and our masked [VGG] yield 87.0%, resp. 90.4% top-5
accuracy and 66.5% resp. 71.5% top-1": the caption swaps the two, section 3.1 has them right (masked 66.5 / 87.0).

Both are trained one after the other by the same recipe; the figure can be drawn at any time (`vis-run --redraw FOLDER`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure

from experiments.train import Train
from vis.claims import Claim, Column, Compared, Rule, at_small_sizes, departures, exactly, near, replicated
from vis.figures.layout import PAGE_WIDTH, plot, styled
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

ACCURACY = {  # section 3.1, "Comparison to SOTA"
    ("masked", "top1"): 0.665,
    ("masked", "top5"): 0.870,
    ("unmasked", "top1"): 0.715,
    ("unmasked", "top5"): 0.904,
}
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

    def compute(self, run: Run, task: Task) -> Output:
        output = super().compute(run, task)
        assert self._training is not None
        output.tables["table"][0]["wall"] = behind_wall(self._training[1].net)
        return output

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the accuracies after the last epoch, a row a seed, and those that were published of the unmasked network."""
        from torchvision.models import VGG16_Weights

        last = results.rows(epoch=results.config.experiment.recipe.epochs)
        rows: Rows = [{"seed": seed} for seed in dict.fromkeys(row["seed"] for row in last)]
        for row, network in ((row, network) for row in rows for network in ("masked", "unmasked")):
            for found in (r for r in last if r["seed"] == row["seed"] and r["network"] == network):
                row |= {f"{network} {key}": found[f"val_{key}"] for key in ("top1", "top5")}
        metrics = VGG16_Weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]
        published = [
            {"metric": key, "unmasked": ACCURACY["unmasked", key], "torchvision": metrics[name] / 100}
            for key, name in (("top1", "acc@1"), ("top5", "acc@5"))
        ]
        return {"accuracy": rows, "published": published}

    def claims(self, results: Results) -> list[Claim]:
        def column(name: str) -> Column:
            return Column(results.rows("accuracy"), name, "seed")

        values = [
            Compared(f"{network}: validation {key.replace('top', 'top-')} accuracy", column(f"{network} {key}"),
                     near(value, 0.01, fails=0.02, least=3), null=ACCURACY["unmasked" if network == "masked" else "masked", key],
                     control="the other network's value")
            for (network, key), value in ACCURACY.items()
        ]  # fmt: skip
        slight = Rule(((0.0, 0.1),), ((-1.0, 0.0), (0.1, 1.0)), least=3, ours="10 points are ours")
        drops = [
            Compared(f"{key.replace('top', 'top-')} accuracy of the unmasked minus that of the masked network",
                     column(f"unmasked {key}") - column(f"masked {key}"), slight, null=0.0, control="no drop")
            for key in ("top1", "top5")
        ]  # fmt: skip
        walls = Column([r for r in results.rows(network="masked") if r["wall"] is not None], "wall", ("seed", "epoch"))
        wall = Compared("largest |weight| behind the wall after each epoch", walls, exactly(0), null=1.0,
                        control="weights that are trained")  # fmt: skip
        printed = Column(results.rows("published"), "unmasked", "metric")
        same = Compared("printed accuracy of the unmasked network minus that of torchvision's VGG-16",
                        printed - Column(results.rows("published"), "torchvision", "metric"), exactly(0, 0.005), null=0.05,
                        control="the masked network's")  # fmt: skip
        found = [
            Claim("T-3.1-e", values, paper="66.5, 71.5 % top-1; 87.0, 90.4 % top-5"), Claim("T-3.1-f", drops)
        ]  # fmt: skip
        other = _differences(results)
        data = [] if "imagenet" in results.config.dataset._target_ else other[:1]
        return [
            *replicated(found, other, at_small_sizes(results.config)),
            Claim("T-F4-b", [wall], differences=data),
            Claim("T-3.1-g", [same]),
        ]

    def draw(self, results: Results, claims: list[Any]) -> dict[str, Figure]:
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


def _differences(results: Results) -> list[str]:
    """Return how a training differs from the paper's."""
    data = results.config.dataset._target_
    if data != PAPER["dataset"]["_target_"]:
        return [f"trained on {data.rpartition('.')[2]} instead of ImageNet-1k"]
    images = [
        f"{row['network']}: {row[key]} {key.replace('_', ' ')} instead of {count}"
        for row in results.rows("networks")
        for key, count in IMAGES.items()
        if row[key] != count
    ]
    return departures(results.config, PAPER) + list(dict.fromkeys(images))


def behind_wall(net: torch.nn.Module) -> float | None:
    """Return the largest |weight| behind a network's wall, which must be 0; None without a wall in a dense layer."""
    wall: Any = getattr(net, "apply_wall", None)
    if not hasattr(wall, "linear"):
        return None
    weight = wall.linear.weight.detach()
    return weight.view(-1, *wall.shape)[:, :, wall.rows :].abs().max().item()
