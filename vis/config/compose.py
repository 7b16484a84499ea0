"""Compose a checked config from command-line overrides.

Only Hydra and OmegaConf are imported here, so that mistakes are reported at once, before torch is loaded or a folder made.
"""

import copy
import fnmatch
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vis.config.check import MISSING, check, check_parts, check_types, leaves
from vis.config.home import CONF
from vis.config.signature import FileConfigSource
from vis.errors import Lacking, UserError, did_you_mean, first_line

GROUPS = ("experiment", "model", "method", "dataset", "figure")


def slug(text: str, longest: int = 80) -> str:
    """Turn any text into a readable folder name: keep letters, digits and `=.,_-`."""
    return re.sub(r"[^\w=.,-]+", "_", str(text)).strip("_")[:longest] or "run"


def register() -> None:
    """Register the resolver that conf/config.yaml uses; make Hydra complete methods and list nested options.

    Stock Hydra lists one level of a group, so that completion, `experiment=glob(nie2018/*)` and listings would miss the
    papers' items. `get_group_options` and `SourcesRegistry` are private: Hydra is pinned to 1.3, and tests cover this.
    """
    OmegaConf.register_new_resolver("vis.slug", slug, replace=True)
    SourcesRegistry.instance().types["file"] = FileConfigSource
    if getattr(ConfigLoaderImpl.get_group_options, "nested", False):
        return
    stock = ConfigLoaderImpl.get_group_options

    def nested(
        self: Any,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        options = stock(self, group_name, results_filter, config_name, overrides)
        if results_filter == ObjectType.CONFIG and group_name.split("/")[0] in GROUPS:
            for group in stock(self, group_name, ObjectType.GROUP, config_name, overrides):
                options += [
                    f"{group}/{o}"
                    for o in nested(self, f"{group_name}/{group}", results_filter, config_name, overrides)
                ]
            options = [o for o in options if not o.rpartition("/")[2].startswith("_")]
        return options

    nested.nested = True  # type: ignore[attr-defined]  # marks it as wrapped
    ConfigLoaderImpl.get_group_options = nested  # type: ignore[method-assign]  # there is no public way


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


_ORDER = ("figure", "table", "lemma", "theorem", "proposition", "", "supplement", "finding")  # "": every other item


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
    return names


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


_PACKAGES = {"experiment": "_global_", "method": "methods.{name}"}  # where a group's options go in the config


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


def compose_config(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> DictConfig:
    """Compose a config and check it. Raises UserError, or Lacking for missing weights or data."""
    overrides = list(overrides)
    parsed = parse_overrides(overrides)
    check_words(parsed, config_dirs)
    config = _compose(overrides, config_dirs)
    check_parts(config)
    choices = [o.input_line for o in parsed if o.input_line and _group_of(o) in GROUPS]
    if len(choices) < len(parsed):
        defaults = _compose(choices, config_dirs)
        check_types(config, defaults, parsed)
        _check_read(parsed, defaults)
    apply_preset(config, overrides)
    forget_unchosen(config, overrides)
    keys = [o.key_or_group for o in parsed]
    if config.image is not None and (unused := [key for key in keys if key.partition(".")[0] == "dataset"]):
        raise UserError(f"image= replaces the dataset: leave out {unused[0]}=")
    try:
        check(config)
    except Lacking as error:
        if (replica := replicated(config, overrides)) is None:
            raise with_a_way_out(error, config) from error
        check(replica)  # the run says that it is a replication
    return config


def _check_read(parsed: list[Override], defaults: DictConfig) -> None:
    """Check that new keys lie in a known part of the config, or are used as ${...}. Raises UserError."""
    for override in parsed:
        root = (override.package or override.key_or_group).split(".")[0].split("/")[0]
        known = {*GROUPS, "methods", "hydra", *([] if override.package else defaults)}
        if root not in known and not any("${" + root in (o.input_line or "") for o in parsed):
            raise UserError(f"{override.input_line}: nothing reads {root}.{did_you_mean(root, known)}")


def check_hydra(overrides: Sequence[str], honoured: Sequence[str]) -> None:
    """Check overrides of Hydra's own config: only the `honoured` ones have an effect here. Raises UserError."""
    ways = {"run": "runs go to outputs=FOLDER", "sweep": "runs go to outputs=FOLDER", "mode": "a sweep is -m",
            "searchpath": "add own configs with --config-dir FOLDER", "launcher": "it starts a sweep's jobs: add -m"}  # fmt: skip
    for override in parse_overrides(list(overrides)):
        root, _, key = override.key_or_group.replace("/", ".").partition(".")
        if root == "hydra" and not key.startswith(tuple(honoured)):
            way = ways.get(key.split(".")[0], f"of Hydra's options, it takes {', '.join(honoured) or 'none'}")
            raise UserError(f"{override.input_line} is not for this command: {way}")
        if root == "hydra" and key == "verbose" and not isinstance(override.value(), bool | str):
            raise UserError(f"{override.input_line} is not true, false or the name of a logger")


def with_a_way_out(error: Lacking, config: DictConfig) -> Lacking:
    """The same error; it suggests preset=tiny if that avoids the missing resource."""
    return Lacking(error.reason, error.ways_out, tiny_available="tiny" in config.experiment and config.preset != "tiny")


# What each preset merges into the config: `experiment.replication` puts other networks and data in the place of the paper's,
# `small` and `tiny` set sizes.
OVERLAYS = {"paper": (), "small": ("replication", "small"), "tiny": ("small", "tiny")}


def apply_preset(config: DictConfig, overrides: Sequence[str]) -> None:
    """Merge the preset's overlays (`OVERLAYS`) under `experiment` into the config, in place; the command line's values win.

    An overlay has the structure of the whole config ({seeds: 2, experiment: {filters: [8]}}). A string in place of a model or
    the dataset names another one: {model: squeezenet}. To change its parameters too, name it with `option`:
    {dataset: {option: digits, limit: 4}}. If the command line chooses the model, no replication replaces it.
    Raises UserError if an overlay does not fit the config.
    """
    for name in OVERLAYS.get(config.preset, ()):
        if name != "replication" or not _chooses_model(overrides):
            _overlay(config, name, overrides)


def replicated(config: DictConfig, overrides: Sequence[str]) -> DictConfig | None:
    """Return a config with `experiment.replication` merged, for a run whose paper's network or data is missing.

    None if there is none, or if the command line chooses the model or a preset, which already has it.
    """
    if config.preset != "paper" or not config.experiment.get("replication") or _chooses_model(overrides):
        return None
    other = copy.deepcopy(config)
    _overlay(other, "replication", overrides)
    OmegaConf.set_struct(other, False)
    del other.experiment["replication"]  # it is applied once
    OmegaConf.set_struct(other, True)
    forget_unchosen(other, overrides)
    return other


def _chooses_model(overrides: Sequence[str]) -> bool:
    keys = [o.package or o.key_or_group for o in parse_overrides(list(overrides))]
    return any(re.match(r"model\b|experiment\.models\.\w+(\.weights)?$", key) for key in keys)


def _overlay(config: DictConfig, name: str, overrides: Sequence[str]) -> None:
    """Merge `experiment.<name>` into the config, in place; the command line's values win. Raises UserError."""
    if not config.experiment.get(name):
        return
    parsed = parse_overrides(list(overrides))
    before = copy.deepcopy(config)
    OmegaConf.set_struct(config, False)
    try:
        config.merge_with(config.experiment[name])
        _load_named(config, before, name, {o.package or o.key_or_group for o in parsed if _group_of(o) in GROUPS})
        for key in {o.key_or_group for o in parsed} - set(GROUPS):
            if (value := OmegaConf.select(before, key, default=MISSING)) is not MISSING:
                OmegaConf.update(config, key, value)
    except OmegaConfBaseException as error:
        raise UserError(f"experiment.{name} of {config.experiment.name}: {first_line(error)}") from error
    OmegaConf.set_struct(config, True)


def _load_named(config: DictConfig, before: DictConfig, overlay: str, chosen: set[str]) -> None:
    """Replace, in place, the names of models and the dataset in an overlay by their configs.

    before: the config without the overlay; keys that the command line has `chosen` keep its values.
    """
    values = before.experiment[overlay]
    for leaf, name in leaves(values):
        key = leaf.removesuffix(".option")
        own = OmegaConf.select(before, key)
        if not isinstance(name, str) or not (OmegaConf.is_dict(own) or key != leaf):
            continue
        group = "dataset" if "dataset" in key else "model"
        other = OmegaConf.create(load_node(options(group)[name]))
        if key == "dataset":
            other.limit = own.limit  # the experiment sets the number of images
        node = copy.deepcopy(own) if key in chosen else other
        if key != leaf:
            OmegaConf.set_struct(node, False)
            node.merge_with(OmegaConf.select(values, key))
            del node["option"]
        OmegaConf.update(config, key, node, merge=False, force_add=True)


def forget_unchosen(config: DictConfig, overrides: Sequence[str]) -> None:
    """Delete, in place, an experiment's parameters for methods, and for a dataset, that the command line did not choose."""
    parsed = parse_overrides(list(overrides))
    given = {o.key_or_group for o in parsed}
    methods = config.get("methods") or {}
    unchosen = [
        name
        for name, node in methods.items()
        if node and "_target_" not in node and not _among(given, f"methods.{name}")
    ]
    chosen = next((o.value() for o in parsed if o.key_or_group == "dataset"), None)
    file = options("dataset").get(str(chosen)) if config.get("dataset") else None
    own: dict[str, Any] = load_node(file) if file else {}
    OmegaConf.set_struct(config, False)
    for name in unchosen:
        del methods[name]
    for key in list(config.dataset) if own else []:
        if key not in own and not _among(given, f"dataset.{key}"):
            del config.dataset[key]  # such as the names of photographs
    OmegaConf.set_struct(config, True)


def _among(keys: set[str], key: str) -> bool:
    """Return True if a key or one inside it is among the keys of overrides."""
    return any(each == key or each.startswith(f"{key}.") for each in keys)


def sweep_samples(overrides: Sequence[str]) -> list[list[str]]:
    """Override lists that contain each value of each swept key at least once, to check a sweep before it starts.

    Raises UserError for a continuous range, whose values cannot be listed.
    """
    parsed = parse_overrides(list(overrides))
    swept = [o for o in parsed if o.is_sweep_override()]
    if endless := [o.input_line for o in swept if not o.is_discrete_sweep()]:
        raise UserError(f"{endless[0]} is a continuous range: give values (2,4,8) or range(2,9,2)")
    fixed = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
    first = [_expand(o)[0] for o in swept]
    samples = [fixed + first]
    for i, override in enumerate(swept):
        samples += [fixed + first[:i] + [value] + first[i + 1 :] for value in _expand(override)[1:]]
    return samples


def sweep_jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The override lists of all jobs of a sweep, in the order of Hydra's basic sweeper."""
    (jobs,) = BasicSweeper.split_arguments(parse_overrides(list(overrides)), max_batch_size=None)
    return [list(job) for job in jobs]


def fixed_keys(overrides: Sequence[str]) -> list[str]:
    """The keys whose value is the same in all jobs of a sweep."""
    parsed = parse_overrides(list(overrides))
    swept = {o.key_or_group for o in parsed if o.is_sweep_override()}
    return [o.key_or_group for o in parsed if o.key_or_group not in swept]


def _expand(override: Override) -> list[str]:
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def spelled_out(words: Sequence[str], config_dirs: Sequence[Path]) -> list[str]:
    """Rewrite the user's overrides for Hydra: add quotes, match names regardless of case, expand glob(), name the preset's model.

    A preset may replace the paper's model. Overrides such as model.width= then belong to the preset's model, which must
    be named explicitly. Raises UserError for a glob() that matches no name, and for spaces around `=`.
    """
    for before, word, behind in zip(["", *words], words, [*words[1:], ""], strict=False):
        if word.startswith("="):
            raise UserError(f"no spaces around '=': {before}={word[1:] or behind}")
    overrides = [_names_for_glob(_as_spelled(_quoted(word), config_dirs), config_dirs) for word in words]
    keys = {o.key_or_group for o in parse_overrides(overrides)}
    preset = next((word.removeprefix("preset=") for word in overrides if word.startswith("preset=")), "paper")
    if OVERLAYS.get(preset) and "model" not in keys and any(key.startswith("model.") for key in keys):
        choices = [word for word in overrides if word.startswith("experiment=")]
        check_words(parse_overrides(choices), config_dirs)
        experiment = _compose(choices, config_dirs).experiment
        models = [(experiment.get(name) or {}).get("model") for name in OVERLAYS[preset]]
        overrides += [f"model={model}" for model in models if isinstance(model, str)][-1:]
    return overrides


def _quoted(word: str) -> str:
    """Quote the value of `key=value` if it is a free text, or if Hydra cannot read it otherwise: image=cat(1).jpg."""
    key, equals, value = word.partition("=")
    prose = key in ("name", "note") and value != "null"  # a comma would make it a sweep, and 12 a number
    try:
        if prose:
            raise HydraException
        OverridesParser.create().parse_overrides([word])
    except HydraException:
        if equals and key and value and value[0] not in ("'\"" if prose else "[{'\""):
            return f"{key}='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return word


def _as_spelled(word: str, config_dirs: Sequence[Path]) -> str:
    """Spell the names of options as their files do: method=[GBP,Saliency]."""
    key, equals, value = word.partition("=")
    group = key.lstrip("+").partition("@")[0]
    if group in ("preset", "device", "precision"):
        return key + equals + value.lower()
    if group not in GROUPS:
        return word
    known = {name.lower(): name for name in options(group, config_dirs)}
    return key + equals + re.sub(r"[\w/.-]+", lambda name: known.get(name[0].lower(), name[0]), value)


def _names_for_glob(word: str, config_dirs: Sequence[Path]) -> str:
    (override,) = parse_overrides([word])
    pattern = override.value()
    if not isinstance(pattern, Glob):
        return word
    names = pattern.filter(list(options(_group_of(override), config_dirs)))
    if not names:
        raise UserError(f"{word} matches no {override.key_or_group}. See vis-run --list")
    return f"{override.get_key_element()}={','.join(names)}"


def is_sweep(overrides: Sequence[str]) -> bool:
    """True if an override has several values (`model.num_filters=8,16`)."""
    return any(o.is_sweep_override() for o in parse_overrides(list(overrides)))


def one_run_only(overrides: Sequence[str]) -> UserError:
    """The error for a sweep without -m."""
    swept = next(o for o in parse_overrides(list(overrides)) if o.is_sweep_override())
    key, value = swept.key_or_group, (swept.input_line or "").partition("=")[2]
    ways = {
        "image": f"for several images, image=[{value}]; for one whose name has a comma, \"image='{value}'\"",
        "model": f"a run has one model; for a sweep, -m model={value}",
    }
    several = f"for several in one run, {key}=[{value}]; for a sweep, -m {key}={value}"
    other = several if key in ("method", "target") else f"for a sweep, -m {key}={value}"
    return UserError(f"{key}={value} has several values: {ways.get(key, other)}")


def parse_overrides(overrides: list[str]) -> list[Override]:
    """Parse `key=value` words with Hydra's grammar. Raises UserError."""
    parsed = []
    for text in overrides:
        try:
            parsed += OverridesParser.create().parse_overrides([text])
        except HydraException as error:
            raise UserError(f"cannot read {text!r}: {_unreadable(text)}") from error
    return parsed


def _unreadable(text: str) -> str:
    """Say why Hydra's grammar cannot read a word: its own messages are those of a parser."""
    value = text.partition("=")[2]
    if text.startswith("-"):
        return "options start with --; see --help"
    if "=" not in text:
        return "choices are key=value; see --help"
    if any(value.count(left) != value.count(right) for left, right in ("[]", "{}", "()")):
        return "a bracket is not closed"
    if value.count("'") % 2 or value.count('"') % 2:
        return "a quote is not closed"
    return f"put the value into quotes, \"{text.partition('=')[0]}='...'\", if it has characters such as {{}}[](),:'"


def _group_of(override: Override) -> str:
    return override.key_or_group.split("@")[0].lstrip("/")


def check_words(parsed: list[Override], config_dirs: Sequence[Path]) -> None:
    """Check that the chosen options exist and that the user's own are config files. Raises UserError."""
    for file in own_configs(config_dirs):
        if file.name.startswith("_"):  # a base, which options name in their defaults
            check_package(file, "", file.stem)
    for override in parsed:
        group = _group_of(override)
        if group not in GROUPS or override.is_delete() or override.is_sweep_override():
            continue
        known, value = options(group, config_dirs), override.value()
        if isinstance(value, list) and group != "method":
            raise UserError(f"{override.input_line}: a run has one {group}; for a sweep over several, -m {group}=a,b")
        choices = value if isinstance(value, list) else [value]
        for choice in choices:
            if choice is None:
                raise UserError(f"{override.input_line}: name one (see vis-run --list), or leave it out")
            if str(choice) not in known:
                hint = _of_torchvision(str(choice)) if group == "model" else ""
                hint = hint or did_you_mean(choice, known)
                raise UserError(f"there is no {group} {str(choice)!r}.{hint} See vis-run --list {group}")
            if not known[str(choice)].is_relative_to(CONF):
                load_option(known[str(choice)])
                check_package(known[str(choice)], group, str(choice))
            if choices.count(choice) > 1:
                raise UserError(f"{override.input_line} names {choice} twice")


def _of_torchvision(name: str) -> str:
    """A hint for the name of a network that torchvision has and the project has no config for, without importing it."""
    spec = find_spec("torchvision")
    models = Path(spec.origin or "").parent / "models" if spec else Path()
    if not any(re.search(rf"^def {re.escape(name)}\(", f.read_text(), re.M) for f in models.glob("[a-z]*.py")):
        return ""
    return f" Torchvision has it: model=torchvision model.arch={name}."


def _compose(overrides: Sequence[str], config_dirs: Sequence[Path]) -> DictConfig:
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register()
    search = [f"hydra.searchpath=[{','.join(f'file://{d.resolve()}' for d in config_dirs)}]"] if config_dirs else []
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF), job_name="run"):
            return compose("config", overrides=[*overrides, *search])
    except Exception as error:
        raise explain(error, overrides, config_dirs) from error


def explain(error: Exception, overrides: Sequence[str], config_dirs: Sequence[Path]) -> UserError:
    """Turn any exception that Hydra raised while composing into a UserError about these overrides and files."""
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text)
    key = unknown and (unknown.group(1) or getattr(error, "full_key", None) or unknown.group(2))
    parsed = parse_overrides(list(overrides))
    words = {o.key_or_group + f"@{o.package}" * bool(o.package): o.input_line or "" for o in parsed}
    if key and key in words:
        return _unknown_key(key, words, config_dirs)
    if isinstance(error, RecursionError):
        return UserError("circular configs: check the `defaults:` of the configs that this command chooses")
    if not isinstance(error, HydraException):  # name the user's file that Hydra cannot read
        for file in own_configs(config_dirs):
            load_option(file)
    return UserError(" ".join(text.split()) or type(error).__name__)


def _unknown_key(key: str, words: Mapping[str, str], config_dirs: Sequence[Path]) -> UserError:
    """The UserError for an override of a key that is not in the config, with the nearest keys. words: {key: override}."""
    if key.startswith("hydra."):
        return UserError(f"unknown option {key!r}. Hydra's own are in vis-run --cfg hydra")
    choices = [word for name, word in words.items() if name.split("@")[0] in GROUPS and name != key]
    known = [name for name, _ in leaves(_compose(choices, config_dirs))]
    parent, _, last = key.rpartition(".")
    near = [name for name in known if parent and name.startswith(parent + ".")]
    elsewhere = [name for name in known if parent and name.rpartition(".")[2] == last]
    siblings = [name for name in known if parent and name.startswith(parent.partition(".")[0] + ".")]
    top = [*GROUPS, *(name for name in known if "." not in name)]
    hint = did_you_mean(key, near or elsewhere or siblings or top)
    return UserError(f"unknown option {key!r}.{hint}" + f" To add a new key: +{key}=..." * bool(near or not parent))
