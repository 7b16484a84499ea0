"""zhou2018, Figure 16: how the two algorithms' P(c|x without w) differ, by the number of samples drawn at one window.

"The prediction difference fluctuates intensely when only a few samples are drawn." PDA's P is the mean over S draws, the
efficient algorithm's P that of the conditional mean. Over repetitions, PDA's P spreads as 1 / sqrt(S).
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.zhou2018.evidence import OnePicture, chosen_class, learnt_from, not_the_papers
from experiments.zhou2018.geometric_mean import slope
from vis.figures.layout import plot, styled
from vis.graph.modes import evaluating
from vis.oldclaims import Claim, Criterion, increasing, paper_and_here
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output, Results
from vis.windows.engine import Incremental

FLUCTUATES = "the prediction difference fluctuates intensely when only a few samples are drawn"
ROOT = "Beyond the paper: PDA's P at a window spreads over repetitions as 1 / sqrt(S)."


def middle(size: Sequence[int], k: int, at: Sequence[int] | None) -> torch.Tensor:
    """Return the window's (top, left) [1, 2]: `at`, or the middle of the image."""
    return torch.tensor([list(at) if at else [(n - k) // 2 for n in size]])


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
        with evaluating(model.net):
            engine = Incremental(model.net, x[None], found.memory_gb)

            def probability(contents: torch.Tensor) -> torch.Tensor:
                return engine.logits(at.repeat(len(contents), 1), contents).double().softmax(1)[:, c].cpu()

            efficient = float(probability(found.learnt.means(x, at, k)))
            draws = [
                probability(found.learnt.samples(x, at, k, self.samples, run.config.seed + i)[0])
                for i in range(self.draws)
            ]
        row = {"image": image, "class": model.class_name(c), "p": float(logits.softmax(0)[c]), "efficient": efficient}
        row |= {"top": int(at[0, 0]), "left": int(at[0, 1]), "weights": model.weights}
        row |= {"learnt_from": learnt_from(run, self.own_images)}
        return Output({f"{image}/p": torch.stack(draws).numpy()}, {"table": [row]})

    def claims(self, results: Results) -> list[Claim]:
        reason = not_the_papers(results)
        counts = [s for s in (1, 3, 10, 30, 100, 300) if s <= self.samples]
        spreads = {
            f"S = {s}": [float(means(results, r["image"])[:, s - 1].std(ddof=1)) for r in results.rows()]
            for s in counts
        }
        order = [
            slope(counts, [spreads[f"S = {s}"][i] for s in counts]) if spreads["S = 1"][i] else float("nan")
            for i in range(len(results.rows()))
        ]
        half = Criterion("mean within 0.15 of -1/2", lambda values: abs(float(np.mean(values)) + 0.5) < 0.15)
        metric = "standard deviation of PDA's P over repetitions"
        few = dict(reversed([item for item in spreads.items() if item[0] in ("S = 1", "S = 10", "S = 100")]))
        claim = partial(Claim, source="Figure 16")
        found = paper_and_here(
            [claim("fluctuates", FLUCTUATES, metric=metric, criterion=increasing(), values=few)], reason
        )
        root = claim("root", ROOT, metric="power of S in it", criterion=half, values=order, origin="project")
        return [*found, root]

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
