"""The traced graph of a network (torch.fx), and its receptive field: which rows of the image a position can see.

Modules of torch.nn stay single nodes. The receptive field follows from the operations
alone. Row i of a convolution or pooling with kernel k, stride s, padding p and dilation d reads the rows

    i s - p  ...  i s - p + d (k - 1)

of its input, and so sees what those see. An operation without a rule sees, at every position, all that its inputs see:
never too little, so that what is called unseen cannot be seen.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

Seen = np.ndarray  # [n, 2]: the first and the last row of the image that each of n positions sees; last < first: none

# Functions, methods and (lower case, without underscores) modules that treat each position of a map on its own.
ELEMENTWISE = {
    "identity", "dropout", "dropout2d", "featuredropout", "alphadropout", "stochasticdepth", "clone", "contiguous",
    "detach", "float", "double", "batchnorm2d", "batchnorm", "relu", "relu6", "leakyrelu", "prelu", "rrelu", "elu",
    "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh", "softplus",
    "softsign", "logsigmoid", "threshold", "clamp", "clampmin", "clampmax", "clip", "abs", "neg", "exp", "sqrt",
    "square", "pow", "add", "iadd", "sub", "isub", "mul", "imul", "div", "idiv", "truediv", "itruediv", "maximum",
    "minimum",
}  # fmt: skip
_WINDOWS = {  # where they stand among the arguments of the functions
    "conv2d": {"stride": 3, "padding": 4, "dilation": 5},
    "maxpool2d": {"kernel_size": 1, "stride": 2, "padding": 3, "dilation": 4},
    "avgpool2d": {"kernel_size": 1, "stride": 2, "padding": 3},
}


class NotTraceable(ValueError):
    """What a network does cannot be written down as a graph; the message says where and why."""


@dataclass(frozen=True)
class Traced:
    """A network's graph with the shape of every node's output (None where it is no tensor), for a batch of one image."""

    net: nn.Module
    graph: fx.Graph
    shapes: dict[fx.Node, torch.Size | None]

    def kind(self, node: fx.Node) -> str:
        """What a node does: `conv2d`, `relu`, `add`, ..., the same word for modules, functions, methods and operators."""
        if node.op == "call_module":
            name = type(self.net.get_submodule(str(node.target))).__name__
        else:
            name = getattr(node.target, "__name__", str(node.target))
        return name.replace("_", "").lower()

    def words(self, node: fx.Node) -> str:
        """A node for people: its module's name, or its operation and the module that calls it."""
        if node.op == "call_module":
            return f"{node.target} ({type(self.net.get_submodule(str(node.target))).__name__})"
        return f"{self.kind(node)} in {node.meta['owner'] or type(self.net).__name__}"


class Tracer(fx.Tracer):
    """fx's, which knows whose code made a node (`node.meta["owner"]`, a module's name) and where a trace failed.

    shallow: only what the root itself does; each of its children is one node, so that hooks on it still run.
    """

    def __init__(self, shallow: bool = False) -> None:
        super().__init__()
        self._shallow, self._owners = shallow, [""]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._shallow or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        self._owners.append(path)
        try:
            return super().call_module(m, forward, args, kwargs)
        except NotTraceable:
            raise
        except Exception as error:
            raise NotTraceable(f"{path} ({type(m).__name__}) cannot be traced: {_line(error)}") from error
        finally:
            self._owners.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["owner"] = self._owners[-1]
        return node

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """The graph of a network. Raises NotTraceable, also for branches on values (`if x.sum() > 0`)."""
        try:
            return super().trace(root, concrete_args)
        except NotTraceable:
            raise
        except Exception as error:  # a network's own code may raise anything on fx's stand-ins for tensors
            raise NotTraceable(f"{type(root).__name__} cannot be traced: {_line(error)}") from error


def trace(net: nn.Module, channels: int, size: tuple[int, int]) -> Traced:
    """The graph of a network on an image [1, channels, height, width]; nothing is computed. Put it into eval mode before.

    Raises NotTraceable.
    """
    graph = Tracer().trace(net)
    shapes: dict[fx.Node, torch.Size | None] = {}
    hollow = _hollow(net)

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            shapes[n] = result.shape if isinstance(result, Tensor) else None
            return result

    interpreter = Shapes(hollow, graph=graph)
    interpreter.extra_traceback = False
    try:
        with torch.no_grad():
            dtype = next((p.dtype for p in net.parameters()), None)
            interpreter.run(torch.empty(1, channels, *size, dtype=dtype, device="meta"))
    except Exception as error:
        at = next((node for node in graph.nodes if node not in shapes), None)
        raise NotTraceable(f"{at} of {type(net).__name__} cannot be traced: {_line(error)}") from error
    return Traced(net, graph, shapes)


def receptive_field(
    traced: Traced, axis: int = 2, live: Mapping[fx.Node, int] | None = None
) -> tuple[dict[fx.Node, Seen], list[fx.Node]]:
    """What each position of each node sees of the image, and the nodes that see all that their inputs see.

    axis: 2 for rows, 3 for columns. A node that is no map [B, C, H, W] has one position, one that does not depend on
    the image is left out. live: nodes of whose rows only the first so many are read.
    """
    seen: dict[fx.Node, Seen] = {}
    mixing: list[fx.Node] = []
    for node in traced.graph.nodes:
        shape = traced.shapes[node]
        sources = [source for source in node.all_input_nodes if source in seen]
        if node.op == "placeholder" and shape is not None:
            seen[node] = np.arange(shape[axis])[:, None].repeat(2, 1)
        elif sources:
            maps = all(len(traced.shapes[each] or ()) == 4 for each in (node, *sources))
            rule = _rule(traced, node, sources, axis) if maps else None
            if rule is None:
                count = shape[axis] if shape is not None and len(shape) == 4 else 1
                parts = [np.repeat(_hull(seen[source]), count, axis=0) for source in sources]
                mixing.append(node)
            else:
                parts = [rule(seen[source]) for source in sources]
            both = np.stack(np.broadcast_arrays(*parts))
            seen[node] = np.stack([both[..., 0].min(0), both[..., 1].max(0)], axis=1)
        if live and node in live:
            seen[node] = seen[node][: live[node]]
    return seen, mixing


def _rule(traced: Traced, node: fx.Node, sources: list[fx.Node], axis: int) -> Callable[[Seen], Seen] | None:
    """How a node of maps sees what its inputs see; None where it mixes their positions."""
    kind = traced.kind(node)
    if kind in ELEMENTWISE:
        return lambda seen: seen
    if kind in ("cat", "concat"):
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        return (lambda seen: seen) if dim in (1, -3) else None
    before: Any = traced.shapes[sources[0]]
    after: Any = traced.shapes[node]
    n, m = before[axis], after[axis]
    rows = np.arange(m)
    if kind in ("adaptiveavgpool2d", "adaptivemaxpool2d"):
        return lambda seen: _windows(seen, rows * n // m, -(-(rows + 1) * n // m) - 1)
    if kind == "getitem":
        index = torch.arange(n).view(-1, *[1] * (3 - axis)).expand(before)
        chosen = index[cast(Any, node.args[1])].movedim(axis, 0).flatten(1)[:, 0].numpy()
        return lambda seen: seen[chosen]
    if kind not in _WINDOWS:
        return None
    window = _window(traced, node, kind, axis - 2)
    if window is None:
        return None
    k, s, p, d = window
    return lambda seen: _windows(seen, rows * s - p, rows * s - p + d * (k - 1))


def _window(traced: Traced, node: fx.Node, kind: str, i: int) -> tuple[int, int, int, int] | None:
    """Kernel, stride, padding and dilation of a convolution or pooling along the i-th axis; None if it wraps or mirrors."""
    places = _WINDOWS[kind]
    if node.op == "call_module":
        module: Any = traced.net.get_submodule(str(node.target))
        given = {key: getattr(module, key, None) for key in ("kernel_size", *places)}
        if getattr(module, "padding_mode", "zeros") not in ("zeros", "replicate"):
            return None
    else:
        given = {
            key: node.kwargs.get(key, node.args[at] if len(node.args) > at else None) for key, at in places.items()
        }
        if kind == "conv2d":
            weight: Any = node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)
            given["kernel_size"] = tuple(traced.shapes[weight][2:])  # type: ignore[index]  # a weight has a shape

    def along(value: Any, default: int) -> int:
        value = default if value is None or value == () else value
        return int(value if isinstance(value, int) else value[i if len(value) > 1 else 0])

    k, d = along(given["kernel_size"], 1), along(given.get("dilation"), 1)
    s = along(given["stride"], 1 if kind == "conv2d" else k)
    padding = {"same": d * (k - 1) // 2, "valid": 0}.get(str(given["padding"]), given["padding"])
    return k, s, along(padding, 0), d


def _windows(seen: Seen, first: np.ndarray, last: np.ndarray) -> Seen:
    """The union over the positions first ... last, of those that are there."""
    return np.concatenate([_hull(seen[max(a, 0) : max(b + 1, 0)]) for a, b in zip(first, last, strict=True)])


def _hull(seen: Seen) -> Seen:
    """[1, 2]: from the first to the last row that any of the positions sees."""
    if not len(seen):
        return np.array([[np.iinfo(int).max, -1]])
    return np.array([[seen[:, 0].min(), seen[:, 1].max()]])


def _hollow(net: nn.Module) -> nn.Module:
    """A copy of a network without its numbers, on torch's meta device."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in net.parameters()}
    memo |= {id(b): b.detach().to("meta") for b in net.buffers()}
    return copy.deepcopy(net, memo)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
