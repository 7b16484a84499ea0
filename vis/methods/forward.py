"""One forward pass that serves every backward pass.

saliency map, DeconvNet and guided backpropagation are one rule with two switches (nie2018, Eq. 1-2): a gradient R that
arrives behind a ReLU with input y leaves it as

    T = h(R) * g'(y)      h = identity (saliency) or ReLU (DeconvNet, GBP)
                          g = identity (DeconvNet) or ReLU (saliency, GBP)

The rule is applied to the nodes of autograd's graph, when the backward pass runs. So one forward pass serves all rules,
all logits and all layers, and every ReLU counts: modules, functional ones, in-place ones, a module used many times.
The network itself is not touched.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vis.target import Targets, as_targets, score


class NotApplicable(ValueError):
    """This method is not defined for this network; the message says why."""


@dataclass(frozen=True)
class ReluRule:
    """How a gradient passes a ReLU: Eq. (1) of nie2018 with h and g of Eq. (2)."""

    rectify_gradient: bool  # h is the ReLU, not the identity
    mask_by_input: bool  # g is the ReLU, not the identity


SALIENCY = ReluRule(rectify_gradient=False, mask_by_input=True)
DECONVNET = ReluRule(rectify_gradient=True, mask_by_input=False)
GUIDED = ReluRule(rectify_gradient=True, mask_by_input=True)

# Other activations, for which the modified rules are not defined. Sigmoid gates (squeeze and excitation) are products.
_OTHER_ACTIVATIONS = (
    "Gelu",
    "Silu",
    "Mish",
    "Hardswish",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Celu",
    "Softplus",
    "PreluKernel",
)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode with frozen parameters; every flag is put back at the end, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in frozen:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode


class Forward:
    """A forward pass of `model` on images [B, C, H, W], kept for as many backward passes as wanted.

        with Forward(model, images) as forward:
            gbp = forward.gradient(None, GUIDED)        # of the largest logit
            sal = forward.gradient(482, SALIENCY)       # of logit 482, same forward pass

    layers: names of modules whose outputs are kept; `name:k` is the k-th call of a module that is called several times.
    """

    def __init__(self, model: nn.Module, images: Tensor, layers: Sequence[str] = ()) -> None:
        if images.ndim != 4:
            raise ValueError(f"images are [B, C, H, W], not {list(images.shape)}")
        self.model = model
        self.images = images.detach().requires_grad_(True)
        self.layers: dict[str, Tensor] = {}  # filled by the forward pass
        self._wanted = tuple(layers)
        self._rule = [SALIENCY]  # shared with the hooks, which must not hold `self`: autograd's graph would never die
        self._handles: list[Any] = []
        self._evaluating = evaluating(model)
        self._rules_ready = False

    def __enter__(self) -> "Forward":
        self._evaluating.__enter__()
        captures = []
        try:
            captures = self._capture_layers()
            logits = self.model(self.images)
            if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != self.images.shape[0]:
                got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise NotApplicable(f"a classifier returns logits [B, K]; {type(self.model).__name__} returned {got}")
            self.logits = logits
            for name in self._wanted:
                if name not in self.layers:
                    raise NotApplicable(f"layer {name} is not used in the forward pass")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        finally:
            for handle in captures:
                handle.remove()
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._evaluating.__exit__(None, None, None)

    def output(self, layer: str | None) -> Tensor:
        """The output of a kept layer, or the logits."""
        return self.logits if layer is None else self.layers[layer]

    def scores(self, targets: Targets) -> Tensor:
        """The explained numbers, one for each image: [B]."""
        chosen = as_targets(targets, self.images.shape[0])
        by_layer = {target.layer for target in chosen}
        if len(by_layer) == 1:
            return score(self.output(by_layer.pop()), chosen)
        return torch.cat([score(self.output(t.layer)[i : i + 1], [t]) for i, t in enumerate(chosen)])

    def gradient(self, targets: Targets, rule: ReluRule = SALIENCY, of: Tensor | None = None) -> Tensor:
        """The (modified) gradient of the targets with respect to the images, or to a kept layer's output `of`.

        Same shape as what it is taken with respect to. Raises NotApplicable for a modified rule on a network that has
        no ReLU, or another activation, since the result would silently be the plain gradient.
        """
        scores = self.scores(targets)
        if rule != SALIENCY and not self._rules_ready:
            self._prepare_rules()
        wrt = self.images if of is None else of
        self._rule[0] = rule
        try:
            (gradient,) = torch.autograd.grad(scores.sum(), wrt, retain_graph=True)
        finally:
            self._rule[0] = SALIENCY
        return gradient

    def _capture_layers(self) -> list[Any]:
        modules = dict(self.model.named_modules())
        calls: dict[str, int] = {}
        handles = []
        for wanted in self._wanted:
            name, _, number = wanted.partition(":")
            if name not in modules:
                raise NotApplicable(f"{type(self.model).__name__} has no layer {name!r}")

            def keep(
                module: nn.Module, inputs: Any, output: Tensor, *, wanted: str = wanted, number: str = number
            ) -> Tensor:
                call = calls[wanted] = calls.get(wanted, -1) + 1
                if number == "" and call > 0:
                    raise NotApplicable(f"layer {wanted} is called several times: {wanted}:0 is its first call")
                if number in ("", str(call)):
                    self.layers[wanted] = output
                    return output.clone()  # a following in-place ReLU must not change what was kept
                return output

            handles.append(modules[name].register_forward_hook(keep))
        return handles

    def _prepare_rules(self) -> None:
        """Put the rule on every ReLU node between the logits (and kept layers) and the images."""
        rule = self._rule

        def before(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
            R = gradients[0]
            return (R.clamp(min=0),) if rule[0].rectify_gradient and R is not None else None

        def after(results: tuple[Tensor | None, ...], gradients: tuple[Tensor | None, ...]) -> Any:
            return None if rule[0].mask_by_input else (gradients[0], *results[1:])

        relus, others = 0, set()
        for node in _nodes([self.logits, *self.layers.values()]):
            if _is_relu(node):
                relus += 1
                self._handles += [node.register_prehook(before), node.register_hook(after)]
            elif node.name().startswith(_OTHER_ACTIVATIONS) or node.name().startswith("Hardtanh"):
                others.add(node.name().partition("Backward")[0])
        if others or not relus:
            what = f"it uses {', '.join(sorted(others))}" if others else "no ReLU was found"
            raise NotApplicable(
                f"DeconvNet and guided backpropagation are rules for ReLUs, and in {type(self.model).__name__} {what}"
            )
        self._rules_ready = True


def _is_relu(node: Any) -> bool:
    """A ReLU in any spelling: relu, relu_, relu6, threshold or clamp at 0."""
    name = node.name()
    if name.startswith("ReluBackward"):
        return True
    if name.startswith("HardtanhBackward"):
        return node._saved_min_val == 0
    if name.startswith("ClampMinBackward"):
        return node._saved_min == 0
    if name.startswith("ThresholdBackward"):
        return node._saved_threshold == 0
    return False


def _nodes(tensors: Sequence[Tensor]) -> Iterator[Any]:
    """All nodes of autograd's graph behind the tensors."""
    stack: list[Any] = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(parent for parent, _ in node.next_functions)
