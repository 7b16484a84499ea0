"""Read and validate the files of a run."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np

from vis.errors import UserError

ROWS = 100  # of a table, shown on a page

T = TypeVar("T")


@dataclass
class Status:
    """The entries of status.json shown on pages; `started`: when the run began, in ISO 8601."""

    state: str
    started: str | None = None
    command: str | None = None
    error: str | None = None
    seconds: int | float | None = None
    peak_memory_gb: int | float = 0


@dataclass
class ClaimRecord:
    """The entries of a claim in claims.json; `paper` is the paper's value.

    compared: the compared quantities as claims.json has them, with all their values.
    """

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
    compared: list = field(default_factory=list, repr=False)

    def row(self) -> dict[str, Any]:
        """Return the claim as a row of a table, without the compared values."""
        row = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "compared"}
        return row | {"differences": "; ".join(self.differences)}

    def comparisons(self) -> list[dict[str, Any]]:
        """Return a row for each compared quantity: its mean, standard deviation, number of values and interval.

        A number that does not exist is None: the deviation of one value, an infinite limit.
        """
        rows = []
        for each in self.compared:
            values = np.asarray(each["values"], dtype=float)
            low, high = each["interval"] or (None, None)
            numbers = {
                "mean": float(values.mean()) if values.size else None,
                "deviation": float(values.std(ddof=1)) if values.size > 1 else None,
                "n": values.size,
            }
            facts = {"id": self.id, "kind": self.kind, "metric": each["metric"], "verdict": each["verdict"]}
            rows.append(facts | numbers | {"low": low, "high": high, "rule": each["rule"]})
        return rows


@dataclass
class Provenance:
    """All entries of provenance.json; `finished` is the end of the run, `standin` True if a model was a stand-in."""

    entries: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        finished = self.entries.get("finished")
        self.finished = datetime.fromisoformat(finished) if finished else None
        self.standin = any(bool(model.get("standin")) for model in self.entries.get("models", {}).values())


@dataclass
class Stored:
    """The files of a run as shown on its pages; the field of a missing or damaged file stays empty.

    figures: {file name: caption}. tables: the first rows of each. damaged: for each damaged file, a line that names it
    and says how to repair it.
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
        except (OSError, ValueError, csv.Error):  # unreadable, not text, not a table
            found.damaged.append(f"{file} is damaged: {again}")
    return found


def read_json(path: Path, parse: Callable[[Any], T], mend: str) -> T | None:
    """Read a JSON file; return None if it is missing. Raises UserError, ending in `mend`, if it is damaged.

    parse: converts the JSON value to the result; it may raise on malformed input. mend: says how to repair the file.
    """
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {mend}") from error


def claims_of(path: Path) -> list[ClaimRecord]:
    """Read the claims in a run's folder; [] if there are none yet. Raises UserError if the file is damaged."""
    return read_json(path / "claims.json", _claims, f"vis-run --redraw {path} writes it again") or []


def _record(kind: type[T], entries: Any) -> T:
    """Build a dataclass from the matching entries of a JSON object. Raises TypeError for missing entries or wrong types."""
    kinds = get_type_hints(kind)
    record = kind(**{name: entries[name] for name in kinds if name in entries})
    for name, expected in kinds.items():
        if not isinstance(getattr(record, name), expected):
            raise TypeError(f"{name} is not of type {expected}")
    return record


def _claims(records: Any) -> list[ClaimRecord]:
    if not isinstance(records, list):
        raise TypeError("claims must be a list")
    return [_record(ClaimRecord, record) for record in records]


def _captions(captions: Any) -> dict[str, str]:
    if not all(isinstance(caption, str) for caption in captions.values()):
        raise TypeError("captions must be strings")
    return captions


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "status": partial(_record, Status),
    "claims": _claims,
    "figures": _captions,
    "provenance": Provenance,
}
