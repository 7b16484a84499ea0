"""zhou2018, Figure 16: how the two algorithms' P(c|x without w) differ, by the number of samples drawn at one window.

"The prediction difference fluctuates intensely when only a few samples are drawn." PDA's P is the mean over S draws, the
efficient algorithm's P that of the conditional mean. That it spreads as 1 / sqrt(S) is no finding; how much it spreads at 10
draws, as a share of the window's effect |P(x) - mean over all draws|, is one.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

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
from experiments.zhou2018.geometric_mean import slope
from vis.claims import Claim, Compared, above, near, on_digits, replicated
from vis.figures.layout import plot, styled
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

FEW = 10  # draws of the paper's PDA
COUNTS = (1, 3, 10, 30, 100)


class Figure16(OnePicture):
    """Measure the spread of PDA's P.

    samples: the most samples; draws: repetitions; at: (top, left) of the window. own_images: see EvidenceMaps.
    """

    def __init__(self, samples: int, draws: int, at: Sequence[int] | None, own_images: bool) -> None:
        self.samples, self.draws, self.at, self.own_images = samples, draws, at, own_images

    def compute(self, run: Run, task: Task) -> Output:
        model, batch, found = self.begin(run, task)
        c, logits = chosen_class(run, model, batch)
        x, image, k = batch.x[0], batch.names[0], found.window
        at = middle(x.shape[1:], k, self.at)
        seeds = range(run.config.seed, run.config.seed + self.draws)
        contents = [found.learnt.samples(x, at, k, self.samples, seed)[0] for seed in seeds]
        p = window_logits(model, x, found, at, torch.cat([found.learnt.means(x, at, k), *contents])).softmax(1)[:, c]
        row = {"image": image, "class": model.class_name(c), "p": float(logits.softmax(0)[c]), "efficient": float(p[0])}
        row |= {
            "top": int(at[0, 0]),
            "left": int(at[0, 1]),
            "weights": model.weights,
            "data": images_of(run),
        }
        return Output(
            {f"{image}/p": p[1:].view(self.draws, -1).numpy()}, {"table": [row | learnt(run, model, self.own_images)]}
        )

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return for each image log10 of the spread of P over the window's effect, and the power of S in PDA's error."""
        rows = []
        for row in results.rows():
            p = means(results, row["image"])
            truth = p[:, -1].mean()
            unit = math.log10(max(abs(row["p"] - truth), 1e-12))
            spread = {f"S{s}": math.log10(max(p[:, s - 1].std(ddof=1), 1e-12)) - unit for s in (FEW, self.samples)}
            counts = [s for s in COUNTS if s <= self.samples]
            error = [float(np.sqrt(np.square(p[:, s - 1] - truth).mean())) for s in counts]
            power = slope(counts, error) if min(error) else None  # None: no draw changes P
            rows.append({"image": row["image"], "power": power} | spread)
        return {"spread": rows}

    def claims(self, results: Results) -> list[Claim]:
        """Judge the power of S, which is the same in any network, at any size."""
        spread, null = (column(results, "spread", f"S{s}") for s in (FEW, self.samples))
        metric, control = (
            f"log10 of the standard deviation of PDA's P, {FEW} draws, over the window's effect",
            (f"PDA with {self.samples} draws"),
        )
        source, intense = (
            Compared(metric, spread, above(*bounds, ours=ours), null=null, control=control)
            for bounds, ours in (((-1, -2), "a tenth and a hundredth are ours"), ((0, -1), "once and a tenth are ours"))
        )
        power = Compared(
            "power of S in the root mean square error of PDA's P",
            column(results, "spread", "power"),
            near(-0.5, 0.15, 0.5, ours="the bounds are ours"),
            null=0.0,
            control="an error that more draws do not reduce",
        )
        first = results.rows()[0]
        others = [
            *differences(results, "VGG-16", first),
            f"{len(results.rows())} images ({first['data']}) instead of one",
        ]
        found = [Claim("Z-1-q", [source]), Claim("Z-F16-a", [intense])]
        return [
            *replicated(found, others, on_digits(results.config)),
            *replicated([Claim("Z-F15-a", [power])], others),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        row = max(results.rows(), key=lambda r: results.arrays[f"{r['image']}/p"].std())
        caption = [
            f"Figure 16: |P by PDA − P by the efficient algorithm| at the window at row {row['top']}, column {row['left']} of "
            f"{row['image']} ({row['class']}, P = {row['p']:.3f}) against the number of draws, {self.draws} repetitions (gray; "
            f"one of them black); of {len(results.rows())} images the one where it varies most",
            f"{results.config.model.name}, {row['weights']}; windows learnt from {row['learnt_from']}",
        ]
        figure, (axes,) = plot(4.4, 2.4, caption)
        with styled():
            for i, each in reversed(list(enumerate(np.abs(means(results, row["image"]) - row["efficient"])))):
                axes.plot(range(1, len(each) + 1), each, color="0.8" if i else "black", linewidth=0.8 if i else 1.2)
            axes.set(xscale="log", xlabel="samples S", ylabel="|difference| of P", ylim=(0, None))
        return {"figure": figure}


def means(results: Results, image: str) -> np.ndarray:
    """Return PDA's P after 1, 2, ... draws: [repetitions, samples]."""
    p = results.arrays[f"{image}/p"]
    return p.cumsum(1) / np.arange(1, p.shape[1] + 1)
