"""taimeskhanov2024, Proposition 1: the coefficients of GradCAM in closed form are what autograd computes.

[CNN] is a convolution with V filters, ReLU (its output is B), max-pooling (C) and L dense layers without biases, with ReLUs
between them. The gradient of its output at C_j sums the products of weights along all paths of active units:

    rho_j = sum_{i_1 ... i_L-1} 1[a^(1)_i_1, ..., a^(L-1)_i_L-1 > 0]  W^(1)_i_1,j  W^(2)_i_2,i_1 ... W^(L)_1,i_L-1

and the pooling passes it on to the largest B of each window (9). With h w positions of B and sums over the j of filter v:

    GradCAM    alpha_v     = 1/(h w) sum_j rho_j                          (Proposition 1, any V)
    XGradCAM   alpha_v^(2) = 1/(h w) sum_j rho_j C_j / ||B_v||_1          (Definition 2)
    HiResCAM   alpha_v^(4) = rho_j at the largest B of window j, else 0   (Definition 4, Eq. 9)

"It should be clear that the method we use to compute the weighting coefficients [...] yields the coefficients alpha^(4) for
[HC] and alpha^(2) for [XC]" (appendix A). All in float64, the paths one by one.
"""

from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from vis.claims import Claim, Column, Compared, Rule, exactly
from vis.data import to_pixels
from vis.figures.layout import plot, styled
from vis.methods import HiResCAM, XGradCAM
from vis.methods.forward import Forward
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results

SIDE = 28
CAMS = {"xgradcam": XGradCAM(layer="1"), "hirescam": HiResCAM(layer="1")}  # "1" is the ReLU, whose output is B
TO = 1e-12  # relative, in float64
EXACT = exactly(0, TO)


def cnn(V: int, L: int, kernel: int, pool: int, width: int, seed: int) -> nn.Sequential:
    """Build [CNN] of section 2.1 for 28x28 images: weights from N(0, 1), one output, in float64."""
    positions = ((SIDE - kernel + 1) // pool) ** 2
    widths = [V * positions, *[width] * (L - 1), 1]
    dense: list[nn.Module] = []
    for a, b in pairwise(widths):
        dense += [nn.ReLU(), nn.Linear(a, b, bias=False)]
    net = nn.Sequential(nn.Conv2d(1, V, kernel, bias=False), nn.ReLU(), nn.MaxPool2d(pool), nn.Flatten(), *dense[1:])
    random = torch.Generator().manual_seed(seed)
    net.double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=random)
    return net


def rho(W: Sequence[np.ndarray], c: np.ndarray) -> np.ndarray:
    """Sum over all paths of active units: [d_0], from the weights W^(1) ... W^(L) and C as a vector."""
    active, x = [], c
    for weights in W[:-1]:
        a = weights @ x
        active.append(np.flatnonzero(a > 0))
        x = np.maximum(a, 0)
    total = np.zeros_like(c)
    for path in product(*(a.tolist() for a in active)):
        units = [*path, 0]  # i_L = 1, the only output
        factors = [W[p][units[p], units[p - 1]] for p in range(1, len(W))]
        total += W[0][units[0]] * np.prod(factors)
    return total


def coefficients(net: nn.Sequential, x: Tensor, pool: int) -> dict[str, np.ndarray]:
    """Compute alpha, alpha^(2) [V] and alpha^(4) [V, h, w] in closed form, of an image [1, 28, 28]."""
    with torch.no_grad():
        B = net[1](net[0](x[None]))[0].numpy()
    V, h, w = B.shape
    windows = B.reshape(V, h // pool, pool, w // pool, pool).transpose(0, 1, 3, 2, 4).reshape(V, -1, pool * pool)
    C = windows.max(-1)
    W = [layer.weight.detach().numpy() for layer in net if isinstance(layer, nn.Linear)]
    gradient = rho(W, C.reshape(-1)).reshape(V, -1)
    largest = np.eye(pool * pool)[windows.argmax(-1)] * gradient[..., None]  # the first of equal ones, as autograd does
    spread = largest.reshape(V, h // pool, w // pool, pool, pool).transpose(0, 1, 3, 2, 4).reshape(V, h, w)
    norm = np.abs(B).sum((1, 2))
    return {
        "gradcam": gradient.sum(1) / (h * w),
        "xgradcam": (gradient * C).sum(1) / np.where(norm > 0, norm, 1) / (h * w),
        "hirescam": spread,
    }


def by_autograd(net: nn.Sequential, x: Tensor) -> dict[str, np.ndarray]:
    """Compute the same coefficients by Definitions 1, 2 and 4 from the gradient at B."""
    B = net[1](net[0](x[None])).detach().requires_grad_(True)
    (G,) = torch.autograd.grad(net[2:](B).sum(), B)
    norm = B.detach().abs().sum((2, 3), keepdim=True)
    scaled = B.detach() / torch.where(norm > 0, norm, 1) * G
    return {"gradcam": G.mean((2, 3))[0].numpy(), "xgradcam": scaled.mean((2, 3))[0].numpy(), "hirescam": G[0].numpy()}


def forward_pass(net: nn.Sequential, x: Tensor, kernel: int, pool: int) -> float:
    """Compute f of an image [1, 28, 28] by Eqs. (1) to (3), position by position."""
    F, *W = (layer.weight.detach().numpy() for layer in net if isinstance(layer, nn.Conv2d | nn.Linear))
    xi, n = x[0].numpy(), SIDE - kernel + 1
    A = sum(F[:, 0, p, q, None, None] * xi[p : p + n, q : q + n] for p in range(kernel) for q in range(kernel))
    B = np.maximum(A, 0)
    starts = range(0, n - pool + 1, pool)
    h = np.array([[[b[i : i + pool, j : j + pool].max() for j in starts] for i in starts] for b in B]).reshape(-1)
    for i, weights in enumerate(W):
        h = weights @ (np.maximum(h, 0) if i else h)
    return float(h[0])


def indicators(net: nn.Sequential, x: Tensor, pool: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sum_k D_j,k of each window j as printed (all that equal the maximum), and as autograd has it."""
    B = net[1](net[0](x[None])).detach().requires_grad_(True)
    (D,) = torch.autograd.grad(net[2](B).sum(), B)
    windows, chosen = (nn.functional.unfold(v.transpose(0, 1), pool, stride=pool).detach() for v in (B, D))
    return (windows == windows.amax(1, keepdim=True)).sum(1).numpy(), chosen.sum(1).numpy()


def difference(formula: np.ndarray, value: np.ndarray) -> float:
    """Return the largest absolute difference over the largest absolute value."""
    return float(np.abs(formula - value).max() / (np.abs(value).max() or 1))


class Proposition1(Experiment):
    """Compare the closed forms with autograd and with the maps of the methods.

    filters, layers: the V and L; kernel, pool: k and k'; width: units of the hidden dense layers.
    """

    def __init__(self, filters: Sequence[int], layers: Sequence[int], kernel: int, pool: int, width: int) -> None:
        self.filters, self.layers, self.kernel, self.pool, self.width = filters, layers, kernel, pool, width

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed, "V": V, "L": L} for seed in run.seeds for V in self.filters for L in self.layers]

    def compute(self, run: Run, task: Task) -> Output:
        net = cnn(task["V"], task["L"], self.kernel, self.pool, self.width, task["seed"])
        linear = (layer for layer in net[4:] if isinstance(layer, nn.Linear))
        all_paths = nn.Sequential(*net[:4], *linear)  # active or not
        rows: list[dict[str, Any]] = []
        for i, image in enumerate(run.dataset.names):
            x = to_pixels(run.dataset.read(i), (SIDE, SIDE), 1).double()
            formula, automatic = coefficients(net, x, self.pool), by_autograd(net, x)
            row = {"image": image} | {key: difference(formula[key], automatic[key]) for key in formula}
            with Forward(net, x[None], ["1"]) as forward:
                B, f = forward.layers["1"][0].detach().numpy(), forward.logits.item()
                for key, cam in CAMS.items():
                    alpha = formula[key].reshape(task["V"], *formula[key].shape[1:] or (1, 1))
                    row[f"{key} map"] = difference((alpha * B).sum(0), cam.sum(forward, 0, "1")[0].detach().numpy())
            row["forward"] = abs(forward_pass(net, x, self.kernel, self.pool) - f) / abs(f)
            row["all paths"] = difference(by_autograd(all_paths, x)["gradcam"], automatic["gradcam"])
            printed, autograd = indicators(net, x, self.pool)
            row |= {"printed D": int(printed.max()), "autograd D": float(autograd.max())}
            row["tied windows"] = float((printed > 1).mean())
            rows.append(task | row)
        return Output(tables={"table": rows})

    def claims(self, results: Results) -> list[Claim]:
        rows = results.rows()
        deep = Column([r for r in rows if r["L"] > 1], "all paths", ("seed", "V", "L", "image"))

        def equal(metric: str, name: str, some: Sequence[dict[str, Any]] = rows, rule: Rule = EXACT) -> Compared:
            column = Column(some, name, ("seed", "V", "L", "image"))
            control = "GradCAM's coefficients with all paths, active or not, for L > 1"
            return Compared(metric, column, rule, null=deep, control=control)

        one, more = [r for r in rows if r["V"] == 1], [r for r in rows if r["V"] > 1]
        relative = "largest difference over largest value"
        maps = [equal(f"{CAMS[key].title}'s map: {relative}", f"{key} map") for key in CAMS]
        ones = [
            equal("largest sum of the indicators of a window, as printed", "printed D", rule=exactly(1)),
            equal("the same in autograd", "autograd D", rule=exactly(1)),
        ]
        return [
            Claim("T-2.1-c", [equal("f by the equations against the network's: relative difference", "forward")]),
            Claim("T-P1", [equal(f"GradCAM's coefficient, V = 1: {relative}", "gradcam", one)]),
            Claim("T-P1-b", [equal(f"GradCAM's coefficients, V > 1: {relative}", "gradcam", more)]),
            Claim("T-P1-c", maps),
            Claim("T-C-a", [equal(f"gradient at B by D and rho against autograd: {relative}", "hirescam")]),
            Claim("T-C-b", ones),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows = results.rows()
        tied = np.mean([row["tied windows"] for row in rows])
        caption = [
            "Proposition 1: the coefficients of three CAMs in closed form against automatic differentiation, one point for "
            f"each number of filters V, image and seed ({len(rows)} networks and images)",
            f"[CNN] with weights from N(0, 1), hidden layers of {self.width} units, in float64. Red: the bound of the claims",
            f"In {tied:.0%} of the pooling windows all values are 0, and the printed indicators sum to {self.pool**2}; "
            "autograd takes one of them",
        ]
        figure, (axes,) = plot(4.4, 2.4, caption)
        with styled():
            for k, (key, label) in enumerate((("gradcam", "GradCAM"), *((c, CAMS[c].title) for c in CAMS))):
                places = [self.layers.index(row["L"]) + 0.2 * (k - 1) for row in rows]
                axes.plot(places, [max(row[key], 1e-17) for row in rows], ".", alpha=0.6, label=label)
            axes.axhline(TO, color="tab:red", linewidth=0.8)
            axes.set(yscale="log", ylabel="largest relative difference", xlabel="dense layers L", ylim=(5e-18, 1e-10))
            axes.set_xticks(range(len(self.layers)), self.layers)
            axes.legend(loc="upper left", ncols=3)
        return {"figure": figure}
