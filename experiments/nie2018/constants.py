"""nie2018, the constants of appendices B and C: as printed, as they are, and by Monte Carlo.

For V and the entries of w from N(0, c^2), and w~ = w 1[w^T y > 0]:

    E[sigma(V)] = c / sqrt(2 pi)    E[sigma(V)^2] = c^2 / 2    E[w~] = c / sqrt(2 pi) y / ||y||    E[w~ w~^T] = c^2 I / 2

The appendices give the expectations of half-normal variables instead, conditional on V (w^T y) being positive, without the
factor 1/2, the probability of that. Also, a pixel lies in k^2 / s^2 patches, not in as many as a patch has values.
With N(0, I), as Theorem 2 has it, the norm of a map is about sqrt(d), while it is said to lie in [0, 1].
Normalising a map for display hides all of this. The weights are Gaussian here, as in the appendices; for those of Figure 4,
which are truncated at 2 standard deviations, E[sigma(V)] is 3 % larger for the same variance.

Misprints: the normalisations of App. B and Eq. (9) are the inverses of what is meant; App. D cites Eq. (9) for Eq. (8);
App. H calls its Figures 12 and 13 "11" and "12".
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vis import metrics
from vis.claims import Claim, Column, Compared, Rule, exactly, near
from vis.figures.layout import plot, styled
from vis.models.networks import VGG16_BLOCKS
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

V, V2, W, WW = "E[σ(V)] / c", "E[σ(V)²] / c²", "norm of E[w~] / c", "diagonal of E[w~ w~ᵀ] / c²"
THETA, DTD, AX = "Var[Θ], {} / (N c⁴)", "diagonal of Σ DᵀD", "GBP / (N c² A x)"
DEVIATION, SCALE = "std of {} / (c² √N)", "Z~ of App. B: scale of the map"
OURS = "the bounds are ours"
RANDOM = ("saliency map", "DeconvNet")
CLAIMS: dict[str, tuple[str, ...]] = {  # the constants of each row of the ledger
    "N-B-b": (V,),
    "N-B-c": (W,),
    "N-B-d": (AX,),
    "N-C-b": (WW, *(THETA.format(m) for m in RANDOM)),
    "N-C-c": tuple(DEVIATION.format(m) for m in RANDOM),
}


class Constants(Experiment):
    """Compare the printed constants with Monte Carlo estimates.

    models.cnn: the CNN whose maps are scaled by the printed Z_k; samples: Monte Carlo draws for each seed.
    """

    def __init__(self, models: Mapping[str, Mapping[str, Any]], samples: int) -> None:
        self.cnn, self.samples = models["cnn"], samples

    def tasks(self, run: Run) -> Sequence[Task]:
        run.require_methods("gbp", "saliency", "deconvnet")
        return [{"seed": seed} for seed in run.seeds]

    def load(self, run: Run, task: Task) -> Load:
        return Load(self.cnn, task["seed"], len(run.dataset), 3, 0)

    def compute(self, run: Run, task: Task) -> Output:
        """Compute (the constant, as printed, as it is, measured), with c = 1."""
        seed, k, s, N = task["seed"], self.cnn["kernel_size"], self.cnn["stride"], self.cnn["num_filters"]
        p, overlap = 3 * k * k, k * k / s**2
        random, n, c = torch.Generator().manual_seed(seed), self.samples // (3 * k * k), self.cnn["std"]
        half = torch.randn(self.samples, generator=random, dtype=torch.float64).clamp(min=0)
        y, w, v = (torch.randn(m, q, generator=random, dtype=torch.float64) for m, q in ((1, p), (n, p), (n, 1)))
        tilde = w * (w @ (y := y / y.norm()).T > 0)
        model = run.model(self.cnn, seed)
        batch = run.batch(model, range(len(run.dataset)))
        maps = run.explain(model, batch.x, [run.units_of(model, run.targets[0], batch.names)]).maps[0]
        x = batch.x.cpu()
        Ax = metrics.patch_weight(x, k, s, k // 2) * x
        along = (maps["gbp"] * Ax).sum() / Ax.square().sum() / (N * c**2)
        ones = metrics.patch_weight(torch.ones_like(x[:, :1]), k, s, 0)  # 1/||patch of ones|| = 1/k at each
        inner = ones[..., 2 * k : -2 * k, 2 * k : -2 * k]
        inverse = Ax.norm() / x.norm() / overlap  # 1/C0, the mean of 1/||y_j||
        scale = (2 * c**2 * p / math.pi * inverse) ** 2  # after division by Z~ = pi C0 / (2 c^2 p), as printed

        def around_0(map_: Tensor) -> Tensor:
            """Return the standard deviation about the mean 0, away from the border."""
            return map_[..., 2 * k : -2 * k, 2 * k : -2 * k].double().square().mean().sqrt()

        mean, root = math.sqrt(2 / math.pi), math.sqrt(2 * math.pi)
        table = [
            (V, mean, 1 / root, half.mean()),
            (V2, 1.0, 0.5, half.square().mean()),
            (W, mean, 1 / root, tilde.mean(0) @ y[0]),
            (WW, 1.0, 0.5, tilde.square().mean()),
            (THETA.format("saliency map"), 1.0, 0.5, (v * tilde).square().mean()),
            (THETA.format("DeconvNet"), 1.0, 0.5, (v.clamp(min=0) * w).square().mean()),
            (DTD, p, overlap, inner.mean() * k),
            (AX, 2 / math.pi, 1 / root**2, along),
            (SCALE, 1.0, float(scale), scale),
            *(
                (
                    DEVIATION.format(name),
                    math.sqrt(p),
                    math.sqrt(overlap / 2),
                    around_0(maps[m]) / (c**2 * math.sqrt(N)),
                )
                for name, m in zip(RANDOM, ("saliency", "deconvnet"), strict=True)
            ),
        ]
        rows = [
            {"seed": seed, "constant": name, "printed": printed, "true": true, "measured": float(measured)}
            for name, printed, true, measured in table
        ]
        unit = maps["saliency"][0].double()
        return Output(tables={"table": rows, "norms": [{"seed": seed, "norm": (unit / unit.std()).norm().item()}]})

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Measured constants over the printed and over the true ones; the number of filters that App. B gives VGG-16."""
        ratios = [
            {k: row[k] for k in ("seed", "constant")}
            | {f"over_{k}": row["measured"] / row[k] for k in ("printed", "true")}
            for row in results.rows()
        ]
        return {"ratios": ratios, "vgg16": [{"layer": "conv1_1", "filters": VGG16_BLOCKS[0][0]}]}

    def claims(self, results: Results) -> list[Claim]:
        true = {row["constant"]: row["true"] / row["printed"] for row in results.rows(seed=results.config.seed)}

        def ratio(name: str) -> Column:
            return Column(results.rows("ratios", constant=name), "over_printed", "seed")

        def compared(name: str, within: Rule) -> Compared:
            words = {"null": true[name], "control": "the constant as it is"}
            return Compared(f"{name}, over the printed constant", ratio(name), within, **words)

        found = [
            Claim(
                id_,
                [compared(name, near(1, *((0.05,) if id_ == "N-C-c" else (0.01, 0.05)), ours=OURS)) for name in names],
            )
            for id_, names in CLAIMS.items()
        ]
        norms, filters = (
            Column(results.rows("norms"), "norm", "seed"),
            Column(results.rows("vgg16"), "filters", "layer"),
        )
        d, first = 3 * results.config.experiment.models.cnn.input_size**2, "filters of conv1_1"
        at_most_1 = Rule(((0, 1),), of="each", least=1)
        norm = Compared(
            "norm of a map whose values have variance 1", norms, at_most_1, null=d**0.5, control="the norm of N(0, I)"
        )
        corrected = [
            Compared(f"{name}, over its true value", Column(results.rows("ratios", constant=name), "over_true", "seed"),
            near(1, 0.05, ours=OURS), null=1 / true[name], control="the printed constant")
            for name in true if name != SCALE
        ]  # fmt: skip
        sentence = (
            "With the probability 1/2 of a positive response, and k²/s² patches on a pixel, the constants are right."
        )
        return [
            *found,
            Claim("N-B-f", [compared(DTD, exactly(1, 1e-9))]),
            Claim("N-B-g", [compared(SCALE, exactly(1, 0.01))]),
            Claim("N-3.1-b", [norm]),
            Claim(
                "N-B-a", [Compared(first, filters, exactly(256), null=64, control="VGG-16, configuration D")], paper=256
            ),
            Claim("true_constants", corrected, sentence=sentence, source="Appendices B and C"),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        names, node = [n for n in _names(results) if n != SCALE], results.config.experiment.models.cnn
        caption = [
            "The constants of nie2018's appendices B and C over their true values: as printed (red) and by Monte Carlo "
            f"({plural(results.config.seeds, 'seed')}, black)",
            f"The last three are of maps of a random CNN with {node.num_filters} filters, stride {node.stride}",
        ]
        figure, (axes,) = plot(5.2, 2.4, caption)
        with styled():
            for i, name in enumerate(reversed(names)):
                rows = results.rows(constant=name)
                axes.plot(rows[0]["printed"] / rows[0]["true"], i, "o", color="tab:red")
                axes.plot([r["measured"] / r["true"] for r in rows], [i] * len(rows), "|", color="black", markersize=8)
            axes.axvline(1, color="0.8", zorder=0, linewidth=0.8)
            axes.set_xscale("log")
            axes.set_yticks(range(len(names)), names[::-1])
            ticks = [1, 2, 4, 12]
            axes.set_xticks(ticks, ticks)
            axes.minorticks_off()
            axes.set_xlabel("over the true value")
        return {"figure": figure}


def _names(results: Results) -> list[str]:
    return list(dict.fromkeys(row["constant"] for row in results.rows()))
