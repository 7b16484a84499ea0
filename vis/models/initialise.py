"""Named random initialisations, generated in blocks.

A weight [out, in, ...] is seen as a matrix [out, in * ...] and cut into fixed blocks. Every block has a generator of
its own, seeded from (seed, name of the weight, number of the block). So the same seed gives the same weights for any
number of threads, on any device (the CPU generates), and for a layer that never holds its weights at all
(`vis.models.streamed`).
"""

import math
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BLOCK = 1 << 18  # elements: one megabyte of float32, which stays in the cache of one core


def _truncated_normal(block: Tensor, std: float, fan_in: int, fan_out: int, generator: torch.Generator) -> None:
    # Inverse CDF of a Gaussian cut at two (nominal) standard deviations, so that the true one is 0.880 std. PyTorch's
    # trunc_normal_ with its default bounds (-2, 2) does not cut at all for std = 0.1.
    bound = math.erf(math.sqrt(2))
    block.uniform_(-bound, bound, generator=generator).erfinv_().mul_(std * math.sqrt(2))


def _normal(block: Tensor, std: float, fan_in: int, fan_out: int, generator: torch.Generator) -> None:
    block.normal_(0, std, generator=generator)


def _kaiming_normal(block: Tensor, std: float, fan_in: int, fan_out: int, generator: torch.Generator) -> None:
    block.normal_(0, math.sqrt(2 / fan_in), generator=generator)


def _kaiming_uniform(block: Tensor, std: float, fan_in: int, fan_out: int, generator: torch.Generator) -> None:
    bound = math.sqrt(6 / fan_in)
    block.uniform_(-bound, bound, generator=generator)


def _xavier_normal(block: Tensor, std: float, fan_in: int, fan_out: int, generator: torch.Generator) -> None:
    block.normal_(0, math.sqrt(2 / (fan_in + fan_out)), generator=generator)


def _xavier_uniform(block: Tensor, std: float, fan_in: int, fan_out: int, generator: torch.Generator) -> None:
    bound = math.sqrt(6 / (fan_in + fan_out))
    block.uniform_(-bound, bound, generator=generator)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Fill = Callable[[Tensor, float, int, int, torch.Generator], None]
INITIALISATIONS: dict[str, Fill] = {
    "truncated_normal": _truncated_normal,
    "normal": _normal,
    "kaiming_normal": _kaiming_normal,
    "kaiming_uniform": _kaiming_uniform,
    "xavier_normal": _xavier_normal,
    "xavier_uniform": _xavier_uniform,
}


@dataclass(frozen=True)
class RandomWeight:
    """A random weight matrix [rows, columns] that can be generated as a whole or a block of rows at a time.

    fan_in and fan_out count connections as torch.nn.init does: for a convolution, kernel size included.
    """

    init: str
    std: float
    seed: int
    name: str
    rows: int
    columns: int
    fan_out: int

    def _generator(self, block: int) -> torch.Generator:
        # mt19937 takes 32 bits of seed: neighbouring blocks of one weight never share one.
        start = zlib.crc32(f"{self.seed}/{self.name}".encode())
        return torch.Generator().manual_seed((start + block) % 2**32)

    def blocks(self) -> Iterator[tuple[int, slice, slice]]:
        """(number, rows, columns) of every block, in row order."""
        height = max(1, BLOCK // self.columns)
        number = 0
        for row in range(0, self.rows, height):
            for column in range(0, self.columns, BLOCK):
                yield (
                    number,
                    slice(row, min(row + height, self.rows)),
                    slice(column, min(column + BLOCK, self.columns)),
                )
                number += 1

    def row_groups(self, elements: int) -> list[list[tuple[int, slice, slice]]]:
        """The blocks in groups of whole rows, each of about `elements` numbers."""
        height = max(1, BLOCK // self.columns)
        rows = max(height, elements // self.columns // height * height)
        groups: dict[int, list[tuple[int, slice, slice]]] = {}
        for block in self.blocks():
            groups.setdefault(block[1].start // rows, []).append(block)
        return list(groups.values())

    def fill(self, blocks: list[tuple[int, slice, slice]], out: Tensor, first_row: int = 0) -> None:
        """Write the blocks into `out`, whose row 0 is row `first_row` of the matrix."""
        make = INITIALISATIONS[self.init]

        def one(block: tuple[int, slice, slice]) -> None:
            number, rows, columns = block
            target = out[rows.start - first_row : rows.stop - first_row, columns]
            values = (
                target
                if target.is_contiguous() and out.dtype == torch.float32
                else target.new_empty(target.shape, dtype=torch.float32)
            )
            make(values, self.std, self.columns, self.fan_out, self._generator(number))
            if values is not target:
                target.copy_(values)

        # Two levels of threads would fight: the blocks are the parallel unit.
        with ThreadPoolExecutor(max_workers=_cores()) as pool:
            list(pool.map(one, blocks))


@torch.no_grad()
def initialise(
    net: nn.Module, init: str, std: float, seed: int, only: Callable[[str], bool] = lambda name: True
) -> None:
    """Fill the parameters of `net` in place: weights by the named initialisation, biases 0, norms the identity.

    only: which modules (by name) to fill; all by default. Streamed layers learn what they have to generate.
    Raises ValueError for an unknown name.
    """
    from vis.models.streamed import StreamedLinear

    if init not in INITIALISATIONS:
        raise ValueError(f"unknown initialisation {init!r}; there is {', '.join(INITIALISATIONS)} and default")
    for module_name, module in net.named_modules():
        if not only(module_name):
            continue
        if isinstance(module, StreamedLinear):
            module.source = RandomWeight(
                init, std, seed, f"{module_name}.weight", module.out_features, module.in_features, module.out_features
            )
            continue
        for name, parameter in module.named_parameters(recurse=False):
            full_name = f"{module_name}.{name}" if module_name else name
            if parameter.ndim >= 2:
                matrix = parameter.detach().view(parameter.shape[0], -1)
                kernel = math.prod(parameter.shape[2:])
                source = RandomWeight(
                    init, std, seed, full_name, len(matrix), matrix.shape[1], parameter.shape[0] * kernel
                )
                source.fill(list(source.blocks()), matrix)
            else:
                identity = name == "weight" and "Norm" in type(module).__name__
                parameter.fill_(1.0 if identity else 0.0)
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            module.reset_running_stats()
