"""Train a classifier: the weights of a stand-in, or a network of one's own. A unit is an epoch.

The state of the training lies in the journal of the run (`parts/training_<seed>/`), so that `--resume` goes on within
the epoch in which a run was killed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf

from vis.claims import Claim
from vis.data import Dataset
from vis.experiment import Experiment, Load, Run, Unit
from vis.figures import PAGE_WIDTH, plot, styled
from vis.instantiate import construct
from vis.record import Part, Results
from vis.training import Images, Recipe, Training, load_images, save_weights, splits


class Train(Experiment):
    """recipe: a vis.training.Recipe; init: the weights at the start, where the model has no file."""

    metrics = ("val_top1", "val_loss")
    shared_out = False

    def __init__(self, recipe: Mapping[str, Any], init: str = "kaiming_normal") -> None:
        self.recipe: Recipe = construct({"_target_": "vis.training.Recipe", **recipe}, "experiment.recipe")
        self.init = init
        self._split: tuple[Dataset, Dataset] | None = None
        self._images: tuple[Images, Images] | None = None
        self._training: tuple[int, Training] | None = None

    def units(self, run: Run) -> Sequence[Unit]:
        return [{"seed": seed, "epoch": epoch} for seed in run.seeds for epoch in range(self.recipe.epochs)]

    def load(self, run: Run, unit: Unit) -> Load:
        steps = -(-len(self._splits(run)[0]) // self._recipe(run).batch_size)
        # A step is a forward and two backward passes of its batch, in the memory of one batch.
        return Load(run.config.model, unit["seed"], self._recipe(run).batch_size, maps=3 * steps - 1, stored=0)

    def compute(self, run: Run, unit: Unit) -> Part:
        seed, epoch = unit["seed"], unit["epoch"]
        assert run.folder is not None
        training = self._trained(run, seed)
        row = {key: value for key, value in training.row(epoch).items() if key not in ("seconds", "images_per_second")}
        if epoch == self.recipe.epochs - 1:
            name = "weights.pt" if seed == run.config.seed else f"weights_seed{seed}.pt"
            save_weights(training.net, run.folder / name)
        return Part(tables={"table": [{"seed": seed, **row}]})

    def _recipe(self, run: Run) -> Recipe:
        size = run.config.batch_size
        return self.recipe if size == "auto" else Recipe(**{**vars(self.recipe), "batch_size": size})

    def _splits(self, run: Run) -> tuple[Dataset, Dataset]:
        if self._split is None:
            node = OmegaConf.to_container(run.config.dataset, resolve=True)
            assert isinstance(node, dict)
            self._split = splits({str(key): value for key, value in node.items()})
        return self._split

    def _trained(self, run: Run, seed: int) -> Training:
        """The training of a seed, at its last checkpoint where it has one."""
        if self._training is None or self._training[0] != seed:
            self._training = None
            own = run.config.model.get("weights")
            changes: dict[str, Any] = {"weights": None, "init": self.init} if own in (None, "standin") else {}
            model = run.model(seed=seed, trained_up_to=None, trained_except=None, **changes)
            if self._images is None:
                train, val = self._splits(run)
                resize = run.config.dataset.get("resize")
                sizes = model.input_size, model.channels, resize
                run.dataset = train  # for the record of what was used
                self._images = load_images(train, *sizes), load_images(val, *sizes)
            assert run.folder is not None
            state = run.folder / "parts" / f"training_{seed}"
            training = Training(
                model.net, *self._images, self._recipe(run), run.preprocess(model), seed, run.device, state
            )
            self._training = seed, training
        return self._training[1]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, seed = results.config, results.config.seed
        rows = results.rows(seed=seed)
        last = rows[-1]
        caption = [
            f"{config.model.name} trained on {str(config.dataset._target_).rpartition('.')[2]}, seed {seed}",
            f"After {last['epoch']} epochs: validation loss {last['val_loss']:.3f}, top-1 {last['val_top1']:.2%}, "
            f"top-5 {last['val_top5']:.2%}",
            "Training's numbers are means over the epoch, with dropout and augmentation",
        ]
        figure, axes = plot(PAGE_WIDTH, 2.6, caption, columns=3)
        epochs = [row["epoch"] for row in rows]
        with styled():
            for axis, key, title in zip(axes, ("loss", "top1", "top5"), ("Loss", "Top-1", "Top-5"), strict=True):
                scale = 1 if key == "loss" else 100
                for part, style in (("train", "--"), ("val", "-")):
                    label = "training" if part == "train" else "validation"
                    axis.plot(epochs, [scale * row[f"{part}_{key}"] for row in rows], style, marker=".", label=label)
                axis.set(xlabel="Epoch", ylabel=title + ("" if key == "loss" else " (%)"))
                axis.xaxis.get_major_locator().set_params(integer=True)
            axes[0].legend()
        return {"figure": figure}
