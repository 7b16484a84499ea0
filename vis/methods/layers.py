"""Find the layer of a network whose feature maps a method uses."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import dropout, pooling
from torch.overrides import TorchFunctionMode

from vis.errors import named
from vis.graph.modes import evaluating
from vis.graph.names import resolve_layer
from vis.methods.base import Method
from vis.methods.forward import Forward, NotApplicable, check_images
from vis.methods.from_layer import run_from
from vis.methods.functional import ACTIVATIONS, LayerName, function_name
from vis.methods.target import Targets

_POOLINGS = (
    pooling._MaxPoolNd,
    pooling._AvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
    pooling._AdaptiveAvgPoolNd,
    pooling._LPPoolNd,
)
_NO_FEATURES = (*_POOLINGS, dropout._DropoutNd, nn.Flatten, nn.Identity)
_LAYERS = {  # functions that sum over channels
    "linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "matmul", "rmatmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "tensordot",
}  # fmt: skip

Reshape = Sequence[int] | Callable[[Tensor], Tensor]

_found: WeakKeyDictionary[nn.Module, dict[Any, str]] = WeakKeyDictionary()


class OnFeatureMaps(Method):
    """Base class of methods on the feature maps B [B, V, h, w] of a layer; [B, V, t, h, w] of images in 3D.

    layer: its name, a module's or conv5_3 and the like of VGG-16; None finds the last (`feature_layer`).
    reshape: the rows and columns [h, w] of tokens [B, N, D] or [B, h, w, D], such as [14, 14] of a vision transformer, without a
    class token in front; or a function that turns the layer's output into [B, V, h, w].
    """

    display = "overlay"

    def __init__(self, layer: str | None = None, reshape: Reshape | None = None) -> None:
        sizes = () if reshape is None or callable(reshape) else tuple(reshape)
        if not (reshape is None or callable(reshape)) and (
            len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes)
        ):
            raise ValueError(f"reshape is [rows, columns] of the tokens, not {reshape!r}")
        if callable(reshape) and layer is None:
            raise ValueError("reshape is a function of a layer's values: name the layer")
        self.layer = layer
        self.reshape = reshape if callable(reshape) else (sizes or None)

    def layers(self, model: nn.Module, images: Tensor) -> list[str]:
        return [feature_layer(model, images, self.layer, None if callable(self.reshape) else self.reshape)]

    def maps(self, forward: Forward, layer: str) -> Tensor:
        """Return B [B, V, h, w], detached."""
        A = forward.layers[layer].detach()
        if self.reshape is not None:
            return A.flatten(1)[:, self.places(A, layer)]
        if A.ndim != forward.images.ndim:
            raise NotApplicable(
                f"layer {layer} gives {list(A.shape)}, not feature maps [B, V, h, w]: tokens take a reshape="
            )
        return A

    def gradients(self, forward: Forward, targets: Targets, layer: str) -> Tensor:
        """Return G = df/dB [B, V, h, w] of the targets f, computed once for all methods."""
        A = forward.layers[layer]
        G = forward.gradient(targets, of=A)
        return G if self.reshape is None else G.flatten(1)[:, self.places(A, layer)]

    def places(self, A: Tensor, layer: str) -> Tensor:
        """Return the indices of the values of B [V, h, w] in the flat output A [B, ...] of the layer.

        Raises NotApplicable if A has no feature maps, or other sizes than `reshape`.
        """
        index = torch.arange(A[0].numel()).view(A.shape[1:])
        if self.reshape is None:
            return index.to(A.device)
        if callable(self.reshape):
            numbers = index[None].double()
            index = self.reshape(numbers)
            if index.ndim != 4 or len(index) != 1:
                raise NotApplicable(f"reshape makes {list(index.shape)} of layer {layer}, not [1, V, h, w]")
            if not torch.equal(self.reshape(-numbers.square()), -index.square()):  # a move commutes with any function
                raise NotApplicable(f"reshape computes with the values of layer {layer}: let it only move them")
            index = index[0].long()
        else:
            h, w = self.reshape
            if index.ndim == 2 and len(index) == h * w + 1:
                index = index[1:]  # without the class token
            if index.ndim == 2 and len(index) == h * w:
                index = index.view(h, w, -1)
            if index.ndim != 3 or index.shape[:2] != (h, w):
                raise NotApplicable(
                    f"reshape=[{h}, {w}] is for tokens [B, {h * w}, D], [B, {h * w + 1}, D] or [B, {h}, {w}, D]; layer {layer} "
                    f"gives {list(A.shape)}"
                )
            index = index.permute(2, 0, 1)
        return index.to(A.device)


def feature_layer(
    model: nn.Module, images: Tensor, layer: str | None = None, reshape: Sequence[int] | None = None
) -> str:
    """Find the layer whose feature maps [B, V, h, w] a method uses; the name is for `Forward`.

    layer: a module's name, `name:k` for its k-th call, a name that the network defines (conv5_3 of VGG-16), or the name of a
    function call (`vis.methods.functional`). None finds the last feature maps with more than one position before the
    classifier: the output of the last activation (ReLU, SiLU, ...) if the rest of the network depends only on it, else the
    output of the last block (ConvNeXt). Outputs of pooling, dropout and the like do not count, nor do class maps, whose pooling
    gives the logits. Examples: features.29 of vgg16, layer4 of resnet50, features:relu of densenet121, relu:2 where one ReLU is
    called three times.
    images [B, C, H, W] give the sizes. reshape: [h, w] finds the last layer with tokens [B, h w, D] or [B, h, w, D]; with a
    class token, the last one before the last attention, since later outputs of other tokens are not used.

    Raises UserError for an unknown name, NotApplicable for a network without feature maps.
    """
    if layer is not None:
        name = LayerName.of(layer)
        return str(name._replace(module=resolve_layer(model, name.module)))
    check_images(model, images)
    known = _found.setdefault(model, {})
    kinds = tuple(map(type, model.modules()))  # which may have been replaced since
    key = (images.shape[1:], None if reshape is None else tuple(reshape), kinds)
    if key not in known:
        with evaluating(model), torch.no_grad():
            look = _look(model, images)
            known[key] = _last_map(look, model) if reshape is None else _last_tokens(look, model, *reshape)
    return known[key]


def holds_class_maps(model: nn.Module, images: Tensor, layer: str) -> bool:
    """Tell whether a layer gives a map for each class, whose pooling gives the logits."""
    with evaluating(model), torch.no_grad():
        look = _look(model, images)
    return any(look.name(each) == layer and look.class_maps(each) for each in look.outputs)


@dataclass
class _Output:
    """An output of a module or an activation function: the tensor, when it came, and its kind at that time."""

    name: LayerName
    tensor: Tensor
    at: int
    map: bool  # [B, V, h, w] with several positions, of no pooling or the like
    tokens: bool  # [B, N, D] or [B, h, w, D]
    active: bool  # an activation's output, or several of them side by side
    in_place: bool = False  # by a function: the network may read it under another name


class _Look(TorchFunctionMode):
    """Record a forward pass: the outputs of modules and activation functions, and their order."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.outputs: list[_Output] = []
        self.activations: list[_Output] = []  # those with several positions
        self.layers: list[int] = []  # when there was a convolution or dense layer
        self.attention = 0  # when there was the last one
        self.classes = 0  # logits
        self.images = images
        self.calls: Counter[str] = Counter()
        self._now = 0
        self._returned = LayerName("")  # the last module
        self._since: Counter[str] = Counter()  # calls of activations since then
        self._kept: list[Tensor] = []  # so that no two have the same id
        self._active: set[int] = set()  # ids of tensors
        self._channels_last: set[int] = set()
        self._pooled: set[int] = set()
        self._handles: list[Any] = []
        for name, module in model.named_modules():
            self._handles.append(
                module.register_forward_hook(lambda module, i, output, name=name: self._module(module, name, i, output))
            )

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def name(self, output: _Output) -> str:
        """Return the name, with the number of the call if the module is called several times."""
        return str(output.name if self.calls[output.name.module] > 1 else output.name._replace(call=None))

    def class_maps(self, output: _Output) -> bool:
        """Tell whether there is a map for each class, and no layer behind mixes them. A target function leaves one class."""
        classes = output.tensor.shape[1] if self.classes == 1 else self.classes
        return output.map and output.tensor.shape[1] == classes and max(self.layers, default=0) < output.at

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self._now += 1
        name = function_name(func)
        if name in _LAYERS and not self.calls[""]:  # not in a target function, behind the network itself
            self.layers.append(self._now)
        if name == "softmax" or "attention" in name:
            self.attention = self._now
        if not isinstance(output, Tensor):
            return output
        given = [each for arg in args for each in (arg if isinstance(arg, tuple | list) else [arg])]
        inputs = [id(each) for each in given if isinstance(each, Tensor)]
        last = name in ("linear", "layer_norm") or (
            any(each in self._channels_last for each in inputs) and _keeps_last(name, args, output)
        )
        active = name in ACTIVATIONS or (name in ("cat", "concat", "concatenate") and self._active.issuperset(inputs))
        self._mark(output, active, last)
        if name in ACTIVATIONS:
            kept = self._keep(self._returned._replace(function=name, number=self._since[name]), output, True)
            self._since[name] += 1
            kept.in_place = id(output) in inputs
            if kept.map or kept.tokens:
                self.activations.append(kept)
        return output

    def _module(self, module: nn.Module, name: str, inputs: Any, output: Any) -> None:
        self._returned, self._since = LayerName(name, self.calls[name]), Counter()
        self.calls[name] += 1
        if not isinstance(output, Tensor):
            return
        if not name and output.ndim == 2:
            self.classes = output.shape[1]
        self._now += 1
        same = any(output is each for each in inputs)
        if isinstance(module, _NO_FEATURES):
            self._pooled |= set() if same else {id(output)}
            self._keep(self._returned, output, False)
        elif _may_be_an_activation(module) and inputs and not same and output.shape == inputs[0].shape:
            self._mark(output, True, False)
            kept = self._keep(self._returned, output, True)
            self.activations += [kept] if kept.map else []
        else:
            self._keep(self._returned, output, id(output) not in self._pooled)

    def _mark(self, output: Tensor, active: bool, channels_last: bool) -> None:
        self._kept.append(output)
        for marked, yes in ((self._active, active), (self._channels_last, channels_last)):
            (marked.add if yes else marked.discard)(id(output))
        self._pooled.discard(id(output))

    def _keep(self, name: LayerName, output: Tensor, features: bool) -> _Output:
        last = id(output) in self._channels_last
        self.outputs.append(
            _Output(
                name,
                output,
                self._now,
                map=features and output.ndim == self.images.ndim and output.shape[2:].numel() > 1 and not last,
                tokens=(output.ndim == 3 and output.shape[1] > 1) or (output.ndim == 4 and last),
                active=id(output) in self._active,
            )
        )
        return self.outputs[-1]


def _may_be_an_activation(module: nn.Module) -> bool:
    """Recognise a user's module without weights: it may call unknown functions."""
    known = type(module).__module__.startswith(("torch.nn.", "torchvision."))
    return not known and next(module.children(), None) is None and next(module.parameters(), None) is None


def _keeps_last(name: str, args: tuple[Any, ...], output: Tensor) -> bool:
    """Tell whether a function keeps the last axis of its first argument in last place."""
    if name in ("reshape", "view", "flatten", "unflatten"):
        return output.shape[-1] == args[0].shape[-1]
    if name in ("permute", "transpose", "swapaxes", "swapdims"):
        axes = args[1] if isinstance(args[-1], tuple | list) else args[1:]
        moved = [axis % output.ndim for axis in axes]
        return moved[-1:] == [output.ndim - 1] if name == "permute" else output.ndim - 1 not in moved
    return name not in _LAYERS | {"movedim", "moveaxis"}


def _look(model: nn.Module, images: Tensor) -> _Look:
    """Run the network on an empty batch, or on one image if it does not accept an empty batch."""
    try:
        return _run(model, images[:0])
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever it raises: it is run on an image instead, and raises there if that fails as well
        return _run(model, images[:1])


def _run(model: nn.Module, images: Tensor) -> _Look:
    look = _Look(model, images)
    try:
        with look, named(f"{type(model).__name__} on images {list(images.shape)}"):
            logits = model(images.clone())  # the model may begin with an in-place operation
    finally:
        look.remove()
    if not look.classes and isinstance(logits, Tensor) and logits.ndim == 2:
        look.classes = logits.shape[1]
    return look


def _last_map(look: _Look, model: nn.Module) -> str:
    name, end = type(model).__name__, math.inf
    while maps := [each for each in look.outputs if each.map and each.at < end]:
        active = [each for each in look.activations if each.at < end]
        found = maps[-1]
        if active and active[-1].at > found.at:
            raise NotApplicable(_ends_in_tokens(name, active[-1].tensor))
        last = 0 if found.active else active[-1].at if active else math.inf
        behind = [each for each in reversed(maps) if each.active and each.at >= last]
        found = next((each for each in behind if each.in_place or _all_comes_from(look, model, each)), found)
        if not look.class_maps(found):
            return look.name(found)
        end = max((at for at in look.layers if at < found.at), default=0)
    raise NotApplicable(f"{name} has no feature maps [B, V, h, w]: name a layer=")


def _ends_in_tokens(name: str, tokens: Tensor) -> str:
    count = tokens.shape[1] if tokens.ndim == 3 else 0
    side = math.isqrt(count)
    sizes = list(tokens.shape[1:3]) if not count else [side, side] if count - side**2 in (0, 1) else "[rows, columns]"
    return f"{name} ends in tokens, not in feature maps [B, V, h, w]: give their reshape={sizes}, or name a layer="


def _last_tokens(look: _Look, model: nn.Module, h: int, w: int) -> str:
    def fit(shape: torch.Size) -> bool:
        return shape[1:3] == (h, w) if len(shape) == 4 else shape[1] in (h * w, h * w + 1)

    name = type(model).__name__
    found = [each for each in look.outputs if each.tokens and each.name.module and fit(each.tensor.shape)]
    if found and found[-1].tensor.ndim == 3 and found[-1].tensor.shape[1] == h * w + 1:
        found = [each for each in found if each.at < look.attention]
    if not found:
        raise NotApplicable(
            f"{name} has no layer with tokens [B, {h * w}, D], [B, {h * w + 1}, D] or [B, {h}, {w}, D], as reshape=[{h}, {w}] "
            "says: name a layer="
        )
    return look.name(found[-1])


def _all_comes_from(look: _Look, model: nn.Module, output: _Output) -> bool:
    """Tell whether the network's output depends on this output alone."""
    images = look.images.expand(2 * len(look.images), *look.images.shape[1:])
    values = output.tensor.new_zeros(len(images) + 1 + (len(images) == 0), *output.tensor.shape[1:])  # 2 or 3: none fit
    try:
        run_from(model, images, {look.name(output): values})
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever comes of rows that do not fit together
        return False
    return True
