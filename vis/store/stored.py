"""What the files of a run say, read and checked in one place."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from vis.errors import UserError

ROWS = 100  # of a table, on a page


@dataclass
class Stored:
    """What a run's files say, as its pages show it; empty is what is not there, and what is damaged.

    tables: the first rows of each. damaged: a line for each file that is, which names it and says what mends it.
    """

    status: dict[str, Any] = field(default_factory=dict)
    claims: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)  # {file name: caption}
    provenance: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)


def stored(path: Path) -> Stored:
    """Read the files of a run's folder: the one place where pages learn what they hold, and whether they are whole."""
    found = Stored()
    again = f"vis-run --redraw {path} writes it again"
    for name, whole in _WHOLE.items():
        try:
            value = read_json(
                path / f"{name}.json", whole, again if name in ("claims", "figures") else "start the run again"
            )
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


def read_json(path: Path, whole: Callable[[Any], bool], mend: str) -> Any:
    """What a JSON file holds; None where there is none. Raises UserError, with what would mend it, where it is damaged.

    whole: whether it holds what it should; what it stumbles over, it may raise.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if whole(value):
            return value
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # no JSON, or nothing like what is expected
        pass
    raise UserError(f"{path} is damaged: {mend}")


def _is_status(status: Any) -> bool:
    numbers = (status.get(key, 0) for key in ("seconds", "peak_memory_gb"))
    return isinstance(status["state"], str) and all(isinstance(number, int | float) for number in numbers)


def _are_claims(claims: Any) -> bool:
    texts = ("name", "verdict", "sentence", "source", "metric", "rule", "measured")
    return isinstance(claims, list) and all("paper" in c and all(isinstance(c[t], str) for t in texts) for c in claims)


def _are_captions(captions: Any) -> bool:
    return all(isinstance(caption, str) for caption in captions.values())


def _is_provenance(provenance: Any) -> bool:
    if finished := provenance.get("finished"):
        datetime.fromisoformat(finished)
    return all(isinstance(model, dict) for model in provenance.get("models", {}).values())


_WHOLE: dict[str, Callable[[Any], bool]] = {
    "status": _is_status,
    "claims": _are_claims,
    "figures": _are_captions,
    "provenance": _is_provenance,
}
