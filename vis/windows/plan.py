"""Plan incremental inference: the rectangle of each feature map that a window changes, and the work and memory it takes.

Only shapes are needed; no value of the network is computed here.
"""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from vis.graph.receptive_field import PADDINGS, WINDOWS, argument, padding, uses_batch_statistics, window
from vis.graph.trace import ELEMENTWISE, NotTraceable, Traced, is_hooked, trace
from vis.windows.rectangles import Places, hull, reached

WHOLE = 0.9  # if rectangles fill a larger share of the maps, whole maps are faster
SHAPES = {"size", "dim", "getattr"}  # queries of a tensor's shape
_POINTWISE = ELEMENTWISE | {"localresponsenorm"}


class Network:
    """A network's graph for images of one size, with the nodes that can be computed in rectangles.

    rules: {node: "window", "pad", "pointwise" or "join"}; other nodes that depend on the image are computed on whole maps.
    unknown: the operations, in words, at which rectangles end: they have no rule, or another input is a whole map.
    """

    def __init__(self, model: nn.Module, channels: int, size: tuple[int, int]) -> None:
        self.traced: Traced = trace(model, channels, size)
        self.nodes = list(self.traced.graph.nodes)
        self.image = self.nodes[0]  # other placeholders have defaults
        self.windows: dict[fx.Node, tuple[tuple[int, int, int, int], ...]] = {}
        self.rules: dict[fx.Node, str] = {}
        self.dependent: set[fx.Node] = set()
        self.folded: dict[fx.Node, fx.Node] = {}  # {batch norm: its convolution}
        self.unknown: list[str] = []
        behind: set[fx.Node] = set()  # unknown nodes
        for node in self.nodes:
            if node is not self.image and not self.sources(node):
                continue
            self.dependent.add(node)
            rule, sources = self._rule(node), self.sources(node)
            if rule and all(source in self.rules for source in sources):
                self.rules[node] = rule
            elif not behind.isdisjoint(sources):
                behind.add(node)
            elif any(source in self.rules for source in sources) and not self._is_head(node):
                behind.add(node)
                self.unknown.append(self.traced.words(node) + ", hooked" * (self.kind(node) == "hooked"))
        self._note_last_uses()

    def _note_last_uses(self) -> None:
        self.last_use = {source: node for node in self.nodes for source in node.all_input_nodes}

    def rename(self, former: Collection[fx.Node], node: fx.Node) -> None:
        """Let nodes after one that changed others in place read its output instead of theirs."""
        for each in self.nodes[self.nodes.index(node) + 1 :]:
            for name in former:
                each.replace_input_with(name, node)
        self._note_last_uses()

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.traced.net.get_submodule(str(node.target)) if node.op == "call_module" else None

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """Return the inputs of a node that depend on the image."""
        return [source for source in node.all_input_nodes if source in self.dependent]

    def option(self, node: fx.Node, name: str, position: int, default: Any = None) -> Any:
        """Return an argument of an operation: a module's attribute or a function's argument."""
        module = self.module(node)
        if module is not None:
            return getattr(module, name, default)
        return argument(node, name, position, default)

    def kind(self, node: fx.Node) -> str:
        """Return the operation of a node; "hooked", which has no rule, if hooks or a replaced `forward` may alter it."""
        return "hooked" if is_hooked(self.module(node)) else self.traced.kind(node)

    def is_dense(self, node: fx.Node) -> bool:
        return self.kind(node) == "linear" and bool(node.args) and self.sources(node) == [node.args[0]]

    def _rule(self, node: fx.Node) -> str | None:
        """Return the rule of a node, given rectangles of its sources; None if it needs whole maps."""
        kind, shapes = self.kind(node), self.traced.shapes
        sources = self.sources(node)
        if node is self.image:
            return "image"
        own: Any = shapes[node]
        if any(len(shapes[each] or ()) != 4 for each in (node, *sources)) or own[0] != 1:
            return None
        if kind in WINDOWS:
            return self._window_rule(node, kind)
        if kind in PADDINGS:
            return "pad" if padding(self.traced, node) else None
        if kind in ("cat", "concat"):
            dim = argument(node, "dim", 1, 0)
            return "join" if dim in (1, -3) and len(sources) == len(node.all_input_nodes) else None
        constants = [shapes[each] for each in node.all_input_nodes if each not in sources]
        spread = any(shape is not None and shape[-2:].numel() != 1 for shape in constants)
        if (
            kind not in _POINTWISE
            or spread
            or any(self.traced.size(each) != self.traced.size(node) for each in sources)
        ):
            return None
        if uses_batch_statistics(self.traced, node):
            return None
        if type(self.module(node)) is nn.BatchNorm2d:
            conv = sources[0]
            if type(self.module(conv)) is nn.Conv2d and len(conv.users) == 1 and conv in self.windows:
                self.folded[node] = conv
        return "pointwise" if len(sources) == 1 else "join"

    def _is_head(self, node: fx.Node) -> bool:
        """Return True where rectangles end in every classifier: at a global pooling or a flattening."""
        kind, shape = self.traced.kind(node), self.traced.shapes[node]
        flat = shape is not None and (len(shape) <= 2 or (len(shape) == 4 and math.prod(shape[2:]) == 1))
        return flat or kind in SHAPES or kind.startswith("adaptive")

    def _window_rule(self, node: fx.Node, kind: str) -> str | None:
        along = tuple(window(self.traced, node, kind, i) for i in (0, 1))
        if None in along or self.sources(node) != node.all_input_nodes[:1]:  # its weights are computed from the image
            return None
        if kind == "conv2d":
            if self.option(node, "padding_mode", 99, "zeros") != "zeros":
                return None
        elif kind == "avgpool2d":
            padded, partial = any(each[2] for each in along if each), self.option(node, "ceil_mode", 4, False)
            odd = self.option(node, "divisor_override", 6) or not self.option(node, "count_include_pad", 5, True)
            if partial or (padded and odd) or self.option(node, "divisor_override", 6):
                return None
        self.windows[node] = along  # type: ignore[assignment]  # checked above: none is None
        return "window"

    def plan(
        self, top: np.ndarray, left: np.ndarray, height: int, width: int, whole: float = WHOLE
    ) -> dict[fx.Node, Places | None]:
        """Return the rectangles that change at each node for n windows of one size at top, left [n].

        None means whole maps: the node has no rule, or the rectangles fill more than a share `whole` of the maps.
        """
        plan: dict[fx.Node, Places | None] = {}
        for node in self.nodes:
            if node not in self.dependent:
                continue
            rule, found = self.rules.get(node), [plan[source] for source in self.sources(node)]
            if rule == "image":
                plan[node] = Places(np.stack([top, top + height], 1), np.stack([left, left + width], 1))
                continue
            if rule is None or any(each is None for each in found):
                plan[node] = None
                continue
            places: Any = found[0]
            H, W = self.traced.shapes[node][2:]  # type: ignore[index]  # a map has a shape
            if rule == "window":
                rows, columns = self.windows[node]
                places = Places(reached(places.rows, H, *rows), reached(places.columns, W, *columns))
            elif rule == "pad":
                above, before = padding(self.traced, node)  # type: ignore[misc]  # the rule implies it
                places = Places(places.rows + above, places.columns + before)
            elif rule == "join" and not all(each == places for each in found):
                places = Places(*(hull([getattr(each, axis) for each in found]) for axis in ("rows", "columns")))
            plan[node] = None if places.total > whole * len(top) * H * W else places
        return plan

    def work(self, plan: dict[fx.Node, Places | None], n: int) -> tuple[float, float]:
        """Return the multiply-accumulates of convolutions and dense layers for a plan's n windows and for n full passes."""
        macs = full = 0.0
        for node in self.dependent:
            module, shape = self.module(node), self.traced.shapes[node]
            if shape is None or not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            each = module.weight[0].numel() * (shape[1] if len(shape) == 4 else shape[-1])
            positions = n * math.prod(shape[2:] if len(shape) == 4 else shape[1:-1])
            places = plan[node]
            macs += each * (positions if places is None else places.total)
            full += each * positions
        return macs, full

    def memory(self, plan: dict[fx.Node, Places | None], n: int, itemsize: int) -> float:
        """Estimate the peak memory of a pass in bytes per window, for a plan of n windows."""
        live: dict[fx.Node, float] = {}
        most = 0.0
        for node in self.nodes:
            shape = self.traced.shapes[node]
            if node not in self.dependent or shape is None:
                continue
            places = plan[node]
            live[node] = itemsize * (math.prod(shape) if places is None else places.total / n * shape[1])
            read = sum(live.get(source, 0) for source in self.sources(node))
            most = max(most, sum(live.values()) + 2 * read)  # the table, and rectangles with their surroundings
            for source in self.sources(node):
                if self.last_use[source] is node:
                    live.pop(source, None)
        return most


def relative_work(net: nn.Module, channels: int, size: tuple[int, int], windows: Tensor, k: int) -> float:
    """Return the multiply-accumulates for windows [n, 2] of side k as a share of full passes; works on the meta device."""
    some = windows[np.linspace(0, len(windows) - 1, min(len(windows), 256)).astype(int)].numpy()
    try:
        network = Network(net, channels, size)
    except NotTraceable:  # then the engine runs full passes
        return 1.0
    macs, full = network.work(network.plan(some[:, 0], some[:, 1], k, k), len(some))
    return macs / full if full else 1.0
