"""Run a network from a layer on, with other values at the layer.

A hook replaces the layer's output. The images are then an empty batch [0, C, H, W]: the network up to the layer costs nothing,
and torch raises if anything reaches the output around the layer, since it has no rows.
"""

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vis.errors import NotApplicable
from vis.methods.functional import LayerName, Tap


def run_from(model: nn.Module, images: Tensor, layer: str, values: Tensor) -> Tensor:
    """Return the network's output [n, K] if `layer` gives `values` [n, ...] instead of its own output.

    images: [0, C, H, W] if the output depends on the layer alone (else torch raises), or [n, C, H, W].
    """
    name = LayerName.of(layer)
    calls = iter(range(1 << 30))

    def replace(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        return values.clone() if next(calls) == (name.call or 0) else None  # an in-place ReLU may follow

    module = model.get_submodule(name.module)
    handle: Any = (
        Tap(module, name, lambda _: values.clone()) if name.function else module.register_forward_hook(replace)
    )
    try:
        output = model(images)
    finally:
        handle.remove()
    if output.shape[0] != values.shape[0]:
        raise NotApplicable(f"the output of {type(model).__name__} does not come from layer {layer} alone")
    return output


def run_rest(model: nn.Module, image: Tensor, layer: str, values: Tensor) -> Tensor:
    """Call `run_from` for one image [1, C, H, W], with n copies of it if the output depends on more than the layer."""
    try:
        return run_from(model, image[:0], layer, values)
    except torch.OutOfMemoryError:  # more of it would not help
        raise
    except Exception:  # a skip connection around the layer, an operation that takes no empty batch, a user's hook
        return run_from(model, image.expand(len(values), -1, -1, -1), layer, values)


class Dense(NamedTuple):
    """A dense layer W, b whose inputs divide into a share P_v [n] of each feature map: z = b + sum_v W_v P_v.

    name: for `Forward`. shares [B, V, n]; a feature map of zeros has a share of zeros.
    """

    name: str
    linear: nn.Linear
    shares: Tensor


def dense_after(model: nn.Module, images: Tensor, layer: str, A: Tensor) -> Dense | None:
    """Find the first dense layer behind `layer`, for its outputs A [B, V, h, w]; None unless each map has its own share of it.

    This holds if only pooling, ReLU, dropout and flattening lie between, in any spelling. A trial decides, not their names: if a
    set of maps is 0, the dense layer's inputs must be 0 in their shares, and unchanged bit for bit in all others. The sets
    distinguish every two maps.
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
    """Signal that the pass reached the dense layer: the rest need not run."""
