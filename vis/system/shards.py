"""Share a run between processes started by torchrun, on one machine or on several with a common file system:

    torchrun --nproc-per-node 4 -m vis.run experiment=...

Rank 0 does what a single process does, and announces the folder; rank r of n writes tasks r, r + n, ... to it. The
processes communicate through torchrun's key-value store.
"""

import atexit
import os
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

_LONG = timedelta(days=30)  # torchrun stops all processes if one fails


def rank() -> int:
    """Return the rank of this process; 0 without torchrun."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def world() -> int:
    """Return the number of processes that share the run."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "MASTER_ADDR" in os.environ else 1


def begin(folder: Path) -> None:
    """On rank 0, announce that the run in this folder is ready for the others."""
    if world() > 1:
        _store().set("folder", str(folder))


def over() -> None:
    """On rank 0, end the command; if it started no run, tell the others not to wait."""
    if world() > 1 and rank() == 0 and not _store().check(["folder"]):
        _store().set("folder", "")


def folder() -> Path | None:
    """On other ranks, wait for the folder to work in, and return it; None if there is nothing to do."""
    _store().wait(["folder"], _LONG)
    name = _store().get("folder").decode()
    return Path(name) if name else None


def report() -> None:
    """On other ranks, report that this process has finished its tasks."""
    _store().set(f"done {rank()}", "")


def wait() -> None:
    """On rank 0, wait until all tasks are done."""
    if world() > 1:
        _store().wait([f"done {other}" for other in range(1, world())], _LONG)


# --- one computation shared by all processes --------------------------------------------------------------------------


def local_world() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world() > 1 else 1


def mine(items: Any) -> Any:
    """Return this process's part of a sequence, or of the rows of a tensor."""
    return items[rank() :: world()]


def data_parallel(net: Any, device: Any) -> Any:
    """Make `net` average its parameters' gradients over the processes in the backward pass; all must call this."""
    if world() == 1:
        return net
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        store = distributed.PrefixStore("group", _store())
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank(), world_size=world())
        atexit.register(distributed.destroy_process_group)
    return torch.nn.parallel.DistributedDataParallel(net, device_ids=[device] if device.type == "cuda" else None)


def all_reduce(tensor: Any) -> Any:
    """Sum a tensor over the processes, in place, and return it."""
    if world() > 1:
        from torch import distributed

        distributed.all_reduce(tensor)
    return tensor


def broadcast(tensor: Any) -> None:
    """Copy rank 0's values of a tensor to all processes."""
    if world() > 1:
        from torch import distributed

        distributed.broadcast(tensor, 0)


@cache
def _store() -> Any:
    from torch.distributed import rendezvous

    return next(iter(rendezvous("env://", timeout=_LONG)))[0]
