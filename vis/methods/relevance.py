"""Layer-wise relevance propagation and deep Taylor decomposition (ayyar2021, sections 5.1 and 5.1.1).

Relevance flows from a logit S_c back to the pixels. A layer z_j = sum_i a_i w_ij + b_j shares its outputs' relevance among
its inputs, by a rule (Eq. 12-15):

    R_i = sum_j sum_k  coefficient_k * (a'_ik w'_ijk) / z'_jk * R_j        z'_k = sum_i a'_ik w'_ijk (+ b'_k)

A rule is data: its parts k, each with what makes a' of a and w' of w, and the epsilon of its denominators; where a
denominator is 0 the relevance is lost. All rules are proportional to R_j, so that with R_j = y_j c_j the factors c are a
gradient, that of a network which is linear in z':

    c_i = sum_j sum_k  coefficient_k * w'_ijk * (y_j / z'_jk) * c_j        R = x * c at the pixels

So autograd carries them through every branch, and LRP-0 is the gradient times the input where biases are kept.

Additions and averages are layers with weights 1: a rule's first part shares their relevance. A ReLU passes it on, a
max-pooling to the largest value. A batch norm is folded into the layer before it, or scales as a layer of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from vis.graph import LAYERS, NotTraceable
from vis.methods.base import Method
from vis.methods.cam import output_targets
from vis.methods.forward import Forward, NotApplicable
from vis.target import Target, Targets, score
from vis.walk import Affine, Walk

Modify = Callable[[Tensor], Tensor]


class Part(NamedTuple):
    """A share `coefficient` of the relevance, by contributions a' w'; products: (makes a' of a, makes w' of w and b)."""

    coefficient: float
    products: tuple[tuple[Modify, Modify], ...]


@dataclass(frozen=True)
class Rule:
    """See above. bias: counts in the denominators; it is the weight of a neuron that is always 1."""

    parts: tuple[Part, ...]
    epsilon: float = 0.0
    bias: bool = True


def same(v: Tensor) -> Tensor:
    return v


def positive(v: Tensor) -> Tensor:
    return v.clamp(min=0)


def negative(v: Tensor) -> Tensor:
    return v.clamp(max=0)


def epsilon_rule(epsilon: float, bias: bool = True) -> Rule:
    """LRP-epsilon, Eq. 13 with epsilon * sign(z); LRP-0, Eq. 12, for epsilon = 0."""
    return Rule((Part(1, ((same, same),)),), epsilon, bias)


def gamma_rule(gamma: float, bias: bool = True) -> Rule:
    """LRP-gamma, Eq. 14."""
    return Rule((Part(1, ((same, lambda w: w + gamma * w.clamp(min=0)),)),), bias=bias)


def alpha_beta_rule(alpha: float, bias: bool = True) -> Rule:
    """LRP-alpha-beta, Eq. 15, beta = alpha - 1."""
    parts = [Part(alpha, ((positive, positive), (negative, negative)))]
    if alpha != 1:
        parts.append(Part(1 - alpha, ((positive, negative), (negative, positive))))
    return Rule(tuple(parts), bias=bias)


def zplus_rule() -> Rule:
    """z+ of deep Taylor decomposition (Montavon et al. 2017): positive contributions, no bias, as LRP-alpha1beta0 without it."""
    return alpha_beta_rule(1, bias=False)


def box_rule(low: Tensor | None, high: Tensor | None) -> Rule:
    """z^B of deep Taylor decomposition (Montavon et al. 2017), for pixels between low and high; the bias cancels.

    None: the smallest and the largest value of each channel of the image.
    """

    def at(bound: Tensor | None, extreme: Callable[..., Tensor], a: Tensor) -> Tensor:
        values = extreme(a.detach(), (2, 3), keepdim=True) if bound is None else bound
        return -values.expand_as(a).contiguous()

    minus_low, minus_high = partial(at, low, torch.amin), partial(at, high, torch.amax)
    return Rule((Part(1, ((same, same), (minus_low, positive), (minus_high, negative))),), bias=False)


def flat_rule() -> Rule:
    """Every input has the same share (Lapuschkin et al. 2019)."""
    return Rule((Part(1, ((torch.ones_like, torch.ones_like),)),), bias=False)


class Slopes(torch.autograd.Function):
    """y, whose gradient reaches each z_k times slope_k."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, slopes: Sequence[Tensor], *zs: Tensor) -> Tensor:
        ctx.save_for_backward(*slopes)
        return y.view_as(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * slope for slope in ctx.saved_tensors)


def shared(y: Tensor, zs: Sequence[Tensor], coefficients: Sequence[float] = (1,), epsilon: float = 0.0) -> Tensor:
    """y, whose relevance the z_k share: slopes coefficient_k * y / (z_k + epsilon sign(z_k)), 0 where that divides by 0."""
    y, slopes = y.detach(), []
    for z, coefficient in zip((z.detach() for z in zs), coefficients, strict=True):
        if epsilon:
            z = torch.full_like(z, epsilon).copysign_(z).add_(z)
        slope = torch.where(z == 0, 0, y / z)
        slopes.append(slope if coefficient == 1 else coefficient * slope)
    return Slopes.apply(y, slopes, *zs)


class Relevance(Walk):
    """The network whose gradient is the factors c; its values are the network's own.

    rule: of additions, averages and scalings; rule_of(name, "conv" or "dense", first): of a layer, first before any other.
    anchors: the inputs a' of the first layers that do not come from the image.
    """

    def __init__(self, net: nn.Module, rule: Rule, rule_of: Callable[[str, str, bool], Rule]) -> None:
        super().__init__(net)
        self.rule = replace(rule, parts=(rule.parts[0]._replace(coefficient=1),))
        self.rule_of = rule_of
        self.anchors: list[Tensor] = []
        self._behind: set[fx.Node] = set()  # a layer
        for node in self.graph.nodes:
            if any(s in self._behind or self.traced.kind(s) in LAYERS for s in node.all_input_nodes):
                self._behind.add(node)

    def affine(self, node: fx.Node, op: Affine, a: Tensor) -> Tensor:
        name = str(node.target) if node.op == "call_module" else node.name
        rule = self.rule_of(name, op.layer, node not in self._behind) if op.layer else self.rule
        plain = rule.parts[0].products == ((same, same),)
        if plain and (rule.bias or op.b is None):
            z = op.f(a, op.w, op.b)
            return shared(z, [z], epsilon=rule.epsilon) if rule.epsilon else z
        if op.w is None:
            raise self.no_rule(node, ": its weights are streamed, and only the rules zero and epsilon do without them")
        if plain:
            z = op.f(a, op.w, None)
            return shared(z + cast(Tensor, op.b), [z], epsilon=rule.epsilon)
        zs = [self._z(op, a, part, rule.bias) for part in rule.parts]
        coefficients = [part.coefficient for part in rule.parts]
        return shared(op.f(a.detach(), op.w, op.b), zs, coefficients, rule.epsilon)

    def _z(self, op: Affine, a: Tensor, part: Part, bias: bool) -> Tensor:
        """z' of a part."""
        total: Any = 0
        for of_a, of_w in part.products:
            if of_a is negative and a.detach().amin() >= 0:
                continue  # behind a ReLU there is nothing negative
            v = of_a(a)
            if not v.requires_grad:
                self.anchors.append(v.requires_grad_())
            b = of_w(op.b) * of_a(torch.ones_like(op.b)) if bias and op.b is not None else None
            total = total + op.f(v, of_w(cast(Tensor, op.w)), b)
        return total

    def add(self, node: fx.Node, a: Tensor, b: Tensor) -> Tensor:
        return self._sum(lambda of_a: of_a(a) + of_a(b))

    def average(self, node: fx.Node, f: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
        return self._sum(lambda of_a: f(of_a(a)))

    def _sum(self, sum_of: Callable[[Modify], Tensor]) -> Tensor:
        """Where the weights are 1, what counts is the rule's first a'."""
        of_a = self.rule.parts[0].products[0][0]
        z = sum_of(of_a)
        if of_a is same and not self.rule.epsilon:
            return z
        return shared(z if of_a is same else sum_of(Tensor.detach), [z], epsilon=self.rule.epsilon)

    def activation(self, node: fx.Node, g: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
        if g is F.relu:
            return g(a)
        probe = g(a.new_tensor([-9.0, -0.5, 0.0, 0.5]))
        if probe.tolist() != [0, 0, 0, 0.5]:
            raise self.no_rule(node, ": LRP is defined for rectifier networks")
        return shared(g(a.detach()), [a])


@contextmanager
def by_rules() -> Iterator[None]:
    """Turns a network that cannot be traced and an operation without a rule into NotApplicable."""
    try:
        yield
    except NotTraceable as error:
        raise NotApplicable(str(error)) from error


class LRP(Method):
    """Layer-wise relevance propagation (Bach et al. 2015; ayyar2021, section 5.1) of a logit.

        R_i = sum_j a_i w_ij / (sum_q a_q w_qj + epsilon) * R_j        ayyar2021, Eq. 12-13

    for layers z_j = sum_i a_i w_ij + b_j, epsilon with the sign of the sum; gamma (Eq. 14) adds gamma w+ to w, alpha_beta
    (Eq. 15) shares by positive and by negative contributions apart. Maps are signed, [B, C, H, W], in units of the logit.

    rule: zero, epsilon, gamma, alpha_beta (beta = alpha - 1) or zplus; of all layers that `rules` does not name.
    rules: a composite, {layers: rule}. Layers are `input` (those that read the image; zb and flat are rules for them
    alone), `conv`, `dense`, or names of modules (features.1*); names come before input, input before the others.
    bias: kept in the denominators (Eq. 12-15) or ignored (ayyar2021, Figure 9 c).
    low, high: of the pixels, for zb, in the network's units: one number, or one for each channel; None: of each image.

    Axiom: conservation, the relevance sums to the logit (Eq. 11). Biases and epsilon take a part of it.
    Raises NotApplicable for operations without a rule, and for what is no logit of the network.
    Costs 2 passes beside the shared forward pass with the rules zero and epsilon, 3 with gamma and zplus, about 5 with
    alpha_beta (3 for alpha = 1).
    """

    title = "LRP"
    axiom = "conservation"

    def __init__(
        self,
        rule: str = "epsilon",
        rules: Mapping[str, str | None] | None = None,
        epsilon: float = 1e-6,
        gamma: float = 0.25,
        alpha: float = 2.0,
        bias: bool = True,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
    ) -> None:
        self.rule = rule
        self.rules = {layers: name for layers, name in (rules or {}).items() if name is not None}
        self.epsilon, self.gamma, self.alpha, self.bias = epsilon, gamma, alpha, bias
        self.low, self.high = low, high
        if epsilon <= 0 or gamma < 0 or alpha < 1:
            raise ValueError("epsilon is above 0 (rule zero has none), gamma 0 or more, alpha 1 or more")
        for layers, name in {"": rule, **self.rules}.items():
            known = RULES | INPUT_RULES if layers == "input" else RULES
            if name not in known:
                raise ValueError(f"{layers or 'rule'}: the rules are {', '.join(known)}, not {name!r}")

    def passes(self, model: nn.Module, image: Tensor) -> float:
        return 3

    @by_rules()
    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        chosen = logit_targets(forward, targets, self.title)
        x = forward.images.detach().requires_grad_()
        rules = {name: make(self, x) for name, make in (RULES | INPUT_RULES).items()}

        def rule_of(name: str, kind: str, first: bool) -> Rule:
            kinds = ["input", kind] if first else [kind]
            named = [rule for layers, rule in self.rules.items() if layers not in KINDS and fnmatchcase(name, layers)]
            return rules[[*named, *(self.rules[each] for each in kinds if each in self.rules), self.rule][0]]

        walk = Relevance(forward.model, rules[self.rule], rule_of)
        logits = checked(walk.run(x), forward)
        inputs = [x, *walk.anchors]
        if any(a.shape != x.shape for a in inputs):
            raise NotApplicable(f"{self.title}: the rules zb and flat are for layers that read the image itself")
        factors = torch.autograd.grad(score(logits, chosen).sum(), inputs, materialize_grads=True)
        return torch.stack([a.detach() * c for a, c in zip(inputs, factors, strict=True)]).sum(0)

    def total(self, forward: Forward, targets: Targets) -> Tensor:
        return forward.scores(targets)


KINDS = ("input", "conv", "dense")
RULES: dict[str, Callable[[LRP, Tensor], Rule]] = {
    "zero": lambda lrp, x: epsilon_rule(0.0, lrp.bias),
    "epsilon": lambda lrp, x: epsilon_rule(lrp.epsilon, lrp.bias),
    "gamma": lambda lrp, x: gamma_rule(lrp.gamma, lrp.bias),
    "alpha_beta": lambda lrp, x: alpha_beta_rule(lrp.alpha, lrp.bias),
    "zplus": lambda lrp, x: zplus_rule(),
}
INPUT_RULES: dict[str, Callable[[LRP, Tensor], Rule]] = {
    "zb": lambda lrp, x: box_rule(
        *(None if v is None else x.new_tensor(v).view(-1, 1, 1) for v in (lrp.low, lrp.high))
    ),
    "flat": lambda lrp, x: flat_rule(),
}


class DeepTaylor(LRP):
    """Deep Taylor decomposition (Montavon et al. 2017; ayyar2021, section 5.1.1): LRP with z^B at the pixels, z+ behind.

        z+:   R_i = sum_j a_i w+_ij / sum_q a_q w+_qj * R_j        from ayyar2021, Eq. 16-18
        z^B:  R_i = sum_j (x_i w_ij - l_i w+_ij - h_i w-_ij) / sum_q (x_q w_qj - l_q w+_qj - h_q w-_qj) * R_j

    Maps are [B, C, H, W], in units of the logit and, for pixels between low and high, of its sign.
    low, high: l and h of the pixels, in the network's units: one number, or one for each channel; None: of each image.
    Axiom: conservation. Raises NotApplicable as LRP does.
    Costs about 3 passes beside the shared forward pass.
    """

    title = "Deep Taylor"

    def __init__(self, low: Sequence[float] | None = None, high: Sequence[float] | None = None) -> None:
        super().__init__("zplus", {"input": "zb"}, low=low, high=high)


def logit_targets(forward: Forward, targets: Targets, method: str) -> list[Target]:
    """Targets with fixed units. Raises NotApplicable for what is no logit."""
    chosen = output_targets(forward, targets, method)
    if any(target.output != "logit" for target in chosen):
        raise NotApplicable(f"{method} explains logits, not probabilities")
    return chosen


def checked(outputs: Tensor, forward: Forward) -> Tensor:
    """Outputs that are the network's. Raises NotApplicable where the code of the network is not all that it computes."""
    logits = forward.logits.detach()
    if outputs.shape != logits.shape or (outputs.detach() - logits).norm() > 1e-2 * logits.norm():
        raise NotApplicable(
            f"the traced graph of {type(forward.model).__name__} gives other outputs than the network: a hook, or a value "
            "that is read after an operation in place, changes them"
        )
    return outputs
