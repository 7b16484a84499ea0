"""zhou2018, Figure 11: the approximation's error at one window, over 200 images.

The arithmetic mean of the probability over 500 draws of the window is compared with the probability for its conditional mean.
The standard error of the first is stored beside the difference; a smaller difference is not significant.

An ablation parts the error's two sources: the draws averaged at the logits, which is the normalised geometric mean of their
probabilities (Eq. 14), differ from the first by Eq. (15) alone, and from the second by the layers through which the mean of the
window's content is pushed.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.zhou2018.evidence import OnePicture, chosen_class, learnt_from, not_the_papers
from experiments.zhou2018.figure9 import ALEXNET
from experiments.zhou2018.figure16 import middle
from vis.figures.layout import plot, styled
from vis.graph.modes import evaluating
from vis.models import Model
from vis.oldclaims import Claim, Criterion, above, departures, paper_and_here
from vis.runner.experiment import Batch, Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.windows.engine import Incremental

HALF = "for more than half of the input images the approximation error is very close to zero"
FEWER = "as the approximation error increases, fewer images fall into the corresponding intervals"
UNDER = "normalized geometric mean does not always underestimate arithmetic mean"
CLOSE = 0.01  # of a probability
BINS = 10
PAPER: Mapping[str, Any] = {"samples": 500}
IMAGES = 200


def approximation(
    run: Run, model: Model, batch: Batch, method: Any, samples: int, window: Sequence[int] | None
) -> dict[str, Any]:
    """Compute P(c|x without the window) for the only image of a batch, by draws of the window and by its conditional mean.

    arithmetic, geometric: mean of the draws' probabilities, softmax of the mean of their logits; efficient: of the mean
    content; standard_error: of the first.
    """
    c, logits = chosen_class(run, model, batch)
    x, k, learnt = batch.x[0], method.window, method.learnt
    at = middle(x.shape[1:], k, window)
    with evaluating(model.net):
        engine = Incremental(model.net, x[None], method.memory_gb)
        contents = torch.cat([learnt.means(x, at, k), learnt.samples(x, at, k, samples, run.config.seed)[0]])
        z = engine.logits(at.repeat(len(contents), 1), contents).double().cpu()
    p = z.softmax(1)[:, c]
    row = {"image": batch.names[0], "p": float(logits.softmax(0)[c]), "arithmetic": float(p[1:].mean())}
    row |= {"geometric": float(z[1:].mean(0).softmax(0)[c]), "efficient": float(p[0])}
    row |= {"standard_error": float(p[1:].std() / len(p[1:]) ** 0.5), "top": int(at[0, 0]), "left": int(at[0, 1])}
    return row | {"weights": model.weights}


class Figure11(OnePicture):
    """Measure the error at one window. samples: draws of the window; at: its (top, left). own_images: see EvidenceMaps."""

    def __init__(self, samples: int, at: Sequence[int] | None, own_images: bool) -> None:
        self.samples, self.at, self.own_images = samples, at, own_images

    def compute(self, run: Run, task: Task) -> Output:
        model, batch, found = self.begin(run, task)
        row = approximation(run, model, batch, found, self.samples, self.at)
        return Output(tables={"table": [row | {"learnt_from": learnt_from(run, self.own_images)}]})

    def claims(self, results: Results) -> list[Claim]:
        rows, model = results.rows(), results.config.model
        reasons = [not_the_papers(results, ALEXNET), departures(results.config.experiment, PAPER)]
        reasons.append("" if len(rows) >= IMAGES else f"{len(rows)} images (paper: {IMAGES})")
        reason = ", ".join(filter(None, reasons if model.weights != "standin" else reasons[:1]))
        errors = np.array([r["arithmetic"] - r["efficient"] for r in rows])
        counts = [float(n) for n in np.histogram(np.abs(errors), bins=BINS)[0]]
        fewer = Criterion(
            "each at most the one before", lambda values: all(b <= a for a, b in pairwise(values)), least=2
        )
        both = Criterion("both signs", lambda values: min(values) > 0)
        shares = [float(np.mean(errors > 0)), float(np.mean(errors < 0))]
        close = [float(np.mean(np.abs(errors) < CLOSE))]
        claim = partial(Claim, source="Figure 11")
        measured = [
            claim(
                "half",
                HALF,
                metric=f"share of images with |difference of P| < {CLOSE:g}",
                criterion=above(0.5),
                values=close,
            ),
            claim("fewer", FEWER, metric=f"images in {BINS} intervals of |difference|", criterion=fewer, values=counts),
            claim("under", UNDER, metric="shares of images where it is below and above", criterion=both, values=shares),
        ]
        return paper_and_here(measured, reason)

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
            f"error of the first: {np.median([r['standard_error'] for r in rows]):.1g})",
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
