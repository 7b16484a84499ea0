"""Build the methods of a run, and explain images with them."""

import contextlib
import logging
import re
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from vis.config.instantiate import construct, locate
from vis.config.options import load_option, options
from vis.data import Dataset
from vis.errors import UserError, did_you_mean
from vis.figures import display
from vis.figures.style import current
from vis.methods import Method, NotApplicable, explain_all
from vis.methods.base import naming
from vis.methods.target import NoSuchUnit, Targets
from vis.models import Model, skeleton
from vis.runner.reader import Batch, Reader
from vis.system.device import out_of_memory
from vis.training.fit import NOTHING, ModelOfRun

log = logging.getLogger(__name__)


class Explained(NamedTuple):
    """Maps {method: maps} for each target, and logits [B, K]; on the CPU, or on the device with `keep`."""

    maps: list[dict[str, Tensor]]
    logits: Tensor


class Explainer:
    """Builds the methods of a run, prepares them for a model and explains images with them."""

    def __init__(self, config: DictConfig, reader: Reader) -> None:
        self.config, self.reader = config, reader
        self._prepared: dict[str, weakref.ref[nn.Module]] = {}  # the network that each method is prepared for
        self._not_finite: set[str] = set()  # methods that a warning has named

    @cached_property
    def methods(self) -> dict[str, Method]:
        """The chosen methods, by their config names."""
        methods = {str(name): build_method(self.config, str(name)) for name in self.config.get("methods") or {}}
        if not methods:
            raise UserError("no method: method=gbp, method=[saliency,gbp], ...")
        return methods

    @cached_property
    def passes_of(self) -> dict[str, float]:
        """Estimated passes for a map beyond the shared forward pass, by method; only of methods that apply to the network."""
        net, channels, size = skeleton(self.config.model)
        image = torch.empty(1, channels, *size, device="meta")
        found = {}
        for name, method in self.methods.items():
            with contextlib.suppress(NotApplicable):  # the run itself reports it
                found[name] = method.passes(net, image)
        return found

    def explain(self, model: Model, x: Tensor, targets: Sequence[Targets], keep: bool = False) -> Explained:
        """Explain images x [B, C, H, W] by the run's methods, for each of `targets`, from one forward pass.

        keep: leave the results on the device; by default they are moved to the CPU. If memory runs out, the images
        are explained in two halves. Raises UserError for targets and models that a method cannot explain.
        """
        try:
            with applying(model):
                for name in self.methods:
                    self.prepare(name, model, x, targets)
                maps, logits = explain_all(self.methods, model.net, x, targets, self.reader.preprocess(model))
            self._warn_of_not_finite(maps)
            if keep:
                return Explained(maps, logits)
            return Explained([{name: m.cpu() for name, m in each.items()} for each in maps], logits.cpu())
        except RuntimeError as error:
            if len(x) == 1 or not out_of_memory(error):
                raise
        log.warning("out of memory with batches of %d images: continuing with %d", len(x), (len(x) + 1) // 2)
        if x.device.type == "cuda":
            torch.cuda.empty_cache()
        half = (len(x) + 1) // 2
        pieces = [slice(0, half), slice(half, None)]
        parts = [self.explain(model, x[p], [t[p] if isinstance(t, list) else t for t in targets], keep) for p in pieces]
        whole = [{m: torch.cat([part.maps[i][m] for part in parts]) for m in self.methods} for i in range(len(targets))]
        return Explained(whole, torch.cat([part.logits for part in parts]))

    def prepare(
        self, name: str, model: Model, x: Tensor, targets: Sequence[Targets], default: Dataset | None = None
    ) -> None:
        """Call a method's `prepare`, once for each model.

        x [B, C, H, W], targets: the first that it will explain. default: the default of `Subject.pictures`, in place of the
        other images of the dataset.
        """
        if self._prepared.get(name) != weakref.ref(model.net):
            with naming(name, self.methods[name]):
                self.methods[name].prepare(self.subject(model, x, targets, default))
            self._prepared[name] = weakref.ref(model.net)

    def subject(
        self, model: Model, x: Tensor, targets: Sequence[Targets], default: Dataset | None = None
    ) -> ModelOfRun:
        """Return the argument of `Method.prepare`; the parameters are those of `prepare`."""
        outputs, node = Path(self.config.outputs).expanduser(), self.config.get("dataset") or {}
        images = self.config.image is not None or bool(node)
        own = (self.reader.dataset, self.reader.whole) if images else (NOTHING, NOTHING)
        return ModelOfRun(model, self.reader.preprocess(model), x, targets, node, outputs, *own, default)

    def _warn_of_not_finite(self, maps: Sequence[Mapping[str, Tensor]]) -> None:
        """Warn of maps that hold NaN or infinite values, once for each method."""
        for name in self.methods:
            if name not in self._not_finite and not all(each[name].isfinite().all() for each in maps):
                self._not_finite.add(name)
                log.warning("methods.%s: a map holds NaN or infinite values", name)

    def warn_of_silent_maps(self, model: Model, batch: Batch) -> None:
        """Warn of maps that carry no information, and name their images."""
        for name, method in self.methods.items():
            silent = method.silent(model.net, batch.x).tolist()
            if any(silent):
                images = ", ".join(image for image, none in zip(batch.names, silent, strict=True) if none)
                log.warning("methods.%s: the map says nothing about %s: %s", name, images, method.why_silent)

    def units_of(self, model: Model, target: int | str, images: Sequence[str]) -> list[int] | None:
        """Translate a target (`max`, `random`, a number or a class name) into a logit for each image; None for `max`.

        images: their names; `random` depends only on the seed and the name. Raises UserError for an unknown class.
        """
        if target == "max":
            return None
        names, count = model.classes or [], model.num_classes
        if target == "random":
            if count is None:
                raise UserError(f"target=random: the number of classes of {model.name} is unknown: give an index")
            return [
                int(np.random.default_rng([self.config.seed, zlib.crc32(i.encode())]).integers(count)) for i in images
            ]
        if isinstance(target, int) or str(target).isdecimal():
            if count is not None and not 0 <= int(target) < count:
                raise UserError(f"target={target}: {model.name} has the classes 0 to {count - 1}")
            return [int(target)] * len(images)
        matches = [i for i, name in enumerate(names) if name.lower() == str(target).lower()]
        if not matches:
            if not names:
                raise UserError(f"there is no class {str(target)!r}. {model.name} has no class names: give an index.")
            word = re.compile(rf"\b{re.escape(str(target))}\b", re.IGNORECASE)
            near = list(filter(word.search, names)) or get_close_matches(str(target), names, cutoff=0.75)
            raise UserError(
                f"there is no class {str(target)!r}.{did_you_mean(target, near)} Give the name of a class, its index (0 to "
                f"{len(names) - 1}), max or random"
            )
        return matches[:1] * len(images)


@contextlib.contextmanager
def applying(model: Model) -> Iterator[None]:
    """Turn the exceptions of methods that cannot explain a model into a UserError that names both."""
    try:
        yield
    except (NotApplicable, NoSuchUnit) as error:
        method = getattr(error, "__notes__", [])[:1] if isinstance(error, NotApplicable) else []  # its name
        raise UserError(": ".join([model.name, *method, str(error)])) from error


def build_method(config: DictConfig, name: str) -> Method:
    """Build one of a config's methods. Raises UserError if that fails, or if the result is no `Method`."""
    values = OmegaConf.to_container(config.methods[name], resolve=True)
    assert isinstance(values, dict)
    method = construct({str(k): v for k, v in values.items()}, f"methods.{name}")
    if not isinstance(method, Method):
        raise UserError(f"methods.{name}._target_ made a {type(method).__name__}, not a vis.methods.Method")
    return method


def method_words(config: DictConfig) -> list[str]:
    """Return a caption's sentences on the settings of methods, such as "Integrated gradients from black pixels"."""
    words = {name: build_method(config, name).words for name in map(str, config.methods)}
    return [f"{method_title(config, name)} {each}" for name, each in words.items() if each]


def method_class(config: DictConfig, name: str) -> Any:
    """Return the class of a method of the run, or of any method that has a config."""
    node = config.methods.get(name) or load_option(options("method")[name])
    return locate(str(node._target_), f"methods.{name}._target_")


def method_title(config: DictConfig, name: str) -> str:
    """Return the name of a method in figures, with a part of its config name if several methods have the same class."""
    own = method_class(config, name)
    first = next((str(each) for each in config.methods if method_class(config, each) is own), name)
    title = str(getattr(own, "title", "") or first)
    return title if first == name else f"{title} ({name.removeprefix(first).strip('_').replace('_', ' ')})"


def method_scaling(config: DictConfig, name: str) -> str:
    """Return the scaling in which a method's maps are shown: the style's, or else the method's own."""
    chosen = current().scaling
    return chosen if chosen != "method" else str(method_class(config, name).display)


def map_words(
    config: DictConfig,
    title: Callable[[DictConfig, str], str] = method_title,
    scalings: Mapping[str, str] = {},
) -> list[str]:
    """Return a caption's sentences on the scalings of the methods' maps and on the settings of the methods.

    scalings: {method: scaling}, for methods whose maps are not shown in their default scaling.
    """
    names = [str(name) for name in config.methods]
    shown = {title(config, m).replace("\n", " "): scalings.get(m) or method_scaling(config, m) for m in names}
    return [*display.sentences(shown), *method_words(config)]
