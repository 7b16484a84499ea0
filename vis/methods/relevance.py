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

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from vis.methods.base import Method
from vis.methods.baseline import baseline_image
from vis.methods.flow import IMAGE, LOGITS, Flow
from vis.methods.forward import Forward, NotApplicable
from vis.methods.propagation import Relevance, by_epsilon, by_rules, checked, counted, is_chain, logit_targets
from vis.methods.rules import (
    Rule,
    alpha_beta_rule,
    box_rule,
    epsilon_rule,
    flat_rule,
    gamma_eq14_rule,
    gamma_rule,
    wsquare_rule,
    zplus_rule,
)
from vis.methods.target import Targets, score

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
    Costs 2 passes beside the shared forward pass with the rules zero and epsilon (1 in a chain of layers, ReLUs and poolings),
    3 with zplus, wsquare and flat, about 5 with gamma and alpha_beta (3 for alpha = 1).
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

    @property
    def mixed_error(self) -> float | None:
        return 0.01 if self._is_epsilon else None

    @property
    def _is_epsilon(self) -> bool:
        return self.rule in ("zero", "epsilon") and self.bias and not self.rules

    def passes(self, model: nn.Module, image: Tensor) -> float:
        return 3

    @by_rules()
    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        chosen = logit_targets(forward, targets, self.title)
        if self._is_epsilon and is_chain(forward.logits):
            return by_epsilon(forward, chosen, self.epsilon if self.rule == "epsilon" else 0.0)
        x, logits, _ = self._run(forward)
        return torch.autograd.grad(score(counted(logits), chosen).sum(), x, materialize_grads=True)[0]

    @by_rules()
    def flow(self, forward: Forward, layers: Sequence[str] = ()) -> Flow:
        x, logits, outputs = self._run(forward, layers)
        values = {LOGITS: logits, **outputs, IMAGE: x}
        return Flow(values, {name: value.detach() for name, value in values.items()})

    def _run(self, forward: Forward, layers: Sequence[str] = ()) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the images, logits and outputs of layers, of which autograd gives the relevance."""
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

        walk = Relevance(forward.model, sums.get(self.rule or "", epsilon_rule(0.0, self.bias)), rule_of, layers)
        logits = checked(walk.run(x), forward)
        if unused:
            raise NotApplicable(
                f"rules: {', '.join(sorted(unused))} fits no convolution or dense layer of {type(forward.model).__name__}; keys "
                f"are {', '.join(KINDS)} or names of modules (features.1*)"
            )
        return x, logits, walk.outputs

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
