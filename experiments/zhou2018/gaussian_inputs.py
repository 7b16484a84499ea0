"""zhou2018, Eqs. (18), (19), (22) to (31): the output of a ReLU or a maxout unit for a Gaussian input, and for its mean.

For x from N(mu, sigma^2), with phi and Phi the standard normal's density and distribution function and r = |mu| / sigma:

    |E[ReLU(x)] - ReLU(E[x])| = sigma (phi(r) - r Phi(-r))       = sigma / sqrt(2 pi) at mu = 0 (18), -> 0 for large r (19)

For a maxout unit h(x) = max(w_i^T x + b_i) of k pieces with means mu_i and standard deviations sigma_i, and any t > 0:

    0 <= E[h(x)] - h(E[x]) <= log(k) / t + t max(sigma_i)^2 / 2             (22)-(28), (31) with t = 1

"Without loss of generality we can set t = 1", but that leaves log k where nothing varies. The best t gives
sqrt(2 log k) max(sigma_i), which goes to 0 with the variance, as the conclusion from Eq. 31 needs.
"""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from matplotlib.figure import Figure

from vis.figures.layout import plot, styled
from vis.oldclaims import Claim, Criterion, below
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

LIMIT = "if |mu|/sigma is large, |E[ReLU(x)] - ReLU(E[x])| is about 0"
BOUND = "the approximation error is at most log k + max(sigma_1^2, ..., sigma_k^2) / 2"
TIGHT = "Beyond the paper: with t = sqrt(2 log k) / max(sigma_i) the error is at most sqrt(2 log k) max(sigma_i)."
LOOSE = "Beyond the paper: with t = 1 the bound does not go to 0 with the variance, the error does."


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


class GaussianInputs(Experiment):
    """Measure the errors of both units.

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
                numbers = {
                    "closed": relu_error(mu, sigma) / sigma,
                    "error": relu_error_by_quadrature(mu, sigma) / sigma,
                }
                relu.append({"seed": task["seed"], "ratio": ratio, "sign": float(np.sign(mu)), **numbers})
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
                error = float((scale * noise @ W.T + W @ mean + b).max(1).mean() - (W @ mean + b).max())
                sigma = scale * float(np.linalg.norm(W, axis=1).max())
                maxout.append({"seed": task["seed"], "k": k, "tied": tied, "sigma": sigma, "error": error})
        return Output(tables={"table": relu, "maxout": maxout})

    def claims(self, results: Results) -> list[Claim]:
        relu, maxout = results.rows(), results.rows("maxout")
        half = 1 / math.sqrt(2 * math.pi)
        smallest = min(self.scales)
        least = [r for r in maxout if r["sigma"] <= 2 * smallest and r["k"] > 1]
        return [
            Claim(
                "closed_form",
                "The closed form of both against quadrature",
                source="Eqs. 18, 19",
                metric="difference over sigma",
                criterion=below(1e-12, each=True),
                values=[abs(r["closed"] - r["error"]) for r in relu],
            ),
            Claim(
                "eq18",
                "if mu = 0, |E[ReLU(x)] - ReLU(E[x])| = sigma / sqrt(2 pi)",
                source="Eq. 18",
                metric="difference over sigma",
                criterion=below(1e-12, each=True),
                values=[abs(r["error"] - half) for r in relu if r["ratio"] == 0],
            ),
            Claim(
                "eq19",
                LIMIT,
                source="Eq. 19",
                metric="error over sigma at |mu|/sigma of 3 and more",
                criterion=below(1e-3, each=True),
                values=[r["error"] for r in relu if r["ratio"] >= 3],
            ),
            Claim(
                "eq24",
                "E[h(x)] >= max(mu_1, ..., mu_k)",
                source="Eqs. 22-24",
                metric="E[h(x)] - h(E[x])",
                criterion=Criterion("each >= 0 but for rounding", lambda values: min(values) > -1e-12),
                values=[r["error"] for r in maxout],
            ),
            Claim(
                "eq31",
                BOUND,
                source="Eq. 31",
                metric="error over the bound",
                criterion=below(1, each=True),
                values=[r["error"] / (math.log(r["k"]) + r["sigma"] ** 2 / 2) for r in maxout],
            ),
            Claim(
                "eq28_best_t",
                TIGHT,
                source="Eq. 28",
                metric="error over the bound",
                criterion=below(1, each=True),
                values=[r["error"] / (math.sqrt(2 * math.log(r["k"])) * r["sigma"]) for r in maxout if r["k"] > 1],
                origin="project",
            ),
            Claim(
                "eq31_loose",
                LOOSE,
                source="Eq. 31",
                metric=f"error over the bound at the smallest scale, {smallest:g}",
                criterion=below(0.05, each=True),
                values=[r["error"] / (math.log(r["k"]) + r["sigma"] ** 2 / 2) for r in least],
                origin="project",
            ),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        caption = [
            "Left: a ReLU with a Gaussian input, the expectation of its output against its output for the expectation, closed "
            "form (line) and quadrature (points); dashed: 1/√(2π), Eq. 18",
            f"Right: random maxout units of k pieces on {self.dimension} Gaussian inputs ({self.samples} samples), pieces of one "
            "mean (crosses) and of several (points); the bound of Eq. 31, t = 1 (dashed), and of Eq. 28 with the best t (lines)",
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
