"""What an experiment is, and what it works with.

An experiment is one figure, table or theorem of a paper. It cuts its work into units, computes each (arrays and rows),
and says afterwards, from what was stored, which claims were measured and what is drawn. The runner (`vis.runner.execute`)
does the rest: journal, resume, progress, files.
"""

import contextlib
import copy
import logging
import os
import weakref
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vis.claims import Claim
from vis.config.compose import load_option, options
from vis.config.instantiate import construct, locate
from vis.data import Dataset, Preprocess, files, preprocessing, to_pixels
from vis.errors import Lacking, UserError, did_you_mean, named
from vis.methods import AdversarialGenerators, Method, NotApplicable, explain_all
from vis.methods.forward import Forward
from vis.methods.perturbation import Learnt
from vis.methods.target import NoSuchUnit, Targets
from vis.models import Model, build_model, skeleton
from vis.models.weights import torchvision_weights
from vis.store.run_folder import Part, Results
from vis.store.tables import Rows
from vis.system.device import out_of_memory, pick_device
from vis.training.fit import fit, fit_generators
from vis.training.standin import StandIn, architecture, standin

log = logging.getLogger(__name__)

Unit = dict[str, Any]


@dataclass
class Batch:
    """Images of a dataset made ready for a model.

    x [B, C, H, W] on the run's device; pixels the same in [0, 1] on the CPU, for display; names and labels of the images.
    """

    x: Tensor
    pixels: Tensor
    names: list[str]
    labels: list[int | None]


class Explained(NamedTuple):
    """{method: maps} for each target, and the logits [B, K], all on the CPU."""

    maps: list[dict[str, Tensor]]
    logits: Tensor


@dataclass(frozen=True)
class Load:
    """What a unit of work asks of a network, for `--dry-run`.

    model: its config node; images that go through it; passes of each beyond the first, a backward pass is one as well (see
    `Run.passes`); stored: arrays of an image's size that go to disk.
    """

    model: Mapping[str, Any]
    seed: int
    images: int
    passes: float
    stored: int


class Run:
    """One execution under one resolved config: builds models, data and methods, on one device in one precision.

    folder: the run's own, where an experiment keeps what outlives a unit (the state of a training); None in a dry run.
    """

    def __init__(self, config: DictConfig, folder: Path | None = None) -> None:
        self.config = config
        self.folder = folder
        self.device = pick_device(config.device)
        self.dtype = torch.float64 if config.precision == "float64" else torch.float32
        if self.device.type == "mps" and self.dtype is torch.float64:
            raise UserError("device=mps has no float64: use device=cpu with precision=float64")
        self._model: tuple[Any, Model] | None = None
        self._standins: dict[str, StandIn] = {}
        self._fitted: dict[str, Any] = {}
        self.weights_used: dict[str, dict[str, Any]] = {}  # for provenance
        self._elsewhere: dict[str, Run] = {}
        self._no_numbers: set[str] = set()  # methods that were named as such
        self.upcoming: list[int] = []  # images of the next units: threads read them while this one is computed
        self._ahead: dict[Any, Future[Tensor]] = {}

    @property
    def seeds(self) -> list[int]:
        """seed, seed + 1, ...: as many as `seeds` says."""
        return [self.config.seed + i for i in range(self.config.seeds)]

    def model(self, node: Mapping[str, Any] | None = None, seed: int | None = None, **changes: Any) -> Model:
        """The model of a config node (the run's own by default) with some values changed; the last one is kept."""
        if node is None:
            node = self.config.get("model")
            if node is None:
                raise UserError("this experiment needs a model: model=vgg16_random, ...")
        values = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else dict(node)
        assert isinstance(values, dict)
        values = {str(k): v for k, v in values.items()} | changes
        seed = self.config.seed if seed is None else seed
        key = (values, seed)
        if self._model is None or self._model[0] != key:
            self._model = None  # free the last one before the next is made
            trained = self._standin(values) if values.get("weights") == "standin" else None
            model = build_model(values | ({"weights": str(trained.path)} if trained else {}), seed, self.device)
            if trained:
                model.standin = True
                model.weights = model.weights.replace(f"weights {trained.path.name}", trained.words, 1)
            model.net.to(self.dtype)
            self._model = (key, model)
            self.weights_used[model.name + f" seed {seed}"] = {
                "weights": model.weights,
                "sha256": model.sha256,
                "standin": model.standin,
            }
        return self._model[1]

    def require_model(self) -> None:
        """Name what the run's model lacks before images are looked for; nothing in a dry run, which builds no weights."""
        if self.folder is not None:
            self.model()

    def lacks_weights(self, node: Mapping[str, Any]) -> str:
        """Why the weights of a model's config node cannot be had; nothing where they can, or where it needs none."""
        if node.get("weights") == "torchvision":
            try:
                torchvision_weights(str(node.get("arch") or node["name"]))
            except Lacking as error:
                return error.reason
        return ""

    def _standin(self, node: Mapping[str, Any]) -> StandIn:
        """The project's own training in place of published weights, from the cache in `outputs` or made now."""
        key = repr((node.get("trained_on"), sorted(architecture(node).items())))
        if key not in self._standins:
            data = self.config.get("dataset")
            same = data is not None and str(data._target_).endswith(f".{node.get('trained_on')}")
            folder = str(data.get("path") or "data") if same else "data"
            cache = Path(self.config.outputs).expanduser() / "standins"
            self._standins[key] = standin(node, cache, self.device, folder)
        return self._standins[key]

    @cached_property
    def methods(self) -> dict[str, Method]:
        """The chosen methods, by their config names."""
        methods = {str(name): build_method(self.config, str(name)) for name in self.config.get("methods") or {}}
        if not methods:
            raise UserError("no method: method=gbp, method=[saliency,gbp], ...")
        return methods

    def require_methods(self, *names: str) -> None:
        """Raises UserError, before anything is computed, where a method is left out that the experiment cannot do without."""
        if lacking := [name for name in names if name not in self.methods]:
            whole = ",".join(dict.fromkeys([*names, *self.methods]))
            raise UserError(f"{self.config.experiment.name} needs {', '.join(lacking)}: method=[{whole}]")

    @cached_property
    def dataset(self) -> Dataset:
        """The chosen images: those of `image=`, or the dataset's."""
        image = self.config.image
        if image is not None:
            return files(image if isinstance(image, str) else list(image))
        node = self.config.get("dataset")
        if node is None:
            raise UserError("this experiment needs images: dataset=samples, image=FILE, ...")
        values = OmegaConf.to_container(node, resolve=True)
        assert isinstance(values, dict)
        own = {str(k): v for k, v in values.items() if k not in ("preprocess", "resize", "limit")}
        data = construct(own, "dataset")
        if not isinstance(data, Dataset):
            raise UserError(f"dataset._target_ made a {type(data).__name__}, not a vis.data.Dataset")
        return data.first(self.config.dataset.get("limit"))

    def on(self, dataset: Mapping[str, Any]) -> "Run":
        """This run on the images of another dataset's config node; the models stay with this one."""
        key = str(dataset)
        if key not in self._elsewhere:
            config = copy.deepcopy(self.config)
            OmegaConf.update(config, "dataset", dataset, merge=False, force_add=True)
            self._elsewhere[key] = Run(config)
        return self._elsewhere[key]

    @property
    def datasets(self) -> list[Dataset]:
        """Those that were looked at."""
        own = [self.dataset] if "dataset" in self.__dict__ else []
        return own + [data for run in self._elsewhere.values() for data in run.datasets]

    def preprocess(self, model: Model) -> Preprocess:
        """The dataset's preprocessing, or where it says `model`, the model's."""
        name = (self.config.get("dataset") or {}).get("preprocess", "model")
        try:
            return preprocessing(model.preprocess if name == "model" else name)
        except ValueError as error:
            raise UserError(str(error)) from error

    def batch(self, model: Model, indices: Sequence[int]) -> Batch:
        """Images of the dataset, resized and preprocessed for a model, on the run's device."""
        data = self.dataset
        resize = None if self.config.image is not None else self.config.dataset.get("resize")
        pixels = torch.stack(self._read(indices, model.input_size, model.channels, resize))
        x = self.preprocess(model)(pixels.to(self.dtype)).to(self.device, memory_format=model.memory_format)
        return Batch(x, pixels, [data.names[i] for i in indices], [data.labels[i] for i in indices])

    def _read(self, indices: Sequence[int], *how: Any) -> list[Tensor]:
        """Pixels of images, decoded by threads; then those begin with `upcoming`, for a network of the same size."""

        def read(i: int) -> Tensor:
            with named(f"image {self.dataset.names[i]} of the dataset"):
                return to_pixels(self.dataset.read(i), *how)

        def begin(i: int) -> Future[Tensor]:
            return self._ahead.get((i, how)) or self._readers.submit(read, i)

        futures = [begin(i) for i in indices]
        self._ahead = {(i, how): begin(i) for i in self.upcoming}
        return [future.result() for future in futures]

    @cached_property
    def _readers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(16, os.cpu_count() or 1))

    @cached_property
    def passes_of(self) -> dict[str, float]:
        """About how many passes a map of each method takes beyond the shared forward pass; without those that do not apply."""
        net, channels, size = skeleton(self.config.model)
        image = torch.empty(1, channels, *size, device="meta")
        found = {}
        for name, method in self.methods.items():
            with contextlib.suppress(NotApplicable):  # the run itself says so
                found[name] = method.passes(net, image)
        return found

    @property
    def passes(self) -> float:
        """The sum of `passes_of`: what the maps of one target of an image take, by all methods."""
        return sum(self.passes_of.values())

    def batches(self, count: int, default: int) -> list[list[int]]:
        """Indices 0 .. count - 1 in batches of batch_size, or of `default` where that is auto."""
        size = default if self.config.batch_size == "auto" else self.config.batch_size
        return [list(range(i, min(i + size, count))) for i in range(0, count, size)]

    def explain(self, model: Model, x: Tensor, targets: Sequence[Targets], keep: bool = False) -> Explained:
        """The run's methods for each of `targets` from one forward pass; everything comes back on the CPU.

        keep: leave it on the device, where only numbers are wanted of it. When memory runs out, the images go through in
        two halves.
        """
        try:
            for name in self.methods:
                self.fit(name, model, x, targets)
            maps, logits = explain_all(self.methods, model.net, x, targets, self.preprocess(model))
            self._warn_of_no_numbers(maps)
            if keep:
                return Explained(maps, logits)
            return Explained([{name: m.cpu() for name, m in each.items()} for each in maps], logits.cpu())
        except (NotApplicable, NoSuchUnit) as error:
            raise UserError(f"{model.name}: {error}") from error
        except RuntimeError as error:
            if len(x) == 1 or not out_of_memory(error):
                raise
        log.warning("out of memory with %d images at a time: going on with %d", len(x), (len(x) + 1) // 2)
        if x.device.type == "cuda":
            torch.cuda.empty_cache()
        half = (len(x) + 1) // 2
        pieces = [slice(0, half), slice(half, None)]
        parts = [self.explain(model, x[p], [t[p] if isinstance(t, list) else t for t in targets], keep) for p in pieces]
        whole = [{m: torch.cat([part.maps[i][m] for part in parts]) for m in self.methods} for i in range(len(targets))]
        return Explained(whole, torch.cat([part.logits for part in parts]))

    def fit(self, name: str, model: Model, x: Tensor, targets: Sequence[Targets]) -> None:
        """A method that learns from images first does so, once for a kind of network input, or for a network.

        Raises NotApplicable, before a training, where it cannot explain `targets` of images x [B, C, H, W].
        """
        method, cache = self.methods[name], Path(self.config.outputs).expanduser()
        if isinstance(method, Learnt):
            seen = (self.preprocess(model), model.input_size, model.channels)
            if self._fitted.get(name) != seen:
                fit(method, *seen, cache / "gaussians")
                self._fitted[name] = seen
        if isinstance(method, AdversarialGenerators) and self._fitted.get(name) != weakref.ref(model.net):
            with Forward(model.net, x, preprocess=self.preprocess(model)) as forward:
                for each in targets:
                    method.check(forward, each)
            fit_generators(method, model, self.preprocess(model), self.config.dataset, cache / "generators")
            self._fitted[name] = weakref.ref(model.net)

    def _warn_of_no_numbers(self, maps: Sequence[Mapping[str, Tensor]]) -> None:
        """Say once of a method that its maps hold what is no number."""
        for name in self.methods:
            if name not in self._no_numbers and not all(each[name].isfinite().all() for each in maps):
                self._no_numbers.add(name)
                log.warning("methods.%s: a map holds NaN or infinite values", name)

    def warn_of_silent_maps(self, model: Model, batch: Batch) -> None:
        """Name the images of which a method's map says nothing."""
        for name, method in self.methods.items():
            if isinstance(method, AdversarialGenerators) and method.learnt is not None:
                silent = method.silent(model.net, batch.x).tolist()
                if any(silent):
                    images = ", ".join(image for image, none in zip(batch.names, silent, strict=True) if none)
                    words = "a map says nothing of %s: of neither class, or the adversarial image keeps the class"
                    log.warning("%s: " + words, name, images)

    @property
    def targets(self) -> list[int | str]:
        """The targets as the user gave them."""
        target = self.config.target
        return list(target) if OmegaConf.is_list(target) else [target]

    def units_of(self, model: Model, target: int | str, images: Sequence[str]) -> list[int] | None:
        """The logits that random, a number or a class name means for images of these names; None for `max`.

        `random` depends on the seed and the image's name alone. Raises UserError for a class that is not there.
        """
        if target == "max":
            return None
        names, count = model.classes or [], model.num_classes
        if target == "random":
            if count is None:
                raise UserError(f"target=random: {model.name} does not show how many classes it has; give indices")
            return [
                int(np.random.default_rng([self.config.seed, zlib.crc32(i.encode())]).integers(count)) for i in images
            ]
        if isinstance(target, int) or str(target).isdecimal():
            if count is not None and not 0 <= int(target) < count:
                raise UserError(f"target={target}: {model.name} has the classes 0 to {count - 1}")
            return [int(target)] * len(images)
        matches = [i for i, name in enumerate(names) if name.lower() == str(target).lower()]
        if not matches:
            extra = did_you_mean(target, names) if names else f" {model.name} has no class names: give an index."
            raise UserError(f"there is no class {str(target)!r}.{extra}")
        return matches[:1] * len(images)


def build_method(config: DictConfig, name: str) -> Method:
    """One of a config's methods. Raises UserError where it cannot be made, or is none."""
    values = OmegaConf.to_container(config.methods[name], resolve=True)
    assert isinstance(values, dict)
    method = construct({str(k): v for k, v in values.items()}, f"methods.{name}")
    if not isinstance(method, Method):
        raise UserError(f"methods.{name}._target_ made a {type(method).__name__}, not a vis.methods.Method")
    return method


def method_words(config: DictConfig) -> list[str]:
    """What a caption must say of a config's methods, a sentence each: "Integrated gradients from black pixels"."""
    words = {name: build_method(config, name).words for name in map(str, config.methods)}
    return [f"{method_title(config, name)} {each}" for name, each in words.items() if each]


def method_class(config: DictConfig, name: str) -> Any:
    """The class of a method: its `display` says how its maps are shown. Of one that the run left out, its own config's."""
    node = config.methods.get(name) or load_option(options("method")[name])
    return locate(str(node._target_), f"methods.{name}._target_")


def method_title(config: DictConfig, name: str) -> str:
    """What a figure calls a method; with a part of its config name where several are of one class."""
    own = method_class(config, name)
    first = next((str(each) for each in config.methods if method_class(config, each) is own), name)
    title = str(getattr(own, "title", "") or first)
    return title if first == name else f"{title} ({name.removeprefix(first).strip('_').replace('_', ' ')})"


class Experiment:
    """One figure, table or theorem. Its constructor takes what `conf/experiment/<name>.yaml` says under `experiment`.

    Units must be the same, in the same order, each time: a resumed run counts on it.
    """

    metrics: ClassVar[Sequence[str]] = ()  # columns of `table` that the figure of a sweep shows
    series: ClassVar[str] = ""  # the column that tells its lines apart
    shared_out: ClassVar[bool] = True  # torchrun's processes share its units; False: they compute each together

    def resolve(self, run: Run) -> None:
        """Write to the run's config, before the run begins, what it leaves open; a resumed run reads it from there."""

    def units(self, run: Run) -> Sequence[Unit]:
        """The pieces of the work: small dictionaries that say what is computed."""
        return [{}]

    def load(self, run: Run, unit: Unit) -> Load | None:
        """What a unit costs; None where that is not known."""
        return None

    def compute(self, run: Run, unit: Unit) -> Part:
        """One unit's arrays and rows. Names of arrays are unique over all units."""
        raise NotImplementedError

    def claims(self, results: Results) -> list[Claim]:
        """The paper's claims, measured."""
        return []

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Tables as the paper prints them, by file name, from what is stored."""
        return {}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        """Figures by file name, from what is stored; nothing is computed here. Their captions are in `figure.caption`."""
        return {}
