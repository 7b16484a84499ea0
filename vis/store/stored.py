"""The files of a run, read and checked in one place."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from vis.errors import UserError

ROWS = 100  # of a table, on a page

T = TypeVar("T")


@dataclass
class Status:
    """What pages show of status.json."""

    state: str
    command: str | None = None
    error: str | None = None
    seconds: int | float | None = None
    peak_memory_gb: int | float = 0


@dataclass
class ClaimRecord:
    """What pages show of a claim in claims.json: texts, the paper's value, and how the run differs from the paper's setting."""

    id: str
    kind: str
    verdict: str
    differences: list
    sentence: str
    source: str
    metric: str
    rule: str
    control: str
    paper: object
    measured: str


@dataclass
class Provenance:
    """All entries of provenance.json, with the end of the run, and whether a model was a stand-in."""

    entries: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        finished = self.entries.get("finished")
        self.finished = datetime.fromisoformat(finished) if finished else None
        self.standin = any(bool(model.get("standin")) for model in self.entries.get("models", {}).values())


@dataclass
class Stored:
    """The files of a run as its pages show them; a file that is missing or damaged leaves its field empty.

    figures: {file name: caption}. tables: the first rows of each. damaged: a line for each damaged file that names it and
    says how to mend it.
    """

    status: Status = field(default_factory=lambda: Status("not started"))
    claims: list[ClaimRecord] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)


def stored(path: Path) -> Stored:
    """Read the files of a run's folder."""
    found = Stored()
    again = f"vis-run --redraw {path} writes it again"
    for name, parse in _PARSERS.items():
        mend = again if name in ("claims", "figures") else "start the run again"
        try:
            value = read_json(path / f"{name}.json", parse, mend)
        except UserError as error:
            found.damaged.append(str(error))
        else:
            if value is not None:
                setattr(found, name, value)
    for file in sorted(path.glob("*.csv")):
        if file.name == "timings.csv":
            continue
        try:
            with file.open(newline="", encoding="utf-8") as lines:
                found.tables[file.stem] = list(islice(csv.DictReader(lines), ROWS + 1))
        except (OSError, ValueError, csv.Error):  # unreadable, no text, no table
            found.damaged.append(f"{file} is damaged: {again}")
    return found


def read_json(path: Path, parse: Callable[[Any], T], mend: str) -> T | None:
    """Read a JSON file; None where there is none. Raises UserError, which says how to mend it, where it is damaged.

    parse: makes the result from the JSON value; it may raise whatever a wrong value causes.
    """
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {mend}") from error


def _record(kind: type[T], entries: Any) -> T:
    """Make a dataclass from the entries of a JSON object that it names. Raises TypeError for a missing entry or a wrong type."""
    kinds = get_type_hints(kind)
    record = kind(**{name: entries[name] for name in kinds if name in entries})
    for name, expected in kinds.items():
        if not isinstance(getattr(record, name), expected):
            raise TypeError(f"{name} is no {expected}")
    return record


def _claims(records: Any) -> list[ClaimRecord]:
    if not isinstance(records, list):
        raise TypeError("claims are a list")
    return [_record(ClaimRecord, record) for record in records]


def _captions(captions: Any) -> dict[str, str]:
    if not all(isinstance(caption, str) for caption in captions.values()):
        raise TypeError("captions are texts")
    return captions


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "status": partial(_record, Status),
    "claims": _claims,
    "figures": _captions,
    "provenance": Provenance,
}
