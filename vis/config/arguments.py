"""The options of the command line, apart from its overrides; loads the standard library alone."""

import argparse
import os
from pathlib import Path
from typing import NoReturn

from vis.errors import UserError, did_you_mean

HELP = """vis-run - reproduce the papers on visual explanations of CNNs, or try your own network, method or image

Three commands to start with:
  vis-run method=gbp model=vgg16_random                    one method on one model, with the bundled tabby image
  vis-run 'method=[saliency,gbp]' model=vgg16 image=cat.jpg target=tabby      methods side by side on your own image
  vis-run experiment=nie2018/figure4                       a figure of a paper, with its claims checked

Choices (vis-run --list shows them all):
  experiment=  model=  method=  dataset=       groups; show an option's parameters with vis-run model=vgg16 --cfg job
  target=max|random|<index>|<class name>|[..]  image=FILE  seed=0  seeds=8  device=auto|cpu|cuda  batch_size=auto|n
  precision=float32|float64|tf32|mixed  outputs=FOLDER  preset=paper|small|tiny

Options:
  --list [WORD ...]   list every experiment, model, method and dataset, or only some: --list method, --list nie2018
  --dry-run           show what would be computed, and an estimate of its cost
  -m, --multirun      run a sweep: vis-run -m model=cnn3_random model.num_filters=8,16,32,64
  --resume FOLDER     resume a run or a sweep that stopped
  --continue          resume the newest run of this same command, or start one
  --status FOLDER     show how far a run or a sweep has got, also one on another machine
  --redraw FOLDER     redraw the figures of a finished run without computing; in another style: figure=paper
  --cfg job           show the config of a command without running it (-p model: only this part)
  --config-dir DIR    add a folder with your own configs
  --install-completion[=SHELL]  tab completion for bash, zsh or fish
  --version, --help

Each run writes index.html, figures, tables, arrays and claims to its own folder, outputs/<date>/<time>_<experiment>/,
and prints the path of that folder. Exit codes: 0, the run succeeded; 1, it failed; 2, the command was wrong.
"""

_CHOICES = ("experiment", "model", "method", "dataset", "target", "image", "seed", "seeds", "device", "precision", "preset",
            "batch_size", "outputs", "boxes")  # fmt: skip
_OF_HYDRA = ("cfg", "package", "resolve", "info", "shell_completion", "hydra_help")  # options that Hydra answers


class _Parser(argparse.ArgumentParser):
    """Parse options; raise a UserError where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}. See vis-run --help")

    def parse(self, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """The options and the other words, which are overrides."""
        names = list(self._option_string_actions)
        for word, behind in zip(argv, [*argv[1:], "VALUE"], strict=True):
            # argparse would read -model=vgg16 as -m
            if word.startswith("-") and word.partition("=")[0] not in names:
                long = [name for name in names if name.startswith("--")]
                key, _, value = word.lstrip("-").partition("=")
                if key in _CHOICES:
                    raise UserError(f"choices take no dashes: {key}={value or behind}")
                raise UserError(f"unknown option {word}.{did_you_mean(word, long)}")
        return self.parse_known_args(argv)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split a command line into its options and its overrides. Raises UserError."""
    parser = _Parser(prog="vis-run", add_help=False, allow_abbrev=False)
    for names in (
        ("--help", "-h"),
        ("--version", "-V"),
        ("--multirun", "-m"),
        ("--resolve",),
    ):
        parser.add_argument(*names, action="store_true")
    parser.add_argument("--install-completion", nargs="?", const="", metavar="SHELL")
    parser.add_argument("--package", "-p")
    parser.add_argument("--config-dir", type=_folder, action="append", default=[])
    command = parser.add_mutually_exclusive_group()
    for name in ("--list", "--dry-run", "--hydra-help"):
        command.add_argument(name, action="store_true")
    command.add_argument("--continue", action="store_true", dest="go_on")
    command.add_argument("--resume", type=_folder)
    command.add_argument("--redraw", type=_folder)
    command.add_argument("--status", type=_folder)
    command.add_argument("--cfg", "-c", nargs="?", const="job", choices=("job", "hydra", "all"))
    topics = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    command.add_argument("--info", "-i", nargs="?", const="all", choices=topics)
    command.add_argument("--shell-completion", "-sc", action="store_true")
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what can follow
        from vis.config.completion import complete

        complete(parser)
    return parser.parse(["--help"] if argv == ["help"] else argv)


def _folder(text: str) -> Path:
    folder = os.path.expanduser(text)
    if not os.path.isdir(folder):
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}")
    return Path(folder).resolve()


def check_combination(options: argparse.Namespace, overrides: list[str]) -> None:
    """Raise UserError for options that need or exclude others, beyond what the parser knows."""
    if (options.package is not None or options.resolve) and not options.cfg:
        raise UserError("--package and --resolve say how --cfg shows a config: vis-run --cfg job --package model")
    alone = options.list or options.resume or options.redraw or options.status
    if options.multirun and (alone or flags_for_hydra(options)):
        raise UserError("--multirun can only be combined with --dry-run, --continue and --config-dir")
    if overrides and (options.resume or options.status):
        raise UserError(f"--resume and --status take a run as it is: leave out {overrides[0]}")


def flags_for_hydra(options: argparse.Namespace) -> list[str]:
    """The options that Hydra answers, as words of its command line."""
    given = {f"--{name.replace('_', '-')}": getattr(options, name) for name in _OF_HYDRA}
    return [name if value is True else f"{name}={value}" for name, value in given.items() if value]
