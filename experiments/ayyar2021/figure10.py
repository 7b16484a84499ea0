"""ayyar2021, Figure 10 and Appendix A: the gradient of a convolution is the full convolution with the flipped filter.

    Y * F = O      dL/dY = dL/dO dO/dY  (28)  =  dL/dO, padded with zeros, * F turned by 180 degrees  (33)

Each equation is computed in its own way: sums in loops (30), entries of the Jacobian (31), products with the Jacobian (28, 32),
autograd, the full convolution (33), and this project's DeconvNet on a network that consists of this convolution.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from vis.claims import Claim, Column, Compared, exactly
from vis.errors import UserError
from vis.figures.layout import PAGE_WIDTH, draw_matrix, plot, styled
from vis.methods import DeconvNet
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results

EQUATIONS = {  # row of the ledger -> column, what is compared
    "A-A-a": ("eq30", "convolution - sums written out"),
    "A-A-b": ("eq31", "Jacobian - entries of F"),
    "A-A-c": ("eq32", "autograd - sums of dL/dO do/dy"),
    "A-A-d": ("eq33", "autograd - full convolution with the turned filter"),
    "A-A-e": ("deconvnet", "DeconvNet's map - full convolution of ReLU(dL/dO)"),
}


class Convolution(nn.Module):
    """A network with one logit, the sum of R times ReLU(Y * F), so that R is the gradient behind the ReLU. Y [B, C, H, W]."""

    def __init__(self, F: Tensor, R: Tensor) -> None:
        super().__init__()
        self.F, self.R = nn.Parameter(F), nn.Parameter(R)

    def forward(self, Y: Tensor) -> Tensor:
        return (self.R * torch.relu(conv2d(Y, self.F))).flatten(1).sum(1, keepdim=True)


def full_convolution(G: Tensor, F: Tensor) -> Tensor:
    """Convolve zero-padded G [B, K, h, w] with the flipped F [K, C, k, l] (Eq. 33): [B, C, h + k - 1, w + l - 1]."""
    k, length = F.shape[2:]
    return conv2d(pad(G, (length - 1, length - 1, k - 1, k - 1)), F.flip(2, 3).transpose(0, 1))


def written_out(Y: Tensor, F: Tensor) -> tuple[Tensor, Tensor]:
    """Compute Eqs. (30) and (31) in loops: O [K, h, w] and dO/dY [K, h, w, C, H, W] for Y [C, H, W], F [K, C, k, l]."""
    (K, C, k, length), (_, H, W) = F.shape, Y.shape
    O = Y.new_zeros(K, H - k + 1, W - length + 1)  # noqa: E741  # the paper's name
    J = Y.new_zeros(*O.shape, *Y.shape)
    for f, i, j, c, a, b in product(*map(range, (*O.shape, C, k, length))):
        O[f, i, j] += Y[c, i + a, j + b] * F[f, c, a, b]
        J[f, i, j, c, i + a, j + b] = F[f, c, a, b]
    return O, J


def compared(Y: Tensor, F: Tensor, G: Tensor) -> tuple[dict[str, float], Tensor, Tensor]:
    """Return the largest absolute error of each equation, and of a filter not turned; O; dL/dY.

    Y: [C, H, W], F: [K, C, k, l], dL/dO = G: [K, h, w].
    """
    Y = Y.clone().requires_grad_()
    O = conv2d(Y[None], F)[0]  # noqa: E741  # the paper's name
    (gradient,) = torch.autograd.grad(O, Y, G)
    sums, J = written_out(Y.detach(), F)
    jacobian: Any = torch.func.jacrev(lambda y: conv2d(y[None], F)[0])(Y.detach())
    map_ = DeconvNet()(Convolution(F, G), Y.detach()[None], [0])[0]
    pairs = {
        "eq30": (O, sums),
        "eq31": (jacobian, J),
        "eq32": (gradient, torch.tensordot(G, J, 3)),
        "eq33": (gradient, full_convolution(G[None], F)[0]),
        "deconvnet": (map_, full_convolution(G.clamp(min=0)[None], F)[0]),
        "unflipped": (gradient, full_convolution(G[None], F.flip(2, 3))[0]),
    }
    return {name: (a - b).abs().max().item() for name, (a, b) in pairs.items()}, O.detach(), gradient


class Figure10(Experiment):
    """Check Eqs. (28) to (33) on an example and on random cases.

    Y, F, G (dL/dO): matrices as lists of rows; random: number of further cases with random sizes and channels.
    """

    def __init__(self, Y: Sequence[Any], F: Sequence[Any], G: Sequence[Any], random: int) -> None:
        self.Y, self.F, self.G = (torch.tensor(rows, dtype=torch.float64) for rows in (Y, F, G))
        self.random = random
        expected = [y - f + 1 for y, f in zip(self.Y.shape, self.F.shape, strict=False)]
        if {self.Y.ndim, self.F.ndim, self.G.ndim} != {2} or min(expected) < 1 or list(self.G.shape) != expected:
            raise UserError(
                "experiment.Y, F and G (dL/dO) must be lists of rows, and G must have the size of Y * F, "
                f"{'x'.join(map(str, expected))}"
            )

    def compute(self, run: Run, task: Task) -> Output:
        errors, O, gradient = compared(self.Y[None], self.F[None, None], self.G[None])  # noqa: E741  # the paper's name
        arrays = {"Y": self.Y, "F": self.F, "O": O[0], "G": self.G, "flipped": self.F.flip(0, 1), "dY": gradient[0]}
        table = [{"case": "the figure's", **errors}]
        generator = torch.Generator().manual_seed(run.config.seed)
        sizes = np.random.default_rng(run.config.seed)
        for i in range(1, self.random + 1):
            C, K, k, length = (int(n) for n in sizes.integers(1, 4, 4))
            H, W = int(sizes.integers(k, 9)), int(sizes.integers(length, 9))
            shapes = ((C, H, W), (K, C, k, length), (K, H - k + 1, W - length + 1))
            Y, F, G = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
            table.append(
                {"case": f"{i}: " + " * ".join("x".join(map(str, s)) for s in shapes[:2]), **compared(Y, F, G)[0]}
            )
        return Output({name: each.numpy() for name, each in arrays.items()}, {"table": table})

    def claims(self, results: Results) -> list[Claim]:
        unflipped = Column(results.rows(), "unflipped", "case")
        return [
            Claim(id_, [Compared(f"largest |{what}|", Column(results.rows(), name, "case"), exactly(0, 1e-12),
                                 null=unflipped, control="the filter not turned")])
            for id_, (name, what) in EQUATIONS.items()
        ]  # fmt: skip

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        titles = {
            "Y": "input $Y$",
            "F": "filter $F$",
            "O": "output\n$O = Y * F$",
            "G": "arriving\n$\\partial L / \\partial O$",
            "flipped": "filter turned\nby 180°",
            "dY": "leaving\n$\\partial L / \\partial Y$",
        }
        worst = max(row[name] for row in results.rows() for name, _ in EQUATIONS.values())
        caption = [
            "A convolution neuron, forward (left three) and backward: the gradient that leaves it is the full convolution of "
            "the one that arrives with the filter turned by 180 degrees, Eqs. (28) to (33)",
            f"Largest error of any equation over {len(results.rows())} cases in float64: {worst:.1e}",
        ]
        figure, axes = plot(PAGE_WIDTH, 1.75, caption, columns=len(titles))
        with styled():
            for each, (name, title) in zip(axes, titles.items(), strict=True):
                draw_matrix(each, results.arrays[name], title, float(np.abs(results.arrays[name]).max()) or 1.0)
        return {"figure": figure}
