"""Relevance between the layers of a network: r_l = C_l r_(l+1), with the matrix C_l of a method's rule (sixt2020).

`Method.flow` makes it of one forward pass; it carries any relevance from any layer to all layers below.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

LOGITS, IMAGE = "logits", "image"

Backward = Callable[[Tensor, Tensor, Sequence[Tensor]], Sequence[Tensor | None]]


def gradients(start: Tensor, relevance: Tensor, ends: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return the gradients at `ends`, given that at `start`; None where nothing arrives."""
    return torch.autograd.grad(start, ends, relevance, retain_graph=True, allow_unused=True)


@dataclass(frozen=True)
class Flow:
    """How a method carries relevance between the logits, layers and images.

    values: the layers' outputs [B, ...] by name, with the logits first and the images last; `backward` connects them.
    activations: what relevance is proportional to at each layer, a or its difference from a reference; none for gradients.
    multipliers: `backward` carries multipliers m, and the relevance is m times the activation.
    """

    values: Mapping[str, Tensor]
    activations: Mapping[str, Tensor] = field(default_factory=dict)
    multipliers: bool = False
    backward: Backward = gradients

    def __call__(self, start: str, relevance: Tensor, times_activation: bool = False) -> dict[str, Tensor]:
        """Carry relevance [B, ...] from a layer to those below it: {name: relevance}, in the order of `values`.

        times_activation: start from the given values times the activation, if relevance is proportional to one. Without it,
        a multiplier is relevance / activation, which is huge where the activation is near 0; 0 where it is 0.
        """
        a = self.activations.get(start)
        if a is not None and times_activation != self.multipliers:
            relevance = relevance * a if times_activation else torch.where(a == 0, 0, relevance / a)
        ends = [name for name in self.values if name != start]
        found = self.backward(self.values[start], relevance, [self.values[name] for name in ends])
        below = {name: r.detach() for name, r in zip(ends, found, strict=True) if r is not None}
        return {name: r * self.activations[name] if self.multipliers else r for name, r in below.items()}
