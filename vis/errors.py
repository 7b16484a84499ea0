"""Exceptions for mistakes that a user can correct. `vis-run` prints them as one line, with exit code 2."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """The request cannot be met; the message says what is wrong and what to type instead."""


class Lacking(UserError):
    """A resource of a run, such as weights or data, is neither on this machine nor can it be downloaded.

    reason: what is missing, a clause; ways_out: what to do instead; tiny_available: whether preset=tiny runs without it.
    """

    def __init__(self, reason: str, ways_out: str = "", tiny_available: bool = False) -> None:
        self.reason, self.ways_out, self.tiny_available = reason, ways_out, tiny_available
        tiny = (
            "Or see it in seconds, on a network that the project trains on digits: preset=tiny"
            if tiny_available
            else ""
        )
        super().__init__(". ".join(filter(None, (reason, ways_out, tiny))))


class NotApplicable(ValueError):
    """This method is not defined for this network; the message says why."""


class InUse(UserError):
    """Another process works in the folder of a run."""


class Incomplete(Exception):
    """Some jobs of a sweep failed or never ran; the others are done and stand in its table."""


@contextmanager
def named(what: str) -> Iterator[None]:
    """Attach a name such as `methods.mine` to exceptions raised inside, as a note; the innermost name wins.

    SystemExit becomes a RuntimeError, so that sys.exit() in user code fails one job and does not end the sweep.
    """
    try:
        yield
    except UserError:  # its message names the place
        raise
    except Exception as error:
        if not hasattr(error, "__notes__"):
            error.add_note(what)
        raise
    except SystemExit as error:
        failed = RuntimeError(f"it called sys.exit({error.code!r})")
        failed.add_note(what)
        raise failed from error


def said(error: BaseException) -> str:
    """Format an exception as one line, with the name that `named` attached: `methods.mine: RuntimeError: boom`."""
    if isinstance(error, UserError | Incomplete):
        return str(error)
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:500]
    return ": ".join([*getattr(error, "__notes__", [])[:1], type(error).__name__, *[first] * bool(first)])


def first_line(error: Exception) -> str:
    """The first non-empty line of an error's message, or the name of its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def did_you_mean(word: object, options: Iterable[object]) -> str:
    """A hint for an unknown word: the closest options (` Did you mean 'gbp'?`), or all of them if few, or nothing."""
    names = [str(option) for option in options]
    close = difflib.get_close_matches(str(word), names, n=3, cutoff=0.6)
    if close:
        return " Did you mean " + " or ".join(f"'{name}'" for name in close) + "?"
    if 0 < len(names) <= 40:
        return " There is: " + ", ".join(sorted(names)) + "."
    return ""
