"""nie2018, Figure 1: how a gradient passes a ReLU under the three rules of Eq. (1)-(2), as a numeric example."""

from typing import ClassVar

from experiments.relu_rules import ReluRules


class Figure1(ReluRules):
    sentences: ClassVar = {
        m: (f"Eq. (1) with h and g of Eq. (2): {m}", "Eqs. 1-2") for m in ("saliency", "deconvnet", "gbp")
    }
    titles: ClassVar = {
        "y": "input y",
        "o": "output\no = ReLU(y)",
        "R": "gradient R\narrives",
        "saliency": "saliency map\nT = R · 1[y > 0]",
        "deconvnet": "DeconvNet\nT = ReLU(R)",
        "gbp": "GBP\nT = ReLU(R) · 1[y > 0]",
    }
