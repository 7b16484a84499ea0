"""A dense layer that never stores its weights.

`cnn3_random` at 224x224 with N = 256 filters ends in a layer of 1000 x 3,211,264 weights (12.8 GB); nie2018's fully
connected network at 64x64 with 70,000 hidden units starts with one of 3.4 GB. Random weights need not be stored: each
block is generated when it is needed, multiplied while it is in the cache, and discarded. The layer equals the dense one
with the same seed.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vis.models.random_weight import RandomWeight, parallel

STREAM_BYTES = 2_500_000_000  # larger float32 weights are streamed
_GROUP = 64  # row tiles per partial sum: fixed, so that rounding does not depend on the number of threads


class _Product(torch.autograd.Function):
    """y = x W^T for x [B, in], W [out, in]; the gradient R W generates only the rows where R is nonzero.

    Both run on the CPU, which generates the weights: generating them takes longer than multiplying by them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: RandomWeight) -> Tensor:
        ctx.source = source
        values = x.detach().cpu()

        def outputs(rows: slice) -> Tensor:
            result = values.new_zeros(len(values), rows.stop - rows.start)
            for columns in source.column_tiles():
                result += values[:, columns] @ source.block(rows, columns).to(values.dtype).T
            return result

        return torch.cat(parallel(outputs, source.row_tiles()), dim=1).to(x.device)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        source: RandomWeight = ctx.source
        R = gradient.detach().cpu()
        used = R.ne(0).any(dim=0)
        tiles = [rows for rows in source.row_tiles() if used[rows].any()]
        tasks = [(tiles[i : i + _GROUP], c) for c in source.column_tiles() for i in range(0, len(tiles), _GROUP)]

        def part(task: tuple[list[slice], slice]) -> Tensor:
            group, columns = task
            result = R.new_zeros(len(R), columns.stop - columns.start)
            for rows in group:
                result += R[:, rows] @ source.block(rows, columns).to(R.dtype)
            return result

        result = R.new_zeros(len(R), source.columns)
        for (_, columns), values in zip(tasks, parallel(part, tasks), strict=True):
            result[:, columns] += values
        return result.to(gradient.device), None


class StreamedLinear(nn.Module):
    """`nn.Linear` without bias that generates its random weights at each use; `initialise` sets their `source`.

    x [B, in_features] -> [B, out_features], on x's device and in its precision.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.source: RandomWeight | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.source is None:
            raise RuntimeError(
                "a streamed layer has no weights before `initialise`: it can be neither trained nor loaded"
            )
        return _Product.apply(x, self.source)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, streamed"


def dense(in_features: int, out_features: int) -> nn.Module:
    """Build a dense layer with bias, or a streamed one if its weights exceed STREAM_BYTES."""
    if 4 * in_features * out_features > STREAM_BYTES:
        return StreamedLinear(in_features, out_features)
    return nn.Linear(in_features, out_features)
