"""HTML pages from the templates beside this file; index.html of a run.

The pages are static and work from the file system. The style sheet and thumbnails are inside, so that a page can be read
where it is sent alone; full figures, PDFs and tables are links to the run folders beside it.
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
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from vis.config.compose import slug
from vis.store.run_folder import RunFolder
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

    Beside its values, a template has `place(path)`, a path as the page's links name it, and `name(path)`, as its texts do.
    """
    start = page.parent
    paths = {"place": partial(place, start=start), "name": partial(os.path.relpath, start=start)}
    write_text(page, TEMPLATES.get_template(template).render(values | paths))


def place(path: Path, start: Path) -> str:
    """A path as the links of a page in the folder `start` name it."""
    return quote(Path(os.path.relpath(path, start)).as_posix(), safe="/=,")


def run_page(folder: RunFolder) -> None:
    """Write index.html of a finished run: its figures, claims, tables and provenance."""
    path = folder.path
    found = stored(path)
    for line in found.damaged:  # the rest of the page is whole
        log.warning("%s", line)
    # The log may begin with the line that says the run is done, which comes after this page.
    expected = {Path(handler.baseFilename) for handler in log.root.handlers if isinstance(handler, logging.FileHandler)}
    files = ("config.yaml", "provenance.json", "claims.json", "maps.npz", "run.log")
    write_page(
        path / "index.html",
        "run.html",
        title=str(folder.config().experiment.name),
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
    """A value as text, numbers to four digits."""
    text = "" if value is None else str(value)
    if "." in text or "e" in text:
        with contextlib.suppress(ValueError):  # a text, which stays as it is
            return f"{float(text):.4g}"
    return text


def _shell(words: Sequence[Any]) -> str:
    """Words as a shell command."""
    return shlex.join(map(str, words))


def _thumbnail(file: Path) -> str:
    """A figure as a data URI; nothing where its file is missing or damaged, so that one run does not hide the others."""
    try:
        return _small(file, file.stat().st_mtime_ns)
    except (OSError, Image.DecompressionBombError):
        return ""


@cache  # the page of a collection is written after each of its items
def _small(file: Path, changed: int) -> str:
    """A figure, 640 pixels wide at most, as a data URI. changed: its modification time, so that a redrawn one is read again."""
    with Image.open(file) as image:
        small = image.convert("RGB")
    small.thumbnail((640, 1280))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


TEMPLATES.filters |= {
    "anchor": _anchor,
    "columns": _columns,
    "short": _short,
    "shell": _shell,
    "thumbnail": _thumbnail,
}
