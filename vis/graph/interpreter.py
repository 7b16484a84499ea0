"""Run a traced network with a custom rule for each family of operations, as LRP and DeepLIFT need.

An operation without a rule raises an error that names it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from vis.graph.trace import LAYERS, NotTraceable, Traced, Tracer, is_hooked

_graphs: WeakKeyDictionary[nn.Module, tuple[list[Any], fx.Graph, dict[str, Any]]] = WeakKeyDictionary()
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d, "linear": F.linear,
}  # fmt: skip
_MOVES = {  # operations that move values without changing them
    "identity", "dropout", "dropout1d", "dropout2d", "dropout3d", "featuredropout", "alphadropout", "stochasticdepth",
    "clone", "contiguous", "flatten", "unflatten", "view", "reshape", "permute", "transpose", "movedim", "squeeze",
    "unsqueeze", "expand", "cat", "concat", "concatenate", "stack", "getitem", "chunk", "split", "unbind", "narrow",
    "channelshuffle", "pixelshuffle", "pixelunshuffle", "pad", "zeropad2d", "size", "dim", "getattr",
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
_NORMALISATIONS = {"layernorm", "rmsnorm"}
_SIGNS = {"add": 1, "iadd": 1, "sub": -1, "isub": -1}
_PRODUCTS = {"mul", "imul", "div", "idiv", "truediv", "itruediv"}


class NoRule(NotTraceable):
    """Raised for an operation that has no rule; the message names it."""


class Affine(NamedTuple):
    """A convolution, dense layer or scaling y = f(a, w, b), which is affine in a and linear in (w, b).

    w is None if the weights are never in memory (`vis.models.streamed`); then only f(a, None, None) is defined. b has the
    shape in which it is added to y. layer is "conv", "dense", or "" for a scaling.
    """

    f: Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
    w: Tensor | None
    b: Tensor | None
    layer: str = ""


@dataclass(frozen=True)
class _Pending:
    """A layer that waits for the batch norm behind it, to run with the batch norm folded in."""

    node: fx.Node
    op: Affine
    a: Tensor


class Walk(fx.Interpreter):
    """Run the graph of a network in eval mode, one operation at a time and never in place.

    Unless a subclass overrides the rules below, the result is the network's output. Each ReLU or pooling is one call of
    its rule, however it is spelled and however often its module is used. A batch norm behind a layer is folded into the
    layer. Operations that do not depend on the images run unchanged. Raises NoRule.

    keep: names of modules whose outputs go to `outputs`; a layer whose batch norm is folded into it has none.
    """

    def __init__(self, net: nn.Module, keep: Sequence[str] = ()) -> None:
        graph, self._constants = _graph(net)
        super().__init__(net, graph=graph)
        self.extra_traceback = False
        self.traced = Traced(net, self.graph, {}, net)
        self._live: set[fx.Node] = set()  # nodes whose values depend on the images; sizes do not
        self.outputs: dict[str, Tensor] = {}
        last: dict[str, fx.Node] = {}  # the last node that a module makes is its output
        for node in self.graph.nodes:
            made_by = str(node.target) if node.op == "call_module" else node.meta.get("owner", "")
            last |= {name: node for name in keep if f"{made_by}.".startswith(f"{name}.")}
        self._kept = [(node, name) for name, node in last.items()]

    def affine(self, node: fx.Node, op: Affine, a: Tensor) -> Tensor:
        return op.f(a, op.w, op.b)

    def add(self, node: fx.Node, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def average(self, node: fx.Node, f: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
        """Apply an average or sum over positions, which is linear with positive weights."""
        return f(a)

    def activation(self, node: fx.Node, g: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
        """Apply an elementwise nonlinearity."""
        return g(a)

    def max_pool(self, node: fx.Node, pool: Callable[..., Any], a: Tensor) -> Tensor:
        """Apply a max pooling; pool(a, return_indices=True) returns the maxima and their indices in the flattened map."""
        return pool(a)

    def product(self, node: fx.Node, a: Tensor, b: Tensor) -> Tensor:
        """Multiply two values that both depend on the image, such as a map and its gate."""
        raise self.no_rule(node, ", of two values that depend on the image")

    def normalisation(self, node: fx.Node, g: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
        """Normalise values by their own mean and standard deviation."""
        raise self.no_rule(node)

    def no_rule(self, node: fx.Node, why: str = "") -> NoRule:
        return NoRule(f"{type(self.traced.net).__name__}: there is no rule for {self.traced.words(node)}{why}")

    def run_node(self, n: fx.Node) -> Any:
        result = self._run(n)
        values = result if isinstance(result, tuple | list) else [result]
        if any(isinstance(value, Tensor | _Pending) for value in values) and (
            n.op == "placeholder" or any(source in self._live for source in n.all_input_nodes)
        ):
            self._live.add(n)
        if isinstance(result, Tensor):
            self.outputs |= {name: result for node, name in self._kept if node is n}
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        constant = self._constants.get(target)
        return super().get_attr(target, args, kwargs) if constant is None else constant

    def _run(self, n: fx.Node) -> Any:
        kind = self.traced.kind(n)
        live = any(source in self._live for source in n.all_input_nodes)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        module = self.traced.net.get_submodule(str(n.target)) if n.op == "call_module" else None
        if live and is_hooked(module) and _changed_by_hooks(module, args, kwargs):
            raise self.no_rule(n, ", whose output a hook, or a `forward` of its own, changes")
        if (kind in _MOVES and n.args[1:] != ("data",)) or n.op == "output" or not live:  # x.data has no gradient
            return super().run_node(n)
        a: Any = args[0] if args else kwargs.get("input")
        if isinstance(a, _Pending):
            return self.affine(a.node, _folded(a.op, self._batch_norm(n, a.a)), a.a)
        if kind in _SIGNS or kind in _PRODUCTS or kind == "neg":
            return self._arithmetic(n, kind, args, kwargs)
        parameters = [*n.args[1:], *(given for name, given in n.kwargs.items() if name != "input")]
        if any(isinstance(each, fx.Node) and each in self._live for each in parameters):
            raise self.no_rule(n, ", whose parameters depend on the image")
        if kind in LAYERS:
            op = _layer(kind, module, args[1:], kwargs)
            users = list(n.users)
            same_axis = LAYERS[kind] == "conv" or a.ndim == 2  # a dense layer's last is no channel of tokens [B, N, D]
            folds = len(users) == 1 and self._is_batch_norm(users[0]) and op.w is not None and same_axis
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
        if kind in _NORMALISATIONS:
            return self.normalisation(n, call, a)
        if kind in _MAX_POOLS:
            return self.max_pool(n, _max_pool(kind, module, args[1:], kwargs), a)
        raise self.no_rule(n)

    def _arithmetic(self, n: fx.Node, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Combine two values of the network, or a value and a constant, which is a scaling y = w a + b."""

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
        if all(live) and "div" not in kind:
            return self.product(n, left, right)
        if live[1] and "div" in kind:
            raise self.no_rule(n, ", of two values that depend on the image")
        return scaling(left, 1 / right if "div" in kind else right) if live[0] else scaling(right, left)

    def _is_batch_norm(self, node: fx.Node) -> bool:
        return node.op == "call_module" and self.traced.kind(node) in ("batchnorm1d", "batchnorm2d", "batchnorm3d")

    def _batch_norm(self, node: fx.Node, a: Tensor) -> Affine:
        """Return the scaling that a batch norm performs in eval mode, shaped for values like a."""
        m: Any = self.traced.net.get_submodule(str(node.target))
        if m.running_mean is None:
            raise self.no_rule(node, ", which has no running statistics")
        w = torch.rsqrt(m.running_var + m.eps) * (1 if m.weight is None else m.weight)
        b = (0 if m.bias is None else m.bias) - m.running_mean * w
        shape = (-1, *[1] * (a.ndim - 2))
        return Affine(_scale, w.view(shape), b.view(shape))


def _changed_by_hooks(module: Any, args: Sequence[Any], kwargs: Any) -> bool:
    """Return True if hooks, or a `forward` that was put into the object, change a module's output for these inputs."""

    def value(given: Any) -> Any:
        given = given.op.f(given.a, given.op.w, given.op.b) if isinstance(given, _Pending) else given
        return given.clone() if isinstance(given, Tensor) else given

    with torch.no_grad():
        plain, hooked = (
            f(*map(value, args), **{name: value(given) for name, given in kwargs.items()})
            for f in (partial(type(module).forward, module), module)
        )
    return isinstance(plain, Tensor) and not (isinstance(hooked, Tensor) and torch.equal(plain, hooked))


def _scale(a: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    y = a if w is None else a * w
    return y if b is None else y + b


def _layer(kind: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Affine:
    """Return a convolution or dense layer as an Affine; args are the arguments after its input."""
    if kind == "streamedlinear":
        return Affine(lambda a, w, b: module(a), None, None, "dense")
    run: Callable[..., Tensor]
    if module is not None:
        w, b = module.weight, module.bias
        run = module._conv_forward if LAYERS[kind] == "conv" else _FUNCTIONS[kind]  # the former applies padding_mode
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
    """Fold the scaling of a layer's outputs into the layer."""
    assert op.w is not None
    assert norm.w is not None
    assert norm.b is not None
    b = norm.b if op.b is None else op.b * norm.w + norm.b
    return op._replace(w=op.w * norm.w.view(-1, *[1] * (op.w.ndim - 1)), b=b)


def _max_pool(kind: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
    """Return a max pooling as a function of its input alone; args are the arguments after its input."""
    if module is not None:
        windows = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        names = ("output_size",) if "adaptive" in kind else windows
        args, kwargs = (), {name: getattr(module, name) for name in names}
    kwargs = {key: value for key, value in kwargs.items() if key not in ("input", "return_indices")}
    return lambda a, return_indices=False: _MAX_POOLS[kind](a, *args, **kwargs, return_indices=return_indices)


def _graph(net: nn.Module) -> tuple[fx.Graph, dict[str, Any]]:
    """Return a network's graph, traced once (0.1 s for a resnet50), and the tensors that its forward code creates.

    Nodes that no output needs, such as a second head, are removed: nothing runs in place, so they have no effect.
    It is traced again after a change of modules, of hooks, or of numbers such as `self.scale`. Raises NotTraceable.
    """
    state = [
        (
            type(m),
            *m._forward_pre_hooks,
            *m._forward_hooks,
            *(v for v in vars(m).values() if isinstance(v, int | float)),
        )
        for m in net.modules()
    ]
    if net not in _graphs or _graphs[net][0] != state:
        tracer = Tracer()
        graph = tracer.trace(net)
        for node in reversed(graph.nodes):
            if not node.users and node.op not in ("placeholder", "output"):
                graph.erase_node(node)
        _graphs[net] = state, graph, tracer.made
    return _graphs[net][1:]
