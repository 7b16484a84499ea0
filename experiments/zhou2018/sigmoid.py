"""zhou2018, Eqs. (33) to (36): the normalised geometric mean of a sigmoid, against the arithmetic mean.

    GM  = prod_i sigma(x_i)^P(x_i)        NGM = GM / (GM + prod_i (1 - sigma(x_i))^P(x_i)) = sigma(sum_i P(x_i) x_i)       (33)
    AM  = sum_i P(x_i) sigma(x_i)                                                                                          (34)

By Jensen's inequality NGM <= AM where all x_i <= 0, and NGM >= AM where all x_i >= 0. "Geometric mean is a first order
approximation of arithmetic mean" (35), and so is NGM (36): the differences are of second order in the spread of x, at any
mean. But the steps of Eq. 35, log s = s - 1 and exp(s - 1) = s for a sigmoid s, are expansions at s = 1: they are wrong by
as much as log s - (s - 1) elsewhere, also where nothing varies.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.zhou2018.geometric_mean import slope
from vis.figures.layout import plot, styled
from vis.oldclaims import Claim, Criterion, above, below
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

JENSEN = "the normalized geometric mean of sigmoid function is {} the arithmetic mean for x_i {} 0"
FIRST = "{} is a first order approximation of arithmetic mean for sigmoid functions"
STEPS = "Beyond the paper: the steps of Eq. 35 expand at a sigmoid of 1; for x <= 0 they are wrong also where nothing varies."
NOT_UNDER = "normalized geometric mean does not always underestimate arithmetic mean"


def sigma(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class Sigmoid(Experiment):
    """Compare the means on random inputs.

    means: means of the inputs; spreads: their standard deviations; states: number of values x_i; draws: repetitions of each.
    """

    def __init__(self, means: Sequence[float], spreads: Sequence[float], states: int, draws: int) -> None:
        self.means, self.spreads, self.states, self.draws = means, spreads, states, draws

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed} for seed in run.seeds]

    def compute(self, run: Run, task: Task) -> Output:
        rows: Rows = []
        for i in range(self.draws):
            random = np.random.default_rng([task["seed"], i])
            deviation, P = random.standard_normal(self.states), random.dirichlet(np.ones(self.states))
            for m in self.means:
                for s in self.spreads:
                    x = m + s * deviation
                    gm, other = np.prod(sigma(x) ** P), np.prod((1 - sigma(x)) ** P)
                    am, ngm = P @ sigma(x), gm / (gm + other)
                    side = -1 if x.max() <= 0 else 1 if x.min() >= 0 else 0
                    numbers = {"AM": am, "GM": gm, "NGM": ngm, "pushed": sigma(np.array(P @ x)), "Eq35": np.exp(am - 1)}
                    where = {"seed": task["seed"], "draw": i, "mean": m, "spread": s, "side": side}
                    rows.append(where | {name: float(value) for name, value in numbers.items()})
        return Output(tables={"table": rows})

    def claims(self, results: Results) -> list[Claim]:
        rows = results.rows()
        small = [s for s in self.spreads if s <= 0.3]
        orders: dict[str, list[float]] = {"NGM": [], "GM": []}
        for seed, i, m in dict.fromkeys((r["seed"], r["draw"], r["mean"]) for r in rows if r["mean"] != 0):
            chosen = [r for r in results.rows(seed=seed, draw=i, mean=m) if r["spread"] in small]
            for name, found in orders.items():
                found.append(slope(small, [abs(r[name] - r["AM"]) for r in chosen]))
        still = [r for r in rows if r["spread"] == min(self.spreads) and r["side"] < 0]
        second = Criterion("median within 0.2 of 2", lambda values: abs(float(np.median(values)) - 2) < 0.2)
        power, exact = (
            "power of the spread in the difference from the arithmetic mean",
            Criterion("each >= 0 but for rounding", lambda values: min(values) >= -1e-15),
        )
        signs = [float(np.sign(r["NGM"] - r["AM"])) for r in rows if abs(r["NGM"] - r["AM"]) > 1e-12]
        return [
            Claim(
                "eq33",
                "NGM(sigma(x)) = sigma(sum P(x_i) x_i)",
                source="Eq. 33",
                metric="difference",
                criterion=below(1e-12, each=True),
                values=[abs(r["NGM"] - r["pushed"]) for r in rows],
            ),
            Claim(
                "jensen_negative",
                JENSEN.format("less than or equal to", "<="),
                source="Section 3",
                metric="AM - NGM",
                criterion=exact,
                values=[r["AM"] - r["NGM"] for r in rows if r["side"] < 0],
            ),
            Claim(
                "jensen_positive",
                JENSEN.format("greater than or equal to", ">="),
                source="Section 3",
                metric="NGM - AM",
                criterion=exact,
                values=[r["NGM"] - r["AM"] for r in rows if r["side"] > 0],
            ),
            Claim(
                "not_always_under",
                NOT_UNDER,
                source="Section 3",
                metric="share of draws where NGM > AM",
                criterion=above(0),
                values=[float(np.mean([s > 0 for s in signs]))],
            ),
            Claim(
                "eq35",
                FIRST.format("geometric mean"),
                source="Eq. 35",
                metric=power,
                criterion=second,
                values=orders["GM"],
            ),
            Claim(
                "eq36",
                FIRST.format("normalised geometric mean"),
                source="Eq. 36",
                metric=power,
                criterion=second,
                values=orders["NGM"],
            ),
            Claim(
                "eq35_steps",
                STEPS,
                source="Eq. 35",
                metric=f"|GM - exp(AM - 1)| at a spread of {min(self.spreads):g}, x <= 0",
                criterion=above(0.1, each=True),
                values=[abs(r["GM"] - r["Eq35"]) for r in still],
                origin="project",
            ),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        widest = [s for s in self.spreads if s <= 1][-1]
        caption = [
            f"A sigmoid of inputs with {self.states} values and random probabilities, in float64. Left: the normalised geometric "
            f"mean minus the arithmetic mean, standard deviation {widest:g}: below 0 for x <= 0, above for x >= 0",
            "Right: the size of the differences against the standard deviation, median over draws and means; exp(AM − 1), the "
            "intermediate step of Eq. 35, does not tend to GM",
        ]
        figure, (left, right) = plot(6.9, 2.4, caption, columns=2)
        with styled():
            rows = results.rows(spread=widest)
            left.plot([r["mean"] for r in rows], [r["NGM"] - r["AM"] for r in rows], ".", color="black", alpha=0.4)
            left.axhline(0, color="0.7", linewidth=0.8)
            left.set(xlabel="mean of x", ylabel="NGM − AM")
            for a, b, label in (
                ("NGM", "AM", "|NGM − AM|"),
                ("GM", "AM", "|GM − AM|"),
                ("GM", "Eq35", "|GM − exp(AM − 1)|"),
            ):
                medians = [np.median([abs(r[a] - r[b]) for r in results.rows(spread=s)]) for s in self.spreads]
                right.plot(self.spreads, medians, ".-", label=label)
            right.set(xscale="log", yscale="log", xlabel="standard deviation of x", ylabel="difference")
            right.legend()
        return {"figure": figure}
