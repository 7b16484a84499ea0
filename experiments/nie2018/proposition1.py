"""nie2018, Proposition 1: the gradients that arrive at the first ReLU of a random deep CNN.

"For a random deep CNN where weights are i.i.d. Gaussians with zero mean, we can also approximate every entry of V^(1)_.,k as
i.i.d. Gaussian with zero mean." In Eq. (8), V^(1) takes the place of the dense layer's weights in Eq. (4).

It holds for the saliency map. For GBP and DeconvNet it does not (finding 6): the rectified gradients from above have a mean,
which the shared filters turn into a pattern for each channel, so that two entries of a channel are correlated.

    mean   over the standard deviation, of all entries
    D      Kolmogorov-Smirnov distance of the standardised entries to N(0, 1)
    rho    mean correlation of two entries of one channel: 0 for i.i.d. entries
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from experiments.nie2018.three_layer import CNN, LABELS, images
from vis.figures.layout import plot, styled
from vis.methods.forward import Forward
from vis.oldclaims import Claim, Criterion, Origin, above, below, departures, increasing, mean, near_zero
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results

PAPER = {"models": {"cnn": CNN | {"num_filters": 256}}, "depths": [1, 2, 3, 4, 5]}
BINS = np.linspace(-4, 4, 65)
PROPOSITION = "For a random deep CNN, we can approximate every entry of V^(1) as i.i.d. Gaussian with zero mean"
FINDING = "Finding 6: Proposition 1 fails for GBP and DeconvNet: entries of a channel are correlated, more so in deeper networks."
MEAN = "Finding 6: Proposition 1 fails for GBP, whose entries have a mean."


def within_channels(V: Tensor) -> float:
    """Return the mean correlation over all pairs of entries of one channel of V [N, H, W]; mean and variance are of all V."""
    V = (V.double() - V.double().mean()).flatten(1)
    n = V.shape[1]
    pairs = (V.sum(1).square() - V.square().sum(1)).mean() / (n * (n - 1))
    return (pairs / V.square().mean()).item()


class Proposition1(Experiment):
    """Test the entries of V^(1) for normality and independence. models.cnn: a DeepCNN; depths: its extra convolutions."""

    def __init__(self, models: Mapping[str, Mapping[str, Any]], depths: Sequence[int]) -> None:
        self.cnn, self.depths = models["cnn"], list(depths)

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed, "depth": depth} for seed in run.seeds for depth in self.depths]

    def load(self, run: Run, task: Task) -> Load:
        return Load({**self.cnn, "extra": task["depth"]}, task["seed"], len(run.dataset), len(run.methods), 0)

    def compute(self, run: Run, task: Task) -> Output:
        seed, depth = task["seed"], task["depth"]
        model = run.model(self.cnn, seed, extra=depth)
        batch = run.batch(model, range(len(run.dataset)))
        k, output = run.units_of(model, run.targets[0], batch.names), Output(tables={"table": []})
        with Forward(model.net, batch.x, ["relu"]) as forward:
            found = {
                name: forward.gradient(k, method.rule, of=forward.layers["relu"]).cpu()
                for name, method in run.methods.items()
                if hasattr(method, "rule")
            }
        for method, gradients in found.items():
            for image, V in zip(batch.names, gradients, strict=True):
                normal = ((V - V.mean()) / V.std()).flatten().double().numpy()
                numbers = {
                    "mean": (V.mean() / V.std()).item(),
                    "D": float(stats.kstest(normal, "norm").statistic),
                    "rho": within_channels(V),
                }
                row = {"seed": seed, "image": image, "depth": depth, "method": method}
                output.tables["table"].append(row | numbers)
                if seed == run.seeds[0] and depth == self.depths[-1]:
                    output.arrays[f"{image}/{method}/histogram"] = np.histogram(normal, bins=BINS, density=True)[0]
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
            """Judge all values for a claim of the paper, the means at each depth for a finding."""
            values: Any = {f"{n} more": self.of(results, column, method, n) for n in self.depths}
            values = [v for depth in values.values() for v in depth] if origin == "paper" else values
            claim = Claim(name, sentence, source="Proposition 1", metric=metric, criterion=criterion, origin=origin)
            return replace(claim, values=values, reason=reason)

        means, ks = "mean over standard deviation", "KS distance D to N(0, 1), standardised"
        rho, paper, found = "mean correlation of two entries of one channel", [], []
        for method in (m for m in LABELS if m in results.config.methods):
            sentence = f"{PROPOSITION} ({LABELS[method]})"
            paper += [
                claim(f"{method}_mean", sentence, means, near_zero(0.02, each=True), method, "mean"),
                claim(f"{method}_gaussian", sentence, ks, below(0.02, each=True), method, "D"),
                claim(f"{method}_independent", sentence, rho, near_zero(0.01, each=True), method, "rho"),
            ]
            if method != "saliency":
                found += [
                    claim(f"finding6_{method}", FINDING, rho, above(0.1, each=True), method, "rho", "project"),
                    claim(f"finding6_{method}_deeper", FINDING, rho, increasing(), method, "rho", "project"),
                ]
        size = Criterion("each |mean| > 0.1", lambda values: min(map(abs, values)) > 0.1)
        return [*paper, *found, claim("finding6_gbp_mean", MEAN, means, size, "gbp", "mean", "project")]

    def of(self, results: Results, column: str, method: str, depth: int) -> list[float]:
        """Return a column for one method and depth."""
        return [row[column] for row in results.rows(method=method, depth=depth)]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        image, node = images(results)[0], results.config.experiment.models.cnn
        caption = [
            f"Gradients that arrive at the first ReLU of a random CNN (N = {node.num_filters}, stride {node.stride}) with more "
            f"3x3 convolutions above it, input {image}. Left: the entries for {self.depths[-1]} more (seed "
            f"{results.config.seed}), standardised, and N(0, 1). Right: mean correlation of two entries of one channel, "
            f"one point for each of {results.config.seeds} seeds, and their means"
        ]
        figure, (left, right) = plot(6.4, 2.3, caption, columns=2)
        with styled():
            middle = (BINS[1:] + BINS[:-1]) / 2
            left.plot(middle, stats.norm.pdf(middle), color="black", linewidth=0.8, label="N(0, 1)")
            for i, method in enumerate(m for m in LABELS if m in results.config.methods):
                color = f"C{i}"
                left.plot(middle, results.arrays[f"{image}/{method}/histogram"], ".", color=color, label=LABELS[method])
                curves = [self.of(results, "rho", method, n) for n in self.depths]
                right.plot(self.depths, [mean(c) for c in curves], "-", color=color, label=LABELS[method])
                for n, values in zip(self.depths, curves, strict=True):
                    right.plot([n] * len(values), values, ".", color=color, alpha=0.5)
            left.set(xlabel="entry", ylabel="density")
            right.set(xlabel="more convolutions", ylabel="correlation", xticks=self.depths)
            left.legend()
            right.legend()
        return {"figure": figure}
