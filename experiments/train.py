"""Train a classifier: a network of the project or one of the user's own. A task is an epoch.

The journal of the run (`parts/training_<seed>/`) holds the state of the training, so that `--resume` continues in the
middle of the epoch in which the run was killed. The processes that torchrun starts train one network together.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.figure import Figure
from omegaconf import OmegaConf

from vis.claims import Claim
from vis.config.instantiate import construct
from vis.data import Dataset
from vis.figures.layout import PAGE_WIDTH, plot, styled
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.system import shards
from vis.system.files import write_json
from vis.training.images import Files, Source, load_images, splits
from vis.training.loop import Training, save_weights
from vis.training.recipe import Recipe

log = logging.getLogger(__name__)


class Train(Experiment):
    """Train a network by a recipe.

    recipe: parameters of `vis.training.recipe.Recipe`. init: the initialisation of the weights unless they come from a file.
    tensorboard: write logs for TensorBoard. keep: a file to which the weights are copied at the end, for `model=` configs that
    name it; NAME.json beside NAME.pt says how they were trained.
    """

    metrics: ClassVar[Sequence[str]] = ("val_top1", "val_loss")
    shared_out = False

    def __init__(
        self,
        recipe: Mapping[str, Any],
        init: str = "kaiming_normal",
        tensorboard: bool = False,
        keep: str | None = None,
    ) -> None:
        self.recipe: Recipe = construct({"_target_": "vis.training.recipe.Recipe", **recipe}, "experiment.recipe")
        self.init, self.tensorboard, self.keep = init, tensorboard, keep
        self._split: tuple[Dataset, Dataset] | None = None
        self._sources: tuple[Source, Source] | None = None
        self._training: tuple[Task, Training] | None = None

    def networks(self, run: Run) -> Mapping[str, Mapping[str, Any]]:
        """Return the networks to train in order, {name: config node}; "" names the run's own model."""
        return {"": run.config.model}

    def tasks(self, run: Run) -> Sequence[Task]:
        epochs = range(self.recipe.epochs)
        return [self._task(net, seed, epoch) for net in self.networks(run) for seed in run.seeds for epoch in epochs]

    @staticmethod
    def _task(network: str, seed: int, epoch: int) -> Task:
        return ({"network": network} if network else {}) | {"seed": seed, "epoch": epoch}

    def load(self, run: Run, task: Task) -> Load:
        steps = -(-len(self._splits(run)[0]) // self._recipe(run).batch_size)
        # A step is a forward and two backward passes of its batch, in the memory of one batch.
        node = self.networks(run)[task.get("network", "")]
        return Load(node, task["seed"], self._recipe(run).batch_size, passes=3 * steps - 1, stored=0)

    def compute(self, run: Run, task: Task) -> Output:
        epoch = task["epoch"]
        place = {key: value for key, value in task.items() if key != "epoch"}
        assert run.folder is not None
        training = self._trained(run, place)
        row = {key: value for key, value in training.row(epoch).items() if key not in ("seconds", "images_per_second")}
        tables = {"table": [place | row]}
        if epoch == self.recipe.epochs - 1:
            tables["networks"] = [place | self.result(training)]
            if shards.rank() == 0:
                save_weights(training.net, run.folder / f"weights{_suffix(run, place)}.pt")
                if self.keep and not _suffix(run, place):
                    self._keep(training, Path(self.keep).expanduser())
        return Output(tables=tables)

    def result(self, training: Training) -> dict[str, Any]:
        """Return facts about a trained network for the table `networks`."""
        return {
            "parameters": sum(p.numel() for p in training.net.parameters()),
            "train_images": len(training.train),
            "val_images": len(training.val),
        }

    def _keep(self, training: Training, path: Path) -> None:
        """Write the weights and the facts about them to the file that other runs name."""
        path.parent.mkdir(parents=True, exist_ok=True)
        last = training.row(self.recipe.epochs - 1)
        facts = {"trained_on": training.train.origin, "val_top1": last["val_top1"], "recipe": vars(training.recipe)}
        write_json(path.with_suffix(".json"), facts | self.result(training))
        save_weights(training.net, path)
        log.info("the network is kept at %s", path)

    def _recipe(self, run: Run) -> Recipe:
        size = run.config.batch_size
        return self.recipe if size == "auto" else Recipe(**{**vars(self.recipe), "batch_size": size})

    def _splits(self, run: Run) -> tuple[Dataset, Dataset]:
        if self._split is None:
            node = OmegaConf.to_container(run.config.dataset, resolve=True)
            assert isinstance(node, dict)
            self._split = splits({str(key): value for key, value in node.items()})
        return self._split

    def _trained(self, run: Run, place: Task) -> Training:
        """Return the training of a network and seed, restored from its last checkpoint if there is one."""
        if self._training is None or self._training[0] != place:
            self._training = None
            seed, recipe = place["seed"], self._recipe(run)
            node = self.networks(run)[place.get("network", "")]
            own = node.get("weights") in (None, "standin")
            changes: dict[str, Any] = {"weights": None, "init": self.init} if own else {}
            model = run.model(node, seed, trained_up_to=None, trained_except=None, **changes)
            if self._sources is None:
                run.reader.dataset, val = self._splits(run)  # the training part, for the provenance
                how: Any = model.input_size, model.channels, run.config.dataset.get("resize")
                read = Files if recipe.area is not None else load_images
                self._sources = read(run.dataset, *how), read(val, *how)
            assert run.folder is not None
            state = run.folder / "parts" / f"training{_suffix(run, place)}"
            board = run.folder / "tensorboard" / (_suffix(run, place)[1:] or "training") if self.tensorboard else None
            preprocess = run.preprocess(model)
            self._training = (
                place,
                Training(model.net, *self._sources, recipe, preprocess, seed, run.device, state, tensorboard=board),
            )
        return self._training[1]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, seed = results.config, results.config.seed
        rows = results.rows(seed=seed)
        last = rows[-1]
        caption = [
            f"{config.model.name} trained on {str(config.dataset._target_).rpartition('.')[2]}, seed {seed}",
            f"After {last['epoch']} epochs: validation loss {last['val_loss']:.3f}, top-1 {last['val_top1']:.2%}, "
            f"top-5 {last['val_top5']:.2%}",
            "Training loss and accuracy are means over the epoch, with dropout and augmentation",
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


def _suffix(run: Run, place: Task) -> str:
    """Return the suffix of the file names of a network and seed; "" for a single network and the run's first seed."""
    name = f"_{place['network']}" if "network" in place else ""
    return name + (f"_seed{place['seed']}" if place["seed"] != run.config.seed else "")
