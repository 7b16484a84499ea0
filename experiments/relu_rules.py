"""A numeric example of the gradient of a ReLU under the rules of backpropagation (nie2018 and ayyar2021).

    T = h(R) * g'(y)      h = identity (saliency) or ReLU (DeconvNet, GBP)      g = identity (DeconvNet) or ReLU

y is the input of the ReLU, R the gradient at its output and T the gradient at its input. The methods themselves compute all
numbers, on a network that consists of this ReLU and the weights R.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from vis.claims import Claim
from vis.errors import UserError
from vis.figures.layout import draw_matrix, plot, styled
from vis.methods import explain_all
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results


class OneReLU(nn.Module):
    """A network with one logit, sum(R * ReLU(y)), for y [B, C, H, W]."""

    def __init__(self, R: Tensor) -> None:
        super().__init__()
        self.R = nn.Parameter(R)

    def forward(self, y: Tensor) -> Tensor:
        return (self.R * torch.relu(y)).flatten(1).sum(1, keepdim=True)


class ReluRules(Experiment):
    """Apply each method to one ReLU.

    y: inputs of the ReLU; R: gradients at its output; both are lists of rows of numbers.
    titles: {array: title of its panel}, in order.
    """

    titles: ClassVar[Mapping[str, str]]

    def __init__(self, y: Sequence[Any], R: Sequence[Any]) -> None:
        self.y, self.R = (torch.tensor(rows, dtype=torch.float64) for rows in (y, R))
        if self.y.shape != self.R.shape or self.y.ndim != 2:
            raise UserError("experiment.y and experiment.R must be lists of rows of the same shape")

    def compute(self, run: Run, task: Task) -> Output:
        (maps,), _ = explain_all(run.methods, OneReLU(self.R), self.y[None, None], [0])
        arrays = {"y": self.y.numpy(), "o": self.y.clamp(min=0).numpy(), "R": self.R.numpy()}
        return Output(arrays | {name: map_[0, 0].numpy() for name, map_ in maps.items()})

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        caption = [
            "One ReLU: its input y and output o in the forward pass; a gradient R arrives behind it in the backward pass, and "
            "leaves it as T under three rules. Red is positive, blue negative; each method's T is computed by the method",
        ]
        titles = {name: title for name, title in self.titles.items() if name in results.arrays}
        figure, axes = plot(1.15 * len(titles), 1.65, caption, columns=len(titles))
        bound = max(float(np.abs(results.arrays[name]).max()) for name in titles)
        with styled():
            for each, (name, title) in zip(axes, titles.items(), strict=True):
                draw_matrix(each, results.arrays[name], title, bound)
        return {"figure": figure}
