"""Run a network in bfloat16 on its float32 weights, for methods that need no exact values (precision=mixed)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vis.methods.functional import function_name


class _Rounding(TorchFunctionMode):
    """Context that converts each weight to bfloat16 once, and keeps no copy after it: weights may change."""

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}  # by the id of the first, which lives as long

    def rounded(self, weight: Tensor) -> Tensor:
        if id(weight) not in self._copies:
            self._copies[id(weight)] = weight, weight.detach().to(torch.bfloat16)
        return self._copies[id(weight)][1]


class InBfloat16(_Rounding):
    """Context in which convolutions and dense layers take and return bfloat16; operations between them follow.

    The logits of differently masked images differ widely, and so do feature vectors (docs/guide.md has the errors of ScoreCAM).
    Gradients and small differences need float32.
    """

    def __enter__(self) -> "InBfloat16":
        self._autocast = torch.autocast("cpu", torch.bfloat16)
        self._autocast.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._autocast.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        layer = function_name(func) in ("conv2d", "linear")
        if layer and args and len(args[0]) == 0:  # behind the end of `run_to`: not worth converting the weights
            with torch.autocast("cpu", enabled=False):
                return func(args[0].to(args[1].dtype), *args[1:], **(kwargs or {}))
        if layer:  # autocast would convert the weights in each pass
            args = tuple(self.rounded(each) if isinstance(each, nn.Parameter) else each for each in args)
        return func(*args, **(kwargs or {}))


class ChangesInBfloat16(_Rounding):
    """Context in which convolutions and dense layers multiply the changes from the first row of a batch in bfloat16.

    The first row is computed exactly, and the others are its sum with their changes. So rounding errors are relative to the
    changes, which may be small: AblationCAM changes by less than 1 % (l2, docs/guide.md).
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        exact = partial(func, **(kwargs or {}))
        if function_name(func) not in ("conv2d", "linear") or len(args) < 3 or len(args[0]) < 2:
            return exact(*args)
        x, weight, bias, *rest = args
        base = exact(x[:1], weight, bias, *rest)
        changes = exact((x[1:] - x[:1]).to(torch.bfloat16), self.rounded(weight), None, *rest)
        return torch.cat([base, changes + base])
