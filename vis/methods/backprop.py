"""Saliency map, DeconvNet and guided backpropagation: the gradient under three rules for the ReLU (nie2018, Eq. 1-2)."""

from typing import ClassVar

from torch import Tensor

from vis.methods.base import Method
from vis.methods.forward import DECONVNET, GUIDED, SALIENCY, Forward, ReluRule
from vis.target import Targets


class _Backpropagation(Method):
    rule: ClassVar[ReluRule]
    display = "minmax"

    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        return forward.gradient(targets, self.rule)


class Saliency(_Backpropagation):
    """Saliency map: the gradient of the target with respect to the image (Simonyan et al. 2013; ayyar2021, Eq. 4-6).

    Maps are signed, [B, C, H, W].
    """

    rule = SALIENCY
    title = "Saliency map"


class DeconvNet(_Backpropagation):
    """DeconvNet (Zeiler & Fergus 2014): a ReLU passes the positive part of the gradient, whatever its input was.

    T = ReLU(R), nie2018 Eq. (1)-(2). Maps are signed, [B, C, H, W]. Raises NotApplicable on a network without ReLUs.
    """

    rule = DECONVNET
    title = "DeconvNet"


class GuidedBackprop(_Backpropagation):
    """Guided backpropagation (Springenberg et al. 2014): only positive gradients pass, only where the ReLU was active.

    T = ReLU(R) * 1[y > 0], nie2018 Eq. (1)-(2). Maps are signed, [B, C, H, W]. Raises NotApplicable on a network
    without ReLUs.
    """

    rule = GUIDED
    title = "Guided backprop"
