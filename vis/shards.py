"""One run by several processes, which torchrun starts, on one machine or on several with a common folder:

    torchrun --nproc-per-node 4 -m vis.run experiment=...

Rank 0 does what a single process does, and tells the others the folder; rank r of n computes the units r, r + n, ... into
it. All they say to each other goes through torchrun's key-value store.
"""

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
    """The others: this process's units are done."""
    _store().set(f"done {rank()}", "")


def wait() -> None:
    """Rank 0: until all units are done."""
    if world() > 1:
        _store().wait([f"done {other}" for other in range(1, world())], _LONG)


@cache
def _store() -> Any:
    from torch.distributed import rendezvous

    return next(iter(rendezvous("env://", timeout=_LONG)))[0]
