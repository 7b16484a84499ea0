"""The traced graph of a network (torch.fx): its nodes, their shapes, and who calls them.

Modules of torch.nn stay single nodes. Three things build on the graph: the receptive field (`vis.graph.receptive_field`),
rules for each operation (`vis.graph.interpreter`), and inference of what a window changes (`vis.windows.engine`).
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

# Functions, methods and (lower case, without underscores) modules that treat each position of a map on its own.
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
}  # a class of the user's may be called Conv2d too
LAYERS = {"conv1d": "conv", "conv2d": "conv", "conv3d": "conv", "linear": "dense", "streamedlinear": "dense"}


class NotTraceable(ValueError):
    """What a network does cannot be written down as a graph; the message says where and why."""


@dataclass(frozen=True)
class Traced:
    """A network's graph with the shape of every node's output (None where it is no tensor), for a batch of one image.

    runnable: the network, with the tensors that its code makes itself as attributes: what an interpreter takes.
    """

    net: nn.Module
    graph: fx.Graph
    shapes: dict[fx.Node, torch.Size | None]
    runnable: nn.Module

    def size(self, node: fx.Node) -> tuple[int, int]:
        """(height, width) of a node that is a map [B, C, H, W]."""
        shape: Any = self.shapes[node]
        return shape[2], shape[3]

    def kind(self, node: fx.Node) -> str:
        """What a node does: `conv2d`, `relu`, `add`, ..., the same word for modules, functions, methods and operators."""
        if node.op == "call_module":
            return kind_of(parametrize.type_before_parametrizations(self.net.get_submodule(str(node.target))))
        return kind_of(node.target)

    def words(self, node: fx.Node) -> str:
        """A node for people: its module's name, or its operation and the module that calls it."""
        if node.op == "call_module":
            return f"{node.target} ({type(self.net.get_submodule(str(node.target))).__name__})"
        return f"{self.kind(node)} in {node.meta['owner'] or type(self.net).__name__}"


class Tracer(fx.Tracer):
    """fx's, which knows whose code made a node (`node.meta["owner"]`, a module's name) and where a trace failed.

    shallow: only what the root itself does; each of its children is one node, so that hooks on it still run.
    Buffers are nodes, not numbers of the first trace. `made` are the tensors that the network's code makes itself, by the
    names of their nodes; fx would leave them in the user's network. `traced` is the network with them.
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
        if m is self._root:  # without its hooks, which expect numbers
            return m.forward(*args, **kwargs)
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        self._owners.append(path)
        try:
            return super().call_module(m, forward, args, kwargs)
        except NotTraceable:
            raise
        except Exception as error:  # a module's own code may raise anything on fx's stand-ins for tensors
            raise NotTraceable(f"{path} ({type(m).__name__}) cannot be traced: {first_line(error)}") from error
        finally:
            self._owners.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["owner"] = self._owners[-1]
        return node

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """The graph of a network as it is called with images alone: what else it takes has its defaults, as in a call.

        Raises NotTraceable, also for branches on values (`if x.sum() > 0`).
        """
        self._root = root
        call = root.forward if self._shallow else root
        try:
            with suppress(TypeError):  # of a part of a network, which takes more
                inspect.signature(call).bind(None)
                root = sharing(root, forward=lambda self, images: call(images))
            self.traced = detached(root)
            graph = super().trace(self.traced, concrete_args)
            self.made = {name: value for name, value in vars(self.traced).items() if name not in vars(root)}
            return graph
        except NotTraceable:
            raise
        except Exception as error:  # a network's own code may raise anything on fx's stand-ins for tensors
            raise NotTraceable(f"{type(root).__name__} cannot be traced: {first_line(error)}") from error


def trace(net: nn.Module, channels: int, size: tuple[int, int]) -> Traced:
    """The graph of a network on an image [1, channels, height, width]; nothing is computed. Put it into eval mode before.

    Raises NotTraceable.
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
    except Exception as error:  # as may any operation on tensors without numbers
        at = next((node for node in graph.nodes if node not in shapes), None)
        raise NotTraceable(f"{at} of {type(net).__name__} cannot be traced: {first_line(error)}") from error
    return Traced(net, graph, shapes, tracer.traced)


def _hollow(net: nn.Module) -> nn.Module:
    """A copy of a network without its numbers, on torch's meta device."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in net.parameters()}
    others = [value for m in net.modules() for value in vars(m).values() if isinstance(value, Tensor)]  # weight norm's
    memo |= {id(t): t.detach().to("meta") for t in [*net.buffers(), *others]}
    return copy.deepcopy(net, memo)


def kind_of(called: Any) -> str:
    """The word for a class, function or method; those that a user wrote keep their module's name and match no rule."""
    name = getattr(called, "__name__", str(called))
    home = getattr(called, "__module__", None) or "torch"  # methods are words
    return (name if home.partition(".")[0] in _HOMES else f"{home}.{name}").replace("_", "").lower()
