"""The command line: `vis-run`, or `python -m vis.run`.

`--help` loads the standard library alone; listings, completion and mistakes load Hydra as well; only a run loads torch.
"""

import argparse
import atexit
import contextlib
import gc
import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from vis import __version__
from vis.config.arguments import HELP, check_combination, flags_for_hydra, parse
from vis.config.home import CONF
from vis.errors import UserError, said
from vis.system import shards

log = logging.getLogger(__name__)

VERBOSE = ("verbose",)  # the only one of Hydra's config keys that a run accepts


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code.

    0: it succeeded; 1: a run failed, or the output cannot be written; 2: the command was wrong; 130: interrupted;
    143: terminated.
    """
    argv = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, _terminate)
    os.environ["MPLBACKEND"] = "agg"  # figures go to files; an unknown backend in the environment must not end a run
    try:
        code = _dispatch(argv)
        if code == 0:  # after a failure, torchrun ends the other processes
            shards.over()
        print(end="", flush=True)
        return code
    except UserError as error:
        print("vis-run:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"vis-run: {_ended(error)}", file=sys.stderr)
        return _code(error)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # the reader of a broken pipe wants no more output
            print(f"vis-run: {error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        with contextlib.suppress(OSError, AttributeError):  # or Python writes again at exit, and prints an error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def command() -> NoReturn:
    """Run the command line of this process and leave it, as the console script does.

    The garbage collector waits until all is imported, and a process leaves without tearing down torch and the weights: .7 of
    3.3 seconds. What was registered since, as the helpers of sweeps are, ends before. The processes of torchrun leave as
    Python does.
    """
    gc.disable()
    code = 1

    def leave() -> None:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # the reader has gone
                stream.flush()
        os._exit(code)

    if shards.world() == 1:
        atexit.register(leave)
    code = main()
    sys.exit(code)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does: a batch system sends it before it kills."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _ended(error: KeyboardInterrupt) -> str:
    return "terminated" if isinstance(error, _Terminated) else "interrupted"


def _code(error: KeyboardInterrupt) -> int:
    return 143 if isinstance(error, _Terminated) else 130


def _dispatch(argv: list[str]) -> int:
    """Do what the options ask for. `_execute` takes the commands that need a config."""
    options, overrides = parse(argv)
    command = "vis-run " + shlex.join(word for word in argv if word != "--continue")
    if options.multirun:
        _check_alone("a sweep")
    if shards.rank() > 0:
        return _help_out()
    for name, text in {"help": HELP, "version": f"vis-run {__version__}\n"}.items():
        if getattr(options, name):
            print(text, end="")
            return 0
    if options.install_completion is not None:
        from vis.config.completion import install

        print(install(options.install_completion))
        return 0
    check_combination(options, overrides)
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the current directory no longer exists: cd to another") from error
    if options.resume:
        return _resume(options.resume, command)
    if options.redraw:
        return _finish(options.redraw, lambda folder: _redraw(folder, overrides, options.config_dir))
    if options.status:
        from vis.reports.status import status

        print(status(options.status))
        return 0
    return _execute(options, overrides, command)


def _execute(options: argparse.Namespace, overrides: list[str], command: str) -> int:
    """Compose the config of a command; then list, show, plan or run it."""
    from vis.config import overrides as words
    from vis.config.compose import check_hydra, compose_config, register, spelled_out
    from vis.config.options import collection_jobs, listing

    folders = options.config_dir
    register()
    if options.list:
        print(listing(overrides, folders), end="")
        return 0
    overrides = spelled_out(overrides, folders)
    if flags := flags_for_hydra(options):
        words.check_words(words.parse_overrides(overrides), folders)
        return _hydra(flags, overrides, folders)
    if options.go_on and (newest := _newest(overrides, folders, command)):
        return _resume(newest, command)

    if options.multirun and options.dry_run:
        words.sweep_samples(overrides)  # raises UserError for a range that cannot be listed
        return _plan(words.sweep_jobs(overrides), folders, titles=True)
    if options.multirun:
        check_hydra(overrides, (*VERBOSE, "launcher"))
        return _sweep(overrides, folders, command)
    if words.is_sweep(overrides):
        raise words.one_run_only(overrides)

    config = compose_config(overrides, folders)
    jobs = collection_jobs(config, overrides, folders)
    check_hydra(overrides, ("launcher",) if jobs else VERBOSE)
    if options.dry_run:
        return _plan(jobs or [overrides], folders)
    if jobs:
        return _collection(config, jobs, overrides, folders, command)
    return _single(config, overrides, folders, command)


def _hydra(flags: list[str], overrides: list[str], config_dirs: list[Path], job: Any = None) -> int:
    """Let Hydra show a config, complete words, or launch a job. Returns the exit code."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from vis.config import compose

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors; `explain` makes them readable
    before = sys.argv
    sys.argv = ["vis-run", *flags, *overrides, *compose.search_path(config_dirs)]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job or (lambda config: None))()
    except SystemExit as error:
        if error.code:
            print(file=sys.stderr)  # Hydra's messages end without one
        return int(error.code or 0)
    except Exception as error:
        if isinstance(error, OSError) or (job and not isinstance(error, HydraException | OmegaConfBaseException)):
            raise
        raise compose.explain(error, overrides, config_dirs) from error
    finally:
        sys.argv = before
        if job:
            from vis.system.console import close_logs

            close_logs()
    return 0


def _plan(jobs: list[list[str]], config_dirs: list[Path], titles: bool = False) -> int:
    """Print what each job would compute. titles: print the overrides of each job above its plan."""
    from vis.runner.dry_run import plans

    try:
        for number, plan in enumerate(plans(jobs, config_dirs)):
            print(f"job {number}: {' '.join(jobs[number])}\n" * titles + plan, end="", flush=True)
    except UserError:
        raise
    except Exception as error:  # in the user's own code
        print(f"vis-run: the plan failed: {said(error)} (start the run for its traceback)", file=sys.stderr)
        return 1
    return 0


def _single(config: Any, overrides: list[str], config_dirs: list[Path], command: str) -> int:
    """Run one experiment in a new folder; the tasks of a Slurm job share it."""
    if not shards.slurm():
        folder = _reserve(config)
    else:
        folder = shards.common_folder(Path(config.outputs).expanduser(), command, lambda: _reserve(config))
        if (folder / "config.yaml").is_file() or not shards.lead(folder):
            return _join(folder, command)

    def work(_: Path) -> None:
        from vis.config.overrides import quote
        from vis.runner.jobs import Job

        job = Job(command)
        _hydra([], [*overrides, f"hydra.run.dir={quote(str(folder))}"], config_dirs, job)
        if job.error:
            raise job.error

    return _finish(folder, work, fresh=not shards.slurm())


def _join(folder: Path, command: str) -> int:
    """Compute tasks of a run that another task of this Slurm job has begun; conclude the run if that one has ended."""
    from vis.runner.execute import execute_shard
    from vis.store.run_folder import RunFolder
    from vis.system.console import start_logging

    start_logging()
    leads = shards.lead(folder)
    if not leads:
        log.info(
            "computed %d tasks of %s, for another task of Slurm job %s", execute_shard(folder), folder, shards.slurm()
        )
        leads = shards.lead(folder)
    if RunFolder(folder).status.get("state") == "done":
        log.info("%s, the run of Slurm job %s, is complete", folder, shards.slurm())
    elif leads:
        return _finish_run(folder, command)
    return 0


def _sweep(overrides: list[str], config_dirs: list[Path], command: str) -> int:
    """Run every job of a sweep in a new folder, with Hydra's launcher."""
    from vis.config.compose import compose_config
    from vis.config.overrides import sweep_jobs, sweep_samples
    from vis.store.sweep_plan import begin

    configs = [compose_config(sample, config_dirs) for sample in sweep_samples(overrides)]
    jobs = sweep_jobs(overrides)
    if any("all" in config.experiment for config in configs):
        raise UserError("a collection of experiments is a sweep of its own: leave out -m")
    folder = _reserve(configs[0], "_sweep")
    begin(folder, jobs, config_dirs, command, launcher=(submitit := _submitit(overrides)))
    if submitit:
        return _resume(folder, command)

    from vis.config.overrides import fixed_keys, quote
    from vis.runner.jobs import Job, finish_sweep

    # The folder of a job is named after the overrides in which the jobs differ.
    names = f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed_keys(overrides))}]"
    words = [*overrides, f"hydra.sweep.dir={quote(str(folder))}", names]

    def work(_: Path) -> None:
        with finish_sweep(folder):
            _hydra(["--multirun"], words, config_dirs, Job(command))

    return _finish(folder, work)


def _collection(config: Any, jobs: list[list[str]], overrides: list[str], config_dirs: list[Path], command: str) -> int:
    """Run the experiments of a collection, such as experiment=nie2018/all, as jobs of a new sweep."""
    from vis.runner.dry_run import estimates
    from vis.store.sweep_plan import begin
    from vis.system.console import duration

    _check_alone(f"the collection {config.experiment.name}")
    launcher = [o for o in overrides if o.startswith("hydra")]
    submitit = _submitit(overrides)
    count = 1 if submitit else _processes(launcher)
    seconds, alone = estimates(jobs, config_dirs)
    known = [each for each in seconds if each is not None]
    about = (
        f"about {duration(sum(known) / (1.4 if count > 1 else 1))} on this machine"
        if known
        else "no estimate of the time"
    )
    unknown = f"; {len(seconds) - len(known)} of them without an estimate" * (0 < len(known) < len(seconds))
    where = "as jobs of submitit" if submitit else "one after the other" if count == 1 else f"in {count} processes"
    print(f"{len(jobs)} items, {about}, {where}{unknown}", file=sys.stderr)
    folder = _reserve(config)
    name = str(config.experiment.name)
    facts = {"collection": name, "processes": count, "seconds": seconds, "alone": alone}
    begin(folder, jobs, config_dirs, command, launcher=submitit, **facts)
    return _resume(folder, command)


def _check_alone(what: str) -> None:
    """Raise UserError in the processes of torchrun and the tasks of Slurm: each would start all the runs."""
    if shards.world() > 1:
        raise UserError(f"torchrun splits a single run: start {what} without torchrun")
    if shards.slurm():
        raise UserError(
            f"the tasks of a Slurm job share a single run: start {what} once, with hydra/launcher=submitit_slurm"
        )


def _submitit(overrides: list[str]) -> list[str]:
    """Return the words for Hydra's launcher if it is one of submitit's, for Slurm or for this machine; else none.

    Raises UserError if it is Slurm's, and Slurm is not here.
    """
    words = [o for o in overrides if o.startswith(("hydra/launcher", "hydra.launcher"))]
    if "hydra/launcher=submitit_slurm" in words and not shutil.which("sbatch"):
        raise UserError(
            "hydra/launcher=submitit_slurm takes Slurm's sbatch, which is not here; hydra/launcher=joblib uses this machine"
        )
    return words if any(o.startswith("hydra/launcher=submitit_") for o in words) else []


def _processes(launcher: list[str]) -> int:
    """How many processes run a collection: hydra.launcher.n_jobs of joblib, 1 of basic; by default, as many as pay."""
    from vis.config.overrides import parse_overrides
    from vis.runner.fan_out import processes

    words = {o.key_or_group: o.value() for o in parse_overrides(launcher)}
    if words.get("hydra/launcher") == "basic":
        return 1
    jobs = words.get("hydra.launcher.n_jobs")
    return jobs if isinstance(jobs, int) and jobs > 0 else processes()


def _newest(overrides: list[str], config_dirs: list[Path], command: str) -> Path | None:
    """The folder of the newest run or sweep that this command started from this directory, or None."""
    from vis.config.compose import compose_config
    from vis.config.overrides import sweep_samples
    from vis.store.run_folder import RunFolder
    from vis.store.sweep_plan import plan

    root = Path(compose_config(sweep_samples(overrides)[0], config_dirs).outputs).expanduser()
    for folder in sorted(root.glob("*/*"), reverse=True):
        made: dict[str, Any] = {}
        with contextlib.suppress(UserError):  # skip damaged folders
            made = plan(folder) or RunFolder(folder).status
        if made.get("command") == command and made.get("cwd") == str(Path.cwd()):
            return folder.resolve()
    return None


def _help_out() -> int:
    """Compute a share of the run of rank 0, which alone writes the folder and the result."""
    from vis.runner.execute import execute_shard
    from vis.system.console import start_logging

    start_logging()
    if (folder := shards.folder()) is not None:
        execute_shard(folder)
        shards.report()
    return 0


def _reserve(config: Any, suffix: str = "") -> Path:
    """Make a new folder in `outputs`, named after the time and `name=`, or else the experiment."""
    from vis.config.options import slug
    from vis.store.run_folder import reserve

    return reserve(Path(config.outputs).expanduser(), slug(str(config.get("name") or config.experiment.name)) + suffix)


def _finish(folder: Path, work: Callable[[Path], None], fresh: bool = False) -> int:
    """Call `work` on a run folder, print the folder's path, and return the exit code.

    fresh: delete the folder if the work stops, by a mistake or by an interrupt, before it stored a result.
    """
    resume = f"go on with vis-run --resume {shlex.quote(str(folder))}"
    try:
        work(folder)
    except (UserError, KeyboardInterrupt) as error:
        if fresh and not any((folder / "parts").glob("*")) and not (folder / "maps.npz").exists():
            shutil.rmtree(folder, ignore_errors=True)
        elif isinstance(error, KeyboardInterrupt):
            print(f"vis-run: {_ended(error)}; {resume}", file=sys.stderr)
            return _code(error)
        elif fresh:
            raise UserError(f"{error} (the finished tasks are kept; {resume})") from error
        raise
    except Exception as error:  # the folder keeps the traceback
        from vis.store.run_folder import failure

        print(f"vis-run: {failure(error, folder)}", file=sys.stderr)
        return 1
    print(f"open {folder / 'index.html'}", file=sys.stderr)
    print(folder)
    return 0


def _resume(folder: Path, command: str) -> int:
    """Resume a run or a sweep. The tasks of a Slurm job share a run."""
    if shards.slurm() and (folder / "config.yaml").is_file():
        return _join(folder, command)
    return _finish_run(folder, command)


def _finish_run(folder: Path, command: str) -> int:
    """Compute what a run or a sweep is missing, in this process."""

    def work(folder: Path) -> None:
        from vis.runner.jobs import resume

        resume(folder, command)

    return _finish(folder, work)


def _redraw(folder: Path, overrides: list[str], config_dirs: list[Path]) -> None:
    """Draw the figures of a finished run, or of every finished job of a sweep, again, with overrides of their style."""
    from vis.config.compose import register
    from vis.reports.sweep import aggregate
    from vis.runner.execute import redraw
    from vis.store.run_folder import RunFolder
    from vis.store.sweep_plan import job_folder, plan
    from vis.system.console import start_logging

    start_logging()
    register()
    jobs = (plan(folder) or {"jobs": []})["jobs"]
    for path in [job_folder(folder, number) for number in range(len(jobs))] if jobs else [folder]:
        if path and (not jobs or RunFolder(path).status.get("state") == "done"):
            redraw(path, overrides, config_dirs)
    if jobs:
        aggregate(folder)


if __name__ == "__main__":
    command()
