"""One look for all figures: panels like the paper's, a caption with scaling, weights, seed and numbers under them.

No pyplot: a figure is an object, and nothing global remembers it.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.textpath import TextToPath

from vis.figures.display import Picture
from vis.system.files import write_bytes

PAGE_WIDTH = 6.9  # inches: the text width of a two-column page
_CAPTION_SIZE = 6.8  # points
_NOTE_SIZE = 6.5
_CJK = """Noto Sans CJK SC, Noto Sans CJK JP, Noto Sans SC, Source Han Sans SC, WenQuanYi Micro Hei, WenQuanYi Zen Hei,
Droid Sans Fallback, IPAGothic, Microsoft YaHei, PingFang SC, Hiragino Sans GB, Malgun Gothic, Arial Unicode MS, Unifont"""
_INSTALLED = {font.name for font in fontManager.ttflist}
_STYLE: Any = {
    # Names of files may be Chinese, Japanese or Korean: fonts that know their characters come behind ours, where there are any.
    "font.family": ["sans-serif", *(name for name in re.split(r",\s", _CJK) if name in _INSTALLED)],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "image.interpolation": "antialiased",  # nearest, where a pixel of the map is larger than one of the figure
    "pdf.fonttype": 42,  # embedded TrueType, which journals ask for
    "savefig.dpi": 200,
}


@contextmanager
def styled() -> Iterator[None]:
    """The project's look: `with styled():` around everything that draws."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A character that no installed font has is a box in the figure, as everywhere on that machine.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        yield


@dataclass
class Panel:
    """A picture with a title above it and, where there is something to say, a line of numbers under it.

    dead_rows: the first and the last row that the network cannot see: a dashed line above them, hatched.
    """

    picture: Picture | None
    title: str = ""
    note: str = ""
    dead_rows: tuple[int, int] | None = None


@dataclass
class PanelRow:
    """Panels side by side, with a label at their left."""

    panels: Sequence[Panel]
    label: str = ""


def wrapped(rows: Sequence[PanelRow], columns: int = 10) -> list[PanelRow]:
    """Rows of an input and its maps, broken where there are more than `columns`; a broken row has its titles each time."""
    if all(len(row.panels) <= columns for row in rows):
        return list(rows)
    titles, broken = [panel.title for panel in rows[0].panels], []
    for row in rows:
        first, *maps = (replace(panel, title=title) for panel, title in zip(row.panels, titles, strict=True))
        for i in range(0, len(maps), columns - 1):
            broken.append(PanelRow([Panel(None) if i else first, *maps[i : i + columns - 1]], "" if i else row.label))
    return broken


def typeset(text: str) -> str:
    """A real minus before a number, a real cross between two."""
    return re.sub(r"(?<=\d)x(?=\d)", "×", re.sub(r"(?<![\w.])-(?=[\d.])", "−", text))


def _broken(text: str, width: float, size: float) -> str:
    """A text in lines of `width` inches at most; a word that is longer, as a file's name, is cut. size: in points."""
    measure = TextToPath().get_text_width_height_descent
    font = FontProperties(family=_STYLE["font.family"], size=size)
    lines = [""]

    def fits(line: str) -> bool:
        return measure(line, font, ismath=False)[0] <= 0.98 * 72 * width  # renderers round

    with styled():
        for word in typeset(text).split():
            line = f"{lines[-1]} {word}".strip()
            if fits(line):
                lines[-1] = line
                continue
            while not fits(word) and len(word) > 1:
                kept = next((n for n in range(len(word) - 1, 1, -1) if fits(word[:n])), 1)
                lines.append(word[:kept])
                word = word[kept:]
            lines.append(word)
    return "\n".join(lines).strip()


def _paragraph(sentences: Sequence[str], width: float) -> str:
    """The sentences under a figure, broken into lines of `width` inches."""
    return _broken(" ".join(s.rstrip(".") + "." for s in sentences if s), width, _CAPTION_SIZE)


def panel_grid(rows: Sequence[PanelRow], caption: Sequence[str], panel: float = 1.6) -> Figure:
    """Rows of pictures, as the papers show maps. panel: width of a picture in inches, less where a page is too narrow."""
    columns = max(len(row.panels) for row in rows)
    gap, side = 0.06, 0.08

    def ratio(row: PanelRow) -> float:
        return max((p.picture.shape[0] / p.picture.shape[1] for p in row.panels if p.picture is not None), default=1.0)

    def within(text: str, size: float, width: float) -> str:
        lines = text.split("\n")  # a formula's spaces are no places to break it
        return "\n".join(typeset(line) if "$" in line else _broken(line, width, size) for line in lines)

    def beside(panel: float) -> list[str]:
        return [within(row.label, _STYLE["font.size"], panel * ratio(row)) if row.label else "" for row in rows]

    def at_most(label_width: float) -> float:
        return min(panel, (PAGE_WIDTH - label_width - 2 * side + gap) / columns - gap)

    label_lines = max(label.count("\n") + 1 for label in beside(at_most(0.24))) if any(r.label for r in rows) else 0
    label_width = 0.1 + 0.14 * label_lines if label_lines else 0.0
    panel = at_most(label_width)
    width = max(label_width + 2 * side + columns * (panel + gap) - gap, 3.4)
    left = (width - (columns * (panel + gap) - gap) + label_width) / 2

    title_size = _STYLE["axes.titlesize"] if panel > 0.75 else _NOTE_SIZE

    def fitted(p: Panel) -> Panel:
        return replace(p, title=within(p.title, title_size, panel), note=within(p.note, _NOTE_SIZE, panel))

    labels = beside(panel)
    rows = [
        replace(row, panels=[fitted(p) for p in row.panels], label=label)
        for row, label in zip(rows, labels, strict=True)
    ]

    def row_heights(row: PanelRow) -> tuple[float, float, float]:
        lines = max((p.title.count("\n") + 1 for p in row.panels if p.title), default=0)
        notes = max((p.note.count("\n") + 1 for p in row.panels if p.note), default=0)
        return lines * 0.14 + 0.04, panel * ratio(row), notes * 0.12 + 0.04

    text = _paragraph(caption, width - 2 * side)
    caption_height = 0.135 * (text.count("\n") + 1) + 0.12 if text else 0.05
    height = side + sum(sum(row_heights(row)) for row in rows) + caption_height
    with styled():
        figure = Figure(figsize=(width, height))
        y = height - side
        for row in rows:
            above, tall, under = row_heights(row)
            y -= above + tall
            for column, each in enumerate(row.panels):
                if each.picture is None:
                    continue
                axes = figure.add_axes(
                    ((left + column * (panel + gap)) / width, y / height, panel / width, tall / height)
                )
                axes.imshow(each.picture)
                axes.set_axis_off()
                if each.dead_rows is not None:
                    _dead_zone(axes, *each.dead_rows)
                if each.title:
                    axes.set_title(each.title, pad=3, fontsize=title_size)
                if each.note:
                    axes.text(
                        0.5, -0.02, each.note, transform=axes.transAxes, ha="center", va="top", fontsize=_NOTE_SIZE
                    )
            if row.label:
                figure.text(
                    (left - 0.08) / width,
                    (y + tall / 2) / height,
                    row.label,
                    rotation=90,
                    ha="right",
                    va="center",
                    multialignment="center",
                )
            y -= under
        _caption(figure, text, y - 0.06)
    figure.caption = " ".join(text.split("\n"))  # type: ignore[attr-defined]  # ours, for alt texts
    return figure


def _dead_zone(axes: Any, first: int, last: int) -> None:
    """A dashed red line above the rows first .. last of a picture, and red hatching over them."""
    axes.axhline(first - 0.5, color="red", linewidth=1.2, linestyle="--")
    with matplotlib.rc_context({"hatch.linewidth": 0.6}):
        axes.axhspan(first - 0.5, last + 0.5, facecolor=(1, 0, 0, 0.1), edgecolor="red", hatch="///", linewidth=0)


def plot(width: float = 3.4, height: float = 2.4, caption: Sequence[str] = (), columns: int = 1) -> tuple[Figure, list]:
    """An empty figure with `columns` axes side by side and room for its caption. (figure, axes)"""
    text = _paragraph(caption, width - 0.16)
    below = 0.135 * (text.count("\n") + 1) + 0.12 if text else 0.0
    with styled():
        figure = Figure(figsize=(width, height + below), layout="constrained")
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0, below / (height + below), 1, height / (height + below)))
        axes = figure.subplots(1, columns, squeeze=False)[0]
        _caption(figure, text, below - 0.06)
    figure.caption = " ".join(text.split("\n"))  # type: ignore[attr-defined]  # ours, for alt texts
    return figure, list(axes)


def numbers(axes: Any, values: np.ndarray, title: str, bound: float) -> None:
    """A small matrix [H, W] with its numbers on red (up to `bound`), white (0) and blue (down to -`bound`)."""
    axes.imshow(values, cmap="bwr", vmin=-2 * bound, vmax=2 * bound)
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, typeset(f"{value:g}"), ha="center", va="center", color="black" if value else "0.6")
    axes.set_xticks(np.arange(0.5, values.shape[1] - 1), [])
    axes.set_yticks(np.arange(0.5, values.shape[0] - 1), [])
    axes.tick_params(length=0)
    axes.grid(color="0.85", linewidth=0.6)
    axes.spines[:].set(visible=True, color="0.85")
    axes.set_title(title, fontsize=7)


def _caption(figure: Figure, text: str, top: float) -> None:
    width, height = figure.get_size_inches()
    figure.text(
        0.08 / width, top / height, text, ha="left", va="top", fontsize=_CAPTION_SIZE, linespacing=1.25, color="0.25"
    )


def save(figure: Figure, stem: Path) -> None:
    """Write `stem`.png (200 dpi) and `stem`.pdf, each whole or not at all; equal figures give equal bytes."""
    with styled():
        FigureCanvasAgg(figure)
        for kind, metadata in (
            ("png", {"Software": None}),
            ("pdf", {"CreationDate": None, "Producer": None, "Creator": None}),
        ):
            data = io.BytesIO()
            figure.savefig(data, format=kind, metadata=metadata)
            write_bytes(stem.with_name(f"{stem.name}.{kind}"), data.getvalue())
