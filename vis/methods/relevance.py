"""Layer-wise relevance propagation and deep Taylor decomposition (ayyar2021, sections 5.1 and 5.1.1).

Relevance flows from a logit S_c back to the pixels. A layer z_j = sum_i a_i w_ij + b_j shares its outputs' relevance among
its inputs, by a rule (Eq. 12-15):

    R_i = sum_j sum_k  coefficient_k * (a'_ik w'_ijk) / z'_jk * R_j        z'_k = sum_i a'_ik w'_ijk (+ b'_k)

A rule is data: its parts k, each with the functions that make a' of a and w' of w, and the epsilon of its denominators. If
a denominator is 0, the relevance is lost. Each value of the network depends on z', linear in a', and autograd carries R:
divided by z', through the layer with w', times a'. It follows every branch, and inputs of 0 can have relevance (rules flat
and wsquare).

Additions and averages are layers with weights 1. A max-pooling passes relevance to its largest value. A batch norm is
folded into the layer before it, or scales as a layer of its own. An elementwise function (ReLU, SiLU, ...) passes
relevance on unchanged (Bach et al. 2015, Eq. 55-56); so does a layer norm. A product of two values of the network, such as a
gate, gives each factor half (Achtibat et al. 2024, AttnLRP: the identity and the uniform rule).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from vis.graph.interpreter import Affine, Walk
from vis.graph.trace import LAYERS, NotTraceable
from vis.methods.base import Method
from vis.methods.baseline import baseline_image
from vis.methods.forward import Forward, NotApplicable, output_targets
from vis.methods.target import Target, Targets, score

Modify = Callable[[Tensor], Tensor]


class Part(NamedTuple):
    """A share `coefficient` of the relevance, by contributions a' w'; products: (makes a' of a, makes w' of w and b).

    sign: of the outputs z_j whose relevance it shares; 0: of all.
    """

    coefficient: float
    products: tuple[tuple[Modify, Modify], ...]
    sign: int = 0


@dataclass(frozen=True)
class Rule:
    """A rule as above. bias: it counts in the denominators, as the weight of a neuron that is always 1."""

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
    """LRP-epsilon (Bach et al. 2015), Eq. 13 with epsilon * sign(z); LRP-0, Eq. 12, for epsilon = 0.

    R_i = sum_j c_ij / (sum_q c_qj + b_j + epsilon sign) * R_j        c_ij = a_i w_ij
    """
    return Rule((Part(1, ((same, same),)),), epsilon, bias)


def gamma_rule(gamma: float, bias: bool = True) -> Rule:
    """LRP-gamma for inputs and outputs of either sign (Andeol et al. 2021): contributions of the output's sign count more.

    R_i = sum_j (c_ij + gamma c^s_ij) / (sum_q c_qj + gamma c^s_qj) * R_j        c_ij = a_i w_ij, c^s: those with z_j's sign

    The bias is one of them. The denominator is at least as far from 0 as z_j. Equal to Eq. 14 where a >= 0 and z > 0.
    """
    up, down = (lambda w: w + gamma * positive(w)), (lambda w: w + gamma * negative(w))
    return Rule(
        (Part(1, ((positive, up), (negative, down)), sign=1), Part(1, ((positive, down), (negative, up)), sign=-1)),
        bias=bias,
    )


def gamma_eq14_rule(gamma: float, bias: bool = True) -> Rule:
    """LRP-gamma as Montavon et al. 2019 and Eq. 14 have it, for inputs and outputs that are not negative.

    R_i = sum_j a_i (w_ij + gamma w+_ij) / sum_q a_q (w_qj + gamma w+_qj) * R_j

    Where z_j < 0, as before a skip connection, or an input is negative, the denominator can pass near 0: such maps are noise.
    """
    return Rule((Part(1, ((same, lambda w: w + gamma * positive(w)),)),), bias=bias)


def alpha_beta_rule(alpha: float, bias: bool = True) -> Rule:
    """LRP-alpha-beta (Bach et al. 2015), Eq. 15, beta = alpha - 1.

    R_i = sum_j (alpha c+_ij / (sum_q c+_qj + b+_j) - beta c-_ij / (sum_q c-_qj + b-_j)) * R_j        c_ij = a_i w_ij
    """
    parts = [Part(alpha, ((positive, positive), (negative, negative)))]
    if alpha != 1:
        parts.append(Part(1 - alpha, ((positive, negative), (negative, positive))))
    return Rule(tuple(parts), bias=bias)


def zplus_rule() -> Rule:
    """z+ of deep Taylor decomposition (Montavon et al. 2017): LRP-alpha1beta0 without the bias.

    R_i = sum_j c+_ij / sum_q c+_qj * R_j        c_ij = a_i w_ij

    The bias has no relevance and no place in the denominator; other libraries' ZPlus keeps it there, as alpha1beta0 does.
    """
    return alpha_beta_rule(1, bias=False)


def wsquare_rule(bias: bool = True) -> Rule:
    """w^2 of deep Taylor decomposition (Montavon et al. 2017), for inputs without bounds; the bias counts as a weight.

    R_i = sum_j w_ij^2 / (sum_q w_qj^2 + b_j^2) * R_j
    """
    return Rule((Part(1, ((torch.ones_like, torch.square),)),), bias=bias)


def flat_rule() -> Rule:
    """Every input has the same share (Lapuschkin et al. 2019): w^2 with weights 1 and no bias."""
    return Rule((Part(1, ((torch.ones_like, torch.ones_like),)),), bias=False)


def box_rule(x: Tensor, low: Tensor, high: Tensor) -> Rule:
    """z^B of deep Taylor decomposition (Montavon et al. 2017), for pixels x between l and h; the bias cancels.

    R_i = sum_j (x_i w_ij - l_i w+_ij - h_i w-_ij) / sum_q (x_q w_qj - l_q w+_qj - h_q w-_qj) * R_j
    """

    def minus(bound: Tensor, a: Tensor) -> Tensor:
        if a.numel() != x.numel() or not torch.equal(a.reshape(x.shape), x):
            raise NotApplicable("the rule zb is for layers that read the image itself; flat and wsquare are for others")
        return -bound.expand_as(x).reshape(a.shape)

    return Rule(
        (Part(1, ((same, same), (partial(minus, low), positive), (partial(minus, high), negative))),), bias=False
    )


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

    def __init__(self, net: nn.Module, rule: Rule, rule_of: Callable[[str, str, bool], Rule]) -> None:
        super().__init__(net)
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


@contextmanager
def by_rules() -> Iterator[None]:
    """Raise NotApplicable for a network that cannot be traced or an operation without a rule."""
    try:
        yield
    except NotTraceable as error:
        raise NotApplicable(str(error)) from error


RuleName = str | Mapping[str, float]  # gamma, or {gamma: 0.5}
Bound = float | Sequence[float] | Tensor | str | None


class LRP(Method):
    """Layer-wise relevance propagation (Bach et al. 2015; ayyar2021, section 5.1) of a logit.

        R_i = sum_j a_i w_ij / (sum_q a_q w_qj + epsilon) * R_j        ayyar2021, Eq. 12-13

    for layers z_j = sum_i a_i w_ij + b_j, epsilon with the sign of the sum. Maps are signed, [B, C, H, W], in units of the
    logit. Other rules share by other contributions; docs/lrp.md has their equations, and what they do on networks.

    composite: rules for kinds of layers (Montavon et al. 2019; Kohlbrenner et al. 2020; Anders et al. 2021, zennit's of
    that name), additions and averages share in proportion: epsilon_plus (alpha_beta with alpha = 1 in convolutions, epsilon in
    dense layers), epsilon_plus_flat (flat at the pixels), epsilon_alpha2_beta1, epsilon_alpha2_beta1_flat,
    epsilon_gamma_box (zb at the pixels, gamma in convolutions), excitation_backprop (alpha_beta with alpha = 1 everywhere).
    rule: one rule for all layers in place of a composite: zero, epsilon, gamma (contributions with the output's sign count
    1 + gamma times), gamma_eq14 (ayyar2021, Eq. 14: for positive outputs), alpha_beta (Eq. 15, beta = alpha - 1), zplus
    (alpha = 1 without biases), wsquare or flat.
    rules: {layers: rule} for some layers, a rule being a name or {name: its number}, as {gamma: 0.5}. Layers are `input`
    (those that read the image; zb is for them alone), `conv`, `dense`, or names of modules (features.1*, the first that
    fits); names come before input, input before the others.
    epsilon, gamma, alpha: the numbers of rules that are named without one.
    bias: kept in the denominators (Eq. 12-15) or ignored (ayyar2021, Figure 9 c).
    low, high: of the pixels, for zb, in the network's units: a number, one for each channel, or a tensor; None: from the
    model's preprocessing, those of black and white and of the image itself, which some preprocessings scale; "image": the
    smallest and the largest value of each channel of the image.

    Axiom: conservation, the relevance sums to the logit (Eq. 11), except for the part that biases and epsilon absorb.
    Raises NotApplicable for operations without a rule, for anything but a logit of the network, and for zb without bounds.
    Costs 2 passes beside the shared forward pass with the rules zero and epsilon, 3 with zplus, wsquare and flat, about 5
    with gamma and alpha_beta (3 for alpha = 1).
    """

    title = "LRP"
    axiom = "conservation"

    def __init__(
        self,
        rule: str | None = None,
        rules: Mapping[str, RuleName | None] | None = None,
        composite: str = "epsilon_plus",
        epsilon: float = 1e-6,
        gamma: float = 0.25,
        alpha: float = 2.0,
        bias: bool = True,
        low: Bound = None,
        high: Bound = None,
    ) -> None:
        self.rule, self.composite = rule, composite
        self.rules = {layers: name for layers, name in (rules or {}).items() if name is not None}
        self.epsilon, self.gamma, self.alpha, self.bias = epsilon, gamma, alpha, bias
        self.low, self.high = low, high
        if composite not in COMPOSITES:
            raise ValueError(f"composite: the composites are {', '.join(COMPOSITES)}, not {composite!r}")
        if rule is not None and rule not in RULES:
            raise ValueError(f"rule: the rules are {', '.join(RULES)}, not {rule!r}")
        if any(isinstance(bound, str) and bound != "image" for bound in (low, high)):
            raise ValueError(f"low and high are numbers, a tensor or image, not {low!r} and {high!r}")
        _check_numbers(epsilon, gamma, alpha)
        for layers, given in self.rules.items():
            name, number = _name_and_number(layers, given)
            if number is not None:
                _check_numbers(**{NUMBERS[name]: number})

    @property
    def words(self) -> str:
        given = f"the rule {self.rule}" if self.rule else f"the composite {self.composite}"
        return f"by {given}" + "".join(f", {rule} for {layers}" for layers, rule in self.rules.items())

    def passes(self, model: nn.Module, image: Tensor) -> float:
        return 3

    @by_rules()
    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        chosen = logit_targets(forward, targets, self.title)
        x = forward.images.detach().requires_grad_()
        composite = {} if self.rule else COMPOSITES[self.composite]
        rules = {layers: self._rule(layers, given, forward) for layers, given in {**composite, **self.rules}.items()}
        other = self._rule("rule", self.rule or "zero", forward)
        sums = {"epsilon": other, "zplus": other, "alpha_beta": alpha_beta_rule(1, self.bias)}

        unused = rules.keys() - KINDS

        def rule_of(name: str, kind: str, first: bool) -> Rule:
            kinds = ["input", kind] if first else [kind]
            named = [layers for layers in rules if layers not in KINDS and fnmatchcase(name, layers)]
            unused.difference_update(named)
            return next((rules[each] for each in (*named, *kinds) if each in rules), other)

        walk = Relevance(forward.model, sums.get(self.rule or "", epsilon_rule(0.0, self.bias)), rule_of)
        logits = counted(checked(walk.run(x), forward))
        if unused:
            raise NotApplicable(
                f"rules: {', '.join(sorted(unused))} fits no convolution or dense layer of {type(forward.model).__name__}; keys "
                f"are {', '.join(KINDS)} or names of modules (features.1*)"
            )
        return torch.autograd.grad(score(logits, chosen).sum(), x, materialize_grads=True)[0]

    def _rule(self, layers: str, given: RuleName, forward: Forward) -> Rule:
        name, number = _name_and_number(layers, given)
        if name == "zb":
            x = forward.images.detach()
            return box_rule(x, self._bound(self.low, torch.amin, forward), self._bound(self.high, torch.amax, forward))
        return RULES[name](getattr(self, NUMBERS.get(name, "epsilon")) if number is None else number, self.bias)

    def _bound(self, given: Bound, extreme: Callable[..., Tensor], forward: Forward) -> Tensor:
        """Return the lowest or highest values of pixels, for each image and channel or for all."""
        x = forward.images.detach()
        if given is not None and not isinstance(given, str):
            bound = torch.as_tensor(given, dtype=x.dtype, device=x.device)
            bound = bound.view(-1, 1, 1) if bound.ndim < 3 else bound
            if len(bound) not in (1, x.shape[1]) and bound.ndim == 3:
                raise NotApplicable(f"low or high has {len(bound)} numbers, the images have {x.shape[1]} channels")
            return bound
        bound = extreme(x, (2, 3), keepdim=True)
        if given == "image":
            return bound
        if forward.preprocess is None:
            raise NotApplicable(
                f"{self.title}: the rule zb needs the range of pixel values: preprocess=, low= and high=, or "
                'low="image", high="image" for the extreme values of each image'
            )
        ends = [baseline_image(x, end, forward.preprocess) for end in ("black", "white")]
        return extreme(torch.stack([bound, *(extreme(v, (2, 3), keepdim=True).expand_as(bound) for v in ends)]), 0)

    def total(self, forward: Forward, targets: Targets) -> Tensor:
        return forward.scores(targets)


KINDS = ("input", "conv", "dense")
RULES: dict[str, Callable[[float, bool], Rule]] = {
    "zero": lambda _, bias: epsilon_rule(0.0, bias),
    "epsilon": epsilon_rule,
    "gamma": gamma_rule,
    "gamma_eq14": gamma_eq14_rule,
    "alpha_beta": alpha_beta_rule,
    "zplus": lambda _, bias: zplus_rule(),
    "wsquare": lambda _, bias: wsquare_rule(bias),
    "flat": lambda _, bias: flat_rule(),
}
NUMBERS = {"epsilon": "epsilon", "gamma": "gamma", "gamma_eq14": "gamma", "alpha_beta": "alpha"}  # the parameter's name
_ALPHA1, _ALPHA2 = {"alpha_beta": 1.0}, {"alpha_beta": 2.0}
COMPOSITES: dict[str, dict[str, RuleName]] = {
    "epsilon_plus": {"conv": _ALPHA1, "dense": "epsilon"},
    "epsilon_plus_flat": {"input": "flat", "conv": _ALPHA1, "dense": "epsilon"},
    "epsilon_gamma_box": {"input": "zb", "conv": "gamma", "dense": "epsilon"},
    "epsilon_alpha2_beta1": {"conv": _ALPHA2, "dense": "epsilon"},
    "epsilon_alpha2_beta1_flat": {"input": "flat", "conv": _ALPHA2, "dense": "epsilon"},
    "excitation_backprop": {"conv": _ALPHA1, "dense": _ALPHA1},
}


def _check_numbers(epsilon: float = 1.0, gamma: float = 0.0, alpha: float = 1.0) -> None:
    if epsilon <= 0:
        raise ValueError(f"epsilon must be above 0 (the rule zero has none), not {epsilon:g}")
    if gamma < 0:
        raise ValueError(f"gamma must be at least 0, not {gamma:g}")
    if alpha < 1:
        raise ValueError(f"alpha must be at least 1, not {alpha:g}")


def _name_and_number(layers: str, given: RuleName) -> tuple[str, float | None]:
    """Split a rule of `rules` into its name and number. Raises ValueError for an unknown rule."""
    numbered = isinstance(given, Mapping)
    pairs = list(given.items()) if isinstance(given, Mapping) else [(given, None)]
    name, number = pairs[0] if len(pairs) == 1 else ("", None)
    if name not in {**RULES, "zb": None} or (numbered and not (name in NUMBERS and isinstance(number, int | float))):
        raise ValueError(f"{layers}: the rules are {', '.join(RULES)}, zb, or as {{gamma: 0.5}}, not {given!r}")
    return name, number


class DeepTaylor(LRP):
    """Deep Taylor decomposition (Montavon et al. 2017; ayyar2021, section 5.1.1): LRP with z^B at the pixels, z+ behind.

        z+:   R_i = sum_j a_i w+_ij / sum_q a_q w+_qj * R_j        from ayyar2021, Eq. 16-18
        z^B:  R_i = sum_j (x_i w_ij - l_i w+_ij - h_i w-_ij) / sum_q (x_q w_qj - l_q w+_qj - h_q w-_qj) * R_j

    z+ ignores biases, unlike alpha1beta0 of LRP's composites. Maps are [B, C, H, W], in units of the logit and, for pixels
    between low and high, of its sign.
    low, high: l and h of the pixels, in the network's units: a number, one for each channel, or a tensor; None: from the
    model's preprocessing, those of black and white and of the image itself, which some preprocessings scale; "image": the
    smallest and the largest value of each channel of the image.
    Axiom: conservation. Raises NotApplicable as LRP does.
    Costs about 3 passes beside the shared forward pass.
    """

    title = "Deep Taylor"

    words = ""  # the title says it

    def __init__(self, low: Bound = None, high: Bound = None) -> None:
        super().__init__("zplus", {"input": "zb"}, low=low, high=high)


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
    if outputs.shape != logits.shape or (outputs.detach() - logits).norm() > 1e-2 * logits.norm():
        raise NotApplicable(
            f"the traced graph of {type(forward.model).__name__} gives other outputs than the network: a hook, or a value "
            "that is read after an operation in place, changes them"
        )
    return outputs
