"""Trace a network with torch.fx: the nodes of its graph, their shapes, and the modules that call them.

Modules of torch.nn stay single nodes. Three things build on the graph: receptive fields (`vis.graph.receptive_field`),
rules for each operation (`vis.graph.interpreter`), and incremental inference for windows (`vis.windows.engine`).
"""

import copy
import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from vis.errors import first_line
from vis.graph.outputs import detached, sharing

# Functions, methods and modules (in lower case, without underscores) that treat each position of a map independently.
ELEMENTWISE = {
    "identity", "dropout", "dropout2d", "featuredropout", "alphadropout", "stochasticdepth", "clone", "contiguous",
    "detach", "float", "double", "batchnorm2d", "batchnorm", "relu", "relu6", "leakyrelu", "prelu", "rrelu", "elu",
    "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh", "softplus",
    "softsign", "logsigmoid", "threshold", "clamp", "clampmin", "clampmax", "clip", "abs", "neg", "exp", "sqrt",
    "square", "pow", "add", "iadd", "sub", "isub", "mul", "imul", "div", "idiv", "truediv", "itruediv", "maximum",
    "minimum",
}  # fmt: skip


_HOMES = {
    "torch",
    "torchvision",
    "vis",
    "builtins",
    "_operator",
    "math",
}  # a user's own class may also be called Conv2d
LAYERS = {"conv1d": "conv", "conv2d": "conv", "conv3d": "conv", "linear": "dense", "streamedlinear": "dense"}


class NotTraceable(ValueError):
    """Raised if a network cannot be traced; the message says where and why."""


@dataclass(frozen=True)
class Traced:
    """A network's graph with the shape of every node's output for a batch of one image (None if it is not a tensor).

    runnable: the network to interpret; the tensors that its forward code creates are its attributes.
    """

    net: nn.Module
    graph: fx.Graph
    shapes: dict[fx.Node, torch.Size | None]
    runnable: nn.Module

    def size(self, node: fx.Node) -> tuple[int, int]:
        """Return (height, width) of a node that is a map [B, C, H, W]."""
        shape: Any = self.shapes[node]
        return shape[2], shape[3]

    def kind(self, node: fx.Node) -> str:
        """Return the operation of a node, such as `conv2d` or `add`: one word for modules, functions, methods and operators."""
        if node.op == "call_module":
            return kind_of(parametrize.type_before_parametrizations(self.net.get_submodule(str(node.target))))
        return kind_of(node.target)

    def words(self, node: fx.Node) -> str:
        """Name a node for a message: by its module, or by its operation and the module that calls it."""
        if node.op == "call_module":
            return f"{node.target} ({type(self.net.get_submodule(str(node.target))).__name__})"
        return f"{self.kind(node)} in {node.meta['owner'] or type(self.net).__name__}"


class Tracer(fx.Tracer):
    """An fx.Tracer that records which module made each node (`node.meta["owner"]`) and where a trace failed.

    shallow: trace only the root's own code; each child stays one node, so that hooks on it still run.
    Buffers become nodes, not constants. `made` maps node names to the tensors that the forward code creates, which fx
    would otherwise leave in the user's network; `traced` is the network that has them as attributes.
    """

    proxy_buffer_attributes = True

    def __init__(self, shallow: bool = False) -> None:
        super().__init__()
        self._shallow, self._owners = shallow, [""]
        self._root: Any = None
        self.traced: Any = None
        self.made: dict[str, Any] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._shallow or super().is_leaf_module(m, module_qualified_name) or kind_of(type(m)) in LAYERS

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if m is self._root:  # skips its hooks, which expect numbers
            return m.forward(*args, **kwargs)
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        self._owners.append(path)
        try:
            return super().call_module(m, forward, args, kwargs)
        except NotTraceable:
            raise
        except Exception as error:  # a module's code may raise anything on fx proxies
            raise NotTraceable(f"{path} ({type(m).__name__}) cannot be traced: {first_line(error)}") from error
        finally:
            self._owners.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["owner"] = self._owners[-1]
        return node

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """Return the graph of a network called with images alone; its other arguments keep their defaults.

        Raises NotTraceable, also for branches on values (`if x.sum() > 0`).
        """
        self._root = root
        call = root.forward if self._shallow else root
        try:
            with suppress(TypeError):  # a submodule may require more arguments
                inspect.signature(call).bind(None)
                root = sharing(root, forward=lambda self, images: call(images))
            self.traced = detached(root)
            graph = super().trace(self.traced, concrete_args)
            self.made = {name: value for name, value in vars(self.traced).items() if name not in vars(root)}
            return graph
        except NotTraceable:
            raise
        except Exception as error:  # a network's code may raise anything on fx proxies
            raise NotTraceable(f"{type(root).__name__} cannot be traced: {first_line(error)}") from error


def trace(net: nn.Module, channels: int, size: tuple[int, int]) -> Traced:
    """Return the graph of a network, which is in eval mode, for an image [1, channels, height, width].

    Shapes are inferred on torch's meta device, without computing values. Raises NotTraceable.
    """
    tracer = Tracer()
    graph = tracer.trace(net)
    shapes: dict[fx.Node, torch.Size | None] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            shapes[n] = result.shape if isinstance(result, Tensor) else None
            return result

    try:
        interpreter = Shapes(_hollow(tracer.traced), graph=graph)
        interpreter.extra_traceback = False
        with torch.no_grad():
            dtype = next((p.dtype for p in net.parameters()), None)
            interpreter.run(torch.empty(1, channels, *size, dtype=dtype, device="meta"))
    except Exception as error:  # any operation may fail on meta tensors
        at = next((node for node in graph.nodes if node not in shapes), None)
        raise NotTraceable(f"{at} of {type(net).__name__} cannot be traced: {first_line(error)}") from error
    return Traced(net, graph, shapes, tracer.traced)


def _hollow(net: nn.Module) -> nn.Module:
    """Return a copy of a network on torch's meta device, without values."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in net.parameters()}
    others = [value for m in net.modules() for value in vars(m).values() if isinstance(value, Tensor)]  # weight norm
    memo |= {id(t): t.detach().to("meta") for t in [*net.buffers(), *others]}
    return copy.deepcopy(net, memo)


def kind_of(called: Any) -> str:
    """Return the word for a class, function or method; a user's own include their module's name, so they match no rule."""
    name = getattr(called, "__name__", str(called))
    home = getattr(called, "__module__", None) or "torch"  # methods are strings
    return (name if home.partition(".")[0] in _HOMES else f"{home}.{name}").replace("_", "").lower()


def is_hooked(module: nn.Module | None) -> bool:
    """Return True if hooks or a replaced `forward` may alter a module's output; those of torch.nn.utils only set weights."""
    if module is None:
        return False
    before = [type(hook).__module__ for hook in module._forward_pre_hooks.values()]
    ours = all(home.startswith("torch.nn.utils.") for home in before)
    return bool(module._forward_hooks) or not ours or "forward" in vars(module)
