"""Targets: the units of a network that maps explain.

A target is usually a class: the logit `S_c` of nie2018, Eq. (3). It may also be any unit of any layer (the fc1 neurons
26 and 44 of nie2018, Figure 3), a probability (zhou2018, Algorithm 3), or any function of what the network returns.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vis.errors import NotApplicable
from vis.graph.outputs import Score


@dataclass(frozen=True)
class Target:
    """One unit of one layer.

    unit:   an index of the flat last layer; a channel of a feature map (its sum over the map is explained); or a tuple
            (channel, row, column) for a single neuron. None is the unit with the largest output, in a feature map the
            single neuron with the largest output.
    layer:  the name of a module of the network (`model.named_modules()`), `name:k` for the k-th call of a module that
            is called several times; None is the network's output, i.e. its logits.
    output: "logit" for the unit itself, "prob" for its softmax over the layer (over the channels of a feature map).
    """

    unit: int | tuple[int, ...] | None = None
    layer: str | None = None
    output: Literal["logit", "prob"] = "logit"

    def __post_init__(self) -> None:
        if self.output not in ("logit", "prob"):
            raise ValueError(f"Target.output is 'logit' or 'prob', not {self.output!r}")


# The argument `targets` of a method: one target for the whole batch, or one for each image (a list, a tensor or an array).
# None is the largest logit. A function of the network's output, for any number of images, always counts for all.
Targets = None | int | Target | Sequence[int | Target | None] | Tensor | Score


class NoSuchUnit(IndexError):
    """A target names a unit that its layer does not have."""


def as_targets(targets: Targets, batch: int) -> list[Target]:
    """Return one Target for each of `batch` images; a single target counts for all. `explain_all` handles functions.

    Raises ValueError for a wrong count, TypeError for anything else.
    """
    given: Any = targets
    if hasattr(given, "tolist"):  # tensors, arrays, NumPy's integers
        given = given.tolist()
    if not isinstance(given, Sequence) or isinstance(given, str):
        given = [given] * batch
    if len(given) != batch:
        raise ValueError(f"{len(given)} targets for {batch} images: give one target, or one for each image")
    return [_as_target(target) for target in given]


def _as_target(target: Any) -> Target:
    if isinstance(target, Target):
        return target
    try:
        return Target(None if target is None else operator.index(target))
    except TypeError:  # operator.index's own words name neither the argument nor what it may be
        raise TypeError(
            f"a target is an index or a vis.methods.target.Target, not {target!r}"
            + ": a function is one target for all images, which a method takes" * callable(target)
        ) from None


def score(output: Tensor, targets: Sequence[Target]) -> Tensor:
    """Pick the explained number of each image from a layer's output [B, K] or [B, C, H, W]: [B].

    Raises NoSuchUnit for a unit that the layer does not have, ValueError for an output without a row for each image,
    NotApplicable for the probability of a layer's only unit.
    """
    if output.ndim < 2 or output.shape[0] != len(targets):
        raise ValueError(
            f"a layer's output of shape {tuple(output.shape)} has no row for each of {len(targets)} images"
        )
    K = output.shape[1]
    units = [t.unit for t in targets if isinstance(t.unit, int) and 0 <= t.unit < K and t.output == "logit"]
    if output.ndim == 2 and len(units) == len(targets):
        return output[range(len(units)), units]  # at once: a perturbation asks for thousands of images
    scores = []
    for values, target in zip(output.unbind(), targets, strict=True):
        if target.output == "prob":
            if len(values) == 1:
                raise NotApplicable("the softmax over a single unit is 1 for every image: explain the unit itself")
            values = torch.softmax(values, dim=0)
        unit = target.unit
        if unit is None:  # argmax, not max: the gradient belongs to one unit, also where several are equal
            scores.append(values.flatten()[values.argmax()])
            continue
        index = unit if isinstance(unit, tuple) else (unit,)
        inside = len(index) <= values.ndim and all(0 <= i < n for i, n in zip(index, values.shape, strict=False))
        if not inside:
            raise NoSuchUnit(f"unit {unit} is not in a layer of shape {tuple(values.shape)}")
        scores.append(values[index].sum())
    return torch.stack(scores)
