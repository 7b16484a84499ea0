"""Run a network from a layer on, with other values at the layer.

Hooks replace the outputs of layers. The images are then an empty batch [0, C, H, W]: the network up to the layer costs nothing,
and torch raises if anything reaches the output around the layer, since it has no rows.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vis.errors import NotApplicable
from vis.graph.trace import is_hooked
from vis.methods.functional import LayerName, Tap


def run_from(model: nn.Module, images: Tensor, given: Mapping[str, Tensor], rows: int | None = None) -> Tensor:
    """Return the network's output [n, K] if each layer in `given` gives these values [n, ...] instead of its own output.

    images: [0, C, H, W] if the output depends on these layers alone (else torch raises), or [n, C, H, W]. rows: of the output,
    if not n.
    """
    handles: list[Any] = []
    try:
        for layer, values in given.items():
            handles.append(_replace(model, LayerName.of(layer), partial(_instead, values)))
        output = model(images.clone())  # the model may begin with an in-place operation
    finally:
        for handle in reversed(handles):
            handle.remove()
    if any(output.shape[0] != (rows or values.shape[0]) for values in given.values()):
        raise NotApplicable(f"the output of {type(model).__name__} does not come from {', '.join(given)} alone")
    return output


def run_to(model: nn.Module, images: Tensor, layer: str) -> Tensor | None:
    """Return the output [B, ...] of a layer without running the rest of the network, which gets an empty batch.

    None if that fails, or if the layer is not called once.
    """
    name, reached = LayerName.of(layer), []

    def stop(output: Any) -> Tensor:
        reached.append(output)
        return output[:0]

    handle = _replace(model, name, stop)
    try:
        output = model(images.clone())
    except torch.OutOfMemoryError:
        raise
    except Exception:  # an operation that takes no empty batch, a skip connection around the layer, a user's hook
        return None
    finally:
        handle.remove()
    classifies = isinstance(output, Tensor) and output.ndim == 2 and len(output) == 0
    return reached[0] if classifies and len(reached) == 1 and isinstance(reached[0], Tensor) else None


def _instead(values: Tensor, output: Any) -> Tensor:
    return values.clone()  # an in-place ReLU may follow


def _replace(model: nn.Module, name: LayerName, change: Callable[[Any], Tensor]) -> Any:
    """Register a hook that replaces a layer's output by change(output), until its `remove()`."""
    module = model.get_submodule(name.module)
    if name.function:
        return Tap(module, name, change)
    calls = count()

    def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        return change(output) if name.call is None or next(calls) == name.call else None

    return module.register_forward_hook(hook)


def run_rest(model: nn.Module, image: Tensor, layer: str, values: Tensor) -> Tensor:
    """Call `run_from` for one image [1, C, H, W], with n copies of it if the output depends on more than the layer."""
    try:
        return run_from(model, image[:0], {layer: values})
    except torch.OutOfMemoryError:  # more of it would not help
        raise
    except Exception:  # a skip connection around the layer, an operation that takes no empty batch, a user's hook
        return run_from(model, image.expand(len(values), -1, -1, -1), {layer: values})


class Reader(NamedTuple):
    """A convolution or dense layer whose inputs divide into a share P_v of each feature map: z = b + sum_v W_v P_v.

    name: for `run_from`. shares [B, V, n] of a dense layer, [B, V, k, h, w] of a convolution; maps of zeros have shares of
    zeros. z: the output [B, K, ...].
    """

    name: str
    module: nn.Linear | nn.Conv2d
    shares: Tensor
    z: Tensor

    def without(self, image: int, some: Tensor) -> Tensor:
        """Return z, and z_v = z - W_v P_v for some v [n]: [1 + n, K, ...]. Exact: nothing but the order of sums differs."""
        P, z, (_, V) = self.shares[image], self.z[image], self.shares.shape[:2]
        W, n = self.module.weight, len(some)
        if isinstance(self.module, nn.Linear):
            k = math.gcd(V, 16)  # feature maps at a time, as a block-diagonal matrix: W is read in longer pieces
            blocks = P.new_zeros(V // k, k, P.shape[1], k)
            blocks.diagonal(dim1=1, dim2=3).copy_(P.view(V // k, k, -1).transpose(1, 2))
            products = W.view(len(W), V // k, -1).transpose(0, 1) @ blocks.view(V // k, -1, k)
            return torch.cat([z[None], z - products.mT.reshape(V, len(W))[some]])
        conv = self.module
        columns = F.unfold(P[some], conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # type: ignore[arg-type]  # pairs
        W = W.unflatten(1, (V, -1))[:, some].transpose(0, 1).flatten(2)  # [n, K, k kh kw]
        rows = z.new_empty(1 + n, z[0].numel(), len(z))
        rows[0] = z.flatten(1).T
        torch.baddbmm(rows[:1], columns.mT, W.mT, alpha=-1, out=rows[1:])
        return rows.unflatten(1, z.shape[1:]).permute(0, 3, 1, 2)  # in channels_last


def readers(model: nn.Module, images: Tensor, layer: str, A: Tensor) -> list[Reader]:
    """Find the convolutions and dense layers that read `layer`, for its outputs A [B, V, h, w].

    Returns [] unless the network's output depends on `layer` through them alone, and each feature map has its own share of their
    inputs. This holds if only pooling, ReLU, dropout and flattening lie between, in any spelling. A trial decides, not their
    names: if a set of maps is 0, the inputs must be 0 in their shares, and unchanged bit for bit in all others. The sets
    distinguish every two maps.
    """
    B, V = A.shape[:2]
    index = torch.arange(V, device=A.device)
    bits = (index >> torch.arange(max(1, (V - 1).bit_length()), device=A.device)[:, None]) & 1
    kept = torch.cat([bits, 1 - bits]).to(A.dtype)
    trial = torch.linspace(1, 2, A[0].numel(), dtype=A.dtype, device=A.device).view_as(A[0])
    rows = torch.cat([A, trial[None], trial * kept[:, :, None, None]])
    calls: Counter[str] = Counter()
    reading: dict[nn.Module, tuple[str, Tensor]] = {}
    found: list[Reader] = []

    def before(module: nn.Module, name: str, inputs: tuple[Any, ...]) -> Any:
        calls[name] += 1
        x = inputs[0] if inputs else None
        if not isinstance(x, Tensor) or len(x) != len(rows) or x.shape[1] % V:
            return None
        if x.ndim != (2 if isinstance(module, nn.Linear) else 4):
            return None
        shares, whole, parts = x.reshape(len(rows), V, -1).split([B, 1, len(kept)])
        if not torch.equal(parts, whole * kept[:, :, None]):
            return None
        shape = () if x.ndim == 2 else (x.shape[1] // V, *x.shape[2:])
        reading[module] = f"{name}:{calls[name] - 1}", shares.unflatten(2, shape) if shape else shares
        return x[:B]

    def after(module: Any, inputs: Any, output: Tensor) -> Tensor | None:
        if module not in reading:
            return None
        name, shares = reading.pop(module)
        found.append(Reader(name, module, shares, output))
        return output[:1].repeat(
            2, *[1] * (output.ndim - 1)
        )  # two rows do not fit to those that come around the readers

    handles: list[Any] = []
    for name, module in model.named_modules():
        if _reads_in_shares(module):
            handles.append(module.register_forward_pre_hook(lambda module, x, name=name: before(module, name, x)))
            handles.append(module.register_forward_hook(after))
    try:
        run_from(model, images[:0], {layer: rows}, rows=2)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a network that does not run from this layer alone, or from the readers alone
        return []
    finally:
        for handle in handles:
            handle.remove()
    return found


def _reads_in_shares(module: nn.Module) -> bool:
    """Tell whether a module is a dense layer, or a convolution of all channels over zeros around the image."""
    if type(module).forward is nn.Linear.forward:
        return not is_hooked(module)
    return (
        type(module).forward is nn.Conv2d.forward
        and isinstance(module, nn.Conv2d)
        and (module.groups, module.padding_mode) == (1, "zeros")
        and not isinstance(module.padding, str)
        and not is_hooked(module)
    )
