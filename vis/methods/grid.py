"""Grids of images, and networks whose logits one cell of a grid decides (Rao et al. 2022, section 3, arXiv 2205.10435).

    gridpg   the network reads the whole grid
    difull   the network reads one cell alone; the other cells, which each run through the layers alone, act on nothing
    dipart   the layers read the whole grid, the head only the positions over one cell

A network is split at a layer, f = f_explain o f_pre. `features` is f_pre of a grid, with the outputs of disconnected cells side
by side; `OneCell` is f_explain, a network that any method explains for these "images". So a method finds feature maps of the
whole grid at `OneCell.at`, also where most of them act on nothing. Cells are cut at multiples of h // n: of 27 rows, row 26
belongs to no cell.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vis.methods.from_layer import run_from
from vis.methods.functional import LayerName, Tap

SETTINGS = ("gridpg", "difull", "dipart")
Cell = tuple[int, int]  # row, column


def cells(n: int) -> list[Cell]:
    """List the cells of an n x n grid, row by row."""
    return [(row, column) for row in range(n) for column in range(n)]


def place(cell: Cell, n: int, height: int, width: int) -> tuple[slice, slice]:
    """Return the rows and columns of a cell in a map [height, width]."""
    h, w = height // n, width // n
    return slice(cell[0] * h, (cell[0] + 1) * h), slice(cell[1] * w, (cell[1] + 1) * w)


def cut(maps: Tensor, cell: Cell, n: int) -> Tensor:
    """Cut a cell out of maps [B, V, H, W]: [B, V, H // n, W // n]."""
    return maps[(..., *place(cell, n, *maps.shape[-2:]))]


def joined(parts: Tensor, n: int) -> Tensor:
    """Put cells side by side, row by row: [n n B, V, h, w] (all B of the first cell first) -> [B, V, n h, n w]."""
    rows = parts.unflatten(0, (n, n, -1))
    return torch.cat([torch.cat(list(row), -1) for row in rows], -2)


def features(net: nn.Module, grid: Tensor, setting: str, layer: str | None, n: int) -> Tensor:
    """Return f_pre of grids [B, C, H, W]: a layer's output [B, V, h, w], or the grids themselves if the layer is None."""
    if layer is None:
        return grid
    if setting != "difull":
        return output_of(net, grid, layer)
    return joined(output_of(net, torch.cat([cut(grid, cell, n) for cell in cells(n)]), layer), n)


def output_of(net: nn.Module, images: Tensor, layer: str) -> Tensor:
    """Return a layer's output, differentiable with respect to the images; the name is one for `Forward`."""
    name, kept = LayerName.of(layer), []
    module = net.get_submodule(name.module)

    def keep(*call: Any) -> Tensor:
        kept.append(call[-1])
        return call[-1].clone()  # an in-place ReLU may follow

    handle: Any = Tap(module, name, keep) if name.function else module.register_forward_hook(keep)
    try:
        net(images.clone())  # the network may begin with an in-place operation
    finally:
        handle.remove()
    return kept[0 if name.function else name.call or 0]


@contextmanager
def logits_of(net: nn.Module, units: list[int], values: Tensor, explained: nn.Module) -> Iterator[bool]:
    """Compute only some logits inside: [B, n] for n units, if that is all the last layer's other rows do; yield whether it is.

    explained: the network that is run, on `values`; a trial decides. For 1000 classes at a late layer it saves nearly all work.
    """
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    last = layers[-1]
    whole = {name: getattr(last, name) for name in ("weight", "bias")}
    with torch.no_grad():
        expected = explained(values)[:, units]
    for name, parameter in whole.items():
        if parameter is not None:
            setattr(last, name, nn.Parameter(parameter.detach()[units], parameter.requires_grad))
    try:
        with torch.no_grad():
            try:
                found = explained(values)
            except (RuntimeError, ValueError, IndexError):
                found = expected[:, :0]
        same = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
        if not same:
            last.weight, last.bias = whole["weight"], whole["bias"]
        yield same
    finally:
        last.weight, last.bias = whole["weight"], whole["bias"]


class OneCell(nn.Module):
    """The logits that one cell of grids decides: f_explain of `features` [B, V, h, w].

    setting: of SETTINGS. layer: where the network is split, None for the image. head: the last layer before the head, for dipart.
    grid: grids of the same size as those that will be explained.
    """

    def __init__(
        self, net: nn.Module, setting: str, cell: Cell, n: int, grid: Tensor, layer: str | None = None, head: str = ""
    ) -> None:
        super().__init__()
        self.at = nn.Identity()
        self.net, self.setting, self.cell, self.n, self.layer, self.head = net, setting, cell, n, layer, head
        image = cut(grid, cell, n) if setting == "difull" else grid
        self.empty = image[:0]
        self.place = place(cell, n, *grid.shape[-2:])  # numbers, so that the network can be traced

    def forward(self, values: Tensor) -> Tensor:
        values = self.at(values)
        if self.layer is None and self.setting == "difull":
            return self.net(values[(slice(None), slice(None), *self.place)])
        whole = self.setting == "gridpg" or (self.setting == "dipart" and self.layer != self.head)
        values = values if whole else cut(values, self.cell, self.n)
        with self._head_reads_the_cell():
            return self.net(values) if self.layer is None else run_from(self.net, self.empty, {self.layer: values})

    @contextmanager
    def _head_reads_the_cell(self) -> Iterator[None]:
        if self.setting != "dipart" or self.layer == self.head:
            yield
            return
        name = LayerName.of(self.head)
        module = self.net.get_submodule(name.module)
        calls = iter(range(1 << 30))

        def own(*call: Any) -> Tensor | None:
            return cut(call[-1], self.cell, self.n) if name.function or next(calls) == (name.call or 0) else None

        handle: Any = Tap(module, name, own) if name.function else module.register_forward_hook(own)
        try:
            yield
        finally:
            handle.remove()


class FromImage(nn.Module):
    """The logits that one cell of grids decides, from the grids [B, C, H, W]; `AT` names the layer's output for the grids."""

    AT = "rest.at"

    def __init__(
        self, net: nn.Module, setting: str, cell: Cell, n: int, grid: Tensor, layer: str, head: str = ""
    ) -> None:
        super().__init__()
        self.rest = OneCell(net, setting, cell, n, grid, layer, head)

    def forward(self, grid: Tensor) -> Tensor:
        rest = self.rest
        return rest(features(rest.net, grid, rest.setting, rest.layer, rest.n))
