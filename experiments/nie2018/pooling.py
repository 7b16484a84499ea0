"""nie2018, section 3.2.1: why max-pooling makes DeconvNet behave like GBP, and how far (Eqs. 6 and 7).

"given a proper pooling window size, it is highly possible that o_ij is chosen by the max-pooling if and only if
w(i)^T y(j) > 0": then Eq. (6) for DeconvNet is Eq. (4) for GBP. And, "given any pooling window size, there might always exist
at least one of the following two contradictory cases", chosen though not positive and positive though not chosen, so
"DeconvNet (with max-pooling), in theory, never recover[s] input perfectly".

Over positions and filters P(chosen <=> w^T y > 0) is about 1/2 for any window, no more than without pooling: few of the
positive responses are chosen, and where a whole window is 0, one that is not positive is chosen. Windows have stride 1, except
for 2x2 with stride 2.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.nie2018.three_layer import CNN, LABELS, ThreeLayer, column, images, random_networks, targets
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, plot, styled
from vis.oldclaims import Claim, Criterion, above, departures, mean, mean_and_spread
from vis.runner.experiment import Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results

PAPER = {"models": {"cnn": CNN | {"num_filters": 256}}}
WINDOWS: dict[str, dict[str, Any]] = {
    "none": {},
    "2x2": {"pool": "2x2"},
    "3x3": {"window": 3},
    "5x5": {"window": 5},
    "9x9": {"window": 9},
    "15x15": {"window": 15},
}
CHOSEN = "given a proper pooling window size, it is highly possible that o_ij is chosen if and only if w(i)^T y(j) > 0"
LIKE_GBP = "adding the max-pooling makes the DeconvNet behave like GBP - doing nothing but image recovery"
CASES = "given any pooling window size, there might always exist at least one of two contradictory cases"
NEVER = "This makes DeconvNet (with max-pooling), in theory, never recover input perfectly"
PERFECT = "For GBP, the approximate gap can be made arbitrarily small by increasing the hidden layer size N"


def choices(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether each response is positive, and how many windows of the max-pooling choose it, each [B, N, H, W]."""
    with torch.no_grad():
        y = net.conv1(x)
    if isinstance(net.pool, nn.Identity):
        return y > 0, torch.ones_like(y)
    with torch.enable_grad():
        o = y.relu().requires_grad_(True)
        (gradient,) = torch.autograd.grad(net.pool(o).sum(), o)
    return y > 0, gradient


class Pooling(ThreeLayer):
    """Measure DeconvNet under max-pooling. windows: names in WINDOWS; filters: numbers N of filters at the window `among`."""

    def __init__(
        self, models: Mapping[str, Mapping[str, Any]], windows: Sequence[str], filters: Sequence[int], among: str
    ) -> None:
        super().__init__(models)
        self.windows, self.filters, self.among = list(windows), list(filters), among

    def settings(self) -> dict[str, tuple[str, dict[str, Any]]]:
        own = {f"window_{w}": ("cnn", WINDOWS[w]) for w in self.windows}
        free = {f"filters_{n}_none": ("cnn", {"num_filters": n}) for n in self.filters}
        pooled = {f"filters_{n}": ("cnn", {"num_filters": n, **WINDOWS[self.among]}) for n in self.filters}
        return own | free | pooled

    def compute(self, run: Run, task: Task) -> Output:
        output = super().compute(run, task)
        network, changes = self.settings()[task["setting"]]
        model = run.model({**self.models[network], **changes}, task["seed"])  # the one that was just used
        batch = run.batch(model, task["images"])
        positive, windows = (each.cpu() for each in choices(model.net, batch.x))
        for image, p, count in zip(batch.names, positive, windows, strict=True):
            c = count > 0
            row = {"seed": task["seed"], "image": image, "setting": task["setting"]}
            shares = {
                "agreement": (p == c).double().mean().item(),
                "chosen_if_positive": c[p].double().mean().item(),
                "windows_positive": (count[p].double().sum() / count.double().sum()).item(),
            }
            output.tables.setdefault("choices", []).append(row | shares)
        return output

    def claims(self, results: Results) -> list[Claim]:
        reason = departures(results.config.experiment, PAPER)

        claim = partial(Claim, source="Section 3.2.1", reason=reason)

        def agreement(window: str) -> list[float]:
            return [row["agreement"] for row in results.rows("choices", setting=f"window_{window}")]

        def noise(suffix: str, method: str) -> dict[str, list[float]]:
            """Return 1 - HP for growing N."""
            values = {n: column(results, "HP", setting=f"filters_{n}{suffix}", method=method) for n in self.filters}
            return {f"N = {n}": [1 - v for v in each] for n, each in values.items()}

        pooled = [w for w in self.windows if w != "none"]
        fine = {w: column(results, "HP", setting=f"window_{w}", method="deconvnet") for w in pooled}
        rate = "P(chosen <=> w^T y > 0)"
        some = above(0.01, each=True)
        falls = Criterion("each below the one before", lambda values: all(b < a for a, b in pairwise(values)), least=2)
        return [
            *(
                claim(f"chosen_{w}", CHOSEN, metric=f"{rate}, {w} windows", criterion=above(0.9), values=agreement(w))
                for w in pooled
            ),
            *(
                claim(
                    f"like_gbp_{w}",
                    LIKE_GBP,
                    metric=f"HP of DeconvNet, {w} windows",
                    criterion=above(0.4),
                    values=fine[w],
                )
                for w in pooled
            ),
            *(
                claim(
                    f"contradictory_{w}",
                    CASES,
                    metric=f"1 - {rate}, {w} windows",
                    criterion=some,
                    values=[1 - v for v in agreement(w)],
                )
                for w in pooled
            ),
            claim(
                "gbp_perfect",
                PERFECT,
                metric="1 - HP of GBP without pooling",
                criterion=falls,
                values=noise("_none", "gbp"),
            ),
            claim(
                "deconvnet_N",
                NEVER,
                metric=f"1 - HP of DeconvNet, {self.among} windows",
                criterion=falls,
                values=noise("", "deconvnet"),
            ),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        image, target = images(results)[0], targets(results)[0]
        methods, node = (
            [m for m in ("deconvnet", "gbp") if m in results.config.methods],
            results.config.experiment.models.cnn,
        )

        def fine(setting: str, method: str) -> list[float]:
            return column(results, "HP", image=image, setting=setting, method=method, target=target)

        rows = []
        for method in methods:
            panels = []
            for w in self.windows:
                map_ = results.arrays[f"{image}/window_{w}/{target}/{method}"]
                panels.append(
                    Panel(
                        display.minmax(map_),
                        f"{w} windows".replace("none windows", "no pooling") if method == methods[0] else "",
                        mean_and_spread(fine(f"window_{w}", method)),
                    )
                )
            rows.append(PanelRow(panels, LABELS[method]))
        caption = [
            f"A random three-layer CNN (N = {node.num_filters}, stride {node.stride}) with max-pooling of various windows",
            *random_networks(results),
            "Under each map: HP, the correlation with the input after a high-pass",
        ]
        size = f"input {image}, {plural(results.config.seeds, 'seed')}"
        text = (
            "Left: how often the pooling chooses exactly the positive responses (circles) and how many windows choose a "
            f"positive one (stars), and how much of the fine detail DeconvNet recovers ({size}). Right: what is not recovered "
            f"as the filters grow in number ({self.among} windows)"
        )
        figure, (left, right) = plot(6.4, 2.3, [text], columns=2)
        with styled():
            for w in self.windows:
                choices = results.rows("choices", image=image, setting=f"window_{w}")
                for rate, marker in (("agreement", "o"), ("windows_positive", "*")):
                    (line,) = left.plot(
                        [c[rate] for c in choices], fine(f"window_{w}", "deconvnet"), marker, mfc="none"
                    )
                    line.set_color(f"C{self.windows.index(w)}")
                line.set_label(w)
            left.set(xlabel="○ P(chosen ⇔ wᵀy > 0)    ☆ windows that choose wᵀy > 0", ylabel="HP of DeconvNet")
            left.legend(title="window", loc="lower right")
            for method, suffix, label in (
                ("deconvnet", "", "DeconvNet, pooled"),
                ("gbp", "", "GBP, pooled"),
                ("gbp", "_none", "GBP, not pooled"),
            ):
                values = [1 - mean(fine(f"filters_{n}{suffix}", method)) for n in self.filters]
                right.plot(self.filters, values, "o-", label=label)
            right.set(xscale="log", ylim=(0, 1), xlabel="filters N", ylabel="1 - HP")
            right.legend()
        return {"figure": panel_grid(rows, caption), "choices": figure}
