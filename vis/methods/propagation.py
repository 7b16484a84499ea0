"""Propagate relevance through a network by rules, as the gradient of its traced graph (see `vis.methods.relevance`)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from vis.errors import NotApplicable
from vis.graph.interpreter import Affine, Walk
from vis.graph.trace import LAYERS, NotTraceable
from vis.methods.forward import Forward, output_targets
from vis.methods.rules import Modify, Part, Rule, negative, same
from vis.methods.stacked import Results, graph_nodes, has_one_input, node_name, restrides
from vis.methods.target import Target, Targets


class Slopes(torch.autograd.Function):
    """Return y, whose gradient reaches each z_k multiplied by slope_k."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, slopes: Sequence[Tensor], *zs: Tensor) -> Tensor:
        ctx.save_for_backward(*slopes)
        return y.view_as(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * slope for slope in ctx.saved_tensors)


def counted(a: Tensor, of_a: Modify = same) -> Tensor:
    """Return a', whose gradient reaches a multiplied by a'."""
    v = of_a(a.detach())
    return Slopes.apply(v, [v], a)


def shared(y: Tensor, zs: Sequence[Tensor], rule: Rule, signs: Tensor | None = None) -> Tensor:
    """Return y, whose relevance is shared by the z' of a rule's parts; signs: of the outputs that the rule counts, or y's."""
    y, slopes = y.detach(), []
    signs = y if signs is None else signs
    for z, part in zip((z.detach() for z in zs), rule.parts, strict=True):
        if rule.epsilon:
            z = torch.full_like(z, rule.epsilon).copysign_(z).add_(z)
        lost = z.abs() < torch.finfo(z.dtype).tiny
        if part.sign:
            lost |= signs.sign() != part.sign
        slopes.append((part.coefficient / z).masked_fill_(lost, 0))
    return Slopes.apply(y, slopes, *zs)


class Relevance(Walk):
    """Run a network so that its gradient is the relevance; its values stay the same.

    rule: of additions, averages and scalings, of one part; rule_of(name, "conv" or "dense", first): of a layer, first
    before any other.
    """

    def __init__(
        self, net: nn.Module, rule: Rule, rule_of: Callable[[str, str, bool], Rule], keep: Sequence[str] = ()
    ) -> None:
        super().__init__(net, keep)
        self.rule, self.rule_of = rule, rule_of
        self._behind: set[fx.Node] = set()  # a layer
        for node in self.graph.nodes:
            if any(s in self._behind or self.traced.kind(s) in LAYERS for s in node.all_input_nodes):
                self._behind.add(node)

    def affine(self, node: fx.Node, op: Affine, a: Tensor) -> Tensor:
        name = str(node.target) if node.op == "call_module" else node.name
        rule = self.rule_of(name, op.layer, node not in self._behind) if op.layer else self.rule
        if rule.parts[0].products == ((same, same),):
            z = op.f(counted(a), op.w, op.b if rule.bias else None)
            return shared(z if rule.bias or op.b is None else z + op.b, [z], rule)
        if op.w is None:
            raise self.no_rule(node, ": its weights are streamed, and only the rules zero and epsilon do without them")
        y, zs = op.f(a.detach(), op.w, op.b), [self._z(op, a, part, rule.bias) for part in rule.parts]
        signed = any(part.sign for part in rule.parts) and not rule.bias and op.b is not None
        return shared(y, zs, rule, signs=op.f(a.detach(), op.w, None) if signed else None)

    def _z(self, op: Affine, a: Tensor, part: Part, bias: bool) -> Tensor:
        """Return z' of a part."""
        total: Any = 0
        for of_a, of_w in part.products:
            if of_a is negative and a.detach().amin() >= 0:
                continue  # behind a ReLU there is nothing negative
            b = of_w(op.b) * of_a(torch.ones_like(op.b)) if bias and op.b is not None else None
            total = total + op.f(counted(a, of_a), of_w(cast(Tensor, op.w)), b)
        return total

    def add(self, node: fx.Node, a: Tensor, b: Tensor) -> Tensor:
        return self._sum(lambda made: made(a) + made(b))

    def average(self, node: fx.Node, f: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
        return self._sum(lambda made: f(made(a)))

    def _sum(self, sum_of: Callable[[Modify], Tensor]) -> Tensor:
        """Share a sum with weights 1 by the rule's first a'."""
        of_a = self.rule.parts[0].products[0][0]
        z = sum_of(partial(counted, of_a=of_a))
        return shared(z if of_a is same else sum_of(Tensor.detach), [z], self.rule)

    def activation(self, node: fx.Node, g: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
        return Slopes.apply(g(a.detach()), [a.new_ones(())], a)

    normalisation = activation

    def product(self, node: fx.Node, a: Tensor, b: Tensor) -> Tensor:
        a, b = torch.broadcast_tensors(a, b)
        half = a.new_full((), 0.5)
        return Slopes.apply(a.detach() * b.detach(), [half, half], a, b)


_LAYERS = {"ConvolutionBackward0", "AddmmBackward0"}
_MOVES = {"CloneBackward0", "ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"}
_CHAIN = {
    *_LAYERS, *_MOVES, "CatBackward0", "AccumulateGrad",
    "ReluBackward0", "MaxPool2DWithIndicesBackward0", "AdaptiveAvgPool2DBackward0",
}  # fmt: skip


def is_chain(output: Tensor) -> bool:
    """Return True if autograd's graph holds all denominators of LRP-epsilon: a ReLU follows each layer, and nothing else.

    The logits are the values of the last layer, or averages.
    """
    last: Any = output.grad_fn
    averages = 0
    while (node_name(last) in {*_MOVES, "MeanBackward1"} or restrides(last)) and last.next_functions[0][0] is not None:
        averages += node_name(last) == "MeanBackward1"
        last = last.next_functions[0][0]
    if averages + (node_name(last) in _LAYERS) != 1:  # one of both makes the logits
        return False
    for node in graph_nodes([last]):
        name, parents = node_name(node), [parent for parent, _ in node.next_functions]
        if (name in _LAYERS and not has_one_input(node)) or (name == "CatBackward0" and None in parents):
            return False
        behind = {node_name(parent) for parent in parents if parent is not None}
        if name not in _CHAIN or (not behind <= _LAYERS if name == "ReluBackward0" else behind & _LAYERS):
            return False
    return True


def by_epsilon(forward: Forward, chosen: Sequence[Target], epsilon: float) -> Tensor:
    """Return the relevance by LRP-epsilon of a chain: the image times a gradient with other slopes, from the shared forward pass.

    Between relevances R = a G of inputs a, layers pass G on as gradients do. Where z is shared out, G is multiplied by
    z / (z + epsilon sign z), and behind a ReLU with output y by y / (y + epsilon).
    """

    def slope(z: Tensor) -> Tensor:
        lost = z.abs() < torch.finfo(z.dtype).tiny
        return (z / torch.full_like(z, epsilon).copysign_(z).add_(z)).masked_fill_(lost, 0)

    def relu(walk: Any, node: Any, gradient: Tensor) -> Results:
        y = node._saved_result
        return (gradient * (y / (y + epsilon) if epsilon else y > 0).to(gradient.dtype),)

    def average(walk: Any, node: Any, gradient: Tensor) -> Results:
        z = torch.nn.functional.adaptive_avg_pool2d(node._saved_self, (gradient.shape[-2], gradient.shape[-1]))
        return walk.call(node, [gradient * slope(z)])

    kernels = {"ReluBackward0": relu, "AdaptiveAvgPool2DBackward0": average}
    seed = forward.seed(chosen) * slope(forward.logits.detach())
    gradient = forward.reverse(seed[None], kernels=kernels)
    return forward.images.detach() * (torch.zeros_like(forward.images) if gradient is None else gradient[0])


@contextmanager
def by_rules() -> Iterator[None]:
    """Raise NotApplicable for a network that cannot be traced or an operation without a rule."""
    try:
        yield
    except NotTraceable as error:
        raise NotApplicable(str(error)) from error


def logit_targets(forward: Forward, targets: Targets, method: str) -> list[Target]:
    """Fix the unit of each target. Raises NotApplicable for anything but a logit."""
    chosen = output_targets(forward, targets, method)
    if any(target.output != "logit" for target in chosen):
        raise NotApplicable(f"{method} explains logits, not probabilities")
    return chosen


def checked(outputs: Tensor, forward: Forward) -> Tensor:
    """Return outputs [B, K], or those of the first images, that equal the network's.

    Raises NotApplicable if the traced graph computes something else.
    """
    logits = forward.logits.detach()[: len(outputs)]
    # By the largest of an image, not the norm: of many classes, one may be far off. Logits may all be 0, up to rounding.
    tolerance = 1e-2 * logits.abs().amax(1) + torch.finfo(logits.dtype).eps
    if outputs.shape != logits.shape or ((outputs.detach() - logits).abs().amax(1) > tolerance).any():
        raise NotApplicable(
            f"the traced graph of {type(forward.model).__name__} gives other outputs than the network: a hook, or a value "
            "that is read after an operation in place, changes them"
        )
    return outputs
