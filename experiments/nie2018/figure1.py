"""nie2018, Figure 1: how a gradient passes a ReLU under the three rules, as a numeric example.

    T = h(R) * g'(y)      h = identity (saliency) or ReLU (DeconvNet, GBP)      g = identity (DeconvNet) or ReLU      (1)-(2)

y is the input of the ReLU, R the gradient that arrives behind it, T the one that leaves it. All numbers are computed by the
methods themselves, on the network that consists of this ReLU and the weights R.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from vis.claims import Claim, near_zero
from vis.errors import UserError
from vis.experiment import Experiment, Run, Unit
from vis.figures import numbers, plot, styled
from vis.methods import explain_all
from vis.record import Part, Results

TITLES = {
    "saliency": "saliency map\nT = R · 1[y > 0]",
    "deconvnet": "DeconvNet\nT = ReLU(R)",
    "gbp": "GBP\nT = ReLU(R) · 1[y > 0]",
}


class OneReLU(nn.Module):
    """Its one logit is the sum of R times ReLU(y); y [B, C, H, W]."""

    def __init__(self, R: Tensor) -> None:
        super().__init__()
        self.R = nn.Parameter(R)

    def forward(self, y: Tensor) -> Tensor:
        return (self.R * torch.relu(y)).flatten(1).sum(1, keepdim=True)


class Figure1(Experiment):
    """y: inputs of the ReLU; R: gradients that arrive; both lists of rows."""

    def __init__(self, y: Sequence[Any], R: Sequence[Any]) -> None:
        self.y, self.R = (torch.tensor(rows, dtype=torch.float64) for rows in (y, R))
        if self.y.shape != self.R.shape or self.y.ndim != 2:
            raise UserError("experiment.y and experiment.R are lists of rows, equally many and equally long")

    def compute(self, run: Run, unit: Unit) -> Part:
        (maps,), _ = explain_all(run.methods, OneReLU(self.R), self.y[None, None], [0])
        arrays = {"y": self.y.numpy(), "o": self.y.clamp(min=0).numpy(), "R": self.R.numpy()}
        return Part(arrays | {name: map_[0, 0].numpy() for name, map_ in maps.items()})

    def claims(self, results: Results) -> list[Claim]:
        y, R = results.arrays["y"], results.arrays["R"]
        rule = {"saliency": R * (y > 0), "deconvnet": R.clip(0), "gbp": R.clip(0) * (y > 0)}
        metric, exact = "largest difference from T = h(R) g'(y)", near_zero(1e-15, each=True)
        return [
            Claim(
                m,
                f"Eq. (1) with h and g of Eq. (2): {m}",
                "Eqs. 1-2",
                metric,
                exact,
                [float(np.abs(results.arrays[m] - rule[m]).max())],
            )
            for m in results.config.methods
            if m in rule
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        methods = [m for m in TITLES if m in results.config.methods]
        caption = [
            "One ReLU: its input y and output o in the forward pass; a gradient R arrives behind it in the backward pass, and "
            "leaves it as T under three rules. Red is positive, blue negative; each method's T is computed by the method",
        ]
        names = {"y": "input y", "o": "output\no = ReLU(y)", "R": "gradient R\narrives"} | {
            m: TITLES[m] for m in methods
        }
        figure, axes = plot(1.15 * len(names), 1.65, caption, columns=len(names))
        bound = max(float(np.abs(results.arrays[name]).max()) for name in names)
        with styled():
            for each, (name, title) in zip(axes, names.items(), strict=True):
                numbers(each, results.arrays[name], title, bound)
        return {"figure": figure}
