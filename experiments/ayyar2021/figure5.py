"""ayyar2021, Figure 5: a ReLU in the forward pass, in backpropagation, in DeconvNet and in guided backpropagation, in numbers."""

from typing import ClassVar

from experiments.relu_rules import ReluRules

GRADIENT = "the rectification applied on the gradient map is based on the input, i.e. on those position where Y_n > 0"
DECONVNET = "in the DeconvNet the rectification is applied on the unpooled maps"
GUIDED = "restrict the flow of the gradients that have a negative value [...] and also those values that had a negative value during the forward pass"  # noqa: E501  # a quotation


class Figure5(ReluRules):
    sentences: ClassVar = {
        "saliency": (GRADIENT, "Section 4.2"),
        "deconvnet": (DECONVNET, "Section 4.2"),
        "gbp": (GUIDED, "Section 4.3"),
    }
    titles: ClassVar = {
        "y": "input $Y_n$",
        "o": "(a) forward\nReLU($Y_n$)",
        "R": "gradient R\narrives",
        "saliency": "(b) backpropagation\nR · 1[$Y_n$ > 0]",
        "deconvnet": "(c) DeconvNet\nReLU(R)",
        "gbp": "(d) guided\nReLU(R) · 1[$Y_n$ > 0]",
    }
