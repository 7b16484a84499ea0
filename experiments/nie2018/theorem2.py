"""nie2018, Theorem 2: saliency map and DeconvNet of a random three-layer CNN as Gaussian noise.

"In a random three-layer CNN, if the number of filters N is sufficiently large, saliency map and DeconvNet are
approximated as Gaussian random variables satisfying s_k(x) ~ N(0, I)."

The saliency map is: no structure is left. For DeconvNet the values are Gaussian, but their covariance is not I (finding
4): every patch adds E[sigma(V)] sum_i w(i), the same for all of them, so the map holds a pattern that repeats with the
stride s and has a part E[sigma(V)]^2 / E[sigma(V)^2] = 1/pi of its energy. The maps of all logits share it.

    D         Kolmogorov-Smirnov distance to N(0, 1) of the values, normalised in each phase (row and column modulo s)
    rho       autocorrelation with the largest absolute value over shifts of 1 to 8 pixels along rows and columns
    rho_s     autocorrelation at a shift of s
    pattern   energy of the means over each phase over that of the map: the correlation of values of the same phase
    logits    correlation of the maps of two logits
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from experiments.nie2018.three_layer import CNN, LABELS, images, random_networks
from vis import metrics
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, plot, styled
from vis.oldclaims import Claim, Criterion, Origin, below, departures, mean, near_zero, within
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results

PAPER = {"models": {"cnn": CNN | {"num_filters": 256}}}
SHIFTS = 8
BINS = np.linspace(-4, 4, 65)
CROP = 32  # pixels
SHOWN = f"Maps of the first seed, {display.scaling('minmax')[1]}"
WEIGHTS = "saliency map and DeconvNet visualizations will yield random noise, conveying little information"
THEOREM = "saliency map and DeconvNet are approximated as Gaussian random variables satisfying s_k(x) ~ N(0, I)"
PATTERN = "Finding 4: DeconvNet's covariance is not I: 1/pi of its energy is a pattern that repeats with the stride."
SHARED = "Finding 4: DeconvNet's pattern is the same for all logits, whose maps therefore correlate by 1/pi."


def phases(map_: Tensor, stride: int) -> Tensor:
    """Arrange the values of a map [C, H, W] by channel and phase: [C s s, n]. Incomplete periods are cut."""
    height, width = (n // stride * stride for n in map_.shape[1:])
    starts = [(r, c) for r in range(stride) for c in range(stride)]
    return torch.cat([map_[:, r:height:stride, c:width:stride].flatten(1) for r, c in starts])


def autocorrelation(map_: Tensor, shift: int) -> tuple[float, float]:
    """Return the autocorrelation along rows and along columns of a map [C, H, W] whose mean is 0."""
    energy = map_.square().mean()
    down, right = map_[:, shift:] * map_[:, :-shift], map_[..., shift:] * map_[..., :-shift]
    return (right.mean() / energy).item(), (down.mean() / energy).item()


class Theorem2(Experiment):
    """Test maps for normality and correlation. models.cnn: the network. The second target is for the correlation of logits."""

    def __init__(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        self.cnn = models["cnn"]

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed} for seed in run.seeds]

    def load(self, run: Run, task: Task) -> Load:
        return Load(self.cnn, task["seed"], len(run.dataset), 2 * len(run.methods), 2 * len(run.dataset))

    def compute(self, run: Run, task: Task) -> Output:
        seed, s = task["seed"], self.cnn["stride"]
        model = run.model(self.cnn, seed)
        batch = run.batch(model, range(len(run.dataset)))
        units = [run.units_of(model, target, batch.names) for target in run.targets]
        first, second = run.explain(model, batch.x, units).maps
        output = Output(tables={"table": [], "autocorrelation": []})
        for method, maps in first.items():
            logits = metrics.cosine(maps, second[method])
            for i, image in enumerate(batch.names):
                map_ = maps[i].double()
                row = {"seed": seed, "image": image, "target": str(run.targets[0]), "method": method}
                rho = {shift: autocorrelation(map_, shift) for shift in range(1, SHIFTS + 1)}
                values = phases(map_, s)
                normal = (values - values.mean(1, keepdim=True)) / values.std(1, keepdim=True)
                numbers = {
                    "D": stats.kstest(normal.flatten().numpy(), "norm").statistic,
                    "rho": max((v for pair in rho.values() for v in pair), key=abs),
                    "rho_s": sum(rho[s]) / 2,
                    "pattern": (values.mean(1).square().mean() / values.square().mean()).item(),
                    "logits": logits[i].item(),
                }
                output.tables["table"].append(row | {name: float(value) for name, value in numbers.items()})
                output.tables["autocorrelation"] += [
                    row | {"shift": shift, "rho": sum(pair) / 2} for shift, pair in rho.items()
                ]
                if seed == run.seeds[0]:
                    output.arrays |= {
                        f"{image}/{method}": maps[i].numpy(),
                        f"{image}/{method}/histogram": np.histogram(normal.numpy(), BINS, density=True)[0],
                    }
        return output

    def claims(self, results: Results) -> list[Claim]:
        reason = departures(results.config.experiment, PAPER)

        def claim(
            name: str,
            sentence: str,
            metric: str,
            criterion: Criterion,
            method: str,
            column: str,
            origin: Origin = "paper",
        ) -> Claim:
            values: Any = [row[column] for row in results.rows(method=method)]
            if origin == "project":  # a finding about the ensemble: one network's pattern has only 3 s^2 numbers
                values = {f"mean over {len(values)} networks": values}
            claim = Claim(name, sentence, source="Theorem 2", metric=metric, criterion=criterion, origin=origin)
            return replace(claim, values=values, reason=reason)

        ks, white = (
            "KS distance D to N(0, 1), each phase normalised",
            "largest autocorrelation, shifts of 1 to 8 pixels",
        )
        stride, pair = results.config.experiment.models.cnn.stride, "correlation of the maps of two logits"
        normal, none, pi = below(0.02, each=True), near_zero(0.04, each=True), within(1 / math.pi, 0.25)
        return [
            claim("saliency_normal", THEOREM, ks, normal, "saliency", "D"),
            claim("saliency_white", THEOREM, white, none, "saliency", "rho"),
            claim("deconvnet_normal", THEOREM, ks, normal, "deconvnet", "D"),
            claim("deconvnet_white", THEOREM, white, none, "deconvnet", "rho"),
            claim("saliency_logits", WEIGHTS, pair, near_zero(0.03), "saliency", "logits"),
            claim(
                "finding4_pattern",
                PATTERN,
                "correlation of values of one phase",
                pi,
                "deconvnet",
                "pattern",
                origin="project",
            ),
            claim(
                "finding4_shift",
                PATTERN,
                f"autocorrelation at a shift of {stride}",
                pi,
                "deconvnet",
                "rho_s",
                origin="project",
            ),
            claim("finding4_logits", SHARED, pair, pi, "deconvnet", "logits", origin="project"),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        image, stride = images(results)[0], results.config.experiment.models.cnn.stride
        methods = [m for m in LABELS if m in results.config.methods]
        maps = [results.arrays[f"{image}/{method}"] for method in methods]
        half = [slice(n // 2, n // 2 + CROP) for n in maps[0].shape[1:]]
        rows = [
            PanelRow([Panel(display.minmax(m), LABELS[name]) for name, m in zip(methods, maps, strict=True)], "whole"),
            PanelRow([Panel(display.minmax(m[:, half[0], half[1]])) for m in maps], f"{CROP}x{CROP} pixels"),
        ]
        network = f"a random three-layer CNN with {results.config.experiment.models.cnn.num_filters} filters"
        grid = panel_grid(rows, [f"Two kinds of noise in {network}", *random_networks(results)[:1], SHOWN], panel=2.2)
        caption = [
            f"Maps of {network}, stride {stride}, input {image}. Left: their values, each phase normalised (seed "
            f"{results.config.seed}), and N(0, 1). Right: autocorrelation (mean over {plural(results.config.seeds, 'seed')}); "
            "1/π is what DeconvNet's periodic pattern explains"
        ]
        figure, (left, right) = plot(6.4, 2.3, caption, columns=2)
        with styled():
            middle = (BINS[1:] + BINS[:-1]) / 2
            left.plot(middle, stats.norm.pdf(middle), color="black", linewidth=0.8, label="N(0, 1)")
            right.axhline(1 / math.pi, color="black", linewidth=0.6, linestyle="--", label="1/π")
            for method in methods:
                left.plot(middle, results.arrays[f"{image}/{method}/histogram"], ".", label=LABELS[method])
                rows_ = results.rows("autocorrelation", method=method)
                curve = [mean([r["rho"] for r in rows_ if r["shift"] == shift]) for shift in range(1, SHIFTS + 1)]
                right.plot(range(1, SHIFTS + 1), curve, "o", label=LABELS[method])
            left.set_xlabel("value")
            left.set_ylabel("density")
            right.set_xlabel("shift in pixels")
            right.set_ylabel("autocorrelation")
            right.set_ylim(-0.05, 0.5)
            left.legend()
            right.legend(loc="upper right", ncols=3)
        return {"figure": grid, "distribution": figure}
