"""zhou2018, Eqs. (16), (18) to (31): pushing the expectation of a Gaussian input into linear, ReLU and maxout units.

    E[f(x)] = f(E[x])    for affine f: convolutions, dense layers, batch normalisation with fixed statistics           (16)

For x from N(mu, sigma^2), with phi and Phi the standard normal's density and distribution function and r = |mu| / sigma:

    |E[ReLU(x)] - ReLU(E[x])| = sigma (phi(r) - r Phi(-r))       = sigma / sqrt(2 pi) at mu = 0 (18), -> 0 for large r (19)

For a maxout unit h(x) = max(w_i^T x + b_i) of k pieces with means mu_i and standard deviations sigma_i, and any t > 0:

    0 <= E[h(x)] - h(E[x]) <= log(k) / t + t max(sigma_i)^2 / 2             (22)-(28), (31) with t = 1

The paper sets t = 1 "without loss of generality", but that leaves log k where nothing varies. The best t gives
sqrt(2 log k) max(sigma_i), which goes to 0 with the variance, as the conclusion from Eq. (31) needs. Eq. (26) is printed
without the expectation on its left side, so it equates a random variable with a number.
"""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from vis.claims import Claim, Column, Compared, each_above, exactly
from vis.figures.layout import plot, styled
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

HALF = 1 / math.sqrt(2 * math.pi)
ROUNDING = 1e-12
MEANS, SIGMAS = (0.0, 0.1, 1.0), (1.0, 0.1, 0.01, 0.001)  # of the ReLU's input, whose error falls with sigma


def relu_error(mu: float, sigma: float) -> float:
    """Return |E[ReLU(x)] - ReLU(mu)| in closed form."""
    r = abs(mu) / sigma
    return sigma * (math.exp(-r * r / 2) / math.sqrt(2 * math.pi) - r * math.erfc(r / math.sqrt(2)) / 2)


def relu_error_by_quadrature(mu: float, sigma: float) -> float:
    """Return the same by Gauss-Legendre quadrature on both sides of the kink, up to 12 standard deviations."""
    nodes, weights = np.polynomial.legendre.leggauss(200)

    def integral(low: float, high: float) -> float:
        x = (low + high) / 2 + (high - low) / 2 * nodes
        density = np.exp(-(((x - mu) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))
        return float((high - low) / 2 * (weights * (np.maximum(x, 0) - max(mu, 0)) * density).sum())

    low, high = mu - 12 * sigma, mu + 12 * sigma
    kink = min(max(0.0, low), high)
    return abs(
        sum(integral(a, b) for a, b in ((low, min(mu, kink)), (min(mu, kink), max(mu, kink)), (max(mu, kink), high)))
    )


def pushed_through_layers(seed: int) -> Rows:
    """Return |E[f(x)] - f(E[x])| over the largest |f|, for layers f and 20 Gaussian contents x of a window, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = normal(1, 3, 12, 12).repeat(20, 1, 1, 1)
    x[:, :, 3:7, 3:7] = normal(20, 3, 4, 4)
    layers: dict[str, nn.Module] = {
        "convolution": nn.Conv2d(3, 8, 3), "dense": nn.Sequential(nn.Flatten(), nn.Linear(432, 8)),
        "batch normalisation": nn.BatchNorm2d(3), "batch normalisation in training": nn.BatchNorm2d(3), "ReLU": nn.ReLU(),
    }  # fmt: skip
    rows: Rows = []
    for name, layer in layers.items():
        layer.double().train(name.endswith("training"))
        with torch.no_grad():
            for values in (*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())):
                values.copy_(normal(*values.shape).abs())
            y, of_mean = layer(x), layer(x.mean(0, keepdim=True))
        rows.append({"seed": seed, "layer": name, "error": float((y.mean(0) - of_mean[0]).abs().max() / y.abs().max())})
    return rows


class GaussianInputs(Experiment):
    """Measure the errors of linear layers, ReLUs and maxout units.

    ratios: |mu| / sigma; pieces: the k; scales: standard deviations of a maxout's input; dimension, samples: its size and draws.
    """

    def __init__(
        self, ratios: Sequence[float], pieces: Sequence[int], scales: Sequence[float], dimension: int, samples: int
    ) -> None:
        self.ratios, self.pieces, self.scales = ratios, pieces, scales
        self.dimension, self.samples = dimension, samples

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed} for seed in run.seeds]

    def compute(self, run: Run, task: Task) -> Output:
        random = np.random.default_rng(task["seed"])
        relu: Rows = []
        for ratio in self.ratios:
            sigma = float(random.uniform(0.1, 10))
            for mu in dict.fromkeys((ratio * sigma, -ratio * sigma)):
                error = relu_error_by_quadrature(mu, sigma) / sigma
                relu.append({"seed": task["seed"], "ratio": ratio, "sign": float(np.sign(mu)), "error": error})
        maxout: Rows = []
        for k, tied in product(self.pieces, (False, True)):
            W, b = (
                random.standard_normal((k, self.dimension)) / math.sqrt(self.dimension),
                random.standard_normal(k) / 10,
            )
            mean, noise = random.standard_normal(self.dimension), random.standard_normal((self.samples, self.dimension))
            noise -= noise.mean(0)  # so that the samples' mean is E[x], and Jensen's inequality exact
            if tied:  # all pieces have the mean 0: the error is largest
                mean, b = 0 * mean, 0 * b
            for scale in self.scales:
                pieces, at_mean = scale * noise @ W.T + W @ mean + b, W @ mean + b
                sigma = scale * float(np.linalg.norm(W, axis=1).max())
                row = {"seed": task["seed"], "k": k, "tied": tied, "scale": scale, "sigma": sigma}
                row |= {"error": float(pieces.max(1).mean() - at_mean.max())}
                row |= {"of the minimum": float(pieces.min(1).mean() - at_mean.min())}
                row |= {"bound": math.log(k) + sigma**2 / 2, "without log k": sigma**2 / 2}
                maxout.append(row | {"best t": math.sqrt(2 * math.log(k)) * sigma, "of the square": sigma**2})
        falling: Rows = [
            {"seed": task["seed"], "mu": mu, "sigma": sigma, "error": relu_error_by_quadrature(mu, sigma)}
            for mu, sigma in product(MEANS, SIGMAS)
        ]
        sigma = float(random.uniform(0.1, 1))
        x, expected = sigma * random.standard_normal(100), math.exp(sigma**2 / 2)
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        mgf = float(weights @ np.exp(sigma * nodes)) / math.sqrt(2 * math.pi)
        moments: Rows = [{"seed": task["seed"], "printed": float(np.abs(np.exp(x) / expected - 1).max())}]
        moments[0]["with E"] = abs(mgf / expected - 1)
        tables = {"table": relu, "maxout": maxout, "falling": falling, "moments": moments}
        return Output(tables=tables | {"layers": pushed_through_layers(task["seed"])})

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the bounds of Eq. (31) and of Eq. (28) with the best t, each over the other, and over its value at sigma = 1."""
        rows: Rows = []
        for r in results.rows("maxout", tied=False):
            if r["k"] > 1:
                row = {
                    "seed": r["seed"],
                    "k": r["k"],
                    "scale": r["scale"],
                    "t = 1 over best t": r["bound"] / r["best t"],
                }
                rows.append(row | {"Eq. 31": r["bound"] / (math.log(r["k"]) + 0.5), "Eq. 28": r["sigma"]})
        return {"bounds": rows}

    def claims(self, results: Results) -> list[Claim]:
        relu, layers, falling = results.rows(), results.rows("layers"), results.rows("falling")
        least = [r for r in results.rows("bounds") if r["scale"] == min(self.scales)]
        several = [r for r in results.rows("maxout") if r["k"] > 1]
        widest = [r for r in several if r["scale"] == max(self.scales)]

        def unit(name: str, of: Rows = several) -> Column:
            return Column(of, name, ("seed", "k", "tied", "scale"))

        def bound(name: str, of: Rows) -> Column:
            return Column(of, name, ("seed", "k", "scale"))

        def error(of: Rows) -> Column:
            return Column(of, "error", ("seed", "ratio", "sign"))

        affine = [r for r in layers if r["layer"] in ("convolution", "dense", "batch normalisation")]
        linear = Compared(
            "|E f(x) - f(E x)| over the largest |f|", Column(affine, "error", ("seed", "layer")),
            exactly(0, within=ROUNDING), null=Column([r for r in layers if r not in affine], "error", ("seed", "layer")),
            control="a ReLU, and batch normalisation with the statistics of the batch",
        )  # fmt: skip
        at = {ratio: error([r for r in relu if r["ratio"] == ratio]) for ratio in self.ratios}
        eq18 = Compared(
            "error over sigma, mu = 0", at[0], exactly(HALF, within=ROUNDING), null=at[1], control="|mu| = sigma"
        )
        large = error([r for r in relu if r["ratio"] >= 3])
        eq19 = Compared(
            "error over sigma, |mu| of 3 sigma and more", large, exactly(0, within=1e-3), null=at[0], control="mu = 0"
        )
        by_sigma = [Column([r for r in falling if r["sigma"] == s], "error", "mu") for s in (SIGMAS[-1], SIGMAS[0])]
        falls = Compared(
            f"error at sigma = {SIGMAS[-1]}, for mu of {MEANS}", by_sigma[0], exactly(0, within=1e-3),
            null=by_sigma[1], control="sigma = 1",
        )  # fmt: skip
        jensen = Compared(
            "E[h(x)] - max(mu)", unit("error"), each_above(-ROUNDING),
            null=unit("of the minimum"), control="the minimum of the pieces, a concave unit",
        )  # fmt: skip
        moments = results.rows("moments")
        eq26 = Compared(
            "largest |left / right - 1| of Eq. 26 over draws of x, as printed, without E",
            Column(moments, "printed", "seed"), exactly(0, within=1e-9),
            null=Column(moments, "with E", "seed"), control="with E on the left side, by quadrature: equal",
        )  # fmt: skip
        general = Compared(
            "bound for t = 1 over the bound for the best t", bound("t = 1 over best t", results.rows("bounds")),
            exactly(1, within=ROUNDING), null=1.0, control="max(sigma) = sqrt(2 log k), for which t = 1 is best: equal",
        )  # fmt: skip
        eq31 = Compared(
            "bound - error", unit("bound") - unit("error"), each_above(0),
            null=unit("without log k") - unit("error"), control="max(sigma)^2 / 2 alone, without log k",
        )  # fmt: skip
        vanishes = Compared(
            f"bound of Eq. 31 at inputs of {min(self.scales)} over its value at sigma = 1", bound("Eq. 31", least),
            exactly(0, within=0.05), null=bound("Eq. 28", least), control="Eq. 28 with the best t, which does vanish",
        )  # fmt: skip
        small = Compared(
            "sqrt(2 log k) max(sigma) - error", unit("best t") - unit("error"), each_above(0),
            null=unit("best t", widest) - unit("of the square", widest), control=f"a square, at inputs of {max(self.scales)}",
        )  # fmt: skip
        return [
            Claim("Z-2.1-d", [linear]),
            Claim("Z-2.1-f", [eq18], paper="σ/√(2π)"),
            Claim("Z-2.1-g", [eq19]),
            Claim("Z-2.1-h", [falls]),
            Claim("Z-2.1-l", [jensen]),
            Claim("Z-2.1-m", [eq26]),
            Claim("Z-2.1-n", [general]),
            Claim("Z-2.1-o", [eq31]),
            Claim("Z-2.1-p", [vanishes]),
            Claim("Z-2.1-q", [small]),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        caption = [
            "Left: a ReLU with a Gaussian input, the expectation of its output against its output for the expectation, closed "
            "form (line) and quadrature (points); dashed: 1/√(2π), Eq. 18",
            f"Right: random maxout units of k pieces on {self.dimension} Gaussian inputs ({self.samples} samples), pieces of one "
            "mean (crosses) and of several (points); the bound of Eq. 31, t = 1 (dashed), and of Eq. 28 with the best t (lines)",
            "Eq. 18 needs μ = 0 and Eq. 19 a large |μ| / σ, so no input meets both. Misprints: Eq. 26 lacks E on its left side, "
            "Eq. 29 ends at x₂ for xₖ",
        ]
        figure, (left, right) = plot(6.9, 2.5, caption, columns=2)
        with styled():
            r = np.linspace(0, max(self.ratios), 200)
            left.plot(r, [max(relu_error(x, 1), 1e-18) for x in r], color="black")
            left.plot([x["ratio"] for x in results.rows()], [max(x["error"], 1e-18) for x in results.rows()], ".")
            left.axhline(1 / math.sqrt(2 * math.pi), color="0.5", linewidth=0.8, linestyle="--")
            left.set(yscale="log", ylim=(1e-10, 1), xlabel="|μ| / σ", ylabel="error / σ")
            for i, k in enumerate(self.pieces):
                if k == 1:
                    continue
                rows = sorted(results.rows("maxout", k=k), key=lambda row: row["sigma"])
                s = np.array([row["sigma"] for row in rows])
                for tied, marker in ((False, "."), (True, "x")):
                    points = [(row["sigma"], max(row["error"], 1e-9)) for row in rows if row["tied"] == tied]
                    right.plot(*zip(*points, strict=True), marker, color=f"C{i}", linestyle="none")
                right.plot(s, math.log(k) + s**2 / 2, "--", color=f"C{i}", linewidth=0.8)
                right.plot(s, math.sqrt(2 * math.log(k)) * s, color=f"C{i}", linewidth=0.8, label=f"k = {k}")
            right.set(
                xscale="log", yscale="log", ylim=(1e-7, 1e2), xlabel="largest σ of a piece", ylabel="E[h(x)] − h(E[x])"
            )
            right.legend()
        return {"figure": figure}
