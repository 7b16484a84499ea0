"""The traced graph of a network (torch.fx), and its receptive field: which rows of the image a position can see.

Modules of torch.nn stay single nodes. The receptive field follows from the operations
alone. Row i of a convolution or pooling with kernel k, stride s, padding p and dilation d reads the rows

    i s - p  ...  i s - p + d (k - 1)

of its input, and so sees what those see. An operation without a rule sees, at every position, all that its inputs see:
never too little, so that what is called unseen cannot be seen.

`Walk` runs the graph with rules of one's own for each family of operations: LRP and DeepLIFT. There an operation without a
rule is an error that names it.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
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

    def size(self, node: fx.Node) -> tuple[int, int]:
        """(height, width) of a node that is a map [B, C, H, W]."""
        shape: Any = self.shapes[node]
        return shape[2], shape[3]

    def kind(self, node: fx.Node) -> str:
        """What a node does: `conv2d`, `relu`, `add`, ..., the same word for modules, functions, methods and operators."""
        if node.op == "call_module":
            name = type(self.net.get_submodule(str(node.target))).__name__
        else:
            name = getattr(node.target, "__name__", str(node.target))
        return _kind(name)

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
        return self._shallow or super().is_leaf_module(m, module_qualified_name) or _kind(type(m).__name__) in LAYERS

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        self._owners.append(path)
        try:
            return super().call_module(m, forward, args, kwargs)
        except NotTraceable:
            raise
        except Exception as error:  # a module's own code may raise anything on fx's stand-ins for tensors
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
    except Exception as error:  # as may any operation on tensors without numbers
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


# --- running it by rules -----------------------------------------------------------------------------------------------

LAYERS = {"conv1d": "conv", "conv2d": "conv", "conv3d": "conv", "linear": "dense", "streamedlinear": "dense"}
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d, "linear": F.linear,
}  # fmt: skip
_MOVES = {  # what puts values elsewhere and leaves them as they are
    "identity", "dropout", "dropout1d", "dropout2d", "dropout3d", "featuredropout", "alphadropout", "stochasticdepth",
    "clone", "contiguous", "flatten", "unflatten", "view", "reshape", "permute", "transpose", "movedim", "squeeze",
    "unsqueeze", "expand", "cat", "concat", "concatenate", "stack", "getitem", "chunk", "split", "unbind", "narrow",
    "channelshuffle", "pixelshuffle", "pixelunshuffle", "size", "dim", "getattr",
}  # fmt: skip
_AVERAGES = {"avgpool1d", "avgpool2d", "avgpool3d", "adaptiveavgpool1d", "adaptiveavgpool2d", "adaptiveavgpool3d"} | {
    "mean", "sum",
}  # fmt: skip
_MAX_POOLS: dict[str, Callable[..., Any]] = {
    "maxpool1d": F.max_pool1d, "maxpool2d": F.max_pool2d, "maxpool3d": F.max_pool3d,
    "adaptivemaxpool1d": F.adaptive_max_pool1d, "adaptivemaxpool2d": F.adaptive_max_pool2d,
    "adaptivemaxpool3d": F.adaptive_max_pool3d,
}  # fmt: skip
_ACTIVATIONS = {
    "relu", "relu6", "threshold", "clamp", "clampmin", "clip", "hardtanh", "leakyrelu", "prelu", "elu", "selu", "celu",
    "gelu", "silu", "mish", "hardswish", "hardsigmoid", "sigmoid", "tanh", "softplus", "softsign", "logsigmoid",
}  # fmt: skip
_SIGNS = {"add": 1, "iadd": 1, "sub": -1, "isub": -1}
_PRODUCTS = {"mul", "imul", "div", "idiv", "truediv", "itruediv"}


class NoRule(NotTraceable):
    """An operation of a network has no rule; the message names it."""


class Affine(NamedTuple):
    """y = f(a, w, b): a convolution, a dense layer or a scaling, linear in a, and in w and b.

    w: None where the weights are never there (`vis.models.streamed`): then only f(a, None, None) is defined. b: as it is
    added to y. layer: conv, dense, or nothing for a scaling.
    """

    f: Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
    w: Tensor | None
    b: Tensor | None
    layer: str = ""


@dataclass(frozen=True)
class _Pending:
    """A layer that its batch norm will run, folded into it."""

    node: fx.Node
    op: Affine
    a: Tensor


class Walk(fx.Interpreter):
    """Runs the graph of a network in eval mode, operation by operation and never in place; as it is, it gives its outputs.

    A subclass gives the methods below a meaning of its own. Every ReLU and pooling is one call, whatever its spelling and
    however often its module is used. A batch norm behind a layer is folded into it. What does not depend on the images runs
    as it stands. Raises NoRule.
    """

    def __init__(self, net: nn.Module) -> None:
        graph, self._constants = _graph(net)
        super().__init__(net, graph=graph)
        self.extra_traceback = False
        self.traced = Traced(net, self.graph, {})
        self._live: set[fx.Node] = set()  # whose values come from the images; sizes do not

    def affine(self, node: fx.Node, op: Affine, a: Tensor) -> Tensor:
        return op.f(a, op.w, op.b)

    def add(self, node: fx.Node, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def average(self, node: fx.Node, f: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
        """Averages and sums over positions: linear, all weights positive."""
        return f(a)

    def activation(self, node: fx.Node, g: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
        """What treats each value on its own."""
        return g(a)

    def max_pool(self, node: fx.Node, pool: Callable[..., Any], a: Tensor) -> Tensor:
        """pool(a), or pool(a, return_indices=True): (maxima, their places in a flat map)."""
        return pool(a)

    def no_rule(self, node: fx.Node, why: str = "") -> NoRule:
        return NoRule(f"{type(self.traced.net).__name__}: there is no rule for {self.traced.words(node)}{why}")

    def run_node(self, n: fx.Node) -> Any:
        result = self._run(n)
        values = result if isinstance(result, tuple | list) else [result]
        if any(isinstance(value, Tensor | _Pending) for value in values) and (
            n.op == "placeholder" or any(source in self._live for source in n.all_input_nodes)
        ):
            self._live.add(n)
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        constant = self._constants.get(target)
        return super().get_attr(target, args, kwargs) if constant is None else constant

    def _run(self, n: fx.Node) -> Any:
        kind = self.traced.kind(n)
        if kind in _MOVES or n.op == "output" or not any(source in self._live for source in n.all_input_nodes):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        a: Any = args[0] if args else kwargs.get("input")
        if isinstance(a, _Pending):
            return self.affine(a.node, _folded(a.op, self._batch_norm(n, a.a)), a.a)
        module = self.traced.net.get_submodule(str(n.target)) if n.op == "call_module" else None
        if kind in _SIGNS or kind in _PRODUCTS or kind == "neg":
            return self._arithmetic(n, kind, args, kwargs)
        if kind in LAYERS:
            op = _layer(kind, module, args[1:], kwargs)
            users = list(n.users)
            folds = len(users) == 1 and self._is_batch_norm(users[0]) and op.w is not None
            return _Pending(n, op, a) if folds else self.affine(n, op, a)
        if self._is_batch_norm(n):
            return self.affine(n, self._batch_norm(n, a), a)

        def call(y: Tensor) -> Any:
            new = ((y, *args[1:]), kwargs) if args else ((), kwargs | {"input": y})
            return getattr(self, n.op)(n.target, *new)

        if kind in _AVERAGES:
            return self.average(n, call, a)
        if kind in _ACTIVATIONS:
            return self.activation(n, F.relu if kind == "relu" else lambda y: call(y.clone()), a)
        if kind in _MAX_POOLS:
            return self.max_pool(n, _max_pool(kind, module, args[1:], kwargs), a)
        raise self.no_rule(n)

    def _arithmetic(self, n: fx.Node, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Of two values of the network, or of one and a constant: then a scaling y = w a + b."""

        def scaling(a: Tensor, w: Any, b: Any = None) -> Tensor:
            w, b = (v if v is None else torch.as_tensor(v, dtype=a.dtype, device=a.device) for v in (w, b))
            return self.affine(n, Affine(_scale, w, b), a)

        if kwargs or len(args) != (1 if kind == "neg" else 2):
            raise self.no_rule(n, " in this form")
        left: Any = args[0]
        right: Any = args[-1]
        live = [source in self._live for source in n.args]
        if kind == "neg":
            return scaling(left, -1)
        if kind in _SIGNS:
            sign = _SIGNS[kind]
            if all(live):
                return self.add(n, left, right if sign == 1 else scaling(right, -1))
            return scaling(left, 1, sign * right) if live[0] else scaling(right, sign, left)
        if all(live) or (live[1] and "div" in kind):
            raise self.no_rule(n, ", of two values that depend on the image")
        return scaling(left, 1 / right if "div" in kind else right) if live[0] else scaling(right, left)

    def _is_batch_norm(self, node: fx.Node) -> bool:
        return node.op == "call_module" and self.traced.kind(node) in ("batchnorm1d", "batchnorm2d", "batchnorm3d")

    def _batch_norm(self, node: fx.Node, a: Tensor) -> Affine:
        """A batch norm as the scaling that it is in eval mode, for values like a."""
        m: Any = self.traced.net.get_submodule(str(node.target))
        if m.running_mean is None:
            raise self.no_rule(node, ", which has no statistics of its own")
        w = torch.rsqrt(m.running_var + m.eps) * (1 if m.weight is None else m.weight)
        b = (0 if m.bias is None else m.bias) - m.running_mean * w
        shape = (-1, *[1] * (a.ndim - 2))
        return Affine(_scale, w.view(shape), b.view(shape))


def _scale(a: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    y = a if w is None else a * w
    return y if b is None else y + b


def _layer(kind: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Affine:
    """A convolution or dense layer; args: those behind its input."""
    if kind == "streamedlinear":
        return Affine(lambda a, w, b: module(a), None, None, "dense")
    run: Callable[..., Tensor]
    if module is not None:
        w, b = module.weight, module.bias
        run = (
            module._conv_forward if LAYERS[kind] == "conv" else _FUNCTIONS[kind]
        )  # the former knows the padding's mode
    else:
        given = dict(zip(("weight", "bias", "stride", "padding", "dilation", "groups"), args, strict=False)) | kwargs
        w, b = given.pop("weight"), given.pop("bias", None)
        given.pop("input", None)
        run = partial(_FUNCTIONS[kind], **given)

    shape = (-1, *[1] * (w.ndim - 2))
    return Affine(
        lambda a, w, b: run(a, w, None if b is None else b.flatten()),
        w,
        None if b is None else b.view(shape),
        LAYERS[kind],
    )


def _folded(op: Affine, norm: Affine) -> Affine:
    """A layer and the scaling of its outputs as one layer."""
    assert op.w is not None
    assert norm.w is not None
    assert norm.b is not None
    b = norm.b if op.b is None else op.b * norm.w + norm.b
    return op._replace(w=op.w * norm.w.view(-1, *[1] * (op.w.ndim - 1)), b=b)


def _max_pool(kind: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
    """A max-pooling as torch.nn.functional has it, for any spelling; args: those behind its input."""
    if module is not None:
        windows = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        names = ("output_size",) if "adaptive" in kind else windows
        args, kwargs = (), {name: getattr(module, name) for name in names}
    kwargs = {key: value for key, value in kwargs.items() if key not in ("input", "return_indices")}
    return lambda a, return_indices=False: _MAX_POOLS[kind](a, *args, **kwargs, return_indices=return_indices)


_graphs: WeakKeyDictionary[nn.Module, tuple[fx.Graph, dict[str, Any]]] = WeakKeyDictionary()


def _graph(net: nn.Module) -> tuple[fx.Graph, dict[str, Any]]:
    """A network's graph, traced once (a tenth of a second for a resnet50), and the tensors that its code makes itself.

    fx leaves the latter in the network as attributes: they are taken out again. Raises NotTraceable.
    """
    if net not in _graphs:
        before = set(vars(net))
        graph = Tracer().trace(net)
        _graphs[net] = graph, {name: vars(net).pop(name) for name in set(vars(net)) - before}
    return _graphs[net]


# --- the receptive field's rules ---------------------------------------------------------------------------------------


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


def _kind(name: str) -> str:
    return name.replace("_", "").lower()


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
