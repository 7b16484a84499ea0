"""zhou2018, Figures 9 and 10: mean and standard deviation at the inputs of the dense layers' ReLUs, over one window's samples.

"We fill the patch of size 10x10 at the image's top left corner with samples drawn from a conditional Gaussian distribution.
A total of 160 samples are used to make a mini-batch." Where |mean| / std is large, a ReLU and an expectation can change
places (Eq. 19): at 3 the error is below a thousandth of the standard deviation. What is small is measured against a layer's
values over images, and the control redraws the whole image in place of a window.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from experiments.zhou2018.evidence import OnePicture, column, differences, images_of, learnt
from vis.claims import Claim, Compared, above, below, on_digits, replicated
from vis.errors import UserError
from vis.figures.layout import plot, styled
from vis.methods.forward import Forward
from vis.runner.experiment import Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

LARGE = 3  # |mean| / std
SMALL = 0.1  # of the root mean square over images
NETWORK = {"Figure 9": "AlexNet", "Figure 10": "VGG-16"}


class Figure9(OnePicture):
    """Measure the inputs of the ReLUs.

    source: the paper's figure; samples: draws of the window at (0, 0). own_images: see EvidenceMaps.
    """

    def __init__(self, source: str, samples: int, own_images: bool) -> None:
        self.source, self.samples, self.own_images = source, samples, own_images

    def load(self, run: Run, task: Task) -> Load:
        return Load(run.config.model, run.config.seed, self.samples, 0, 0)

    def compute(self, run: Run, task: Task) -> Output:
        model, batch, found = self.begin(run, task)
        dense = before_relus(model.net)
        if not dense:
            raise UserError(
                f"{model.name} has neither a dense layer before its last nor a convolution in front of a last ReLU: take "
                "alexnet, vgg16, squeezenet or cnn_mnist"
            )
        x, k, image = batch.x[0], found.window, batch.names[0]
        contents = found.learnt.samples(x, torch.tensor([[0, 0]]), k, self.samples, run.config.seed)[0]
        values: dict[str, list[torch.Tensor]] = {name: [] for name in dense}
        for some in contents.split(16):
            images = x.repeat(len(some), 1, 1, 1)
            images[:, :, :k, :k] = some
            with Forward(model.net, images, dense) as forward:
                pass
            for name in dense:
                values[name].append(forward.layers[name].flatten(1).double().cpu())
        output = Output(tables={"table": []})
        for name in dense:
            for what, each in moments(torch.cat(values[name]).numpy()).items():
                output.arrays[f"{image}/{name}/{what}"] = each
            kind = type(model.net.get_submodule(name)).__name__
            row = {
                "image": image,
                "layer": name,
                "kind": kind,
                "weights": model.weights,
                "data": images_of(run),
            }
            output.tables["table"].append(row | learnt(run, model, self.own_images))
        return output

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return for each image and layer the shares of neurons, and the error of the exchange in units of the layer's values.

        images_...: the same over images, with each as a draw. Neurons that no window reaches, such as the far positions of a
        convolution, are left out.
        """
        rows = []
        for layer in dict.fromkeys(row["layer"] for row in results.rows()):
            every = {row["image"]: statistics(results, row) for row in results.rows(layer=layer)}
            reached = np.any([found["std"] > 0 for found in every.values()], axis=0)
            of = {image: {k: v[reached] for k, v in found.items()} for image, found in every.items()}
            unit = np.sqrt(np.mean([np.square(found["mean"]) for found in of.values()]))
            redrawn = moments(np.stack([found["mean"] for found in of.values()]))
            for image, found in of.items():
                row = {f"images_{name}": value for name, value in judged(redrawn, unit).items()}
                rows.append({"image": image, "layer": layer} | judged(found, unit) | row)
        return {"neurons": rows}

    def claims(self, results: Results) -> list[Claim]:
        size = f"{SMALL} of the layer's root mean square over images"
        metrics = {
            "near_zero": f"share of neurons with |mean| and standard deviation below {size}",
            "large": f"share of neurons with |mean| / standard deviation above {LARGE}",
            "error": "|E ReLU - ReLU E| of a neuron over the layer's root mean square over images",
        }
        most = above(0.5, ours=f"{SMALL} and {LARGE} are ours")
        rules = {"near_zero": most, "large": most, "error": below(0.01, 0.05, ours="the bounds are ours")}
        ids = {"near_zero": "Z-2.1-r", "large": "Z-2.1-s", "error": "Z-2.1-t"}
        found = [
            Claim(
                ids[name],
                [
                    Compared(
                        metric,
                        column(results, "neurons", name),
                        rules[name],
                        null=column(results, "neurons", f"images_{name}"),
                        control="other images in place of another window",
                    )
                ],
            )
            for name, metric in metrics.items()
        ]
        first = results.rows()[0]
        images = (
            []
            if results.config.get("dataset", {}).get("_target_") == "vis.data.imagenet"
            else [f"{first['data']} instead of ILSVRC"]
        )
        layer = f"the ReLU behind the convolution {first['layer']}, where the window reaches it, instead of those of dense layers"
        others = [*differences(results, NETWORK[self.source], first), *images, *[layer] * (first["kind"] == "Conv2d")]
        return replicated(found, others, on_digits(results.config))

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        image = results.rows()[0]["image"]
        rows = results.rows(image=image)
        layers = " and ".join(row["layer"] for row in rows)
        caption = [
            f"{self.source}: mean and standard deviation of the inputs of the ReLUs behind {layers}, over "
            f"{self.samples} draws of the top left window of {image}; right, their ratio",
            f"{results.config.model.name}, {rows[0]['weights']}; windows learnt from {rows[0]['learnt_from']}",
        ]
        figure, (left, middle, right) = plot(6.9, 2.2, caption, columns=3)
        with styled():
            for row in rows:
                found = statistics(results, row)
                found = {k: v[found["std"] > 0] for k, v in found.items()}
                ratio = np.log10(np.abs(found["mean"]) / np.maximum(found["std"], 1e-300))
                for axes, values in ((left, found["mean"]), (middle, found["std"]), (right, ratio)):
                    axes.hist(values, bins=60, histtype="step", label=row["layer"])
            left.set(xlabel="mean", ylabel="neurons")
            middle.set(xlabel="standard deviation")
            right.set(xlabel="log10 |mean| / standard deviation")
            right.axvline(np.log10(LARGE), color="0.7", linewidth=0.8, linestyle="--")
            left.legend()
        return {"figure": figure}


def before_relus(net: nn.Module) -> list[str]:
    """Return the dense layers but the last; in a network without others, the last convolution in front of a ReLU."""
    dense = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)][:-1]
    leaves = [(name, module) for name, module in net.named_modules() if not list(module.children())]
    pairs = [(name, a, b) for (name, a), (_, b) in pairwise(leaves)]
    return dense or [name for name, a, b in pairs if isinstance(a, nn.Conv2d) and isinstance(b, nn.ReLU)][-1:]


def moments(values: np.ndarray) -> dict[str, np.ndarray]:
    """Return mean, standard deviation and |E ReLU - ReLU E| of neurons [draws, neurons]."""
    mean = values.mean(0)
    error = np.abs(np.maximum(values, 0).mean(0) - np.maximum(mean, 0))
    return {"mean": mean, "std": values.std(0, ddof=1) if len(values) > 1 else np.zeros_like(mean), "error": error}


def statistics(results: Results, row: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the `moments` of a layer's neurons."""
    return {name: results.arrays[f"{row['image']}/{row['layer']}/{name}"] for name in ("mean", "std", "error")}


def judged(found: dict[str, np.ndarray], unit: float) -> dict[str, float]:
    """Return the numbers that the claims compare. unit: the root mean square of the layer's values over images."""
    mean, std = np.abs(found["mean"]), found["std"]
    return {
        "near_zero": float(np.mean((mean < SMALL * unit) & (std < SMALL * unit))),
        "large": float(np.mean(mean > LARGE * std)),
        "error": float(found["error"].mean() / unit),
    }
