"""Mistakes that a user can mend: one clear line, no traceback, exit code 2 (in the library, an exception)."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user asked for cannot be: the message says what is wrong and what would be right."""


class Lacking(UserError):
    """Weights or data that a paper's setting needs, and that are not on this machine and cannot be downloaded."""


class Incomplete(Exception):
    """Some jobs of a sweep failed or never ran; the others are done and stand in its table."""


def did_you_mean(word: object, options: Iterable[object]) -> str:
    """A hint such as ` Did you mean 'gbp'?`, or the options themselves where there are few, or nothing."""
    names = [str(option) for option in options]
    close = difflib.get_close_matches(str(word), names, n=3, cutoff=0.6)
    if close:
        return " Did you mean " + " or ".join(f"'{name}'" for name in close) + "?"
    if 0 < len(names) <= 40:
        return " There is: " + ", ".join(sorted(names)) + "."
    return ""


class NotApplicable(ValueError):
    """This method is not defined for this network; the message says why."""
