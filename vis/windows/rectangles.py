"""Rectangles of a feature map, one for each of n windows: where they are, and the map's values in them.

A map of n windows is stored as rows of channels: one row of zeros (what lies outside), the base map's rows, then each
window's rectangle. So a rectangle with its surround is one `index_select`.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


class Places:
    """A rectangle for each of n windows on a map: top, left, height, width, each [n]; stored one behind the other.

    Those of one size are neighbours.
    """

    _on: Tensor | None = None
    _positions: tuple[Tensor, Tensor, Tensor] | None = None

    def __init__(self, rows: np.ndarray, columns: np.ndarray) -> None:
        self.rows, self.columns = rows, columns  # [n, 2]: first, last + 1
        there = ((rows[:, 1] > rows[:, 0]) & (columns[:, 1] > columns[:, 0])).astype(np.int64)
        self.height, self.width = (rows[:, 1] - rows[:, 0]) * there, (columns[:, 1] - columns[:, 0]) * there
        self.order = np.lexsort((self.width, self.height))
        areas = (self.height * self.width)[self.order]
        self.start = np.empty_like(areas)
        self.start[self.order] = np.cumsum(areas) - areas
        self.total = int(areas.sum())

    @cached_property
    def groups(self) -> list[tuple[slice, int, int, int, int]]:
        """(windows, a slice of `order`; height, width, first row, last row + 1) of those of one size."""
        sizes = np.stack([self.height, self.width])[:, self.order]
        cuts = [0, *(np.flatnonzero((sizes[:, 1:] != sizes[:, :-1]).any(0)) + 1).tolist(), len(self.order)]
        found, row = [], 0
        for first, last in itertools.pairwise(cuts):
            h, w = sizes[:, first].tolist()
            if h * w:
                found.append((slice(first, last), h, w, row, row + (last - first) * h * w))
                row = found[-1][-1]
        return found

    def on(self, device: torch.device) -> Tensor:
        """[7, n]: first row, last + 1, first column, last + 1, start and width of each window; order. One transfer."""
        if self._on is None:
            parts = [self.rows.T, self.columns.T, self.start[None], self.width[None], self.order[None]]
            self._on = torch.from_numpy(np.concatenate(parts)).to(device, non_blocking=True)
        return self._on

    def positions(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Window, row and column of each stored row: [total] each."""
        if self._positions is None:
            top, _, left, _, start, width, order = held = self.on(device)
            areas = (held[1] - top) * width  # width is 0 for what is empty
            window = order.repeat_interleave(areas[order], output_size=self.total)
            at, width = torch.arange(self.total, device=device) - start[window], width[window]
            row = at.div(width, rounding_mode="floor")
            self._positions = window, top[window] + row, left[window] + at - row * width
        return self._positions

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Places)
            and np.array_equal(self.rows, other.rows)
            and np.array_equal(self.columns, other.columns)
        )


@dataclass
class Crops:
    """A map [C, H, W] of n windows: base rows [H W, C] and what differs from them, [rows, C], at `places`.

    room: memory [1 + H W + rows, C] that ends in `changed`, where there is such.
    """

    places: Places
    base: Tensor
    size: tuple[int, int]
    changed: Tensor
    room: Tensor | None = None
    outside: float | None = None  # in the first row; None while the base rows are not there yet
    _change: "Crops | None" = None

    def index(self, window: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Where in the room positions of the maps of windows stand; the arguments are broadcast."""
        (H, W), places = self.size, self.places.on(self.base.device)[:6, window]
        top, bottom, left, right, start, width = places
        new = (row >= top) & (row < bottom) & (column >= left) & (column < right)
        old = (1 + row * W + column) * ((row >= 0) & (row < H) & (column >= 0) & (column < W))
        return torch.where(new, 1 + H * W + start + (row - top) * width + column - left, old)

    def cut(self, window: Tensor, top: Tensor, left: Tensor, h: int, w: int, outside: float = 0) -> Tensor:
        """Rectangles [g, C, h, w] of the maps of some windows [g], in channels_last."""
        rows, columns = (torch.arange(n, device=self.base.device) for n in (h, w))
        index = self.index(window[:, None, None], (top[:, None] + rows)[:, :, None], (left[:, None] + columns)[:, None])
        return self.table(outside).index_select(0, index.view(-1)).view(len(window), h, w, -1).permute(0, 3, 1, 2)

    def base_at(self, places: Places, out: Tensor | None = None) -> Tensor:
        """The base map where the windows' rectangles are: [rows, C]."""
        _, row, column = places.positions(self.base.device)
        return torch.index_select(self.base, 0, row * self.size[1] + column, out=out)

    def change(self, low: torch.dtype, held: torch.dtype) -> "Crops":
        """What the windows change, rounded to `low` and held in `held`: a map of zeros outside the rectangles."""
        if self._change is None:
            zeros = self.base.new_zeros(1, dtype=held).expand_as(self.base)
            room = room_for(zeros, self.places.total)
            rows = room[1 + len(zeros) :]
            rows.copy_((self.changed - self.base_at(self.places)).to(low))
            self._change = Crops(self.places, zeros, self.size, rows, room)
        return self._change

    def at(self, places: Places) -> Tensor:
        """The rows of larger rectangles: [rows, C]."""
        if places == self.places:
            return self.changed
        return self.table(0).index_select(0, self.index(*places.positions(self.base.device)))

    @cached_property
    def whole(self) -> Tensor:
        """The maps [n, C, H, W]."""
        windows = torch.arange(len(self.places.start), device=self.base.device)
        return self.cut(windows, windows * 0, windows * 0, *self.size)

    def table(self, outside: float) -> Tensor:
        if self.room is None:
            self.room = room_for(self.base, len(self.changed))
            self.room[1 + len(self.base) :] = self.changed
            self.changed = self.room[1 + len(self.base) :]
        if self.outside is None:
            self.room[1 : 1 + len(self.base)] = self.base
        if self.outside != outside:
            self.room[0] = self.outside = outside
        return self.room


def room_for(base: Tensor, rows: int) -> Tensor:
    return base.new_empty(1 + len(base) + rows, base.shape[1])


def reached(changed: np.ndarray, n: int, k: int, s: int, p: int, d: int) -> np.ndarray:
    """Outputs [n, 2] of a window operation that read one of the inputs first ... last."""
    lo, hi = changed.T
    first = np.maximum(0, -((d * (k - 1) - lo - p) // s))
    last = np.minimum(n - 1, (hi - 1 + p) // s)
    found = np.stack([first, np.maximum(last + 1, first)], 1)
    return np.where((hi > lo)[:, None], found, 0)


def hull(parts: list[np.ndarray]) -> np.ndarray:
    """[n, 2]: from the first to the last row of any of the parts that are there."""
    both = np.stack(parts)
    there = both[..., 1] > both[..., 0]
    first = np.where(there, both[..., 0], np.iinfo(np.int64).max).min(0)
    return np.where(np.any(there, axis=0)[:, None], np.stack([first, np.where(there, both[..., 1], 0).max(0)], 1), 0)
