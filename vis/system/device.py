"""The device that a run computes on: which, what it is called, when it is done, how much of its memory was used."""

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, ContextDecorator, contextmanager, nullcontext
from typing import Any

import torch

from vis.errors import UserError
from vis.system import allocator

_mixed = False


def pick_device(name: str) -> torch.device:
    """The device of that name; auto is the first accelerator there is. Raises UserError where it is not there.

    Processes that torchrun or srun started take the GPUs in turn.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    place = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
    if name == "cuda" and place and torch.cuda.is_available():
        name = f"cuda:{int(place) % torch.cuda.device_count()}"
    kind, _, index = name.partition(":")
    if kind == "cuda" and (not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count()):
        raise UserError(
            f"device={name} is not there ({torch.cuda.device_count()} CUDA devices): use device=cpu or auto"
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps is not there: use device=cpu or auto")
    return torch.device(name)


def hardware(device: torch.device) -> str:
    """What the device is, for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given, as a clock must."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def set_precision(precision: str) -> None:
    """Choose the precision of products: with mixed, of backward passes, TF32 on NVIDIA GPUs and bfloat16 on CPUs that have it.

    tf32: everything in TF32 on NVIDIA GPUs. With mixed, the forward pass still decides in float32 which ReLUs are active.
    """
    global _mixed
    _mixed = precision == "mixed"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def backward_precision() -> AbstractContextManager[None]:
    """Return the context for backward passes under the precision set by `set_precision`."""
    return tf32(allowed=True) if _mixed else nullcontext()


def is_native(dtype: torch.dtype, device: torch.device) -> bool:
    """Return True if the device multiplies in bfloat16 or float16."""
    if device.type == "cuda":
        return dtype is torch.float16 or torch.cuda.get_device_capability(device) >= (8, 0)
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older torch
    ending = "bf16" if dtype is torch.bfloat16 else "fp16"
    return device.type != "cpu" or any(there for name, there in found.items() if name.endswith(ending))


def mixed_in_bfloat16(device: torch.device) -> bool:
    """Return True if backward passes on this device are in bfloat16: with precision=mixed, on a CPU that multiplies in it."""
    return _mixed and device.type == "cpu" and is_native(torch.bfloat16, device)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in convolutions and matrix products on NVIDIA GPUs; restore the settings on exit."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def local_convolutions() -> ContextDecorator:
    """A decorator: convolutions in which a pixel that has no influence has none bit for bit.

    cuDNN's Winograd and Fourier convolutions mix neighbouring pixels, whose shares cancel up to rounding only.
    """
    return torch.backends.cudnn.flags(enabled=False)


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_gb` count from here."""
    allocator.reset_peak_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_gb(device: torch.device) -> float:
    """The most memory in use since `reset_peak_memory`: a GPU's own tensors, else the process's resident memory."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else allocator.peak_memory_gb()


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the device ran out of memory; the CPU's allocator and the libraries of GPUs have no class for it."""
    words = ("can't allocate memory", "not enough memory", "ALLOC_FAILED", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
