"""zhou2018, Figure 11: the approximation's error at one window, over 200 images.

The arithmetic mean of the probability over 500 draws of the window is compared with the probability for its conditional mean.
The error's unit is the window's effect, |P(x) - arithmetic mean|: many windows hardly change the probability, and there any
replacement looks exact. A gray window, another image's content and means of 10 other draws, PDA's, are the controls.

An ablation parts the error's two sources: the draws averaged at the logits, which is the normalised geometric mean of their
probabilities (Eq. 14), differ from the first by Eq. (15) alone, and from the second by the layers through which the mean of the
window's content is pushed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import kendalltau

from experiments.zhou2018.evidence import (
    OnePicture,
    chosen_class,
    column,
    differences,
    images_of,
    learnt,
    middle,
    window_logits,
)
from vis.claims import Claim, Column, Compared, above, below, on_digits, replicated
from vis.figures.layout import plot, styled
from vis.methods.perturbation import cut
from vis.models import Model
from vis.runner.experiment import Batch, Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

BINS = 10
IMAGES = 200  # of the paper
GROUP = 20  # images of a histogram whose order is tested
TENTH, HALF = -1, math.log10(0.5)  # of the window's effect, in decades
GOOD = below(TENTH, HALF, ours="a tenth and a half of the window's effect are ours")


def approximation(
    run: Run, model: Model, batch: Batch, method: Any, samples: int, window: Sequence[int] | None
) -> dict[str, Any]:
    """Compute P(c|x without the window) for the only image of a batch, by draws of the window and by its conditional mean.

    arithmetic, geometric: mean of the draws' probabilities, softmax of the mean of their logits; efficient: of the mean
    content; standard_error: of the first; draw_error: the mean of log10 |P of a draw - arithmetic|.
    """
    c, logits = chosen_class(run, model, batch)
    x, k, found = batch.x[0], method.window, method.learnt
    at = middle(x.shape[1:], k, window)
    contents = torch.cat([found.means(x, at, k), found.samples(x, at, k, samples, run.config.seed)[0]])
    z = window_logits(model, x, method, at, contents)
    p = z.softmax(1)[:, c]
    row = {"image": batch.names[0], "p": float(logits.softmax(0)[c]), "arithmetic": float(p[1:].mean())}
    row |= {"geometric": float(z[1:].mean(0).softmax(0)[c]), "efficient": float(p[0])}
    row |= {"standard_error": float(p[1:].std() / len(p[1:]) ** 0.5), "top": int(at[0, 0]), "left": int(at[0, 1])}
    return row | {"draw_error": decades(p[1:] - p[1:].mean()), "weights": model.weights}


def decades(errors: torch.Tensor) -> float:
    """Return the mean of log10 |error|, with a floor of 1e-12."""
    return float(errors.abs().clamp(min=1e-12).log10().mean())


class Figure11(OnePicture):
    """Measure the error at one window. samples: draws of the window; at: its (top, left). own_images: see EvidenceMaps."""

    def __init__(self, samples: int, at: Sequence[int] | None, own_images: bool) -> None:
        self.samples, self.at, self.own_images = samples, at, own_images

    def compute(self, run: Run, task: Task) -> Output:
        model, batch, found = self.begin(run, task)
        return Output(tables={"table": [self.row(run, model, batch, found) | learnt(run, model, self.own_images)]})

    def row(self, run: Run, model: Model, batch: Batch, method: Any) -> dict[str, Any]:
        """Return an image's `approximation` and its controls.

        gray, other: P with a gray window, and with the next image's content in it. ten: the mean of log10 |P - arithmetic| of
        PDA with 10 draws, other ones.
        """
        row = approximation(run, model, batch, method, self.samples, self.at)
        x, k, c = batch.x[0], method.window, chosen_class(run, model, batch)[0]
        at = torch.tensor([[row["top"], row["left"]]])
        number = (run.dataset.names.index(batch.names[0]) + 1) % len(run.dataset)
        gray = run.preprocess(model)(torch.full_like(batch.pixels, 0.5).to(run.dtype)).to(x)
        others = [cut(each[0], at, k) for each in (gray, run.batch(model, [number]).x)]
        draws = method.learnt.samples(x, at, k, self.samples, run.config.seed + 1)[0]
        p = window_logits(model, x, method, at, torch.cat([*others, draws])).softmax(1)[:, c]
        tens = p[2:][: self.samples // 10 * 10].view(-1, 10).mean(1)
        row |= {"gray": float(p[0]), "other": float(p[1]), "ten": decades(tens - row["arithmetic"])}
        return row | {"network": model.name, "data": images_of(run)}

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the errors of each image, and the order of histograms of 20 images each.

        log_...: log10 of an error over the window's effect; log_ten: over the error of PDA with 10 draws. near_...: 1 if the
        error is below a tenth of the effect or two standard errors.
        """
        errors = [_errors(row) for row in results.rows()]
        groups = []
        for number in range(len(errors) // GROUP):
            sizes = [row["error"] for row in errors[number * GROUP : (number + 1) * GROUP]]
            uniform = np.random.default_rng(number).random(GROUP)
            groups.append({"group": number, "tau": order(sizes), "tau_uniform": order(uniform)})
        return {"errors": errors, "groups": groups}

    def claims(self, results: Results) -> list[Claim]:
        rows, config = results.rows(), results.config
        images = (
            []
            if (config.get("dataset") or {}).get("_target_") == "vis.data.imagenet" and len(rows) == IMAGES
            else [f"{len(rows)} images ({rows[0]['data']}) instead of {IMAGES} of ILSVRC"]
        )
        draws = [] if self.samples == 500 else [f"{self.samples} draws instead of 500"]
        others = [*differences(results, "AlexNet", rows[0]), *images, *draws]
        return replicated([*_figure(results), *_sources(results)], others, on_digits(config))

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows = results.rows()
        sources = {
            "arithmetic − efficient": [r["arithmetic"] - r["efficient"] for r in rows],
            "of it Eq. 15: arithmetic − geometric": [r["arithmetic"] - r["geometric"] for r in rows],
            "of it the layers: geometric − efficient": [r["geometric"] - r["efficient"] for r in rows],
        }
        caption = [
            f"Figure 11: mean probability over {self.samples} draws of the window at row {rows[0]['top']}, column "
            f"{rows[0]['left']}, minus the probability for its conditional mean, {plural(len(rows), 'image')} (median standard "
            f"error of the first: {np.median([r['standard_error'] for r in rows]):.1g}; median effect of the window: "
            f"{np.median([r['effect'] for r in results.rows('errors')]):.1g})",
            "Lines: its two parts, where the draws are averaged at the logits instead (geometric mean). Median size: "
            + ", ".join(f"{name} {np.median(np.abs(errors)):.1g}" for name, errors in sources.items()),
            f"{results.config.model.name}, {rows[0]['weights']}; windows learnt from {rows[0]['learnt_from']}",
        ]
        figure, (axes,) = plot(4.4, 2.4, caption)
        bins = np.histogram_bin_edges(np.concatenate(list(sources.values())), 2 * BINS)
        with styled():
            for (name, errors), color in zip(sources.items(), ("tab:blue", "tab:orange", "black"), strict=True):
                kind: Any = "bar" if color == "tab:blue" else "step"
                axes.hist(errors, bins=bins, histtype=kind, color=color, label=name)
            axes.set(xlabel="difference of the probability", ylabel="images")
            axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 2))
            axes.locator_params(axis="x", nbins=5)
            axes.set_ylim(top=1.4 * axes.get_ylim()[1])  # room for the legend
            axes.legend(loc="upper right")
        return {"figure": figure}


def _errors(row: Mapping[str, Any]) -> dict[str, Any]:
    p, mean = row["p"], row["arithmetic"]
    errors = {name: abs(row[name] - mean) for name in ("efficient", "geometric", "gray", "other")}
    effect, log = abs(p - mean), {name: math.log10(max(error, 1e-12)) for name, error in errors.items()}
    unit, bound = math.log10(max(effect, 1e-12)), max(2 * row["standard_error"], 0.1 * effect)
    found = {"network": row["network"], "image": row["image"], "effect": effect, "error": errors["efficient"]}
    found |= {"error_gray": errors["gray"]} | {f"log_{name}": value - unit for name, value in log.items()}
    found |= {"log_draw": row["draw_error"] - unit, "log_ten": log["efficient"] - row["ten"]}
    return found | {f"near_{name}": float(error < bound) for name, error in errors.items()}


def order(sizes: Sequence[float] | np.ndarray) -> float:
    """Return Kendall's tau of a bin's number and its count, over 10 bins; 0 if all counts are equal."""
    counts = np.histogram(sizes, BINS, (0, max(max(sizes), 1e-300)))[0]
    return float(np.nan_to_num(kendalltau(range(BINS), counts).statistic))


def _figure(results: Results) -> list[Claim]:
    """The sentences on the figure."""
    gray = "a gray window in place of the conditional mean"
    near = Compared(
        "images with an error below a tenth of the window's effect, or two standard errors of the mean over draws",
        column(results, "errors", "near_efficient"),
        above(0.5, of="share", ours="a tenth is ours"),
        null=column(results, "errors", "near_gray"),
        control=gray,
    )
    fewer = Compared(
        f"Kendall's tau of the size of the error and the number of images, {BINS} intervals, {GROUP} images each time",
        Column(results.rows("groups"), "tau", "group"),
        below(0),
        null=Column(results.rows("groups"), "tau_uniform", "group"),
        control="uniform errors",
    )
    good = Compared(
        "log10 of the error over the window's effect",
        column(results, "errors", "log_efficient"),
        GOOD,
        null=column(results, "errors", "log_gray"),
        control=gray,
    )
    few = (
        f"it takes {4 * GROUP} images or more: dataset=imagenet dataset.path=FOLDER"
        if not results.rows("groups")
        else ""
    )
    return [Claim("Z-3-h", [near]), Claim("Z-3-i", [fewer], reason=few), Claim("Z-3-j", [good])]


def _sources(results: Results) -> list[Claim]:
    """The sentences on what replaces what."""
    equal = Compared(
        "log10 of |arithmetic mean - softmax of the mean logits| over the window's effect",
        column(results, "errors", "log_geometric"),
        GOOD,
        null=column(results, "errors", "log_draw"),
        control="the softmax of one draw's logits",
    )
    patches = Compared(
        "error of a gray window - error of the conditional mean, in probability",
        column(results, "errors", "error_gray") - column(results, "errors", "error"),
        above(0),
        null=0.0,
        control="a gray window that is no worse",
    )
    ten = "PDA with 10 draws itself"
    accurate = Compared(
        "log10 of the error over that of PDA with 10 draws",
        column(results, "errors", "log_ten"),
        below(0),
        null=0.0,
        control=ten,
    )
    ids = {"Z-2.1-b": equal, "Z-1-p": patches, "Z-1-u": accurate}
    return [Claim(id_, [compared]) for id_, compared in ids.items()]
