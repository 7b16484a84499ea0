"""What a run or a sweep is at, for `vis-run --status`, also while another process, on another machine, works on it."""

import shlex
import time
from pathlib import Path

from vis.errors import UserError
from vis.store.run_folder import RunFolder
from vis.store.sweep_plan import job_folder, plan
from vis.system.console import duration


def status(folder: Path) -> str:
    """Return a line on a run, or a line on each job of a sweep and one on all. Raises UserError if the folder is neither."""
    whole = plan(folder)
    if whole is None:
        if not RunFolder(folder).status:
            raise UserError(f"{folder} is not the folder of a run or a sweep: it has no status.json")
        return _line(RunFolder(folder))
    states, lines = [], []
    for number, job in enumerate(whole["jobs"]):
        run = RunFolder(path) if (path := job_folder(folder, number)) else None
        states.append(run.status.get("state", "not started") if run else "not started")
        lines.append(f"job {number} ({' '.join(job)}): {_line(run) if run else 'not started'}")
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    return "\n".join([*lines, f"{len(states)} jobs: {', '.join(counts)}"])


def _line(run: RunFolder) -> str:
    """Say what a run is at: its state, tasks done, time per task, time left."""
    status = run.status
    state, tasks = status.get("state", "not started"), status.get("tasks") or 0
    if state == "done":
        return f"done in {duration(status.get('seconds', 0))}"
    if state == "running" and not run.in_use:
        state = "no process works on it"
    done, text = len(run.done()), [state, status.get("error") or ""]
    if tasks:
        text.append(f"{done} of {tasks} tasks done")
    timings = run.path / "timings.csv"
    *lines, _ = timings.read_text().split("\n") if timings.is_file() else [""]  # the last line may be written just now
    if seconds := [float(line.partition(",")[2]) for line in lines[-20:]]:
        each = sum(seconds) / len(seconds)
        text.append(f"{duration(each)} a task, the last one {duration(time.time() - timings.stat().st_mtime)} ago")
        if state == "running":
            text.append(f"about {duration(each * (tasks - done))} left")
    if state != "running" and (run.path / "config.yaml").is_file():
        text.append(f"go on with vis-run --resume {shlex.quote(str(run.path))}")
    return ", ".join(filter(None, text))
