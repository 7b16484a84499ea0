"""ayyar2021, Eqs. 11 to 15, layer by layer as printed, on small networks whose layers stand in a row.

    R_i = sum_j c_ij / (sum_q c_qj + b_j + epsilon) R_j        c_ij = a_i w_ij, or a rule's changed a' and w'

The rules are those of `vis.methods.rules`, the sums are computed here. epsilon is in parts of the root mean square of the layer's
denominators, since z has no unit; unsigned as printed, or with the sign of the sum.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vis.methods.rules import Part, Rule

RESIDUAL = "residual"


class Residual(nn.Module):
    """a + body(a)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, a: Tensor) -> Tensor:
        return a + self.body(a)


def network(kind: str, seed: int, biases: bool = True) -> nn.Sequential:
    """Return a random network in float64 for images [B, 3, 12, 12]: He's normal weights, biases of deviation 0.1 or none."""
    if kind == RESIDUAL:
        body = [Residual(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)), nn.ReLU()]
        features = [nn.Conv2d(3, 8, 3), nn.ReLU(), *body, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(200, 32)]
    else:
        body = [nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU()]
        features = [nn.Conv2d(3, 8, 3), nn.ReLU(), *body, nn.Flatten(), nn.Linear(64, 32)]
    net = nn.Sequential(*features, nn.ReLU(), nn.Linear(32, 10)).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        deviation = (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1 * biases
        p.copy_(deviation * torch.randn(p.shape, dtype=p.dtype, generator=generator))
    return net


def linear(layer: Any, a: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Apply a convolution or dense layer with other weights."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(a, w, b, padding=layer.padding)
    return F.linear(a, w, b)


def denominators(
    layer: Any, a: Tensor, part: Part, epsilon: float, signed: bool = True
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return z of a layer for a part of a rule, z with its epsilon, and the part's inputs a', from which z depends."""
    inputs = [of_a(a.detach()).requires_grad_() for of_a, _ in part.products]
    z = torch.zeros(())
    for a_, (of_a, of_w) in zip(inputs, part.products, strict=True):
        b = of_w(layer.bias) * of_a(torch.ones_like(layer.bias))
        z = z + linear(layer, a_, of_w(layer.weight), b)
    sign = torch.where(z < 0, -1.0, 1.0) if signed else 1.0
    return z, (z + epsilon * sign * z.detach().square().mean().sqrt()).detach(), inputs


def shared(layer: nn.Module, a: Tensor, R: Tensor, rule: Rule, signed: bool = True) -> Tensor:
    """Return the relevance of a layer's inputs a, given that of its outputs (Eqs. 12 to 15); 0 / 0 counts as 0."""
    total = torch.zeros_like(a)
    for part in rule.parts:
        z, below, inputs = denominators(layer, a, part, rule.epsilon, signed)
        messages = torch.where(below == 0, 0, part.coefficient * R / below)
        gradients = torch.autograd.grad(z, inputs, messages)
        total = total + sum(a_.detach() * gradient for a_, gradient in zip(inputs, gradients, strict=True))
    return total


def relevances(
    net: nn.Sequential, x: Tensor, R: Tensor, rule: Rule, signed: bool = True
) -> list[tuple[Tensor, Tensor]]:
    """Return (a, R) of the inputs of each module and of the outputs, of which R is given."""
    values = [x]
    for module in net:
        values.append(module(values[-1]).detach())
    found = [(values[-1], R)]
    for module, a in zip(reversed(net), reversed(values[:-1]), strict=True):
        found.append((a, _before(module, a, found[-1][1], rule, signed)))
    return found[::-1]


def _before(module: nn.Module, a: Tensor, R: Tensor, rule: Rule, signed: bool) -> Tensor:
    if isinstance(module, nn.Conv2d | nn.Linear):
        return shared(module, a, R, rule, signed)
    if isinstance(module, Residual):  # the sum shares in proportion
        branch = module.body(a)
        each = torch.where(a + branch == 0, 0, R / (a + branch))
        return a * each + relevances(module.body, a, branch * each, rule, signed)[0][1]
    if isinstance(module, nn.ReLU):
        return R
    a = a.detach().requires_grad_()  # a pooling passes relevance to its largest value
    return torch.autograd.grad(module(a), a, R)[0]


def score(net: nn.Module, x: Tensor) -> tuple[int, Tensor]:
    """Return the unit c of the largest logit S_c of an image [1, 3, H, W], and the relevance [1, K] of the outputs: S_c at c."""
    logits = net(x).detach()
    c = int(logits.argmax())
    return c, torch.where(torch.arange(logits.shape[1]) == c, logits, 0)
