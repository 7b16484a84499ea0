"""CAMs as their definitions say, image by image and feature map by feature map (taimeskhanov2024, Definitions 1-7).

Each takes a network of tests/support/networks.py, images and a unit, and returns maps like `vis.methods` in the convention paper.
"""

from collections.abc import Callable
from unittest.mock import patch

import networks
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weigh = Callable[[nn.Module, Tensor, int, str, Tensor, Tensor], Tensor]
LAYERS = {
    "vgg_like": "4", "overlapping_pools": "4", "batch_norm": "4", "residual": "relu", "functional": "conv4:relu"
}  # fmt: skip


def layer_of(net: nn.Module) -> str:
    """The last feature map of a network of tests/support/networks.py."""
    return next(LAYERS[name] for name, make in networks.APPLICABLE.items() if str(make()) == str(net))


def with_layer(net: nn.Module, x: Tensor, layer: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The output when the last call of `layer` gives change(what it gives)."""
    if layer == "conv4:relu":  # the second torch.relu_ of the network; F.relu(inplace=True) is the first
        calls = iter((lambda y: y, change))
        with patch("torch.relu_", lambda y, relu=torch.relu: next(calls)(relu(y))):
            return net(x)
    module = net.get_submodule(layer)
    passed = []
    handle = module.register_forward_hook(lambda *_: passed.append(1))
    net(x)
    handle.remove()
    last, count = len(passed), iter(range(1, 99))
    handle = module.register_forward_hook(lambda m, i, y: change(y) if next(count) == last else None)
    try:
        return net(x)
    finally:
        handle.remove()


def cam(weigh: Weigh) -> Callable[..., Tensor]:
    """ReLU of what `weigh` gives for (net, image, unit, layer, B, G), upsampled; B and G are [V, h, w]."""

    def maps(net: nn.Module, x: Tensor, unit: int, layer: str | None = None) -> Tensor:
        layer, results = layer or layer_of(net), []
        for image in x.split(1):
            kept: list[Tensor] = []

            def keep(B: Tensor, kept: list[Tensor] = kept) -> Tensor:
                kept.append(B.detach().clone().requires_grad_())
                return kept[0].clone()

            logit = with_layer(net, image, layer, keep)[0, unit]
            (G,) = torch.autograd.grad(logit, kept)
            summed = weigh(net, image, unit, layer, kept[0].detach()[0], G[0])
            results.append(F.interpolate(summed.relu()[None, None], x.shape[2:], mode="bilinear", align_corners=False))
        return torch.cat(results).detach()

    return maps


@cam
def gradcam(net, image, unit, layer, B, G):
    return sum(G[v].mean() * B[v] for v in range(len(B)))


@cam
def gradcam_pp(net, image, unit, layer, B, G):
    total = torch.zeros_like(B[0])
    for b, g in zip(B, G, strict=True):
        ratio = torch.where(g > 0, g**2 / (2 * g**2 + b.abs().sum() * g**3), 0)
        total += (ratio * g.relu()).mean() * b
    return total


@cam
def xgradcam(net, image, unit, layer, B, G):
    return sum((b / b.abs().sum() * g).mean() * b for b, g in zip(B, G, strict=True) if b.any())


@cam
def hirescam(net, image, unit, layer, B, G):
    return sum(G[v] * B[v] for v in range(len(B)))


@cam
def layercam(net, image, unit, layer, B, G):
    return sum(G[v].relu() * B[v] for v in range(len(B)))


@cam
def eigencam(net, image, unit, layer, B, G):
    X = B.flatten(1).T
    X = X - X.mean(0)
    projection = (X @ torch.linalg.svd(X)[2][0]).view_as(B[0])
    return projection * projection.flatten()[projection.abs().argmax()].sign()


@cam
def eigen_gradcam(net, image, unit, layer, B, G):
    X = (B * G).flatten(1).T
    X = X - X.mean(0)
    projection = (X @ torch.linalg.svd(X)[2][0]).view_as(B[0])
    return projection * projection.flatten()[projection.abs().argmax()].sign()


def mask(b: Tensor, size: torch.Size) -> Tensor:
    up = F.interpolate(b[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    return (up - up.min()) / (up.max() - up.min()) if b.max() > b.min() else torch.zeros_like(up)


@cam
def scorecam(net, image, unit, layer, B, G):
    scores = [net(image * mask(b, image.shape[2:]))[0, unit] for b in B]
    return (torch.stack(scores).softmax(0)[:, None, None] * B).sum(0)


@cam
def ablationcam(net, image, unit, layer, B, G):
    y, total = net(image)[0, unit], torch.zeros_like(B[0])
    for v in range(len(B)):
        rest = torch.ones(len(B), 1, 1, dtype=B.dtype)
        rest[v] = 0
        y_v = with_layer(net, image, layer, lambda each, rest=rest: each * rest)[0, unit]
        total += (y - y_v) / y * B[v]
    return total


def opticam(iterations: int) -> Callable[..., Tensor]:
    @cam
    def maps(net, image, unit, layer, B, G):
        beta = torch.full((len(B),), 0.5, dtype=B.dtype, requires_grad=True)
        adam = torch.optim.Adam([beta], 0.1)
        tried = []
        for _ in range(iterations + 1):
            alpha = beta.softmax(0)
            f = net(image * mask((alpha[:, None, None] * B).sum(0), image.shape[2:]))[0, unit]
            tried.append((f.item(), alpha.detach()))
            adam.zero_grad()
            f.neg().backward()
            beta.grad[B.flatten(1).amin(1) == B.flatten(1).amax(1)] = 0  # but for rounding: H does not depend on them
            adam.step()
        best = max(tried, key=lambda each: each[0])[1]
        return (best[:, None, None] * B).sum(0)

    return maps
