"""A wall: the head of a network reads only the upper rows of its last feature map (taimeskhanov2024, section 3.1).

The lower rows cannot reach a logit. Traced back through the receptive field, they leave a dead zone: the rows at the
bottom of the image that no logit sees. Two kinds of head can have a wall:

    a dense layer           its weights for the lower rows are 0: W[:, :, live:, :] = 0
    a global pooling        pools over the upper rows only
"""

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from vis.errors import UserError
from vis.graph.modes import evaluating
from vis.graph.receptive_field import Seen, receptive_field
from vis.graph.trace import ELEMENTWISE, NotTraceable, Traced, Tracer, trace

_GLOBAL = ("adaptiveavgpool2d", "adaptivemaxpool2d", "mean", "amax")


def build_wall(net: nn.Module, rows: int, channels: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Build a wall into a network, in place, below row `rows` - 1 of its last feature map; return its dead zone.

    The dead zone is the first and the last row of images [channels, *size] that no logit sees; None, without a wall, if
    all rows of the feature map are live. Modules, their names and the state dict stay. For a dense layer the network gets
    `apply_wall`; call it after loading weights and after each optimiser step. The module that calls a global pooling
    keeps only the branches of its code (`if self.training`) taken in eval mode.

    Raises UserError if the network has no such head, or if the wall would hide nothing.
    """
    name = type(net).__name__
    try:
        with evaluating(net):
            traced = trace(net, channels, size)
            seen, mixing = receptive_field(traced)
            last = _last_map(traced, seen)
            height = len(seen[last])
            if rows == height:
                return None
            if not 1 <= rows < height:
                raise UserError(
                    f"model.wall.rows={rows}: the last feature map of {name} has {height} rows; give 1 to {height - 1}"
                )
            linear, poolings = _head(traced, last)
            walled, _ = receptive_field(traced, live={last: rows})
            (output,) = (node for node in traced.graph.nodes if node.op == "output")
            first = int(walled[output][:, 1].max()) + 1
            if first >= size[0]:
                raise UserError(_hides_nothing(traced, rows, seen, last, mixing))
            if linear is None:
                _pool_live_rows(traced, poolings, rows)
                trace(net, channels, size)  # raises if a later layer rejects fewer rows
            else:
                shape: Any = traced.shapes[last]
                wall = _Zeros(linear, rows, *shape[1:])
                wall()
                net.apply_wall = wall  # type: ignore[assignment]  # for code that changes the weights
    except NotTraceable as error:
        raise UserError(
            f"model.wall.rows={rows}: cannot find the receptive field of {name} for images of {size[0]} x {size[1]} "
            f"(model.input_size), {error}"
        ) from error
    return first, size[0] - 1


def gradient_by_row(net: nn.Module, x: Tensor) -> Tensor:
    """Return max |d logit / d pixel| over each row of images x [B, C, H, W]: [H]. Exactly 0 in a dead zone.

    "logit" is a random combination of all logits, so that none cancels another.
    """
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = net(x)
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(logits.shape, generator=generator, dtype=logits.dtype).to(logits.device)
        (gradient,) = torch.autograd.grad((logits * weights).sum(), x)
    return gradient.abs().amax((0, 1, 3))


class _Zeros:
    """The wall of a dense layer that reads a feature map [C, H, W]; a call sets the weights of the lower rows to 0."""

    def __init__(self, linear: nn.Linear, rows: int, *shape: int) -> None:
        self.linear, self.rows, self.shape = linear, rows, shape

    @torch.no_grad()
    def __call__(self) -> None:
        self.linear.weight.view(-1, *self.shape)[:, :, self.rows :] = 0


def _last_map(traced: Traced, seen: dict[fx.Node, Seen]) -> fx.Node:
    """Return the last node whose output is a map with several rows."""
    maps = [n for n in seen if len(traced.shapes[n] or ()) == 4 and len(seen[n]) > 1 and n.op != "placeholder"]
    if not maps:
        raise UserError(f"model.wall: {type(traced.net).__name__} has no feature map with several rows")
    return maps[-1]


def _head(traced: Traced, last: fx.Node) -> tuple[nn.Linear | None, list[fx.Node]]:
    """Return what reads the last feature map: a dense layer, or the nodes that pool over it."""
    readers = list(last.users)
    if readers and all(traced.kind(reader) in _GLOBAL for reader in readers):
        return None, readers
    values, node = math.prod(traced.shapes[last] or ()), last
    while len(node.users) == 1:
        (node,) = node.users
        module = traced.net.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Linear) and module.in_features == values:
            return module, []
        if traced.kind(node) not in {"flatten", "view", "reshape", *ELEMENTWISE} or values != math.prod(
            traced.shapes[node] or ()
        ):
            break  # the order of the values is no longer known
    raise UserError(
        f"model.wall: {type(traced.net).__name__} has neither a dense layer nor a global pooling after its last feature map, "
        f"but {', '.join(map(traced.words, readers)) or 'nothing'}"
    )


def _pool_live_rows(traced: Traced, poolings: list[fx.Node], rows: int) -> None:
    """Insert `[:, :, :rows]` before poolings, in the code of the modules that call them; all else stays."""
    for path in {pooling.meta["owner"] for pooling in poolings}:
        owner = traced.net.get_submodule(path)
        tracer = Tracer(shallow=True)  # children stay nodes, so that their hooks still run
        graph = tracer.trace(owner)
        vars(owner).update(tracer.made)
        own = [n for n in traced.graph.nodes if n.meta["owner"] == path and n.op in ("call_function", "call_method")]
        same = dict(zip(own, (n for n in graph.nodes if n.op in ("call_function", "call_method")), strict=True))
        modules = {n.target: n for n in graph.nodes if n.op == "call_module"}
        for pooling in (each for each in poolings if each.meta["owner"] == path):
            node = same.get(pooling) or modules[str(pooling.target).removeprefix(path).lstrip(".")]
            source = node.all_input_nodes[0]
            with graph.inserting_before(node):
                live = graph.call_function(operator.getitem, (source, (slice(None), slice(None), slice(rows))))
            node.replace_input_with(source, live)
        kind = type(owner)
        forward = type(fx.GraphModule(owner, graph)).forward
        owner.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _hides_nothing(traced: Traced, rows: int, seen: dict[fx.Node, Seen], last: fx.Node, mixing: list[fx.Node]) -> str:
    """Say why a wall would hide nothing, and what to change."""
    name, height, bottom = (
        type(traced.net).__name__,
        len(seen[last]),
        int(max(each[:, 1].max() for each in seen.values())),
    )
    what = (
        f"model.wall.rows={rows} hides nothing in {name}: the receptive field of row {rows - 1} of its last feature map"
    )
    hiding = int((seen[last][:, 1] < bottom).sum())
    if hiding:
        return f"{what} ({height} rows) reaches the bottom of the image; give {hiding} or less"
    blind = next(n for n in seen if len(seen[n]) > 1 and seen[n][0, 1] == bottom)
    rule = ", an operation without a rule" if blind in mixing else ""
    wider = ". A larger model.input_size may help" if traced.kind(blind) in ("conv2d", "maxpool2d", "avgpool2d") else ""
    return (
        f"{what} ({height} rows) covers the image, as do those of all rows from {traced.words(blind)} on{rule}{wider}"
    )
