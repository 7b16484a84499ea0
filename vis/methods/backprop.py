"""The gradient under rules for the ReLU: saliency map, DeconvNet, guided backpropagation (nie2018, Eq. 1-2), RectGrad."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from vis.methods.base import Method
from vis.methods.flow import IMAGE, LOGITS, Flow
from vis.methods.forward import DECONVNET, GUIDED, SALIENCY, Forward, ReluRule
from vis.methods.target import Targets


class _Backpropagation(Method):
    rule: ReluRule
    display = "midgray"
    video = True
    mixed_error = 0.01

    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        return forward.gradient(targets, self.rule)

    def flow(self, forward: Forward, layers: Sequence[str] = ()) -> Flow:
        values = {LOGITS: forward.logits, **{name: forward.layers[name] for name in layers}, IMAGE: forward.images}
        return Flow(values, backward=partial(forward.propagate, rule=self.rule))


class Saliency(_Backpropagation):
    """Saliency map: the gradient of a target with respect to the image (Simonyan et al. 2013; ayyar2021, section 4.2).

        R = dS_c / dx        ayyar2021, Eq. 4

    Maps are signed, [B, C, H, W], in units of the target for one of the image; |R| (Eq. 5) and its largest over the
    channels (Eq. 6) are left to the display. Defined for every network with a gradient and every target; NotApplicable where
    none arrives at the image.
    Costs a forward pass, shared by all targets and methods, and a backward pass.
    """

    rule = SALIENCY
    title = "Saliency map"


class InputXGradient(Saliency):
    """Input x gradient (Shrikumar et al. 2016): the gradient times the image, as the network sees it.

        R = x * dS_c / dx

    Maps are signed, [B, C, H, W], in units of the target. In a network of ReLUs without biases they sum to the logit.
    NotApplicable where no gradient arrives at the image.
    Costs a forward pass, shared by all targets and methods, and a backward pass.
    """

    title = "Input x gradient"
    display = "diverging"

    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        return forward.images.detach() * super().explain(forward, targets)

    def flow(self, forward: Forward, layers: Sequence[str] = ()) -> Flow:
        gradient = super().flow(forward, layers)
        return replace(gradient, activations={k: v.detach() for k, v in gradient.values.items()}, multipliers=True)


class DeconvNet(_Backpropagation):
    """DeconvNet (Zeiler & Fergus 2014; ayyar2021, section 4.1): a ReLU passes the positive part of the gradient alone.

        T = ReLU(R)        nie2018, Eq. 1-2

    for the gradient R that arrives behind a ReLU, whatever went into it. Max-pooling places R at the maxima of the forward
    pass (the switches of Zeiler & Fergus) and 0 elsewhere. They start from the unit's activation, R starts from 1: the maps
    differ by this factor. Maps are signed, [B, C, H, W].
    Raises NotApplicable on a network without ReLUs, or with other activations.
    Costs a forward pass, shared by all targets and methods, and a backward pass.
    """

    rule = DECONVNET
    title = "DeconvNet"


class GuidedBackprop(_Backpropagation):
    """Guided backpropagation (Springenberg et al. 2014; ayyar2021, section 4.3): DeconvNet, where the ReLU was active.

        T = ReLU(R) * 1[y > 0]        nie2018, Eq. 1-2

    for the gradient R that arrives behind a ReLU of y. Maps are signed, [B, C, H, W].
    Raises NotApplicable on a network without ReLUs, or with other activations.
    Costs a forward pass, shared by all targets and methods, and a backward pass.
    """

    rule = GUIDED
    title = "Guided backprop"


class RectGrad(_Backpropagation):
    """RectGrad (Kim et al. 2019): a ReLU passes the gradient where it times the activation is among the largest.

        T = R * 1[z R > tau]        z = ReLU(y), tau: the q-quantile of z R over the units of an image

    for the gradient R that arrives behind a ReLU of y. Maps are signed, [B, C, H, W]. q: 0.98 by default; with 0.98, 2 % of
    the units of each layer pass.
    Raises NotApplicable on a network without ReLUs, or with other activations.
    Costs a forward pass, shared by all targets and methods, and a backward pass.
    """

    title = "RectGrad"

    def __init__(self, q: float = 0.98) -> None:
        if not 0 <= q < 1:
            raise ValueError(f"q is a quantile, from 0 to below 1, not {q:g}")
        self.q = q
        self.rule = ReluRule(rectify_gradient=True, mask_by_input=False, quantile=q)

    @property
    def words(self) -> str:
        return f"passes {1 - self.q:.3g} of the units"
