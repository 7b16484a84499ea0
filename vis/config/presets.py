"""Presets: overlays that change an experiment's networks, data and sizes."""

import copy
import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vis.config.check import MISSING, leaves
from vis.config.options import GROUPS, load_node, options
from vis.config.overrides import group_of, parse_overrides
from vis.errors import Lacking, UserError, first_line

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
        _load_named(config, before, name, {o.package or o.key_or_group for o in parsed if group_of(o) in GROUPS})
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


def with_a_way_out(error: Lacking, config: DictConfig) -> Lacking:
    """The same error; it suggests preset=tiny if that avoids the missing resource."""
    return Lacking(error.reason, error.ways_out, tiny_available="tiny" in config.experiment and config.preset != "tiny")
