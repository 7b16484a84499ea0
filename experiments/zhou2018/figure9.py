"""zhou2018, Figures 9 and 10: mean and standard deviation at the inputs of the dense layers' ReLUs, over one window's samples.

"We fill the patch of size 10x10 at the image's top left corner with samples drawn from a conditional Gaussian distribution.
A total of 160 samples are used to make a mini-batch." Where |mean| / std is large, a ReLU and an expectation can change
places (Eq. 19): at 3 the error is below a thousandth of the standard deviation.
"""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from experiments.zhou2018.evidence import OnePicture, learnt_from, not_the_papers
from vis.errors import UserError
from vis.figures.layout import plot, styled
from vis.methods.forward import Forward
from vis.oldclaims import Claim, above, below, paper_and_here
from vis.runner.experiment import Load, Run, Task
from vis.store.run_folder import Output, Results

NEAR_0 = "most neurons have their mean and standard deviation at around 0"
RATIO = "the ratio between mean and standard deviation is very large, which meets the requirements for Eq. 18 and Eq. 19 to hold"
ALEXNET = {"arch": "alexnet", "num_classes": 1000}


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
        dense = [name for name, module in model.net.named_modules() if isinstance(module, nn.Linear)][:-1]
        if not dense:
            raise UserError(f"{model.name} has no dense layer before its last: take alexnet, vgg16 or cnn_mnist")
        x, k, image = batch.x[0], found.window, batch.names[0]
        contents = found.learnt.samples(x, torch.tensor([[0, 0]]), k, self.samples, run.config.seed)[0]
        values: dict[str, list[torch.Tensor]] = {name: [] for name in dense}
        for some in contents.split(16):
            images = x.repeat(len(some), 1, 1, 1)
            images[:, :, :k, :k] = some
            with Forward(model.net, images, dense) as forward:
                pass
            for name in dense:
                values[name].append(forward.layers[name].double().cpu())
        output = Output(tables={"table": []})
        for name in dense:
            whole = torch.cat(values[name])
            output.arrays |= {
                f"{image}/{name}/mean": whole.mean(0).numpy(),
                f"{image}/{name}/std": whole.std(0).numpy(),
            }
            output.tables["table"].append({"image": image, "layer": name, "weights": model.weights})
        output.tables["table"][0]["learnt_from"] = learnt_from(run, self.own_images)
        return output

    def claims(self, results: Results) -> list[Claim]:
        reason = self._not_the_papers(results)
        ratios, stds = [], []
        for row in results.rows():
            mean, std = statistics(results, row)
            ratios.append(float(np.median(np.abs(mean) / np.maximum(std, 1e-300))))
            stds.append(float(np.median(std) / np.sqrt(np.square(mean).mean())))
        scale = "median std over the layer's root mean square of the means"
        near = Claim("std", NEAR_0, source=self.source, metric=scale, criterion=below(0.1, each=True), values=stds)
        ratio = Claim(
            "ratio",
            RATIO,
            source=self.source,
            metric="median |mean| / std of a layer",
            criterion=above(3, each=True),
            values=ratios,
        )
        return paper_and_here([near, ratio], reason)

    def _not_the_papers(self, results: Results) -> str:
        if self.source == "Figure 9" and results.config.model.get("arch") == "alexnet":
            return not_the_papers(results, ALEXNET)
        return not_the_papers(results)

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        image = results.rows()[0]["image"]
        rows = results.rows(image=image)
        caption = [
            f"{self.source}: mean and standard deviation of the inputs of the ReLUs of dense layers, over "
            f"{self.samples} draws of the top left window of {image}; right, their ratio",
            f"{results.config.model.name}, {rows[0]['weights']}; windows learnt from {rows[0]['learnt_from']}",
        ]
        figure, (left, middle, right) = plot(6.9, 2.2, caption, columns=3)
        with styled():
            for row in rows:
                mean, std = statistics(results, row)
                ratio = np.log10(np.abs(mean) / np.maximum(std, 1e-300))
                for axes, values in ((left, mean), (middle, std), (right, ratio)):
                    axes.hist(values, bins=60, histtype="step", label=row["layer"])
            left.set(xlabel="mean", ylabel="neurons")
            middle.set(xlabel="standard deviation")
            right.set(xlabel="log10 |mean| / standard deviation")
            right.axvline(np.log10(3), color="0.7", linewidth=0.8, linestyle="--")
            left.legend()
        return {"figure": figure}


def statistics(results: Results, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the means and standard deviations of a layer's neurons."""
    key = f"{row['image']}/{row['layer']}"
    return results.arrays[f"{key}/mean"], results.arrays[f"{key}/std"]
