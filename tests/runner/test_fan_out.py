"""The processes of a collection."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from vis.runner import fan_out

PARENT = """
import multiprocessing, time
from vis.runner.fan_out import fan_out
fan_out([60, 60], 2, time.sleep, lambda: print(*(each.pid for each in multiprocessing.active_children()), flush=True))
"""


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_processes_end_with_a_parent_that_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    assert all(map(runs, children))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 20
    while any(map(runs, children)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_number_of_processes_where_the_system_has_no_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert 1 <= fan_out.processes() <= (os.cpu_count() or 1)
