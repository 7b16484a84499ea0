"""All gradients that share a forward pass in one reverse pass, stacked in rows, in bfloat16 where the processor has it.

Autograd would run a reverse pass for each logit and rule. Here one walk over its graph carries the gradients of all of them,
[rows, B, ...]; the rows are sorted by rule, so that a rule is a slice. The forward pass is autograd's own, in float32, so it
decides exactly which ReLUs are active and which places a max-pooling takes. A node without a kernel below is called row by
row, in the precision of the forward pass: a kernel is only speed. LRP-epsilon and DeepLIFT are other slopes at the same nodes:
they bring kernels of their own.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def stacked_gradients(
    output: Tensor,
    seeds: Tensor,
    images: Tensor,
    rules: Sequence[tuple[bool, bool]],
    dtype: torch.dtype,
    kernels: "Mapping[str, Kernel] | None" = None,
) -> Tensor | None:
    """Return the gradients of a network's output with respect to the images, [rows, B, C, H, W], in the images' type.

    seeds [rows, *output.shape]: d score / d output of each row. rules: (rectify_gradient, mask_by_input) of each row, sorted.
    dtype: of convolutions and of the gradients between them. kernels: used in place of those below, by the node's name.
    None, for autograd to do it, if a modified rule meets a ReLU in another spelling, to which no rule can be applied here, or if
    a node is somebody's autograd.Function, which cannot be called.
    """
    walk = _Walk(output.grad_fn, rules, dtype, {**_KERNELS, **(kernels or {})})
    modified = any(rule != (False, True) for rule in rules)
    found: Tensor | None = None
    walk.add(output.grad_fn, output.output_nr, seeds)
    while walk.queue:
        node, gradients = walk.pop()
        name = node_name(node)
        if name == "AccumulateGrad":
            if node.variable is images:
                found = gradients[0]
            continue
        kernel = walk.kernels.get(name)
        if kernel is None and (not callable(node) or (modified and name.startswith(_OTHER_RELUS))):
            return None
        results = (
            kernel(walk, node, gradients[0]) if kernel and gradients[0] is not None else walk.call(node, gradients)
        )
        for (parent, place), result in zip(node.next_functions, results, strict=False):
            if parent is not None and result is not None:
                walk.add(parent, place, result)
    return None if found is None else found.to(images.dtype)


def node_name(node: Any) -> str:
    """Return the name of a node of autograd's graph, such as ReluBackward0."""
    return node.name().rpartition("::")[2]


def restrides(node: Any) -> bool:
    """Return True for the node that an average over all positions adds in channels_last; it changes no value."""
    parent = node.next_functions[0][0] if node_name(node) == "AsStridedBackward1" else None
    return (
        node_name(parent) == "MeanBackward1" and tuple(node._input_metadata[0].shape[-2:]) == (1, 1)
        if parent
        else False
    )


def has_one_input(node: Any) -> bool:
    """Return True if the image makes one input of a node, and not its weights as well."""
    return sum(parent is not None for parent, _ in node.next_functions) == 1


def graph_nodes(ends: Sequence[Any]) -> Iterator[Any]:
    """Yield these nodes of autograd's graph and all behind them."""
    stack, seen = list(ends), set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(parent for parent, _ in node.next_functions)


_OTHER_RELUS = ("Clamp", "Hardtanh", "Threshold")
Results = Sequence[Tensor | None]
Kernel = Callable[["_Walk", Any, Tensor], Results]


class _Walk:
    """Gradients [rows, B, ...] that wait at nodes, which are taken in the order of a reverse pass."""

    def __init__(
        self, start: Any, rules: Sequence[tuple[bool, bool]], dtype: torch.dtype, kernels: "Mapping[str, Kernel]"
    ) -> None:
        self.rules, self.dtype, self.kernels = rules, dtype, kernels
        self.readers = Counter(parent for node in graph_nodes([start]) for parent, _ in node.next_functions)
        self.ruled: set[Any] = set()  # ReLUs whose rule was applied behind the max-pooling that reads them
        self.queue: list[tuple[int, int, Any]] = []
        self.count = count()  # breaks ties in the queue
        self.waiting: dict[Any, dict[int, Tensor]] = {}
        self.scales: dict[Any, Tensor] = {}  # of the gradients that wait at a convolution, [C]

    def add(self, node: Any, place: int, gradient: Tensor) -> None:
        """Add a gradient of an output of a node; sum it over the dimensions in which the output was broadcast."""
        shape = tuple(node._input_metadata[place].shape)
        if tuple(gradient.shape[1:]) != shape:
            gradient = torch.stack([row.sum_to_size(shape) for row in gradient])
        if node not in self.waiting:
            self.waiting[node] = {}
            order = node._sequence_nr() if node_name(node) != "AccumulateGrad" else -1
            heapq.heappush(self.queue, (-order, next(self.count), node))
        held = self.waiting[node].get(place)
        if held is not None and node in self.scales:  # not the batch norm's gradient alone
            held = _scaled(held, self.scales.pop(node), 2)
        self.waiting[node][place] = gradient if held is None else held + gradient

    def pop(self) -> tuple[Any, list[Tensor | None]]:
        """Return the next node with the gradients of its outputs."""
        _, _, node = heapq.heappop(self.queue)
        held = self.waiting.pop(node)
        return node, [held.get(place) for place in range(max(held) + 1)]

    def call(self, node: Any, gradients: Results) -> Results:
        """Let a node compute row by row, in the precision of the forward pass."""
        expected = node._input_metadata
        rows = []
        for row in range(len(self.rules)):
            each = [None if g is None else g[row].to(meta.dtype) for g, meta in zip(gradients, expected, strict=False)]
            out = node(*each, *[None] * (len(expected) - len(each)))
            rows.append(out if isinstance(out, tuple) else (out,))
        return [None if parts[0] is None else torch.stack(parts) for parts in zip(*rows, strict=True)]


def _convolution(walk: _Walk, node: Any, gradient: Tensor) -> Results:
    weight, image, scale = node._saved_weight, node._saved_input, walk.scales.pop(node, None)
    if node.next_functions[1][0] is not None:  # the image makes the weight
        return walk.call(node, [gradient])
    if scale is not None:
        weight = _scaled(weight, scale, 0)
    rows = gradient.to(walk.dtype).flatten(0, 1)
    if len(rows) != len(image) or image.dtype != walk.dtype:
        last = rows.ndim == 4 and rows.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        image = torch.empty(  # read for its shape and layout alone
            len(rows), *image.shape[1:], dtype=walk.dtype, device=rows.device, memory_format=layout
        )
    (result, _, _) = torch.ops.aten.convolution_backward(
        rows, image, weight.to(walk.dtype), None,
        node._saved_stride, node._saved_padding, node._saved_dilation, node._saved_transposed,
        node._saved_output_padding, node._saved_groups, [True, False, False],
    )  # fmt: skip
    return (result.unflatten(0, gradient.shape[:2]),)


def _scaled(values: Tensor, scale: Tensor, dim: int) -> Tensor:
    """Multiply values by a scale [C] of dimension `dim`."""
    return values * scale.to(values.dtype).view(-1, *[1] * (values.ndim - dim - 1))


def _where(mask: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Callable[..., Tensor]]:
    """Return a mask and values, and the operation that keeps the values where the mask is True and clears the others.

    In bfloat16 it is an `and` of their 16 bits, on which processors are faster than on products of bfloat16; a value is
    negative if its bits are, as an integer.
    """
    if values.dtype != torch.bfloat16:
        return mask.to(values.dtype), values, torch.mul
    return -mask.to(torch.int16), values.view(torch.int16), torch.bitwise_and


def _relu(walk: _Walk, node: Any, gradient: Tensor) -> Results:
    return (gradient if node in walk.ruled else _ruled(walk, node._saved_result, gradient),)


def _ruled(walk: _Walk, activation: Tensor, gradient: Tensor) -> Tensor:
    """Apply each row's rule to its gradient behind a ReLU, whose output is given, [B, ...]."""
    active, values, keep = _where(activation.bool(), gradient)  # not negative, so this is > 0, in a third of the time
    out = torch.empty_like(values)
    begin = 0
    for rule in dict.fromkeys(walk.rules):
        rectify, mask = rule
        rows = slice(begin, begin := begin + walk.rules.count(rule))
        if mask:
            keep(values[rows], active, out=out[rows])
        if rectify:
            torch.clamp(out[rows] if mask else values[rows], min=0, out=out[rows])
        elif not mask:
            out[rows] = values[rows]
    return out.view(gradient.dtype)


def max_pool(walk: _Walk, node: Any, gradient: Tensor, places: Tensor | None = None) -> Results:
    """Place gradients at the maxima: by four masks for windows of 2x2 that do not overlap, otherwise by torch.

    places: in the flattened map, those of the forward pass by default.
    """
    image, places = node._saved_self, node._saved_result1 if places is None else places
    kernel = node._saved_kernel_size
    geometry = kernel, node._saved_stride or kernel, node._saved_padding, node._saved_dilation
    if [tuple(each) for each in geometry] != [(2, 2), (2, 2), (0, 0), (1, 1)] or node._saved_ceil_mode:
        empty = gradient.new_empty(1).expand(image.shape)
        each = [torch.ops.aten.max_pool2d_with_indices_backward(g, empty, *geometry, node._saved_ceil_mode, places)
                for g in gradient]  # fmt: skip
        return (torch.stack(each),)
    relu = node.next_functions[0][0]
    if walk.kernels.get(node_name(relu)) is _relu and walk.readers[relu] == 1:  # a quarter of its values
        gradient = _ruled(walk, F.max_pool2d(image, 2), gradient)
        walk.ruled.add(relu)
    height, width = image.shape[2:]
    h, w = 2 * gradient.shape[3], 2 * gradient.shape[4]
    corners = torch.arange(0, h, 2, device=image.device)[:, None] * width + torch.arange(0, w, 2, device=image.device)
    within = (places - corners).int()
    flat = torch.empty(
        len(gradient) * len(image), *image.shape[1:],
        dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last,
    )  # fmt: skip
    out = flat.unflatten(0, gradient.shape[:2])
    if height % 2 or width % 2:
        out.zero_()
    for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
        here, values, keep = _where(within == y * width + x, gradient)
        keep(values, here, out=out.view(values.dtype)[..., y:h:2, x:w:2])
    return (out,)


def _batch_norm(walk: _Walk, node: Any, gradient: Tensor) -> Results:
    """Scale the gradient, behind a convolution by its weights."""
    layer, *parameters = [parent for parent, _ in node.next_functions]
    if node._saved_training or any(parameters):  # which the image makes
        return walk.call(node, [gradient])
    variance, weight = node._saved_running_var, node._saved_weight
    scale = (variance + node._saved_eps).rsqrt() * (1 if weight is None else weight)
    if (
        node_name(layer) == "ConvolutionBackward0"
        and not layer._saved_transposed
        and layer.next_functions[1][0] is None
        and layer not in walk.waiting
    ):
        walk.scales[layer] = scale
        return (gradient,)
    return (_scaled(gradient, scale, 2),)


def _dense(walk: _Walk, node: Any, gradient: Tensor) -> Results:
    if node.next_functions[2][0] is not None or node._saved_alpha != 1:
        return walk.call(node, [gradient])
    weight = node._saved_mat2
    return None, (gradient.to(weight.dtype).flatten(0, 1) @ weight.T).unflatten(0, gradient.shape[:2])


def _through(walk: _Walk, node: Any, gradient: Tensor) -> Results:
    return gradient, gradient


def _add(walk: _Walk, node: Any, gradient: Tensor) -> Results:
    return (gradient, gradient) if node._saved_alpha == 1 else walk.call(node, [gradient])


def _cat(walk: _Walk, node: Any, gradient: Tensor) -> Results:
    if any(parent is None for parent, _ in node.next_functions):
        return walk.call(node, [gradient])
    dim = (node._saved_dim - (node._saved_dim >> 63 << 64)) % (
        gradient.ndim - 1
    )  # a negative one is saved without its sign
    sizes = [parent._input_metadata[place].shape[dim] for parent, place in node.next_functions]
    return gradient.split(sizes, dim + 1)


_KERNELS: dict[str, Kernel] = {
    "ConvolutionBackward0": _convolution,
    "ReluBackward0": _relu,
    "MaxPool2DWithIndicesBackward0": max_pool,
    "NativeBatchNormBackward0": _batch_norm,
    "AddmmBackward0": _dense,
    "AddBackward0": _add,
    "CatBackward0": _cat,
    "CloneBackward0": _through,
}
