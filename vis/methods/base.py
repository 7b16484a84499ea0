"""The base class of all methods, and how several of them share a forward pass."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from vis.errors import UserError, named
from vis.graph.outputs import scoring
from vis.methods.forward import Forward, Preprocessing
from vis.methods.target import Targets, as_targets
from vis.windows.gaussian import Images


class Examples(Images, Protocol):
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
        """The images of a folder; by default the bundled photographs, or what the experiment chose instead."""

    def cache(self, kind: str, key: object) -> Path:
        """The file in the folder `kind` for what was learnt under a key; it outlives the run. `repr` tells keys apart."""


class Method(ABC):
    """An attribution method: the constructor takes its parameters, a call takes (model, images, targets) and returns maps.

    images [B, C, H, W].
    targets: one for all images or one for each, see `vis.methods.target`; None is the largest logit. A function
    f(output) -> [B] explains any score of what the model returns, whatever its type.
    preprocess: the function that made the images from pixels in [0, 1]; methods with a black baseline or a pixel range need
    it.
    Returns maps [B, C, H, W] or [B, 1, H, W]: signed, unscaled, on the images' device. The model is left as it was
    found, also after an exception. A batch gives what its images give one by one.

    A subclass implements `explain`, on a forward pass that it may share with other methods. One that must learn from
    images first implements `prepare` as well.
    """

    title: ClassVar[str] = ""  # for figures; the class name by default
    display: ClassVar[str] = "diverging"  # how its maps are shown by default, see vis.figures.display
    axiom: ClassVar[str] = ""  # that says what a map sums to: conservation, completeness, ...
    why_silent: ClassVar[str] = ""  # the possible reasons for `silent`, in words

    @property
    def words(self) -> str:
        """What a caption says behind the title, as "from black pixels"; "" for nothing."""
        return ""

    def prepare(self, subject: Subject) -> None:  # noqa: B027  # most methods learn nothing
        """Learn what `explain` needs, from images. `vis-run` calls it before the method first explains a network.

        What takes long belongs in a file, `subject.cache`. Raises NotApplicable if the method cannot explain the targets.
        """

    @abstractmethod
    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        """The maps of the targets of a forward pass."""

    def layers(self, model: nn.Module, images: Tensor) -> Sequence[str]:
        """The layers whose outputs it needs from the forward pass of these images."""
        return ()

    def passes(self, model: nn.Module, image: Tensor) -> float:
        """About how many passes a map of an image [1, C, H, W] takes beyond the shared forward pass; a backward pass is one.

        For plans: the model and the image have shapes alone (torch's meta device). What is learnt first is not counted.
        """
        return 1

    def silent(self, model: nn.Module, images: Tensor) -> Tensor:
        """For each image whether its maps carry no information, [B] of bool."""
        return torch.zeros(len(images), dtype=torch.bool)

    def why_zero(self) -> str:
        """Why a map of it is all zero, in words for a caption; nothing where only the network knows."""
        return ""

    def total(self, forward: Forward, targets: Targets) -> Tensor | None:
        """What each map sums to by the axiom, [B]; None without one."""
        return None

    def axiom_error(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Targets,
        maps: Tensor,
        preprocess: Preprocessing | None = None,
    ) -> Tensor | None:
        """How far the sums of maps [B, ...] of these images are from `total`, in parts of it: [B]; None without an axiom.

        It is 0 where they are equal, a dead network's zeros included, and infinite where only the total is 0.
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
    """Several methods and targets from one forward pass: {name: maps} for each of `targets`, and the logits [B, K].

    With a function among the targets each has a forward pass of its own, and the logits are the first's: f(output) [B, 1]
    of a function.
    What a method raises is noted with its name. Raises UserError for a method that returns no maps of the images.
    """
    if any(map(callable, targets)):
        parts = [
            explain_all(methods, scoring(model, each), images, [0], preprocess)
            if callable(each)
            else explain_all(methods, model, images, [each], preprocess)
            for each in targets
        ]
        return [maps for (maps,), _ in parts], parts[0][1]
    layers = {layer for each in targets for layer in _layers(each, len(images))}
    for name, method in methods.items():
        with named(_spoken(name, method)):
            layers.update(method.layers(model, images))
    with Forward(model, images, sorted(layers), preprocess) as forward:
        maps = [{name: _maps(name, method, forward, each) for name, method in methods.items()} for each in targets]
    return maps, forward.logits


def _maps(name: str, method: Method, forward: Forward, targets: Targets) -> Tensor:
    """A method's maps, which are numbers [B, 1 or C, H, W]."""
    with named(_spoken(name, method)):
        maps = method.explain(forward, targets)
    B, C, *size = forward.images.shape
    if not isinstance(maps, Tensor) or list(maps.shape) not in ([B, 1, *size], [B, C, *size]):
        got = list(maps.shape) if isinstance(maps, Tensor) else f"a {type(maps).__name__}"
        expected = [B, "1" if C == 1 else f"1 or {C}", *size]
        raise UserError(f"{_spoken(name, method)} returned {got}, expected [{', '.join(map(str, expected))}]")
    if not maps.is_floating_point():
        raise UserError(f"{_spoken(name, method)} returned maps of {maps.dtype}, expected floating-point numbers")
    return maps.detach()


def _spoken(name: str, method: Method) -> str:
    return f"methods.{name}" if name else type(method).__name__


def _layers(targets: Targets, batch: int) -> list[str]:
    """The layers whose units are targets."""
    return sorted({target.layer for target in as_targets(targets, batch) if target.layer is not None})
