"""zhou2018, Figure 8 (after Goodfellow et al. 2013): functions that a maxout unit of one input can represent.

    h(x) = max_i (w_i x + b_i)        ReLU: 0, x     absolute value: -x, x     x^2: tangents 2 a x - a^2 at points a

The tangents at k equal steps d apart are below x^2 by at most d^2 / 4 between the outermost ones, so by O(1/k^2).
"""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.zhou2018.geometric_mean import slope
from vis.figures.layout import plot, styled
from vis.oldclaims import Claim, Criterion, below
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

SHOWN = 5
CONVEX = "A single maxout unit can approximate arbitrary convex functions"
LEARNS = "a maxout unit learns ReLU, absolute value function and approximates quadratic function"


def pieces(function: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (w, b) [k] of a maxout unit on [-1, 1]; k is the number of pieces of the quadratic."""
    if function == "quadratic":
        a = np.linspace(-1, 1, k)
        return 2 * a, -(a**2)
    return np.array([0.0 if function == "ReLU" else -1.0, 1.0]), np.zeros(2)


def maxout(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Evaluate Eq. (20) for one input at x [n]: [n]."""
    return (x[:, None] * w + b).max(1)


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ReLU": lambda x: np.maximum(x, 0),
    "absolute value": np.abs,
    "quadratic": np.square,
}


class Figure8(Experiment):
    """Measure the approximation errors. pieces: numbers of tangents to the quadratic."""

    def __init__(self, pieces: Sequence[int]) -> None:
        self.pieces = pieces

    def compute(self, run: Run, task: Task) -> Output:
        x = np.linspace(-1, 1, 4001)
        rows: Rows = []
        for name, function in FUNCTIONS.items():
            for k in self.pieces if name == "quadratic" else [2]:
                error = float(np.abs(maxout(x, *pieces(name, k)) - function(x)).max())
                rows.append({"function": name, "pieces": k, "error": error})
        return Output(tables={"table": rows})

    def claims(self, results: Results) -> list[Claim]:
        exact = [r["error"] for name in ("ReLU", "absolute value") for r in results.rows(function=name)]
        quadratic = results.rows(function="quadratic")
        ratios = [r["error"] / (1 / (r["pieces"] - 1) ** 2) for r in quadratic]
        power = [slope([r["pieces"] - 1 for r in quadratic], [r["error"] for r in quadratic])]
        two = Criterion("within 0.1 of -2", lambda values: abs(values[0] + 2) < 0.1)
        metric = "largest difference on [-1, 1]"
        return [
            Claim(
                "exact",
                LEARNS,
                source="Figure 8",
                metric=f"{metric}, ReLU and absolute value",
                criterion=below(1e-15, each=True),
                values=exact,
            ),
            Claim(
                "quadratic",
                LEARNS,
                source="Figure 8",
                metric=f"{metric}, x^2, over d^2/4",
                criterion=below(1 + 1e-9, each=True),
                values=ratios,
            ),
            Claim(
                "convex",
                CONVEX,
                source="Section 2.1",
                metric="power of the number of steps in the difference from x^2",
                criterion=two,
                values=power,
            ),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        caption = [
            f"A maxout unit of one input with 2, 2 and {SHOWN} linear pieces (gray), which is the ReLU, the absolute value and "
            "an approximation (black) of the quadratic function (blue)"
        ]
        figure, panels = plot(6.9, 2.0, caption, columns=3)
        x = np.linspace(-1, 1, 401)
        with styled():
            for axes, (name, function) in zip(panels, FUNCTIONS.items(), strict=True):
                w, b = pieces(name, SHOWN)
                axes.plot(x, x[:, None] * w + b, color="0.7", linewidth=0.7, linestyle="--")
                axes.plot(x, function(x), color="tab:blue", linewidth=2.4, alpha=0.5)
                axes.plot(x, maxout(x, w, b), color="black")
                axes.set(title=name, ylim=(-0.5, 1.1), xlabel="x")
        return {"figure": figure}
