"""From command-line overrides to a checked config. Only Hydra and OmegaConf are imported here: a mistake is answered
in a fraction of a second, before torch is loaded or a folder made."""

import copy
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vis.config.check import check, check_parts, check_types, first_line, leaves
from vis.config.home import CONF
from vis.errors import Lacking, UserError, did_you_mean

GROUPS = ("experiment", "model", "method", "dataset")


def slug(text: str, longest: int = 80) -> str:
    """A readable folder name from any text: letters, digits and `=.,_-` stay."""
    return re.sub(r"[^\w=.,-]+", "_", str(text)).strip("_")[:longest] or "run"


def register() -> None:
    """The resolvers that conf/config.yaml uses, and listings that see nested options (nie2018/figure4).

    Stock Hydra lists one level of a group only, so that completion, `experiment=glob(nie2018/*)` and listings miss the
    papers' items. `get_group_options` is private: Hydra is pinned to 1.3 and a test holds this.
    """
    OmegaConf.register_new_resolver("vis.slug", slug, replace=True)
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

    nested.nested = True  # type: ignore[attr-defined]  # a mark: wrapped once only
    ConfigLoaderImpl.get_group_options = nested  # type: ignore[method-assign]  # see above: there is no public way


def options(group: str, config_dirs: Sequence[Path] = ()) -> dict[str, Path]:
    """The options of a config group, {name: file}, with those in the user's own config folders."""
    found: dict[str, Path] = {}
    for root in (CONF, *config_dirs):
        for file in (root / group).rglob("*.yaml"):
            if not file.name.startswith("_"):
                found[file.relative_to(root / group).with_suffix("").as_posix()] = file
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> list[tuple[int, str]]:
    """For sorting figure9 before figure10."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", name)]


def describe(file: Path) -> str:
    """The first comment of a config file that is not a Hydra directive: what the option is, in a line."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not line.startswith("# @"):
            return line[2:].strip()
    return ""


def load_option(file: Path) -> Any:
    """An option's own YAML file, without what it composes. Raises UserError where it is damaged."""
    try:
        config = OmegaConf.load(file)
    except (yaml.YAMLError, OSError, ValueError, OmegaConfBaseException) as error:  # ValueError: no UTF-8
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else f": {first_line(error)}"
        raise UserError(f"a config is no YAML: in {file}{where}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"a config is no YAML mapping (key: value): {file}")
    return config


def own_configs(config_dirs: Sequence[Path]) -> list[Path]:
    """The files in the user's own config folders."""
    return [file for root in config_dirs for group in GROUPS for file in sorted((root / group).rglob("*.yaml"))]


def check_own_configs(config_dirs: Sequence[Path]) -> None:
    """Raises UserError for a file of the user's whose `# @package` Hydra would take for a comment, or cannot read."""
    for file in own_configs(config_dirs):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
        header = list(itertools.takewhile(lambda line: not line.strip() or line.startswith("#"), lines))
        packages = [line for line in header if re.match(r"#\s*@", line)]
        first = next((line for line in header if line.strip()), "")
        if packages and (packages != [first] or not re.fullmatch(r"#\s*@package\s+\S+\s*", first)):
            raise UserError(
                f"{file}: its first line has to be `# @package NAME`, without a comment above it; it is {first!r}"
            )


def compose_config(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> DictConfig:
    """The composed and checked config. Raises UserError for anything that is wrong with it."""
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
    try:
        apply_preset(config, overrides)
    except OmegaConfBaseException as error:
        raise UserError(f"experiment.small of {config.experiment.name}: {first_line(error)}") from error
    forget_unchosen(config, overrides)
    keys = [o.key_or_group for o in parsed]
    if config.image is not None and (unused := [key for key in keys if key.partition(".")[0] == "dataset"]):
        raise UserError(f"image= takes the place of the dataset: leave out {unused[0]}=")
    try:
        check(config)
    except Lacking as error:
        raise with_a_way_out(error, config) from error
    return config


def _check_read(parsed: list[Override], defaults: DictConfig) -> None:
    """Raises UserError for a new value that nothing reads: one outside the parts of a config, and not named as ${...}."""
    for override in parsed:
        root = (override.package or override.key_or_group).split(".")[0].split("/")[0]
        known = {*GROUPS, "methods", "hydra", *([] if override.package else defaults)}
        if root not in known and not any("${" + root in (o.input_line or "") for o in parsed):
            raise UserError(f"{override.input_line}: nothing reads {root}.{did_you_mean(root, known)}")


def check_hydra(overrides: Sequence[str], honoured: Sequence[str]) -> None:
    """Raises UserError for an option of Hydra's own that would change nothing, or the place of what vis-run writes."""
    ways = {"run": "runs go to outputs=FOLDER", "sweep": "runs go to outputs=FOLDER", "mode": "a sweep is -m",
            "searchpath": "own configs are --config-dir FOLDER", "launcher": "it starts the jobs of a sweep: add -m"}  # fmt: skip
    for override in parse_overrides(list(overrides)):
        root, _, key = override.key_or_group.replace("/", ".").partition(".")
        if root == "hydra" and not key.startswith(tuple(honoured)):
            way = ways.get(key.split(".")[0], f"of Hydra's options, there is {', '.join(honoured) or 'none'} here")
            raise UserError(f"{override.input_line} is not for this command: {way}")
        if root == "hydra" and key == "verbose" and not isinstance(override.value(), bool | str):
            raise UserError(f"{override.input_line} is not true, false or the name of a logger")


def with_a_way_out(error: Lacking, config: DictConfig) -> Lacking:
    """The same error, which names preset=small where that does without what lacks."""
    if "small" in config.experiment and config.preset != "small":
        return Lacking(error.reason, error.ways_out, small_available=True)
    return error


def apply_preset(config: DictConfig, overrides: Sequence[str]) -> None:
    """With preset=small, put the values of `experiment.small` over the config, in place, but not over the command line's.

    `experiment.small` is a piece of the whole config ({seeds: 2, experiment: {filters: [8]}}): the sizes with which an
    experiment ends in minutes on two cores. The paper's sizes are the default, always. A text where the config has a model
    or the dataset is the name of another: {model: vgg_small}. So is its `option`, which leaves room for parameters:
    {dataset: {option: digits, limit: 4}}.
    """
    if config.preset == "small" and "small" in config.experiment:
        parsed = parse_overrides(list(overrides))
        given = {o.key_or_group for o in parsed}
        chosen = {o.package or o.key_or_group for o in parsed if _group_of(o) in GROUPS}
        before = copy.deepcopy(config)
        OmegaConf.set_struct(config, False)
        config.merge_with(config.experiment.small)
        for leaf, name in leaves(before.experiment.small):
            key = leaf.removesuffix(".option")
            if isinstance(name, str) and OmegaConf.is_dict(own := OmegaConf.select(before, key)):
                other = load_option(options("dataset" if key == "dataset" else "model")[name])
                if key == "dataset":
                    other.limit = own.limit  # how many images is the experiment's to say
                node = own if key in chosen else other
                if key != leaf:
                    OmegaConf.set_struct(node, False)
                    node.merge_with(OmegaConf.select(before.experiment.small, key))
                    del node["option"]
                OmegaConf.update(config, key, node, merge=False)
        for key in given - set(GROUPS):
            if (value := OmegaConf.select(before, key)) is not None:
                OmegaConf.update(config, key, value)
        OmegaConf.set_struct(config, True)


def forget_unchosen(config: DictConfig, overrides: Sequence[str]) -> None:
    """Parameters that an experiment gives to a method go, in place, where the command line chose other methods."""
    given = {
        o.key_or_group.split(".")[1] for o in parse_overrides(list(overrides)) if o.key_or_group.startswith("methods.")
    }
    methods = config.get("methods") or {}
    unchosen = [name for name, node in methods.items() if node and "_target_" not in node and name not in given]
    OmegaConf.set_struct(config, False)
    for name in unchosen:
        del methods[name]
    OmegaConf.set_struct(config, True)


def sweep_samples(overrides: Sequence[str]) -> list[list[str]]:
    """Override lists in which each value of each swept key occurs: enough to check a sweep before it starts.

    Raises UserError for a range without steps, which has no list of values.
    """
    parsed = parse_overrides(list(overrides))
    swept = [o for o in parsed if o.is_sweep_override()]
    if endless := [o.input_line for o in swept if not o.is_discrete_sweep()]:
        raise UserError(f"{endless[0]} has no list of values: give some (2,4,8), or range(2,9,2)")
    fixed = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
    first = [_expand(o)[0] for o in swept]
    samples = [fixed + first]
    for i, override in enumerate(swept):
        samples += [fixed + first[:i] + [value] + first[i + 1 :] for value in _expand(override)[1:]]
    return samples


def sweep_jobs(overrides: Sequence[str]) -> list[list[str]]:
    """All jobs of a sweep with Hydra's basic sweeper, in its order."""
    (jobs,) = BasicSweeper.split_arguments(parse_overrides(list(overrides)), max_batch_size=None)
    return [list(job) for job in jobs]


def fixed_keys(overrides: Sequence[str]) -> list[str]:
    """The keys that have one value in all jobs of a sweep."""
    parsed = parse_overrides(list(overrides))
    swept = {o.key_or_group for o in parsed if o.is_sweep_override()}
    return [o.key_or_group for o in parsed if o.key_or_group not in swept]


def _expand(override: Override) -> list[str]:
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def spelled_out(words: Sequence[str], config_dirs: Sequence[Path]) -> list[str]:
    """Overrides as Hydra takes them: quotes where its grammar needs them, glob() as names, the model of preset=small.

    preset=small puts another model in place of the paper's. Where the command line changes values of the model, they are
    that one's, so that it has to stand there by name. Raises UserError for a glob() that fits no name.
    """
    overrides = [_names_for_glob(_quoted(word), config_dirs) for word in words]
    keys = {o.key_or_group for o in parse_overrides(overrides)}
    if "preset=small" in overrides and "model" not in keys and any(key.startswith("model.") for key in keys):
        choices = [word for word in overrides if word.startswith("experiment=")]
        check_words(parse_overrides(choices), config_dirs)
        model = (_compose(choices, config_dirs).experiment.get("small") or {}).get("model")
        overrides += [f"model={model}"] if isinstance(model, str) else []
    return overrides


def _quoted(word: str) -> str:
    """`key=value`, with the value in quotes where Hydra's grammar could not read it: image=cat(1).jpg."""
    key, equals, value = word.partition("=")
    try:
        OverridesParser.create().parse_overrides([word])
    except HydraException:  # not Hydra's grammar, which is what is asked here
        if equals and key and value and value[0] not in "[{'\"":
            return f"{key}='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return word


def _names_for_glob(word: str, config_dirs: Sequence[Path]) -> str:
    (override,) = parse_overrides([word])
    pattern = override.value()
    if not isinstance(pattern, Glob):
        return word
    names = pattern.filter(list(options(_group_of(override), config_dirs)))
    if not names:
        raise UserError(f"{word}: no {override.key_or_group} has such a name. See vis-run --list")
    return f"{override.get_key_element()}={','.join(names)}"


def is_sweep(overrides: Sequence[str]) -> bool:
    """Whether any override has several values (`model.num_filters=8,16`)."""
    return any(o.is_sweep_override() for o in parse_overrides(list(overrides)))


def parse_overrides(overrides: list[str]) -> list[Override]:
    """Hydra's reading of `key=value` words. Raises UserError."""
    parsed = []
    for text in overrides:
        try:
            parsed += OverridesParser.create().parse_overrides([text])
        except HydraException as error:
            hint = " Options start with --; see --help" if text.startswith("-") else " Overrides are key=value"
            raise UserError(f"cannot read {text!r}: {first_line(error)}.{hint}") from error
    return parsed


def _group_of(override: Override) -> str:
    return override.key_or_group.split("@")[0].lstrip("/")


def check_words(parsed: list[Override], config_dirs: Sequence[Path]) -> None:
    """Raises UserError for a choice that is not there, and for what `check_own_configs` refuses."""
    check_own_configs(config_dirs)
    for override in parsed:
        group = _group_of(override)
        if group not in GROUPS or override.is_delete() or override.is_sweep_override():
            continue
        known, value = options(group, config_dirs), override.value()
        if isinstance(value, list) and group != "method":
            raise UserError(
                f"{override.input_line}: a run has one {group}; several, one after the other: -m {group}=a,b"
            )
        choices = value if isinstance(value, list) else [value]
        for choice in choices:
            if choice is None:
                raise UserError(f"{override.input_line}: name one (see vis-run --list), or leave it out")
            if str(choice) not in known:
                raise UserError(f"there is no {group} {str(choice)!r}.{did_you_mean(choice, known)} See vis-run --list")
            if not known[str(choice)].is_relative_to(CONF):
                load_option(known[str(choice)])
            if choices.count(choice) > 1:
                raise UserError(f"{override.input_line} names {choice} twice")


def _compose(overrides: Sequence[str], config_dirs: Sequence[Path]) -> DictConfig:
    os.environ["HYDRA_FULL_ERROR"] = "1"
    search = [f"hydra.searchpath=[{','.join(f'file://{d.resolve()}' for d in config_dirs)}]"] if config_dirs else []
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF), job_name="run"):
            return compose("config", overrides=[*overrides, *search])
    except Exception as error:
        raise explain(error, overrides, config_dirs) from error


def explain(error: Exception, overrides: Sequence[str], config_dirs: Sequence[Path]) -> UserError:
    """What Hydra raised while it composed a config, whatever it is, as a mistake in these words and files."""
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text)
    key = unknown and (unknown.group(1) or getattr(error, "full_key", None) or unknown.group(2))
    parsed = parse_overrides(list(overrides))
    words = {o.key_or_group + f"@{o.package}" * bool(o.package): o.input_line or "" for o in parsed}
    if key and key in words:
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
        return UserError(
            f"unknown option {key!r}.{hint}" + f" A new key is added with +{key}=..." * bool(near or not parent)
        )
    if isinstance(error, RecursionError):
        return UserError(
            "configs stand on each other in a circle: see the `defaults:` of those that this command takes"
        )
    if not isinstance(error, HydraException):  # a file of the user's that Hydra cannot read is named
        for file in own_configs(config_dirs):
            load_option(file)
    return UserError(" ".join(text.split()) or type(error).__name__)
