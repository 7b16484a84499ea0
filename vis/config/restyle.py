"""Change what only drawing reads in the config of a finished run (`vis-run --redraw FOLDER figure=paper`)."""

import copy
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vis.config.check import check_parts, check_types, leaves
from vis.config.compose import spelled_out
from vis.config.options import load_node, load_option, options
from vis.config.overrides import check_words, parse_overrides
from vis.errors import UserError, did_you_mean

LABELS = ("name", "note", "tags")


def restyled(config: DictConfig, words: Sequence[str], config_dirs: Sequence[Path], drawn: Sequence[str]) -> DictConfig:
    """Return the config of a run with other values for its figures, its name, its note and its tags.

    drawn: the keys under `experiment` that only drawing reads. `figure=paper` sets what the style's own file names and keeps
    the rest, such as colours that an experiment prescribes. Raises UserError for any other key: results depend on it.
    """
    parsed = parse_overrides(spelled_out(words, config_dirs))
    allowed = ["figure", *LABELS, *(f"experiment.{key}" for key in drawn)]
    for override in parsed:
        key, word = override.key_or_group, override.input_line
        if override.is_sweep_override() or override.is_add() or override.is_delete() or override.package:
            raise UserError(f"{word}: --redraw takes one value for a key that the run has")
        if key not in allowed and not key.startswith("figure."):
            own = ", ".join(f"{name}=" for name in allowed[1:])
            raise UserError(f"{word}: the run's results depend on {key}; --redraw takes figure=, figure.<key>=, {own}")
    check_words(parsed, config_dirs)
    styles = options("figure", config_dirs)
    before = OmegaConf.merge({"figure": load_node(styles["notebook"]), **dict.fromkeys(LABELS)}, config)
    assert isinstance(before, DictConfig)
    changed = copy.deepcopy(before)
    for override in sorted(parsed, key=lambda each: each.key_or_group != "figure"):  # a style, then what changes it
        key = override.key_or_group
        if key == "figure":
            style = load_option(styles[str(override.value())])
            changed.figure.merge_with({name: value for name, value in style.items() if name != "defaults"})
        elif key not in (known := [name for name, _ in leaves(before)]):
            raise UserError(f"{override.input_line}: the run has no {key}.{did_you_mean(key, known)}")
        else:
            OmegaConf.update(changed, key, override.value())
    check_parts(changed)
    check_types(changed, before, [each for each in parsed if each.key_or_group != "figure"])
    return changed
