"""The command line: `vis-run`, or `python -m vis.run`.

Only Hydra and OmegaConf are imported until a run really starts, so that help, listings, completion and mistakes are
answered at once.
"""

import contextlib
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from vis.config.home import CONF
from vis.errors import Lacking, UserError, said
from vis.system import shards

HELP = """vis-run - reproduce the papers on visual explanations of CNNs, or try your own network, method or image

Three commands to start with:
  vis-run method=gbp model=vgg16_random                    a method on a model, shown on the bundled tabby
  vis-run method=[saliency,gbp] model=vgg16 image=cat.jpg target=tabby      methods side by side on your picture
  vis-run experiment=nie2018/figure4                       a paper's figure, with its claims measured

What can be chosen: vis-run --list
  experiment=  model=  method=  dataset=       groups; each option's parameters: vis-run model=vgg16 --cfg job
  target=max|random|<index>|<class name>|[..]  image=FILE  seed=0  seeds=8  device=auto|cpu|cuda  batch_size=auto|n
  precision=float32|float64|tf32|mixed  outputs=FOLDER  preset=paper|small

Options:
  --list              every experiment, model, method and dataset, a line on each
  --dry-run           what would be computed, and about what it costs
  -m, --multirun      a sweep: vis-run -m model=cnn3_random model.num_filters=8,16,32,64
  --resume FOLDER     go on with a run (or a sweep) that was stopped
  --continue          go on with the newest run of this very command, or start it
  --redraw FOLDER     draw a finished run's figures again, without computing
  --cfg job           show the config of a command without running it
  --config-dir DIR    configs of your own beside ours
  --install-completion  how to get tab completion
  --version, --help

Each run gets a folder outputs/<date>/<time>_<experiment>/ with index.html, figures, tables, arrays, claims; its path is
what stdout says. Exit code 0: the run succeeded, 1: it failed, 2: the command was wrong.
"""

COMPLETION = """Tab completion for this shell session (put the line into your shell's start-up file to keep it):
  bash:  eval "$(vis-run -sc install=bash)"
  zsh:   eval "$(vis-run -sc install=bash)"      (after: autoload -Uz bashcompinit && bashcompinit)
  fish:  vis-run -sc install=fish | source
"""


VERBOSE = ("verbose",)  # of Hydra's options, the one that a run honours
_SHORT = {"-c": "--cfg", "-p": "--package", "-i": "--info", "-sc": "--shell-completion"}
_OF_HYDRA: dict[str, tuple[str, ...]] = {  # options that Hydra answers, with the values that they take
    "--cfg": ("job", "hydra", "all"), "--package": (), "--resolve": (), "--shell-completion": (), "--hydra-help": (),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code: 0, 1 (a run failed), 2 (the command was wrong), 130 (interrupted)."""
    argv = sys.argv[1:] if argv is None else argv
    os.environ["MPLBACKEND"] = "agg"  # figures go to files; a backend that matplotlib does not know must not end a run
    try:
        code = _dispatch(argv)
        if code == 0:  # where it is not, torchrun ends the others
            shards.over()
        print(end="", flush=True)
        return code
    except UserError as error:
        print("vis-run:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vis-run: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # nobody waits for the rest of the output
            print(f"vis-run: {error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        with contextlib.suppress(
            OSError, AttributeError
        ):  # Python would try once more to write at its end, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(argv: list[str]) -> int:
    command = "vis-run " + shlex.join(word for word in argv if word != "--continue")
    options, overrides, config_dirs = _split(argv)
    if shards.world() > 1:
        if "multirun" in options:
            raise UserError("torchrun shares out one run: start a sweep without it")
        if shards.rank() > 0:
            return _help_out()
    if "help" in options:
        print(HELP, end="")
        return 0
    if "version" in options:
        from vis import __version__

        print(f"vis-run {__version__}")
        return 0
    if "install-completion" in options:
        print(COMPLETION, end="")
        return 0
    if (
        len(several := sorted(options.keys() - {"multirun"} if options.keys() & {"dry-run", "continue"} else options))
        > 1
    ):
        raise UserError(" and ".join(f"--{name}" for name in several) + " do not go together")
    if overrides and (other := {"resume", "redraw", "list"} & options.keys()):
        what = "shows all there is" if "list" in other else "takes a run as it is"
        raise UserError(f"--{other.pop()} {what}: leave out {overrides[0]}")
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the folder where this shell stands is gone: cd to another") from error
    if "resume" in options:
        return _finish(options["resume"], lambda folder: _resume(folder, command))
    if "redraw" in options:
        return _finish(options["redraw"], _redraw)

    from vis.config import compose

    compose.register()
    overrides = compose.spelled_out(overrides, config_dirs)
    if "list" in options:
        print(_listing(config_dirs), end="")
        return 0
    if "cfg" in options:
        compose.check_words(compose.parse_overrides(overrides), config_dirs)
        return _hydra([*overrides, *options["cfg"]], config_dirs)
    if "continue" in options and (folder := _newest(overrides, config_dirs, command)):
        return _finish(folder, lambda folder: _resume(folder, command))
    if "multirun" in options:
        if "dry-run" in options:
            compose.sweep_samples(overrides)  # raises for what is no list
            return _dry_run(compose.sweep_jobs(overrides), config_dirs, titles=True)
        compose.check_hydra(overrides, (*VERBOSE, "launcher"))
        return _sweep(overrides, config_dirs, command)
    if compose.is_sweep(overrides):
        raise UserError("several values for one key are a sweep: add -m (for several methods in one run, method=[a,b])")
    config = compose.compose_config(overrides, config_dirs)
    jobs = _collected(config, overrides, config_dirs)
    compose.check_hydra(overrides, () if jobs else VERBOSE)
    if "dry-run" in options:
        return _dry_run(jobs or [overrides], config_dirs)
    if jobs:
        return _collection(config, jobs, config_dirs, command)
    return _single(config, overrides, config_dirs, command)


def _split(argv: list[str]) -> tuple[dict[str, Any], list[str], list[Path]]:
    """Options, overrides, folders of configs."""
    options: dict[str, Any] = {}
    overrides: list[str] = []
    config_dirs: list[Path] = []
    words = iter(argv)
    for word in words:
        name, _, value = word.partition("=")
        if word in ("-h", "--help"):
            options["help"] = True
        elif word in ("--list", "--dry-run", "--version", "--install-completion", "--continue"):
            options[word[2:]] = True
        elif word in ("-m", "--multirun"):
            options["multirun"] = True
        elif name in ("--resume", "--redraw", "--config-dir"):
            value = value or next(words, "")
            if not value:
                raise UserError(f"{name} needs a folder")
            folder = Path(os.path.expanduser(value))
            if not folder.is_dir():
                raise UserError(f"there is no folder {value}")
            if name == "--config-dir":
                config_dirs.append(folder.resolve())
            else:
                options[name[2:]] = folder.resolve()
        elif (long := _SHORT.get(name, name)) in _OF_HYDRA:
            if long in ("--cfg", "--package"):
                value = value or next(words, "job" if long == "--cfg" else "")
                if not value:
                    raise UserError("--package needs a part of the config: --cfg job --package model")
            if _OF_HYDRA[long] and value and value not in _OF_HYDRA[long]:
                raise UserError(f"{long} {value}: there is {', '.join(_OF_HYDRA[long])}")
            options["cfg"] = [*options.get("cfg", []), f"{long}={value}" if value else long]
        elif word.startswith("-"):
            from vis.errors import did_you_mean

            known = (
                "--help",
                "--list",
                "--dry-run",
                "--resume",
                "--continue",
                "--redraw",
                "--multirun",
                "--cfg",
                "--config-dir",
                "--version",
            )
            raise UserError(f"unknown option {word}.{did_you_mean(word, known)}")
        else:
            overrides.append(word)
    shown = [word.partition("=")[0] for word in options.get("cfg", [])]
    if extra := next((word for word in shown if word in ("--package", "--resolve") and "--cfg" not in shown), None):
        raise UserError(f"{extra} says what part of --cfg is shown, or how: vis-run --cfg job {extra} ...")
    if len(commands := dict.fromkeys(word for word in shown if word not in ("--package", "--resolve"))) > 1:
        raise UserError(f"{' and '.join(commands)} do not go together")
    return options, overrides, config_dirs


def _hydra(arguments: list[str], config_dirs: list[Path], job: Any = None) -> int:
    """Let Hydra do what Hydra does: show configs, complete words, launch jobs."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from vis.config import compose

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come to us, and are made readable here
    search = [f"hydra.searchpath=[{','.join(f'file://{d}' for d in config_dirs)}]"] if config_dirs else []
    words = [word for word in arguments if not word.startswith("-")]
    before = sys.argv
    sys.argv = ["vis-run", *(word for word in arguments if word.startswith("-")), *words, *search]  # argparse's order
    try:
        decorated = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(
            job or (lambda config: None)
        )
        decorated()
    except SystemExit as error:
        return int(error.code or 0)
    except Exception as error:
        if isinstance(error, OSError) or (job and not isinstance(error, HydraException | OmegaConfBaseException)):
            raise
        raise compose.explain(error, words, config_dirs) from error
    finally:
        sys.argv = before
        if job:
            from vis.system.console import close_logs

            close_logs()
    return 0


def _dry_run(jobs: list[list[str]], config_dirs: list[Path], titles: bool = False) -> int:
    """Say what each of the jobs would compute; of several, what one lacks. titles: the overrides of each before it."""
    from vis.config import compose
    from vis.runner.dry_run import dry_run

    for number, job in enumerate(jobs):
        if titles:
            print(f"job {number}: {' '.join(job)}")
        try:
            config = compose.compose_config(job, config_dirs)
            try:
                print(dry_run(config), end="", flush=True)
            except Lacking as error:
                raise compose.with_a_way_out(error, config) from error
        except Lacking as error:
            if len(jobs) == 1:
                raise
            print(f"{job[0]}: {error}")
        except UserError:
            raise
        except Exception as error:  # the user's own code
            print(f"vis-run: the plan failed: {said(error)} (the run itself keeps the traceback)", file=sys.stderr)
            return 1
    return 0


def _single(config: Any, overrides: list[str], config_dirs: list[Path], command: str) -> int:
    from vis.store.run_folder import reserve

    folder = reserve(Path(config.outputs).expanduser(), _folder_name(config))

    def work(_: Path) -> None:
        from vis.runner.jobs import Job

        job = Job(command)
        _hydra([*overrides, f"hydra.run.dir={_quote(folder)}"], config_dirs, job)
        if job.error:
            raise job.error

    return _finish(folder, work, fresh=True)


def _collected(config: Any, overrides: list[str], config_dirs: list[Path]) -> list[list[str]]:
    """The jobs of a config that lists experiments, or other such lists, under `experiment.all`; none for an experiment."""
    from omegaconf import OmegaConf

    from vis.config.compose import load_option, options

    files = options("experiment", config_dirs)
    others = [o for o in overrides if not o.startswith("experiment=")]
    if "all" in config.experiment and any(o.startswith("method=") for o in others):
        raise UserError(f"the experiments of {config.experiment.name} have their own methods: leave out method=")

    def listed(experiment: Any, above: tuple[str, ...]) -> list[str]:
        names = experiment.get("all", [])
        if around := next((name for name in names if name in above), None):
            raise UserError(f"experiment.all of {above[-1]} lists {around}, which lists it")
        loaded = {name: load_option(files[name]) if name in files else OmegaConf.create() for name in names}
        inside = {name: OmegaConf.select(loaded[name], "experiment") or {} for name in names}
        return [leaf for name in names for leaf in listed(inside[name], (*above, name)) or [name]]

    return [[f"experiment={name}", *others] for name in listed(config.experiment, (config.experiment.name,))]


def _collection(config: Any, jobs: list[list[str]], config_dirs: list[Path], command: str) -> int:
    from vis.config import compose
    from vis.store.run_folder import reserve
    from vis.store.sweep_plan import begin

    if shards.world() > 1:
        raise UserError(f"torchrun shares out one run, and {config.experiment.name} is many: start it without torchrun")
    for job in jobs:
        with contextlib.suppress(Lacking):  # such a job runs at preset=small
            compose.compose_config(job, config_dirs)
    folder = reserve(Path(config.outputs).expanduser(), _folder_name(config))
    begin(folder, jobs, config_dirs, command, collection=str(config.experiment.name))
    return _finish(folder, lambda folder: _resume(folder, command))


def _newest(overrides: list[str], config_dirs: list[Path], command: str) -> Path | None:
    """The folder of the newest run or sweep of a command that was given here; None where there is none."""
    from vis.config import compose
    from vis.store.run_folder import RunFolder
    from vis.store.sweep_plan import plan

    root = Path(compose.compose_config(compose.sweep_samples(overrides)[0], config_dirs).outputs).expanduser()
    for folder in sorted(root.glob("*/*"), reverse=True):
        made: dict[str, Any] = {}
        with contextlib.suppress(UserError):  # a damaged folder is not this command's
            made = plan(folder) or RunFolder(folder).status
        if made.get("command") == command and made.get("cwd") == str(Path.cwd()):
            return folder.resolve()
    return None


def _help_out() -> int:
    """Work for rank 0's run, which has the one folder and the one result."""
    from vis.runner.execute import execute_shard
    from vis.system.console import start_logging

    start_logging()
    execute_shard()
    return 0


def _folder_name(config: Any) -> str:
    from vis.config.compose import slug

    return slug(str(config.experiment.name))


def _quote(path: Path) -> str:
    """A path as a value of Hydra's grammar."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _finish(folder: Path, work: Any, fresh: bool = False) -> int:
    """Do the work of a folder; say where it is. A fresh folder in which nothing was computed goes again."""
    try:
        work(folder)
    except (UserError, KeyboardInterrupt) as error:
        if fresh and not any((folder / "parts").glob("*")):
            shutil.rmtree(folder, ignore_errors=True)
        elif isinstance(error, KeyboardInterrupt):
            print(f"vis-run: interrupted; go on with vis-run --resume {folder}", file=sys.stderr)
            return 130
        raise
    except Exception as error:  # a failed run is one line and exit code 1; its traceback is in the folder
        from vis.store.run_folder import failure

        print(f"vis-run: {failure(error, folder)}", file=sys.stderr)
        return 1
    print(f"open {folder / 'index.html'}", file=sys.stderr)
    print(folder)
    return 0


def _resume(folder: Path, command: str) -> None:
    from vis.runner.jobs import resume

    resume(folder, command)


def _redraw(folder: Path) -> None:
    from vis.reports.sweep import aggregate
    from vis.runner.execute import redraw
    from vis.store.run_folder import RunFolder
    from vis.store.sweep_plan import job_folder, plan
    from vis.system.console import start_logging

    start_logging()
    jobs = (plan(folder) or {"jobs": []})["jobs"]
    for path in [job_folder(folder, number) for number in range(len(jobs))] if jobs else [folder]:
        if path and (not jobs or RunFolder(path).status.get("state") == "done"):
            redraw(path)
    if jobs:
        aggregate(folder)


def _sweep(overrides: list[str], config_dirs: list[Path], command: str) -> int:
    from vis.config import compose
    from vis.runner.jobs import Job, finish_sweep
    from vis.store.run_folder import reserve
    from vis.store.sweep_plan import begin

    configs = [compose.compose_config(sample, config_dirs) for sample in compose.sweep_samples(overrides)]
    jobs = compose.sweep_jobs(overrides)
    if any("all" in config.experiment for config in configs):
        raise UserError("a collection of experiments is a sweep of its own: leave out -m")
    folder = reserve(Path(configs[0].outputs).expanduser(), _folder_name(configs[0]) + "_sweep")

    # Folders of jobs are named after what differs between them.
    names = [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(compose.fixed_keys(overrides))}]"]
    begin(folder, jobs, config_dirs, command)

    def work(_: Path) -> None:
        with finish_sweep(folder):
            _hydra(["--multirun", *overrides, f"hydra.sweep.dir={_quote(folder)}", *names], config_dirs, Job(command))

    return _finish(folder, work)


def _listing(config_dirs: list[Path]) -> str:
    from vis.config.compose import GROUPS, describe, options

    lines = []
    for group in GROUPS:
        lines.append(f"{group}=")
        found = options(group, config_dirs)
        width = max(map(len, found), default=0)
        lines += [f"  {name:<{width}}  {describe(file)}" for name, file in found.items()]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
