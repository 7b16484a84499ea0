"""Share a run between processes that have a common file system, started by torchrun or by Slurm:

    torchrun --nproc-per-node 4 -m vis.run experiment=...
    sbatch --array=0-3 --wrap "vis-run experiment=..."        or: srun --ntasks=4 vis-run experiment=...

torchrun: rank 0 does what a single process does, and announces the folder; rank r of n writes tasks r, r + n, ... to it.
The processes communicate through torchrun's key-value store.

Slurm: the tasks of an array may start at any time, one after the other too, and each may be ended. One of those that run the
same command leads the run as a single process would; each claims one task of the run after the other, by a lock that ends
with its process. The leader concludes the run when all tasks are there. If it ended before, the next one leads.
"""

import atexit
import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import IO, Any

from vis.system.locks import lock

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


# --- tasks of Slurm ---------------------------------------------------------------------------------------------------


def slurm() -> str:
    """Return the number of the Slurm array, or of srun's job and step, that this process is one of several tasks of; else "".

    A job that submitit started, as those of a sweep are, is part of an array too, but has its own run.
    """
    if "SUBMITIT_EXECUTOR" in os.environ or world() > 1:
        return ""
    if _slurm("ARRAY_TASK_COUNT", 1) > 1:
        return os.environ["SLURM_ARRAY_JOB_ID"]
    return "{SLURM_JOB_ID}.{SLURM_STEP_ID}".format(**os.environ) if _slurm("STEP_NUM_TASKS", 1) > 1 else ""


def place() -> tuple[int, int]:
    """Return r, n if this process takes tasks r, r + n, ... first, because n processes share the run."""
    if not slurm():
        return rank(), world()
    each, count = _slurm("STEP_NUM_TASKS", 1), _slurm("ARRAY_TASK_COUNT", 1)
    index = (_slurm("ARRAY_TASK_ID", 0) - _slurm("ARRAY_TASK_MIN", 0)) // _slurm("ARRAY_TASK_STEP", 1)
    return (index * each + _slurm("PROCID", 0)) % (each * count), each * count


def _slurm(name: str, default: int) -> int:
    return int(os.environ.get(f"SLURM_{name}", default))


def common_folder(root: Path, command: str, reserve: Callable[[], Path]) -> Path:
    """Return the folder of the run that the tasks of this Slurm job share; the first one reserves it.

    Tasks with different commands (seed=$SLURM_ARRAY_TASK_ID) have runs of their own.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".slurm-{slurm()}-{hashlib.sha256(command.encode()).hexdigest()[:16]}").open("a+") as note:
        lock(note, fcntl.LOCK_EX)
        note.seek(0)
        if not (name := note.read()):
            name = str(reserve())
            note.write(name)
        return Path(name)


def lead(folder: Path) -> bool:
    """Return True if this process leads the run in a folder, from now to its end; False once another one has begun the run."""
    file = (folder / ".leader").open("w")
    while True:
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if (folder / "config.yaml").is_file() or (folder / "sweep.json").is_file():
                file.close()
                return False
            time.sleep(0.2)
        else:
            _claims[-1] = file
            return True


_claims: dict[int, IO[str]] = {}  # locked files, by the number of their task


def claim(parts: Path, number: int, wait: bool = False) -> bool:
    """Claim a task of a run for this process; False if it is done, or another one computes it (wait: once that has ended)."""
    try:
        file = (parts / f"{number:06d}.claim").open("w")
    except FileNotFoundError:  # the run is over
        return False
    try:
        lock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return False
    if (parts / f"{number:06d}.npz").exists():
        file.close()
        return False
    _claims[number] = file
    return True


def release(number: int) -> None:
    """Give up the claim to a task, whose output is stored."""
    if number in _claims:
        _claims.pop(number).close()


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
