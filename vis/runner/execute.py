"""Run an experiment under a config in a folder: compute and journal missing tasks, merge, judge claims, draw, report."""

import contextlib
import gc
import hashlib
import logging
import platform
import random
import shlex
import subprocess
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from vis import __version__
from vis.claims import Claim
from vis.config.home import HOME, provide_experiments
from vis.config.instantiate import construct
from vis.config.presets import with_a_way_out
from vis.config.restyle import restyled
from vis.errors import Lacking, UserError, named
from vis.figures import style
from vis.figures.layout import save
from vis.reports.html import run_page
from vis.runner.experiment import Experiment, Run
from vis.runner.models import choose_sources
from vis.store.run_folder import Output, Results, RunFolder, enter
from vis.store.tables import csv_text, markdown_text
from vis.system import shards
from vis.system.allocator import keep_freed_memory
from vis.system.console import progress
from vis.system.device import hardware, peak_memory_gb, reset_peak_memory, set_precision
from vis.system.files import intact, write_json, write_text
from vis.windows.engine import say_once

log = logging.getLogger(__name__)

_ISO = "%Y-%m-%dT%H:%M:%S%z"  # ISO 8601


def execute(config: DictConfig, path: Path, command: str) -> None:
    """Run a config in its folder, or resume it there.

    An error before the first result removes the folder. Raises UserError for mistakes of the user. After any other exception
    status.json says `failed`, and `vis-run --resume` continues after the last finished task.
    """
    folder = RunFolder(path)
    started = time.perf_counter()
    if not gc.isenabled():  # the command line left it off while it imported: what is imported stays
        gc.freeze()
        gc.enable()
    with folder.locked():
        if folder.status.get("state") == "done":
            log.info("another process has just completed this run")
            return
        try:
            prepare(config)
            choose_sources(config)
            experiment = build_experiment(config)
            run = Run(config, path)
            reset_peak_memory(run.device)
            experiment.resolve(run)
            tasks = tasks_of(experiment, run)
            inputs = _inputs(run, tasks)
            if folder.done() and folder.status.get("inputs", inputs) != inputs:
                raise UserError(
                    "the dataset has other images than when this run began: put those back, or start a new run"
                )
            folder.drop_damaged(leftovers=not shards.slurm())
            (folder.path / "parts").mkdir(exist_ok=True)  # before others can help; without it, the run is over
            began = folder.status.get("started") or time.strftime(_ISO)
            facts = {"cwd": str(Path.cwd()), "tasks": len(tasks), "inputs": inputs, "started": began}
            folder.begin(config, command=command, **facts)
            shards.begin(path)
            _compute(folder, experiment, run, tasks)
            shards.wait()
            if shards.slurm() and len(folder.done()) < len(tasks):
                log.info("waiting for the other tasks of Slurm job %s", shards.slurm())
                _compute(folder, experiment, run, tasks, wait=True)
            results = folder.merge()
            _provenance(folder, run, command)
            claims = conclude(folder, experiment, results)
            seconds = time.perf_counter() - started
            shown = {"metrics": list(experiment.metrics), "series": experiment.series}  # in the figure of a sweep
            folder.set_status(state="done", seconds=seconds, peak_memory_gb=peak_memory_gb(run.device), **shown)
            run_page(folder)
            folder.clear_parts()
        except KeyboardInterrupt:
            if folder.status.get("state") != "done":
                folder.set_status(state="interrupted")
            raise
        except Lacking as error:
            raise with_a_way_out(error, config) from error
        except BaseException as error:
            if not isinstance(error, UserError):
                write_text(path / "traceback.txt", traceback.format_exc())
            raise
    _summary(claims, seconds)


def execute_shard(path: Path) -> int:
    """Compute this process's share of the tasks of a run that another one has begun, with the config in the run's folder.

    Return how many tasks it computed.
    """
    folder = RunFolder(path)
    if folder.status.get("state") == "done":
        return 0
    config = folder.config()
    enter(folder.status.get("cwd"))
    prepare(config)
    experiment, run = build_experiment(config), Run(config, folder.path)
    if shards.slurm() and not experiment.shared_out:
        return 0
    return _compute(folder, experiment, run, tasks_of(experiment, run))


# Keys under `experiment` that its constructor does not take
_NOT_ITS_OWN = ("name", "alone", "replication", "small", "tiny", "claims", "about")


def build_experiment(config: DictConfig) -> Experiment:
    """Build the experiment of a config. Raises UserError if that fails."""
    provide_experiments()
    values = OmegaConf.to_container(config.experiment, resolve=True)
    assert isinstance(values, dict)
    experiment = construct({str(k): v for k, v in values.items() if k not in _NOT_ITS_OWN}, "experiment")
    if not isinstance(experiment, Experiment):
        raise UserError(
            f"experiment._target_ made a {type(experiment).__name__}, not a vis.runner.experiment.Experiment"
        )
    return experiment


def tasks_of(experiment: Experiment, run: Run) -> list[dict[str, Any]]:
    """Return the tasks of an experiment; exceptions name the experiment."""
    with named(f"{run.config.experiment.name}, tasks"):
        return [dict(task) for task in experiment.tasks(run)]


def _inputs(run: Run, tasks: Sequence[Any]) -> str:
    """Return a hash of the number of tasks and the names of their images, which a resumed run must find again."""
    return hashlib.sha256(repr((len(tasks), [list(data.names) for data in run.datasets])).encode()).hexdigest()


def conclude(folder: RunFolder, experiment: Experiment, results: Results) -> list[Claim]:
    """Write tables, claims and figures from the stored results, and return the claims.

    If the config has a list of patterns `experiment.claims`, only claims whose ids match one of them are kept.
    """
    own = results.config.experiment.name
    style.use(results.config)
    with named(f"{own}, summaries"):
        results.tables |= experiment.summaries(results)
        for name, rows in results.tables.items():
            write_text(folder.path / f"{name}.csv", csv_text(rows))
            write_text(folder.path / f"{name}.md", markdown_text(rows))
    wanted = results.config.experiment.get("claims") or ["*"]
    with named(f"{own}, claims"):
        claims = [c for c in experiment.claims(results) if any(fnmatchcase(c.id, pattern) for pattern in wanted)]
        claims = [claim.in_precision(results.config.precision) for claim in claims]
        write_json(folder.path / "claims.json", [claim.record() for claim in claims])
    captions = {}
    with named(f"{own}, draw"):
        for name, figure in experiment.draw(results, claims).items():
            save(figure, folder.path / name)
            captions[name] = getattr(figure, "caption", "")
    write_json(folder.path / "figures.json", captions)
    return claims


def redraw(path: Path, words: Sequence[str] = (), config_dirs: Sequence[Path] = ()) -> None:
    """Draw a run's figures again from its stored results, or from its finished tasks if it is not done.

    words: overrides of what only drawing reads (`vis.config.restyle`); the run keeps them. Raises UserError for others,
    and if the finished tasks do not suffice.
    """
    folder = RunFolder(path)
    config = folder.config()  # raises if this is no run
    if words:
        config = restyled(config, words, config_dirs, build_experiment(config).drawn)
        build_experiment(config)  # raises for values that the experiment refuses
        style.use(config)
    so_far = folder.done() if folder.status.get("state") != "done" else ()
    if not so_far and (maps := path / "maps.npz").is_file() and not intact(maps):
        raise UserError(f"{maps} is damaged: start the run again")
    results = folder.merge() if so_far else folder.results()
    results.config = config
    try:
        conclude(folder, build_experiment(results.config), results)
    except Exception as error:  # claims and figures expect all tasks and may raise anything without them
        if so_far and not isinstance(error, UserError):
            raise UserError(
                f"{path} cannot be drawn from its {len(so_far)} finished tasks: finish it with vis-run --resume "
                f"{shlex.quote(str(path))}"
            ) from error
        raise
    if words:
        folder.replace_config(config)
    run_page(folder)


def prepare(config: DictConfig) -> None:
    """Set the global state of random numbers and of torch, so that all jobs of a sweep in one process start alike."""
    keep_freed_memory()
    style.use(config)  # raises, before anything is computed, for a style that cannot be drawn
    say_once.cache_clear()  # each job's log says what is computed whole
    random.seed(config.seed)
    np.random.seed(config.seed)  # noqa: NPY002  # for code of users; the project's uses generators
    torch.manual_seed(config.seed)
    set_precision(config.precision)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _compute(
    folder: RunFolder, experiment: Experiment, run: Run, tasks: list[dict[str, Any]], wait: bool = False
) -> int:
    """Compute and journal the missing tasks; return their number. Several processes share the tasks, or compute each together.

    wait: for the tasks that others of Slurm's tasks have claimed; compute those that they do not finish.
    While a task is computed, threads write the previous one and read the images of the next two.
    """
    done = folder.done()
    world = shards.world() if experiment.shared_out else 1
    journals = experiment.shared_out or shards.rank() == 0
    todo = [(n, task) for n, task in enumerate(tasks) if n not in done and n % world == shards.rank() % world]
    if claims := bool(shards.slurm()):
        first, places = shards.place()
        todo.sort(key=lambda each: each[0] % places != first)
    if done and not wait:
        log.info("%d of %d tasks are already computed", len(done), len(tasks))
    written: Future[None] | None = None
    own = f"{run.config.experiment.name}, compute"

    def add(number: int, output: Output) -> None:
        if not isinstance(output, Output):
            raise UserError(f"{own}: it returned a {type(output).__name__}, expected a vis.store.run_folder.Output")
        with named(own):
            folder.add(number, output)
        shards.release(number)

    bar = progress(todo, total=len(tasks), unit=" tasks", done=len(done), disable=not journals)
    start, images, computed = time.perf_counter(), 0, 0
    with bar, ThreadPoolExecutor(1) as writer:  # so that an error message appears below the progress bar
        for place, (number, task) in enumerate(bar):
            if claims and not (
                shards.claim(folder.path / "parts", number, wait) and folder.status.get("state") != "done"
            ):
                continue
            computed += 1
            began = time.perf_counter()
            bar.set_description(f"{run.config.experiment.name} {described(task)}".strip()[:60], refresh=False)
            run.reader.upcoming = [i for _, each in todo[place + 1 : place + 3] for i in each.get("images", [])]
            with named(own):
                output = experiment.compute(run, task)
            images += len(task.get("images", ()))
            if images:
                bar.set_postfix_str(f"{images / (time.perf_counter() - start):.3g} images/s", refresh=False)
            if not journals:
                continue
            if written is not None:
                written.result()
            written = writer.submit(add, number, output)
            with (folder.path / "timings.csv").open("a") as timings:
                timings.write(f"{number},{time.perf_counter() - began:.4f}\n")
    if written is not None:
        written.result()
    return computed


def described(task: Mapping[str, Any]) -> str:
    """Name a task in a few words: `random, seed 0, images 8-15`."""
    words = []
    for key, value in task.items():
        if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
            words.append(f"{key} {value[0]}-{value[-1]}" if len(value) > 1 else f"{key.removesuffix('s')} {value[0]}")
        elif isinstance(value, int | float):
            words.append(f"{key} {value}")
        elif isinstance(value, str):
            words.append(value)
    return ", ".join(words)


def _provenance(folder: RunFolder, run: Run, command: str) -> None:
    """Record the command, the versions of packages, the machine and the data."""
    packages = {}
    for name in ("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "matplotlib", "scikit-image", "scipy"):
        with contextlib.suppress(PackageNotFoundError):  # an installation from source may have no metadata
            packages[name] = version(name)
    device: dict[str, Any] = {
        "device": str(run.device),
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    if run.device.type == "cuda":
        device |= {"gpu": hardware(run.device), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    datasets = [{"origin": d.origin, "images": len(d), "fingerprint": d.fingerprint()} for d in run.datasets]
    if manifest := [row for data in run.datasets if data.sources for row in data.manifest()]:
        write_text(folder.path / "manifest.csv", csv_text(manifest))
    diff = _git("diff", "HEAD")
    if diff:
        write_text(folder.path / "git.diff", diff + "\n")
    write_json(
        folder.path / "provenance.json",
        {
            "command": command,
            "version": __version__,
            "git_commit": _git("rev-parse", "HEAD"),
            "git_diff": "git.diff" if diff else None,
            "python": platform.python_version(),
            "packages": packages,
            **device,
            "precision": run.config.precision,
            "seeds": run.seeds,
            "models": run.models.used,
            "datasets": datasets,
            "finished": time.strftime(_ISO),
        },
    )


def _git(*arguments: str) -> str | None:
    """Return the output of a git command in this checkout; None outside a checkout."""
    if not (HOME / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(HOME), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # no git, or no commit yet: null in the provenance
        return None
    return done.stdout.strip() or None


def _summary(claims: list[Claim], seconds: float) -> None:
    if claims:
        width = max(len(claim.id) for claim in claims)
        for claim in claims:
            log.info("%-12s %-*s  %s  (%s)", claim.verdict, width, claim.id, claim.measured, claim.rule)
    log.info("done in %.1f s", seconds)
