"""Adapt networks that return more than logits: a tuple, a list, a dict, an object with `.logits`, a map of class scores.

    returning(net, "logits")                             the same network, returning only output["logits"] or output.logits
    returning(net, lambda output: output["a"] - output["b"])

On the command line, `model.output=logits` does the first. A target function, `targets=f`, does the second and makes f(output)
[B] the only unit. So every method for classifiers also works for these networks.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from vis.errors import NotApplicable

Score = Callable[[Any], Tensor]  # output of the network for B images -> one score per image, [B]


def returning(net: nn.Module, part: int | str | Callable[[Any], Any]) -> nn.Module:
    """Return a network that returns one part of the output of `net`: an index, a key, an attribute, or a function of it.

    It shares layers, weights, modes and hooks with `net`, which is not changed. A hook on the network itself still sees
    the whole output of `net`.
    """
    kind = type(net)
    of_output = part if callable(part) else lambda output: _chosen(output, part, kind.__name__)

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return of_output(kind.__call__(self, *args, **kwargs))

    return sharing(net, __call__=call)


def sharing(net: nn.Module, **methods: Callable[..., Any]) -> nn.Module:
    """Return a module that shares all state with `net` and overrides some methods of its class."""
    kind = type(net)
    other: nn.Module = object.__new__(type(kind.__name__, (kind,), {"__module__": kind.__module__, **methods}))
    object.__setattr__(other, "__dict__", vars(net))
    return other


def detached(net: nn.Module) -> nn.Module:
    """Return a module of the same class that shares layers and weights with `net`; attributes set on it do not reach `net`."""
    other: nn.Module = object.__new__(type(net))
    object.__setattr__(other, "__dict__", dict(vars(net)))
    return other


def scoring(net: nn.Module, f: Score) -> nn.Module:
    """Return a network that returns f(output) as [B, 1]. It raises NotApplicable if f does not return one score per image."""

    def column(output: Any) -> Any:
        scores = f(output)
        if not isinstance(scores, fx.Proxy) and not (isinstance(scores, Tensor) and scores.ndim == 1):
            got = described(scores)
            raise NotApplicable(
                f"a target function must return scores [B]; from the output, {described(output)}, it made {got}"
            )
        return scores[:, None]

    return returning(net, column)


def checked_logits(net: nn.Module, output: Any, batch: int) -> Tensor:
    """Return the output of a network if it is logits [B, K]; otherwise raise NotApplicable with the ways out."""
    if _is_logits(output, batch):
        return output
    part = next((key for key, value in _parts(output).items() if _is_logits(value, batch)), None)
    choose = "" if part is None else f"set model.output={part} (in Python returning(model, {part!r})), or "
    raise NotApplicable(
        f"{type(net).__name__} returned {described(output)}, but logits [B, K] are needed: {choose}give a target function, "
        "targets=lambda output: ..., that returns one score per image"
    )


def described(output: Any) -> str:
    """Describe the output of a network: its shape, or the parts that `returning` can choose."""
    if isinstance(output, Tensor):
        return str(list(output.shape))
    names = ", ".join(map(str, _parts(output)))
    return f"an object of type {type(output).__name__}" + f" with {names}" * bool(names)


def _is_logits(output: Any, batch: int) -> bool:
    return isinstance(output, Tensor) and output.ndim == 2 and len(output) == batch


def _parts(output: Any) -> dict[Any, Any]:
    """Return the parts that `returning` can choose; the fields of a named tuple are listed by index only."""
    if isinstance(output, Mapping):
        return dict(output)
    return dict(enumerate(output)) if isinstance(output, tuple | list) else dict(getattr(output, "__dict__", {}))


def _chosen(output: Any, part: int | str, name: str) -> Any:
    """Return output[part] or output.part."""
    if isinstance(output, fx.Proxy):  # while tracing: decided when the graph runs
        return output.tracer.create_proxy("call_function", _chosen, (output, part, name), {})
    try:
        if not isinstance(output, Tensor):
            return output[part] if isinstance(output, Mapping) or isinstance(part, int) else getattr(output, part)
    except (LookupError, AttributeError, TypeError):
        pass
    raise NotApplicable(f"the output of {name}, {described(output)}, has no {part!r}")
