"""taimeskhanov2024, Theorem 1: at initialisation GradCAM is positive in expectation where the network sees nothing.

[CNN] with one dense layer W whose lower half is 0; the filters F and the other weights are i.i.d. N(0, tau^2). For a position
(i, j) with patch m of the image and V > 20 filters

    E[GC_ij] >= (V - 20) / sqrt(V) sqrt(h' w' / (16 pi)) tau^2 / (h w) ||m||_2                                  (5)

"Up to the best of our knowledge, there is no closed-form expression for Eq. (12)", E[sqrt(Y)] with Y = sum_q B_q^2. There is
one: K ~ Binomial(V, 1/2) filters are active, and given K, Y is tau^2 ||m||^2 chi^2_K. So

    E[GC_ij] = tau^2 ||m|| sqrt(h' w') / (2 h w sqrt(pi)) 2^-V sum_k C(V, k) sqrt(2) Gamma((k+1)/2) / Gamma(k/2)

Both are compared with a Monte Carlo over whole networks, at positions of the unseen half, and so are the lemmas and equations
of appendices B and D. Deviations from a formula are judged in standard errors of the Monte Carlo.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.special import gammaln
from torch import Tensor

from vis.data import to_pixels
from vis.figures.layout import PAGE_WIDTH, plot, styled
from vis.oldclaims import Claim, above, mean, near_zero
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results

h = w = 28  # of B, for a 28x28 digit padded to 29x29 and a kernel of 2; h' and w' after pooling
h_, w_ = 14, 14
LIVE = h_ * w_ // 2  # weights of W for each filter that are not 0
POSITIONS, CHUNK = 16, 250
SCORE = "Monte Carlo minus formula, in standard errors"
SENTENCE = "expected lower bound on the GradCAM explanation: E[GC] >= (V-20)/sqrt(V) sqrt(h'w'/16pi) tau^2/(hw) ||m||"
EXACT = "Finding: Eq. (12) has a closed form, a mixture of chi distributions over Binomial(V, 1/2) active filters."


def digit(run: Run, i: int) -> Tensor:
    """Return the i-th digit [1, 29, 29] in [0, 1]: 28x28, with a row of zeros below and a column at the right (Figure 3)."""
    return F.pad(to_pixels(run.dataset.read(i), (28, 28), 1), (0, 1, 0, 1))


def unseen_patches(image: Tensor) -> Tensor:
    """Return nonzero patches m [P, 4] of the lower half of the image [1, 29, 29], evenly spread over their norms."""
    patches = F.unfold(image[None].double(), 2)[0].T[h // 2 * w :]
    norms, order = patches.norm(dim=1).sort()
    order = order[norms > 0]
    return patches[order[torch.linspace(0, len(order) - 1, min(POSITIONS, len(order))).round().long()]]


def bound(V: int, norm: float, tau: float) -> float:
    """Return the bound of Eq. (5)."""
    return (V - 20) / math.sqrt(V) * math.sqrt(h_ * w_ / (16 * math.pi)) * tau**2 / (h * w) * norm


def expectation(V: int, norm: float, tau: float) -> float:
    """Return E[GC_ij] in closed form."""
    k = np.arange(1, V + 1)
    binomial = gammaln(V + 1) - gammaln(k + 1) - gammaln(V - k + 1) - V * math.log(2)
    chi = math.sqrt(2) * np.exp(binomial + gammaln((k + 1) / 2) - gammaln(k / 2)).sum()
    return tau**2 * norm * math.sqrt(h_ * w_) / (2 * h * w * math.sqrt(math.pi)) * float(chi)


def networks(
    V: int, patches: Tensor, tau: float, samples: int, random: torch.Generator
) -> Iterator[tuple[Tensor, ...]]:
    """Yield B [n, V, P] at the patches and alpha [n, V] (Proposition 1, L = 1) of random networks, n at a time."""
    for start in range(0, samples, CHUNK):
        n = min(CHUNK, samples - start)
        filters = tau * torch.randn(n, V, 4, generator=random)
        W = tau * torch.randn(n, V, LIVE, generator=random)
        yield (filters.double() @ patches.T).relu(), W.double().sum(-1) / (h * w)


def estimate(values: Tensor) -> tuple[float, float]:
    """Return the mean of independent values and its standard error."""
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def appendix(V: int, patches: Tensor, tau: float, samples: int, random: torch.Generator) -> list[dict[str, Any]]:
    """Return rows for Lemmas 1 to 3 and Eqs. (8), (10) to (13): the formula's value, the measured one and its standard error."""
    rows: list[dict[str, Any]] = []

    def add(what: str, formula: float, values: Tensor) -> None:
        measured, error = estimate(values)
        rows.append({"equation": what, "formula": formula, "measured": measured, "error": error})

    normal = torch.randn(100 * samples, generator=random, dtype=torch.float64)
    for mu, sigma in ((0.0, 1.0), (1.0, 1.0), (-1.0, 2.0), (0.5, 0.3)):
        z = mu / sigma
        Phi, phi = 0.5 * math.erfc(-z / math.sqrt(2)), math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        add(f"Lemma 1, mu {mu:g}, tau {sigma:g}", mu * Phi + sigma * phi, (mu + sigma * normal).relu())
    squared = (tau * normal).relu() ** 2
    add("Lemma 3, mean", tau**2 / 2, squared)
    add("Lemma 3, variance", 5 / 4 * tau**4, (squared - tau**2 / 2) ** 2)

    A = tau * torch.randn(100 * samples, 4, generator=random, dtype=torch.float64) @ patches.T
    for i in range(0, len(patches), 5):
        m = patches[i]
        add(f"Lemma 2, mean, patch {i}", 0.0, A[:, i])
        add(f"Lemma 2, variance, patch {i}", tau**2 * m.square().sum().item(), A[:, i] ** 2)
        add(f"Eq. 8, patches {i} and -1", tau**2 * (m @ patches[-1]).item(), A[:, i] * A[:, -1])

    parts = [(B[..., -1], alpha) for B, alpha in networks(V, patches[-1:], tau, samples, random)]
    B, alpha = (torch.cat(each) for each in zip(*parts, strict=True))
    norm = patches[-1].norm().item()
    Y, variance = B.square().sum(1), (tau / (h * w)) ** 2 * h_ * w_ / 2
    given_F = (variance * Y / (2 * math.pi)).sqrt()  # E[GC | F], by Lemma 1
    add("Eq. 10, E[GC] - E[E[GC | F]]", 0.0, (alpha * B).sum(1).relu() - given_F)
    add("Eq. 11, variance given F", variance * Y[0].item(), (alpha @ B[0]) ** 2)
    add("Eq. 12, its closed form", expectation(V, norm, tau), given_F)
    share = Y.ge(V * (tau * norm) ** 2 / 4).double().mean().item()
    rows.append({"equation": "Eq. 13", "formula": 1 - 20 / V, "measured": share, "error": 0.0})
    return rows


class Theorem1(Experiment):
    """Estimate E[GC_ij] on the first image.

    filters: the V; samples: random networks for each V and seed; tau: standard deviation of their weights.
    """

    def __init__(self, filters: Sequence[int], samples: int, tau: float) -> None:
        self.filters, self.samples, self.tau = list(filters), samples, tau

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed, "V": V} for seed in run.seeds for V in self.filters]

    def compute(self, run: Run, task: Task) -> Output:
        V, patches = task["V"], unseen_patches(digit(run, 0))
        random = torch.Generator().manual_seed(task["seed"] * 1_000_003 + V)
        GC = torch.cat(
            [(alpha[:, None] @ B)[:, 0].relu() for B, alpha in networks(V, patches, self.tau, self.samples, random)]
        )
        output = Output(tables={"table": []})
        for i, m in enumerate(patches):
            norm, (measured, error) = m.norm().item(), estimate(GC[:, i])
            formulas = {"bound": bound(V, norm, self.tau), "exact": expectation(V, norm, self.tau)}
            output.tables["table"].append(
                {**task, "position": i, "norm": norm, "measured": measured, "error": error, **formulas}
            )
        if task["V"] == self.filters[-1]:
            output.tables["appendix"] = [
                {"seed": task["seed"], "V": V, **row} for row in appendix(V, patches, self.tau, self.samples, random)
            ]
        return output

    def claims(self, results: Results) -> list[Claim]:
        rows = _over_seeds(results.rows(), "V", "position")
        equations = _over_seeds(results.rows("appendix"), "equation")
        by_V = {f"V = {V}": [r for r in rows if r["V"] == V] for V in self.filters}
        lower = {
            V: [(r["measured"] - 4 * r["error"]) / r["bound"] for r in each if r["bound"] > 0]
            for V, each in by_V.items()
        }
        ratio = "Monte Carlo mean less 4 standard errors, over the bound"
        found = [
            Claim(
                "bound",
                SENTENCE,
                source="Theorem 1",
                metric=ratio,
                criterion=above(1, each=True),
                values=[v for each in lower.values() for v in each],
            ),
            Claim(
                "positive",
                "[GC] is positive in expectation if some pixels are activated in the receptive field",
                source="Section 2.3",
                metric="Monte Carlo mean in the unseen half, in standard errors",
                criterion=above(4, each=True),
                values=[r["measured"] / r["error"] for r in rows],
            ),
            Claim(
                "exact",
                EXACT,
                source="Appendix D",
                metric=SCORE,
                criterion=near_zero(4.5, each=True),
                values=[(r["measured"] - r["exact"]) / r["error"] for r in rows],
                origin="project",
            ),
        ]
        for name in dict.fromkeys(r["equation"].split(",")[0] for r in equations):
            chosen = [r for r in equations if r["equation"].split(",")[0] == name]
            short = name.lower().replace(". ", "_").replace(" ", "_")
            source = "Appendix B" if name.startswith("Lemma") or name == "Eq. 8" else "Appendix D"
            if name == "Eq. 13":
                slack = [r["measured"] - r["formula"] for r in chosen]
                found.append(
                    Claim(
                        short,
                        "P(Y >= E[Y]/2) >= 1 - 20/V",
                        source=source,
                        metric="frequency minus 1 - 20/V",
                        criterion=above(0, each=True),
                        values=slack,
                    )
                )
                continue
            deviations = [(r["measured"] - r["formula"]) / r["error"] for r in chosen]
            found.append(
                Claim(
                    short,
                    f"{name} of the appendix",
                    source=source,
                    metric=SCORE,
                    criterion=near_zero(4.5, each=True),
                    values=deviations,
                )
            )
        return found

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, rows, last = results.config, _over_seeds(results.rows(), "V", "position"), self.filters[-1]
        node = str(config.dataset._target_).rpartition(".")[2]
        digits = {"mnist": "an MNIST digit", "digits": "one of scikit-learn's digits, enlarged from 8x8"}.get(
            node, "an image"
        )
        positions = len({row["position"] for row in rows})
        caption = [
            f"Expectation of GradCAM in the unseen lower half of {digits}, over {config.seeds * self.samples} random networks "
            "for each V: Monte Carlo with four standard errors, the closed form, the bound of Theorem 1",
            f"Left: at the position with the largest patch norm. Right: at {positions} positions, V = {last}",
        ]
        figure, (left, right) = plot(PAGE_WIDTH, 2.6, caption, columns=2)
        panels = (
            (left, "V", [r for r in rows if r["position"] == max(r["position"] for r in rows)]),
            (right, "norm", sorted((r for r in rows if r["V"] == last), key=lambda r: r["norm"])),
        )
        with styled():
            for axes, key, chosen in panels:
                x = [r[key] for r in chosen]
                error = [4 * r["error"] for r in chosen]
                axes.errorbar(
                    x, [r["measured"] for r in chosen], error, fmt="k.", capsize=2, label="Monte Carlo", zorder=3
                )
                axes.plot(x, [r["exact"] for r in chosen], color="tab:blue", label="closed form")
                axes.plot(x, [r["bound"] for r in chosen], color="tab:red", label="bound, Eq. 5")
                axes.set_ylim(bottom=0)
                axes.set_ylabel("E[GC]")
            left.set(xscale="log", xlabel="filters V")
            left.set_xticks(self.filters, self.filters)
            left.minorticks_off()
            right.set_xlabel("norm of the patch")
            left.legend()
        return {"figure": figure}


def _over_seeds(rows: Sequence[Mapping[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """Merge rows with equal keys into one: the mean over the seeds and its standard error."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    merged = []
    for each in groups.values():
        n = len(each)
        error = math.sqrt(sum(row["error"] ** 2 for row in each)) / n
        formula = {"formula": mean([row["formula"] for row in each])} if "formula" in each[0] else {}
        merged.append({**each[0], "measured": mean([row["measured"] for row in each]), "error": error, **formula})
    return merged
