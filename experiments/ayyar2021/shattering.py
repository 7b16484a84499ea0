"""ayyar2021, section 7: gradient shattering, in the set-up of Balduzzi et al. 2017 (Figures 1 and 2).

"the depth of the layers increased the gradients [...] progressively resembled white noise". The gradient df/dx of random
networks with one input and one output, at evenly spaced x, and its autocorrelation:

    plain      x_l = W_l ReLU(x_{l-1} - mean)                                    mean-centred
    residual   x_l = x_{l-1} + beta W_l ReLU(BN(x_{l-1}))                        their Eq. (2), alpha = 1

W is drawn by He's normal initialisation. Means and deviations are taken of each neuron over all x and are constants for the
gradient, so that f is a function of one x. White noise and brown noise (its running sum) are the two extremes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vis.errors import UserError
from vis.figures.layout import PAGE_WIDTH, plot, styled
from vis.oldclaims import POSITIVE, Claim, Criterion, departures, interval, mean, paper_and_here
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

NOISE = "the depth of the layers increased the gradients [...] progressively resembled white noise"
RESIDUAL = "the gradients in architectures with skip-connections are far more resistant to shattering"
PAPER = {"depths": [2, 4, 10, 24, 50], "width": 200, "beta": 0.1, "points": 256, "lags": 15}

WHITE = Criterion(
    "95% interval of the mean within 0.05 of 0", lambda values: max(map(abs, interval(values))) < 0.05, least=2
)


def gradient(depth: int, residual: bool, width: int, beta: float, x: Tensor, generator: torch.Generator) -> Tensor:
    """Return df/dx [n] at x [n] for a random network with `depth` hidden layers of `width` ReLUs."""

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, dtype=x.dtype, generator=generator) * (2 / columns) ** 0.5

    x = x.detach().requires_grad_(True)
    h = x[:, None] @ normal(width, 1).T
    for _ in range(depth):
        a = h - h.mean(0).detach()
        if residual:
            h = h + beta * (a / h.std(0, correction=0).detach()).relu() @ normal(width, width).T
        else:
            h = a.relu() @ normal(width, width).T
    return torch.autograd.grad((h @ normal(1, width).T).sum(), x)[0]


def autocorrelation(g: Tensor, lags: int) -> Tensor:
    """Return sum_i (g_i - m) (g_{i+k} - m) / sum_i (g_i - m)^2 of a signal [n] for k = 0 ... lags: [lags + 1]."""
    g = g - g.mean()
    return torch.stack([(g[: len(g) - k] * g[k:]).sum() for k in range(lags + 1)]) / g.square().sum()


def _less(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [p - q for p, q in zip(a, b, strict=True)]


class Shattering(Experiment):
    """Measure the autocorrelation of gradients of random networks.

    depths: numbers of hidden layers, rising; networks: number of each kind and depth; points: number of x in [-2, 2];
    lags: number of lags of the autocorrelation.
    """

    metrics = ("correlation",)
    series = "kind"

    def __init__(self, depths: Sequence[int], networks: int, width: int, beta: float, points: int, lags: int) -> None:
        if len(depths) < 2 or sorted(set(depths)) != list(depths) or depths[0] < 1:
            raise UserError("experiment.depths must be two or more rising numbers, from 1")
        if not 0 < lags < points:
            raise UserError("experiment.lags must lie between 1 and experiment.points - 1")
        self.depths, self.networks, self.width, self.beta = list(depths), networks, width, beta
        self.points, self.lags = points, lags

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"network": i} for i in range(self.networks)]

    def compute(self, run: Run, task: Task) -> Output:
        number, output = task["network"], Output(tables={"table": []})
        generator = torch.Generator().manual_seed(1000 * run.config.seed + number)
        x = torch.linspace(-2, 2, self.points, dtype=torch.float64)
        noise = torch.randn(self.points, dtype=torch.float64, generator=generator)
        signals = {("white noise", 0): noise, ("brown noise", 0): noise.cumsum(0)}
        for depth in self.depths:
            for kind in ("plain", "residual"):
                signals[kind, depth] = gradient(depth, kind == "residual", self.width, self.beta, x, generator)
        for (kind, depth), g in signals.items():
            found = autocorrelation(g, self.lags)
            row = {"kind": kind, "depth": depth, "network": number, "correlation": found[1:].mean().item()}
            output.tables["table"].append(row | {"autocorrelation": found.tolist()})
            if not number:
                output.arrays[f"{kind}/{depth}"] = g.numpy()
        return output

    def _values(self, results: Results, kind: str, depth: int) -> list[float]:
        return [row["correlation"] for row in results.rows(kind=kind, depth=depth)]

    def claims(self, results: Results) -> list[Claim]:
        first, last = self.depths[0], self.depths[-1]
        plain, deep, residual = (
            self._values(results, *which) for which in (("plain", first), ("plain", last), ("residual", last))
        )
        metric = f"autocorrelation of df/dx, mean of the lags 1 to {self.lags}"
        reason = departures(results.config.experiment, PAPER)
        falls = Claim(
            "falls",
            NOISE,
            source="Section 7",
            metric=f"{metric}, plain, {first} layers - {last} layers",
            criterion=POSITIVE,
            values=_less(plain, deep),
        )
        white = Claim(
            "white",
            NOISE,
            source="Section 7",
            metric=f"{metric}, plain, {last} layers; white noise has 0",
            criterion=WHITE,
            values=deep,
        )
        skip = Claim(
            "residual",
            RESIDUAL,
            source="Balduzzi et al. 2017",
            metric=f"{metric}, {last} layers, residual - plain",
            criterion=POSITIVE,
            values=_less(residual, deep),
        )
        return paper_and_here([falls, white], reason) + paper_and_here([skip], reason)

    def summaries(self, results: Results) -> dict[str, Rows]:
        rows: Rows = []
        for kind, depth in dict.fromkeys((row["kind"], row["depth"]) for row in results.rows()):
            values = self._values(results, kind, depth)
            low, high = interval(values)
            rows.append({"kind": kind, "layers": depth or None, "mean": mean(values), "low": low, "high": high})
        return {"summary": rows}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        first, last = self.depths[0], self.depths[-1]
        shown = {
            f"Plain, {first} layers": f"plain/{first}",
            f"Plain, {last} layers": f"plain/{last}",
            f"Residual, {last} layers": f"residual/{last}",
            "White noise": "white noise/0",
            "Brown noise": "brown noise/0",
        }
        about = f"{self.width} ReLUs a layer, random weights, {self.points} points; residual: batch norm, beta = {self.beta:g}"
        signals, axes = plot(
            PAGE_WIDTH, 1.5, ["df/dx of random networks of one input x, one network each", about], len(shown)
        )
        x = np.linspace(-2, 2, self.points)
        with styled():
            for axis, (title, key) in zip(axes, shown.items(), strict=True):
                axis.plot(x, results.arrays[key], linewidth=0.6, color="C7" if "noise" in key else "C0")
                axis.set(title=title, xlabel="x", yticks=[])
        caption = [
            f"Autocorrelation of df/dx: mean of {self.networks} random networks, plain (solid) and residual (dashed); "
            "dotted: white noise (below) and brown noise",
            f"Right: its mean over the lags 1 to {self.lags}, with the 95 % interval over networks",
            about,
        ]
        figure, (curves, falls) = plot(PAGE_WIDTH, 2.9, caption, columns=2)
        with styled():
            for j, depth in enumerate(self.depths):
                for kind, line in (("plain", "-"), ("residual", "--")):
                    curve = np.mean([r["autocorrelation"] for r in results.rows(kind=kind, depth=depth)], axis=0)
                    curves.plot(curve, line, color=f"C{j}", label="" if kind == "residual" else str(depth), linewidth=1)
            for kind, shade in (("white noise", "0.6"), ("brown noise", "0.3")):
                curve = np.mean([r["autocorrelation"] for r in results.rows(kind=kind)], axis=0)
                curves.plot(curve, ":", color=shade, linewidth=1)
                falls.axhline(curve[1:].mean(), color=shade, linestyle=":", linewidth=1)
            curves.set(xlabel="lag", ylabel="autocorrelation")
            curves.legend(title="hidden layers", ncols=len(self.depths), loc="lower center", bbox_to_anchor=(0.5, 1))
            for j, kind in enumerate(("plain", "residual")):
                values = [self._values(results, kind, depth) for depth in self.depths]
                ends = [interval(v) if len(v) > 1 else (v[0], v[0]) for v in values]
                middle = [mean(v) for v in values]
                bars = [[m - low for m, (low, _) in zip(middle, ends, strict=True)],
                        [high - m for m, (_, high) in zip(middle, ends, strict=True)]]  # fmt: skip
                falls.errorbar(self.depths, middle, bars, fmt="o-", color=f"C{j}", capsize=2, label=kind)
            falls.set(xlabel="hidden layers", ylabel="mean autocorrelation")
            falls.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
        return {"figure": figure, "gradients": signals}
