"""HTML pages from the templates beside this file; index.html of a run.

The pages are static and open from the file system. They contain the style sheet, a script and the figures, so that a page can
be sent alone; full figures, PDFs and tables are links to the run folders beside it. A page is readable without its script.
"""

import base64
import contextlib
import io
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from vis.config.options import slug
from vis.reports.items import groups, opening
from vis.store.run_folder import RunFolder, labels
from vis.store.stored import ROWS, stored
from vis.system.files import write_text

log = logging.getLogger(__name__)

TEMPLATES = Environment(
    loader=PackageLoader("vis.reports"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def write_page(page: Path, template: str, **values: Any) -> None:
    """Render a template and write the page.

    Beside the values, a template can call `place(path)`, the link from the page to a path, and `name(path)`, the relative path.
    """
    start = page.parent
    paths = {"place": partial(place, start=start), "name": partial(os.path.relpath, start=start)}
    write_text(page, TEMPLATES.get_template(template).render(values | paths))


def place(path: Path, start: Path) -> str:
    """Return the link to a path from a page in the folder `start`."""
    return quote(Path(os.path.relpath(path, start)).as_posix(), safe="/=,")


def run_page(folder: RunFolder) -> None:
    """Write index.html of a finished run: its figures, claims, tables and provenance."""
    path = folder.path
    found, config = stored(path), folder.config()
    for line in found.damaged:  # the rest of the page is whole
        log.warning("%s", line)
    # The log may begin with the line that says the run is done, which comes after this page.
    expected = {Path(handler.baseFilename) for handler in log.root.handlers if isinstance(handler, logging.FileHandler)}
    files = ("config.yaml", "provenance.json", "claims.json", "maps.npz", "run.log")
    write_page(
        path / "index.html",
        "run.html",
        title=str(config.experiment.name),
        labels=labels(config),
        captioned=(config.get("figure") or {}).get("caption", True),
        folder=path,
        stored=found,
        most=ROWS,
        files=[file for file in files if (path / file).exists() or path.resolve() / file in expected],
    )


def _anchor(text: str) -> str:
    return slug(text.replace("/", "-"), 200)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _short(value: Any) -> str:
    """Format a value as text, numbers to four digits."""
    text = "" if value is None else str(value)
    if "." in text or "e" in text:
        with contextlib.suppress(ValueError):  # a text, which stays as it is
            return f"{float(text):.4g}"
    return text


def _shell(words: Sequence[Any]) -> str:
    """Join words to a shell command."""
    return shlex.join(map(str, words))


class Picture(NamedTuple):
    """A figure in a page: a data URI, and its width and height in pixels."""

    uri: str
    width: int
    height: int


def _picture(file: Path) -> Picture | None:
    """Return a figure; None if its file is missing or damaged, so that the page still shows the other runs."""
    try:
        return _embedded(file, file.stat().st_mtime_ns)
    except (OSError, Image.DecompressionBombError):
        return None


@cache  # the page of a collection is written after each of its items
def _embedded(file: Path, changed: int) -> Picture:
    """Return a figure at most 1200 pixels wide. changed: its modification time, a part of the cache key."""
    with Image.open(file) as image:
        small = image.convert("RGB")
    small.thumbnail((1200, 6000))
    data = io.BytesIO()
    small.save(data, "WEBP", quality=75, method=2)
    return Picture("data:image/webp;base64," + base64.b64encode(data.getvalue()).decode(), *small.size)


TEMPLATES.filters |= {
    "anchor": _anchor,
    "columns": _columns,
    "groups": groups,
    "opening": opening,
    "short": _short,
    "shell": _shell,
    "picture": _picture,
}
