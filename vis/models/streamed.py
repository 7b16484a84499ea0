"""A dense layer that never holds its weights.

`cnn3_random` at 224x224 with N = 256 filters ends in a layer of 1000 x 3,211,264 weights (12.8 GB), nie2018's fully
connected network with 70,000 hidden units starts with one of 3.4 GB. Being random, such weights need not be stored:
each block is generated when it is needed, used and forgotten. The layer equals the dense one with the same seed.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vis.models.initialise import RandomWeight

STREAM_BYTES = 2_500_000_000  # float32 weights beyond this are streamed
_GROUP = 1 << 24  # elements in memory at a time: 64 MB


class _Product(torch.autograd.Function):
    """y = x W^T for x [B, in], W [out, in]; its gradient R W generates only the rows where R is not 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: RandomWeight) -> Tensor:
        ctx.source = source
        result = x.new_empty(x.shape[0], source.rows)
        buffer: Tensor | None = None
        for group in source.row_groups(_GROUP):
            first, last = group[0][1].start, group[-1][1].stop
            if buffer is None or buffer.shape[0] < last - first:
                buffer = torch.empty(last - first, source.columns)
            weight = buffer[: last - first]
            source.fill(group, weight, first)
            result[:, first:last] = x @ weight.to(x).T
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        source: RandomWeight = ctx.source
        result = gradient.new_zeros(gradient.shape[0], source.columns)
        used = gradient.ne(0).any(dim=0).cpu()
        buffer: Tensor | None = None
        for group in source.row_groups(_GROUP):
            group = [block for block in group if used[block[1]].any()]
            if not group:
                continue
            first, last = group[0][1].start, group[-1][1].stop
            if buffer is None or buffer.shape[0] < last - first:
                buffer = torch.zeros(last - first, source.columns)
            weight = buffer[: last - first]
            source.fill(group, weight, first)
            rows = used[first:last].nonzero().flatten()
            result += gradient[:, first:last][:, rows.to(gradient.device)] @ weight[rows].to(gradient)
        return result, None


class StreamedLinear(nn.Module):
    """`nn.Linear` without bias whose random weights are generated at each use; `initialise` gives it its source.

    x [B, in_features] -> [B, out_features], on x's device and in its precision.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.source: RandomWeight | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.source is None:
            raise RuntimeError("a streamed layer has no weights before `initialise`: it cannot be trained or loaded")
        return _Product.apply(x, self.source)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, streamed"


def dense(in_features: int, out_features: int) -> nn.Module:
    """A dense layer with (zero) bias where it fits into memory, a streamed one where it does not."""
    if 4 * in_features * out_features > STREAM_BYTES:
        return StreamedLinear(in_features, out_features)
    return nn.Linear(in_features, out_features)
