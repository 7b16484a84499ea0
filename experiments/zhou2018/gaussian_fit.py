"""zhou2018, Sections 1 and 3: how well a Gaussian predicts a window from what is around it.

"Gaussian distribution conditioned on local patch does not take global context into account": a larger patch predicts held-out
windows better. "Gaussian distribution itself is not a good model for natural images": what remains of held-out windows,
whitened by the conditional covariance, has heavier tails than draws from the Gaussian. MNIST's "pixels have relatively weak
interdependencies": windows of digits are predicted less well than those of photographs.

Two halves of the images take turns: the Gaussian is fitted to one half, and predicts windows of each image of the other.
Images are gray. White noise is the control.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vis import metrics
from vis.claims import Claim, Column, Compared, above, below, mean_and_spread, replicated
from vis.data import to_pixels
from vis.figures.layout import plot, styled
from vis.methods.perturbation import cut, windows_of
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows
from vis.windows.gaussian import PatchGaussian

SIDE, DIGIT = (224, 224), (28, 28)
WINDOW, PATCH, WIDER = 10, 18, 34  # the paper's window and patch, and a patch with more of the image
DIGIT_WINDOW, DIGIT_PATCH = 4, 8


class GaussianFit(Experiment):
    """Measure predictions of held-out windows.

    datasets: the config node of the `digits`. count: how many of them. windows: windows of an image. patches: to which a
    Gaussian is fitted.
    """

    def __init__(self, datasets: Mapping[str, Any], count: int, windows: int, patches: int) -> None:
        self.digits, self.count, self.windows, self.patches = datasets["digits"], count, windows, patches

    def tasks(self, run: Run) -> list[Task]:
        kinds = ("photographs", "white noise", "digits")
        return [{"kind": kind, "fold": fold} for kind in kinds for fold in (0, 1)]

    def compute(self, run: Run, task: Task) -> Output:
        kind, fold = task["kind"], task["fold"]
        data = run.on(self.digits).dataset if kind == "digits" else run.dataset
        size, count = (DIGIT, self.count) if kind == "digits" else (SIDE, len(data))
        names = [data.names[i] for i in range(min(count, len(data)))]
        if kind == "white noise":
            images = torch.randn(len(names), 1, *size, generator=torch.Generator().manual_seed(run.config.seed))
        else:
            images = torch.stack([metrics.luma(to_pixels(data.read(i), size, 3)[None])[0] for i in range(len(names))])
        held_out = [i for i in range(len(names)) if i % 2 == fold]
        known = images[[i for i in range(len(names)) if i % 2 != fold]].double()
        sizes = [(DIGIT_WINDOW, DIGIT_PATCH)] + [(WINDOW, PATCH), (WINDOW, WIDER)] * (kind != "digits")
        rows: Rows = []
        for k, side in sizes:
            learnt = PatchGaussian.fit(known, side, self.patches, seed=run.config.seed)
            for i in held_out:
                row = {"kind": kind, "image": names[i], "number": i, "window": k, "patch": side, "data": data.origin}
                row["enlarged"] = data.read(i).width < size[1]
                rows.append(row | self._predict(learnt, images[i].double(), k, run.config.seed))
        return Output(tables={"table": rows})

    def _predict(self, learnt: PatchGaussian, image: Tensor, k: int, seed: int) -> dict[str, float]:
        """Return R² of the conditional means over windows, and the excess kurtosis of residuals and of draws."""
        margin = (learnt.side - k) // 2
        every = windows_of([n - 2 * margin for n in image.shape[1:]], k) + margin  # their patches need no shift
        windows = every[np.linspace(0, len(every) - 1, min(self.windows, len(every))).astype(int)]
        true, means = cut(image, windows, k), learnt.means(image, windows, k)
        drawn = learnt.samples(image, windows, k, 1, seed)[:, 0]
        L = learnt._conditional(k, margin, margin)[2][0]
        found = {"R2": float(1 - (true - means).square().sum() / (true - image.mean()).square().sum().clamp(min=1e-12))}
        for name, content in (("kurtosis", true), ("kurtosis of draws", drawn)):
            z = torch.linalg.solve_triangular(L, (content - means).flatten(1).T, upper=False)
            found[name] = float(z.pow(4).mean() / z.square().mean().square() - 3)
        return found

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the gain of the wider patch by image, and R² of digits beside that of photographs, in pairs.

        gain: logarithm of the residual's share for the patch of 18, minus that for 34. A wider patch has more weights to
        estimate, which costs as much in white noise, where nothing can be gained.
        """
        gains: Rows = []
        for kind, name in (("photographs", "gain"), ("white noise", "gain in white noise")):
            for number in range(len({r["number"] for r in results.rows(kind=kind)})):
                by_patch = {r["patch"]: 1 - r["R2"] for r in results.rows(kind=kind, number=number, window=WINDOW)}
                gain = float(np.log(by_patch[PATCH] / by_patch[WIDER]))
                if kind == "photographs":
                    gains.append({"number": number})
                gains[number][name] = gain
        photographs, digits = (
            [r["R2"] for r in sorted(results.rows(kind=kind, window=DIGIT_WINDOW), key=lambda row: row["number"])]
            for kind in ("photographs", "digits")
        )
        both = enumerate(zip(digits, photographs, strict=False))
        pairs: Rows = [{"pair": i, "digits": d, "photographs": p} for i, (d, p) in both]
        return {"gains": gains, "pairs": pairs}

    def claims(self, results: Results) -> list[Claim]:
        gain, noise = (Column(results.rows("gains"), name, "number") for name in ("gain", "gain in white noise"))
        wider = Compared(
            f"log residual of held-out {WINDOW}x{WINDOW} windows, patch {PATCH} - patch {WIDER}, less that in white noise",
            gain - noise, above(0), null=0.0, control="white noise",
        )  # fmt: skip
        rows = results.rows(kind="photographs", window=WINDOW, patch=PATCH)
        tails = Compared(
            f"excess kurtosis of the whitened residuals of {WINDOW}x{WINDOW} windows, patch {PATCH}",
            Column(rows, "kurtosis", "image"), above(1, 0.2, ours="the bounds are ours"),
            null=Column(rows, "kurtosis of draws", "image"), control="draws from the fitted Gaussian",
        )  # fmt: skip
        digits, photographs = (Column(results.rows("pairs"), name, "pair") for name in ("digits", "photographs"))
        weak = Compared(
            f"R² of a held-out {DIGIT_WINDOW}x{DIGIT_WINDOW} window from its patch of {DIGIT_PATCH}, digits - photographs",
            digits - photographs, below(0), null=0.0, control="photographs in place of digits",
        )  # fmt: skip
        count = len(dict.fromkeys(row["image"] for row in rows))
        pictures = [f"{count} photographs instead of the 50,000 of ILSVRC's validation set"]
        digit = results.rows(kind="digits")[0]
        enlarged = (
            f"{digit['data']} are enlarged, so pixels predict their neighbours: experiment.datasets.digits.path=FOLDER"
        )
        reason = enlarged if digit["enlarged"] else ""
        return [
            *replicated([Claim("Z-1-r", [wider]), Claim("Z-1-s", [tails])], pictures),
            *replicated([Claim("Z-3-p", [weak], reason=reason)], pictures),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        shown = [
            (f"{kind}\n{k}|{side}", [row["R2"] for row in results.rows(kind=kind, window=k, patch=side)])
            for kind, k, side in dict.fromkeys((r["kind"], r["window"], r["patch"]) for r in results.rows())
        ]
        rows = results.rows(kind="photographs", window=WINDOW, patch=PATCH)
        tails = mean_and_spread([row["kurtosis"] for row in rows])
        caption = [
            "R² of held-out windows from the patch around them by the conditional mean of a Gaussian, a point for each image; "
            "window|patch in pixels",
            f"Excess kurtosis of what remains in photographs, {WINDOW}|{PATCH}: {tails}; of draws from the Gaussian "
            + mean_and_spread([row["kurtosis of draws"] for row in rows]),
        ]
        figure, (axes,) = plot(6.0, 2.4, caption)
        with styled():
            for i, (_, values) in enumerate(shown):
                axes.plot(i + np.linspace(-0.2, 0.2, len(values)), values, ".", color="tab:blue", alpha=0.5)
                axes.plot([i - 0.3, i + 0.3], [np.mean(values)] * 2, color="black")
            axes.set_xticks(range(len(shown)), [label for label, _ in shown], fontsize=6)
            axes.set(ylabel="R²")
        return {"figure": figure}
