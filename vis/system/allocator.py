"""Control and measure the memory of the process.

By default glibc returns a freed tensor to the system and requests zeroed pages for the next, which cause page faults. A
network allocates and frees activations of tens of megabytes in every layer; keeping freed memory saves about 5 % of the
time of a VGG-16 on a CPU. The setting affects the whole process, so the runner makes it, not the methods.
"""

import contextlib
import ctypes
import resource
import sys
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # from <malloc.h>


def keep_freed_memory(keep: bool = True) -> None:
    """Keep freed memory for the next tensors, or as much of it as glibc does by default; does nothing without glibc.

    At the end of the heap, up to 2 GB are kept; below memory that is in use, all of it.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # no map at all, since its threshold could not be above 32 MB: less than one layer of six maps of VGG-16
        mallopt(_MMAP_MAX, 0 if keep else 2**16)
        mallopt(_MMAP_THRESHOLD, 2**25)  # what glibc's own, dynamic thresholds reach
        mallopt(_TRIM_THRESHOLD, 2**31 - 1 if keep else 2**26)


def reset_peak_memory() -> None:
    """Restart the measurement of peak resident memory; Linux only. Freed memory goes back to the system, so it does not count."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    with contextlib.suppress(OSError):  # not Linux, or /proc is read-only
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gb() -> float:
    """Return the peak resident memory of this process; on Linux, since `reset_peak_memory`."""
    with contextlib.suppress(OSError, StopIteration):  # not Linux: the peak since the process started
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)
