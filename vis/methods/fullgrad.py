"""FullGrad (Srinivas & Fleuret 2019): the gradient of the input and of every bias, on one map."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vis.methods.base import Method
from vis.methods.forward import Forward, NotApplicable, output_targets
from vis.methods.target import Targets, score


class FullGrad(Method):
    """FullGrad (Srinivas & Fleuret 2019): the contributions of the input and of all biases to the target.

        S_c = sum(x * dS_c/dx) + sum_l sum(b_l * dS_c/db_l)
        R = psi(x * dS_c/dx) + sum_l psi(b_l * dS_c/db_l)        psi: |.|, scaled to [0, 1], upsampled, summed over channels

    The sum runs over convolutions and batch norms l, whose bias acts at each position; the bias of a dense layer has no
    position in the image. Maps are [B, 1, H, W] and not negative. They do not sum to S_c: psi does not preserve the sum.
    Raises NotApplicable for a unit of another layer, and where the first equation is off by more than 1 %: with activations
    such as GELU or a saturated ReLU6, or biases outside the layers of torch.nn.
    Costs a forward and a backward pass beside the shared forward pass.
    """

    title = "FullGrad"
    display = "overlay"

    def passes(self, model: nn.Module, image: Tensor) -> float:
        return 2

    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        input_part, bias_parts = full_gradients(forward, targets)
        scores = forward.scores(targets).detach()
        parts = [each.flatten(1) for each in (input_part, *(part for _, part in bias_parts))]
        missing = (scores - torch.stack([each.sum(1) for each in parts]).sum(0)).abs()
        eps = min(1e3 * torch.finfo(scores.dtype).eps, 0.01)  # bfloat16 would allow anything
        rounding = eps * torch.stack([each.abs().sum(1) for each in parts]).sum(0)
        if (missing > 0.01 * scores.abs() + rounding).any():
            raise NotApplicable(
                f"FullGrad: the gradients of {type(forward.model).__name__} with respect to input and biases do not add up to "
                f"the target ({missing.max():.3g} is missing): the network has activations such as GELU or a saturated ReLU6, or "
                "biases outside its layers"
            )
        size = forward.images.shape[2:]
        maps = [part for layer, part in bias_parts if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
        return torch.stack([_psi(part, size) for part in (input_part, *maps)]).sum(0)


def full_gradients(forward: Forward, targets: Targets) -> tuple[Tensor, list[tuple[nn.Module, Tensor]]]:
    """Return x * dS/dx [B, C, H, W], and (layer, b * dS/db) for each call of a layer with a bias. They sum to S."""
    x, model = forward.images, forward.model
    chosen = output_targets(forward, targets, FullGrad.title)
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []  # a layer, its bias, the output that it is part of

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        b = _bias(module)
        if b is None:
            return None
        channels_last = isinstance(module, nn.Linear)
        calls.append((module, b if channels_last else b.view(-1, *[1] * (output.ndim - 2)), output))
        return output.clone()  # an in-place ReLU that follows must not change what was kept

    handles = [m.register_forward_hook(keep, prepend=True) for m in model.modules() if type(m) in _LAYERS]
    try:
        S = score(model(x.clone()), chosen).sum()
    finally:
        for handle in handles:
            handle.remove()
    outputs = [output for *_, output in calls]
    g, *gradients = torch.autograd.grad(S, [x, *outputs], materialize_grads=True)
    return x.detach() * g, [(m, b * gradient) for (m, b, _), gradient in zip(calls, gradients, strict=True)]


_LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)


def _bias(module: Any) -> Tensor | None:
    """Return the bias of a layer for each channel; of a batch norm, the bias of the equivalent scaling."""
    if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return None if module.bias is None else module.bias.detach()
    if module.running_mean is None or module.running_var is None:
        return None
    shift = -module.running_mean * torch.rsqrt(module.running_var + module.eps)
    return shift if module.bias is None else shift * module.weight.detach() + module.bias.detach()


def _psi(part: Tensor, size: torch.Size) -> Tensor:
    """Take |.|, scale it to [0, 1] over each image, upsample and sum over channels: [B, V, h, w] -> [B, 1, H, W]."""
    part = part.abs()
    low, high = part.amin((1, 2, 3), keepdim=True), part.amax((1, 2, 3), keepdim=True)
    scaled = (part - low) / torch.where(high > low, high - low, 1)
    return F.interpolate(scaled.sum(1, keepdim=True), size, mode="bilinear")  # linear: the sum first costs less
