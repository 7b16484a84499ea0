"""Run one job, or resume a run or a sweep.

Hydra calls a `Job` for each run, alone or in a sweep, in this process or (pickled) in another.
"""

import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from vis.errors import Incomplete, InUse, Lacking, UserError, said
from vis.reports.html import run_page
from vis.reports.sweep import aggregate
from vis.runner.cluster import submit
from vis.runner.fan_out import fan_out
from vis.store import sweep_plan
from vis.store.run_folder import RunFolder, enter, failure
from vis.store.stored import stored
from vis.system.files import intact

log = logging.getLogger(__name__)

_PAGE_SECONDS = 30.0  # between updates of the page of a collection that is still running


class Job:
    """Runs a composed config in the folder that Hydra created for it.

    An exception is stored in `error`, not raised: Hydra would print it in its own format, and one failed job must not end
    a sweep. (If a job of a sweep runs in another process, status.json in its folder says how it ended.)
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self.error: Exception | None = None
        self.__name__ = "job"  # hydra.main wraps functions

    def __call__(self, config: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            from vis.config.compose import register
            from vis.config.presets import apply_preset, forget_unchosen

            register()
            overrides = list(HydraConfig.get().overrides.task)
            apply_preset(config, overrides)
            forget_unchosen(config, overrides)
            _execute(config, overrides, folder, self.command)
        except Exception as error:  # the caller reads `error`
            self.error = error
            RunFolder(folder).set_status(state="failed", error=said(error))
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                log.error("%s", failure(error, folder))


def _execute(config: DictConfig, overrides: Sequence[str], folder: Path, command: str) -> None:
    """Run a config; without the paper's network or data, run its replication, and say so.

    Raises Lacking if there is nothing to replicate it with either.
    """
    from vis.config.check import check
    from vis.config.presets import replicated
    from vis.runner.execute import execute

    replica = replicated(config, overrides)
    if replica is None and "replication" in config.experiment:
        config.experiment.replication = None  # so that an experiment sees whether another run can take its place
    try:
        check(config)
        execute(config, folder, command)
    except Lacking as error:
        if replica is None:
            raise
        log.warning("%s. This run is a replication, on what can be had here", error.reason)
        try:
            execute(replica, folder, command)
        except Lacking as other:
            ways_out = ". ".join(filter(None, (error.ways_out, other.ways_out)))
            raise Lacking(f"{error.reason}; {other.reason}", ways_out, other.tiny_available) from other


def resume(folder: Path, command: str) -> None:
    """Resume an interrupted run or sweep in its folder. Raises UserError if that is impossible."""
    from vis.config.compose import register
    from vis.system.console import start_logging

    start_logging()
    register()
    plan = sweep_plan.plan(folder)
    if plan is None:
        _resume_run(folder, command)
        return
    enter(plan["cwd"])
    if gone := [path for path in plan["config_dirs"] if not Path(path).is_dir()]:
        raise UserError(f"the folder {gone[0]} of --config-dir no longer exists: put it back, or start the sweep again")
    shown = -math.inf

    def update() -> None:
        nonlocal shown
        if plan.get("collection") and time.monotonic() - shown > _PAGE_SECONDS:
            aggregate(folder)  # its page shows the results so far
            shown = time.monotonic()

    done = [n for n in range(len(plan["jobs"])) if _is_done(folder, n)]
    for number in done:
        if path := sweep_plan.job_folder(folder, number):
            _tidy(RunFolder(path))
    numbers = [n for n in range(len(plan["jobs"])) if n not in done]
    one = partial(_resume_job, folder, command=command)
    seconds, alone = plan.get("seconds") or {}, [n for n in numbers if plan.get("alone") and plan["alone"][n]]
    together = [n for n in numbers if n not in alone]
    if seconds:  # the longest first
        together.sort(key=lambda n: math.inf if seconds[n] is None else seconds[n], reverse=True)
    with finish_sweep(folder):
        count = min(plan.get("processes") or 1, len(together))
        if (launcher := plan.get("launcher")) and (
            shutil.which("sbatch") or "hydra/launcher=submitit_local" in launcher
        ):
            submit(folder, launcher, together, alone, one, update)
            numbers = []
        elif count > 1:
            try:
                fan_out(together, count, one, update)
            finally:  # an interrupt ends its processes too
                _note_killed(folder, together)
            numbers = alone
        for number in numbers:
            log.info("job %d: %s", number, " ".join(plan["jobs"][number]))
            line = one(number)
            if count > 1:
                log.info("%s", line)
            update()


def _note_killed(folder: Path, numbers: Sequence[int]) -> None:
    """Mark jobs whose process was ended, as by the system for their memory, as interrupted."""
    for number in numbers:
        path = sweep_plan.job_folder(folder, number)
        if path and (run := RunFolder(path)).status.get("state") == "running" and not run.in_use:
            run.set_status(state="interrupted", error="its process was ended from outside, perhaps for its memory")


def _is_done(folder: Path, number: int) -> bool:
    path = sweep_plan.job_folder(folder, number)
    return path is not None and RunFolder(path).status.get("state") == "done"


def _resume_job(folder: Path, number: int, command: str) -> str:
    """Run or resume one job of a sweep; return a line that says how it ended. One failed job does not end a sweep."""
    from vis.config.compose import compose_config, register

    register()
    plan = sweep_plan.plan(folder) or {}
    overrides = plan["jobs"][number]
    path = sweep_plan.job_folder(folder, number) or folder / sweep_plan.job_name(plan["jobs"], number)
    name = " ".join(o for o in overrides if not o.startswith("hydra"))
    if _is_done(folder, number):
        return f"{name}: done"
    try:
        if any((path / "parts").glob("*")):
            _resume_run(path, command)
        else:
            path.mkdir(exist_ok=True)
            _execute(compose_config(overrides, [Path(d) for d in plan["config_dirs"]]), overrides, path, command)
    except Lacking as error:  # a collection goes without what cannot be had here
        RunFolder(path).set_status(state="not measured", error=said(error))
        return f"{name}: not measured, {error}"
    except InUse as error:
        return f"{name}: {error}"
    except Exception as error:
        RunFolder(path).set_status(state="failed", error=said(error))
        log.error("job %d: %s", number, failure(error, path))
        return f"{name}: failed"
    counts = Counter(claim.verdict for claim in stored(path).claims)
    return ", ".join([f"{name}: done", *(f"{n} {verdict}" for verdict, n in counts.items())])


def _resume_run(folder: Path, command: str) -> None:
    from vis.runner.execute import execute

    run = RunFolder(folder)
    config = run.config()
    status = run.status
    if status.get("state") == "done":
        if not ((maps := folder / "maps.npz").is_file() and intact(maps)):
            raise UserError(f"{maps} is missing or damaged: start the run again")
        _tidy(run)
        log.info("this run is complete; to draw its figures again, use --redraw")
        return
    enter(status.get("cwd"))
    try:
        execute(config, folder, status.get("command", command))
    except InUse:
        raise
    except Exception as error:  # recorded in the folder and raised again
        run.set_status(state="failed", error=said(error))
        raise


def _tidy(run: RunFolder) -> None:
    """Write the page of a finished run, and remove its journal, if the run was killed before it did."""
    if (run.path / "parts").is_dir():
        run_page(run)
        run.clear_parts()


@contextmanager
def finish_sweep(folder: Path) -> Iterator[None]:
    """Aggregate a sweep after its jobs, whatever happened to them. Raises Incomplete if some are not done."""
    try:
        yield
    finally:
        problems = aggregate(folder)
    if problems:
        raise Incomplete(f"{len(problems)} of the sweep's jobs not done: {'; '.join(problems)[:400]}")
