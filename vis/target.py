"""What a map explains: a unit of the network.

A target is mostly a class: the logit `S_c` of nie2018, Eq. (3). It may also be any unit of any layer (the fc1 neurons
26 and 44 of nie2018, Figure 3) or a probability (zhou2018, Algorithm 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """One unit of one layer.

    unit:   an index of the flat last layer; a channel of a feature map (its sum over the map is explained); or a tuple
            (channel, row, column) for a single neuron. None is the unit with the largest output.
    layer:  the name of a module of the network (`model.named_modules()`), `name:k` for the k-th call of a module that
            is called several times; None is the network's output, i.e. its logits.
    output: "logit" for the unit itself, "prob" for its softmax over the layer.
    """

    unit: int | tuple[int, ...] | None = None
    layer: str | None = None
    output: Literal["logit", "prob"] = "logit"

    def __post_init__(self) -> None:
        if self.output not in ("logit", "prob"):
            raise ValueError(f"Target.output is 'logit' or 'prob', not {self.output!r}")


# What a method takes as `targets`: one for the whole batch, or one for each image. None is the largest logit.
Targets = None | int | Target | Sequence[int | Target] | Tensor


def as_targets(targets: Targets, batch: int) -> list[Target]:
    """One Target for each of `batch` images. A single target counts for all; a wrong count is an error."""
    if targets is None:
        targets = Target()
    if isinstance(targets, Tensor):
        targets = [int(target) for target in targets.reshape(-1)] if targets.ndim else int(targets)
    if isinstance(targets, int | Target):
        targets = [targets] * batch
    assert isinstance(targets, Sequence)
    if len(targets) != batch:
        raise ValueError(f"{len(targets)} targets for {batch} images: give one target, or one for each image")
    return [t if isinstance(t, Target) else Target(int(t)) for t in targets]


def score(output: Tensor, targets: Sequence[Target]) -> Tensor:
    """The explained number of each image: [B] from a layer's output [B, K] or [B, C, H, W].

    Raises IndexError where a unit is not in the layer.
    """
    scores = []
    for values, target in zip(output, targets, strict=True):
        unit = target.unit
        if target.output == "prob":
            values = torch.softmax(values, dim=0)
        if unit is None:
            scores.append(values.flatten().max())
            continue
        index = unit if isinstance(unit, tuple) else (unit,)
        inside = len(index) <= values.ndim and all(0 <= i < n for i, n in zip(index, values.shape, strict=False))
        if not inside:
            raise IndexError(f"unit {unit} is not in a layer of shape {tuple(values.shape)}")
        scores.append(values[index].sum())
    return torch.stack(scores)
