"""zhou2018, Figure 8 and Section 2.1 (after Goodfellow et al. 2013): functions that a maxout unit can represent, and learns.

    h(x) = max_i (w_i x + b_i)        ReLU: 0, x     absolute value: -x, x     convex f: its tangents at k points

A unit's tangents at k equal steps d apart lie below a convex function by at most d/4 times the change of its slope from one
point to the next. Units are trained from random weights, by the mean square error on [-1, 1]. No unit of 5 pieces is
nearer to x^2 than 0.02.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from vis.claims import Claim, Column, Compared, below, exactly
from vis.figures.layout import plot, styled
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results

FUNCTIONS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {  # pieces in Figure 8, and the function
    "ReLU": (2, torch.relu),
    "absolute value": (2, torch.abs),
    "quadratic": (5, torch.square),
}
LEARNT = {"ReLU": below(0.02, 0.1), "absolute value": below(0.02, 0.1), "quadratic": below(0.05, 0.1)}
X = torch.linspace(-1, 1, 401, dtype=torch.float64)


def maxout(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Evaluate Eq. (20) for one input, at x [n]: [n], for weights and biases [k]."""
    return (x[:, None] * w + b).amax(1)


def learn(function: Callable[[Tensor], Tensor], k: int, seed: int, steps: int) -> tuple[Tensor, Tensor]:
    """Train a maxout unit of k pieces on [-1, 1] from random weights by Adam; return its weights and biases [k]."""
    start = torch.randn(2, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w, b = (each.clone().requires_grad_(True) for each in start)
    optimiser = torch.optim.Adam([w, b], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        F.mse_loss(maxout(X, w, b), function(X)).backward()
        optimiser.step()
        schedule.step()
    return w.detach(), b.detach()


def convex_functions(seed: int) -> dict[str, Tensor]:
    """Return a smooth and a kinked random convex function on a fine grid [4001], scaled to a slope of at most 1."""
    generator, x = torch.Generator().manual_seed(seed), torch.linspace(-1, 1, 4001, dtype=torch.float64)
    w, b, c = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    smooth = torch.logsumexp(4 * x[:, None] * w + b, 1) + (c.abs() * (x[:, None] - b) ** 2).sum(1)
    kinked = maxout(x, w, b) + (c.abs() * (x[:, None] - b / 2).abs()).sum(1)
    return {name: f / (f.diff() / x.diff()).abs().max() for name, f in (("smooth", smooth), ("kinked", kinked))}


def by_tangents(f: Tensor, k: int) -> float:
    """Return the largest error of a maxout unit made of k tangents to a convex function f [4001] on [-1, 1]."""
    x = torch.linspace(-1, 1, len(f), dtype=torch.float64)
    slopes = torch.cat([f.diff() / x.diff(), f[-1:] * 0])
    slopes[-1] = slopes[-2]
    at = torch.linspace(0, len(f) - 1, k).round().long()
    return float((f - maxout(x, slopes[at], f[at] - slopes[at] * x[at])).abs().max())


def of_a_concave(f: Tensor) -> float:
    """Return the error of the best maxout unit for the concave function -f [n]: a line, halfway above its chord."""
    chord = torch.linspace(float(f[0]), float(f[-1]), len(f), dtype=torch.float64)
    return float((chord - f).max() / 2)


def poolings(seed: int) -> dict[str, float]:
    """Compare max-pooling with maxout and with linear functions, in float64, on the output of a random convolution.

    maxout: largest difference of maxout over 4 channels, pooled over 2x2, from one maximum over both. mean: with the mean over
    channels in its place. second: largest second difference of a pooled output along a line on which no maximum changes
    place. squared: the same of the squared convolution.
    """
    generator = torch.Generator().manual_seed(seed)
    x, direction = torch.randn(2, 1, 3, 12, 12, generator=generator, dtype=torch.float64)
    weight = torch.randn(8, 3, 3, 3, generator=generator, dtype=torch.float64)
    z = F.conv2d(x, weight)
    groups = z.view(1, 2, 4, *z.shape[2:])
    once = F.max_pool3d(groups, (4, 2, 2))[:, :, 0]
    found = {"maxout": float((F.max_pool2d(groups.amax(2), 2) - once).abs().max())}
    found["mean"] = float((F.max_pool2d(groups.mean(2), 2) - once).abs().max())
    outputs = [F.conv2d(x + t * direction, weight) for t in (-0.01, 0.0, 0.01)]
    for name, of in (("second", outputs), ("squared", [z.square() for z in outputs])):
        (a, i), (b, j), (c, k) = (F.max_pool2d(each, 2, return_indices=True) for each in of)
        found[name] = float((a - 2 * b + c)[(i == j) & (j == k)].abs().max())
    return found


class Figure8(Experiment):
    """Measure what maxout units learn and represent. pieces: numbers of tangents to convex functions; steps: of a training."""

    def __init__(self, pieces: Sequence[int], steps: int) -> None:
        self.pieces, self.steps = pieces, steps

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed} for seed in run.seeds]

    def compute(self, run: Run, task: Task) -> Output:
        seed = task["seed"]
        output = Output(tables={"table": [], "convex": [], "poolings": [{"seed": seed, **poolings(seed)}]})
        for name, (pieces, function) in FUNCTIONS.items():
            for k in (1, pieces):
                w, b = learn(function, k, seed, self.steps)
                error = float((maxout(X, w, b) - function(X)).abs().max())
                output.tables["table"].append({"seed": seed, "function": name, "pieces": k, "error": error})
                output.arrays[f"{seed}/{name}/{k}"] = torch.stack([w, b]).numpy()
        for kind, f in convex_functions(seed).items():
            row = {"seed": seed, "function": kind, "concave": of_a_concave(f)}
            output.tables["convex"] += [row | {"pieces": k, "error": by_tangents(f, k)} for k in self.pieces]
        return output

    def claims(self, results: Results) -> list[Claim]:
        learnt = [
            Compared(
                f"largest error on [-1, 1] after training, {name}, {k} pieces",
                Column(results.rows(function=name, pieces=k), "error", "seed"), LEARNT[name],
                null=Column(results.rows(function=name, pieces=1), "error", "seed"), control="a unit of one piece",
            )
            for name, (k, _) in FUNCTIONS.items()
        ]  # fmt: skip
        most, each = max(self.pieces), ("seed", "function")
        of_all = results.rows("convex", pieces=most)
        convex = Compared(
            f"largest error of {most} tangents to random convex functions of slope 1", Column(of_all, "error", each),
            exactly(0, within=0.01), null=Column(of_all, "concave", each), control="the best unit for the concave function -f",
        )  # fmt: skip
        pooled = results.rows("poolings")
        linear = Compared(
            "largest second difference along lines where no maximum changes place", Column(pooled, "second", "seed"),
            exactly(0, within=1e-12), null=Column(pooled, "squared", "seed"), control="the square of the convolution",
        )  # fmt: skip
        equal = Compared(
            "maxout, then max-pooling - one maximum over channels and places", Column(pooled, "maxout", "seed"),
            exactly(0), null=Column(pooled, "mean", "seed"), control="the mean over channels in place of their maximum",
        )  # fmt: skip
        return [
            Claim("Z-2.1-e", [linear]), Claim("Z-2.1-i", [convex]), Claim("Z-2.1-j", learnt), Claim("Z-2.1-k", [equal]),
        ]  # fmt: skip

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        seeds = list(dict.fromkeys(row["seed"] for row in results.rows()))
        caption = [
            f"Figure 8: maxout units of one input with 2, 2 and 5 linear pieces (gray), trained from random weights {len(seeds)} "
            "times to be a ReLU, an absolute value and a quadratic function (blue). Black: the training with the smallest error; "
            "under each: the largest error on [-1, 1], median and range over the trainings",
        ]
        figure, panels = plot(6.9, 2.2, caption, columns=3)
        with styled():
            for axes, (name, (k, function)) in zip(panels, FUNCTIONS.items(), strict=True):
                rows = sorted(results.rows(function=name, pieces=k), key=lambda row: row["error"])
                w, b = map(torch.from_numpy, results.arrays[f"{rows[0]['seed']}/{name}/{k}"])
                errors = [row["error"] for row in rows]
                axes.plot(X, X[:, None] * w + b, color="0.7", linewidth=0.7, linestyle="--")
                axes.plot(X, function(X), color="tab:blue", linewidth=2.4, alpha=0.5)
                axes.plot(X, maxout(X, w, b), color="black")
                text = f"x\nerror {np.median(errors):.2g} ({min(errors):.2g} to {max(errors):.2g})"
                axes.set(title=name, ylim=(-0.5, 1.1), xlabel=text)
        return {"figure": figure}
