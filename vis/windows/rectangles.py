"""Rectangles of a feature map, one for each of n windows: their positions and the map's values in them.

The maps for n windows are stored in one table, whose rows are positions and whose columns are channels: one row for all
positions outside the map, the base map's rows, then the rows of each window's rectangle. So one `index_select` reads a
rectangle together with its surroundings.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


class Places:
    """A rectangle of a map for each of n windows, and where it is stored: rectangles of one size are contiguous.

    rows, columns [n, 2] are half-open ranges: first, last + 1. height, width, start [n]: size and first stored row.
    """

    _on: Tensor | None = None
    _positions: tuple[Tensor, Tensor, Tensor] | None = None

    def __init__(self, rows: np.ndarray, columns: np.ndarray) -> None:
        self.rows, self.columns = rows, columns
        there = ((rows[:, 1] > rows[:, 0]) & (columns[:, 1] > columns[:, 0])).astype(np.int64)
        self.height, self.width = (rows[:, 1] - rows[:, 0]) * there, (columns[:, 1] - columns[:, 0]) * there
        self.order = np.lexsort((self.width, self.height))
        areas = (self.height * self.width)[self.order]
        self.start = np.empty_like(areas)
        self.start[self.order] = np.cumsum(areas) - areas
        self.total = int(areas.sum())

    @cached_property
    def groups(self) -> list[tuple[slice, int, int, int, int]]:
        """Return (slice of `order`, height, width, first stored row, last + 1) of each group of one size."""
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
        """Copy rows, columns, start, width and order to the device in one transfer: [7, n]."""
        if self._on is None:
            parts = [self.rows.T, self.columns.T, self.start[None], self.width[None], self.order[None]]
            self._on = torch.from_numpy(np.concatenate(parts)).to(device, non_blocking=True)
        return self._on

    def positions(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return window, row and column of each stored row: [total] each."""
        if self._positions is None:
            top, _, left, _, start, width, order = held = self.on(device)
            areas = (held[1] - top) * width  # an empty rectangle has width 0
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
    """The maps [C, H, W] for n windows: base rows [H W, C], and the rows that differ from them, changed [total, C].

    room: the table [1 + H W + total, C] whose last rows are `changed`, if it is allocated.
    outside: the value in its first row; None if the base rows are not copied yet.
    """

    places: Places
    base: Tensor
    size: tuple[int, int]
    changed: Tensor
    room: Tensor | None = None
    outside: float | None = None
    _change: "Crops | None" = None

    def index(self, window: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Return the table rows of positions in the windows' maps; the arguments are broadcast."""
        (H, W), places = self.size, self.places.on(self.base.device)[:6, window]
        top, bottom, left, right, start, width = places
        new = (row >= top) & (row < bottom) & (column >= left) & (column < right)
        old = (1 + row * W + column) * ((row >= 0) & (row < H) & (column >= 0) & (column < W))
        return torch.where(new, 1 + H * W + start + (row - top) * width + column - left, old)

    def cut(self, window: Tensor, top: Tensor, left: Tensor, h: int, w: int, outside: float = 0) -> Tensor:
        """Cut rectangles [g, C, h, w] out of the maps of some windows [g], in channels_last."""
        rows, columns = (torch.arange(n, device=self.base.device) for n in (h, w))
        index = self.index(window[:, None, None], (top[:, None] + rows)[:, :, None], (left[:, None] + columns)[:, None])
        return self.table(outside).index_select(0, index.view(-1)).view(len(window), h, w, -1).permute(0, 3, 1, 2)

    def base_at(self, places: Places, out: Tensor | None = None) -> Tensor:
        """Return the base map's values in the windows' rectangles: [total, C]."""
        _, row, column = places.positions(self.base.device)
        return torch.index_select(self.base, 0, row * self.size[1] + column, out=out)

    def change(self, low: torch.dtype, held: torch.dtype) -> "Crops":
        """Return the difference from the base map, rounded to `low` and stored in `held`; it is 0 outside the rectangles."""
        if self._change is None:
            zeros = self.base.new_zeros(1, dtype=held).expand_as(self.base)
            room = room_for(zeros, self.places.total)
            rows = room[1 + len(zeros) :]
            rows.copy_((self.changed - self.base_at(self.places)).to(low))
            self._change = Crops(self.places, zeros, self.size, rows, room)
        return self._change

    def at(self, places: Places) -> Tensor:
        """Return the values in rectangles that contain these: [total, C]."""
        if places == self.places:
            return self.changed
        return self.table(0).index_select(0, self.index(*places.positions(self.base.device)))

    @cached_property
    def whole(self) -> Tensor:
        """All maps in full: [n, C, H, W]."""
        windows = torch.arange(len(self.places.start), device=self.base.device)
        return self.cut(windows, windows * 0, windows * 0, *self.size)

    def table(self, outside: float) -> Tensor:
        """Return the table, filled, with `outside` in its first row."""
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
    """Allocate a table for a base map [H W, C] and that many changed rows."""
    return base.new_empty(1 + len(base) + rows, base.shape[1])


def reached(changed: np.ndarray, n: int, k: int, s: int, p: int, d: int) -> np.ndarray:
    """Return which of n outputs of a convolution or pooling read any changed input; both are ranges [windows, 2]."""
    lo, hi = changed.T
    first = np.maximum(0, -((d * (k - 1) - lo - p) // s))
    last = np.minimum(n - 1, (hi - 1 + p) // s)
    found = np.stack([first, np.maximum(last + 1, first)], 1)
    return np.where((hi > lo)[:, None], found, 0)


def hull(parts: list[np.ndarray]) -> np.ndarray:
    """Return the smallest ranges [n, 2] that contain those of all parts [n, 2]; empty parts are ignored."""
    both = np.stack(parts)
    there = both[..., 1] > both[..., 0]
    first = np.where(there, both[..., 0], np.iinfo(np.int64).max).min(0)
    return np.where(np.any(there, axis=0)[:, None], np.stack([first, np.where(there, both[..., 1], 0).max(0)], 1), 0)
