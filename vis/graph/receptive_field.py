"""The receptive field: which rows of the image a position of a traced network can see.

It follows from the operations alone. Row i of a convolution or pooling with kernel k, stride s, padding p and dilation d reads
the rows

    i s - p  ...  i s - p + d (k - 1)

of its input, and so sees what those see. An operation without a rule sees, at every position, all that its inputs see:
never too little, so that what is called unseen cannot be seen.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from vis.graph.trace import ELEMENTWISE, Traced

Seen = np.ndarray  # [n, 2]: the first and the last row of the image that each of n positions sees; last < first: none
WINDOWS = {  # where they stand among the arguments of the functions
    "conv2d": {"stride": 3, "padding": 4, "dilation": 5},
    "maxpool2d": {"kernel_size": 1, "stride": 2, "padding": 3, "dilation": 4},
    "avgpool2d": {"kernel_size": 1, "stride": 2, "padding": 3},
}
PADDINGS = {"pad", "constantpadnd", "zeropad2d", "constantpad2d"}


def receptive_field(
    traced: Traced, axis: int = 2, live: Mapping[fx.Node, int] | None = None
) -> tuple[dict[fx.Node, Seen], list[fx.Node]]:
    """What each position of each node sees of the image, and the nodes that see all that their inputs see.

    axis: 2 for rows, 3 for columns. A node that is no map [B, C, H, W] has one position, one that does not depend on
    the image is left out. live: nodes of whose rows only the first so many are read.
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
    """How a node of maps sees what its inputs see; None where it mixes their positions."""
    kind = traced.kind(node)
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
    """Kernel, stride, padding and dilation of a convolution or pooling along the i-th axis; None if it wraps or mirrors,
    and where the network computes them from an image's size."""
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
    """How many rows and columns a padding by a constant puts before a map; None for another padding, and if it cuts."""
    if node.op == "call_module":
        given: Any = traced.net.get_submodule(str(node.target)).padding
    else:
        given = argument(node, "pad", 1)
        if traced.kind(node) == "pad" and argument(node, "mode", 2, "constant") != "constant":
            return None
    if not isinstance(given, list | tuple) or not all(isinstance(n, int) and n >= 0 for n in given) or any(given[4:]):
        return None
    return given[2] if len(given) > 2 else 0, given[0]


def argument(node: fx.Node, name: str, position: int, default: Any = None) -> Any:
    """An argument of a function or method, of whatever spelling."""
    return node.kwargs.get(name, node.args[position] if len(node.args) > position else default)


def _windows(seen: Seen, first: np.ndarray, last: np.ndarray) -> Seen:
    """The union over the positions first ... last, of those that are there."""
    return np.concatenate([_hull(seen[max(a, 0) : max(b + 1, 0)]) for a, b in zip(first, last, strict=True)])


def _hull(seen: Seen) -> Seen:
    """[1, 2]: from the first to the last row that any of the positions sees."""
    if not len(seen):
        return np.array([[np.iinfo(int).max, -1]])
    return np.array([[seen[:, 0].min(), seen[:, 1].max()]])
