"""The base class of all methods, and how several of them share a forward pass."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from vis.errors import NotApplicable, UserError, named
from vis.graph.outputs import scoring
from vis.methods.flow import Flow
from vis.methods.forward import Forward, Preprocessing, ReluRule
from vis.methods.target import Targets, as_targets
from vis.system.device import mixed_in_bfloat16
from vis.windows.engine import say_once
from vis.windows.gaussian import ImageSequence

MIXED_LIMIT = 0.02  # of the error that precision=mixed may have without a warning


class Examples(ImageSequence, Protocol):
    """Images to learn from, each [C, H, W] as the network sees it.

    labels: the class of each image, None if unknown. facts: data, fingerprint and preprocessing, for cache keys.
    """

    @property
    def labels(self) -> Sequence[int | None]: ...

    @property
    def facts(self) -> dict[str, Any]: ...

    def part(self, indices: Sequence[int]) -> "Examples": ...


class Subject(Protocol):
    """A network that is about to be explained, and the images that a method may learn from.

    model: in eval mode, on its device. preprocess: turns pixels in [0, 1] into its input.
    size, channels: (height, width) and number of channels of its input.
    images [B, C, H, W], targets: the first that will be explained.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def preprocess(self) -> Preprocessing: ...

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def channels(self) -> int: ...

    @property
    def images(self) -> Tensor: ...

    @property
    def targets(self) -> Sequence[Targets]: ...

    def network(self) -> dict[str, Any]:
        """Facts that identify the network, for cache keys: a hash of its parameters, its architecture, its input size."""

    def training_images(self) -> Examples:
        """The training images of the run's dataset."""

    def pictures(self, folder: str | None = None) -> Examples:
        """The images of a folder; by default the dataset's other images, or what the experiment chose instead."""

    def cache(self, kind: str, key: object) -> Path:
        """The file in the folder `kind` for what was learnt under a key; it outlives the run. `repr` tells keys apart."""


class Method(ABC):
    """An attribution method: the constructor takes its parameters, a call takes (model, images, targets) and returns maps.

    images [B, C, H, W].
    targets: one for all images or one for each, see `vis.methods.target`; None is the largest logit. A function
    f(output) -> [B] explains any score of the model's output, whatever its type.
    preprocess: the function that made the images from pixels in [0, 1]; methods with a black baseline or a pixel range need
    it.
    Returns maps [B, C, H, W] or [B, 1, H, W]: signed, unscaled, on the images' device. A call does not change the model,
    even if it raises. The map of an image does not depend on the other images of the batch.

    A subclass implements `explain`, on a forward pass that it may share with other methods. One that must learn from
    images first implements `prepare` as well.
    """

    title: ClassVar[str] = ""  # in figures; the class name by default
    display: ClassVar[str] = "diverging"  # the default scaling of its maps, see vis.figures.display
    axiom: ClassVar[str] = ""  # about the sum of a map: conservation, completeness, ...
    video: ClassVar[bool] = False  # whether it explains images in 3D as well, [B, C, T, H, W]
    relu_inputs: ClassVar[bool] = False  # whether `explain` wants `Forward.relu_inputs`
    why_silent: ClassVar[str] = ""  # the possible reasons for `silent`, in words

    @property
    def words(self) -> str:
        """Words that follow the title in a caption, such as "from black pixels"."""
        return ""

    @property
    def mixed_error(self) -> float | None:
        """The largest relative l2 error of its maps in bfloat16, by precision=mixed (docs/guide.md); None: it changes nothing."""
        return None

    def prepare(self, subject: Subject) -> None:  # noqa: B027  # most methods learn nothing
        """Learn what `explain` needs, from images. `vis-run` calls it before the method first explains a network.

        What takes long belongs in a file, `subject.cache`. Raises NotApplicable if the method cannot explain the targets.
        """

    @abstractmethod
    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        """Return the maps of the targets of a forward pass."""

    def layers(self, model: nn.Module, images: Tensor) -> Sequence[str]:
        """Names of the layers whose outputs `explain` needs from the forward pass of these images."""
        return ()

    def passes(self, model: nn.Module, image: Tensor) -> float:
        """Estimate how many passes a map of an image [1, C, H, W] takes beyond the shared forward pass.

        A backward pass counts as one; `prepare` is not counted. The model and the image are on torch's meta device, without
        values.
        """
        return 1

    def silent(self, model: nn.Module, images: Tensor) -> Tensor:
        """For each image whether its maps carry no information, [B] of bool."""
        return torch.zeros(len(images), dtype=torch.bool)

    def why_zero(self) -> str:
        """Why a map of this method is all zero, in words for a caption; "" if it depends on the network."""
        return ""

    def flow(self, forward: Forward, layers: Sequence[str] = ()) -> Flow:
        """Return how the method carries relevance between the logits, layers and images of a forward pass.

        layers: names of modules that the pass keeps. Raises NotApplicable for methods without such a backward pass.
        """
        raise NotApplicable(f"{self.title or type(self).__name__} has no backward pass from layer to layer")

    def total(self, forward: Forward, targets: Targets) -> Tensor | None:
        """The sum of each map by the axiom, [B]; None without an axiom."""
        return None

    def axiom_error(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Targets,
        maps: Tensor,
        preprocess: Preprocessing | None = None,
    ) -> Tensor | None:
        """The relative difference of the sums of maps [B, ...] from `total`: [B]; None without an axiom.

        0 if they are equal, even if both are 0, and infinite if only the total is 0.
        """
        if not self.axiom:
            return None
        if callable(targets):
            model, targets = scoring(model, targets), 0
        with Forward(model, images, _layers(targets, len(images)), preprocess) as forward:
            total = self.total(forward, targets)
        assert total is not None
        total = total.detach()
        difference = maps.to(total).flatten(1).sum(1) - total
        return (difference / total).abs().where(difference != 0, 0)

    def __call__(
        self, model: nn.Module, images: Tensor, targets: Targets = None, preprocess: Preprocessing | None = None
    ) -> Tensor:
        return explain_all({"": self}, model, images, [targets], preprocess)[0][0][""]

    def __repr__(self) -> str:
        parameters = ", ".join(f"{key}={value!r}" for key, value in vars(self).items() if not key.startswith("_"))
        return f"{type(self).__name__}({parameters})"


def explain_all(
    methods: Mapping[str, Method],
    model: nn.Module,
    images: Tensor,
    targets: Sequence[Targets],
    preprocess: Preprocessing | None = None,
) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Explain several targets by several methods from one forward pass: {name: maps} for each target, and logits [B, K].

    If a target is a function, each target has its own forward pass, and the logits are those of the first target: f(output)
    [B, 1] for a function.
    The name of a method is added to its exceptions. Raises UserError for a method whose result is not a map of each image.
    """
    if any(map(callable, targets)):
        parts = [
            explain_all(methods, scoring(model, each), images, [0], preprocess)
            if callable(each)
            else explain_all(methods, model, images, [each], preprocess)
            for each in targets
        ]
        return [maps for (maps,), _ in parts], parts[0][1]
    if mixed_in_bfloat16(images.device):
        _say_mixed_errors(methods)
    layers = {layer for each in targets for layer in _layers(each, len(images))}
    for name, method in methods.items():
        with naming(name, method):
            if images.ndim == 5 and not method.video:
                raise NotApplicable(f"{type(method).__name__} explains images [B, C, H, W], not {list(images.shape)}")
            layers.update(method.layers(model, images))
    relu_inputs = any(method.relu_inputs for method in methods.values())
    with Forward(model, images, sorted(layers), preprocess, relu_inputs) as forward:
        rules = [rule for m in methods.values() if isinstance(rule := getattr(m, "rule", None), ReluRule)]
        forward.anticipate([(each, rule) for rule in rules for each in targets])
        maps = [{name: _maps(name, method, forward, each) for name, method in methods.items()} for each in targets]
    return maps, forward.logits


def _say_mixed_errors(methods: Mapping[str, Method]) -> None:
    """Log, once, the methods that precision=mixed leaves alone, and warn of those whose maps it changes by more than 2 %."""
    for name, method in methods.items():
        named = name or type(method).__name__
        if method.mixed_error is None:
            say_once(f"precision=mixed changes nothing in {named}")
        elif method.mixed_error > MIXED_LIMIT:
            error = f"{100 * method.mixed_error:.2g} %"
            say_once(
                f"precision=mixed changes maps of {named} by up to {error} (l2): use precision=float32", logging.WARNING
            )


def _maps(name: str, method: Method, forward: Forward, targets: Targets) -> Tensor:
    """A method's maps, checked to be floating-point numbers [B, 1 or C, H, W]."""
    with naming(name, method):
        maps = method.explain(forward, targets)
    B, C, *size = forward.images.shape
    if not isinstance(maps, Tensor) or list(maps.shape) not in ([B, 1, *size], [B, C, *size]):
        got = list(maps.shape) if isinstance(maps, Tensor) else f"a {type(maps).__name__}"
        expected = [B, "1" if C == 1 else f"1 or {C}", *size]
        raise UserError(f"{_spoken(name, method)} returned {got}, expected [{', '.join(map(str, expected))}]")
    if not maps.is_floating_point():
        raise UserError(f"{_spoken(name, method)} returned maps of {maps.dtype}, expected floating-point numbers")
    return maps.detach()


@contextmanager
def naming(name: str, method: Method) -> Iterator[None]:
    """Name a method in the exceptions raised inside: a UserError in its message, others in a note (`vis.errors.named`).

    name: in the config; "" for a method that is called directly.
    """
    with named(_spoken(name, method)):
        try:
            yield
        except UserError as error:
            if not name or type(error) is not UserError:  # a Lacking is about a resource of the run
                raise
            raise UserError(f"methods.{name}: {error}") from error


def _spoken(name: str, method: Method) -> str:
    return f"methods.{name}" if name else type(method).__name__


def _layers(targets: Targets, batch: int) -> list[str]:
    """List the layers whose units are targets."""
    return sorted({target.layer for target in as_targets(targets, batch) if target.layer is not None})
