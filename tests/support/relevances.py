"""LRP, deep Taylor and DeepLIFT as their definitions say, image by image, contribution by contribution (ayyar2021, Eq. 12-25).

A network of `networks` becomes a list of steps; its layers become dense matrices W, b. Relevance (or multipliers) is
propagated from the last step to the first, without autograd.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import networks
import numpy as np
import torch
from torch import Tensor, nn


@dataclass
class Step:
    """kind: input, layer, scale, average, add, activation, pool or move; y is its output, flat."""

    kind: str
    y: np.ndarray
    shape: tuple[int, ...]
    sources: list["Step"]
    data: Any = None  # W and b; an activation; the inputs of each window
    first: bool = False  # no layer before it


class Steps(list[Step]):
    """What a network does with one image."""

    def start(self, image: Tensor) -> Step:
        return self._new("input", image.numpy().ravel(), tuple(image.shape), [])

    def _new(self, kind: str, y: np.ndarray, shape: tuple[int, ...], sources: list[Step], data: Any = None) -> Step:
        first = not any(s.kind == "layer" or not s.first for s in sources)
        self.append(Step(kind, y, shape, sources, data, first))
        return self[-1]

    def linear(self, kind: str, function: Callable[[Tensor], Tensor], x: Step) -> Step:
        n = len(x.y)
        with torch.no_grad():
            out = function(torch.cat([torch.zeros(1, n), torch.eye(n)]).double().view(n + 1, *x.shape))
        b = out[0].numpy().ravel()
        W = out[1:].flatten(1).numpy().T - b[:, None]
        return self._new(kind, W @ x.y + b, tuple(out.shape[1:]), [x], (W, b))

    def add(self, *sources: Step) -> Step:
        return self._new("add", sum(s.y for s in sources), sources[0].shape, list(sources))

    def cat(self, *sources: Step) -> Step:
        shape = (sum(s.shape[0] for s in sources), *sources[0].shape[1:])
        return self._new("move", np.concatenate([s.y for s in sources]), shape, list(sources))

    def activation(self, function: Callable[[np.ndarray], np.ndarray], x: Step) -> Step:
        return self._new("activation", function(x.y), x.shape, [x], function)

    def pool(self, layer: nn.MaxPool2d, x: Step) -> Step:
        k, s, p = layer.kernel_size, layer.stride, layer.padding
        V, H, W = x.shape
        h, w = ((n + 2 * p - k) // s + 1 for n in (H, W))
        windows = [
            [
                (v * H + r) * W + c
                for r in range(max(i * s - p, 0), min(i * s - p + k, H))
                for c in range(max(j * s - p, 0), min(j * s - p + k, W))
            ]
            for v, i, j in np.ndindex(V, h, w)
        ]
        return self._new("pool", np.array([x.y[window].max() for window in windows]), (V, h, w), [x], windows)


def relu(y: np.ndarray) -> np.ndarray:
    return np.maximum(y, 0)


def steps_of(net: nn.Module, image: Tensor) -> Steps:
    return _steps_of(net, tuple(image.shape), image.numpy().tobytes())


@lru_cache(maxsize=8)
def _steps_of(net: nn.Module, shape: tuple[int, ...], values: bytes) -> Steps:
    image, steps = torch.from_numpy(np.frombuffer(values).reshape(shape).copy()), Steps()
    x = steps.start(image)
    if isinstance(net, networks.Residual):
        x = steps.activation(relu, steps.linear("layer", net.conv1, x))
        x = steps.activation(relu, steps.add(steps.linear("layer", lambda v: net.norm(net.conv2(v)), x), x))
        x = steps.activation(relu, steps.add(steps.linear("layer", net.conv3, x), x))
        steps.linear("layer", net.fc, steps.linear("average", lambda v: v.mean((2, 3)), x))
    elif isinstance(net, networks.Functional):
        x = steps.linear("scale", lambda v: 3 * v, steps.linear("layer", net.conv1, x))
        x = steps.activation(lambda y: np.clip(y, 0, 6), x)
        a = steps.activation(relu, steps.linear("layer", net.conv2, x))
        b = steps.linear("move", lambda v: v[..., 1:-1, 1:-1], steps.linear("layer", net.conv3, x))
        x = steps.cat(a, steps.activation(relu, b))
        x = steps.activation(relu, steps.linear("layer", net.conv4, x))
        x = steps.linear("layer", lambda v: net.fc1(v.flatten(1)), x)
        steps.linear("layer", net.fc2, steps.activation(relu, steps.activation(relu, x)))
    elif isinstance(net, networks.Gelu):
        for conv, g in zip((net.conv1, net.conv2), net.activations, strict=True):
            layer = steps.linear("layer", conv, x)
            x = steps.activation(lambda y, g=g: g(torch.from_numpy(y)).numpy(), layer)
        steps.linear("average", lambda v: v.mean((2, 3)), x)
    else:
        assert isinstance(net, nn.Sequential)
        layers = list(net)
        while layers:
            layer = layers.pop(0)
            if isinstance(layer, nn.ReLU):
                x = steps.activation(relu, x)
            elif isinstance(layer, nn.MaxPool2d):
                x = steps.pool(layer, x)
            elif isinstance(layer, nn.BatchNorm2d):
                x = steps.linear("scale", layer, x)
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                normed = bool(layers) and isinstance(layers[0], nn.BatchNorm2d)
                together = nn.Sequential(layer, *([layers.pop(0)] if normed else []))
                flat = isinstance(layer, nn.Linear)
                x = steps.linear("layer", lambda v, f=together, flat=flat: f(v.flatten(1) if flat else v), x)
    return steps


def each_image(explain: Callable[[nn.Module, Tensor, int], np.ndarray]) -> Callable[[nn.Module, Tensor, int], Tensor]:
    return lambda net, x, unit: torch.stack(
        [torch.from_numpy(explain(net, image, unit)).view_as(image) for image in x.detach()]
    )


# --- LRP -------------------------------------------------------------------------------------------------------------


def over(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros(np.broadcast_shapes(numerator.shape, denominator.shape)),
                     where=denominator != 0)  # fmt: skip


def fractions(rule: str, a: np.ndarray, W: np.ndarray, b: np.ndarray, layer: bool, p: dict[str, float]) -> np.ndarray:
    """The share of input i in the relevance of output j: [j, i]."""
    if not layer and rule not in ("alpha_beta", "zplus", "epsilon"):
        rule = "zero"
    if not p.get("bias", True) or rule in ("zplus", "zb", "flat"):
        b = np.zeros_like(b)
    if rule == "zb":
        C, n = a.size // networks.CHANNELS, networks.CHANNELS
        low, high = (np.repeat(f(a.reshape(n, C), axis=1), C) for f in (np.min, np.max))
        C = W * a - W.clip(min=0) * low - W.clip(max=0) * high
        return over(C, C.sum(1, keepdims=True))
    if rule == "flat":
        return (W != 0) / (W != 0).sum(1, keepdims=True)
    if rule == "wsquare":
        return W**2 / ((W**2).sum(1) + b**2)[:, None]
    if rule == "gamma_eq14":
        W, b = W + p["gamma"] * W.clip(min=0), b + p["gamma"] * b.clip(min=0)
    C = W * a
    if rule == "gamma":
        up = C.sum(1) + b > 0
        C = C + p["gamma"] * np.where(up[:, None], C.clip(min=0), C.clip(max=0))
        b = b + p["gamma"] * np.where(up, b.clip(min=0), b.clip(max=0))
    if rule in ("alpha_beta", "zplus"):
        alpha = p["alpha"] if rule == "alpha_beta" and layer else 1.0
        up, down = C.clip(min=0), C.clip(max=0)
        shares = alpha * over(up, (up.sum(1) + b.clip(min=0))[:, None])
        return shares + (1 - alpha) * over(down, (down.sum(1) + b.clip(max=0))[:, None])
    z = C.sum(1) + b
    epsilon = p.get("epsilon", 1e-6) if rule == "epsilon" else 0.0
    return over(C, (z + epsilon * np.where(z < 0, -1, 1))[:, None])


def lrp(rule: str, first: str | None = None, **parameters: float) -> Callable[[nn.Module, Tensor, int], Tensor]:
    """first: another rule for the layers that read the image."""

    @each_image
    def explain(net: nn.Module, image: Tensor, unit: int) -> np.ndarray:
        steps = steps_of(net, image)
        R = {id(step): np.zeros_like(step.y) for step in steps}
        R[id(steps[-1])][unit] = steps[-1].y[unit]
        for step in reversed(steps[1:]):
            out = R[id(step)]
            if step.kind in ("layer", "scale", "average"):
                own = first if first and step.kind == "layer" and step.first else rule
                (x,), (W, b) = step.sources, step.data
                R[id(x)] += fractions(own, x.y, W, b, step.kind == "layer", parameters).T @ out
            elif step.kind == "add":
                for j in range(len(out)):
                    a = np.array([s.y[j] for s in step.sources])
                    share = fractions(rule, a, np.ones((1, len(a))), np.zeros(1), False, parameters)[0]
                    for s, f in zip(step.sources, share, strict=True):
                        R[id(s)][j] += f * out[j]
            elif step.kind == "activation":
                R[id(step.sources[0])] += out
            elif step.kind == "pool":
                (x,) = step.sources
                for window, r in zip(step.data, out, strict=True):
                    R[id(x)][max(window, key=lambda i: x.y[i])] += r
            else:
                moved(step, out, R)
        return R[id(steps[0])]

    return explain


def moved(step: Step, out: np.ndarray, of: dict[int, np.ndarray]) -> None:
    """What arrives at a step [..., n] that moves values, added where they came from."""
    if step.data is not None:
        of[id(step.sources[0])] += out @ step.data[0]
        return
    for s, part in zip(step.sources, np.split(out, np.cumsum([len(s.y) for s in step.sources])[:-1], -1), strict=True):
        of[id(s)] += part


# --- DeepLIFT --------------------------------------------------------------------------------------------------------


def deeplift(reveal_cancel: bool) -> Callable[[nn.Module, Tensor, int], Tensor]:
    """From a reference image of zeros. Each step has the multipliers of the positive and the negative terms, [2, n]."""

    @each_image
    def explain(net: nn.Module, image: Tensor, unit: int) -> np.ndarray:
        steps, zero = steps_of(net, image), steps_of(net, torch.zeros_like(image))
        m = {id(step): np.zeros((2, len(step.y))) for step in steps}
        y0 = {id(step): at_zero.y for step, at_zero in zip(steps, zero, strict=True)}
        m[id(steps[-1])][:, unit] = 1
        for step in reversed(steps[1:]):
            out, x = m[id(step)], step.sources[0]
            dx = x.y - y0[id(x)]
            if step.kind in ("layer", "add") and reveal_cancel:
                for s in step.sources:
                    W = step.data[0] if step.data else np.eye(len(s.y))
                    terms = W * (s.y - y0[id(s)])
                    (up, down), both = out[:, :, None], out.mean(0)[:, None]
                    m[id(s)] += (W * np.where(terms > 0, up, np.where(terms < 0, down, both))).sum(0)
            elif step.kind == "activation":
                m[id(x)] += np.array(slopes(step.data, x, y0, reveal_cancel)) * out[0]
            elif step.kind == "pool":
                for j, window in enumerate(step.data):
                    which = x.y if step.y[j] >= y0[id(step)][j] else y0[id(x)]
                    i = max(window, key=lambda k: which[k])
                    m[id(x)][:, i] += out[0][j] * (1 if dx[i] == 0 else (step.y[j] - y0[id(step)][j]) / dx[i])
            elif step.kind == "add":
                for s in step.sources:
                    m[id(s)] += out
            else:
                moved(step, out, m)
        return (steps[0].y - y0[id(steps[0])]) * m[id(steps[0])][0]

    return explain


def slopes(
    g: Callable[[np.ndarray], np.ndarray], x: Step, y0: dict[int, np.ndarray], reveal_cancel: bool
) -> tuple[Any, Any]:
    """dz+ / dy+ and dz- / dy- of an activation (Eq. 23-25), twice dz / dy where its input is no sum."""
    start = y0[id(x)]
    if not (reveal_cancel and x.kind in ("layer", "add")):
        dy = x.y - start
        slope = np.where(dy == 0, 0.0, over(g(x.y) - g(start), dy))
        return slope, slope
    if x.kind == "layer":
        s = x.sources[0]
        terms = x.data[0] * (s.y - y0[id(s)])
    else:
        terms = np.stack([s.y - y0[id(s)] for s in x.sources], axis=1)
    up, down = terms.clip(min=0).sum(1), terms.clip(max=0).sum(1)
    dz_up = (g(start + up) - g(start)) / 2 + (g(start + up + down) - g(start + down)) / 2
    dz_down = (g(start + down) - g(start)) / 2 + (g(start + up + down) - g(start + up)) / 2
    return over(dz_up, up), over(dz_down, down)


def logits(net: nn.Module, x: Tensor) -> Tensor:
    """What the steps give, for a check of the steps."""
    return torch.stack([torch.from_numpy(steps_of(net, image)[-1].y) for image in x])
