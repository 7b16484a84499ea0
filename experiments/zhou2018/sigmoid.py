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

from experiments.zhou2018.geometric_mean import second_order, slope
from vis.claims import Claim, Column, Compared, each_above, exactly
from vis.figures.layout import plot, styled
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

ROUNDING = 1e-15


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
                    still = sigma(np.array(m))
                    numbers = {"AM": am, "GM": gm, "NGM": ngm, "pushed": sigma(np.array(P @ x)), "Eq35": np.exp(am - 1)}
                    numbers["expansion"] = still - np.exp(still - 1)  # the error of Eq. (35) where nothing varies
                    where = {"seed": task["seed"], "draw": i, "mean": m, "spread": s, "side": side}
                    rows.append(where | {name: float(value) for name, value in numbers.items()})
        return Output(tables={"table": rows})

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the power of the spread in |GM - AM| and |NGM - AM|, the median over means, and signed extremes, by draw."""
        rows: Rows = []
        for seed, i in dict.fromkeys((r["seed"], r["draw"]) for r in results.rows()):
            of, row = results.rows(seed=seed, draw=i), {"seed": seed, "draw": i}
            for name in ("GM", "NGM"):
                small = [[r for r in of if r["mean"] == m and r["spread"] <= 0.3] for m in self.means if m]
                powers = [slope([r["spread"] for r in each], [abs(r[name] - r["AM"]) for r in each]) for each in small]
                row |= {f"power of {name}": float(np.median(powers))}
                row |= {f"most {name} - AM": max(r[name] - r["AM"] for r in of)}
                row |= {f"most AM - {name}": max(r["AM"] - r[name] for r in of)}
            rows.append(row)
        return {"summary": rows}

    def claims(self, results: Results) -> list[Claim]:
        rows, summary = results.rows(), results.rows("summary")

        def column(name: str, of: Rows = rows) -> Column:
            return Column(of, name, ("seed", "draw", "mean", "spread"))

        def by_draw(name: str) -> Column:
            return Column(summary, name, ("seed", "draw"))

        am, gm, ngm = map(column, ("AM", "GM", "NGM"))
        equal = Compared(
            "NGM - sigma(mean of x)", ngm - column("pushed"), exactly(0, within=1e-12),
            null=am - column("pushed"), control="the arithmetic mean in place of NGM",
        )  # fmt: skip
        under = Compared("AM - GM", am - gm, each_above(-ROUNDING), null=am - ngm, control="the normalised GM")
        signs = [
            Compared(
                f"largest {name} of a draw", by_draw(f"most {name}"), each_above(1e-12),
                null=by_draw("most GM - AM"), control="GM - AM, without normalisation",
            )
            for name in ("NGM - AM", "AM - NGM")
        ]  # fmt: skip
        mixed = [column(name, [r for r in rows if r["side"] == 0]) for name in ("AM", "NGM")]
        jensen = []
        for side, text in ((-1, "AM - NGM for x <= 0"), (1, "NGM - AM for x >= 0")):
            larger, smaller = [column(name, [r for r in rows if r["side"] == side]) for name in ("AM", "NGM")][::-side]
            null, control = mixed[::-side][0] - mixed[::-side][1], "x of both signs"
            jensen.append(Compared(text, larger - smaller, each_above(-ROUNDING), null=null, control=control))
        smallest = min(self.spreads)
        still = [r for r in rows if r["spread"] == smallest]
        steps = Compared(
            f"GM - exp(AM - 1) at the smallest spread, {smallest:g}, at each mean of x",
            column("GM", still) - column("Eq35", still), exactly(0, within=0.01),
            null=column("expansion", still), control="s - exp(s - 1) of a sigmoid s where nothing varies",
        )  # fmt: skip
        return [
            Claim("Z-2.1-u", [equal]),
            Claim("Z-3-a", [under]),
            Claim("Z-3-b", signs),
            Claim("Z-3-c", jensen),
            Claim("Z-3-d", [steps]),
            Claim("Z-3-e", [second_order(by_draw("power of GM"))]),
            Claim("Z-3-f", [second_order(by_draw("power of NGM"))]),
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
