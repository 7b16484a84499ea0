"""The contract of a method; one forward pass for several methods and targets."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from vis.errors import NotApplicable, UserError, named
from vis.graph.outputs import scoring
from vis.methods.forward import Forward, Preprocessing
from vis.methods.target import Targets, as_targets


class Method(ABC):
    """Base class of methods. The constructor takes the parameters; the call takes (model, images, targets) and returns maps.

    images [B, C, H, W].
    targets: one for all images or one for each, see `vis.methods.target`; None is the largest logit. A function
    f(output) -> [B] explains any score of what the model returns, whatever its type.
    preprocess: the function that made the images from pixels in [0, 1]; methods with a black baseline or a pixel range need
    it.
    Returns maps [B, C, H, W] or [B, 1, H, W]: signed, unscaled, on the images' device. The model stays unchanged, also after
    an exception. The map of an image does not depend on the others in its batch.

    A subclass implements `explain` on a forward pass that other methods may share.
    """

    title: ClassVar[str] = ""  # for figures; the class name by default
    display: ClassVar[str] = "diverging"  # how its maps are shown by default, see vis.figures.display
    axiom: ClassVar[str] = ""  # the name of the axiom that fixes the sum of a map: conservation, completeness, ...
    video: ClassVar[bool] = False  # whether it explains images in 3D as well, [B, C, T, H, W]

    @property
    def words(self) -> str:
        """Complete the title in captions, as "from black pixels"; may be empty."""
        return ""

    @abstractmethod
    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        """Return the maps of the targets of a forward pass."""

    def layers(self, model: nn.Module, images: Tensor) -> Sequence[str]:
        """Name the layers whose outputs the method needs from the forward pass of these images."""
        return ()

    def passes(self, model: nn.Module, image: Tensor) -> float:
        """Estimate the passes for a map of an image [1, C, H, W] beyond the shared forward pass; a backward pass counts as one.

        For plans: model and image have only shapes (torch's meta device). Learning beforehand is not counted.
        """
        return 1

    def why_zero(self) -> str:
        """Explain an all-zero map in a caption; empty where the cause lies in the network."""
        return ""

    def total(self, forward: Forward, targets: Targets) -> Tensor | None:
        """Return what each map sums to by the axiom, [B]; None without an axiom."""
        return None

    def axiom_error(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Targets,
        maps: Tensor,
        preprocess: Preprocessing | None = None,
    ) -> Tensor | None:
        """Return the relative error of the sums of maps [B, ...] against `total`: [B]; None without an axiom.

        It is 0 where both are equal, even at 0, and infinite where only the total is 0.
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
    """Explain several targets by several methods in one forward pass: {name: maps} for each of `targets`, and the logits [B, K].

    If a target is a function, each target takes a forward pass of its own, and the logits are those of the first (of a
    function: f(output) [B, 1]).
    An exception in a method carries its name. Raises UserError for a method that does not return maps of the images.
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
            if images.ndim == 5 and not method.video:
                raise NotApplicable(f"{type(method).__name__} explains images [B, C, H, W], not {list(images.shape)}")
            layers.update(method.layers(model, images))
    with Forward(model, images, sorted(layers), preprocess) as forward:
        maps = [{name: _maps(name, method, forward, each) for name, method in methods.items()} for each in targets]
    return maps, forward.logits


def _maps(name: str, method: Method, forward: Forward, targets: Targets) -> Tensor:
    """Run a method and check that its maps are floating-point numbers [B, 1 or C, H, W]."""
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
    """List the layers whose units are targets."""
    return sorted({target.layer for target in as_targets(targets, batch) if target.layer is not None})
