"""Run the items of a collection in several processes of this machine.

Each process takes the next item from a queue, the longest first. Items that read the clock (`experiment.alone`) run one after
the other at the end, with all threads. Every item has its own folder and lock, so a killed collection resumes as one process
would.
"""

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vis.system.console import start_logging

log = logging.getLogger(__name__)

_GB_EACH = 8  # of memory, for the largest items


def processes() -> int:
    """Return how many processes pay on this machine: one for each core, as far as memory reaches; one on a GPU."""
    import torch

    if torch.cuda.is_available():
        return 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # a container may have less; "max" is no limit
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return max(1, min(_cores(), int(memory / 1e9 / _GB_EACH)))


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fan_out(jobs: Sequence[int], count: int, run: Callable[[int], str], waiting: Callable[[], None]) -> None:
    """Call `run(job)` for each job in `count` processes, which share the cores; log the lines that it returns.

    jobs: in the order in which they start. run: a picklable function. waiting: called about once a second meanwhile.
    The processes end with this one, also by an exception, and when it is killed.
    """
    context = multiprocessing.get_context("spawn")
    todo: Any = context.Queue()
    finished: Any = context.Queue()
    for job in [*jobs, *[None] * count]:
        todo.put(job)
    left, total = len(jobs), len(jobs)
    with _threads(max(1, _cores() // count)):
        workers = [context.Process(target=_work, args=(todo, finished, run), daemon=True) for _ in range(count)]
        for worker in workers:
            worker.start()
    try:
        while left:
            try:
                line = finished.get(timeout=1)
                left -= 1
                log.info("[%d/%d] %s", total - left, total, line)
            except queue.Empty:
                if not any(worker.is_alive() for worker in workers):  # killed, by the system or a user
                    break
            waiting()
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _work(todo: Any, finished: Any, run: Callable[[int], str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start_logging()
    logging.root.setLevel(logging.WARNING)  # the parent says what is done
    while (job := todo.get()) is not None:
        began = time.perf_counter()
        finished.put(f"{run(job)} in {time.perf_counter() - began:.0f} s")


def _end_with_parent() -> None:
    """Wait for the parent's end, and end this process: a parent that is killed ends no process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Give the processes that start inside so many threads each, by the variable that torch reads when it is imported."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
