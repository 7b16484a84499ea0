"""The base class of experiments, and the run that is passed to them.

An experiment is one figure, table or theorem of a paper. It divides its work into tasks and computes arrays and rows of
results for each. From the stored results it judges the paper's claims and draws figures. The runner (`vis.runner.execute`)
does the rest: journal, resume, progress, files.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vis.claims import Claim
from vis.data import Dataset, Preprocess
from vis.data.boxes import Drawn
from vis.errors import UserError
from vis.methods import Method
from vis.methods.target import Targets
from vis.models import Model
from vis.runner.explainer import (
    Explained,
    Explainer,
    map_words,
    method_class,
    method_scaling,
    method_title,
    method_words,
)
from vis.runner.models import Models, missing_weights
from vis.runner.reader import Batch, Reader
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows
from vis.system.device import is_native, pick_device
from vis.windows.engine import say_once

__all__ = [
    "Batch",
    "Experiment",
    "Load",
    "Run",
    "Task",
    "map_words",
    "method_class",
    "method_scaling",
    "method_title",
    "method_words",
]

Task = dict[str, Any]


@dataclass(frozen=True)
class Load:
    """The load that a task puts on a network, for `--dry-run`.

    model: the config node. images: the number of images. passes: of each image beyond the first forward pass; a backward
    pass counts as one (see `Run.passes`). stored: number of arrays of an image's size that go to disk.
    """

    model: Mapping[str, Any]
    seed: int
    images: int
    passes: float
    stored: int


class Run:
    """One execution under one resolved config, on one device in one precision: its models, images and methods.

    folder: the run's folder, for state that outlives a task, such as a training; None in a dry run.
    """

    def __init__(self, config: DictConfig, folder: Path | None = None) -> None:
        self.config = config
        self.folder = folder
        self.device = pick_device(config.device)
        self.dtype = torch.float64 if config.precision == "float64" else torch.float32
        if self.device.type == "mps" and self.dtype is torch.float64:
            raise UserError("device=mps has no float64: use device=cpu with precision=float64")
        if config.precision == "mixed" and self.device.type == "cpu" and not is_native(torch.bfloat16, self.device):
            say_once("precision=mixed is float32 here: this processor does not multiply in bfloat16")
        self.models = Models(config, self.device, self.dtype)
        self.reader = Reader(config, self.device, self.dtype)
        self.explainer = Explainer(config, self.reader)
        self._elsewhere: dict[str, Run] = {}

    @property
    def seeds(self) -> list[int]:
        """The seeds: seed, seed + 1, ..., seed + seeds - 1."""
        return [self.config.seed + i for i in range(self.config.seeds)]

    @property
    def targets(self) -> list[int | str]:
        """The targets as the user gave them."""
        target = self.config.target
        return list(target) if OmegaConf.is_list(target) else [target]

    @property
    def dataset(self) -> Dataset:
        """The images of `image=` if it is given, of `dataset=` otherwise."""
        return self.reader.dataset

    @property
    def methods(self) -> dict[str, Method]:
        """The chosen methods, by their config names."""
        return self.explainer.methods

    @property
    def passes(self) -> float:
        """About how many passes the maps of one target of an image take by all methods, see `Explainer.passes_of`."""
        return sum(self.explainer.passes_of.values())

    def model(self, node: Mapping[str, Any] | None = None, seed: int | None = None, **changes: Any) -> Model:
        """Return the model of a config node (by default the run's own) with some values changed; the last one is cached."""
        return self.models.get(node, seed, **changes)

    def preprocess(self, model: Model) -> Preprocess:
        """Return the dataset's preprocessing, or the model's if the dataset says `model`."""
        return self.reader.preprocess(model)

    def batch(self, model: Model, indices: Sequence[int]) -> Batch:
        """Return images of the dataset, resized and preprocessed for a model, on the run's device."""
        return self.reader.batch(model, indices)

    def drawn(self, model: Model, indices: Sequence[int]) -> dict[str, Drawn]:
        """Return the boxes of objects and parts in images, by name, as shares of the sides of what the model sees."""
        return self.reader.drawn(model, indices)

    def explain(self, model: Model, x: Tensor, targets: Sequence[Targets], keep: bool = False) -> Explained:
        """Return the maps of the run's methods for each of `targets`, on the CPU, or on the run's device with `keep`."""
        return self.explainer.explain(model, x, targets, keep)

    def units_of(self, model: Model, target: int | str, images: Sequence[str]) -> list[int] | None:
        """Return the logit that a target means for each named image, or None for `max` (`Explainer.units_of`)."""
        return self.explainer.units_of(model, target, images)

    def lacks_weights(self, node: Mapping[str, Any]) -> str:
        """Say why the published weights of a model's config node are unavailable; "" if they are not, or if it needs none."""
        return missing_weights(node)

    def require_model(self) -> None:
        """Raise UserError for missing weights before the images are looked for. A dry run builds no model."""
        if self.folder is not None:
            self.model()

    def require_methods(self, *names: str) -> None:
        """Raise UserError, before anything is computed, if a method that the experiment needs is not among the run's."""
        if missing := [name for name in names if name not in self.methods]:
            whole = ",".join(dict.fromkeys([*names, *self.methods]))
            raise UserError(f"{self.config.experiment.name} needs {', '.join(missing)}: give method=[{whole}]")

    def batches(self, count: int, default: int) -> list[list[int]]:
        """Divide the indices 0 .. count - 1 into batches of batch_size, or of `default` if batch_size is auto."""
        size = default if self.config.batch_size == "auto" else self.config.batch_size
        return [list(range(i, min(i + size, count))) for i in range(0, count, size)]

    def on(self, dataset: Mapping[str, Any]) -> "Run":
        """Return a run on another dataset, given by its config node, with otherwise the same config."""
        key = str(dataset)
        if key not in self._elsewhere:
            config = copy.deepcopy(self.config)
            OmegaConf.update(config, "dataset", dataset, merge=False, force_add=True)
            self._elsewhere[key] = Run(config)
        return self._elsewhere[key]

    @property
    def datasets(self) -> list[Dataset]:
        """The datasets that the run used, for the provenance."""
        own = [self.dataset] if "dataset" in vars(self.reader) else []
        return own + [data for run in self._elsewhere.values() for data in run.datasets]


class Experiment:
    """One figure, table or theorem. Its constructor takes the values under `experiment` in conf/experiment/<name>.yaml.

    `tasks` must return the same tasks in the same order each time, since resuming relies on it.
    """

    metrics: ClassVar[Sequence[str]] = ()  # columns of `table` shown in the figure of a sweep
    series: ClassVar[str] = ""  # the column that distinguishes its lines
    drawn: ClassVar[Sequence[str]] = ()  # the parameters that only `draw` reads: --redraw takes other values of these
    shared_out: ClassVar[bool] = True  # torchrun's processes divide the tasks; False: they compute each task together

    def resolve(self, run: Run) -> None:
        """Fill in values of the run's config before the run begins; a resumed run reads them from its stored config."""

    def tasks(self, run: Run) -> Sequence[Task]:
        """Return the tasks: small dictionaries that say what to compute."""
        return [{}]

    def load(self, run: Run, task: Task) -> Load | None:
        """Return the cost of a task; None if unknown."""
        return None

    def compute(self, run: Run, task: Task) -> Output:
        """Compute the arrays and rows of one task. The names of arrays are unique among all tasks."""
        raise NotImplementedError

    def claims(self, results: Results) -> list[Claim]:
        """Return the claims that the run judges, see `vis.claims`; `results.tables` include those of `summaries`."""
        return []

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return tables made from the stored ones, by file name: as the paper prints them, or what claims compare."""
        return {}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        """Return figures by file name, from the stored results alone, each with its caption in `figure.caption`."""
        return {}
