"""The options of the config groups: their files, what they describe, and the collections that name them."""

import fnmatch
import itertools
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vis.config.home import CONF
from vis.errors import UserError, did_you_mean, first_line

GROUPS = ("experiment", "model", "method", "dataset", "figure")

_ORDER = ("figure", "table", "lemma", "theorem", "proposition", "", "supplement", "finding")  # "": every other item

_PACKAGES = {"experiment": "_global_", "method": "methods.{name}"}  # where a group's options go in the config


def slug(text: str, longest: int = 80) -> str:
    """Turn any text into a readable folder name: keep letters, digits and `=.,_-`."""
    return re.sub(r"[^\w=.,-]+", "_", str(text)).strip("_")[:longest] or "run"


def options(group: str, config_dirs: Sequence[Path] = ()) -> dict[str, Path]:
    """The options of a config group and their files, those in the user's config folders included."""
    found: dict[str, Path] = {}
    for root in (CONF, *config_dirs):
        for file in (root / group).rglob("*.yaml"):
            if not file.name.startswith("_"):
                found[file.relative_to(root / group).with_suffix("").as_posix()] = file
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts figure9 before figure10."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", name)]


def collected(collection: Mapping[str, Any], files: Mapping[str, Path], key: str = "all") -> list[str]:
    """List the experiments that a collection names under `all` or `findings`, a pattern (nie2018/*) by those that match.

    The matches of a pattern are in `_ORDER`, each kind by number. A pattern leaves out collections, and `all` the findings.
    Raises UserError for a pattern without a match.
    """

    def place(name: str) -> int:
        stem = name.rpartition("/")[2]
        return next((i for i, kind in enumerate(_ORDER) if kind and stem.startswith(kind)), _ORDER.index(""))

    def single(name: str) -> bool:
        values: Any = OmegaConf.to_container(load_option(files[name]))
        return not isinstance(values.get("experiment"), dict) or "all" not in values["experiment"]

    left_out = collected(collection, files, "findings") if key == "all" else []
    names = []
    for pattern in map(str, collection.get(key, [])):
        matches = sorted(fnmatch.filter(files, pattern), key=place)
        if "*" in pattern and not matches:
            raise UserError(f"{pattern} in experiment.{key} matches no experiment. See vis-run --list")
        names += [n for n in matches if n not in left_out and single(n)] if "*" in pattern else [pattern]
    return list(dict.fromkeys(names))


def collection_jobs(config: Any, overrides: list[str], config_dirs: list[Path]) -> list[list[str]]:
    """The overrides of each job of a collection, whose `experiment.all` names experiments, other collections or patterns.

    Empty for a single experiment. Raises UserError for collections that contain each other.
    """
    files = options("experiment", config_dirs)
    others = [o for o in overrides if not o.startswith(("experiment=", "hydra"))]
    if "all" in config.experiment and any(o.startswith("method=") for o in others):
        raise UserError(f"the experiments of {config.experiment.name} choose their own methods: leave out method=")

    def listed(experiment: Any, above: tuple[str, ...]) -> list[str]:
        names = collected(experiment, files)
        if around := next((name for name in names if name in above), None):
            raise UserError(f"experiment.all of {above[-1]} lists {around}, which lists it")
        loaded = {name: load_option(files[name]) if name in files else OmegaConf.create() for name in names}
        inside = {name: OmegaConf.select(loaded[name], "experiment") or {} for name in names}
        return [leaf for name in names for leaf in listed(inside[name], (*above, name)) or [name]]

    return [[f"experiment={name}", *others] for name in listed(config.experiment, (config.experiment.name,))]


def describe(file: Path) -> str:
    """The line that describes an option: the first comment of its file that is not a Hydra directive."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not line.startswith("# @"):
            return line[2:].strip()
    return ""


def load_option(file: Path) -> Any:
    """Load the YAML file of an option, without its defaults list. Raises UserError if it is not a YAML mapping."""
    try:
        config = OmegaConf.load(file)
    except (yaml.YAMLError, OSError, ValueError, OmegaConfBaseException) as error:  # ValueError: not UTF-8
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else f": {first_line(error)}"
        raise UserError(f"cannot read the config {file}{where}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"the config {file} is not a YAML mapping (key: value)")
    return config


def load_node(file: Path) -> dict[str, Any]:
    """Load the option of a file with the bases beside it that its defaults list names (`_base`). Raises UserError."""
    config = load_option(file)
    bases = [load_option(file.with_name(f"{base}.yaml")) for base in config.pop("defaults", []) if base != "_self_"]
    values: Any = OmegaConf.to_container(OmegaConf.merge(*bases, config))
    return values


def own_configs(config_dirs: Sequence[Path]) -> list[Path]:
    """The config files in the user's config folders."""
    return [file for root in config_dirs for group in GROUPS for file in sorted((root / group).rglob("*.yaml"))]


def check_package(file: Path, group: str, name: str) -> None:
    """Check where a config file of the user's puts its keys: Hydra ignores a `# @package` line that is not the first.

    Raises UserError.
    """
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    header = list(itertools.takewhile(lambda line: not line.strip() or line.startswith("#"), lines))
    packages = [line for line in header if re.match(r"#\s*@", line)]
    first = next((line for line in header if line.strip()), "")
    if packages and (packages != [first] or not re.fullmatch(r"#\s*@package\s+\S+\s*", first)):
        raise UserError(
            f"{file}: `# @package NAME` must be the first line, with no comment above it; that line is {first!r}"
        )
    if not packages and group in _PACKAGES:
        raise UserError(f"{file}: the first line must be `# @package {_PACKAGES[group].format(name=name)}`")


def listing(words: list[str], config_dirs: list[Path]) -> str:
    """A line for each option of each group. words: groups, to list only these, and parts of names, to list only such."""
    lines: list[str] = []
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    parts = [word.lower() for word in words if word not in GROUPS]
    for group in [word for word in words if word in GROUPS] or GROUPS:
        found = options(group, config_dirs)
        if parts:
            found = {name: f for name, f in found.items() if any(part in name.lower() for part in parts)}
        if not found:
            continue
        longest = max(map(len, found))
        lines += [f"{group}="]
        lines += [f"  {name:<{longest}}  {describe(file)}"[:width] for name, file in found.items()]
        lines += [""]
    if not lines:
        known = [*GROUPS, *(name.partition("/")[0] for group in GROUPS for name in options(group, config_dirs))]
        raise UserError(f"nothing has {' or '.join(words)} in its name.{did_you_mean(words[0], dict.fromkeys(known))}")
    return "\n".join(lines)
