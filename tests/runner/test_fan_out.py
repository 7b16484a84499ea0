"""The processes of a collection."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vis.runner import fan_out

PARENT = """
from vis.runner.fan_out import fan_out
job = "import os, pathlib, time; pathlib.Path(str(os.getpid())).touch(); time.sleep(60)"
fan_out([job, job], 2, exec, lambda: None)
"""


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_processes_end_with_a_parent_that_is_killed(tmp_path):
    def wait(true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=tmp_path)
    wait(lambda: len(list(tmp_path.iterdir())) == 2)
    children = [int(path.name) for path in tmp_path.iterdir()]
    parent.kill()
    parent.wait()
    wait(lambda: not any(map(runs, children)))


INTERRUPTED = """
import pathlib
from vis.runner.fan_out import fan_out
job = (
    "import pathlib, time; from vis.system.console import progress; "
    "list(progress([0], 1, 'tasks')); pathlib.Path('begun').touch(); time.sleep(60)"
)


def waiting():
    if pathlib.Path("begun").exists():
        raise KeyboardInterrupt


try:
    fan_out([job], 1, exec, waiting)
except KeyboardInterrupt:
    pass
"""


def test_an_interrupt_prints_no_warning_of_the_processes(tmp_path):
    ran = subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stderr == ""


def test_the_number_of_processes_where_the_system_has_no_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert 1 <= fan_out.processes() <= (os.cpu_count() or 1)
