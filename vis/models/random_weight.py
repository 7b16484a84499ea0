"""Random weights of named distributions, generated in blocks.

A weight [out, in, ...] is treated as a matrix [out, in * ...] and cut into fixed blocks, each with its own bit generator
seeded by (seed, name of the weight, position of the block). So a seed gives the same weights for any number of threads, in
any order, on any device (the CPU generates them), and for a layer that never stores its weights (`vis.models.streamed`).
The bits come from numpy's SFC64, whose stream is guaranteed not to change; PyTorch's is not.
"""

import math
import os
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 18  # values: one megabyte of float32, which fits the cache of one core
_ROWS = 8  # minimum rows of a block: a product reads its other factor once for all of them

Item = TypeVar("Item")
Result = TypeVar("Result")


def _gaussian(u: Tensor, std: float) -> Tensor:
    return u.erfinv_().mul_(std * math.sqrt(2))


def _truncated_normal(u: Tensor, std: float, fan_in: int, fan_out: int) -> Tensor:
    # A Gaussian truncated at two (nominal) standard deviations, so the actual one is 0.880 std. PyTorch's trunc_normal_
    # with its default bounds (-2, 2) truncates nothing for std = 0.1.
    return _gaussian(u.mul_(math.erf(math.sqrt(2))), std)


def _normal(u: Tensor, std: float, fan_in: int, fan_out: int) -> Tensor:
    return _gaussian(u.mul_(1 - 2**-24), std)  # the largest float32 below 1 keeps the inverse finite


def _kaiming_normal(u: Tensor, std: float, fan_in: int, fan_out: int) -> Tensor:
    return _normal(u, math.sqrt(2 / fan_in), fan_in, fan_out)


def _kaiming_uniform(u: Tensor, std: float, fan_in: int, fan_out: int) -> Tensor:
    return u.mul_(math.sqrt(6 / fan_in))


def _xavier_normal(u: Tensor, std: float, fan_in: int, fan_out: int) -> Tensor:
    return _normal(u, math.sqrt(2 / (fan_in + fan_out)), fan_in, fan_out)


def _xavier_uniform(u: Tensor, std: float, fan_in: int, fan_out: int) -> Tensor:
    return u.mul_(math.sqrt(6 / (fan_in + fan_out)))


# Each maps u, uniform in [-1, 1], to its distribution in place, by the inverse of the cumulative distribution.
INITIALISATIONS: dict[str, Callable[[Tensor, float, int, int], Tensor]] = {
    "truncated_normal": _truncated_normal,
    "normal": _normal,
    "kaiming_normal": _kaiming_normal,
    "kaiming_uniform": _kaiming_uniform,
    "xavier_normal": _xavier_normal,
    "xavier_uniform": _xavier_uniform,
}


@dataclass(frozen=True)
class RandomWeight:
    """A random weight matrix [rows, columns] that is generated one block at a time.

    columns is the fan-in; fan_out counts connections as torch.nn.init does, including a convolution's kernel size.
    """

    init: str
    std: float
    seed: int
    name: str
    rows: int
    columns: int
    fan_out: int

    def column_tiles(self) -> list[slice]:
        """Return the column range of each block."""
        return _tiles(self.columns, BLOCK // _ROWS)

    def row_tiles(self) -> list[slice]:
        """Return the row range of each block."""
        return _tiles(self.rows, BLOCK // min(self.columns, BLOCK // _ROWS))

    def block(self, rows: slice, columns: slice) -> Tensor:
        """Generate the block at one of `row_tiles` and one of `column_tiles`: float32, on the CPU."""
        shape = rows.stop - rows.start, columns.stop - columns.start
        count = math.prod(shape)
        key = [self.seed % 2**64, zlib.crc32(self.name.encode()), rows.start, columns.start]
        bits = np.random.SFC64(key).random_raw((count + 1) // 2).view(np.int32)[:count]
        # Allocate with numpy: torch's aligned allocations of this size fragment the heap, by 2 GB for a streamed layer.
        u = torch.from_numpy(bits.astype(np.float32)).mul_(2**-31)
        return INITIALISATIONS[self.init](u, self.std, self.columns, self.fan_out).view(shape)


def _tiles(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def parallel(task: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return [task(item) for item in items], computed on all cores whatever torch.set_num_threads says."""
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        # One torch thread per worker: nested threads would compete for the cores.
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(task, items))
    finally:
        torch.set_num_threads(threads)
