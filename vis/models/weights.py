"""Load weights from files: checkpoints, torchvision's pretrained weights, and parts of either."""

import hashlib
import logging
import re
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from vis.errors import Lacking, UserError
from vis.graph.names import resolve_layer
from vis.system.files import intact

log = logging.getLogger(__name__)

_HASH = re.compile(r"-([0-9a-f]{8,})\.pth$")  # torch.hub puts the first digits of the sha256 into the file's name


def sha256_of(path: Path) -> str:
    """Return a file's sha256; a process reads the file again only if its size or time of modification has changed.

    Raises UserError if the file cannot be read.
    """
    try:
        now = path.stat()
        return _sha256(path, now.st_size, now.st_mtime_ns)
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror}") from error


@lru_cache
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a checkpoint file: its state dict, and the file's sha256.

    Accepts a plain state dict, or one under "state_dict", "model" or "model_state_dict", in a file of torch or safetensors.
    Raises UserError if the file is missing, unreadable, damaged, contains code or contains no weights.
    """
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    try:
        sha256 = sha256_of(path.absolute())
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # torch >= 1.6 writes zip files; only these can be memory-mapped
        whole = not zipped or intact(path)
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror}") from error
    if not whole:
        raise UserError(f"cannot load the weights {path}: it is damaged or not a checkpoint")
    if (named := _HASH.search(path.name)) and not sha256.startswith(named[1]):
        log.warning(
            "the sha256 of %s is %s..., which differs from its name: it is damaged or renamed", path, sha256[:8]
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # about unusual pickles: our error is enough
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # the unpickler and the zip reader can raise anything
        # Drop torch's advice to load with weights_only=False, which would run any code in the file.
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            f"it contains code or objects ({code[1]}), not only weights: save model.state_dict() alone"
            if code
            else "it is a TorchScript archive: save model.state_dict()"
            if "TorchScript" in str(error) or "constants.pkl" in str(error)
            else "it is damaged or not a checkpoint"
        )
        raise UserError(f"cannot load the weights {path}: {reason}") from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        keys = f"; it has {', '.join(map(str, list(state)[:8]))}" if isinstance(state, dict) and state else ""
        raise UserError(f"{path} contains no state dict (a dictionary of tensors){keys}: save model.state_dict() alone")
    return {str(key): value for key, value in state.items()}, sha256


def _url(arch: str) -> str:
    from torchvision import models

    try:
        return str(models.get_model_weights(arch).DEFAULT.url)
    except ValueError as error:
        raise UserError(f"torchvision has no pretrained weights for {arch!r}: give model.weights=FILE") from error


def torchvision_file(arch: str) -> Path:
    """Return the place of torchvision's pretrained weights in torch's hub folder. Raises UserError if it has none for `arch`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(_url(arch)).name


def torchvision_weights(arch: str) -> Path:
    """Return the file of torchvision's pretrained weights, downloading it on first use.

    Raises UserError if torchvision has no weights for `arch`, Lacking if they cannot be downloaded.
    """
    url, path = _url(arch), torchvision_file(arch)
    if not path.is_file():
        digest = _HASH.search(path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest[1] if digest else None)
        except (OSError, RuntimeError) as error:  # no network (URLError), a read-only folder, a wrong hash
            raise Lacking(
                f"torchvision's weights could not be downloaded ({getattr(error, 'reason', error)})",
                f"Ways out: put {url} at {path}, give your own with model.weights=FILE, or use random weights with "
                "model.weights=null model.init=truncated_normal",
            ) from error
    return path


def load_state(net: nn.Module, state: dict[str, Tensor], origin: str, only: Callable[[str], bool]) -> None:
    """Copy the tensors of the modules selected by `only` (a predicate on their names) into `net`.

    Tensors of other modules may be missing or have another shape. Raises UserError, naming the first tensor, if a
    selected one is missing, unexpected or has another shape.
    """
    adapt = getattr(net, "adapt_state_dict", None)
    state = _without_prefix(state, list(net.state_dict()))
    state = adapt(state) if adapt else state

    def chosen(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        counter = "num_batches_tracked"  # used only to train batch norm; old files do not have it
        return {k: v for k, v in tensors.items() if only(k.rpartition(".")[0]) and not k.endswith(counter)}

    state, own = chosen(state), chosen(net.state_dict())
    unexpected = [key for key in state if key not in own]
    missing = [key for key in own if key not in state]
    problems = [f"is missing {_first(missing)}"] if missing else []
    problems += [f"has {_first(unexpected)}, which the network does not have"] if unexpected else []
    if problems:
        raise UserError(f"{origin} is not a checkpoint of {type(net).__name__}: it {' and '.join(problems)}")
    for key, value in state.items():
        if value.shape != own[key].shape:
            last = key.rpartition(".")[0] == list(own)[-1].rpartition(".")[0]
            raise UserError(
                f"{origin} does not fit {type(net).__name__}: {key} is {tuple(value.shape)} in the file and "
                f"{tuple(own[key].shape)} in the network" + " (set model.num_classes)" * last
            )
    with torch.no_grad():
        for key, value in state.items():
            own[key].copy_(value)


def _without_prefix(state: dict[str, Tensor], own: list[str]) -> dict[str, Tensor]:
    """Strip what wrappers put before the names: module. (DataParallel), model. (Lightning), _orig_mod. (torch.compile), ...

    The tensors of the wrapper itself, such as a loss's, are left out.
    """
    name = next(iter(own), "")
    prefixes = [key.removesuffix(name) for key in state if key.endswith("." + name)]
    if not name or name in state or not prefixes:
        return {key.removeprefix("module."): value for key, value in state.items()}
    prefix = min(prefixes, key=len)
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _first(keys: list[str]) -> str:
    return keys[0] + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def trained_modules(net: nn.Module, up_to: str | None, except_layer: str | None) -> Callable[[str], bool]:
    """Return a predicate on module names: True if the module keeps its trained weights (nie2018, Figure 9).

    These are all modules up to and including a layer, or all but one. A layer is given by its module name or by the
    network's own name for it (`layer_names`: conv1_1 ... fc3 for VGG-16). Raises UserError for a layer without weights.
    """
    if up_to is None and except_layer is None:
        return lambda name: True
    if up_to is not None and except_layer is not None:
        raise UserError("model.trained_up_to and model.trained_except exclude each other: give one of them")
    layer = resolve_layer(net, str(up_to or except_layer))
    order = list(dict.fromkeys(key.rpartition(".")[0] for key in net.state_dict()))
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
