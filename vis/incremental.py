"""The outputs of a network for images that differ from one image in a window each; only what changes is computed.

Of every feature map a window changes a rectangle. Along an axis, outputs lo' ... hi' of a convolution or pooling with
kernel extent ke, stride s and padding p read inputs lo ... hi:

    lo' = max(0, ceil((lo + p - ke + 1) / s))      hi' = min(n - 1, floor((hi + p) / s))

They are computed from the input's rectangle lo' s - p ... hi' s - p + ke - 1, which is taken from the base image's map with
the changed rectangle pasted in. So the results are those of full passes, up to the order of sums. Clipping at the
borders and one rectangle for each window, not a common one, is what is gained over Krypton (Nakandala et al. 2019).

Which rectangles these are is `vis.window_plan`, how they are stored `vis.rectangles`; what treats each position on its own
runs on all of them at once. Where rectangles fill most of a map, and from an operation without a rule on, maps are whole.

In low precision, convolutions and dense layers see the change alone: z' = z + W d with d = a' - a, z and a of the base
image. So what is rounded is as small as the change, not as large as the activations; all else is done on a + d in the
image's precision.
"""

import logging
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vis.errors import UserError
from vis.graph import NotTraceable
from vis.rectangles import Crops, Places, room_for
from vis.window_plan import WHOLE, Network

log = logging.getLogger(__name__)

_UNTRACED = 1 << 22  # numbers of images at a time where a network is run whole: 27 images of 3x224x224
_PATCHES = 1 << 27  # numbers of patches that are multiplied at a time
_SHAPES = {"size", "dim", "getattr"}  # what a network asks of a tensor's shape


@cache
def _say(words: str) -> None:
    """Once, not for each image."""
    log.info(words)


def is_native(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device has products of bfloat16 or float16."""
    if device.type == "cuda":
        return dtype is torch.float16 or torch.cuda.get_device_capability(device) >= (8, 0)
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not say
    ending = "bf16" if dtype is torch.bfloat16 else "fp16"
    return device.type != "cpu" or any(there for name, there in found.items() if name.endswith(ending))


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


class Incremental:
    """The logits of one image [1, C, H, W] (`base`, [1, K]) and of copies of it with a window replaced.

    model: in eval mode, as `vis.methods.forward.evaluating` has it. memory_gb: bounds how many windows go through at a time.
    low: the type that changes are rounded to where they are multiplied; None is the image's own, for values.
    A network that cannot be traced is run whole for each window, with a line in the log; so is one for which the first
    window differs from a full pass: maps that are changed in place under two names look like two in the graph.
    """

    def __init__(self, model: nn.Module, image: Tensor, memory_gb: float = 4.0, low: torch.dtype | None = None) -> None:
        self.model, self.image, self.memory_gb, self.low = model, image.detach(), memory_gb, low
        self.by_patches = image.device.type != "cpu"  # few large products in place of a convolution for each size
        self._held = low
        self._finite: Tensor | bool = True
        if low and low.itemsize < 4 and not is_native(low, image.device):
            self._held = torch.float32
            _say(
                f"{_name(low)}: no speed is gained, {image.device.type} has no such products; rounded, then in float32"
            )
        self._checked = False
        self.network: Network | None = None
        try:
            self.network = Network(model, image.shape[1], (image.shape[2], image.shape[3]))
            if self.network.unknown:
                _say(f"computed whole, and all behind it: {', '.join(self.network.unknown)}")
        except NotTraceable as error:
            _say(f"each window is a full pass: {error}")
        with torch.no_grad():
            self.base = model(self.image.clone())
            if self.network and self._agrees(found := self._base_pass(), self.base):
                self.base = found  # its sums are those of the windows

    @torch.no_grad()
    def logits(self, windows: Tensor, patches: Tensor) -> Tensor:
        """Logits [n, K] with the windows at (top, left) [n, 2] holding patches [n, C, h, w]; they lie inside the image.

        Raises UserError where float16 overflows.
        """
        at = windows.cpu().numpy().astype(np.int64)
        if self.network is not None and not self._checked and len(at):
            middle = slice(len(at) // 2, len(at) // 2 + 1)
            self._checked = self._agrees(
                self._pass(at[middle], patches[middle]), self._full(at[middle], patches[middle])
            )
        batch, parts = self.batch(at, *patches.shape[2:]), []
        for first in range(0, len(at), batch):
            some = slice(first, first + batch)
            parts.append(self._pass(at[some], patches[some]))
        if not self._finite:
            raise UserError(f"the network's values do not fit into {_name(self.low)}: give bfloat16 or float32")
        return torch.cat(parts)

    def work(self, windows: Tensor, h: int, w: int) -> tuple[float, float]:
        """Multiply-accumulates for windows [n, 2] of that height and width, here and by full passes."""
        assert self.network is not None
        at = windows.cpu().numpy().astype(np.int64)
        return self.network.work(self._plan(at, h, w), len(at))

    def _plan(self, at: np.ndarray, h: int, w: int) -> dict[fx.Node, Places | None]:
        assert self.network is not None
        return self.network.plan(
            at[:, 0], at[:, 1], h, w, math.inf if self.low else WHOLE
        )  # whole maps would be rounded as values

    def batch(self, at: np.ndarray, h: int, w: int) -> int:
        """How many windows [n, 2] of that height and width go through at a time."""
        if self.network is None:
            return max(1, _UNTRACED // self.image.numel())
        some = at[np.linspace(0, len(at) - 1, min(len(at), 64)).astype(int)]
        needed = self.network.memory(self._plan(some, h, w), len(some), self.image.element_size())
        return int(max(1, min(len(at), self.memory_gb * 1e9 / needed)))

    def _base_pass(self) -> Tensor:
        """The image itself: keeps its maps as rows [H W, C], what does not depend on it, and convolutions with batch norm."""
        network: Any = self.network
        self._interpreter = fx.Interpreter(network.traced.net, graph=network.traced.graph)
        self._maps: dict[fx.Node, Tensor] = {}
        self._constants: dict[fx.Node, Any] = {}
        self._weights: dict[fx.Node, tuple[Tensor, Tensor | None]] = {}
        self._dense: dict[fx.Node, tuple[Tensor, Tensor]] = {}  # input and output of a layer in low precision
        self._low_weights: dict[fx.Node, Tensor] = {}
        for norm, conv in network.folded.items():
            module, bn = network.module(conv), network.module(norm)
            weight, bias = fuse_conv_bn_weights(
                module.weight, module.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
            )
            self._weights[conv] = weight.detach(), bias.detach()  # the convolution gives what the batch norm would
        env: dict[fx.Node, Any] = {}
        for node in network.nodes:
            if node is network.image:
                env[node] = self.image.clone()
            elif node.op == "placeholder":
                env[node] = node.args[0] if node.args else None
            else:
                env[node] = self._run(node, env)
            if self.low and network.is_dense(node):
                self._dense[node] = env[node.args[0]].clone(), env[node].clone()
            if node not in network.dependent:
                self._constants[node] = env[node]
            elif node in network.rules:
                self._maps[node] = env[node][0].movedim(0, -1).flatten(0, 1).clone()
            if node.op == "output":
                return env[node]
        raise AssertionError("a graph ends in its output")

    def _full(self, at: np.ndarray, patches: Tensor) -> Tensor:
        images = self.image.repeat(len(at), 1, 1, 1)
        for image, (top, left), patch in zip(images, at, patches, strict=True):
            image[:, top : top + patch.shape[1], left : left + patch.shape[2]] = patch
        return self.model(images)

    def _agrees(self, found: Tensor, whole: Tensor) -> bool:
        """Whether a full pass gives the same: far more than rounding is a wrong rule, and from then on all is computed whole."""
        right = not (found - whole).abs().max() > (0.05 if self.low else 0.01) * whole.abs().max()  # NaN is no rule's
        if not right:
            _say("each window is a full pass: the network changes maps in a way that its graph does not show")
            self.network = None
        return right

    def _pass(self, at: np.ndarray, patches: Tensor) -> Tensor:
        """Logits of windows [n, 2] that go through together."""
        network: Any = self.network
        if network is None:
            return self._full(at, patches)
        plan: dict[fx.Node, Any] = self._plan(at, *patches.shape[2:])
        env: dict[fx.Node, Any] = dict(self._constants)
        for node in network.nodes:
            if node not in network.dependent:
                continue
            sources, places = network.sources(node), plan[node]
            if node is network.image:
                rows = patches.permute(0, 2, 3, 1).reshape(-1, patches.shape[1])
                env[node] = self._crops(node, places, rows.contiguous())
            elif places is not None:
                env[node] = getattr(self, "_" + network.rules[node])(node, env, places)
            elif network.traced.kind(node) in _SHAPES and isinstance(env[sources[0]], Crops):
                shape = self._maps[sources[0]].new_empty(1).expand(len(at), *network.traced.shapes[sources[0]][1:])
                env[node] = self._run(node, {**env, sources[0]: shape})
            else:
                maps = {each: env[each].whole for each in sources if isinstance(env[each], Crops)}
                env[node] = (self._linear if node in self._dense else self._run)(node, {**env, **maps})
            if node.op == "output":
                return env[node]
            for source in sources:
                if network.last_use[source] is node:
                    env.pop(source, None)
        raise AssertionError("a graph ends in its output")

    def _crops(self, node: fx.Node, places: Places, changed: Tensor, room: Tensor | None = None) -> Crops:
        assert self.network is not None
        return Crops(places, self._maps[node], self.network.traced.size(node), changed, room)

    def _window(self, node: fx.Node, env: dict[fx.Node, Any], places: Places) -> Crops:
        """A convolution or pooling of rectangles."""
        network: Any = self.network
        source, base, device = env[network.sources(node)[0]], self._maps[node], self.image.device
        (kh, sh, ph, dh), (kw, sw, pw, dw) = network.windows[node]
        kind, outside, groups, low = network.traced.kind(node), 0.0, 1, None
        rectangles: Callable[[Tensor], Tensor]  # [g, C, h, w] to [g, O, h', w']
        patches: Callable[[Tensor], Tensor]  # [rows, kh kw, C] to [rows, O]
        if kind == "conv2d":
            weight, bias, groups = self._convolution(node, env)
            if self.low:
                low, weight, bias = self.low, self._lowered(node, weight), None
                source = source.change(self.low, self._held)
            if weight.shape[2:] == (1, 1) and (sh, sw, ph, pw, groups) == (1, 1, 0, 0, 1):
                y = F.linear(source.at(places), weight[:, :, 0, 0], bias)
                return self._added(node, places, y) if low else self._crops(node, places, y)
            rectangles = partial(F.conv2d, weight=weight, bias=bias, stride=(sh, sw), dilation=(dh, dw), groups=groups)

            def patches(x: Tensor) -> Tensor:
                return F.linear(x.flatten(1), weight.permute(0, 2, 3, 1).flatten(1), bias)

        elif kind == "maxpool2d":
            outside = -math.inf
            rectangles = partial(F.max_pool2d, kernel_size=(kh, kw), stride=(sh, sw), dilation=(dh, dw))
            patches = partial(torch.amax, dim=1)
        else:
            rectangles = partial(F.avg_pool2d, kernel_size=(kh, kw), stride=(sh, sw))
            patches = partial(torch.mean, dim=1)

        room = None if low else room_for(base, places.total)
        y = base.new_empty(places.total, base.shape[1], dtype=self._held) if room is None else room[1 + len(base) :]
        if self.by_patches and groups == 1:
            table, (window, row, column) = source.table(outside), places.positions(device)
            rows, columns = (torch.arange(k, device=device) * d for k, d in ((kh, dh), (kw, dw)))
            index = source.index(
                window[:, None, None],
                (row * sh - ph)[:, None, None] + rows[:, None],
                (column * sw - pw)[:, None, None] + columns,
            ).flatten(1)
            step = max(1, _PATCHES // (index.shape[1] * table.shape[1]))
            for some, out in zip(index.split(step), y.split(step), strict=True):
                out.copy_(patches(table.index_select(0, some.flatten()).view(*some.shape, table.shape[1])))
        else:
            held = places.on(device)
            for windows, h, w, first, last in places.groups:
                window = held[6, windows]
                corner = held[0, window] * sh - ph, held[2, window] * sw - pw
                size = (h - 1) * sh + dh * (kh - 1) + 1, (w - 1) * sw + dw * (kw - 1) + 1
                out = rectangles(source.cut(window, *corner, *size, outside=outside))
                y[first:last].view(len(window), h, w, -1).copy_(out.permute(0, 2, 3, 1))
        return self._added(node, places, y) if low else self._crops(node, places, y, room)

    def _added(self, node: fx.Node, places: Places, change: Tensor) -> Crops:
        """The base map with a change of it in low precision, [rows, C]."""
        base = self._maps[node]
        room = room_for(base, places.total)
        result = self._crops(node, places, room[1 + len(base) :], room)
        result.base_at(places, out=result.changed).add_(self._rounded(change))
        return result

    def _linear(self, node: fx.Node, env: dict[fx.Node, Any]) -> Tensor:
        """A dense layer in low precision."""
        (x, y), weight = self._dense[node], self._convolution(node, env)[0]
        change = (env[node.args[0]] - x).to(self.low).to(self._held)  # type: ignore[index]  # a node, says is_dense
        return y + self._rounded(F.linear(change, self._lowered(node, weight)))

    def _rounded(self, change: Tensor) -> Tensor:
        change = change.to(self.low)
        if self.low is torch.float16:
            self._finite = change.isfinite().all() & self._finite
        return change

    def _lowered(self, node: fx.Node, weight: Tensor) -> Tensor:
        """A layer's weights, rounded once."""
        if node not in self._low_weights:
            self._low_weights[node] = weight.detach().to(self.low).to(self._held)
        return self._low_weights[node]

    def _convolution(self, node: fx.Node, env: dict[fx.Node, Any]) -> tuple[Any, ...]:
        """Weight, bias and groups of a convolution or dense layer."""
        network: Any = self.network
        weight, bias = self._weights.get(node) or (network.option(node, n, i) for i, n in ((1, "weight"), (2, "bias")))
        weight, bias = (env[each] if isinstance(each, fx.Node) else each for each in (weight, bias))
        return weight, bias, network.option(node, "groups", 6, 1)

    def _pointwise(self, node: fx.Node, env: dict[fx.Node, Any], places: Places) -> Crops:
        """What treats each position on its own, of one map: on all positions as if they were images of one pixel."""
        network: Any = self.network
        (name,) = network.sources(node)
        source = env[name]
        if node in network.folded:
            return source
        x = source.changed if network.last_use[name] is node else source.changed.clone()
        x, version = x[:, :, None, None], x._version
        y = self._run(node, {**env, name: x})[:, :, 0, 0]
        room = source.room if y.data_ptr() == source.changed.data_ptr() else None
        result = self._crops(node, places, y, room)
        if x._version != version:
            env[name] = result  # in place: whoever reads the input later reads this
        return result

    def _join(self, node: fx.Node, env: dict[fx.Node, Any], places: Places) -> Crops:
        """What treats each position on its own, of several maps: on the hull of their rectangles."""
        network: Any = self.network
        values = {name: env[name].at(places) for name in network.sources(node)}
        values = {
            name: (x if network.last_use[name] is node else x.clone())[:, :, None, None] for name, x in values.items()
        }
        versions = {name: x._version for name, x in values.items()}
        result = self._crops(node, places, self._run(node, {**env, **values})[:, :, 0, 0].contiguous())
        for name, x in values.items():
            if x._version != versions[name]:
                env[name] = result
        return result

    def _run(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        """A node on whole tensors."""
        network: Any = self.network
        if node in network.folded:
            return env[network.folded[node]]
        if node in self._weights:
            source, (weight, bias), conv = env[network.sources(node)[0]], self._weights[node], network.module(node)
            return F.conv2d(source, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        args, kwargs = (fx.node.map_arg(given, env.__getitem__) for given in (node.args, node.kwargs))
        return getattr(self._interpreter, node.op)(node.target, args, kwargs)
