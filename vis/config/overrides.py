"""The words of a command line: `key=value` overrides in Hydra's grammar, their spelling, and the jobs of a sweep."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from vis.config.home import CONF
from vis.config.options import GROUPS, check_package, load_option, options, own_configs
from vis.errors import UserError, did_you_mean


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


def group_of(override: Override) -> str:
    return override.key_or_group.split("@")[0].lstrip("/")


def check_words(parsed: list[Override], config_dirs: Sequence[Path]) -> None:
    """Check that the chosen options exist and that the user's own are config files. Raises UserError."""
    for file in own_configs(config_dirs):
        if file.name.startswith("_"):  # a base, which options name in their defaults
            check_package(file, "", file.stem)
    for override in parsed:
        group = group_of(override)
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


def quoted(word: str) -> str:
    """Quote the value of `key=value` if it is a free text, or if Hydra cannot read it otherwise: image=cat(1).jpg."""
    key, equals, value = word.partition("=")
    prose = key in ("name", "note") and value != "null"  # a comma would make it a sweep, and 12 a number
    try:
        if prose:
            raise HydraException
        OverridesParser.create().parse_overrides([word])
    except HydraException:
        if equals and key and value and value[0] not in ("'\"" if prose else "[{'\""):
            return f"{key}={quote(value)}"
    return word


def quote(text: str) -> str:
    """Quote a text as a value of Hydra's grammar, where backslashes are escaped only in front of a quote."""
    return "'" + re.sub(r"\\+(?='|\Z)", r"\g<0>\g<0>", text).replace("'", "\\'") + "'"


def as_spelled(word: str, config_dirs: Sequence[Path]) -> str:
    """Spell the names of options as their files do: method=[GBP,Saliency]."""
    key, equals, value = word.partition("=")
    group = key.lstrip("+").partition("@")[0]
    if group in ("preset", "device", "precision"):
        return key + equals + value.lower()
    if group not in GROUPS:
        return word
    known = {name.lower(): name for name in options(group, config_dirs)}
    return key + equals + re.sub(r"[\w/.-]+", lambda name: known.get(name[0].lower(), name[0]), value)


def names_for_glob(word: str, config_dirs: Sequence[Path]) -> str:
    (override,) = parse_overrides([word])
    pattern = override.value()
    if not isinstance(pattern, Glob):
        return word
    names = pattern.filter(list(options(group_of(override), config_dirs)))
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
