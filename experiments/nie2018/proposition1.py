"""nie2018, Proposition 1: the gradients that arrive at the first ReLU of a random deep CNN.

"For a random deep CNN where weights are i.i.d. Gaussians with zero mean, we can also approximate every entry of V^(1)_.,k as
i.i.d. Gaussian with zero mean." In Eq. (8), V^(1) takes the place of the dense layer's weights in Eq. (4).

It holds for the saliency map. For GBP and DeconvNet it does not: the rectified gradients from above have a mean,
which the shared filters turn into a pattern for each channel, so that two entries of a channel are correlated.

    mean   over the standard deviation, of all entries
    D      Kolmogorov-Smirnov distance of the standardised entries to N(0, 1)
    rho    mean correlation of two entries of one channel: 0 for i.i.d. entries

Appendix D ignores what one input adds to a response. The table `flips` has the share of responses of the next layer whose sign
changes when one of their inputs, an active one, is removed, for networks of several widths.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import unfold

from experiments.nie2018.three_layer import CNN, LABELS, images, slope
from vis.claims import Claim, Column, Compared, above, below, departures, mean, near, replicated
from vis.figures.layout import plot, styled
from vis.methods import Forward
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

PAPER = {"models": {"cnn": CNN}}
BINS = np.linspace(-4, 4, 65)
WIDTHS = (4, 16, 64, 256)
TRIALS = 4096
OURS = "the bounds are ours"


def within_channels(V: Tensor) -> float:
    """Return the mean correlation over all pairs of entries of one channel of V [N, H, W]; mean and variance are of all V."""
    V = (V.double() - V.double().mean()).flatten(1)
    n = V.shape[1]
    pairs = (V.sum(1).square() - V.square().sum(1)).mean() / (n * (n - 1))
    return (pairs / V.square().mean()).item()


def flips(conv: nn.Conv2d, o: Tensor, seed: int) -> float:
    """Return how often a response of a 3x3 convolution changes its sign when one of its active inputs is removed.

    o: its input [1, N, H, W]; responses and inputs are drawn at random.
    """
    random = torch.Generator().manual_seed(seed)
    inputs, weight = unfold(o, 3, padding=1)[0].T, conv.weight.flatten(1)
    inputs = inputs[(inputs > 0).any(1)]
    patch = inputs[torch.randint(len(inputs), (TRIALS,), generator=random)]
    w = weight[torch.randint(len(weight), (TRIALS,), generator=random)]
    removed = torch.multinomial((patch > 0).float(), 1, generator=random)
    y = (w * patch).sum(1)
    without = y - (w * patch).gather(1, removed)[:, 0]
    return ((y > 0) != (without > 0)).double().mean().item()


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
                    "abs_mean": (V.mean() / V.std()).abs().item(),
                    "D": float(stats.kstest(normal, "norm").statistic),
                    "rho": within_channels(V),
                }
                row = {"seed": seed, "image": image, "depth": depth, "method": method}
                output.tables["table"].append(row | numbers)
                if seed == run.seeds[0] and depth == self.depths[-1]:
                    output.arrays[f"{image}/{method}/histogram"] = np.histogram(normal, bins=BINS, density=True)[0]
        if depth == self.depths[0]:
            output.tables["flips"] = [{"seed": seed, "width": n, "flips": self._flips(run, seed, n)} for n in WIDTHS]
        return output

    def _flips(self, run: Run, seed: int, width: int) -> float:
        """Return the share of flips in a network of `width` filters a layer."""
        model = run.model({**self.cnn, "num_filters": width, "num_classes": 1}, seed, extra=1)
        net: Any = model.net
        with torch.no_grad():
            o = net.relu(net.conv1(run.batch(model, [0]).x))
            return flips(net.extra[0].cpu(), o.cpu(), seed)

    def summaries(self, results: Results) -> dict[str, Rows]:
        """By seed: how the correlation of entries grows with depth, and how the share of flips falls with width."""
        rows: Rows = []
        for seed in dict.fromkeys(row["seed"] for row in results.rows()):
            row: dict[str, Any] = {"seed": seed}
            for method in (m for m in LABELS if m in results.config.methods):
                of = {n: mean([r["rho"] for r in results.rows(seed=seed, method=method, depth=n)]) for n in self.depths}
                row[f"{method}_rho_slope"] = slope(list(of), list(of.values()))
            shares = [r["flips"] for r in results.rows("flips", seed=seed)]
            rows.append(
                row | {"flips_slope": slope(np.log(WIDTHS).tolist(), np.log(np.maximum(shares, 1 / TRIALS)).tolist())}
            )
        return {"slopes": rows}

    def claims(self, results: Results) -> list[Claim]:
        tests = (
            ("|mean| over standard deviation", "abs_mean", 0.02, 0.68, "entries of a rectified Gaussian"),
            ("KS distance D to N(0, 1)", "D", 0.02, 0.0577, "a uniform distribution"),
            (
                "mean correlation of two entries of one channel",
                "rho",
                0.01,
                1 / math.pi,
                "a mean that a channel shares",
            ),
        )
        iid = [
            Compared(f"{LABELS[method]}: {metric}", Column(results.rows(method=method), name, "seed"), near(0, bound, ours=OURS),
                null=null, control=control)
            for method in (m for m in LABELS if m in results.config.methods)
            for metric, name, bound, null, control in tests
        ]  # fmt: skip
        slopes = results.rows("slopes")

        def share(width: int) -> Column:
            return Column(results.rows("flips", width=width), "flips", "seed")

        ignored = [
            Compared("responses that one input flips, width 256", share(256), below(0.01, 0.05, ours=OURS), null=share(WIDTHS[0]),
                control=f"width {WIDTHS[0]}"),
            Compared("slope of its logarithm over that of the width", Column(slopes, "flips_slope", "seed"), below(0), null=0,
                control="no change"),
        ]  # fmt: skip
        deeper = [
            Compared(f"{LABELS[m]}: slope of rho over depth", Column(slopes, f"{m}_rho_slope", "seed"), above(0),
                null=Column(slopes, "saliency_rho_slope", "seed"), control="the saliency map")
            for m in ("gbp", "deconvnet") if {m, "saliency"} <= set(results.config.methods)
        ]  # fmt: skip
        sentence = "With GBP and DeconvNet, gradients within a channel are the more correlated the deeper the network."
        found = [Claim("N-P1", iid), Claim("N-D-a", ignored)]
        finding = Claim("correlated_deeper", deeper, sentence=sentence, source="Proposition 1, appendix D")
        return [*replicated(found, departures(results.config.experiment, PAPER)), *([finding] if deeper else [])]

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
