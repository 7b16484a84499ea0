"""DeepLIFT (Shrikumar et al. 2017; ayyar2021, section 5.2): multipliers between an image and its reference.

With y0 a neuron's value for the reference image and dy = y - y0, multipliers m obey a chain rule (Eq. 21), as gradients do:
they are the gradient of a network that is linear in dy. Layers, additions and averages are linear already (m = w); an
activation z = g(y) has one slope

    m = dz / dy                                                  Rescale, Eq. 19-22

or, behind a layer or an addition, one slope for the positive and one for the negative terms w_i dx_i of dy = dy+ + dy-.
Terms with dx_i = 0 have no sign and count half in each:

    dz+ = 1/2 (g(y0 + dy+) - g(y0)) + 1/2 (g(y0 + dy+ + dy-) - g(y0 + dy-))      m+ = dz+ / dy+      RevealCancel, Eq. 23-25

and dz-, m- likewise. In a max-pooling the largest input gets all: the image's largest where the maximum has grown, the
reference's where it has not (the paper has no rule). Overlapping windows add up. The relevance R = m dx then sums to the
difference of the logits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from vis.graph.interpreter import Affine, Walk
from vis.methods.base import Method
from vis.methods.baseline import Baseline, baseline_images, in_words, several
from vis.methods.flow import IMAGE, LOGITS, Flow
from vis.methods.forward import Forward, NotApplicable, output_targets
from vis.methods.propagation import Slopes, by_rules, checked, logit_targets
from vis.methods.stacked import Results, graph_nodes, has_one_input, max_pool, node_name, restrides
from vis.methods.target import Target, Targets, score


class Reference(Walk):
    """Run a network on reference images and keep the inputs of layers, additions, activations and max-poolings."""

    def __init__(self, net: nn.Module, keep: Sequence[str] = ()) -> None:
        super().__init__(net, keep)
        self.kept: dict[fx.Node, Tensor] = {}

    def affine(self, node: fx.Node, op: Affine, a: Tensor) -> Tensor:
        if op.layer:
            self.kept[node] = a
        return super().affine(node, op, a)

    def add(self, node: fx.Node, a: Tensor, b: Tensor) -> Tensor:
        self.kept[node] = torch.stack(torch.broadcast_tensors(a, b))
        return super().add(node, a, b)

    def activation(self, node: fx.Node, g: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
        self.kept[node] = a
        return super().activation(node, g, a)

    def max_pool(self, node: fx.Node, pool: Callable[..., Any], a: Tensor) -> Tensor:
        self.kept[node] = a
        return super().max_pool(node, pool, a)


class Rescale(Walk):
    """Run a network so that its gradient is the multipliers of Rescale; its values stay the same."""

    def __init__(self, net: nn.Module, reference: Reference, keep: Sequence[str] = ()) -> None:
        super().__init__(net, keep)
        self.kept = reference.kept

    def activation(self, node: fx.Node, g: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
        y, y0 = a.detach(), self.kept[node]
        z = g(y)
        return Slopes.apply(z, [_slope(g, y, y0, z)], a)

    def max_pool(self, node: fx.Node, pool: Callable[..., Any], a: Tensor) -> Tensor:
        y, y0 = a.detach(), self.kept[node]
        (z, place), (z0, place0) = pool(y, return_indices=True), pool(y0, return_indices=True)
        winner, slope = _winner(y, y0, z, z0, place, place0)
        return Slopes.apply(z, [slope], _pick(a, winner))


_WEIGHTED = {"ConvolutionBackward0", "AddmmBackward0", "NativeBatchNormBackward0"}
_LINEAR = {
    *_WEIGHTED, "AddBackward0", "MeanBackward1",
    "AdaptiveAvgPool2DBackward0", "AvgPool2DBackward0", "CatBackward0", "CloneBackward0", "ViewBackward0", "UnsafeViewBackward0",
    "ReshapeAliasBackward0", "AccumulateGrad",
}  # fmt: skip
_RELU, _POOL = "ReluBackward0", "MaxPool2DWithIndicesBackward0"


def rescaled(forward: Forward, reference: Forward, chosen: list[Target]) -> Tensor | None:
    """Return the multipliers of Rescale from the graphs of two forward passes, which keep the inputs of ReLUs.

    None if the network has other operations than linear ones, ReLUs and max-poolings in 2D.
    """
    kinks: list[list[Any]] = []  # nodes that are not linear, of each pass in order
    for each in (forward, reference):
        nodes = list(graph_nodes([each.logits.grad_fn]))
        if not all(node_name(node) in {*_LINEAR, _RELU, _POOL} or restrides(node) for node in nodes):
            return None
        if any(getattr(node, "_saved_training", False) for node in nodes):  # a batch norm by the images' own statistics
            return None
        if any(node_name(node) in _WEIGHTED and not has_one_input(node) for node in nodes):
            return None
        kinks.append(sorted((n for n in nodes if node_name(n) in (_RELU, _POOL)), key=lambda node: node._sequence_nr()))
        if len(each.relu_inputs) != sum(node_name(node) == _RELU for node in kinks[-1]):
            return None
    if [node_name(node) for node in kinks[0]] != [node_name(node) for node in kinks[1]]:
        return None
    other = dict(zip(*kinks, strict=True))
    sizes = zip(forward.relu_inputs, reference.relu_inputs, strict=True)
    inputs = dict(zip((node for node in kinks[0] if node_name(node) == _RELU), sizes, strict=True))

    def relu(walk: Any, node: Any, gradient: Tensor) -> Results:
        size, size0 = inputs[node]  # (z - z0) / (y - y0), also in the limit y = y0
        slope = (node._saved_result + other[node]._saved_result).div_(
            (size + size0).clamp_(min=torch.finfo(size.dtype).tiny)
        )
        return (gradient * slope.to(gradient.dtype),)

    def pool(walk: Any, node: Any, gradient: Tensor) -> Results:
        geometry = node._saved_kernel_size, node._saved_stride, node._saved_padding, node._saved_dilation
        (y, place), (y0, place0) = ((n._saved_self, n._saved_result1) for n in (node, other[node]))
        z, z0 = (F.max_pool2d(each, *geometry, node._saved_ceil_mode) for each in (y, y0))
        winner, slope = _winner(y, y0, z, z0, place, place0)
        return max_pool(walk, node, gradient * slope.to(gradient.dtype), winner)

    found = forward.reverse(forward.seed(chosen)[None], kernels={_RELU: relu, _POOL: pool})
    return None if found is None else found[0]


class RevealCancel(Rescale):
    """The same for RevealCancel: activations treat the positive and negative terms of their inputs separately."""

    def __init__(self, net: nn.Module, reference: Reference, keep: Sequence[str] = ()) -> None:
        super().__init__(net, reference, keep)
        self.terms: dict[fx.Node, tuple[Tensor, Tensor]] = {}  # dy+ and dy-
        self._new: tuple[Tensor, Tensor] | None = None

    def run_node(self, n: fx.Node) -> Any:
        self._new = None
        result = super().run_node(n)
        if self._new is not None:
            self.terms[n] = self._new
        return result

    def affine(self, node: fx.Node, op: Affine, a: Tensor) -> Tensor:
        if not op.layer:
            return super().affine(node, op, a)
        if op.w is None:
            raise self.no_rule(node, ": its weights are streamed, and the rule rescale alone does without them")
        x0 = self.kept[node]
        dx = torch.cat(_by_sign(a - x0))
        (up, cross_down), (cross_up, down) = (
            op.f(dx, w, None).chunk(2) for w in (op.w.clamp(min=0), op.w.clamp(max=0))
        )
        return self._sum(up + down, cross_up + cross_down, op.f(x0, op.w, op.b))

    def add(self, node: fx.Node, a: Tensor, b: Tensor) -> Tensor:
        a0, b0 = self.kept[node]
        (up_a, down_a), (up_b, down_b) = _by_sign(a - a0), _by_sign(b - b0)
        return self._sum(up_a + up_b, down_a + down_b, a0 + b0)

    def _sum(self, up: Tensor, down: Tensor, y0: Tensor) -> Tensor:
        self._new = up, down
        return y0 + up + down

    def activation(self, node: fx.Node, g: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
        source = node.all_input_nodes[0]
        while self.traced.kind(source) in ("identity", "dropout", "dropout1d", "dropout2d", "dropout3d", "clone"):
            source = source.all_input_nodes[0]
        terms = self.terms.get(source)
        if terms is None:  # a single one: Rescale
            return super().activation(node, g, a)
        (up, down), y0 = (each.detach() for each in terms), self.kept[node]
        z, z0, high, low = g(a.detach()), g(y0), g(y0 + up), g(y0 + down)
        up_slope = torch.where(up == 0, 0, (high - z0 + z - low) / (2 * up))
        down_slope = torch.where(down == 0, 0, (low - z0 + z - high) / (2 * down))
        return Slopes.apply(z, [up_slope, down_slope], *terms)


def _by_sign(dx: Tensor) -> tuple[Tensor, Tensor]:
    """Split differences, and their gradient, into positive and negative parts; where dx = 0, each gets half."""
    up = dx * (dx.detach().sign() + 1) / 2
    return up, dx - up


def _slope(g: Callable[[Tensor], Tensor], y: Tensor, y0: Tensor, z: Tensor) -> Tensor:
    """Return dz / dy for z = g(y); the derivative, its limit, where y and y0 are too close."""
    dy = y - y0
    slope = (z - g(y0)) / dy
    near = dy.abs() <= torch.finfo(y.dtype).eps ** 0.5 * y.abs()
    if near.any():
        leaf = y.requires_grad_()
        (derivative,) = torch.autograd.grad(g(leaf).sum(), leaf)
        slope = torch.where(near, derivative, slope)
    return slope


def _winner(y: Tensor, y0: Tensor, z: Tensor, z0: Tensor, place: Tensor, place0: Tensor) -> tuple[Tensor, Tensor]:
    """Return the place that gets all in each window of a max-pooling z of y, and its slope, in [0, 1]."""
    winner = torch.where(z >= z0, place, place0)
    dy = _pick(y - y0, winner)
    return winner, torch.where(dy == 0, 1, (z - z0) / dy)


def _pick(a: Tensor, place: Tensor) -> Tensor:
    """Gather the values at places in flat maps."""
    if a.ndim == 4 and not a.is_contiguous():  # channels_last: no copy
        rows, places = (each.permute(0, 2, 3, 1).flatten(1, 2) for each in (a, place))
        return rows.gather(1, places).unflatten(1, place.shape[2:]).permute(0, 3, 1, 2)
    return a.flatten(2).gather(2, place.flatten(2)).view_as(place)


class DeepLIFT(Method):
    """DeepLIFT (Shrikumar et al. 2017; ayyar2021, section 5.2) of a logit: its change from a reference x0, by pixels.

        R = m * (x - x0)            m = dz / dy at an activation z = g(y)               rescale, ayyar2021, Eq. 19-22
        m+ = dz+ / dy+, m- = dz- / dy-        reveal_cancel, Eq. 23-25

    with differences d from the reference, multipliers m that obey the chain rule (Eq. 21), and m = w in layers. Maps are
    signed, [B, C, H, W], in units of the logit.
    rule: rescale or reveal_cancel. baseline: the reference image, black, gray, white, zero, mean, blur, noise or a tensor
    (`vis.methods.baseline`); of several, [black,white], R is the mean. seed: of noise.

    Axiom: summation-to-delta, the relevance sums to S_c(x) - S_c(x0) (Eq. 19), the mean over the references.
    Raises NotApplicable for operations without a rule, for anything but a logit of the network, and for black pixels
    without `preprocess`.
    Costs 2 passes for each reference with rescale (3 with other activations than ReLUs) and 10 with reveal_cancel, beside the
    shared forward pass.
    """

    title = "DeepLIFT"
    axiom = "summation-to-delta"
    relu_inputs = True

    def __init__(self, rule: str = "rescale", baseline: Baseline | Sequence[Baseline] = "black", seed: int = 0) -> None:
        if rule not in ("rescale", "reveal_cancel"):
            raise ValueError(f"rule is rescale or reveal_cancel, not {rule!r}")
        several(baseline)
        self.rule, self.baseline, self.seed = rule, baseline, seed

    @property
    def words(self) -> str:
        return f"against {in_words(self.baseline)}"

    @property
    def mixed_error(self) -> float | None:
        return 0.01 if self.rule == "rescale" else None

    def passes(self, model: nn.Module, image: Tensor) -> float:
        return (2 if self.rule == "rescale" else 10) * len(several(self.baseline))

    @by_rules()
    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        chosen = logit_targets(forward, targets, self.title)
        return torch.stack([self._explain(forward, chosen, x0) for x0 in self._references(forward)]).mean(0)

    def _explain(self, forward: Forward, chosen: list[Target], x0: Tensor) -> Tensor:
        if self.rule == "rescale" and forward.relu_inputs:
            x = forward.images.detach()
            with Forward(forward.model, x0.expand_as(x), relu_inputs=True) as at_reference:
                multipliers = rescaled(forward, at_reference, chosen)
                change = forward.scores(chosen) - at_reference.scores(chosen)
            if multipliers is not None:
                R = multipliers * (x - x0)
                missing = (change.detach() - R.flatten(1).sum(1)).abs()
                rounding = 1e3 * torch.finfo(R.dtype).eps * forward.scores(chosen).detach().abs()
                if (missing <= 0.01 * R.flatten(1).abs().sum(1) + rounding).all():
                    return R  # else autograd's graph misses a part (detach)
        flow = self._flow(forward, x0)
        (m,) = torch.autograd.grad(score(flow.values[LOGITS], chosen).sum(), flow.values[IMAGE])
        return m * flow.activations[IMAGE]

    @by_rules()
    def flow(self, forward: Forward, layers: Sequence[str] = ()) -> Flow:
        references = self._references(forward)
        if len(references) > 1:
            raise NotApplicable(f"{self.title}: relevance between layers is defined for one baseline, not several")
        return self._flow(forward, references[0], layers)

    def _flow(self, forward: Forward, x0: Tensor, layers: Sequence[str] = ()) -> Flow:
        x = forward.images.detach().requires_grad_()
        reference = Reference(forward.model, layers)
        with torch.no_grad():
            logits0 = reference.run(x0)
        linear = (Rescale if self.rule == "rescale" else RevealCancel)(forward.model, reference, layers)
        values = {LOGITS: checked(linear.run(x), forward), **linear.outputs, IMAGE: x}
        at_reference = {LOGITS: logits0, **reference.outputs, IMAGE: x0}
        return Flow(values, {k: v.detach() - at_reference[k] for k, v in values.items()}, multipliers=True)

    def _references(self, forward: Forward) -> list[Tensor]:
        return baseline_images(forward.images.detach(), self.baseline, forward.preprocess, self.seed)

    def total(self, forward: Forward, targets: Targets) -> Tensor:
        chosen = output_targets(forward, targets, "completeness")
        with torch.no_grad():
            outputs = [forward.model(x0.clone()).expand_as(forward.logits) for x0 in self._references(forward)]
            return score(forward.logits, chosen) - score(torch.stack(outputs).mean(0), chosen)
