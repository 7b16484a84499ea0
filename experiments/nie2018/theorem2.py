"""nie2018, Theorem 2: saliency map and DeconvNet of a random three-layer CNN as Gaussian noise.

"In a random three-layer CNN, if the number of filters N is sufficiently large, saliency map and DeconvNet are
approximated as Gaussian random variables satisfying s_k(x) ~ N(0, I)."

The saliency map is: no structure is left. For DeconvNet the values are Gaussian, but their covariance is not I: every
patch adds E[sigma(V)] sum_i w(i), the same for all of them, so the map holds a pattern that repeats with the stride s
and has a part E[sigma(V)]^2 / E[sigma(V)^2] = 1/pi of its energy. The maps of all logits share it.

    D         Kolmogorov-Smirnov distance of the values to a Gaussian of the same mean and deviation; D_white: of white noise
    rho       autocorrelation with the largest absolute value over shifts of 1 to 8 pixels along rows and columns
    rho_s     autocorrelation at a shift of s
    pattern   energy of the means over each phase over that of the map: the correlation of values of the same phase
    input     largest difference from the map of the next image, relative
    logits    correlation of the maps of two logits

Appendix C derives this from the sums Theta_j over filters: the table `clt` has D of one of their values over many networks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from experiments.nie2018.three_layer import CNN, LABELS, images, random_networks
from experiments.nie2018.verdicts import against_others, noise
from vis import metrics
from vis.claims import Claim, Column, Compared, below, departures, exactly, mean, near, replicated
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, plot, styled
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results

PAPER = {"models": {"cnn": CNN | {"num_filters": 256}}}
SHIFTS = 8
BINS = np.linspace(-4, 4, 65)
CROP = 32  # pixels
NETWORKS = 4096  # for each value of Theta
SHOWN = f"Maps of the first seed, {display.scaling('minmax')[1]}"
OURS = "the bounds are ours"
FINDINGS = {
    "pattern": "1/pi of the energy of DeconvNet's map is a pattern that repeats with the stride.",
    "rho_s": "DeconvNet's map correlates by 1/pi with itself at a shift of the stride.",
    "logits": "DeconvNet's pattern is the same for all logits, whose maps correlate by 1/pi.",
}


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


def distance_to_normal(values: Tensor) -> float:
    """Return the Kolmogorov-Smirnov distance of values to a Gaussian of their mean and standard deviation."""
    values = values.flatten().double()
    return float(stats.kstest(((values - values.mean()) / values.std()).numpy(), "norm").statistic)


def theta(N: int, p: int, method: str, seed: int) -> Tensor:
    """Draw the first value of Theta_j = sum_i h(V_i) w~(i) for many networks of N filters with p values: [NETWORKS]."""
    random = torch.Generator().manual_seed(seed)
    y = torch.nn.functional.normalize(torch.randn(p, generator=random), dim=0)
    w, along, V = (torch.randn(NETWORKS, N, generator=random) for _ in range(3))
    positive = y[0] * w + (1 - y[0] ** 2).sqrt() * along > 0  # y^T w, of which the other values of w are one Gaussian
    return ((V * positive if method == "saliency" else V.clamp(min=0)) * w).sum(1)


class Theorem2(Experiment):
    """Test maps for normality and correlation. models.cnn: the network. The second target is for the correlation of logits."""

    def __init__(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        self.cnn = models["cnn"]

    def tasks(self, run: Run) -> Sequence[Task]:
        run.require_methods(*LABELS)
        return [{"seed": seed} for seed in run.seeds]

    def load(self, run: Run, task: Task) -> Load:
        return Load(self.cnn, task["seed"], len(run.dataset), 2 * len(run.methods), 2 * len(run.dataset))

    def compute(self, run: Run, task: Task) -> Output:
        seed, s = task["seed"], self.cnn["stride"]
        model = run.model(self.cnn, seed)
        batch = run.batch(model, range(len(run.dataset)))
        units = [run.units_of(model, target, batch.names) for target in run.targets]
        first, second = run.explain(model, batch.x, units).maps
        white = torch.randn(first["saliency"][0].shape, generator=torch.Generator().manual_seed(seed))
        output = Output(tables={"table": [], "autocorrelation": [], "clt": []})
        for method, maps in first.items():
            logits, others = metrics.cosine(maps, second[method]), against_others(maps, batch.x.cpu(), batch.names)
            change = (maps - maps.roll(1, 0)).abs().flatten(1).amax(1) / maps.abs().flatten(1).amax(1)
            for i, image in enumerate(batch.names):
                map_ = maps[i].double()
                row = {"seed": seed, "image": image, "target": str(run.targets[0]), "method": method}
                rho = {shift: autocorrelation(map_, shift) for shift in range(1, SHIFTS + 1)}
                values = phases(map_, s)
                numbers = {
                    "D": distance_to_normal(map_),
                    "D_white": distance_to_normal(white),
                    "rho": max(abs(v) for pair in rho.values() for v in pair),
                    "rho_white": max(abs(v) for shift in rho for v in autocorrelation(white.double(), shift)),
                    "rho_s": sum(rho[s]) / 2,
                    "pattern": (values.mean(1).square().mean() / values.square().mean()).item(),
                    "logits": logits[i].item(),
                    **({"input": change[i].item()} if len(maps) > 1 else {}),
                    **{name: each[i].item() for name, each in others.items()},
                }
                output.tables["table"].append(row | {name: float(value) for name, value in numbers.items()})
                output.tables["autocorrelation"] += [
                    row | {"shift": shift, "rho": sum(pair) / 2} for shift, pair in rho.items()
                ]
                if seed == run.seeds[0]:
                    normal = (map_ - map_.mean()) / map_.std()
                    output.arrays |= {
                        f"{image}/{method}": maps[i].numpy(),
                        f"{image}/{method}/histogram": np.histogram(normal.numpy(), BINS, density=True)[0],
                    }
        for method in ("saliency", "deconvnet"):
            gaussian = torch.randn(NETWORKS, generator=torch.Generator().manual_seed(seed))
            D = {n: distance_to_normal(theta(n, 3 * self.cnn["kernel_size"] ** 2, method, seed)) for n in (2, 16, 256)}
            row = {"seed": seed, "method": method, "D_white": distance_to_normal(gaussian)}
            output.tables["clt"] += [row | {"N": n, "D": each} for n, each in D.items()]
        return output

    def claims(self, results: Results) -> list[Claim]:
        rows = {method: results.rows(method=method) for method in LABELS}

        def of(method: str, name: str) -> Column:
            return Column(rows[method], name, "seed")

        def gaussian(method: str) -> list[Compared]:
            D, rho = (
                "KS distance D to a Gaussian minus that of white noise",
                "largest |autocorrelation| minus that of white noise",
            )
            return [
                Compared(D, of(method, "D") - of(method, "D_white"), below(0.01, 0.05, ours=OURS), null=0.0577,
                    control="a uniform distribution"),
                Compared(rho, of(method, "rho") - of(method, "rho_white"), below(0.01, 0.1, ours=OURS), null=1 / math.pi,
                    control="a pattern with 1/pi of the energy"),
            ]  # fmt: skip

        def like(name: str) -> Compared:
            difference, gbp = (of(m, name) - of("saliency", name) for m in ("deconvnet", "gbp"))
            rule = near(0, 0.05, 0.1, ours=OURS)
            return Compared(f"{name}: DeconvNet minus saliency map", difference, rule, null=gbp, control="GBP")

        logits = near(0, 0.03, 0.1, ours=OURS)
        information = [
            Compared("DeconvNet: difference between two images, relative", of("deconvnet", "input"), exactly(0, 1e-5),
                null=of("gbp", "input"), control="GBP"),
            *noise("saliency map", rows["saliency"], "seed", rows["gbp"], "GBP"),
            *(Compared(f"{LABELS[m]}: correlation of two logits", of(m, "logits"), logits, null=of("gbp", "logits"),
                control="GBP") for m in ("saliency", "deconvnet")),
        ]  # fmt: skip
        found = [
            Claim("N-T2-a", gaussian("saliency")),
            Claim("N-T2-b", gaussian("deconvnet")),
            Claim("N-3.1.2-a", information),
            Claim("N-3.1.2-c", [like(name) for name in ("HP", "D", "rho", "logits")]),
            Claim("N-C-a", [self._clt(results, method) for method in ("saliency", "deconvnet")]),
        ]
        pi = near(1 / math.pi, 0.25 / math.pi, ours=OURS)
        findings = [
            Claim(
                f"deconvnet_{name}",
                [Compared(name, of("deconvnet", name), pi, null=0, control="N(0, I)")],
                sentence=sentence,
                source="Theorem 2",
            )
            for name, sentence in FINDINGS.items()
        ]
        return replicated(found, departures(results.config.experiment, PAPER)) + findings

    def _clt(self, results: Results, method: str) -> Compared:
        """Judge whether a value of Theta_j is Gaussian over networks of 256 filters."""
        many, two = (
            results.rows("clt", method=method, N=256),
            Column(results.rows("clt", method=method, N=2), "D", "seed"),
        )
        D = Column(many, "D", "seed") - Column(many, "D_white", "seed")
        metric = f"D of a value of Theta over {NETWORKS} networks minus that of Gaussian draws, {LABELS[method]}"
        return Compared(metric, D, below(0.01, 0.05, ours=OURS), null=two, control="N = 2")

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        image, stride = images(results)[0], results.config.experiment.models.cnn.stride
        methods = ["deconvnet", "saliency"]
        maps = [results.arrays[f"{image}/{method}"] for method in methods]
        half = [slice(n // 2, n // 2 + CROP) for n in maps[0].shape[1:]]
        rows = [
            PanelRow([Panel(display.minmax(m), LABELS[name]) for name, m in zip(methods, maps, strict=True)], "whole"),
            PanelRow([Panel(display.minmax(m[:, half[0], half[1]])) for m in maps], f"{CROP}x{CROP} pixels"),
        ]
        network = f"a random three-layer CNN with {results.config.experiment.models.cnn.num_filters} filters"
        grid = panel_grid(rows, [f"Two kinds of noise in {network}", *random_networks(results)[:1], SHOWN], panel=2.2)
        caption = [
            f"Maps of {network}, stride {stride}, input {image}. Left: their values, standardised (seed "
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
