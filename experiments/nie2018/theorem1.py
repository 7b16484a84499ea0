"""nie2018, Theorem 1: guided backpropagation recovers the input of a random three-layer CNN as its filters grow in number.

"In a random three-layer CNN, if the number of filters N is sufficiently large, GBP at the k-th logit can be approximated
as s_k(x) ~ x." How many? "given a filter size 3x3x3, we need at most O(10^3) filters to achieve an estimation error
less than 0.1": the error of the mean of N truncated filters, || 1/N sum_i w~(i) - E[w~] || for w from N(0, I).

The noise in a map falls as tan2 = .943 pi^2 3 s^2 / N. What is left is A x, not x (finding 3): patches of small norm
weigh as much as others, A = sum_j 1/||y_j|| at each pixel. The error of the mean is sqrt(p / 2N).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import conv2d

from experiments.nie2018.figure5 import LAW
from experiments.nie2018.three_layer import (
    LABELS,
    WEIGHTS,
    Shown,
    ThreeLayer,
    column,
    images,
    limit,
    random_networks,
    slope,
    targets,
)
from vis import metrics
from vis.claims import (
    Claim,
    Column,
    Compared,
    Rule,
    above,
    at_small_sizes,
    below,
    departures,
    mean,
    mean_and_spread,
    near,
    replicated,
)
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, plot, styled
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

P, DRAWS, SIZES = (27, 75, 147, 363), 1728, (100, 200, 500, 1000, 1500, 2000, 2700, 5000)
OURS = "the bounds are ours"


class Theorem1(ThreeLayer):
    """Measure GBP for growing N, for filters of several sizes, and without padding; and the error of the mean.

    filters: the numbers N. kernels: sizes of the filters, `among` of them each; the model's own size is also taken with VALID.
    """

    def __init__(
        self, models: Mapping[str, Mapping[str, Any]], filters: Sequence[int], kernels: Sequence[int], among: int
    ) -> None:
        super().__init__(models)
        self.filters, self.kernels, self.among = list(filters), list(kernels), among

    def settings(self) -> dict[str, tuple[str, dict[str, Any]]]:
        grown = {f"cnn_{n}": ("cnn", {"num_filters": n}) for n in self.filters}
        same = {f"kernel_{k}": ("cnn", {"num_filters": self.among, "kernel_size": k}) for k in self.kernels}
        return grown | same | {"valid": ("cnn", {"num_filters": self.among, "padding": 0})}

    def numbers(self, shown: Shown, target: int, method: str) -> dict[str, Tensor]:
        map_, x, conv = shown.maps[target][method], shown.x, shown.net.conv1
        k, Ax = int(conv.kernel_size[0]), shown.weight * x
        corrected, image = (
            each[..., k:-k, k:-k] for each in (torch.where(shown.weight > 0, map_ / shown.weight, 0.0), x)
        )
        rim = torch.ones_like(x)
        rim[..., k:-k, k:-k] = 0
        energy = x.double().square().sum(1, keepdim=True)
        norms = conv2d(energy, energy.new_ones(1, 1, k, k), stride=conv.stride).sqrt().flatten(1)
        return super().numbers(shown, target, method) | {
            "cosine_Ax": metrics.cosine(map_, Ax),
            "cap": metrics.cosine(Ax, x),
            "inner": metrics.cosine(corrected, image),
            "shifted": metrics.cosine(corrected.roll(image.shape[-1] // 2, 3), image),
            "rim_error": 1 - metrics.cosine(map_ * rim, x * rim),
            "cv": norms.std(1) / norms.mean(1),
        }

    def compute(self, run: Run, task: Task) -> Output:
        output, seed = super().compute(run, task), task["seed"]
        if task["setting"] == f"cnn_{self.filters[0]}" and 0 in task["images"]:
            for p in P:
                errors = mean_errors(seed, p)
                law = (p / 2 / torch.arange(1, SIZES[-1] + 1)).sqrt()
                own = [{"seed": seed, "p": p, "N": n, "error": errors[:, n - 1].mean().item()} for n in SIZES]
                rows = [row | {"over_law": row["error"] / law[row["N"] - 1].item()} for row in own]
                output.tables["filters"] = output.tables.get("filters", []) + rows
                if p == P[0]:
                    needed = int((errors.quantile(0.95, dim=0) >= 0.1).nonzero()[-1]) + 2
                    output.tables["needed"] = [{"seed": seed, "N": needed, "log10_N": math.log10(needed)}]
        return output

    def summaries(self, results: Results) -> dict[str, Rows]:
        """By image, what cosines tend to for infinite N; by seed, how numbers depend on N and on the size of the filters."""

        def means(name: str, settings: Mapping[int, str], **where: Any) -> dict[int, float]:
            values = {n: [r[name] for r in results.rows(setting=s, **where) if name in r] for n, s in settings.items()}
            return {n: mean(each) for n, each in values.items() if each}

        grown, sizes = {n: f"cnn_{n}" for n in self.filters}, {k: f"kernel_{k}" for k in self.kernels}
        limits = []
        for image in images(results):
            fitted = {f"{name}_limit": limit(means(name, grown, image=image)) for name in ("cosine", "cosine_Ax")}
            own = {name: results.rows(image=image, setting=f"cnn_{self.filters[0]}")[0][name] for name in ("cap", "cv")}
            limits.append({"image": image, **fitted, **own})
        seeds = []
        for seed in dict.fromkeys(row["seed"] for row in results.rows()):
            alike, HP, tan2 = (means(*of, seed=seed) for of in (("logits", grown), ("HP", grown), ("tan2", sizes)))
            logs = [math.log2(n) for n in self.filters]
            seeds.append({
                "seed": seed,
                **({"logits_slope": slope(logs, alike.values()), "logits_limit": limit(alike, power=1)} if alike else {}),
                "log2_N": crossing(logs, list(HP.values()), 0.5),
                "kernel_slope": slope([math.log(3 * k * k) for k in sizes], [math.log(t) for t in tan2.values()]),
            })  # fmt: skip
        return {"limits": limits, "growth": seeds}

    def claims(self, results: Results) -> list[Claim]:
        config = results.config
        sized = replicated(self._limits(results), [], at_small_sizes(config))
        return replicated(
            [*sized, *self._filters(results), *self._borders(results)],
            departures(config.experiment, {"models": {"cnn": WEIGHTS}}),
        )

    def _limits(self, results: Results) -> list[Claim]:
        """Judge what GBP tends to, and how soon."""
        limits, growth, node = results.rows("limits"), results.rows("growth"), results.config.experiment.models.cnn
        cap, fcn = Column(limits, "cap", "image"), math.log2(512 * node.input_size**2 / node.stride**2)

        def seeds(metric: str, name: str, rule: Rule, null: float, control: str) -> Compared:
            return Compared(metric, Column(growth, name, "seed"), rule, null=null, control=control)

        def images(metric: str, name: str, rule: Rule, control: str) -> Compared:
            return Compared(metric, Column(limits, name, "image"), rule, null=cap, control=control)

        alike, hp = "correlation of two logits' maps", "log2 of the N with HP = .5; VGG-16 has 512 filters at most"
        logits = [
            seeds(f"{alike}: slope over log2 N", "logits_slope", above(0), 0, "no growth"),
            seeds(
                f"{alike} for infinite N",
                "logits_limit",
                above(0.95, 0.9, ours=OURS),
                1 / math.pi,
                "DeconvNet's, for any N",
            ),
        ]
        ax = images(
            "cosine of map and A x for infinite N", "cosine_Ax_limit", near(1, 0.02, ours=OURS), "x in place of A x"
        )
        return [
            Claim(
                "N-T1", [images("cosine of map and x for infinite N", "cosine_limit", above(0.95, ours=OURS), "A x")]
            ),
            Claim("N-3.1.1-a", logits),
            Claim(
                "N-3.1.1-e",
                [seeds(hp, "log2_N", below(9, 11, ours=OURS), fcn, "hidden units of an FCN of equal noise")],
            ),
            Claim(
                "limit_Ax", [ax], sentence="For infinite N GBP tends to A x, not to x.", source="Theorem 1, appendix B"
            ),
        ]

    def _filters(self, results: Results) -> list[Claim]:
        """Judge how many filters it takes."""
        growth, needed = (
            Column(results.rows(t), n, "seed") for t, n in (("growth", "kernel_slope"), ("needed", "log10_N"))
        )
        control, quantile = (
            "3 s^2 / N, without the filters' size",
            "log10 of the N with a 95 % quantile of the error below .1",
        )
        of_k = Compared("slope of log tan2 over log p", growth, above(0.5, 0.25, ours=OURS), null=0, control=control)
        order = near(3, 0.5, ours=OURS)
        errors = [
            Compared(
                f"error over sqrt(p / 2N), p = {p}",
                Column(results.rows("filters", p=p), "over_law", "seed"),
                near(1, 0.05, 0.1, ours=OURS),
                null=math.sqrt(P[-1] / P[0]),
                control="an error that grows as p",
            )
            for p in P
        ]
        return [
            Claim("N-3.1.1-b", errors),
            Claim("N-3.1.1-c", [of_k]),
            Claim(
                "N-3.1.1-d",
                [Compared(quantile, needed, order, null=math.log10(50 * P[2]), control=f"p = {P[2]}")],
                paper="O(10^3)",
            ),
        ]

    def _borders(self, results: Results) -> list[Claim]:
        """Judge the border of a map, and the norms of patches."""
        same = f"kernel_{results.config.experiment.models.cnn.kernel_size}"

        def difference(name: str, other: str) -> Column:
            """SAME minus VALID padding."""
            return Column(results.rows(setting=same), name, "seed") - Column(
                results.rows(setting="valid"), other, "seed"
            )

        inner, shifted, rim = (
            difference(*n) for n in (("inner", "inner"), ("shifted", "inner"), ("rim_error", "rim_error"))
        )
        cosL, cv = (
            "cosL within the rim, SAME minus VALID padding",
            "standard deviation over mean of the norms of patches",
        )
        norms, spread = Column(results.rows("limits"), "cv", "image"), "exponentially distributed norms"
        return [
            Claim(
                "N-3.1-c",
                [Compared(cosL, inner, near(0, 0.02, 0.05, ours=OURS), null=shifted, control="a shifted map")],
            ),
            Claim("N-B-e", [Compared(cv, norms, below(0.1, 0.5, ours=OURS), null=1.0, control=spread)]),
            Claim(
                "N-B-h",
                [Compared("1 - cosine on the rim, SAME minus VALID", rim, below(0), null=0, control="no change")],
            ),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, image, target = results.config, images(results)[0], targets(results)[0]
        method = next(iter(config.methods))
        panels = [Panel(display.picture(results.arrays[f"{image}/cnn_{self.filters[0]}/input"]), f"input: {image}")]
        for n in self.filters:
            map_ = results.arrays[f"{image}/cnn_{n}/{target}/{method}"]
            cosines = column(results, "cosL", image=image, setting=f"cnn_{n}", method=method, target=target)
            panels.append(Panel(display.minmax(map_), f"N = {n}", mean_and_spread(cosines)))
        stride = config.experiment.models.cnn.stride
        caption = [
            f"{LABELS.get(method, method)} in a random three-layer CNN with N filters, stride {stride}",
            *random_networks(results),
            "Under each map: its cosine with the input, after dividing by A",
        ]
        law, noise = LAW * 3 * stride**2, "noise over signal, tan²"
        text = (
            f"Left: energy of the noise in {LABELS.get(method, method)} over that of the signal, a point for each of "
            f"{config.seeds} seeds and image, and its law. Middle: the same for filters of several sizes, {self.among} each. "
            f"Right: error of the mean of N truncated filters with p = {P[0]}, a point for each seed (mean of "
            f"{DRAWS // P[0]} draws), and its law; the paper asks for less than .1 (red)"
        )
        figure, (left, middle, right) = plot(6.9, 2.2, [text], columns=3)
        points: dict[str, Any] = {"linestyle": "", "marker": ".", "color": "tab:blue", "alpha": 0.5}
        with styled():
            for axes, sizes, setting in ((left, self.filters, "cnn"), (middle, self.kernels, "kernel")):
                for n in sizes:
                    tan2 = column(results, "tan2", setting=f"{setting}_{n}", method=method, target=target)
                    axes.plot([n] * len(tan2), tan2, **points)
            left.plot(self.filters, [law / n for n in self.filters], color="black", label=".943 π² 3 s² / N")
            middle.plot(self.kernels, [law / self.among] * len(self.kernels), color="black")
            for row in results.rows("filters", p=P[0]):
                right.plot(row["N"], row["error"], **points)
            right.plot(SIZES, [math.sqrt(P[0] / 2 / n) for n in SIZES], color="black", label="√(p / 2N)")
            right.axhline(0.1, color="tab:red", linewidth=0.8)
            for axes, label in ((left, noise), (right, "error")):
                axes.set(xscale="log", yscale="log", xlabel="filters N", ylabel=label)
                axes.legend()
            middle.set(yscale="log", ylim=left.get_ylim(), xlabel="side of the filters k", xticks=self.kernels)
            right.set_yticks([0.1, 0.2, 0.4], [".1", ".2", ".4"])
            left.set_xticks(self.filters, self.filters)
            for axes in (left, middle, right):
                axes.minorticks_off()
        return {"figure": panel_grid([PanelRow(panels)], caption), "law": figure}


def mean_errors(seed: int, p: int) -> Tensor:
    """Return || 1/N sum_i w~(i) - E[w~] || for filters of p values from N(0, 1): [draws, N = 1, 2, ...]."""
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(DRAWS // p, SIZES[-1], p, generator=random, dtype=torch.float64)
    w = w * (w[..., :1] > 0)  # y is the first unit vector
    error = w.cumsum(1) / torch.arange(1, SIZES[-1] + 1, dtype=torch.float64).view(-1, 1)
    error[..., 0] -= 1 / math.sqrt(2 * math.pi)
    return error.norm(dim=-1)


def crossing(x: Sequence[float], y: Sequence[float], level: float) -> float:
    """Return where a growing y(x) reaches a level, on the line through two points that is nearest to it."""
    i = next((i for i, value in enumerate(y) if value >= level), len(y) - 1)
    i = max(i, 1)
    return x[i] + (level - y[i]) * (x[i] - x[i - 1]) / (y[i] - y[i - 1])
