"""nie2018, sections 2.2 and 3.2.3: does a map mark the pixels that matter to its own class?

Pixels are deleted (set to the mean colour) in the order of a map, and the probability of the largest logit's class A falls.
Columns of the table, a row for each photograph and method:

    gap      area under the curve when the map of a random class B gives the order, minus that for the map of A
    gain     area for a random order, minus that for the map of A
    box      share of the saliency map's energy in the object's area, minus the area's share of the image (table `boxes`)

Maps of pixels are ranked by the sum of their absolute values over the channels, class activation maps by their values.

Gaps over Grad-CAM's are a ratio of two means over the same photographs. Its interval is that of the jackknife.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.nie2018.figure7 import two_logits
from experiments.nie2018.trained import (
    LABELS,
    batches_of_both,
    before_last_relu,
    difference,
    energy_of,
    judged,
    network_of,
    objects_of,
    predicted,
    share,
    weights_words,
)
from vis.claims import Claim, Column, Compared, Rule, above, jackknife
from vis.figures.layout import plot, styled
from vis.metrics.deletion import curves
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

METHODS = ("saliency", "deconvnet", "gbp", "gradcam")
TITLES = {**LABELS, "gradcam": "Grad-CAM", "random": "random order"}


def ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the sum of the first over the sum of the second; NaN if that is 0."""
    own, of = map(sum, zip(*pairs, strict=True))
    return own / of if of else math.nan


class Deletion(Experiment):
    """Delete pixels in the order of maps of two classes. steps: of a curve."""

    metrics = ("gap", "gain")
    series = "method"

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def tasks(self, run: Run) -> Sequence[Task]:
        return batches_of_both(run)

    def load(self, run: Run, task: Task) -> Load:
        maps, trained = len(run.methods), task["network"] == "trained"
        return Load(run.config.model, task["seed"], len(task["images"]), maps * (2 + 2 * self.steps * trained), 0)

    def compute(self, run: Run, task: Task) -> Output:
        run.require_methods(*METHODS)
        model = network_of(run, task)
        batch = run.batch(model, task["images"])
        best = predicted(model, batch.x)
        with before_last_relu(model):
            (maps,) = run.explain(model, batch.x, [best]).maps
        where = {"network": task["network"], "seed": task["seed"]}
        objects = objects_of(run, model, task["images"])
        energy = energy_of(maps["saliency"])
        output = Output(tables={"table": [], "boxes": []})
        for i, name in enumerate(batch.names):
            if (area := objects.own.get(name)) is not None:
                box = share(energy[i : i + 1], area).item() - area.mean().item()
                output.tables["boxes"].append({**where, "image": name, "box": box})
        if task["network"] == "trained":
            self._delete(run, model, batch, maps, best, output)
        return output

    def _delete(
        self, run: Run, model: Any, batch: Any, maps: Mapping[str, Tensor], best: list[int], out: Output
    ) -> None:
        """Add the areas and the curves of the photographs of a batch."""
        pairs = [two_logits(run.config.seed, name, model.num_classes) for name in batch.names]
        others = [b if b != a else c for a, (b, c) in zip(best, pairs, strict=True)]
        with before_last_relu(model):
            (of_other,) = run.explain(model, batch.x, [others]).maps
        generator = torch.Generator().manual_seed(run.config.seed)
        noise = torch.rand(batch.x.shape, generator=generator)
        mean_colour = torch.zeros(1, 1, 1, 1)

        def deleted(each: Tensor) -> tuple[Tensor, Tensor]:
            found = curves(model.net, batch.x, each.to(batch.x.device), best, mean_colour, self.steps)
            return found.deletion.cpu(), found.deletion_auc.cpu()

        chance, at_random = deleted(noise)
        for method in METHODS:
            rank = (lambda m: m) if method == "gradcam" else torch.abs
            (curve, own), (curve_other, other) = (deleted(rank(each[method])) for each in (maps, of_other))
            for i, image in enumerate(batch.names):
                numbers = {"gap": (other - own)[i].item(), "gain": (at_random - own)[i].item(), "area": own[i].item()}
                row = {"network": "trained", "image": image, "method": method, **numbers}
                out.tables["table"].append(row | {"weights": model.weights})
                stacked = torch.stack([curve[i], curve_other[i], chance[i]])
                out.arrays[f"{image}/{method}"] = stacked.numpy().astype(np.float32)

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return by photograph the pseudo-value of each method's mean gap over Grad-CAM's."""
        rows: Rows = []
        class_sensitive = {row["image"]: row["gap"] for row in results.rows(method="gradcam")}
        for method in METHODS:
            gaps = {row["image"]: row["gap"] for row in results.rows(method=method)}
            values = jackknife([(gap, class_sensitive[image]) for image, gap in gaps.items()], ratio)
            rows += [{"image": image, "method": method, "gap": v} for image, v in zip(gaps, values, strict=False)]
        return {"gaps": rows}

    def claims(self, results: Results) -> list[Claim]:
        def gap(method: str) -> Column:
            return Column(results.rows("gaps", method=method), "gap", "image")

        def boxes(network: str) -> Column:
            return Column(results.rows("boxes", network=network), "box", "image")

        lost = Rule(((-0.1, 0.1),), ((0.25, np.inf),), ours="10 % and 25 % are our bounds")
        found = [
            Claim("N-2.2-e", [
                Compared("Grad-CAM: gap of the deletion areas of the maps of two classes",
                         Column(results.rows(method="gradcam"), "gap", "image"), above(0), null=0.0,
                         control="maps of no class: 0"),
                *(Compared(f"{LABELS[m]}: the same gap over Grad-CAM's", gap(m), lost, null=gap("gradcam"),
                           control="Grad-CAM") for m in ("deconvnet", "gbp")),
            ]),
            Claim("N-3.2.3-a", [
                Compared("share of the saliency map's energy in the object minus the object's area", boxes("trained"),
                         above(0), null=0.0, control="energy spread evenly: 0"),
                difference("the same, trained minus random weights", boxes("trained"), boxes("random"), above(0),
                           control="as in a random network: 0"),
                Compared("deletion area of a random order minus that of the saliency map",
                         Column(results.rows(method="saliency"), "gain", "image"), above(0), null=0.0,
                         control="a random order: 0"),
            ]),
        ]  # fmt: skip
        return judged(found, results, ["tabby"], before_relu=True)

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        count = len({row["image"] for row in results.rows()})
        caption = [
            f"{weights_words(results)}. Mean over {count} photographs of the probability of the predicted class, as pixels are "
            "deleted in the order of a map",
            "Pixel maps are ranked by their absolute values; deleted pixels get the mean colour",
        ]
        figure, axes = plot(6.9, 1.9, caption, columns=len(METHODS))
        with styled():
            for each, method in zip(axes, METHODS, strict=True):
                stacks = [results.arrays[f"{row['image']}/{method}"] for row in results.rows(method=method)]
                lines = zip(np.mean(stacks, axis=0), ("its map", "a random class", "random order"), strict=True)
                for (curve, label), style in zip(lines, ("-", "--", ":"), strict=True):
                    each.plot(np.linspace(0, 1, len(curve)), curve, style, label=label)
                each.set_title(TITLES[method])
                each.set_xlabel("share deleted")
            axes[0].set_ylabel("probability")
            axes[-1].legend()
        return {"figure": figure}
