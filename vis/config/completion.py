"""Tab completion: the words that can follow in a command, and its installation in bash, zsh and fish (argcomplete)."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import argcomplete
from argcomplete.completers import FilesCompleter
from omegaconf import DictConfig, OmegaConf

from vis.config.check import PRECISIONS, leaves
from vis.config.compose import compose_config, register
from vis.config.options import GROUPS, options
from vis.config.presets import OVERLAYS
from vis.errors import UserError

ALLOWED: dict[str, Sequence[str]] = {
    "preset": tuple(OVERLAYS),
    "device": ("auto", "cpu", "cuda", "mps"),
    "precision": PRECISIONS,
    "batch_size": ("auto",),
    "model.init": ("default", "truncated_normal", "normal", "kaiming_normal", "kaiming_uniform", "xavier_normal",
                   "xavier_uniform", "permuted"),
    "hydra/launcher": ("basic", "joblib", "submitit_local", "submitit_slurm"),
}  # fmt: skip
_FILES = ("path", "weights", "image", "gaussian", "outputs")  # last parts of keys whose values are files or folders

# Where a shell looks for the completion of a command, below the user's home; and what it takes to make it look there.
PLACES = {
    "bash": (".local/share/bash-completion/completions/vis-run", "it works in new shells where bash-completion is installed"),
    "zsh": (".zfunc/_vis-run", "add to ~/.zshrc: fpath+=~/.zfunc; autoload -Uz compinit && compinit"),
    "fish": (".config/fish/completions/vis-run.fish", "it works in new shells"),
}  # fmt: skip


def complete(parser: ArgumentParser) -> None:
    """Answer a shell's request for completions, in the environment, and exit; do nothing if there is none."""
    words = parser.add_argument("overrides", nargs="*")
    words.completer = _candidates  # type: ignore[attr-defined]  # argcomplete's way to name a completer
    argcomplete.autocomplete(parser, always_complete_options="long", validator=lambda *_: True)


def install(shell: str = "") -> str:
    """Write the file that makes a shell complete `vis-run`; return a line that says where it is and what else it takes.

    shell: bash, zsh or fish; by default, the user's ($SHELL). Raises UserError for another one.
    """
    shell = shell or Path(os.environ.get("SHELL", "")).name
    if shell not in PLACES:
        raise UserError(f"--install-completion={shell}: give {', '.join(PLACES)}")
    place, rest = PLACES[shell]
    file = Path.home() / place
    file.parent.mkdir(parents=True, exist_ok=True)
    code = argcomplete.shellcode(["vis-run"], shell=shell)
    file.write_text(f"#compdef vis-run\n{code}" if shell == "zsh" and not code.startswith("#compdef") else code)
    return f"tab completion for {shell}: {file}; {rest}"


def _candidates(prefix: str, parsed_args: Namespace, **_: Any) -> Iterable[str]:
    """Yield the words that begin with `prefix`: a key, or a key with a value."""
    register()
    folders = parsed_args.config_dir or []
    key, equals, value = prefix.partition("=")
    given = [word for word in getattr(parsed_args, "overrides", None) or [] if word.partition("=")[0] in GROUPS]
    try:
        config = compose_config(given, folders)
    except UserError:  # about another word, or about missing weights or data
        config = compose_config([])
    if not equals:
        return _keys(key, config)
    start, last = value[: max(value.rfind(c) for c in "[,") + 1], value[max(value.rfind(c) for c in "[,") + 1 :]
    return (f"{key}={start}{each}" for each in _values(key, last, config, folders) if each.startswith(last))


def _keys(prefix: str, config: DictConfig) -> Iterator[str]:
    """Yield keys of the config, one level behind the prefix at a time: `model.` before `model.width=`."""
    depth = prefix.count(".")
    names = {f"{group}=" for group in GROUPS}
    for name, _ in leaves(config):
        parts = name.split(".")
        names.add(".".join(parts[: depth + 1]) + ("=" if len(parts) == depth + 1 else "."))
    return (name for name in sorted(names) if name.startswith(prefix))


def _values(key: str, prefix: str, config: DictConfig, folders: Sequence[Path]) -> Iterable[str]:
    """Return the values that a key can take, as far as they can be listed."""
    group = key.lstrip("+~").partition("@")[0]
    if group in GROUPS:
        return options(group, folders)
    if key in ALLOWED:
        return ALLOWED[key]
    if key == "target":
        return ["max", "random", *resources.files("vis.data").joinpath("imagenet_classes.txt").read_text().splitlines()]
    if key.rpartition(".")[2] in _FILES:
        return FilesCompleter()(prefix)
    return ("true", "false") if isinstance(OmegaConf.select(config, key), bool) else ()
