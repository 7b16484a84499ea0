"""Format rows of tables as CSV and Markdown."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

Rows = list[dict[str, Any]]


def numbers(rows: Rows, column: str) -> list[float]:
    """Return the values of a column without empty and undefined cells (NaN, such as the mu of a map of zeros)."""
    return [row[column] for row in rows if row.get(column) is not None and not math.isnan(row[column])]


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as CSV, with columns in the order of first occurrence."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as a Markdown table, with numbers to four digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def cell(value: Any) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str("" if value is None else value)
        return text.replace("|", "\\|").replace("\n", " ")

    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"
