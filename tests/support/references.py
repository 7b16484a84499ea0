"""Methods written from their papers a second time: slow, plain, in float64."""

import itertools
import math
from collections.abc import Callable

import cams
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vis.methods import (
    SALIENCY,
    ReluRule,
)


class _RuledRelu(torch.autograd.Function):
    """T = h(R) * g'(y) for clamp(y, 0, high), as a function of its own."""

    @staticmethod
    def forward(ctx, y, high, rule):
        ctx.active, ctx.rule = (y > 0) & (y < high), rule
        return y.clamp(0, high)

    @staticmethod
    def backward(ctx, R):
        T = R.relu() if ctx.rule.rectify_gradient else R
        return T * ctx.active if ctx.rule.mask_by_input else T, None, None


class replaced_relus(TorchFunctionMode):
    """Every call of a ReLU, in modules too, is replaced by `_RuledRelu` while the network runs."""

    RELUS = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.threshold)

    def __init__(self, rule: ReluRule):
        super().__init__()
        self.rule = rule

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.RELUS or (func is Tensor.clamp and kwargs == {"min": 0}):
            return _RuledRelu.apply(args[0], math.inf, self.rule)
        if func is F.relu6 or (func is F.hardtanh and (kwargs["min_val"], kwargs["max_val"]) == (0, 6)):
            return _RuledRelu.apply(args[0], 6.0, self.rule)
        return func(*args, **kwargs)


def replaced(rule: ReluRule) -> Callable[[nn.Module, Tensor, int], Tensor]:
    """The reference for any network: its gradient, after its ReLUs were replaced."""

    def gradient(net: nn.Module, x: Tensor, unit: int) -> Tensor:
        x = x.clone().requires_grad_()
        with replaced_relus(rule):
            logits = net(x)
        return torch.autograd.grad(logits[:, unit].sum(), x)[0]

    return gradient


def naive(net: nn.Sequential, image: np.ndarray, unit: int, rule: ReluRule) -> np.ndarray:
    """The map of one image [C, H, W], neuron by neuron, without autograd: nie2018, Eq. (1)-(3)."""
    record, x = [], torch.from_numpy(image)[None]
    with torch.no_grad():
        for layer in net:
            record.append((layer, x[0].numpy()))
            x = layer(x.clone())
    R = np.zeros(x.shape[1])
    R[unit] = 1
    for layer, y in reversed(record):
        R = _naive_backward(layer, y, R, rule)
    return R


def _naive_backward(layer: nn.Module, y: np.ndarray, R: np.ndarray, rule: ReluRule) -> np.ndarray:
    """What arrives at a layer's input y when R arrives at its output."""
    if isinstance(layer, nn.ReLU):
        T = np.maximum(R, 0) if rule.rectify_gradient else R
        return T * (y > 0) if rule.mask_by_input else T
    if isinstance(layer, nn.Linear):
        return layer.weight.detach().numpy().T @ R
    if isinstance(layer, nn.BatchNorm2d):
        scale = layer.weight.detach() / torch.sqrt(layer.running_var + layer.eps)
        return R * scale.numpy()[:, None, None]
    if isinstance(layer, nn.Flatten | nn.Dropout):
        return R.reshape(y.shape)
    size, stride, padding = (
        v if isinstance(v, int) else v[0] for v in (layer.kernel_size, layer.stride, layer.padding)
    )
    margin = [(0, 0), (padding, padding), (padding, padding)]
    T = np.zeros_like(np.pad(y, margin))
    for k, i, j in np.ndindex(*R.shape):
        window = (slice(i * stride, i * stride + size), slice(j * stride, j * stride + size))
        if isinstance(layer, nn.Conv2d):
            T[:, *window] += layer.weight[k].detach().numpy() * R[k, i, j]
        else:
            assert isinstance(layer, nn.MaxPool2d)
            values = np.pad(y, margin, constant_values=-np.inf)[k][window]
            T[k][window][np.unravel_index(values.argmax(), values.shape)] += R[k, i, j]
    return T[:, padding : T.shape[1] - padding, padding : T.shape[2] - padding]


def covered(net: nn.Module, x: Tensor, unit: int) -> Tensor:
    """The mean fall of the logit over the 3x3 windows of zeros that hold a pixel."""
    total, counts = torch.zeros_like(x[:, :1]), torch.zeros_like(x[:, :1])
    for top, left in itertools.product(range(x.shape[2] - 2), range(x.shape[3] - 2)):
        window = (..., slice(top, top + 3), slice(left, left + 3))
        changed = x.clone()
        changed[window] = 0
        total[window] += (net(x) - net(changed))[:, unit].view(-1, 1, 1, 1)
        counts[window] += 1
    return (total / counts).detach()


def integrated(net: nn.Module, x: Tensor, unit: int) -> Tensor:
    """Eq. 7 of ayyar2021 from a baseline of zeros, with 7 nodes of Gauss and Legendre."""
    nodes, weights = np.polynomial.legendre.leggauss(7)
    return x * sum(w / 2 * replaced(SALIENCY)(net, (t + 1) / 2 * x, unit) for t, w in zip(nodes, weights, strict=True))


def times_the_image(net: nn.Module, x: Tensor, unit: int) -> Tensor:
    return x * replaced(SALIENCY)(net, x, unit)


def expected_gradients(net: nn.Module, x: Tensor, unit: int) -> Tensor:
    """Erion et al. 2021, from zeros and from the mean colour, with 6 random alphas each."""
    total = torch.zeros_like(x)
    for k, x0 in enumerate((torch.zeros_like(x), x.mean((2, 3), keepdim=True).expand_as(x))):
        for alpha in np.random.default_rng([0, k]).random(6):
            total += (x - x0) * replaced(SALIENCY)(net, x0 + alpha * (x - x0), unit) / 12
    return total


def guided_ig(steps: int, fraction: float, max_dist: float) -> Callable[[nn.Module, Tensor, int], Tensor]:
    """Kapishnikov et al. 2021, Algorithm 1, from zeros: how far each value has come, from 0 to 1, and what it still weighs."""

    def maps(net: nn.Module, x: Tensor, unit: int) -> Tensor:
        return torch.stack([one(net, image, unit) for image in x])

    def one(net: nn.Module, image: Tensor, unit: int) -> Tensor:
        x = image.flatten().numpy()
        come, weight, R = np.zeros(x.size), np.abs(x) / np.abs(x).sum(), np.zeros(x.size)
        for t in range(1, steps + 1):
            before = come * x
            G = replaced(SALIENCY)(net, torch.from_numpy(before).view_as(image)[None], unit).flatten().numpy()
            come = np.maximum(come, max(t / steps - max_dist, 0))
            furthest = min(t / steps + max_dist, 1)
            while (missing := t / steps - weight @ come) > 1e-12:
                size = np.where((come < furthest) & (x != 0), np.abs(G), np.inf)
                smallest = size <= np.sort(size)[int(fraction * (size.size - 1))]
                smallest &= np.isfinite(size)
                if not smallest.any():
                    break
                step = min(1, missing / (weight @ np.where(smallest, furthest - come, 0)))
                come = np.where(smallest, furthest if step == 1 else come + step * (furthest - come), come)
            R += (come * x - before) * G
        return torch.from_numpy(R).view_as(image)

    return maps


def smoothed(net: nn.Module, x: Tensor, unit: int) -> Tensor:
    """Eq. 8 of ayyar2021: five noisy images, sigma a fifth of each image's range."""
    total = torch.zeros_like(x)
    for sample in range(5):
        noise = torch.from_numpy(np.random.default_rng([0, sample]).standard_normal(x.shape[1:]))
        for image, maps in zip(x, total, strict=True):
            noisy = image + 0.2 * (image.max() - image.min()) * noise
            maps += replaced(SALIENCY)(net, noisy[None], unit)[0] / 5
    return total


def fem(net: nn.Module, x: Tensor, unit: int) -> Tensor:
    """Eq. 26 of ayyar2021, feature map by feature map."""
    kept: list[Tensor] = []
    cams.with_layer(net, x, cams.layer_of(net), lambda A: kept.append(A.detach().clone()) or A)
    maps = [sum(A.mean() * (A.mean() + A.std(correction=0) <= A) for A in each) for each in kept[0]]
    return F.interpolate(torch.stack(maps)[:, None], x.shape[2:], mode="bilinear", align_corners=False)
