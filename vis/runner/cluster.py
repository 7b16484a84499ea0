"""Run the jobs of a sweep or a collection with submitit: hydra/launcher=submitit_slurm, or submitit_local on one machine.

The command that submitted them waits for them. If it ends early, Slurm still runs its jobs, and `--resume` waits for those
before it submits what is missing. What is in the queue is asked of squeue, which needs no accounting (sacct does).
"""

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from vis.config.home import CONF
from vis.errors import UserError
from vis.runner.fan_out import processes
from vis.store.run_folder import RunFolder
from vis.store.sweep_plan import job_folder
from vis.system.console import start_logging
from vis.system.files import write_json

log = logging.getLogger(__name__)

_ASK_SECONDS = 5.0  # between two calls of squeue


class _Item:
    """A job as submitit pickles it. After a requeue it starts again, and continues behind its finished tasks."""

    def __init__(self, run: Callable[[int], str], number: int) -> None:
        self.run, self.number = run, number

    def __call__(self) -> str:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # scancel and requeue send it; submitit ignores it
        signal.signal(signal.SIGUSR2, _interrupting(signal.getsignal(signal.SIGUSR2)))
        start_logging()
        return self.run(self.number)

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _interrupting(requeue: Any) -> Callable[..., None]:
    """Let submitit's handler, which requeues a job near its time limit, interrupt the run as Ctrl-C does."""

    def handle(number: int, frame: Any) -> None:
        try:
            requeue(number, frame)
        except SystemExit as requeued:
            raise KeyboardInterrupt from requeued

    return handle


def submit(
    folder: Path,
    launcher: Sequence[str],
    together: Sequence[int],
    alone: Sequence[int],
    run: Callable[[int], str],
    waiting: Callable[[], None],
) -> None:
    """Call `run(job)` for each job on the cluster, and wait until all have ended; log the lines that it returns.

    folder: of the sweep. launcher: Hydra's words for its launcher. together: jobs in the order in which they are submitted.
    alone: jobs that get a node of their own; on one machine they start one after the other, after all others.
    run: a picklable function. waiting: called about once a second meanwhile.
    """
    cluster, settings = _settings(launcher, folder)
    jobs = _queued(folder, {*together, *alone}, settings["folder"]) if cluster == "slurm" else {}
    if jobs:
        log.info("%d jobs are still in Slurm's queue: squeue --jobs=%s", len(jobs), _ids(jobs, ","))
    try:
        for numbers in [together, alone] if cluster == "slurm" else [*_a_few(together), *([n] for n in alone)]:
            if missing := [n for n in numbers if n not in jobs]:
                jobs |= _submit(cluster, settings, missing, run, exclusive=numbers is alone)
                write_json(folder / "submitted.json", {n: job.job_id for n, job in jobs.items()})
                if cluster == "slurm":
                    log.info(
                        "submitted %d jobs: squeue --jobs=%s", len(missing), _ids({n: jobs[n] for n in missing}, ",")
                    )
            if cluster == "local":
                _wait(cluster, folder, {n: jobs[n] for n in numbers}, waiting)
        if cluster == "slurm":
            _wait(cluster, folder, jobs, waiting)
    except KeyboardInterrupt:
        if cluster == "slurm":
            log.info("the jobs stay in Slurm's queue; to end them: scancel %s", _ids(jobs))
        for job in jobs.values() if cluster == "local" else ():
            if not job.done():  # submitit's process passes the signal on; job.cancel() gives tracebacks
                os.kill(int(job.job_id), signal.SIGTERM)
        raise


def _a_few(jobs: Sequence[int]) -> list[Sequence[int]]:
    """Split jobs into as many at a time as this machine runs well."""
    count = processes()
    return [jobs[i : i + count] for i in range(0, len(jobs), count)]


def _settings(launcher: Sequence[str], folder: Path) -> tuple[str, dict[str, Any]]:
    """Return submitit's name of the cluster and the parameters of its executor, from Hydra's config of the launcher."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF), job_name="run"):
        config = compose("config", overrides=list(launcher), return_hydra_config=True)
    config.hydra.sweep.dir = str(folder)
    found: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    cluster = "slurm" if found.pop("_target_").endswith("SlurmLauncher") else "local"
    shared = (
        "timeout_min",
        "cpus_per_task",
        "gpus_per_node",
        "tasks_per_node",
        "mem_gb",
        "nodes",
        "name",
        "stderr_to_stdout",
    )
    settings = {"folder": found.pop("submitit_folder"), "max_num_timeout": found.pop("max_num_timeout", 0)}
    return cluster, settings | {key if key in shared else f"{cluster}_{key}": value for key, value in found.items()}


def _submit(
    cluster: str, settings: dict[str, Any], numbers: Sequence[int], run: Callable[[int], str], exclusive: bool
) -> dict[int, Any]:
    import submitit

    parameters = dict(settings)
    executor = submitit.AutoExecutor(
        folder=parameters.pop("folder"), cluster=cluster, slurm_max_num_timeout=parameters.pop("max_num_timeout")
    )
    executor.update_parameters(**parameters, **{"slurm_exclusive": True} if exclusive else {})
    with executor.batch():  # one array
        jobs = [executor.submit(_Item(run, number)) for number in numbers]
    return dict(zip(numbers, jobs, strict=True))


def _wait(cluster: str, folder: Path, jobs: dict[int, Any], waiting: Callable[[], None]) -> None:
    """Wait until each job has left its result or the queue."""
    left, asked, gone, reason = dict(jobs), time.monotonic(), set[int](), ""
    while left:
        ended = {n for n, job in left.items() if job.paths.result_pickle.exists()}
        if time.monotonic() - asked > _ASK_SECONDS:
            asked = time.monotonic()
            states = _queue() if cluster == "slurm" else {j.job_id: "" for j in left.values() if not j.done()}
            absent = {n for n, job in left.items() if states is not None and job.job_id not in states}
            ended |= absent & gone  # twice: a result may arrive late on a network file system
            gone = absent
            waits = sorted({why for n in left if (why := (states or {}).get(left[n].job_id, ""))})
            if waits and (text := ", ".join(waits)) != reason:
                log.info("Slurm has not started all jobs: %s", reason := text)
        for number in sorted(ended):
            job = left.pop(number)
            log.info("[%d/%d] %s", len(jobs) - len(left), len(jobs), _line(folder, number, job))
        waiting()
        time.sleep(0.5)


def _line(folder: Path, number: int, job: Any) -> str:
    """Say how a job ended; if something ended it from outside, note that in its folder."""
    if job.paths.result_pickle.exists():
        try:
            return str(job.results()[0])
        except Exception as error:  # the job could not be loaded, or its time was over
            reason = str(error).strip().splitlines()[-1]
    else:
        reason = f"job {job.job_id} was ended from outside"
    path = job_folder(folder, number)
    if path and (run := RunFolder(path)).status.get("state") in ("running", "interrupted"):
        run.set_status(state="interrupted", error=reason)
    return f"job {number}: {reason} (see {job.paths.stderr})"


def _queued(folder: Path, numbers: set[int], logs: str) -> dict[int, Any]:
    """Return the jobs of an earlier command that are still in Slurm's queue. Raises UserError if it cannot be asked."""
    import submitit

    try:
        ids = {int(n): i for n, i in json.loads((folder / "submitted.json").read_text()).items() if int(n) in numbers}
    except (OSError, ValueError, AttributeError):  # none was submitted
        return {}
    if (queue := _queue()) is None:
        raise UserError("squeue does not answer, so some jobs may still run: try again later")
    return {n: submitit.SlurmJob(folder=logs, job_id=i) for n, i in ids.items() if i in queue}


def _queue() -> dict[str, str] | None:
    """Return the user's jobs in Slurm's queue, and why those wait that have not started; None if squeue fails."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i|%t|%r"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # the controller is busy, or restarts
        return None
    rows = [line.split("|", 2) for line in text.splitlines()]
    ordinary = ("None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime")  # what a free place ends
    return {number: why if state == "PD" and why not in ordinary else "" for number, state, why in rows}


def _ids(jobs: dict[int, Any], separator: str = " ") -> str:
    """Name jobs for squeue and scancel: `12 13`; an array by one number."""
    return separator.join(dict.fromkeys(str(job.job_id).partition("_")[0] for job in jobs.values()))
