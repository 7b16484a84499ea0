"""Layers that are function calls, as `F.relu(x)`: they have no module to hook.

The name of such a layer starts with the module that returned last before the call: `features:relu` is the ReLU behind the
`features` of DenseNet, `conv2:relu` that of `F.relu(self.conv2(x))` or of `self.conv2(x).relu_()`. `conv2:1:relu` follows the
second call of conv2, `conv2:relu:1` is the second ReLU after it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vis.errors import NotApplicable

ACTIVATIONS = {
    "relu", "relu6", "threshold", "clamp", "clamp_min", "clamp_max", "clip", "hardtanh", "leaky_relu", "prelu", "rrelu",
    "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid", "sigmoid", "tanh", "softplus", "softsign",
    "logsigmoid",
}  # fmt: skip


class LayerName(NamedTuple):
    """A parsed name module:call:function:number. call is None if the name gives none; function is "" for the module itself."""

    module: str
    call: int | None = None
    function: str = ""
    number: int = 0

    @classmethod
    def of(cls, layer: str) -> "LayerName":
        """Parse a layer's name. Raises NotApplicable if it cannot be one."""
        module, *rest = layer.split(":")
        call = int(rest.pop(0)) if rest and rest[0].isdecimal() else None
        function = rest.pop(0) if rest and rest[0] in ACTIVATIONS else ""
        number = int(rest.pop(0)) if function and rest and rest[0].isdecimal() else 0
        if rest:
            raise NotApplicable(
                f"layer {layer}: {module}: is followed by the number of a call or an activation function "
                f"(relu, silu, ...), not {rest[0]!r}"
            )
        return cls(module, call, function, number)

    def __str__(self) -> str:
        parts = (self.module, self.call, self.function or None, self.number or None)
        return ":".join(str(part) for part in parts if part is not None)


def function_name(function: Any) -> str:
    """Return the plain name of a function: relu for F.relu, torch.relu_, Tensor.relu, ..."""
    return getattr(function, "__name__", "").strip("_")


class Tap(TorchFunctionMode):
    """Call change(output) at the named activation function, from construction until `remove()`.

    A result other than None replaces the output.
    """

    def __init__(self, module: nn.Module, name: LayerName, change: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        self._name, self._change = name, change
        self._calls = 0
        # How often the function was called since the module's call; before any module returned, for a name without one.
        self._number: int | None = None if name.module else 0
        self._handle = module.register_forward_hook(self._returned)
        self.__enter__()

    def remove(self) -> None:
        self.__exit__(None, None, None)
        self._handle.remove()

    def _returned(self, *_: Any) -> None:
        if self._name.call is None and self._calls:
            first = self._name._replace(call=0)
            raise NotApplicable(
                f"layer {self._name}: {self._name.module} is called several times, {first} is the first"
            )
        self._number = 0 if self._calls == (self._name.call or 0) else None
        self._calls += 1

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._number is None or function_name(func) != self._name.function:
            return func(*args, **kwargs)
        self._number += 1
        if self._number <= self._name.number:
            return func(*args, **kwargs)
        self._number = None
        x = args[0] if args else kwargs["input"]
        own = x.clone()
        output = func(own, *args[1:], **kwargs) if args else func(**kwargs | {"input": own})
        changed = self._change(output)
        if changed is None:
            changed = output
        if output is own and changed.shape == x.shape:  # in place: the network may go on with x
            return x.copy_(changed)
        return changed


class ReluInputs(TorchFunctionMode):
    """Add the absolute values of the inputs of all ReLUs to a list, in the order of the calls."""

    def __init__(self, kept: list[Tensor]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function_name(func) == "relu":
            self._kept.append((args[0] if args else kwargs["input"]).detach().abs())
        return func(*args, **kwargs)
