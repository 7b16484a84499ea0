"""One forward pass for any number of backward passes, each with its rule for ReLUs.

Saliency map, DeconvNet and guided backpropagation are one rule with two switches (nie2018, Eq. 1-2): a gradient R that
arrives behind a ReLU with input y leaves it as

    T = h(R) * g'(y)      h = identity (saliency) or ReLU (DeconvNet, GBP)
                          g = identity (DeconvNet) or ReLU (saliency, GBP)

The rule is applied to the nodes of autograd's graph, when the backward pass runs. So one forward pass serves all rules,
all logits and all layers, and every ReLU counts: modules, functional ones, in-place ones, a module used many times.
The network itself is not touched. A ReLU inside somebody's own autograd.Function is the one kind that cannot be seen.

On a CPU all this is about 1.15x faster for a network in channels_last: model.to(memory_format=torch.channels_last).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vis.errors import NotApplicable, named
from vis.graph.modes import evaluating
from vis.graph.outputs import checked_logits
from vis.methods.functional import LayerName, ReluInputs, Tap
from vis.methods.stacked import Kernel, graph_nodes, node_name, stacked_gradients
from vis.methods.target import Target, Targets, as_targets, score
from vis.system.device import backward_precision, mixed_in_bfloat16

Preprocessing = Callable[[Tensor], Tensor]  # pixels [B, C, H, W] in [0, 1] -> what the network takes, of the same shape
_STACKED = 48  # images times rows in one stacked reverse pass; VGG-16 takes about 40 MB for each
_WIDE = 1 << 21  # values of an image's largest feature maps; above, as in VGG-16, stacked rows are no faster in float32
PASS_VALUES = 1 << 22  # at a time through a network, as masked images or ablated feature maps: 27 images of 3x224x224


@dataclass(frozen=True)
class ReluRule:
    """A rule for gradients at ReLUs: Eq. (1) of nie2018 with h and g of Eq. (2), or RectGrad (`backprop.RectGrad`)."""

    rectify_gradient: bool  # h is the ReLU, not the identity
    mask_by_input: bool  # g is the ReLU, not the identity
    quantile: float | None = None  # RectGrad's q, in place of h and g


SALIENCY = ReluRule(rectify_gradient=False, mask_by_input=True)
DECONVNET = ReluRule(rectify_gradient=True, mask_by_input=False)
GUIDED = ReluRule(rectify_gradient=True, mask_by_input=True)

# Operations for which the modified rules are not defined (sigmoid gates, as in squeeze and excitation, are products),
# and compiled graphs, which hide their ReLUs.
_UNDEFINED = (
    "Gelu",
    "Silu",
    "Mish",
    "Hardswish",
    "Hardtanh",
    "LeakyRelu",
    "Rrelu",
    "PreluKernel",
    "Elu",
    "Celu",
    "Softplus",
    "LogSigmoid",
    "Tanh",
    "CompiledFunction",
    "DifferentiableGraph",
)


def check_images(model: nn.Module, images: Tensor) -> None:
    """Raise ValueError or TypeError for images that the model cannot take."""
    if images.ndim not in (4, 5):
        raise ValueError(f"images are [B, C, H, W], or [B, C, T, H, W] in 3D, not {list(images.shape)}")
    expected = next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)
    if images.dtype != expected:
        raise TypeError(f"{type(model).__name__} computes in {expected}, the images are {images.dtype}")


class Forward:
    """A forward pass of `model` on images [B, C, H, W] or [B, C, T, H, W], kept for any number of backward passes.

        with Forward(model, images) as forward:
            gbp = forward.gradient(None, GUIDED)        # of the largest logit
            sal = forward.gradient(482, SALIENCY)       # of logit 482, same forward pass

    layers: names of modules whose outputs are kept; `name:k` is the k-th call of a module that is called several times,
    `name:relu` the activation function that is called after it (`vis.methods.functional`).
    Afterwards `logits` [B, K] and `layers` keep their values, without the graph.
    relu_inputs: keep the absolute values of the inputs of ReLUs as well, in the order of the calls: `relu_inputs`.
    preprocess: the function that made the images from pixels in [0, 1]. Methods derive black pixels and the range of pixel
    values from it; without it, the caller gives these values.

    Raises ValueError or TypeError for images that the model cannot take, NotApplicable for a model that is no
    classifier or does not have a wanted layer.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        layers: Sequence[str] = (),
        preprocess: Preprocessing | None = None,
        relu_inputs: bool = False,
    ) -> None:
        check_images(model, images)
        self.model = model
        self.images = images
        self.preprocess = preprocess
        self.layers: dict[str, Tensor] = {}  # filled by the forward pass
        self.relu_inputs: list[Tensor] = []  # likewise
        self._keep_inputs = ReluInputs(self.relu_inputs) if relu_inputs else nullcontext()
        self._wanted = tuple(layers)
        self._rule = [SALIENCY]  # shared with the hooks, which must not hold `self`: autograd's graph would never die
        self._handles: list[Any] = []
        self._gradients: dict[Any, Tensor] = {}  # at layers, which several CAMs share
        self._evaluating = evaluating(model)
        self._rules_ready = False

    def __enter__(self) -> "Forward":
        self._evaluating.__enter__()
        captures: list[Any] = []
        try:
            self._capture_layers(captures)
            images = self.images.clone() if self.images.is_inference() else self.images.detach()
            self.images = images.requires_grad_(True)
            with named(f"{type(self.model).__name__} on images {list(images.shape)}"), self._keep_inputs:
                output = self.model(self.images.clone())  # a clone: the model may begin with an in-place operation
            self.logits = checked_logits(self.model, output, len(self.images))
            for name in self._wanted:
                if name not in self.layers:
                    raise NotApplicable(f"layer {name} is not called in the forward pass, or not that often")
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
        self._gradients.clear()
        self.relu_inputs.clear()
        self.layers = {name: output.detach() for name, output in self.layers.items()}
        if hasattr(self, "logits"):
            self.logits = self.logits.detach()
        self._evaluating.__exit__(None, None, None)

    def output(self, layer: str | None) -> Tensor:
        """Return the output of a kept layer, or the logits."""
        return self.logits if layer is None else self.layers[layer]

    def scores(self, targets: Targets) -> Tensor:
        """Return the explained number of each image: [B]."""
        chosen = as_targets(targets, self.images.shape[0])
        by_layer = {target.layer for target in chosen}
        if len(by_layer) == 1:
            return score(self.output(by_layer.pop()), chosen)
        return torch.cat([score(self.output(t.layer)[i : i + 1], [t]) for i, t in enumerate(chosen)])

    def gradient(self, targets: Targets, rule: ReluRule = SALIENCY, of: Tensor | None = None) -> Tensor:
        """Return the (modified) gradient of the targets with respect to the images, or to a kept layer's output `of`.

        It has the shape of the images or of `of`. At a layer it is computed once for all methods.
        Raises NotApplicable for a modified rule on a network without ReLUs or with other activations: the result would
        silently be the plain gradient.
        """
        key = (id(of), rule, *as_targets(targets, self.images.shape[0]))
        if key not in self._gradients and of is None and mixed_in_bfloat16(self.images.device):
            self.anticipate([(targets, rule)])
        if key in self._gradients:
            return self._gradients[key]
        scores = self.scores(targets)
        if not scores.requires_grad:
            raise NotApplicable(
                f"no gradient connects the target and the images in {type(self.model).__name__}: the network detaches its values "
                "(torch.no_grad), or the forward pass is over"
            )
        (gradient,) = self.propagate(scores.sum(), None, [self.images if of is None else of], rule)
        if gradient is None:
            raise NotApplicable(
                f"the target does not depend on this layer of {type(self.model).__name__}: name another layer="
            )
        if of is not None:
            self._gradients[key] = gradient
        return gradient

    def propagate(
        self, start: Tensor, relevance: Tensor | None, ends: Sequence[Tensor], rule: ReluRule = SALIENCY
    ) -> Sequence[Tensor | None]:
        """Return the (modified) gradients at values of this pass, given that at `start`; None where nothing arrives.

        start, ends: kept layers' outputs, the logits or the images. relevance: the gradient at `start`; None for a number.
        """
        if rule != SALIENCY:
            self._prepare_rules()
        self._rule[0] = rule
        try:
            with backward_precision():
                return torch.autograd.grad(start, ends, relevance, retain_graph=True, allow_unused=True)
        finally:
            self._rule[0] = SALIENCY

    def anticipate(self, wanted: Sequence[tuple[Targets, ReluRule]]) -> None:
        """Compute several gradients with respect to the images in one stacked reverse pass; `gradient` then returns them.

        It does so on a CPU, in bfloat16 with precision=mixed where the CPU multiplies in it (the maps differ by about 1 %,
        l2), and leaves out targets in other layers and rules that are undefined for the network. In float32, networks with
        large feature maps gain nothing.
        """
        B, low = len(self.images), mixed_in_bfloat16(self.images.device)
        asked = dict.fromkeys((rule, tuple(as_targets(targets, B))) for targets, rule in wanted)
        rows = [row for row in asked if row[0].quantile is None and all(target.layer is None for target in row[1])]
        if not self.logits.requires_grad or not (low or (self.images.device.type == "cpu" and len(rows) > 1)):
            return
        if not low and self._widest() > _WIDE:
            return
        if any(rule != SALIENCY for rule, _ in rows):
            try:
                self._prepare_rules()
            except NotApplicable:  # `gradient` says so, if a method asks for such a rule
                rows = [row for row in rows if row[0] == SALIENCY]
        rows.sort(key=lambda row: (row[0].rectify_gradient, row[0].mask_by_input))
        each = max(1, (_STACKED if low else _STACKED // 2) // B)
        for some in (rows[i : i + each] for i in range(0, len(rows), each)):
            seeds = torch.stack([self.seed(targets) for _, targets in some])
            found = self.reverse(seeds, [rule for rule, _ in some])
            if found is not None:
                for (rule, targets), gradient in zip(some, found, strict=True):
                    self._gradients[(id(None), rule, *targets)] = gradient

    def _widest(self) -> int:
        """Return the number of values of an image's largest feature maps."""
        nodes = [node for node in graph_nodes([self.logits.grad_fn]) if node_name(node) != "AccumulateGrad"]
        return max(math.prod(node._input_metadata[0].shape[1:]) for node in nodes)

    def seed(self, targets: Targets) -> Tensor:
        """Return the gradient of the targets, units of the output, with respect to the logits: [B, K]."""
        return torch.autograd.grad(self.scores(targets).sum(), self.logits, retain_graph=True)[0]

    def reverse(
        self, seeds: Tensor, rules: Sequence[ReluRule] = (SALIENCY,), kernels: Mapping[str, Kernel] | None = None
    ) -> Tensor | None:
        """Carry seeds [rows, B, K] from the logits to the images: [rows, B, C, H, W], in bfloat16 if precision=mixed says so.

        rules: of each row, sorted. kernels, None: see `stacked_gradients`.
        """
        dtype = torch.bfloat16 if mixed_in_bfloat16(self.images.device) else self.images.dtype
        switches = [(rule.rectify_gradient, rule.mask_by_input) for rule in rules]
        with backward_precision():
            return stacked_gradients(self.logits, seeds, self.images, switches, dtype, kernels)

    def _capture_layers(self, handles: list[Any]) -> None:
        """Register hooks that fill `self.layers`, and add their handles to `handles`."""
        modules = dict(self.model.named_modules(remove_duplicate=False))
        calls: dict[str, int] = {}
        for wanted in self._wanted:
            name, _, number = wanted.partition(":")
            if name not in modules:
                raise NotApplicable(f"{type(self.model).__name__} has no layer {name!r}")

            if LayerName.of(wanted).function:

                def keep_call(output: Tensor, *, wanted: str = wanted) -> Tensor:
                    self.layers[wanted] = output
                    return output.clone()

                handles.append(Tap(modules[name], LayerName.of(wanted), keep_call))
                continue

            def keep(
                module: nn.Module, inputs: Any, output: Any, *, wanted: str = wanted, number: str = number
            ) -> Tensor | None:
                call = calls[wanted] = calls.get(wanted, -1) + 1
                if number == "" and call > 0:
                    raise NotApplicable(f"layer {wanted} is called several times: {wanted}:0 is its first call")
                if number not in ("", str(call)):
                    return None
                if not isinstance(output, Tensor):
                    raise NotApplicable(f"layer {wanted} returns a {type(output).__name__}, not a tensor")
                self.layers[wanted] = output
                return output.clone()  # a following in-place ReLU must not change what was kept

            handles.append(modules[name].register_forward_hook(keep))

    def _prepare_rules(self) -> None:
        """Put the rule on every ReLU node between the logits (and kept layers) and the images, once."""
        if self._rules_ready:
            return
        rule = self._rule

        def apply(node: Any, results: tuple[Tensor | None, ...], gradients: tuple[Tensor | None, ...]) -> None:
            R, T = gradients[0], results[0]  # T = R * g'(y) of the ReLU itself: new memory that nobody has seen yet
            if R is None or T is None:
                return
            if rule[0].quantile is not None:
                T.copy_(R * _above_quantile(R * _activation(node), rule[0].quantile))
                return
            if not rule[0].mask_by_input:
                T.copy_(R)
            if rule[0].rectify_gradient:
                T.clamp_(min=0)  # h(R) g'(y) = h(R g'(y)), since g' is 0 or 1

        relus, undefined = [], set()
        for node in graph_nodes([kept.grad_fn for kept in (self.logits, *self.layers.values())]):
            name = node_name(node).partition("Backward")[0]
            if _is_relu(node, name):
                relus.append(node)
            elif name in _UNDEFINED:
                undefined.add(name)
        if undefined or not relus:
            what = f"there is {', '.join(sorted(undefined))}" if undefined else "no ReLU was found"
            raise NotApplicable(
                f"DeconvNet, guided backpropagation and RectGrad are rules for ReLUs, and in {type(self.model).__name__} {what}"
            )
        self._handles += [node.register_hook(partial(apply, node)) for node in relus]
        self._rules_ready = True


def output_targets(forward: Forward, targets: Targets, method: str) -> list[Target]:
    """Replace each target None by the largest logit of the unchanged image. Raises NotApplicable for units of other layers."""
    chosen = as_targets(targets, len(forward.images))
    if any(target.layer is not None for target in chosen):
        raise NotApplicable(f"{method} explains the network's output, not a unit of another layer")
    forward.scores(targets)  # raises for a unit that is not there
    largest = forward.logits.argmax(1).tolist()
    return [replace(t, unit=i) if t.unit is None else t for t, i in zip(chosen, largest, strict=True)]


def in_passes(rows: Tensor, values: int) -> list[Tensor]:
    """Split rows [n, ...] into parts that fit into one forward pass, where each row stands for `values` values."""
    return [part for part in rows.split(max(1, PASS_VALUES // values)) if len(part)]


def _is_relu(node: Any, name: str) -> bool:
    """Recognise a ReLU in any spelling: relu, relu6, threshold, clamp or clip at 0, each in place or not.

    At y = 0 exactly g' is what autograd takes: 0, but 1 for clamp.
    """
    bound = {"Hardtanh": "min_val", "Clamp": "min", "ClampMin": "min", "Threshold": "threshold"}.get(name)
    if bound is None:
        return name == "Relu"
    value = getattr(node, f"_saved_{bound}")  # a tensor or None is possible for clamp
    return isinstance(value, int | float) and value == 0


def _activation(node: Any) -> Tensor:
    """Return the output of a ReLU's node."""
    if hasattr(node, "_saved_result"):
        return node._saved_result
    upper = getattr(node, "_saved_max_val", None) or getattr(node, "_saved_max", None)
    return node._saved_self.clamp(min=0, max=upper)


def _above_quantile(values: Tensor, q: float) -> Tensor:
    """Return where values [B, ...] exceed the q-quantile of their image, the nearest of the values."""
    flat = values.flatten(1)
    bound = flat.kthvalue(round(q * (flat.shape[1] - 1)) + 1, dim=1).values
    return values > bound.view(-1, *[1] * (values.ndim - 1))
