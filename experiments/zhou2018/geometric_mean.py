"""zhou2018, Eqs. (11) to (15): the normalised geometric mean of softmax outputs is the softmax of the mean logits.

    NGM_c = prod_w p_c(w)^P(w) / sum_j prod_w p_j(w)^P(w) = softmax(sum_w P(w) z(w))_c         (11) = (14), exact
    AM_c  = sum_w P(w) p_c(w)                                                                  (10)

Eq. (15) replaces the second by the first. Their difference depends on how much the logits vary over the contents w of a
window: it is O(s^2) for a standard deviation s.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vis.claims import Claim, Column, Compared, above, exactly
from vis.figures.layout import plot, styled
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows


def softmax(z: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis."""
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def geometric_mean(p: np.ndarray, P: np.ndarray) -> np.ndarray:
    """Compute Eq. (11) as printed, a product of powers: [K] of probabilities p [S, K] with weights P [S], normalised."""
    products = np.prod(p ** P[:, None], axis=0)
    return products / products.sum()


def slope(spreads: Sequence[float], errors: Sequence[float]) -> float:
    """Return the power of the spread with which an error grows, the slope of a line through their logarithms."""
    return float(np.polyfit(np.log(spreads), np.log(errors), 1)[0])


def second_order(powers: Column) -> Compared:
    """Compare the power of the spread in a difference from the arithmetic mean with that of a first-order error, 1."""
    metric = "power of the spread in the difference from the arithmetic mean"
    control = "an error that is proportional to the spread"
    return Compared(metric, powers, above(1.5), null=1.0, control=control)


class GeometricMean(Experiment):
    """Compare the means on random logits.

    classes: K; states: contents w of a window; spreads: standard deviations of the logits; draws: repetitions of each.
    """

    def __init__(self, classes: int, states: int, spreads: Sequence[float], draws: int) -> None:
        self.classes, self.states, self.spreads, self.draws = classes, states, spreads, draws

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed} for seed in run.seeds]

    def compute(self, run: Run, task: Task) -> Output:
        rows: Rows = []
        for i in range(self.draws):
            random = np.random.default_rng([task["seed"], i])
            base = 3 * random.standard_normal(self.classes)
            deviation = random.standard_normal((self.states, self.classes))
            P = random.dirichlet(np.ones(self.states))
            for s in self.spreads:
                z = base + s * deviation
                p = softmax(z)
                ngm, pushed = geometric_mean(p, P), softmax(P @ z)
                rows.append(
                    {"seed": task["seed"], "draw": i, "spread": s, "exact": float(np.abs(ngm - pushed).max())}
                    | {"error": float(np.abs(P @ p - pushed).max())}
                )
        return Output(tables={"table": rows})

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the power of the spread with which the difference of Eq. (15) grows, by draw."""
        small = [s for s in self.spreads if s <= 0.3]
        rows: Rows = []
        for seed, i in dict.fromkeys((r["seed"], r["draw"]) for r in results.rows()):
            errors = [r["error"] for r in results.rows(seed=seed, draw=i) if r["spread"] in small]
            rows.append({"seed": seed, "draw": i, "power": slope(small, errors)})
        return {"powers": rows}

    def claims(self, results: Results) -> list[Claim]:
        each = ("seed", "draw", "spread")
        equal = Compared(
            "|normalised geometric mean - softmax of the mean logits|, largest over the classes",
            Column(results.rows(), "exact", each), exactly(0, within=1e-12),
            null=Column(results.rows(), "error", each), control="the arithmetic mean in place of the geometric",
        )  # fmt: skip
        return [
            Claim("Z-2.1-a", [equal]),
            Claim("Z-3-g", [second_order(Column(results.rows("powers"), "power", each[:2]))]),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        caption = [
            f"Eqs. 11 to 15 on random logits of {self.classes} classes and {self.states} contents of a window, in float64, one "
            f"point for each of {len(results.rows()) // len(self.spreads)} draws",
            "Black: arithmetic mean against softmax of the mean logits, the approximation of Eq. 15. Blue: normalised geometric "
            "mean against the same, equal by Eq. 14",
        ]
        figure, (axes,) = plot(4.4, 2.4, caption)
        with styled():
            for column, color, label in (("error", "black", "Eq. 15"), ("exact", "tab:blue", "Eq. 14")):
                points: list[Any] = [(r["spread"], max(r[column], 1e-18)) for r in results.rows()]
                axes.plot(*zip(*points, strict=True), ".", color=color, alpha=0.4, label=label)
            axes.set(xscale="log", yscale="log", xlabel="standard deviation of the logits", ylabel="largest difference")
            axes.legend()
        return {"figure": figure}
