"""Compose a checked config from command-line overrides.

Only Hydra and OmegaConf are imported here, so that mistakes are reported at once, before torch is loaded or a folder made.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from vis.config.check import check, check_parts, check_types, leaves
from vis.config.home import CONF
from vis.config.options import GROUPS, load_option, own_configs, slug
from vis.config.overrides import as_spelled, check_words, group_of, names_for_glob, parse_overrides, quote, quoted
from vis.config.presets import OVERLAYS, apply_preset, forget_unchosen, replicated, with_a_way_out
from vis.config.signature import FileConfigSource
from vis.errors import Lacking, UserError, did_you_mean


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


def compose_config(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> DictConfig:
    """Compose a config and check it. Raises UserError, or Lacking for missing weights or data."""
    overrides = list(overrides)
    parsed = parse_overrides(overrides)
    check_words(parsed, config_dirs)
    config = _compose(overrides, config_dirs)
    check_parts(config)
    choices = [o.input_line for o in parsed if o.input_line and group_of(o) in GROUPS]
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


def spelled_out(words: Sequence[str], config_dirs: Sequence[Path]) -> list[str]:
    """Rewrite the user's overrides for Hydra: add quotes, match names regardless of case, expand glob(), name the preset's model.

    A preset may replace the paper's model. Overrides such as model.width= then belong to the preset's model, which must
    be named explicitly. Raises UserError for a glob() that matches no name, and for spaces around `=`.
    """
    for before, word, behind in zip(["", *words], words, [*words[1:], ""], strict=False):
        if word.startswith("="):
            raise UserError(f"no spaces around '=': {before}={word[1:] or behind}")
    overrides = [names_for_glob(as_spelled(quoted(word), config_dirs), config_dirs) for word in words]
    keys = {o.key_or_group for o in parse_overrides(overrides)}
    preset = next((word.removeprefix("preset=") for word in overrides if word.startswith("preset=")), "paper")
    if OVERLAYS.get(preset) and "model" not in keys and any(key.startswith("model.") for key in keys):
        choices = [word for word in overrides if word.startswith("experiment=")]
        check_words(parse_overrides(choices), config_dirs)
        experiment = _compose(choices, config_dirs).experiment
        models = [(experiment.get(name) or {}).get("model") for name in OVERLAYS[preset]]
        overrides += [f"model={model}" for model in models if isinstance(model, str)][-1:]
    return overrides


def _compose(overrides: Sequence[str], config_dirs: Sequence[Path]) -> DictConfig:
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register()
    search = search_path([d.resolve() for d in config_dirs])
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF), job_name="run"):
            return compose("config", overrides=[*overrides, *search])
    except Exception as error:
        raise explain(error, overrides, config_dirs) from error


def search_path(config_dirs: Sequence[Path]) -> list[str]:
    """Return the override that lets Hydra find the user's own configs; none without such folders."""
    return [f"hydra.searchpath=[{','.join(quote(f'file://{d}') for d in config_dirs)}]"] if config_dirs else []


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
