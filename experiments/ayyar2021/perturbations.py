"""ayyar2021, section 2.1: the linear model of LIME on fresh perturbations, and the mask of Fong & Vedaldi against random ones.

R² of LIME is that of its weights on superpixel choices that it has not seen, up to a constant. The random masks are smooth and
have the values of the mask found, in another order, and so its area.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.ayyar2021.influence import r2
from experiments.ayyar2021.verdicts import POSITIVE, on_trained
from vis import metrics
from vis.claims import Claim, Column, Compared, Rule, above, below
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.methods import LIME, MeaningfulPerturbation
from vis.methods.baseline import baseline_image
from vis.methods.target import Target
from vis.runner.experiment import Experiment, Run, Task, method_words
from vis.store.run_folder import Output, Results


class Perturbations(Experiment):
    """Judge LIME and meaningful perturbation by the scores of changed images. A task is an image.

    fresh: new choices of superpixels. masks: random masks for each image. rows: images of the figure.
    """

    metrics = ("R2", "drop")

    def __init__(self, fresh: int, masks: int, rows: int) -> None:
        self.fresh, self.masks, self.rows = fresh, masks, rows

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"images": [i]} for i in range(len(run.dataset))]

    def compute(self, run: Run, task: Task) -> Output:
        run.require_methods("lime", "meaningful_perturbation")
        lime, fong = run.methods["lime"], run.methods["meaningful_perturbation"]
        assert isinstance(lime, LIME)
        assert isinstance(fong, MeaningfulPerturbation)
        model, (index,) = run.model(), task["images"]
        batch = run.batch(model, [index])
        x, net = batch.x, model.net
        with torch.no_grad():
            c = int(net(x)[0].argmax())
        row: dict[str, Any] = {"image": batch.names[0], "class": model.class_name(c), "weights": model.weights}
        row["R2"] = self.fidelity(lime, net, x[0], Target(c, None, "prob"), run.config.seed + index)
        masks = {"full": fong(net, x, [c])}
        for name, left_out in (("no_l1", {"l1": 0.0}), ("no_tv", {"tv": 0.0})):
            other = copy.copy(fong)
            vars(other).update(left_out)
            masks[name] = other(net, x, [c])
        for name, mask in masks.items():
            row |= {f"area_{name}": mask.mean().item(), f"roughness_{name}": roughness(mask)}
        random = torch.cat([rearranged(masks["full"], run.config.seed + 1000 * index + i) for i in range(self.masks)])
        blurred = baseline_image(x, "blur", None)
        with torch.no_grad():
            p, own, *others = (
                net(torch.cat([x, x + torch.cat([masks["full"], random]) * (blurred - x)])).softmax(1)[:, c].tolist()
            )
        row |= {"drop": p - own, "drop_random": p - sum(others) / len(others)}
        output = Output(tables={"table": [row]})
        if index < self.rows:
            output.arrays = {f"{row['image']}/{name}": mask[0].cpu().numpy() for name, mask in masks.items()}
            output.arrays |= {
                f"{row['image']}/pixels": batch.pixels[0].numpy(),
                f"{row['image']}/random": random[0].numpy(),
            }
        return output

    def fidelity(self, lime: LIME, net: nn.Module, x: Tensor, target: Target, seed: int) -> float:
        """Return R² of LIME's linear model of an image [C, H, W] on fresh choices of its superpixels, up to a constant."""
        segments = lime.segments(x)
        means = torch.stack([x[:, segments == s].mean(1) for s in range(int(segments.max()) + 1)], 1)
        weights = lime.weights(net, x, segments, means, target)
        kept = np.random.default_rng([seed, 1]).integers(0, 2, (self.fresh, len(weights)))
        scores = torch.from_numpy(lime.scores(net, x, segments, means, kept, target))
        predicted = torch.from_numpy(kept @ weights)
        return r2(scores, predicted - predicted.mean() + scores.mean())

    def claims(self, results: Results) -> list[Claim]:
        def column(name: str) -> Column:
            return Column(results.rows(), name, "image")

        def less(metric: str, name: str, without: str) -> Compared:
            words = f"{metric} of the mask, with - without the penalty"
            return Compared(words, column(f"{name}_full") - column(f"{name}_{without}"), below(0), null=0.0,
                            control="no effect: 0")  # fmt: skip

        fidelity: Rule = above(0.5, 0.2, ours="the bounds are ours")
        surrogate = Compared("R² on fresh perturbations, up to a constant", column("R2"), fidelity, null=0.0,
                             control="their mean as prediction: 0")  # fmt: skip
        most = Compared("fall of the probability by the mask - by random smooth masks of its values",
                        column("drop") - column("drop_random"), POSITIVE, null=0.0, control="random masks: 0")  # fmt: skip
        regular = [less("area", "area", "no_l1"), less("total variation over area", "roughness", "no_tv")]
        return on_trained(results, [Claim("A-2.1-c", [surrogate]), Claim("A-2.1-e", [most]), Claim("A-2.1-f", regular)])

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        titles = {"full": "Mask", "no_l1": "Without L1", "no_tv": "Without total variation", "random": "Random mask"}
        rows: list[PanelRow] = []
        for fact in results.rows()[: self.rows]:
            image = fact["image"]
            pixels = results.arrays[f"{image}/pixels"]
            panels = [Panel(display.picture(pixels), "" if rows else "Image", fact["class"])]
            for name, title in titles.items():
                drop = {"full": "drop", "random": "drop_random"}.get(name)
                note = f"probability falls by {fact[drop]:.2f}" if drop else f"area {fact[f'area_{name}']:.2f}"
                panels.append(
                    Panel(display.overlay(results.arrays[f"{image}/{name}"], pixels), "" if rows else title, note)
                )
            rows.append(PanelRow(panels))
        caption = [
            "Masks that blur what the class needs (Fong & Vedaldi), with both penalties and without one of them, and a random "
            "smooth mask with the same values; " + display.scaling("overlay")[1],
            *method_words(results.config),
            f"{results.config.model.name}, {results.rows()[0]['weights']}",
        ]
        return {"figure": panel_grid(rows, caption)}


def roughness(mask: Tensor) -> float:
    """Return the total variation of a mask [1, 1, H, W] over its sum; 0 for a mask of zeros."""
    return metrics.total_variation(mask).nan_to_num().item()


def rearranged(mask: Tensor, seed: int) -> Tensor:
    """Return a mask [1, 1, H, W] with the values of another, placed by the order of smooth noise."""
    noise = torch.randn(1, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    order = F.interpolate(noise, mask.shape[2:], mode="bicubic").flatten().argsort().to(mask.device)
    values = torch.empty_like(mask).flatten()
    values[order] = mask.flatten().sort().values
    return values.view_as(mask)
