"""Check the values of a composed config: types, ranges, required files. Torch is not loaded, so the check is fast."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from vis.errors import Lacking, UserError, first_line

PRECISIONS = ("float32", "float64", "tf32", "mixed")


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every leaf of a config. Lists are leaves; interpolations give None, `???` MISSING."""
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


_KINDS: dict[type, tuple[Any, str]] = {  # type of a default: types of its replacements, and their name
    bool: ((bool,), "true or false"),
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    str: ((str, type(None)), "a string"),
    ListConfig: ((ListConfig, str), "a list"),
}


def check_types(config: DictConfig, defaults: DictConfig, parsed: list[Override]) -> None:
    """Check overridden values against the defaults they replace. Raises UserError.

    A value needs the type of its default, and a positive integer stays positive. A null default accepts any value.
    """
    of_any_type = ("target", "batch_size", "input_size", "baseline", "fill", "stages")
    before, after = dict(leaves(defaults)), dict(leaves(config))
    for override in parsed:
        key = override.key_or_group
        default, value = before.get(key), after.get(key)
        if type(default) not in _KINDS or key not in after or key.rpartition(".")[2] in of_any_type:
            continue
        if value is None:  # or an interpolation, seed=${seeds}
            value = OmegaConf.select(config, key)
        if value is None and key.rpartition(".")[2] in ("limit", "resize"):  # all images; no resizing
            continue
        kinds, name = _KINDS[type(default)]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise UserError(f"{key}={_show(value)} is not {name} (default {_show(default)})")
        if type(default) is int and default > 0 and value < 1:
            raise UserError(f"{key}={value} is not 1 or more (default {default})")


def _show(value: Any) -> str:
    if isinstance(value, ListConfig):
        return "[" + ",".join(map(_show, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


_WORDS = {dict: "a mapping", list: "a list", int: "an integer", str: "a string"}
_PARTS = {  # required keys
    "experiment": dict, "experiment.name": str, "seed": int, "seeds": int, "preset": str, "precision": str, "target": object,
    "image": object, "device": object, "batch_size": object, "outputs": object,
}  # fmt: skip
_MAY_BE = {  # optional keys, or null
    "name": str, "note": str, "tags": list, "figure": dict,
    "model": dict, "methods": dict, "dataset": dict, "experiment.all": list, "experiment.claims": list,
    "experiment.models": dict, "experiment.replication": dict, "experiment.small": dict, "experiment.tiny": dict,
}  # fmt: skip


def check_parts(config: DictConfig) -> None:
    """Check that the main keys exist and have their types, and that interpolations resolve. Raises UserError."""
    try:
        values: Any = OmegaConf.to_container(config, resolve=True)
    except InterpolationToMissingValueError:  # `check` reports the missing key
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
    if not all(isinstance(tag, str) for tag in values.get("tags") or []):
        raise UserError(f"tags={_show(config.tags)} is not a list of words")
    for name, node in (values.get("methods") or {}).items():
        if not isinstance(node, dict | None):
            raise UserError(f"methods.{name}={_show(node)} is not a mapping with a _target_")


def check(config: DictConfig) -> None:
    """Check a whole config: missing values, interpolations, ranges, files. Raises UserError."""
    missing = next((key for key, value in leaves(config) if value is MISSING), None)
    if missing:
        raise Lacking(f"{missing} is not given: add {missing}=...")
    check_parts(config)
    for key, value in leaves(config):
        for text in value if isinstance(value, ListConfig) else [value]:
            if isinstance(text, str) and text.startswith("~") and os.path.expanduser(text) == text:
                raise UserError(f"{key}={text}: there is no such user (for a file of this name: ./{text})")
    own = list(config.experiment.get("models") or [])
    if own and config.get("model"):
        raise UserError(
            f"{config.experiment.name} chooses its own models: instead of model=, change one with "
            f"experiment.models.{own[0]}.<option>=... or replace it with model@experiment.models.{own[0]}=..."
        )
    if config.batch_size != "auto" and not (isinstance(config.batch_size, int) and config.batch_size >= 1):
        raise UserError(f"batch_size={config.batch_size} must be auto or a positive integer")
    if config.preset not in ("paper", "small", "tiny"):
        raise UserError(f"preset={config.preset} must be paper, small or tiny")
    if config.precision not in PRECISIONS:
        raise UserError(f"precision={config.precision} must be one of {', '.join(PRECISIONS)}")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(config.device)):
        raise UserError(f"device={config.device} must be auto, cpu, cuda, cuda:1, ... or mps")
    _check_input(config)
    weights = (config.get("model") or {}).get("weights")
    if weights is not None and weights not in ("published", "torchvision", "wheel", "standin") and no_file(weights):
        raise Lacking(no_file(weights))


def no_file(weights: str) -> str:
    """Say that a file of weights is missing, and how to get it; "" if it is there.

    A file NAME.pt in a folder `networks` is a network that the project trains and keeps there (experiment=train_NAME).
    """
    path = Path(str(weights)).expanduser()
    if path.is_file():
        return ""
    if path.parent.name == "networks":
        return f"no network is kept at {path}: vis-run experiment=train_{path.stem} dataset.path=FOLDER|ZIP"
    return f"no weights file {path}: give model.weights=FILE"


def _check_input(config: DictConfig) -> None:
    """Check seeds, images, targets and folders. Raises UserError."""
    if config.seeds < 1:
        raise UserError(f"seeds={config.seeds} is not 1 or more")
    largest = 2**32 - config.seeds
    if not 0 <= config.seed <= largest:
        raise UserError(f"seed={config.seed} is not between 0 and {largest}")
    for key in ("dataset.limit", "dataset.resize"):
        if (count := OmegaConf.select(config, key)) is not None and (not isinstance(count, int) or count < 1):
            raise UserError(f"{key}={count} is not an integer of 1 or more, or null")
    if not isinstance(config.outputs, str) or not config.outputs:
        raise UserError(
            f"outputs={_show(config.outputs)} is not the name of a folder (for a folder named 12: outputs=./12)"
        )
    if config.image is not None:
        pictures = list(config.image) if isinstance(config.image, ListConfig) else [config.image]
        for picture in pictures or [None]:
            if not isinstance(picture, str):
                raise UserError(
                    f"image={_show(config.image)} is not the name of a file (for a file named 12: image=./12)"
                )
            if Path(picture).expanduser().is_dir():
                raise UserError(f"image={picture} is a folder: dataset=folder dataset.path={picture}")
            if not Path(picture).expanduser().is_file():
                raise UserError(f"there is no image file {picture}")
    _check_boxes(config.get("boxes"))
    targets = list(config.target) if isinstance(config.target, ListConfig) else [config.target]
    if twice := [target for target in targets if list(map(str, targets)).count(str(target)) > 1]:
        raise UserError(f"target={_show(config.target)} names {twice[0]} twice")
    if not targets or any(target is None or isinstance(target, bool) for target in targets):
        raise UserError(
            f"target={_show(config.target)} must be max, random, an index, a class name, or a list of these"
        )


def _check_boxes(boxes: Any) -> None:
    """Raise UserError for boxes of objects that are not given as shares of the sides, such as pixels."""

    def right(box: Any) -> bool:
        sides = list(box) if isinstance(box, ListConfig) else []
        if len(sides) != 4 or not all(isinstance(side, int | float) and 0 <= side <= 1 for side in sides):
            return False
        return bool(sides[0] < sides[2] and sides[1] < sides[3])

    named = isinstance(boxes, DictConfig) and all(box is None or right(box) for box in boxes.values())
    if boxes is not None and not named:
        raise UserError(
            f"boxes={_show(boxes)} is not {{image: [top, left, bottom, right]}}, in shares of the sides from 0 to 1"
        )
