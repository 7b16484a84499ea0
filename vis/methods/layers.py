"""Finding a layer of a network, and running the network from a layer on.

A hook puts other values in a layer's place. The images are then an empty batch [0, C, H, W]: the network up to the layer
costs nothing, and whatever reaches the output past the layer has no rows, so that it cannot be mixed up with what comes
from the layer: torch raises.
"""

from collections import Counter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import dropout, pooling

from vis.methods.forward import NotApplicable, check_images, evaluating
from vis.models.weights import resolve_layer

_NO_FEATURES = (
    pooling._MaxPoolNd,
    pooling._AvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
    pooling._AdaptiveAvgPoolNd,
    pooling._LPPoolNd,
    dropout._DropoutNd,
    nn.Flatten,
    nn.Identity,
)

_found: WeakKeyDictionary[nn.Module, dict[torch.Size, str]] = WeakKeyDictionary()


def feature_layer(model: nn.Module, images: Tensor, layer: str | None = None) -> str:
    """The name of the layer whose feature maps [B, V, h, w] are looked at, as `Forward` takes it.

    layer: a module's name, `name:k` for its k-th call, or one of the network's own names (conv5_3 of VGG-16). None finds
    the last feature map with more than one position that is no pooling, dropout or the like: features.29 of vgg16, layer4
    of resnet50, features of densenet121, relu:2 where one ReLU serves three times. images [B, C, H, W] tell the sizes.

    Raises UserError for a name that is not there, NotApplicable for a network without feature maps.
    """
    if layer is not None:
        name, colon, call = layer.partition(":")
        return resolve_layer(model, name) + colon + call
    check_images(model, images)
    known = _found.setdefault(model, {})
    size = images.shape[1:]
    if size not in known:
        known[size] = _last_feature_map(model, images)
    return known[size]


def _last_feature_map(model: nn.Module, images: Tensor) -> str:
    calls: Counter[str] = Counter()
    skipped: list[Tensor] = []  # outputs of poolings; a container that ends in one returns the same tensor
    last = ("", 0)

    def look(module: nn.Module, name: str, output: Any) -> None:
        nonlocal last
        calls[name] += 1
        if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[2] * output.shape[3] < 2:
            return
        container = next(module.children(), None) is not None
        if isinstance(module, _NO_FEATURES):
            skipped.append(output)
        elif not (container and any(output is each for each in skipped)):
            last = (name, calls[name])

    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: look(module, name, output))
        for name, module in model.named_modules()
    ]
    try:
        with evaluating(model), torch.no_grad():
            if not _takes_no_images(model, images):
                calls.clear()
                model(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    name, call = last
    if call == 0:
        raise NotApplicable(f"{type(model).__name__} has no feature maps [B, V, h, w]: name a layer=")
    return name if calls[name] == 1 else f"{name}:{call - 1}"


def _takes_no_images(model: nn.Module, images: Tensor) -> bool:
    """Whether the network takes an empty batch."""
    try:
        model(images[:0])
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever it raises: it is run on an image instead, and raises there if that fails as well
        return False
    return True


def run_from(model: nn.Module, images: Tensor, layer: str, values: Tensor) -> Tensor:
    """The output [n, K] of the network when `layer` gives `values` [n, ...] in place of what it makes of the images.

    images [0, C, H, W] where the output depends on nothing but the layer (else an exception), or [n, C, H, W].
    """
    name, _, call = layer.partition(":")
    calls = iter(range(1 << 30))

    def replace(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        return values.clone() if next(calls) == int(call or 0) else None  # an in-place ReLU may follow

    handle = model.get_submodule(name).register_forward_hook(replace)
    try:
        output = model(images)
    finally:
        handle.remove()
    if output.shape[0] != values.shape[0]:
        raise NotApplicable(f"the output of {type(model).__name__} does not come from layer {layer} alone")
    return output


def run_rest(model: nn.Module, image: Tensor, layer: str, values: Tensor) -> Tensor:
    """`run_from` for one image [1, C, H, W]; it goes through as well, n times, where the layer alone does not do."""
    try:
        return run_from(model, image[:0], layer, values)
    except torch.OutOfMemoryError:  # more of it would not help
        raise
    except Exception:  # a skip connection around the layer, an operation that takes no empty batch, a user's hook
        return run_from(model, image.expand(len(values), -1, -1, -1), layer, values)


class Dense(NamedTuple):
    """A dense layer W, b that reads feature maps, each map its own share P_v [n] of the inputs: z = b + sum_v W_v P_v.

    name: as `Forward` takes it. shares [B, V, n]. The share of a feature map that is 0 is 0.
    """

    name: str
    linear: nn.Linear
    shares: Tensor


def dense_after(model: nn.Module, images: Tensor, layer: str, A: Tensor) -> Dense | None:
    """The first dense layer behind `layer`, for its outputs A [B, V, h, w]; None unless each map has its own share of it.

    So it is where only pooling, ReLU, dropout and flattening lie between, in any spelling. They are not recognised by
    name but tried: a set of maps is set to 0, and the inputs of the dense layer must become 0 at their places, bit for
    bit, and stay as they were at all others. The sets tell every two maps apart.
    """
    V = A.shape[1]
    index = torch.arange(V, device=A.device)
    bits = (index >> torch.arange(max(1, (V - 1).bit_length()), device=A.device)[:, None]) & 1
    kept = torch.cat([bits, 1 - bits]).to(A.dtype)
    trial = torch.linspace(1, 2, A[0].numel(), dtype=A.dtype, device=A.device).view_as(A[0])
    rows = torch.cat([A, trial[None], trial * kept[:, :, None, None]])
    calls: Counter[str] = Counter()
    reached: list[tuple[str, nn.Linear, Tensor]] = []

    def stop(module: nn.Linear, name: str, inputs: tuple[Any, ...]) -> None:
        if inputs and len(inputs[0]) == len(rows):  # before the layer there are no rows
            reached.append((f"{name}:{calls[name]}", module, inputs[0]))
            raise _Reached
        calls[name] += 1

    handles = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: stop(module, name, inputs))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    ]
    try:
        run_from(model, images[:0], layer, rows)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # _Reached, or a network that does not run from this layer alone
        pass
    finally:
        for handle in handles:
            handle.remove()
    if not reached or reached[0][2].ndim != 2 or reached[0][2].shape[1] % V:
        return None
    name, linear, read = reached[0]
    shares, whole, parts = read.view(len(rows), V, -1).split([len(A), 1, len(kept)])
    return Dense(name, linear, shares) if torch.equal(parts, whole * kept[:, :, None]) else None


class _Reached(Exception):
    """The dense layer was reached: the rest need not run."""
