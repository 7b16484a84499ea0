"""Run windows of an image through a network and compute only the rectangle of each map that a window changes.

Along an axis, outputs lo' ... hi' of a convolution or pooling with kernel extent ke, stride s and padding p read inputs
lo ... hi:

    lo' = max(0, ceil((lo + p - ke + 1) / s))      hi' = min(n - 1, floor((hi + p) / s))

They are computed from the input's rectangle lo' s - p ... hi' s - p + ke - 1, which is the base image's map with the changed
rectangle pasted in. A constant padding moves rectangles. An operation that treats each position independently runs on the
positions of all rectangles at once.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from vis.windows.base_pass import BasePass
from vis.windows.low_precision import LowPrecision
from vis.windows.plan import SHAPES
from vis.windows.rectangles import Crops, Places, room_for

_PATCHES = 1 << 27  # values of patches that are multiplied at a time

Geometry = tuple[
    tuple[int, int, int, int], tuple[int, int, int, int]
]  # kernel, stride, padding, dilation of rows, columns


class _Operation(NamedTuple):
    """A convolution or pooling without its padding, on rectangles and, unless it is grouped, on single patches."""

    rectangles: Callable[[Tensor], Tensor]  # [g, C, h, w] -> [g, O, h', w']
    patches: Callable[[Tensor], Tensor] | None  # [rows, kh kw, C] -> [rows, O]
    outside: float = 0.0  # the value of padding


class WindowPass:
    """A pass of n windows with patches [n, C, h, w], by a plan of the rectangles that they change.

    low: multiply changes in low precision. by_patches: compute convolutions and poolings as few large products, which is
    faster on a GPU than one call per size of rectangle.
    """

    def __init__(
        self,
        base: BasePass,
        plan: dict[fx.Node, Places | None],
        patches: Tensor,
        low: LowPrecision | None,
        by_patches: bool,
    ) -> None:
        self.base, self.network, self.plan, self.patches = base, base.network, plan, patches
        self.low, self.by_patches = low, by_patches
        self.env: dict[fx.Node, Any] = dict(base.constants)  # maps are Crops, or whole tensors

    def logits(self) -> Tensor:
        """Return the logits [n, K]."""
        network, env = self.network, self.env
        for node in network.nodes:
            if node not in network.dependent:
                continue
            places = self.plan[node]
            if places is None:
                env[node] = self._whole(node)
            else:
                env[node] = getattr(self, "_" + network.rules[node])(node, places)
            if node.op == "output":
                return env[node]
            for source in network.sources(node):
                if network.last_use[source] is node:
                    env.pop(source, None)
        raise AssertionError("a graph ends in its output")

    def _whole(self, node: fx.Node) -> Any:
        """Run a node on whole maps."""
        sources, env = self.network.sources(node), self.env
        if self.network.traced.kind(node) in SHAPES and isinstance(env[sources[0]], Crops):
            shape = len(self.patches), *self.network.traced.shapes[sources[0]][1:]
            return self.base.run(node, {**env, sources[0]: self.base.maps[sources[0]].new_empty(1).expand(shape)})
        env = {**env, **{each: env[each].whole for each in sources if isinstance(env[each], Crops)}}
        if self.low and node in self.base.dense:
            return self._dense(node, env[node.args[0]], self.low)  # type: ignore[index]  # a node, says is_dense
        return self.base.run(node, env)

    def _dense(self, node: fx.Node, values: Tensor, low: LowPrecision) -> Tensor:
        """Apply a dense layer in low precision."""
        x, y = self.base.dense[node]
        weight = self.base.parameters(node, self.env)[0]
        return y + low.result(F.linear(low.operand(values - x), low.weight(node, weight)))

    def _image(self, node: fx.Node, places: Places) -> Crops:
        rows = self.patches.permute(0, 2, 3, 1).flatten(0, 2)
        return self._crops(node, places, rows.clone(memory_format=torch.contiguous_format))

    def _window(self, node: fx.Node, places: Places) -> Crops:
        """Apply a convolution or pooling."""
        source, kind = self.env[self.network.sources(node)[0]], self.network.traced.kind(node)
        base, geometry = self.base.maps[node], self.network.windows[node]
        low = self.low if kind == "conv2d" else None
        if kind == "conv2d":
            weight, bias, groups = self.base.parameters(node, self.env)
            if low:
                weight, bias, source = low.weight(node, weight), None, source.change(low.dtype, low.held)
            if groups == 1 and all(each[:3] == (1, 1, 0) for each in geometry):
                y = F.linear(source.at(places), weight[:, :, 0, 0], bias)
                return self._added(node, places, y, low) if low else self._crops(node, places, y)
            operation = _convolution(weight, bias, groups, geometry)
        else:
            operation = _pooling(kind, geometry)
        if low:
            room = y = base.new_empty(places.total, base.shape[1], dtype=low.held)
        else:
            room = room_for(base, places.total)
            y = room[1 + len(base) :]
        if self.by_patches and operation.patches:
            _apply_to_patches(operation.patches, source.table(operation.outside), source, places, geometry, y)
        else:
            _apply_to_rectangles(operation, source, places, geometry, y)
        return self._added(node, places, y, low) if low else self._crops(node, places, y, room)

    def _pointwise(self, node: fx.Node, places: Places) -> Crops:
        """Apply an operation on one map that treats each position independently, as if each were an image of one pixel."""
        (name,) = self.network.sources(node)
        source = self.env[name]
        if node in self.network.folded:
            return source
        y = self.base.run(node, {**self.env, name: source.changed[:, :, None, None]})[:, :, 0, 0]
        shared = y.data_ptr() == source.changed.data_ptr()
        if shared and self.network.last_use[name] is not node:  # one of the two may be changed in place
            y, shared = y.clone(), False
        return self._crops(node, places, y, source.room if shared else None)

    def _pad(self, node: fx.Node, places: Places) -> Crops:
        """Apply a constant padding; the base map contains the constant."""
        (name,) = self.network.sources(node)
        changed = self.env[name].changed
        return self._crops(node, places, changed if self.network.last_use[name] is node else changed.clone())

    def _join(self, node: fx.Node, places: Places) -> Crops:
        """Apply an operation on several maps that treats each position independently, on the hull of their rectangles."""
        values = {name: self.env[name].at(places)[:, :, None, None] for name in self.network.sources(node)}
        return self._crops(node, places, self.base.run(node, {**self.env, **values})[:, :, 0, 0].contiguous())

    def _crops(self, node: fx.Node, places: Places, changed: Tensor, room: Tensor | None = None) -> Crops:
        return Crops(places, self.base.maps[node], self.network.traced.size(node), changed, room)

    def _added(self, node: fx.Node, places: Places, change: Tensor, low: LowPrecision) -> Crops:
        """Add a change in low precision, [total, C], to the base map."""
        base = self.base.maps[node]
        room = room_for(base, places.total)
        result = self._crops(node, places, room[1 + len(base) :], room)
        result.base_at(places, out=result.changed).add_(low.result(change))
        return result


def _convolution(weight: Tensor, bias: Tensor | None, groups: int, geometry: Geometry) -> _Operation:
    (_, sh, _, dh), (_, sw, _, dw) = geometry

    def patches(x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), weight.permute(0, 2, 3, 1).flatten(1), bias)

    rectangles = partial(F.conv2d, weight=weight, bias=bias, stride=(sh, sw), dilation=(dh, dw), groups=groups)
    return _Operation(rectangles, patches if groups == 1 else None)


def _pooling(kind: str, geometry: Geometry) -> _Operation:
    (kh, sh, _, dh), (kw, sw, _, dw) = geometry
    if kind == "maxpool2d":
        rectangles = partial(F.max_pool2d, kernel_size=(kh, kw), stride=(sh, sw), dilation=(dh, dw))
        return _Operation(rectangles, partial(torch.amax, dim=1), -math.inf)
    return _Operation(partial(F.avg_pool2d, kernel_size=(kh, kw), stride=(sh, sw)), partial(torch.mean, dim=1))


def _apply_to_patches(
    f: Callable[[Tensor], Tensor], table: Tensor, source: Crops, places: Places, geometry: Geometry, out: Tensor
) -> None:
    """Compute each position from its own patch of the source's table, many at a time: out [total, O]."""
    (kh, sh, ph, dh), (kw, sw, pw, dw) = geometry
    window, row, column = places.positions(table.device)
    rows, columns = (torch.arange(k, device=table.device) * d for k, d in ((kh, dh), (kw, dw)))
    index = source.index(
        window[:, None, None],
        (row * sh - ph)[:, None, None] + rows[:, None],
        (column * sw - pw)[:, None, None] + columns,
    ).flatten(1)
    step = max(1, _PATCHES // (index.shape[1] * table.shape[1]))
    for some, y in zip(index.split(step), out.split(step), strict=True):
        y.copy_(f(table.index_select(0, some.flatten()).view(*some.shape, table.shape[1])))


def _apply_to_rectangles(operation: _Operation, source: Crops, places: Places, geometry: Geometry, out: Tensor) -> None:
    """Compute all rectangles of one size together: out [total, O]."""
    (kh, sh, ph, dh), (kw, sw, pw, dw) = geometry
    held = places.on(out.device)
    for windows, h, w, first, last in places.groups:
        window = held[6, windows]
        corner = held[0, window] * sh - ph, held[2, window] * sw - pw
        size = (h - 1) * sh + dh * (kh - 1) + 1, (w - 1) * sw + dw * (kw - 1) + 1
        y = operation.rectangles(source.cut(window, *corner, *size, outside=operation.outside))
        out[first:last].view(len(window), h, w, -1).copy_(y.permute(0, 2, 3, 1))
