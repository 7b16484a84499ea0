"""The memory of the process.

Page faults: by default glibc gives a freed tensor back to the system and asks for fresh, zeroed pages for the next. A
network's activations of tens of megabytes come and go with every layer; keeping freed memory in the process saves about 5 %
of the time of a VGG-16 on a CPU. It concerns the whole process, so it is the runner's choice, not the methods'.
"""

import contextlib
import ctypes
import resource
import sys
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>


def keep_freed_memory(keep: bool = True) -> None:
    """Keep up to 2 GB of freed memory for the next tensors, or go back to glibc's defaults; nothing where there is no glibc."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 2**25 if keep else 2**17)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1 if keep else 2**17)


def reset_peak_memory() -> None:
    """Let the peak of resident memory count from here; Linux only."""
    with contextlib.suppress(OSError):  # not Linux, or /proc is read only
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gb() -> float:
    """Largest resident memory of this process, on Linux since `reset_peak_memory`."""
    with contextlib.suppress(OSError, StopIteration):  # not Linux: the peak since the process began
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)
