"""ayyar2021, sections 4.4 and 7: how much do maps change under noise that is too small to be seen?

Noise with several standard deviations, relative to the image's range, is added to the network's input. The map of the same class
is compared with the clean image's by 1 - correlation and by the norm of their difference over the clean map's norm; `gain` is
that over the noise's norm in parts of the input's. The claims are about the smallest noise.

Integrated gradients from black have x - black as a factor, which noise hardly changes; so has the gradient times x - black, which
separates the effect of the factor from that of the averaging. From the mean colour, 0 at the network's input, the factor is
itself noisy where the image is gray.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.ayyar2021.by_method import ByMethod
from experiments.ayyar2021.verdicts import on_trained
from vis import metrics
from vis.claims import Claim, Column, Compared, above, mean
from vis.errors import UserError
from vis.figures.layout import plot, styled
from vis.figures.style import COLOURS
from vis.runner.experiment import Load, Run, Task, method_words
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results

OTHERS = (
    "saliency",
    "deconvnet",
    "gbp",
    "smoothgrad",
    "gradcam",
    "guided_gradcam",
)  # the survey's methods of the gradient


class Noise(ByMethod):
    """Compare maps with and without noise. levels: standard deviations of the noise over x_max - x_min."""

    axes: ClassVar = {"1 - correlation": {"": "decorrelation"}, "|change| / |map|": {"": "change"}}
    ranges: ClassVar = {"1 - correlation": (0, 2), "|change| / |map|": (0, math.inf)}
    titles: ClassVar = {
        "gradient_times_image": "Gradient x (image - black)",
        "integrated_gradients_zero": "Integrated gradients, mean colour",
    }  # fmt: skip

    def __init__(self, source: str, levels: Sequence[float]) -> None:
        if not levels or min(levels) <= 0:
            raise UserError("experiment.levels must be standard deviations above 0")
        super().__init__(source)
        self.levels = list(levels)
        self.sentence = (
            "How far the map of a noisy image is from the clean image's: mean over noise of "
            f"{', '.join(f'{level:g}' for level in levels)} of the image's range"
        )

    def title(self, config: Any, method: str) -> str:
        return str(self.titles.get(method) or super().title(config, method))

    def load(self, run: Run, task: Task) -> Load:
        load, times = super().load(run, task), 1 + len(self.levels)
        return Load(load.model, load.seed, load.images * times, load.passes, 0)

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        batch = run.batch(model, task["images"])
        x = batch.x
        (clean,), logits = run.explain(model, x, [run.units_of(model, run.targets[0], batch.names)])
        targets = run.units_of(model, run.targets[0], batch.names) or logits.argmax(1).tolist()
        draws = [np.random.default_rng([run.config.seed, i]).standard_normal(x.shape[1:]) for i in task["images"]]
        noise = torch.from_numpy(np.stack(draws)).to(x)
        extent = x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True)
        parts = (
            extent.flatten() * noise.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
        )  # of the input's norm, at level 1
        output = Output(tables={"table": [], "levels": []})
        for level in self.levels:
            (noisy,), _ = run.explain(model, x + level * extent * noise, [targets])
            for method, map_ in clean.items():
                decorrelation = 1 - metrics.pearson(map_, noisy[method])
                change = metrics.distance(map_, noisy[method]) / map_.double().flatten(1).norm(dim=1)
                output.tables["levels"] += [
                    {"image": image, "method": method, "level": level, "decorrelation": decorrelation[i].item(),
                     "change": change[i].item(), "gain": change[i].item() / (level * parts[i].item())}
                    for i, image in enumerate(batch.names)
                ]  # fmt: skip
        for method in clean:
            for image in batch.names:
                own = [r for r in output.tables["levels"] if r["method"] == method and r["image"] == image]
                row = {"image": image, "method": method, "weights": model.weights}
                output.tables["table"].append(row | {name: mean([r[name] for r in own]) for name in self.metrics})
        return output

    def claims(self, results: Results) -> list[Claim]:
        smallest = results.rows("levels", method="saliency", level=min(self.levels))
        gain, decorrelation = (Column(smallest, name, "image") for name in ("gain", "decorrelation"))
        level = f"noise of {min(self.levels):g} of the range"
        fluctuates = Compared(f"relative change of the gradient over that of the image, {level}", gain, above(1), null=0.0,
                              control="a linear network: 0")  # fmt: skip
        differs = Compared(f"1 - correlation of the gradient with the clean image's, {level}", decorrelation,
                           above(0.1, 0.01, ours="the bounds are ours"), null=0.0, control="the same image again: 0")  # fmt: skip
        metric = f"1 - correlation with the clean image's map, {level}"

        def more(method: str, than: str) -> Compared:
            first, second = (
                Column(results.rows("levels", method=m, level=min(self.levels)), "decorrelation", "image")
                for m in (method, than)
            )
            return Compared(
                f"{metric}, {method} - {than}", first - second, above(0), null=0.0, control="no difference: 0"
            )

        averaging = Claim(
            "averaging", [more("gradient_times_image", "integrated_gradients")], source="Beside Section 4.4",
            sentence="The averaging of integrated gradients lowers their sensitivity to noise, not the image as a factor alone.",
        )  # fmt: skip
        baseline = Claim(
            "baseline", [more("integrated_gradients_zero", "integrated_gradients")], source="Beside Section 4.4",
            sentence="Integrated gradients from black are less sensitive to noise than those from the mean colour.",
        )  # fmt: skip
        less = [more(method, "integrated_gradients") for method in OTHERS]
        trained = [Claim("A-4.4-b", [fluctuates]), Claim("A-4.4-c", [differs]), Claim("A-4.4-d", less)]
        return on_trained(results, [*trained, averaging, baseline])

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config = results.config
        caption = [
            "1 - correlation of a noisy image's map with the clean image's: mean over "
            + plural(len({row["image"] for row in results.rows()}), "image"),
            *method_words(config),
            f"{config.model.name}, {results.rows()[0]['weights']}",
        ]
        figure, (axes,) = plot(5.0, 2.8, caption)
        with styled():
            for k, method in enumerate(config.methods):
                rows = [results.rows("levels", method=method, level=level) for level in self.levels]
                curve = [mean([row["decorrelation"] for row in each]) for each in rows]
                marker = "osv^"[k // len(COLOURS) % 4] + "-"  # after the last colour, the next marker
                axes.plot(self.levels, curve, marker, label=self.title(config, method), linewidth=1, color=f"C{k}")
            axes.set(xscale="log", xlabel="noise, in parts of the image's range", ylabel="1 - correlation")
            axes.set_xticks(self.levels, [f"{level:g}" for level in self.levels], minor=False)
            axes.minorticks_off()
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        return super().draw(results, claims) | {"levels": figure}
