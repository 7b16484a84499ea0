"""Networks that return more than logits: a tuple, a list, a dict, an object with `.logits`, a map of class scores.

    returning(net, "logits")                             the network that returns only this of what `net` returns
    returning(net, lambda output: output["a"] - output["b"])

`model.output=logits` on the command line is the first. A target that is a function, `targets=f`, is the second with f(output)
[B] as its only unit. So whatever works for a classifier works for these networks.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from vis.errors import NotApplicable

Score = Callable[[Any], Tensor]  # what a network returns for any number of images -> a score for each of them, [B]


def returning(net: nn.Module, part: int | str | Callable[[Any], Any]) -> nn.Module:
    """The network that returns a part of what `net` returns: an index, a key, the name of an attribute, or a function of it.

    Layers, weights, modes and hooks are those of `net`, which stays as it is: the two share their state, and a hook on the
    network itself still sees all that `net` returns.
    """
    kind = type(net)
    of_output = part if callable(part) else lambda output: _chosen(output, part, kind.__name__)

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return of_output(kind.__call__(self, *args, **kwargs))

    return sharing(net, __call__=call)


def sharing(net: nn.Module, **methods: Callable[..., Any]) -> nn.Module:
    """A module with the state of `net`, not a copy of it, and its class but for some methods."""
    kind = type(net)
    other: nn.Module = object.__new__(type(kind.__name__, (kind,), {"__module__": kind.__module__, **methods}))
    object.__setattr__(other, "__dict__", vars(net))
    return other


def detached(net: nn.Module) -> nn.Module:
    """A module of the same class that shares layers and weights with `net`: what it is given besides, `net` does not get."""
    other: nn.Module = object.__new__(type(net))
    object.__setattr__(other, "__dict__", dict(vars(net)))
    return other


def scoring(net: nn.Module, f: Score) -> nn.Module:
    """The network that returns f(output) [B, 1]. Raises NotApplicable where f does not give each image a number."""

    def column(output: Any) -> Any:
        scores = f(output)
        if not isinstance(scores, fx.Proxy) and not (isinstance(scores, Tensor) and scores.ndim == 1):
            got = described(scores)
            raise NotApplicable(
                f"a target function makes [B] of what the network returns, {described(output)}, not {got}"
            )
        return scores[:, None]

    return returning(net, column)


def checked_logits(net: nn.Module, output: Any, batch: int) -> Tensor:
    """What a network returned for a batch of images, which are logits [B, K]. Raises NotApplicable, with the ways out."""
    if _is_logits(output, batch):
        return output
    part = next((key for key, value in _parts(output).items() if _is_logits(value, batch)), None)
    choose = "" if part is None else f"set model.output={part} (in Python returning(model, {part!r})), or "
    raise NotApplicable(
        f"{type(net).__name__} returned {described(output)}, but logits [B, K] are needed: {choose}give a target function, "
        "targets=lambda output: ..., that returns one score per image"
    )


def described(output: Any) -> str:
    """What a network returned, in words: a shape, or the parts by which `returning` finds them."""
    if isinstance(output, Tensor):
        return str(list(output.shape))
    names = ", ".join(map(str, _parts(output)))
    return f"an object of type {type(output).__name__}" + f" with {names}" * bool(names)


def _is_logits(output: Any, batch: int) -> bool:
    return isinstance(output, Tensor) and output.ndim == 2 and len(output) == batch


def _parts(output: Any) -> dict[Any, Any]:
    """What `returning` can choose from, but for the fields of named tuples, which have numbers as well."""
    if isinstance(output, Mapping):
        return dict(output)
    return dict(enumerate(output)) if isinstance(output, tuple | list) else dict(getattr(output, "__dict__", {}))


def _chosen(output: Any, part: int | str, name: str) -> Any:
    """output[part] or output.part."""
    if isinstance(output, fx.Proxy):  # a graph decides when it runs
        return output.tracer.create_proxy("call_function", _chosen, (output, part, name), {})
    try:
        if not isinstance(output, Tensor):
            return output[part] if isinstance(output, Mapping) or isinstance(part, int) else getattr(output, part)
    except (LookupError, AttributeError, TypeError):
        pass
    raise NotApplicable(f"there is no {part!r} in what {name} returns, {described(output)}")
