"""Weights from files: checkpoints, torchvision's pretrained weights, partly trained networks."""

import hashlib
import pickle
import urllib.error
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vis.errors import UserError, did_you_mean


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], str]:
    """The state dict in a checkpoint file, and the file's sha256.

    Accepts a plain state dict or one under "state_dict" or "model", with or without the prefix "module.".
    Raises UserError for a file that is missing, unreadable, unsafe (it loads with weights_only) or holds no weights.
    """
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_mmap(path))
    except Exception as error:  # torch.load raises whatever its unpickler or zip reader meets
        reason = str(error).split("\n")[0].rstrip(".")[:160]
        raise UserError(f"{path} is not a checkpoint that can be loaded safely (weights only): {reason}") from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict (a dictionary of tensors)")
    return {str(key).removeprefix("module."): value for key, value in state.items()}, _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _can_mmap(path: Path) -> bool:
    """Only the zip format of torch >= 1.6 can be mapped."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def torchvision_state(arch: str) -> tuple[dict[str, Tensor], str, str]:
    """(state dict, sha256, file name) of torchvision's pretrained weights, downloaded on first use to torch's hub folder.

    Raises UserError where torchvision has none, or they cannot be downloaded.
    """
    from torchvision import models

    try:
        weights = models.get_model_weights(arch).DEFAULT
    except ValueError as error:
        raise UserError(f"torchvision has no pretrained weights for {arch!r}; give model.weights=FILE") from error
    name = Path(weights.url).name
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        # Through the builder, which knows the old keys and the auxiliary heads of some files.
        state = models.get_model(arch, weights=weights).state_dict()
    except (urllib.error.URLError, OSError) as error:
        raise UserError(
            f"torchvision's weights {name} could not be downloaded ({_reason(error)}). Ways out: put the file at "
            f"{cached}, give your own with model.weights=FILE, or use random weights with model.weights=null "
            f"model.init=truncated_normal"
        ) from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{cached} is damaged ({_reason(error)}): delete it to download it again") from error
    return state, _sha256(cached), name


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error).split("\n")[0]


def load_state(net: nn.Module, state: dict[str, Tensor], origin: str, only: Callable[[str], bool]) -> None:
    """Copy the tensors of the modules chosen by `only` (a predicate on their names) into `net`.

    Raises UserError that names the first tensor that is missing, unexpected or of another shape.
    """
    adapt = getattr(net, "adapt_state_dict", None)
    state = adapt(state) if adapt else state
    own = net.state_dict()
    unexpected = [key for key in state if key not in own and not key.endswith("num_batches_tracked")]
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    if unexpected or missing:
        words = []
        if missing:
            words.append(f"lacks {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""))
        if unexpected:
            words.append(
                f"has {unexpected[0]}"
                + (f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else "")
                + ", which the network does not have"
            )
        raise UserError(f"{origin} is not a checkpoint of {type(net).__name__}: it {' and '.join(words)}")
    for key, value in state.items():
        if key in own and value.shape != own[key].shape:
            raise UserError(
                f"{origin} does not fit: {key} is {tuple(value.shape)} there and {tuple(own[key].shape)} in the network. "
                "For another number of classes set model.num_classes"
            )
    with torch.no_grad():
        for key, value in state.items():
            if key in own and only(key.rpartition(".")[0]):
                own[key].copy_(value)


def trained_modules(net: nn.Module, up_to: str | None, except_layer: str | None) -> Callable[[str], bool]:
    """Which modules keep their trained weights (nie2018, Figure 9): all up to and with a layer, or all but one.

    Layers are given by module name or by the network's own names (`layer_names`: conv1_1 ... fc3 for VGG-16).
    """
    if up_to is None and except_layer is None:
        return lambda name: True
    if up_to is not None and except_layer is not None:
        raise UserError("model.trained_up_to and model.trained_except exclude each other")
    layer = resolve_layer(net, str(up_to or except_layer))
    order = [name for name, module in net.named_modules() if next(module.parameters(recurse=False), None) is not None]
    if layer not in order:
        inside = [name for name in order if name.startswith(layer + ".")]
        if not inside:
            raise UserError(f"layer {up_to or except_layer} has no weights")
        chosen = set(inside)
    else:
        chosen = {layer}
    if except_layer is not None:
        return lambda name: name not in chosen
    last = max(order.index(name) for name in chosen)
    kept = set(order[: last + 1])
    return lambda name: name in kept


def resolve_layer(net: nn.Module, layer: str) -> str:
    """The module name of a layer given by module name or by one of the network's `layer_names`. UserError if none."""
    aliases = getattr(net, "layer_names", {})
    if layer in aliases:
        return aliases[layer]
    modules = dict(net.named_modules())
    if layer and layer in modules:
        return layer
    raise UserError(f"{type(net).__name__} has no layer {layer!r}.{did_you_mean(layer, aliases or list(modules)[1:])}")
