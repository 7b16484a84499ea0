"""Whether the values of a composed config can be: types, ranges, files that must be there. Without torch: it takes no time."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from vis.errors import Lacking, UserError

PRECISIONS = ("float32", "float64", "tf32", "mixed")


def first_line(error: Exception) -> str:
    """The first line of an error's words that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of a config; a list is a leaf, an interpolation None, what is `???` MISSING."""
    for key in node:
        name = f"{prefix}.{key}" if prefix else str(key)
        if OmegaConf.is_interpolation(node, key):
            yield name, None
        elif OmegaConf.is_missing(node, key):
            yield name, MISSING
        elif isinstance(node[key], DictConfig):
            yield from leaves(node[key], name)
        else:
            yield name, node[key]


def check_types(config: DictConfig, defaults: DictConfig, parsed: list[Override]) -> None:
    """A value has the type of the default that it replaces, a count is 1 or more; where the default is null, anything goes."""
    of_any_type = ("target", "batch_size", "input_size", "baseline", "fill")
    before, after = dict(leaves(defaults)), dict(leaves(config))
    for override in parsed:
        key = override.key_or_group
        default, value = before.get(key), after.get(key)
        if default is None or key not in after or key.rpartition(".")[2] in of_any_type:
            continue
        allowed: dict[type, tuple[type, ...]] = {
            bool: (bool,),
            int: (int,),
            float: (int, float),
            str: (str, type(None)),
            ListConfig: (ListConfig, str),
        }
        kinds = allowed.get(type(default))
        wrong = kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds))
        if wrong:
            word = {bool: "true or false", int: "an integer", float: "a number", str: "a text", ListConfig: "a list"}
            raise UserError(f"{key}={_show(value)} is not {word[type(default)]} (default {_show(default)})")
        if isinstance(default, int) and not isinstance(default, bool) and default > 0 and int(value or 0) < 1:
            raise UserError(f"{key}={value} is not 1 or more (default {default})")


def _show(value: Any) -> str:
    if isinstance(value, ListConfig):
        return "[" + ",".join(map(_show, value)) + "]"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )


_WORDS = {dict: "a mapping", list: "a list", int: "an integer", str: "a text"}
_PARTS = {  # what every config has
    "experiment": dict, "experiment.name": str, "seed": int, "seeds": int, "preset": str, "precision": str, "target": object,
    "image": object, "device": object, "batch_size": object, "outputs": object,
}  # fmt: skip
_MAY_BE = {
    "model": dict, "methods": dict, "dataset": dict, "experiment.all": list, "experiment.claims": list,
    "experiment.models": dict, "experiment.small": dict,
}  # fmt: skip


def check_parts(config: DictConfig) -> None:
    """Refuse a config whose parts are not of their kinds, or whose values refer to what is not there. Raises UserError."""
    try:
        values: Any = OmegaConf.to_container(config, resolve=True)
    except InterpolationToMissingValueError:  # `check` names what is missing
        values = OmegaConf.to_container(config)
    except (OmegaConfBaseException, RecursionError) as error:
        raise UserError(f"{getattr(error, 'full_key', None) or 'the config'}: {first_line(error)}") from error
    experiment = values.get("experiment")
    inside = experiment if isinstance(experiment, dict) else {}
    parts = values | {f"experiment.{key}": value for key, value in inside.items()}
    for key, kind in {**_PARTS, **_MAY_BE}.items():
        if key in _PARTS and key not in parts:
            raise UserError(f"{key} is missing: every run has one")
        value = parts.get(key)
        if not isinstance(value, kind | None if key in _MAY_BE else kind) or (kind is int and isinstance(value, bool)):
            raise UserError(f"{key}={_show(value)} is not {_WORDS[kind]}")
    for name, node in (values.get("methods") or {}).items():
        if not isinstance(node, dict | None):
            raise UserError(f"methods.{name}={_show(node)} is not a mapping with a _target_")


def check(config: DictConfig) -> None:
    """Refuse what is missing, does not resolve or is outside its range; no torch needed. Raises UserError."""
    missing = next((key for key, value in leaves(config) if value is MISSING), None)
    if missing:
        raise Lacking(f"{missing} is not given: add {missing}=...")
    check_parts(config)
    for key, value in leaves(config):
        for text in value if isinstance(value, ListConfig) else [value]:
            if isinstance(text, str) and text.startswith("~") and os.path.expanduser(text) == text:
                raise UserError(f"{key}={text}: there is no user of this name (of a file of this name: ./{text})")
    own = list(config.experiment.get("models") or [])
    if own and config.get("model"):
        raise UserError(
            f"{config.experiment.name} names its own models: change one with experiment.models.{own[0]}.<option>=..., "
            f"or put another in its place with model@experiment.models.{own[0]}=..., instead of model="
        )
    if config.batch_size != "auto" and not (isinstance(config.batch_size, int) and config.batch_size >= 1):
        raise UserError(f"batch_size={config.batch_size} is auto or a positive integer")
    if config.preset not in ("paper", "small"):
        raise UserError(f"preset={config.preset} is paper or small")
    if config.precision not in PRECISIONS:
        raise UserError(f"precision={config.precision} is one of {', '.join(PRECISIONS)}")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(config.device)):
        raise UserError(f"device={config.device} is auto, cpu, cuda, cuda:1, ... or mps")
    _check_input(config)
    weights = (config.get("model") or {}).get("weights")
    if (
        weights is not None
        and weights not in ("torchvision", "standin")
        and not Path(str(weights)).expanduser().is_file()
    ):
        raise Lacking(f"no weights file {weights}: give model.weights=FILE")


def _check_input(config: DictConfig) -> None:
    """Seeds, pictures, targets, folders."""
    if config.seeds < 1:
        raise UserError(f"seeds={config.seeds} is not 1 or more")
    largest = 2**32 - config.seeds
    if not 0 <= config.seed <= largest:
        raise UserError(f"seed={config.seed} is not between 0 and {largest}")
    for key in ("dataset.limit", "dataset.resize"):
        if (count := OmegaConf.select(config, key)) is not None and (not isinstance(count, int) or count < 1):
            raise UserError(f"{key}={count} is not an integer, 1 or more (null: as it is)")
    if not isinstance(config.outputs, str) or not config.outputs:
        raise UserError(f"outputs={_show(config.outputs)} is no folder's name (of a folder named 12: outputs=./12)")
    if config.image is not None:
        pictures = list(config.image) if isinstance(config.image, ListConfig) else [config.image]
        for picture in pictures or [None]:
            if not isinstance(picture, str):
                raise UserError(f"image={_show(config.image)} is no file's name (of a file named 12: image=./12)")
            if not Path(picture).expanduser().is_file():
                raise UserError(f"no image file {picture}")
    targets = list(config.target) if isinstance(config.target, ListConfig) else [config.target]
    if not targets or any(target is None or isinstance(target, bool) for target in targets):
        raise UserError(f"target={_show(config.target)} is max, random, an index, a class name, or a list of these")
