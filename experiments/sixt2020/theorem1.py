"""sixt2020, Theorem 1: a product of non-negative matrices converges to rank 1; what happens with negative entries.

The theorem asks for bounded sizes, no zero column, a limit of the matrices A_n, and a limit without a zero column and without
two orthogonal columns. Random matrices [n_l, n_(l+1)] stand for the layers of VGG-16 from the logits down (widths capped), and
carry Gaussian vectors: 1 - |cos|, the median over all pairs of vectors, tells how far the product is from rank 1. The positive
and the negative part of a matrix have columns of sum 1, as in the alpha-beta rule. For square matrices, sigma_2 / sigma_1 of
the product says the same of all vectors.

The rule: both fall below 1e-3 within 12 factors. The null: Gaussian matrices. Each exclusion has a counter-example: blocks and
permutations have orthogonal columns, and the columns of diag(1, 2^-n, ...) tend to 0.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vis.claims import Claim, Column, Compared, above, below, mean, near
from vis.errors import UserError
from vis.figures.layout import PAGE_WIDTH, plot, styled
from vis.runner.experiment import Experiment, Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

WIDTHS = (1000, 4096, 4096, 512, 512, 512, 512, 512, 512, 512, 256, 256, 256, 128, 128, 64)  # of VGG-16, from the top
FACTORS, SQUARE = 12, 64
SMALL = 1e-3
ORDER = ("alpha1", "alpha2", "alpha5", "alpha10")
FLOOR = 1e-16


def normalised(A: np.ndarray) -> np.ndarray:
    """Divide each column by its sum."""
    sums = A.sum(0, keepdims=True)
    return np.divide(A, sums, out=np.zeros_like(A), where=sums != 0)


def alpha_beta(W: np.ndarray, alpha: float) -> np.ndarray:
    """Return alpha W+ - (alpha - 1) W-, each with columns of sum 1."""
    return alpha * normalised(W.clip(min=0)) - (alpha - 1) * normalised((-W).clip(min=0))


Draw = Callable[[np.random.Generator, tuple[int, int], int], np.ndarray]  # of a matrix, from its shape and number


def _blocks(rng: np.random.Generator, shape: tuple[int, int], n: int) -> np.ndarray:
    half = shape[0] // 2, shape[1] // 2
    A = np.zeros(shape)
    A[: half[0], : half[1]] = rng.random(half)
    A[half[0] :, half[1] :] = rng.random((shape[0] - half[0], shape[1] - half[1]))
    return normalised(A)


def _alpha_beta(alpha: float) -> Draw:
    return lambda rng, shape, n: alpha_beta(rng.standard_normal(shape), alpha)


KINDS: dict[str, tuple[str, Draw]] = {
    "gaussian": ("Gaussian", lambda rng, shape, n: rng.standard_normal(shape)),
    "rectified": ("Gaussian, then ReLU on the signal", lambda rng, shape, n: rng.standard_normal(shape)),
    "absolute": ("|N|", lambda rng, shape, n: normalised(np.abs(rng.standard_normal(shape)))),
    **{f"alpha{a}": (f"alpha{a}beta{a - 1}" + ", max(0, N)" * (a == 1), _alpha_beta(a)) for a in (1, 2, 3, 4, 5, 10)},
}
SQUARES: dict[str, tuple[str, Draw]] = {
    **{name: KINDS[name] for name in ("gaussian", "alpha1")},
    "permutation": ("permutation", lambda rng, shape, n: np.eye(shape[0])[rng.permutation(shape[0])]),
    "blocks": ("two positive blocks", _blocks),
    "shrinking": (
        "diag(1, 2^-n, ...): columns tend to 0",
        lambda rng, shape, n: np.diag(np.r_[1.0, np.full(shape[0] - 1, 2.0**-n)]),
    ),
}


def cosines(V: np.ndarray) -> float:
    """Return the median |cos| over all pairs of columns; NaN if one of them is 0."""
    norms = np.linalg.norm(V, axis=0)
    U = V / np.where(norms > 0, norms, np.nan)
    return float(np.median(np.abs(U.T @ U)[np.triu_indices(V.shape[1], 1)]))


class Theorem1(Experiment):
    """Multiply random matrices. vectors: Gaussian vectors that are carried down. cap: of the layers' widths."""

    series = "kind"
    metrics = ("distance",)

    def __init__(self, vectors: int, cap: int) -> None:
        if vectors < 2 or cap < 2:
            raise UserError("experiment.vectors and experiment.cap are 2 or more")
        self.vectors, self.cap = vectors, cap

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed} for seed in run.seeds]

    def compute(self, run: Run, task: Task) -> Output:
        seed = task["seed"]
        widths = [min(width, self.cap) for width in WIDTHS]
        rows: list[dict[str, Any]] = []
        squares: list[dict[str, Any]] = []
        for k, (kind, (_, draw)) in enumerate(KINDS.items()):
            rng = np.random.default_rng([seed, k])
            V = rng.standard_normal((widths[0], self.vectors))
            for n, shape in enumerate(zip(widths[1:], widths[:-1], strict=True), 1):
                V = draw(rng, shape, n) @ V
                V = V.clip(min=0) if kind == "rectified" else V
                V /= np.abs(V).max()
                rows.append({"seed": seed, "kind": kind, "factors": n, "distance": max(FLOOR, 1 - cosines(V))})
        for k, (kind, (_, draw)) in enumerate(SQUARES.items()):
            rng = np.random.default_rng([seed, 100 + k])
            P = np.eye(SQUARE)
            for n in range(1, FACTORS + 1):
                P = P @ draw(rng, P.shape, n)
                sigma = np.linalg.svd(P, compute_uv=False)
                row = {"seed": seed, "kind": kind, "factors": n, "sigma": float(sigma[1] / sigma[0])}
                squares.append(row | {"distance": max(FLOOR, 1 - cosines(P))})
        return Output(tables={"table": rows, "squares": squares})

    def _after(self, results: Results, kind: str, name: str, factors: int = FACTORS) -> Column:
        table = "squares" if name == "sigma" or kind not in KINDS else "table"
        return Column(results.rows(table, kind=kind, factors=factors), name, "seed")

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return log10 of 1 - |cos| behind 8 factors, by seed."""
        rows = [row for kind in ORDER for row in results.rows(kind=kind, factors=8)]
        return {
            "logarithms": [{"seed": r["seed"], "kind": r["kind"], "log10": math.log10(r["distance"])} for r in rows]
        }

    def claims(self, results: Results) -> list[Claim]:
        words = {"sigma": "sigma_2 / sigma_1 of the product", "distance": "1 - |cos| of two vectors behind it"}

        def fall(kind: str) -> list[Compared]:
            return [
                Compared(f"{words[name]}, {FACTORS} factors", self._after(results, kind, name), below(SMALL),
                         null=self._after(results, "gaussian", name), control="Gaussian matrices")
                for name in words
            ]  # fmt: skip

        def stay(kind: str, name: str) -> Compared:
            of = "1 - |cos| of two columns" if name == "distance" else words[name]
            return Compared(f"{of}, {FACTORS} factors, {SQUARES[kind][0]}", self._after(results, kind, name), above(SMALL),
                            null=0.0, control="rank 1")  # fmt: skip

        excluded = [stay("permutation", "sigma"), stay("blocks", "sigma"), stay("shrinking", "distance")]
        slower = []
        for less, more in itertools.pairwise(ORDER):
            a, b = (Column(results.rows("logarithms", kind=kind), "log10", "seed") for kind in (more, less))
            metric = f"log10 of 1 - |cos| behind 8 factors, {more} - {less}"
            slower.append(Compared(metric, a - b, above(0), null=0.0, control="no difference"))
        alpha10, alpha1, gaussian = (self._after(results, k, "distance", 15) for k in ("alpha10", "alpha1", "gaussian"))
        never = Compared("1 - |cos| behind 15 factors, alpha10beta9 - Gaussian", alpha10 - gaussian, near(0, 0.05, ours="ours"),
                         null=alpha1 - gaussian, control="alpha1beta0 - Gaussian")  # fmt: skip
        return [
            Claim("S1", fall("alpha1")),
            Claim("exclusions", excluded, source="Theorem 1",
                  sentence="Orthogonal columns, and columns that tend to 0, keep a product of non-negative matrices from "
                  "converging."),
            Claim("slower", slower, source="Reported of the paper",
                  sentence="The more negative relevance the alpha-beta rule has, the slower products of its matrices converge."),
            Claim("never", [never], source="The project",
                  sentence="Behind 15 factors of alpha10beta9 random vectors are as unlike as behind Gaussian matrices."),
        ]  # fmt: skip

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        seeds = len({row["seed"] for row in results.rows()})
        behind = (
            f"{plural(self.vectors, 'Gaussian vector')} behind a product of random matrices with the widths of VGG-16"
        )
        caption = [
            f"Left: 1 - |cos| of {behind} (at most {self.cap}): median over pairs, geometric mean over {plural(seeds, 'seed')}",
            f"Right: sigma_2 / sigma_1 of products of {SQUARE}x{SQUARE} matrices; dashed: counter-examples",
            "Low: rank 1",
        ]
        figure, axes = plot(PAGE_WIDTH, 3.0, caption, columns=2)
        with styled():
            for axis, table, name, kinds in (
                (axes[0], "table", "distance", KINDS),
                (axes[1], "squares", "sigma", SQUARES),
            ):
                for i, (kind, (title, _)) in enumerate(kinds.items()):
                    rows = results.rows(table, kind=kind)
                    factors = list(dict.fromkeys(row["factors"] for row in rows))
                    values = [
                        10 ** mean([math.log10(max(FLOOR, r[name])) for r in rows if r["factors"] == n])
                        for n in factors
                    ]
                    axis.plot(factors, values, color=f"C{i}", linestyle="-" if kind in KINDS else "--", marker="o",
                              markersize=2.5, label=title)  # fmt: skip
                axis.set_yscale("log")
                axis.set_xlabel("factors")
                axis.legend(fontsize=5.5, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3 - (table == "squares"))
            axes[0].set_ylabel("1 − |cos|")
            axes[1].set_ylabel("σ₂ / σ₁")
            axes[0].set_ylim(FLOOR / 3, 3)
        return {"figure": figure}
