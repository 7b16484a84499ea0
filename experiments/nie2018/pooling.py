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
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn

from experiments.nie2018.three_layer import (
    CNN,
    LABELS,
    Shown,
    ThreeLayer,
    column,
    images,
    limit,
    random_networks,
    targets,
)
from vis import metrics
from vis.claims import (
    Claim,
    Column,
    Compared,
    above,
    at_small_sizes,
    below,
    departures,
    each_above,
    mean,
    mean_and_spread,
    replicated,
)
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, plot, styled
from vis.methods import GUIDED, Forward
from vis.runner.experiment import Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

PAPER = {"models": {"cnn": CNN | {"num_filters": 256}}}
WINDOWS: dict[str, dict[str, Any]] = {
    "none": {},
    "2x2": {"pool": "2x2"},
    "3x3": {"window": 3},
    "5x5": {"window": 5},
    "9x9": {"window": 9},
    "15x15": {"window": 15},
}
OURS = "the bounds are ours"
HIGH = above(0.9, 0.7, ours=OURS)


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


def rates(positive: Tensor, windows: Tensor) -> dict[str, float]:
    """Compare the responses of an image that are positive with those that are chosen, by how many windows."""
    c = windows > 0
    found = {
        "agreement": (positive == c).double().mean(),
        "chosen_if_positive": c[positive].double().mean(),
        "positive_if_chosen": positive[c].double().mean(),
        "windows_positive": windows[positive].double().sum() / windows.double().sum(),
        "contradictory": ((c & ~positive) | (positive & ~c)).double().mean(),
    }
    return {name: value.item() for name, value in found.items()}


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

    def numbers(self, shown: Shown, target: int, method: str) -> dict[str, Tensor]:
        found, maps = super().numbers(shown, target, method), shown.maps[target]
        if method != "deconvnet":
            return found
        found["like_gbp"] = metrics.pearson(maps["deconvnet"], maps["gbp"])
        if len(shown.names) > 1:
            found["texture"] = metrics.pearson(maps["deconvnet"], maps["deconvnet"].roll(1, 0))
        if getattr(shown.net.pool, "stride", 2) == 1:
            own, other = self._eq7(shown, target)
            found |= {"eq7": metrics.pearson(maps["deconvnet"], own), "eq7_null": metrics.pearson(own, other)}
        return found

    def _eq7(self, shown: Shown, target: int) -> tuple[Tensor, Tensor]:
        """Compute Eq. (7) for DeconvNet, and for the next logit: with stride 1, GBP of the network without its pooling."""
        net, x = shown.net, shown.x.to(shown.net.conv1.weight.device)
        pool, net.pool = net.pool, nn.Identity()
        with Forward(net, x) as forward:
            units = shown.units[target] or forward.logits.argmax(1).tolist()
            logits = [units, [(k + 1) % forward.logits.shape[1] for k in units]]
            own, other = (forward.gradient(each, GUIDED).cpu() for each in logits)
        net.pool = pool
        return own, other

    def compute(self, run: Run, task: Task) -> Output:
        output = super().compute(run, task)
        network, changes = self.settings()[task["setting"]]
        model = run.model({**self.models[network], **changes}, task["seed"])  # the one that was just used
        batch = run.batch(model, task["images"])
        positive, windows = (each.cpu() for each in choices(model.net, batch.x))
        rows = output.tables["choices"] = []
        for image, p, count in zip(batch.names, positive, windows, strict=True):
            rows.append({"seed": task["seed"], "image": image, "setting": task["setting"], **rates(p, count)})
        if task["setting"] == "window_none":  # which a window of the whole map chooses, at the other end
            net: Any = model.net
            y = net.conv1(batch.x).detach().relu().flatten(2).cpu()
            whole = torch.zeros_like(y).scatter_(2, y.argmax(2, keepdim=True), 1.0).view_as(positive)
            for image, p, count in zip(batch.names, positive, whole, strict=True):
                rows.append({"seed": task["seed"], "image": image, "setting": "window_whole", **rates(p, count)})
        return output

    def summaries(self, results: Results) -> dict[str, Rows]:
        """By seed: both probabilities at once for each window; residuals for infinite N; texture against wrong choices."""
        pooled, both, seeds = [w for w in self.windows if w != "none"], [], []
        for seed in dict.fromkeys(row["seed"] for row in results.rows()):
            rate, texture = {}, {}
            for w in self.windows:
                where = {"seed": seed, "setting": f"window_{w}"}
                rows, maps = results.rows("choices", **where), results.rows(**where, method="deconvnet")
                least = min(mean([r[name] for r in rows]) for name in ("chosen_if_positive", "positive_if_chosen"))
                both.append({"seed": seed, "window": w, "both": least})
                rate[w], texture[w] = (
                    mean([1 - r["agreement"] for r in rows]),
                    mean([r.get("texture", 0.0) for r in maps]),
                )
            residuals = {}
            for method, suffix in (("gbp", "_none"), ("deconvnet", "")):
                for name in ("cosine", "cosL"):
                    values = {
                        n: results.rows(seed=seed, setting=f"filters_{n}{suffix}", method=method) for n in self.filters
                    }
                    residuals[f"{method}_{name}"] = 1 - limit(
                        {n: mean([r[name] for r in rows]) for n, rows in values.items()}
                    )
            rank = float(spearmanr([rate[w] for w in pooled], [texture[w] for w in pooled]).statistic)
            seeds.append({"seed": seed, **residuals, "texture_rank": rank})
        return {"both": both, "limits": seeds}

    def claims(self, results: Results) -> list[Claim]:
        if not {"gbp", "deconvnet"} <= set(results.config.methods):
            return []
        maps = replicated(self._maps(results) + self._limits(results), [], at_small_sizes(results.config))
        return replicated([*self._choices(results), *maps], departures(results.config.experiment, PAPER))

    def _choices(self, results: Results) -> list[Claim]:
        """Judge which responses the pooling chooses, and what follows for DeconvNet's texture."""

        def chosen(window: str) -> Column:
            return Column(results.rows("both", window=window), "both", "seed")

        both, either = (
            "smaller of P(chosen | positive) and P(positive | chosen)",
            "chosen, not positive or positive, not chosen",
        )
        iff = [
            Compared(f"{both}, {w} windows", chosen(w), HIGH, null=chosen("none"), control="no pooling")
            for w in self.windows
            if w != "none"
        ]
        cases = [
            Compared(
                f"share of responses {either}, {w} windows",
                Column(results.rows("choices", setting=f"window_{w}"), "contradictory", "seed"),
                each_above(0),
                null=0,
                control="a choice of exactly the positive",
            )
            for w in [*self.windows, "whole"]
        ]
        rank = Column(results.rows("limits"), "texture_rank", "seed")
        metric = "rank correlation over windows of what maps of two images share and of the rate of wrong choices"
        return [
            Claim("N-3.2.1-a", iff, needs=1),
            Claim("N-3.2.1-f", cases),
            Claim("N-3.2.1-h", [Compared(metric, rank, above(0), null=0, control="no relation")]),
        ]

    def _maps(self, results: Results) -> list[Claim]:
        """Judge DeconvNet's map by Eq. (7) and by GBP's."""

        def of(window: str, name: str) -> Column:
            return Column(results.rows(method="deconvnet", setting=f"window_{window}"), name, "seed")

        own, free = of(self.among, "like_gbp"), of("none", "like_gbp")
        alike, two = "correlation of DeconvNet's and GBP's maps", of(self.among, "eq7_null")
        eq7 = Compared("correlation of the maps of Eqs. (6) and (7)", of(self.among, "eq7"), HIGH, null=two,
            control="Eq. (7) for two logits")  # fmt: skip
        gbp = [
            Compared(alike, own, HIGH, null=free, control="no pooling"),
            Compared(f"{alike}, minus that without pooling", own - free, above(0), null=0, control="no gain"),
        ]
        return [Claim("N-E7", [eq7]), Claim("N-3.2.1-c", gbp)]

    def _limits(self, results: Results) -> list[Claim]:
        """Judge what is left of the input for infinite N."""

        def left(name: str) -> Column:
            return Column(results.rows("limits"), name, "seed")

        pooled, gap = f"DeconvNet with {self.among} windows", "1 - cosL for infinite N, DeconvNet"
        perfect = [
            Compared(f"1 - {name} for infinite N, GBP", left(f"gbp_{name}"), below(0.02, ours=OURS),
                null=left(f"deconvnet_{name}"), control=pooled)
            for name in ("cosine", "cosL")
        ]  # fmt: skip
        deconvnet, free = left("deconvnet_cosL"), left("gbp_cosL")
        never = [
            Compared(gap, deconvnet, above(0.02, ours=OURS), null=free, control="GBP without pooling"),
            Compared(f"{gap}, minus GBP's", deconvnet - free, above(0), null=0, control="no difference"),
        ]
        return [Claim("N-3.2.1-e", perfect), Claim("N-3.2.1-g", never)]

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
            right.set_xticks(self.filters, self.filters)
            right.minorticks_off()
            right.legend()
        return {"figure": panel_grid(rows, caption), "choices": figure}
