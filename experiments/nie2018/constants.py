"""nie2018, the constants of appendices B and C: as printed, as they are, and by Monte Carlo (finding 5).

For V and the entries of w from N(0, c^2), and w~ = w 1[w^T y > 0]:

    E[sigma(V)] = c / sqrt(2 pi)    E[sigma(V)^2] = c^2 / 2    E[w~] = c / sqrt(2 pi) y / ||y||    E[w~ w~^T] = c^2 I / 2

The appendices give the expectations of half-normal variables instead, conditional on V (w^T y) being positive, without the
factor 1/2, the probability of that. Also, a pixel lies in k^2 / s^2 patches, not in as many as a patch has values.
Normalising a map for display hides both. The weights are Gaussian here, as in the appendices; for those of Figure 4,
which are truncated at 2 standard deviations, E[sigma(V)] is 3 % larger for the same variance.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from vis import metrics
from vis.figures.layout import plot, styled
from vis.oldclaims import Claim, mean, within
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results

DEVIATION = "std of saliency map / (c² √N)"


class Constants(Experiment):
    """Compare the printed constants with Monte Carlo estimates.

    models.cnn: the CNN whose maps are scaled by the printed Z_k; samples: Monte Carlo draws for each seed.
    """

    def __init__(self, models: Mapping[str, Mapping[str, Any]], samples: int) -> None:
        self.cnn, self.samples = models["cnn"], samples

    def tasks(self, run: Run) -> Sequence[Task]:
        run.require_methods("gbp", "saliency")
        return [{"seed": seed} for seed in run.seeds]

    def load(self, run: Run, task: Task) -> Load:
        return Load(self.cnn, task["seed"], len(run.dataset), 2, 0)

    def compute(self, run: Run, task: Task) -> Output:
        seed, k, s, N = task["seed"], self.cnn["kernel_size"], self.cnn["stride"], self.cnn["num_filters"]
        p, overlap = 3 * k * k, k * k / s**2
        random = torch.Generator().manual_seed(seed)
        V = torch.randn(self.samples, generator=random, dtype=torch.float64).clamp(min=0)
        y, w = (torch.randn(n, p, generator=random, dtype=torch.float64) for n in (1, self.samples // p))
        y = y / y.norm()
        tilde = w * (w @ y.T > 0)
        c = self.cnn["std"]
        model = run.model(self.cnn, seed)
        batch = run.batch(model, range(len(run.dataset)))
        maps = run.explain(model, batch.x, [run.units_of(model, run.targets[0], batch.names)]).maps[0]
        x = batch.x.cpu()
        Ax = metrics.patch_weight(x, k, s, k // 2) * x
        along = (maps["gbp"] * Ax).sum() / Ax.square().sum() / (N * c**2)
        ones = metrics.patch_weight(torch.ones_like(x[:, :1]), k, s, 0)  # 1/||patch of ones|| = 1/k at each
        inner = ones[..., 2 * k : -2 * k, 2 * k : -2 * k]
        half, std = math.sqrt(2 / math.pi), maps["saliency"].double().std().item()
        root = math.sqrt(2 * math.pi)
        table = [  # the constant, as printed, as it is, measured; with c = 1
            ("E[σ(V)] / c", half, 1 / root, V.mean()),
            ("E[σ(V)²] / c²", 1.0, 0.5, V.square().mean()),
            ("norm of E[w~] / c", half, 1 / root, tilde.mean(0) @ y[0]),
            ("diagonal of E[w~ w~ᵀ] / c²", 1.0, 0.5, tilde.square().mean()),
            ("diagonal of Σ DᵀD", p, overlap, inner.mean() * k),
            ("GBP / (N c² A x)", 2 / math.pi, 1 / root**2, along),
            (DEVIATION, math.sqrt(p), math.sqrt(overlap / 2), std / (c**2 * math.sqrt(N))),
        ]
        rows = [
            {"seed": seed, "constant": name, "printed": printed, "true": true, "measured": float(measured)}
            for name, printed, true, measured in table
        ]
        return Output(tables={"table": rows})

    def claims(self, results: Results) -> list[Claim]:
        found = []
        for i, name in enumerate(_names(results)):
            rows = results.rows(constant=name)
            ratio = {f"{name}, measured over true": [mean([r["measured"] / r["true"] for r in rows])]}
            sentence = f"Finding 5: {name} is {rows[0]['true']:.4g}, not {rows[0]['printed']:.4g}."
            paper = f"{rows[0]['printed']:.4g}"
            found.append(
                Claim(
                    f"finding5_{i + 1}",
                    sentence,
                    source="Appendices B and C",
                    metric="ratio",
                    criterion=within(1, 0.05),
                    values=ratio,
                    paper=paper,
                    origin="project",
                )
            )
        normalised = [row["measured"] / row["printed"] for row in results.rows(constant=DEVIATION)]
        sentence = "setting Z_k = c^2 sqrt(N p), we have s_k ~ N(0, I)"
        metric = "standard deviation of the normalised saliency map"
        return [
            *found,
            Claim(
                "Z_k",
                sentence,
                source="Appendix C",
                metric=metric,
                criterion=within(1, 0.05),
                values=normalised,
                paper=1.0,
            ),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        names, node = _names(results), results.config.experiment.models.cnn
        caption = [
            "The constants of nie2018's appendices B and C over their true values: as printed (red) and by Monte Carlo "
            f"({plural(results.config.seeds, 'seed')}, black)",
            f"The last two are of maps of a random CNN with {node.num_filters} filters, stride {node.stride}",
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
