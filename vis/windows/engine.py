"""The outputs of a network for images that differ from one image in a window each; only what changes is computed.

Of every feature map a window changes a rectangle. Along an axis, outputs lo' ... hi' of a convolution or pooling with
kernel extent ke, stride s and padding p read inputs lo ... hi:

    lo' = max(0, ceil((lo + p - ke + 1) / s))      hi' = min(n - 1, floor((hi + p) / s))

They are computed from the input's rectangle lo' s - p ... hi' s - p + ke - 1, which is taken from the base image's map with
the changed rectangle pasted in. Padding by a constant moves rectangles. So the results are those of full passes, up to
the order of sums; each image's first windows are compared with full passes, at the scale of what they change. Clipping at the
borders and one rectangle for each window, not a common one, is what is gained over Krypton (Nakandala et al. 2019).

`vis.windows.plan` finds these rectangles, `vis.windows.rectangles` stores them. An operation that treats each position on
its own runs on all of them at once. Where rectangles fill most of a map, and from an operation without a rule on, maps are whole.

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

from vis.errors import UserError, first_line
from vis.graph.trace import NotTraceable
from vis.system.device import tf32
from vis.windows.plan import SHAPES, WHOLE, Network
from vis.windows.rectangles import Crops, Places, room_for

log = logging.getLogger(__name__)

_UNTRACED = 1 << 22  # numbers of images at a time where a network is run whole: 27 images of 3x224x224
_PATCHES = 1 << 27  # numbers of patches that are multiplied at a time
_CHECKS = 3  # windows that are compared with full passes
_WRONG = 1e-3  # of what a window changes: more is no rounding
_ROUNDED = 0.03  # of it, in low precision


@cache
def say_once(words: str) -> None:
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

    model: in eval mode, as `vis.graph.modes.evaluating` has it. memory_gb: bounds how many windows go through at a time.
    low: the type that changes are rounded to where they are multiplied; None is the image's own, for values.
    A network that cannot be traced is run whole for each window, with a line in the log; so is one whose graph does not show
    all that it does: three windows are compared with full passes first.

    Raises ValueError for a network that returns no logits.
    """

    @tf32(allowed=False)  # its rounding errors are as large as the changes
    def __init__(self, model: nn.Module, image: Tensor, memory_gb: float = 4.0, low: torch.dtype | None = None) -> None:
        self.model, self.image, self.memory_gb, self.low = model, image.detach(), memory_gb, low
        self.by_patches = image.device.type != "cpu"  # few large products in place of a convolution for each size
        self._held = low
        self._finite: Tensor | bool = True
        if low and low.itemsize < 4 and not is_native(low, image.device):
            self._held = torch.float32
            say_once(
                f"{_name(low)}: no speed is gained, {image.device.type} has no such products; rounded, then in float32"
            )
        self._checked = False
        self._together = True  # a batch of images gives what they give one by one
        self.network: Network | None = None
        with torch.no_grad():
            self.base = model(self.image.clone())
        if not isinstance(self.base, Tensor) or self.base.ndim != 2:
            raise ValueError(f"windows need logits [1, K], {type(model).__name__} returns a {type(self.base).__name__}")
        self._size = self.base.abs().max()
        try:
            self.network = network = Network(model, image.shape[1], (image.shape[2], image.shape[3]))
        except NotTraceable as error:
            say_once(f"each window is a full pass: {error}")
            return
        with torch.no_grad():
            found = self._tried(self._base_pass)  # weight norm has set its weights in the pass above
        if isinstance(found, str):
            self.network = None
            say_once(f"each window is a full pass: {found}")
            return
        if self._equal(found, self.base):
            self.base = found  # its sums are those of the windows
        if network.unknown:
            say_once(f"no rule for {', '.join(network.unknown)}: for each window computed whole, with all behind it")

    @torch.no_grad()
    @tf32(allowed=False)
    def logits(self, windows: Tensor, patches: Tensor) -> Tensor:
        """Logits [n, K] with the windows at (top, left) [n, 2] holding patches [n, C, h, w]; they lie inside the image.

        Raises UserError where float16 overflows.
        """
        at = windows.cpu().numpy().astype(np.int64)
        if not self._checked and len(at) <= _CHECKS:  # a check would cost as much
            return self._one_by_one(at, patches)
        if not self._checked:
            self._check(patches)
        batch, parts = self.batch(at, *patches.shape[2:]), []
        for first in range(0, len(at), batch):
            some = slice(first, first + batch)
            parts.append(self._pass(at[some], patches[some]))
        self._check_overflow()
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
            return max(1, _UNTRACED // self.image.numel()) if self._together else 1
        some = at[np.linspace(0, len(at) - 1, min(len(at), 64)).astype(int)]
        needed = self.network.memory(self._plan(some, h, w), len(some), self.image.element_size())
        return int(max(1, min(len(at), self.memory_gb * 1e9 / needed)))

    def _base_pass(self) -> Tensor:
        """The image itself: keeps its maps as rows [H W, C], what does not depend on it, and convolutions with batch norm."""
        network: Any = self.network
        self._interpreter = fx.Interpreter(network.traced.runnable, graph=network.traced.graph)
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
        versions: dict[fx.Node, int] = {}  # of what is read later
        for node in network.nodes:
            if node is network.image:
                env[node] = self.image.clone()
            elif node.op == "placeholder":
                env[node] = node.args[0] if node.args else None
            else:
                env[node] = self._run(node, env)
            if self.low and network.is_dense(node):
                self._dense[node] = env[node.args[0]].clone(), env[node].clone()
            for source in network.sources(node):
                if network.last_use[source] is node:
                    versions.pop(source, None)
            changed = [each for each, version in versions.items() if env[each]._version != version]
            if changed:
                self._rename(changed, node, env)
            versions = {each: env[each]._version for each in versions if each not in changed}
            if node not in network.dependent:
                self._constants[node] = env[node]
            elif node in network.rules:
                self._maps[node] = env[node][0].movedim(0, -1).flatten(0, 1).clone()
            if node in network.dependent and node in network.last_use and isinstance(env[node], Tensor):
                versions[node] = env[node]._version
            if node.op == "output":
                dense = [each for each in network.nodes if network.is_dense(each)]
                if dense:  # what is behind the last, as the difference of two logits, may be small by chance
                    last = dense[-1]
                    weight, bias = self._convolution(last, env)[:2]
                    squares = F.linear(
                        env[last.args[0]].square(), weight.square(), None if bias is None else bias.square()
                    )
                    self._size = torch.maximum(self._size, squares.sqrt().max())
                return env[node]
        raise AssertionError("a graph ends in its output")

    def _rename(self, changed: list[fx.Node], node: fx.Node, env: dict[fx.Node, Any]) -> None:
        """A node has changed others in place that are read later: if these are names of its own map, it is read instead."""
        network: Any = self.network
        if node not in network.rules and not any(each in network.rules for each in changed):
            return  # whole maps share memory as the network's do

        def place(of: fx.Node) -> tuple[Any, ...]:
            return env[of].data_ptr(), env[of].shape, env[of].stride()

        if node not in network.rules or any(place(each) != place(node) for each in changed):
            names = ", ".join(map(network.traced.words, changed))
            raise NotTraceable(f"{network.traced.words(node)} changes {names} in place")
        network.rename(changed, node)

    def _full(self, at: np.ndarray, patches: Tensor) -> Tensor:
        images = self.image.repeat(len(at), 1, 1, 1)
        for image, (top, left), patch in zip(images, at, patches, strict=True):
            image[:, top : top + patch.shape[1], left : left + patch.shape[2]] = patch
        return self.model(images)

    def _one_by_one(self, at: np.ndarray, patches: Tensor) -> Tensor:
        return torch.cat([self._full(at[i : i + 1], patches[i : i + 1]) for i in range(len(at))])

    def _check(self, patches: Tensor) -> None:
        """Compare windows in two corners and in the middle with full passes of one image each, in the image's precision, then
        in a low one. They hold the patches that change the image most there. What is found wrong is not used any more."""
        self._checked = True
        (H, W), (h, w) = self.image.shape[2:], patches.shape[2:]
        at = np.array([[0, 0], [(H - h) // 2, (W - w) // 2], [H - h, W - w]])
        assert len(at) == _CHECKS
        here = [self.image[:, :, top : top + h, left : left + w] for top, left in at.tolist()]
        patches = patches[torch.stack([(patches - each).square().sum((1, 2, 3)).argmax() for each in here])]
        whole, why = self._one_by_one(at, patches), ""
        if self.network is not None:
            low, self.low = self.low, None
            exact = self._tried(lambda: self._pass(at, patches))
            if isinstance(exact, str):
                why = exact
            elif not self._equal(exact, whole):
                why = f"{type(self.model).__name__} does what its graph does not show (hooks, changes in place)"
            elif low:
                self.low = low
                self._check_low(exact, self._pass(at, patches))
        if self.network is None or why:
            self.network = None
            together = self._tried(lambda: self._full(at, patches))
            self._together = not isinstance(together, str) and self._equal(together, whole)
            if not self._together:
                why = f"{type(self.model).__name__} mixes the images of a batch"
            if why:
                say_once(f"each window is a full pass{'' if self._together else ' of its own'}: {why}")

    def _check_low(self, exact: Tensor, found: Tensor) -> None:
        self._check_overflow()
        error, change = ((each - exact).square().mean().sqrt() for each in (found, self.base))
        if not error <= _ROUNDED * change + self._rounding(exact):
            say_once(f"{_name(self.low)} is not used: it is off by more than {_ROUNDED:.0%} of what windows change")
            self.low = None

    def _tried(self, run: Callable[[], Tensor]) -> Tensor | str:
        """What `run` computes, or why it cannot: code may refuse maps of a layout, or a size of batch, that is new to it."""
        try:
            return run()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a network's own code may raise anything
            return f"{type(self.model).__name__}, {first_line(error)}"

    def _equal(self, found: Tensor, whole: Tensor) -> bool:
        """Whether logits are those of full passes, up to rounding and a small part of what a window changes."""
        change = (whole - self.base).abs().amax(1, keepdim=True)
        return bool(((found - whole).abs() <= _WRONG * change + self._rounding(whole)).all())

    def _rounding(self, logits: Tensor) -> Tensor:
        """How far apart two passes may be.

        A sum of n products that is rounded after each, by eps / sqrt(12) of what it is by then, is off by sqrt(n / 24) eps of
        its size in the end (a processor sums in blocks and is off by less). Layers add to that at random: n counts the
        products of an output of every layer. 4 eps are for all else. The size is the largest logit's, or what that would be
        if products did not cancel.
        """
        n = sum(math.prod(p.shape[1:]) for p in self.model.parameters() if p.ndim > 1)
        eps = torch.finfo(logits.dtype).eps
        return eps * (4 + math.sqrt(n / 24)) * torch.maximum(logits.abs().max(), self._size)

    def _check_overflow(self) -> None:
        if not self._finite:
            raise UserError(f"the network's values do not fit into {_name(self.low)}: give bfloat16 or float32")

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
                rows = patches.permute(0, 2, 3, 1).flatten(0, 2)
                env[node] = self._crops(node, places, rows.clone(memory_format=torch.contiguous_format))
            elif places is not None:
                env[node] = getattr(self, "_" + network.rules[node])(node, env, places)
            elif network.traced.kind(node) in SHAPES and isinstance(env[sources[0]], Crops):
                shape = self._maps[sources[0]].new_empty(1).expand(len(at), *network.traced.shapes[sources[0]][1:])
                env[node] = self._run(node, {**env, sources[0]: shape})
            else:
                maps = {each: env[each].whole for each in sources if isinstance(env[each], Crops)}
                env[node] = (self._linear if self.low and node in self._dense else self._run)(node, {**env, **maps})
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
        y = self._run(node, {**env, name: source.changed[:, :, None, None]})[:, :, 0, 0]
        shared = y.data_ptr() == source.changed.data_ptr()
        if shared and network.last_use[name] is not node:  # one of the two may be changed in place
            y, shared = y.clone(), False
        return self._crops(node, places, y, source.room if shared else None)

    def _pad(self, node: fx.Node, env: dict[fx.Node, Any], places: Places) -> Crops:
        """A padding by a constant, which the base map holds."""
        network: Any = self.network
        (name,) = network.sources(node)
        changed = env[name].changed
        return self._crops(node, places, changed if network.last_use[name] is node else changed.clone())

    def _join(self, node: fx.Node, env: dict[fx.Node, Any], places: Places) -> Crops:
        """What treats each position on its own, of several maps: on the hull of their rectangles."""
        network: Any = self.network
        values = {name: env[name].at(places)[:, :, None, None] for name in network.sources(node)}
        return self._crops(node, places, self._run(node, {**env, **values})[:, :, 0, 0].contiguous())

    def _run(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        """A node on whole tensors."""
        network: Any = self.network
        if node in network.folded:
            return env[network.folded[node]]
        if node in self._weights:
            source, (weight, bias), conv = env[network.sources(node)[0]], self._weights[node], network.module(node)
            return F.conv2d(source, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        args, kwargs = (fx.node.map_arg(given, env.__getitem__) for given in (node.args, node.kwargs))
        target = "reshape" if node.target == "view" else node.target  # of maps that lie as convolutions like them here
        return getattr(self._interpreter, node.op)(target, args, kwargs)
