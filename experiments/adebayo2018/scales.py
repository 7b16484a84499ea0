"""adebayo2018: do channels with large activations contribute most, whatever the weights above them (Binder et al. 2023)?

The contribution of a channel to the explained logit is the sum over positions of gradient times activation, at a layer below
the randomised ones, whose activations do not change. Columns of the table, a row for each image and layer; rho is the rank
correlation over the channels:

    trained     rho of the mean activation and |contribution| in the trained network
    random      rho of the mean activation and |contribution| under random weights
    kept        rho of |contribution| in the trained and in the random network
    signed      the same of signed contributions
    null        `kept` after every channel is rescaled to the same mean activation
    top         share of the 10 % of channels that contribute most which still do
    change      largest change of the activations, 0

The sentence is about magnitudes; the null shows whether it is due to the activations alone. In closed form, for contributions
w_c a_c with w_c independent Gaussians, P(|w_1 a_1| > |w_2 a_2|) = (2 / pi) arctan(a_1 / a_2).
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.adebayo2018.trial import judged
from experiments.randomisation import APART
from vis import metrics
from vis.claims import Claim, Column, Compared, above, exactly, interval, mean
from vis.errors import UserError
from vis.figures.layout import plot, styled
from vis.methods.forward import Forward
from vis.models import Model, resolve_layer, skeleton
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows, numbers

COLUMNS = {
    "trained": "activation, |contribution|: trained",
    "random": "activation, |contribution|: random",
    "kept": "|contribution|: trained, random",
    "signed": "contribution: trained, random",
    "null": "|contribution|: equal activations",
}


def contributions(net: nn.Module, x: Tensor, layer: str, targets: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the activations of a layer and each channel's sum of gradient x activation, [B, V, h, w] and [B, V]."""
    with Forward(net, x, [layer]) as forward:
        gradients = forward.gradient(list(targets), of=forward.layers[layer])
        activations = forward.layers[layer].detach().cpu().double()
    return activations, (gradients.cpu().double() * activations).sum((2, 3))


def larger_contributes_more(ratio: float) -> float:
    """Return P(|w_1 a_1| > |w_2 a_2|) for a_1 / a_2 = ratio and independent Gaussian weights w."""
    return 2 / math.pi * math.atan(ratio)


class Scales(Experiment):
    """Compare contributions of channels in trained and random networks.

    layers: pairs of a layer whose channels are compared, and the first layer or block above it that becomes random.
    """

    metrics = ("kept", "signed")
    series = "layer"
    names: ClassVar[Sequence[str]] = ("change", *COLUMNS, "top")

    def __init__(self, layers: Sequence[Sequence[str]]) -> None:
        if any(len(pair) != 2 for pair in layers):
            raise UserError("experiment.layers: give pairs [[LAYER, FIRST RANDOM LAYER], ...]")
        self.layers = [(str(layer), str(top)) for layer, top in layers]

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed, "images": images} for seed in run.seeds for images in run.batches(len(run.dataset), 1)]

    def load(self, run: Run, task: Task) -> Load:
        return Load(run.config.model, task["seed"], len(task["images"]), 3 * len(self.layers), 0)

    def compute(self, run: Run, task: Task) -> Output:
        seed = task["seed"] + APART * task["images"][0]
        net = skeleton(run.config.model)[0]
        weighted = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        output = Output(tables={"table": []})
        for layer, top in self.layers:
            layer, above_it = resolve_layer(net, layer), resolve_layer(net, top)
            inside = [i for i, name in enumerate(weighted) if f"{name}.".startswith(f"{above_it}.")]
            if not inside or not inside[0]:
                raise UserError(f"experiment.layers: {top} has no convolution or dense layer above another one")
            model: Model = run.model(seed=seed)
            if not model.trained:
                raise UserError(f"{model.name} has random weights already: this needs trained ones (model.weights=)")
            output.tables["network"] = [{"weights": model.weights}]
            batch = run.batch(model, task["images"])
            with torch.no_grad():
                classes = model.net(batch.x).argmax(1).tolist()
            before, own = contributions(model.net, batch.x, layer, classes)
            init = run.config.model.get("init") or "kaiming_normal"
            model = run.model(seed=seed, trained_up_to=weighted[inside[0] - 1], init=init)
            after, random = contributions(model.net, batch.x, layer, classes)
            for i, image in enumerate(batch.names):
                row: dict[str, Any] = {"image": image, "layer": top, "seed": task["seed"]}
                row["change"] = (after[i] - before[i]).abs().max().item()
                output.tables["table"].append(row | compared(before[i], own[i], random[i]))
        return output

    def claims(self, results: Results) -> list[Claim]:
        found, strong = [], []
        for _, layer in self.layers:
            rows = results.rows(layer=layer)
            kept, null = (Column(rows, name, "image") for name in ("kept", "null"))
            found += [
                Compared(f"{layer} random: rho of |contribution|, trained and random, minus that of equal activations",
                         kept - null, above(0), null=0.0, control="equal activations"),
                Compared(f"{layer} random: largest change of the activations below", Column(rows, "change", "image"),
                         exactly(0.0), null=1.0, control="a network that is random below as well"),
            ]  # fmt: skip
            strong.append(
                Compared(f"{layer} random: rho of signed contributions", Column(rows, "signed", "image"),
                         above(0.1, ours=".1 is ours"), null=Column(rows, "null", "image"), control="equal activations")
            )  # fmt: skip
        signed = Claim("B2-signed", strong, source="beside Binder et al. 2023",
                       sentence="Channels keep their signed contributions under a random network on top.")  # fmt: skip
        return judged(results, [Claim("B2", found), signed])

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the means over the images, a row for each layer."""
        rows: Rows = []
        for _, layer in self.layers:
            row: dict[str, Any] = {"random from": layer}
            for name in self.names:
                values = numbers(results.rows(layer=layer), name)
                low, high = interval(values) if values else (None, None)
                row |= {name: mean(values) if values else None, f"{name} low": low, f"{name} high": high}
            rows.append(row)
        return {"scales": rows}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        images = len({row["image"] for row in results.rows()})
        caption = [
            "Rank correlation over the channels of a layer, while all weights from the named layer, above it, to the logits "
            f"become random: mean and 95 % interval over {images} images, each with its own random network",
            "Contribution: the sum over positions of gradient x activation. Equal activations: each channel is rescaled to the "
            "same mean activation",
            f"{results.config.model.name}, {results.rows('network')[0]['weights']}",
        ]
        figure, (axis,) = plot(5.2, 2.4, caption)
        with styled():
            for j, (_, layer) in enumerate(self.layers):
                for y, name in enumerate(reversed(COLUMNS)):
                    values = numbers(results.rows(layer=layer), name)
                    if values:
                        half = abs(mean(values) - interval(values)[0]) if len(values) > 1 else 0.0
                        axis.errorbar(mean(values), y - 0.12 + 0.24 * j, xerr=half, fmt="os^v"[j % 4], color=f"C{j}", capsize=2,
                                      markersize=4, label="" if y else f"random from {layer}")  # fmt: skip
            axis.axvline(0, color="0.85", linewidth=0.8, zorder=0)
            axis.set_yticks(range(len(COLUMNS)), list(reversed(COLUMNS.values())))
            axis.set_xlabel("rank correlation over channels")
            axis.set_xlim(-0.2, 1.02)
            axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
        return {"figure": figure}


def compared(activations: Tensor, own: Tensor, random: Tensor) -> dict[str, float | None]:
    """Return the columns of the table for an image: activations [V, h, w], contributions [V] in both networks.

    All are None if the logit does not depend on the layer in one of the networks.
    """
    size = activations.mean((1, 2))
    if not own.any() or not random.any():
        return dict.fromkeys((*COLUMNS, "top"))
    on = size.abs() > 0
    equal = [(c[on] / size[on].abs()).abs() for c in (own, random)]
    count = max(1, round(0.1 * len(own)))
    most = [set(np.argsort(-c.abs().numpy(), kind="stable")[:count].tolist()) for c in (own, random)]
    return {
        "trained": rho(size, own.abs()), "random": rho(size, random.abs()), "kept": rho(own.abs(), random.abs()),
        "signed": rho(own, random), "null": rho(*equal), "top": len(most[0] & most[1]) / count,
    }  # fmt: skip


def rho(a: Tensor, b: Tensor) -> float:
    """Return the rank correlation of two lists of numbers."""
    return float(metrics.spearman(a[None], b[None]))
