"""Multiply changes in bfloat16 or float16.

Convolutions and dense layers are applied to the change alone: z' = z + W d with d = a' - a, where a and z are the input and
output for the base image. So rounding errors are as small as the change, not as large as the activations. Everything else
is computed from a + d in the image's precision.
"""

import torch
from torch import Tensor, fx

from vis.errors import UserError
from vis.system.device import is_native


class LowPrecision:
    """Rounds changes and weights to `dtype`.

    held: the type that products are computed in, float32 if the device has none in `dtype`.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        native = dtype.itemsize >= 4 or is_native(dtype, device)
        self.dtype, self.held = dtype, dtype if native else torch.float32
        self.name = str(dtype).removeprefix("torch.")
        self._weights: dict[fx.Node, Tensor] = {}
        self._finite: Tensor | bool = True

    def weight(self, node: fx.Node, weight: Tensor) -> Tensor:
        """Return the weights of a layer, rounded once."""
        if node not in self._weights:
            self._weights[node] = self.operand(weight.detach())
        return self._weights[node]

    def operand(self, values: Tensor) -> Tensor:
        """Round a factor of a product."""
        return values.to(self.dtype).to(self.held)

    def result(self, change: Tensor) -> Tensor:
        """Round the result of a layer."""
        change = change.to(self.dtype)
        if self.dtype is torch.float16:
            self._finite = change.isfinite().all() & self._finite
        return change

    def check_overflow(self) -> None:
        """Raise UserError if a result did not fit into float16."""
        if not self._finite:
            raise UserError(f"the network's values overflow {self.name}: use bfloat16 or float32")
