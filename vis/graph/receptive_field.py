"""Compute receptive fields: which rows of the image each position in a traced network can depend on ("see").

They follow from the operations alone. Row i of a convolution or pooling with kernel k, stride s, padding p and dilation d
reads the rows

    i s - p  ...  i s - p + d (k - 1)

of its input and sees what those rows see. For an operation without a rule, every position sees all that its inputs see.
So the result is an upper bound: a row that is reported as unseen has no influence.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from vis.graph.trace import ELEMENTWISE, Traced

Seen = np.ndarray  # [n, 2]: first and last image row that each of n positions sees; last < first means none
WINDOWS = {  # positions among the arguments of the functions
    "conv2d": {"stride": 3, "padding": 4, "dilation": 5},
    "maxpool2d": {"kernel_size": 1, "stride": 2, "padding": 3, "dilation": 4},
    "avgpool2d": {"kernel_size": 1, "stride": 2, "padding": 3},
}
PADDINGS = {"pad", "constantpadnd", "zeropad2d", "constantpad2d"}


def receptive_field(
    traced: Traced, axis: int = 2, live: Mapping[fx.Node, int] | None = None
) -> tuple[dict[fx.Node, Seen], list[fx.Node]]:
    """Return which part of the image each position of each node sees, and the nodes that mix all positions.

    axis: 2 for rows, 3 for columns. A node that is not a map [B, C, H, W] has one position; nodes that do not depend on
    the image are omitted. live: {node: n} if only the node's first n rows are read.
    """
    seen: dict[fx.Node, Seen] = {}
    mixing: list[fx.Node] = []
    for node in traced.graph.nodes:
        shape = traced.shapes[node]
        sources = [source for source in node.all_input_nodes if source in seen]
        if node.op == "placeholder" and shape is not None:
            seen[node] = np.arange(shape[axis])[:, None].repeat(2, 1)
        elif sources:
            maps = all(len(traced.shapes[each] or ()) == 4 for each in (node, *sources))
            rule = _rule(traced, node, sources, axis) if maps else None
            if rule is None:
                count = shape[axis] if shape is not None and len(shape) == 4 else 1
                parts = [np.repeat(_hull(seen[source]), count, axis=0) for source in sources]
                mixing.append(node)
            else:
                parts = [rule(seen[source]) for source in sources]
            both = np.stack(np.broadcast_arrays(*parts))
            seen[node] = np.stack([both[..., 0].min(0), both[..., 1].max(0)], axis=1)
        if live and node in live:
            seen[node] = seen[node][: live[node]]
    return seen, mixing


def _rule(traced: Traced, node: fx.Node, sources: list[fx.Node], axis: int) -> Callable[[Seen], Seen] | None:
    """Return the function from what a node's inputs see to what the node sees; None if it mixes positions."""
    kind = traced.kind(node)
    if uses_batch_statistics(traced, node) or (kind in WINDOWS and sources != node.all_input_nodes[:1]):
        return None  # or its weights are computed from the image
    if kind in ELEMENTWISE:
        return lambda seen: seen
    if kind in ("cat", "concat"):
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        return (lambda seen: seen) if dim in (1, -3) else None
    before: Any = traced.shapes[sources[0]]
    after: Any = traced.shapes[node]
    n, m = before[axis], after[axis]
    rows = np.arange(m)
    if kind in ("adaptiveavgpool2d", "adaptivemaxpool2d"):
        return lambda seen: _windows(seen, rows * n // m, -(-(rows + 1) * n // m) - 1)
    if kind == "getitem":
        index = torch.arange(n).view(-1, *[1] * (3 - axis)).expand(before)
        chosen = index[cast(Any, node.args[1])].movedim(axis, 0).flatten(1)[:, 0].numpy()
        return lambda seen: seen[chosen]
    if kind in PADDINGS:
        first = padding(traced, node)
        return first and (lambda seen: _windows(seen, rows - first[axis - 2], rows - first[axis - 2]))
    if kind not in WINDOWS:
        return None
    found = window(traced, node, kind, axis - 2)
    if found is None:
        return None
    k, s, p, d = found
    return lambda seen: _windows(seen, rows * s - p, rows * s - p + d * (k - 1))


def window(traced: Traced, node: fx.Node, kind: str, i: int) -> tuple[int, int, int, int] | None:
    """Return kernel, stride, padding and dilation of a convolution or pooling along the i-th spatial axis.

    Return None if it pads circularly or by reflection, or if the network computes them from the image's size.
    """
    places = WINDOWS[kind]
    if node.op == "call_module":
        module: Any = traced.net.get_submodule(str(node.target))
        given = {key: getattr(module, key, None) for key in ("kernel_size", *places)}
        if getattr(module, "padding_mode", "zeros") not in ("zeros", "replicate"):
            return None
    else:
        given = {key: argument(node, key, at) for key, at in places.items()}
        if kind == "conv2d":
            weight: Any = argument(node, "weight", 1)
            given["kernel_size"] = tuple(traced.shapes[weight][2:])  # type: ignore[index]  # a weight has a shape

    if any(isinstance(each, fx.Node) for v in given.values() for each in (v if isinstance(v, list | tuple) else [v])):
        return None

    def along(value: Any, default: int) -> int:
        value = default if value is None or value == () else value
        return int(value if isinstance(value, int) else value[i if len(value) > 1 else 0])

    k, d = along(given["kernel_size"], 1), along(given.get("dilation"), 1)
    s = along(given["stride"], 1 if kind == "conv2d" else k)
    padding = {"same": d * (k - 1) // 2, "valid": 0}.get(str(given["padding"]), given["padding"])
    return k, s, along(padding, 0), d


def padding(traced: Traced, node: fx.Node) -> tuple[int, int] | None:
    """Return how many rows and columns a constant padding adds before a map; None for other paddings and for cropping."""
    if node.op == "call_module":
        given: Any = traced.net.get_submodule(str(node.target)).padding
    else:
        given = argument(node, "pad", 1)
        if traced.kind(node) == "pad" and argument(node, "mode", 2, "constant") != "constant":
            return None
    if not isinstance(given, list | tuple) or not all(isinstance(n, int) and n >= 0 for n in given) or any(given[4:]):
        return None
    return given[2] if len(given) > 2 else 0, given[0]


def uses_batch_statistics(traced: Traced, node: fx.Node) -> bool:
    """Return True for a batch norm without running statistics, which takes those of the images themselves."""
    if not traced.kind(node).startswith("batchnorm"):
        return False
    module = traced.net.get_submodule(str(node.target)) if node.op == "call_module" else None
    return (argument(node, "running_var", 2) if module is None else getattr(module, "running_var", None)) is None


def argument(node: fx.Node, name: str, position: int, default: Any = None) -> Any:
    """Return an argument of a function or method, given by position or by keyword."""
    return node.kwargs.get(name, node.args[position] if len(node.args) > position else default)


def _windows(seen: Seen, first: np.ndarray, last: np.ndarray) -> Seen:
    """For each output, return what the input positions first ... last see together; positions outside are ignored."""
    return np.concatenate([_hull(seen[max(a, 0) : max(b + 1, 0)]) for a, b in zip(first, last, strict=True)])


def _hull(seen: Seen) -> Seen:
    """Return the first and last row that any of the positions sees: [1, 2]."""
    if not len(seen):
        return np.array([[np.iinfo(int).max, -1]])
    return np.array([[seen[:, 0].min(), seen[:, 1].max()]])
