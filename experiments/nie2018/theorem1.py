"""nie2018, Theorem 1: guided backpropagation recovers the input of a random three-layer CNN as its filters grow in number.

"In a random three-layer CNN, if the number of filters N is sufficiently large, GBP at the k-th logit can be approximated
as s_k(x) ~ x." How many? "given a filter size 3x3x3, we need at most O(10^3) filters to achieve an estimation error
less than 0.1": the error of the mean of N truncated filters, || 1/N sum_i w~(i) - E[w~] || for w from N(0, I).

The noise in a map falls as tan2 = .943 pi^2 3 s^2 / N. What is left is A x, not x (finding 3): patches of small norm
weigh as much as others, A = sum_j 1/||y_j|| at each pixel. The error of the mean is sqrt(p / 2N).
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.nie2018.figure5 import LAW, over_law
from experiments.nie2018.three_layer import CNN, LABELS, ThreeLayer, column, images, random_networks, targets
from vis import metrics
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, plot, styled
from vis.oldclaims import Claim, Criterion, below, departures, increasing, mean, mean_and_spread, within
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output, Results

PAPER = {"filters": [8, 16, 32, 64, 256, 1024], "models": {"cnn": CNN}}
P, DRAWS, SIZES = 27, 32, (100, 200, 500, 1000, 1500, 2000, 2700, 5000)
THEOREM = "if the number of filters N is sufficiently large, GBP at the k-th logit can be approximated as x"
NEEDED = "given a filter size 3x3x3, we need at most O(10^3) filters to achieve an estimation error less than 0.1"
LIMIT = "Finding 3: the limit of GBP is A x, not x, where A weighs a pixel by 1/norm of the patches on it."


class Theorem1(ThreeLayer):
    """Measure GBP and the error of the mean for growing N. filters: the numbers N."""

    def __init__(self, models: Mapping[str, Mapping[str, Any]], filters: Sequence[int]) -> None:
        super().__init__(models)
        self.filters = list(filters)

    def settings(self) -> dict[str, tuple[str, dict[str, Any]]]:
        return {f"cnn_{n}": ("cnn", {"num_filters": n}) for n in self.filters}

    def numbers(self, map_: Tensor, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
        return super().numbers(map_, x, weight) | {
            "cosine_Ax": metrics.cosine(map_, weight * x),
            "cosine_limit": metrics.cosine(weight * x, x),
        }

    def compute(self, run: Run, task: Task) -> Output:
        output = super().compute(run, task)
        if task["setting"] == f"cnn_{self.filters[0]}" and 0 in task["images"]:
            errors = mean_errors(task["seed"])
            output.tables["filters"] = [{"seed": task["seed"], "N": n, "error": errors[n - 1]} for n in SIZES]
            needed = next(n for n, error in enumerate(errors, 1) if error < 0.1)
            output.tables["needed"] = [{"seed": task["seed"], "N": needed}]
        return output

    def claims(self, results: Results) -> list[Claim]:
        config = results.config
        few = "" if config.seeds >= 4 else f"it takes the mean of 4 seeds or more, not {config.seeds}"
        reason = departures(config.experiment, PAPER) or few

        claim = partial(Claim, source="Theorem 1", reason=reason)

        def of(name: str) -> dict[str, list[float]]:
            return {f"N = {n}": column(results, name, setting=f"cnn_{n}") for n in self.filters}

        stride, last = config.experiment.models.cnn.stride, f"N = {self.filters[-1]}"
        law = {
            k: over_law(v, LAW * 3 * stride**2 / n) for n, (k, v) in zip(self.filters, of("cosL").items(), strict=True)
        }
        limit = {"of map and x": of("cosine")[last], "of map and A x": of("cosine_Ax")[last]}
        cap = column(
            results, "cosine_limit", setting=f"cnn_{self.filters[0]}", seed=config.seed
        )  # the same for all seeds
        errors = {n: [row["error"] for row in results.rows("filters", N=n)] for n in SIZES}
        ratios = {f"N = {n}": [e / math.sqrt(P / 2 / n) for e in errors[n]] for n in SIZES}
        order = Criterion("10^2.5 < mean < 10^3.5", lambda values: 10**2.5 < mean(values) < 10**3.5)
        needed = [row["N"] for row in results.rows("needed")]
        error, source = "error of the mean of N filters, p = 27", "Section 3.1.1"
        return [
            claim(
                "cosL_grows",
                THEOREM,
                metric="cosL: cosine of A^-1 map and input",
                criterion=increasing(),
                values=of("cosL"),
            ),
            claim(
                "pear_grows",
                THEOREM,
                metric="pear: correlation of map and input",
                criterion=increasing(),
                values=of("pear"),
            ),
            claim(
                "noise_law",
                THEOREM,
                metric="tan2 of the mean cosL over .943 pi^2 3 s^2 / N",
                criterion=within(1, 0.25),
                values=law,
            ),
            Claim(
                "filters_needed",
                NEEDED,
                source=source,
                metric=f"N at which the {error}, falls below .1",
                criterion=order,
                values=needed,
                paper="O(10^3)",
            ),
            Claim(
                "error_law",
                NEEDED,
                source=source,
                metric=f"{error}, over sqrt(p / 2N)",
                criterion=within(1, 0.05),
                values=ratios,
            ),
            claim(
                "finding3_limit",
                LIMIT,
                metric=f"cosine, {last}",
                criterion=increasing(),
                values=limit,
                origin="project",
            ),
            claim(
                "finding3_cap",
                LIMIT,
                metric="cosine of A x and x: the cap at any N",
                criterion=below(0.95),
                values={"": cap},
                origin="project",
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
        figure, (left, right) = plot(
            6.4,
            2.3,
            [
                f"Left: energy of the noise in {LABELS.get(method, method)} over that of the signal, one point for each of "
                f"{config.seeds} seeds, and its law. Right: error of the mean of N truncated filters with p = {P} (mean of "
                f"{DRAWS} draws for each seed) and its law; the paper asks for less than .1"
            ],
            columns=2,
        )
        with styled():
            for n in self.filters:
                tan2 = column(results, "tan2", setting=f"cnn_{n}", method=method, target=target)
                left.plot([n] * len(tan2), tan2, ".", color="tab:blue", alpha=0.5)
            left.plot(
                self.filters, [LAW * 3 * stride**2 / n for n in self.filters], color="black", label=".943 π² 3 s² / N"
            )
            for row in results.rows("filters"):
                right.plot(row["N"], row["error"], ".", color="tab:blue", alpha=0.5)
            right.plot(SIZES, [math.sqrt(P / 2 / n) for n in SIZES], color="black", label="√(p / 2N)")
            right.axhline(0.1, color="tab:red", linewidth=0.8)
            for axes, label in ((left, "noise over signal, tan²"), (right, "error")):
                axes.set(xscale="log", yscale="log", xlabel="filters N", ylabel=label)
                axes.legend()
        return {"figure": panel_grid([PanelRow(panels)], caption), "law": figure}


def mean_errors(seed: int) -> list[float]:
    """Return || 1/N sum_i w~(i) - E[w~] || for N = 1, 2, ..., the mean over draws of the filters from N(0, 1)."""
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(DRAWS, SIZES[-1], P, generator=random, dtype=torch.float64)
    w = w * (w[..., :1] > 0)  # y is the first unit vector
    N = torch.arange(1, SIZES[-1] + 1, dtype=torch.float64).view(-1, 1)
    error = w.cumsum(1) / N
    error[..., 0] -= 1 / math.sqrt(2 * math.pi)
    return error.norm(dim=-1).mean(0).tolist()
