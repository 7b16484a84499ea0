"""Rules that share the relevance of a layer's outputs among its inputs; `vis.methods.relevance` has the equation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vis.errors import NotApplicable

Modify = Callable[[Tensor], Tensor]


class Part(NamedTuple):
    """A share `coefficient` of the relevance, by contributions a' w'; products: (makes a' of a, makes w' of w and b).

    sign: of the outputs z_j whose relevance it shares; 0: of all.
    """

    coefficient: float
    products: tuple[tuple[Modify, Modify], ...]
    sign: int = 0


@dataclass(frozen=True)
class Rule:
    """A rule as above. bias: it counts in the denominators, as the weight of a neuron that is always 1."""

    parts: tuple[Part, ...]
    epsilon: float = 0.0
    bias: bool = True


def same(v: Tensor) -> Tensor:
    return v


def positive(v: Tensor) -> Tensor:
    return v.clamp(min=0)


def negative(v: Tensor) -> Tensor:
    return v.clamp(max=0)


def epsilon_rule(epsilon: float, bias: bool = True) -> Rule:
    """LRP-epsilon (Bach et al. 2015), Eq. 13 with epsilon * sign(z); LRP-0, Eq. 12, for epsilon = 0.

    R_i = sum_j c_ij / (sum_q c_qj + b_j + epsilon sign) * R_j        c_ij = a_i w_ij
    """
    return Rule((Part(1, ((same, same),)),), epsilon, bias)


def gamma_rule(gamma: float, bias: bool = True) -> Rule:
    """LRP-gamma for inputs and outputs of either sign (Andeol et al. 2021): contributions of the output's sign count more.

    R_i = sum_j (c_ij + gamma c^s_ij) / (sum_q c_qj + gamma c^s_qj) * R_j        c_ij = a_i w_ij, c^s: those with z_j's sign

    The bias is one of them. The denominator is at least as far from 0 as z_j. Equal to Eq. 14 where a >= 0 and z > 0.
    """
    up, down = (lambda w: w + gamma * positive(w)), (lambda w: w + gamma * negative(w))
    return Rule(
        (Part(1, ((positive, up), (negative, down)), sign=1), Part(1, ((positive, down), (negative, up)), sign=-1)),
        bias=bias,
    )


def gamma_eq14_rule(gamma: float, bias: bool = True) -> Rule:
    """LRP-gamma as Montavon et al. 2019 and Eq. 14 have it, for inputs and outputs that are not negative.

    R_i = sum_j a_i (w_ij + gamma w+_ij) / sum_q a_q (w_qj + gamma w+_qj) * R_j

    Where z_j < 0, as before a skip connection, or an input is negative, the denominator can pass near 0: such maps are noise.
    """
    return Rule((Part(1, ((same, lambda w: w + gamma * positive(w)),)),), bias=bias)


def alpha_beta_rule(alpha: float, bias: bool = True) -> Rule:
    """LRP-alpha-beta (Bach et al. 2015), Eq. 15, beta = alpha - 1.

    R_i = sum_j (alpha c+_ij / (sum_q c+_qj + b+_j) - beta c-_ij / (sum_q c-_qj + b-_j)) * R_j        c_ij = a_i w_ij
    """
    parts = [Part(alpha, ((positive, positive), (negative, negative)))]
    if alpha != 1:
        parts.append(Part(1 - alpha, ((positive, negative), (negative, positive))))
    return Rule(tuple(parts), bias=bias)


def zplus_rule() -> Rule:
    """z+ of deep Taylor decomposition (Montavon et al. 2017): LRP-alpha1beta0 without the bias.

    R_i = sum_j c+_ij / sum_q c+_qj * R_j        c_ij = a_i w_ij

    The bias has no relevance and no place in the denominator; other libraries' ZPlus keeps it there, as alpha1beta0 does.
    """
    return alpha_beta_rule(1, bias=False)


def wsquare_rule(bias: bool = True) -> Rule:
    """w^2 of deep Taylor decomposition (Montavon et al. 2017), for inputs without bounds; the bias counts as a weight.

    R_i = sum_j w_ij^2 / (sum_q w_qj^2 + b_j^2) * R_j
    """
    return Rule((Part(1, ((torch.ones_like, torch.square),)),), bias=bias)


def flat_rule() -> Rule:
    """Every input has the same share (Lapuschkin et al. 2019): w^2 with weights 1 and no bias."""
    return Rule((Part(1, ((torch.ones_like, torch.ones_like),)),), bias=False)


def box_rule(x: Tensor, low: Tensor, high: Tensor) -> Rule:
    """z^B of deep Taylor decomposition (Montavon et al. 2017), for pixels x between l and h; the bias cancels.

    R_i = sum_j (x_i w_ij - l_i w+_ij - h_i w-_ij) / sum_q (x_q w_qj - l_q w+_qj - h_q w-_qj) * R_j
    """

    def minus(bound: Tensor, a: Tensor) -> Tensor:
        if a.numel() != x.numel() or not torch.equal(a.reshape(x.shape), x):
            raise NotApplicable("the rule zb is for layers that read the image itself; flat and wsquare are for others")
        return -bound.expand_as(x).reshape(a.shape)

    return Rule(
        (Part(1, ((same, same), (partial(minus, low), positive), (partial(minus, high), negative))),), bias=False
    )
