"""zhou2018, Figure 11: the approximation's error at one window, over 200 images.

The arithmetic mean of the probability over 500 draws of the window, against the probability for its conditional mean. The
standard error of the first is stored beside the difference: what is smaller than that says nothing.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.zhou2018.evidence import OnePicture, chosen_class, learnt_from, not_the_papers
from experiments.zhou2018.figure9 import ALEXNET
from experiments.zhou2018.figure16 import middle
from vis.claims import Claim, Rule, above, departures, paper_and_here
from vis.experiment import Run, Unit
from vis.figures import plot, styled
from vis.incremental import Incremental
from vis.methods.forward import evaluating
from vis.record import Part, Results

HALF = "for more than half of the input images the approximation error is very close to zero"
FEWER = "as the approximation error increases, fewer images fall into the corresponding intervals"
UNDER = "normalized geometric mean does not always underestimate arithmetic mean"
CLOSE = 0.01  # of a probability
BINS = 10
PAPER: Mapping[str, Any] = {"samples": 500}
IMAGES = 200


class Figure11(OnePicture):
    """samples: of the window; at: its (top, left). own_images: see EvidenceMaps."""

    def __init__(self, samples: int, at: Sequence[int] | None, own_images: bool) -> None:
        self.samples, self.at, self.own_images = samples, at, own_images

    def compute(self, run: Run, unit: Unit) -> Part:
        model, batch, found = self.begin(run, unit)
        c, logits = chosen_class(run, model, batch)
        x, k = batch.x[0], found.window
        at = middle(x.shape[1:], k, self.at)
        with evaluating(model.net):
            engine = Incremental(model.net, x[None], found.memory_gb)
            contents = torch.cat(
                [found.learnt.means(x, at, k), found.learnt.samples(x, at, k, self.samples, run.config.seed)[0]]
            )
            p = engine.logits(at.repeat(len(contents), 1), contents).double().softmax(1)[:, c].cpu()
        row = {"image": batch.names[0], "p": float(logits.softmax(0)[c]), "arithmetic": float(p[1:].mean())}
        row |= {"efficient": float(p[0]), "standard_error": float(p[1:].std() / len(p[1:]) ** 0.5)}
        row |= {"top": int(at[0, 0]), "left": int(at[0, 1])}
        row |= {"weights": model.weights, "learnt_from": learnt_from(run, self.own_images)}
        return Part(tables={"table": [row]})

    def claims(self, results: Results) -> list[Claim]:
        rows, model = results.rows(), results.config.model
        reasons = [not_the_papers(results, ALEXNET), departures(results.config.experiment, PAPER)]
        reasons.append("" if len(rows) >= IMAGES else f"{len(rows)} images (paper: {IMAGES})")
        reason = ", ".join(filter(None, reasons if model.weights != "standin" else reasons[:1]))
        errors = np.array([r["arithmetic"] - r["efficient"] for r in rows])
        counts = [float(n) for n in np.histogram(np.abs(errors), bins=BINS)[0]]
        fewer = Rule("each at most the one before", lambda values: all(b <= a for a, b in pairwise(values)))
        both = Rule("both signs", lambda values: min(values) > 0)
        shares = [float(np.mean(errors > 0)), float(np.mean(errors < 0))]
        close = [float(np.mean(np.abs(errors) < CLOSE))]
        measured: list[tuple[str, str, str, Rule, list[float]]] = [
            ("half", HALF, f"share of images with |difference of P| < {CLOSE:g}", above(0.5), close),
            ("fewer", FEWER, f"images in {BINS} intervals of |difference|", fewer, counts),
            ("under", UNDER, "shares of images where it is below and above", both, shares),
        ]
        return paper_and_here("Figure 11", measured, reason)

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows = results.rows()
        errors = [r["arithmetic"] - r["efficient"] for r in rows]
        caption = [
            f"Figure 11: mean probability over {self.samples} draws of the window at row {rows[0]['top']}, column "
            f"{rows[0]['left']}, minus the probability for its conditional mean, {len(rows)} images (median standard error of "
            f"the first: {np.median([r['standard_error'] for r in rows]):.1g})",
            f"{results.config.model.name}, {rows[0]['weights']}; windows learnt from {rows[0]['learnt_from']}",
        ]
        figure, (axes,) = plot(4.4, 2.2, caption)
        with styled():
            axes.hist(errors, bins=2 * BINS, color="tab:blue")
            axes.set(xlabel="arithmetic mean − efficient", ylabel="images")
        return {"figure": figure}
