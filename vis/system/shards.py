"""One run by several processes, which torchrun starts, on one machine or on several with a common folder:

    torchrun --nproc-per-node 4 -m vis.run experiment=...

Rank 0 does what a single process does, and tells the others the folder; rank r of n computes the tasks r, r + n, ... into
it. All they say to each other goes through torchrun's key-value store.
"""

import atexit
import os
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

_LONG = timedelta(days=30)  # torchrun ends all processes when one fails


def rank() -> int:
    """This process's number; 0 for a process of its own."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def world() -> int:
    """How many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "MASTER_ADDR" in os.environ else 1


def begin(folder: Path) -> None:
    """Rank 0: the run in this folder is ready to be worked on."""
    if world() > 1:
        _store().set("folder", str(folder))


def over() -> None:
    """Rank 0: the command is done; was there no run in it, the others need not wait for one."""
    if world() > 1 and rank() == 0 and not _store().check(["folder"]):
        _store().set("folder", "")


def folder() -> Path | None:
    """The others: the folder to work in, as soon as it is ready; None where there is nothing to do."""
    _store().wait(["folder"], _LONG)
    name = _store().get("folder").decode()
    return Path(name) if name else None


def report() -> None:
    """The others: this process's tasks are done."""
    _store().set(f"done {rank()}", "")


def wait() -> None:
    """Rank 0: until all tasks are done."""
    if world() > 1:
        _store().wait([f"done {other}" for other in range(1, world())], _LONG)


# --- processes that compute one thing together ------------------------------------------------------------------------


def local_world() -> int:
    """How many of the processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world() > 1 else 1


def mine(items: Any) -> Any:
    """Return this process's part of a sequence or of the rows of a tensor; the parts of all processes are the whole."""
    return items[rank() :: world()]


def data_parallel(net: Any, device: Any) -> Any:
    """`net`, with the gradients of its parameters averaged over the processes in its backward pass; all call this at once."""
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


def total(tensor: Any) -> Any:
    """The sum of a tensor over the processes, in place."""
    if world() > 1:
        from torch import distributed

        distributed.all_reduce(tensor)
    return tensor


def broadcast(tensor: Any) -> None:
    """Give all processes rank 0's values of a tensor."""
    if world() > 1:
        from torch import distributed

        distributed.broadcast(tensor, 0)


@cache
def _store() -> Any:
    from torch.distributed import rendezvous

    return next(iter(rendezvous("env://", timeout=_LONG)))[0]
