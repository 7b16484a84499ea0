"""One style for all figures: panels like the papers', above a caption with the scaling, weights, seed and numbers.

No pyplot: a figure is an object without global state.
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
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import Op, PdfFile, PdfPages
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from vis.figures.display import Picture
from vis.figures.style import COLOURS, INSTALLED, current
from vis.system.files import write_bytes

PAGE_WIDTH = 6.9  # inches: of a plot that takes the whole width of the style
_CAPTION_SIZE = 6.8  # points
_NOTE_SIZE = 6.5
_GAP, _SIDE = 0.06, 0.08  # inches: between pictures, and the margin of the figure
_CJK = """Noto Sans CJK SC, Noto Sans CJK JP, Noto Sans SC, Source Han Sans SC, WenQuanYi Micro Hei, WenQuanYi Zen Hei,
Droid Sans Fallback, IPAGothic, Microsoft YaHei, PingFang SC, Hiragino Sans GB, Malgun Gothic, Arial Unicode MS, Unifont"""
_EAST_ASIAN = [name for name in re.split(r",\s", _CJK) if name in INSTALLED]
_STYLE: Any = {
    "font.size": 8,
    "axes.prop_cycle": cycler(color=COLOURS),
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
    "image.interpolation": "antialiased",  # nearest if a pixel of the map is larger than one of the figure
    "pdf.fonttype": 42,  # embedded TrueType, which journals ask for
}


def _family() -> list[str]:
    """Return the style's font. File names may be Chinese, Japanese or Korean: fonts with these characters follow."""
    return [current().family, *_EAST_ASIAN]


@contextmanager
def styled() -> Iterator[None]:
    """Apply the project's style: use `with styled():` around all drawing."""
    with matplotlib.rc_context({**_STYLE, "font.family": _family()}), warnings.catch_warnings():
        # A character missing from all installed fonts is drawn as a box.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        yield


@dataclass
class Panel:
    """A picture with an optional title above and an optional note of numbers below.

    dead_rows: the first and the last row that the network cannot see, drawn hatched below a dashed line.
    """

    picture: Picture | None
    title: str = ""
    note: str = ""
    dead_rows: tuple[int, int] | None = None


@dataclass
class PanelRow:
    """Panels side by side, with a label to their left."""

    panels: Sequence[Panel]
    label: str = ""


def wrapped(rows: Sequence[PanelRow], columns: int = 10) -> list[PanelRow]:
    """Break rows of an input and its maps after `columns` panels, or what fits the page; broken rows repeat the titles."""
    columns = max(3, min(columns, round(current().page / 0.69)))  # 17 mm for a panel and its gap
    if all(len(row.panels) <= columns for row in rows):
        return list(rows)
    titles, broken = [panel.title for panel in rows[0].panels], []
    for row in rows:
        first, *maps = (replace(panel, title=title) for panel, title in zip(row.panels, titles, strict=True))
        for i in range(0, len(maps), columns - 1):
            broken.append(PanelRow([Panel(None) if i else first, *maps[i : i + columns - 1]], "" if i else row.label))
    return broken


def typeset(text: str) -> str:
    """Replace the hyphen before a number by a minus sign, and the x between two digits by a multiplication sign."""
    return re.sub(r"(?<=\d)x(?=\d)", "×", re.sub(r"(?<![\w.])-(?=[\d.])", "−", text))


def _fits(line: str, width: float, size: float) -> bool:
    """Return True if a line is at most `width` inches wide. size: in points."""
    font = FontProperties(family=_family(), size=size)
    measured = TextToPath().get_text_width_height_descent(line, font, ismath=False)[0]
    return bool(measured <= 0.98 * 72 * width)  # margin for the renderers' rounding


def _broken(text: str, width: float, size: float) -> str:
    """Break a text into lines of at most `width` inches, cutting longer words such as file names. size: in points."""
    lines = [""]
    with styled():
        for word in typeset(text).split():
            line = f"{lines[-1]} {word}".strip()
            if _fits(line, width, size):
                lines[-1] = line
                continue
            while not _fits(word, width, size) and len(word) > 1:
                kept = next((n for n in range(len(word) - 1, 1, -1) if _fits(word[:n], width, size)), 1)
                lines.append(word[:kept])
                word = word[kept:]
            lines.append(word)
    return "\n".join(lines).strip()


def _paragraph(sentences: Sequence[str], width: float) -> str:
    """Join the sentences of a caption and break them into lines of `width` inches."""
    return _broken(" ".join(s.rstrip(".") + "." for s in sentences if s), width, _CAPTION_SIZE)


@dataclass(frozen=True)
class _Grid:
    """The geometry of a panel grid in inches; the texts of its rows are already broken into lines.

    panel: width of a picture. width: of the figure. left: left edge of the first column.
    """

    rows: Sequence[PanelRow]
    panel: float
    width: float
    left: float
    title_size: float
    label_size: float

    def heights(self, row: PanelRow) -> tuple[float, float, float]:
        """Return the heights of a row's titles, pictures and notes."""
        titles = max((p.title.count("\n") + 1 for p in row.panels if p.title), default=0)
        notes = max((p.note.count("\n") + 1 for p in row.panels if p.note), default=0)
        return titles * 0.14 + 0.04, self.panel * _ratio(row), notes * 0.12 + 0.04


def _ratio(row: PanelRow) -> float:
    """Return the largest height / width of a row's pictures."""
    return max((p.picture.shape[0] / p.picture.shape[1] for p in row.panels if p.picture is not None), default=1.0)


def _within(text: str, size: float, width: float) -> str:
    """Break a text into lines of at most `width` inches, except for formulas, which must not break at their spaces."""
    return "\n".join(typeset(line) if "$" in line else _broken(line, width, size) for line in text.split("\n"))


def _size(texts: Sequence[tuple[str, float]], sizes: Sequence[float]) -> float:
    """Return the first size at which each word of (text, inches) fits its width; the first of all if none does."""
    words = [(word, width) for text, width in texts if "$" not in text for word in text.split()]
    with styled():
        return next((s for s in sizes if all(_fits(word, width, s) for word, width in words)), sizes[0])


def _arrange(rows: Sequence[PanelRow], panel: float) -> _Grid:
    """Shrink the panels until the grid fits the page, and break titles, notes and labels to fit the panels."""
    columns = max(len(row.panels) for row in rows)

    def labels(panel: float, size: float) -> list[str]:
        return [_within(row.label, size, panel * _ratio(row)) if row.label else "" for row in rows]

    def at_most(label_width: float) -> float:
        return min(panel, (current().page - label_width - 2 * _SIDE + _GAP) / columns - _GAP)

    label_size = _size([(row.label, at_most(0.66) * _ratio(row)) for row in rows], (_STYLE["font.size"], 7, 6, 5))
    lines = (
        max(label.count("\n") + 1 for label in labels(at_most(0.24), label_size)) if any(r.label for r in rows) else 0
    )
    label_width = 0.1 + 0.14 * lines if lines else 0.0
    size = at_most(label_width)
    width = max(label_width + 2 * _SIDE + columns * (size + _GAP) - _GAP, min(3.4, current().page))
    left = (width - (columns * (size + _GAP) - _GAP) + label_width) / 2
    sizes = (_STYLE["axes.titlesize"], _NOTE_SIZE, 6, 5.5, 5)[0 if size > 0.75 else 1 :]
    title_size = _size([(p.title, size) for row in rows for p in row.panels], sizes)

    def fitted(p: Panel) -> Panel:
        return replace(p, title=_within(p.title, title_size, size), note=_within(p.note, _NOTE_SIZE, size))

    broken = [
        PanelRow([fitted(p) for p in row.panels], label)
        for row, label in zip(rows, labels(size, label_size), strict=True)
    ]
    return _Grid(broken, size, width, left, title_size, label_size)


def panel_grid(rows: Sequence[PanelRow], caption: Sequence[str], panel: float = 1.6) -> Figure:
    """Draw rows of pictures, as the papers show maps. panel: width of a picture in inches, reduced to fit the page."""
    grid = _arrange(rows, panel)
    text = _paragraph(caption, grid.width - 2 * _SIDE)
    shown = text if current().caption else ""
    caption_height = _caption_height(shown) or 0.05
    height = _SIDE + sum(sum(grid.heights(row)) for row in grid.rows) + caption_height
    with styled():
        figure = Figure(figsize=(grid.width, height))
        y = height - _SIDE
        for row in grid.rows:
            above, tall, under = grid.heights(row)
            y -= above + tall
            for column, each in enumerate(row.panels):
                if each.picture is not None:
                    left = grid.left + column * (grid.panel + _GAP)
                    box = left / grid.width, y / height, grid.panel / grid.width, tall / height
                    _draw_panel(figure.add_axes(box), each, grid.title_size)
            if row.label:
                figure.text(
                    (grid.left - 0.08) / grid.width,
                    (y + tall / 2) / height,
                    row.label,
                    fontsize=grid.label_size,
                    rotation=90,
                    ha="right",
                    va="center",
                    multialignment="center",
                )
            y -= under
        _caption(figure, shown, y - 0.06)
    figure.caption = " ".join(text.split("\n"))  # type: ignore[attr-defined]  # our attribute, for alt texts
    return figure


def _draw_panel(axes: Any, panel: Panel, title_size: float) -> None:
    axes.imshow(panel.picture)
    axes.set_axis_off()
    if panel.dead_rows is not None:
        _dead_zone(axes, *panel.dead_rows)
    if panel.title:
        axes.set_title(panel.title, pad=3, fontsize=title_size)
    if panel.note:
        axes.text(0.5, -0.02, panel.note, transform=axes.transAxes, ha="center", va="top", fontsize=_NOTE_SIZE)


def _dead_zone(axes: Any, first: int, last: int) -> None:
    """Hatch the rows first .. last of a picture in red, below a dashed red line."""
    axes.axhline(first - 0.5, color="red", linewidth=1.2, linestyle="--")
    with matplotlib.rc_context({"hatch.linewidth": 0.6}):
        axes.axhspan(first - 0.5, last + 0.5, facecolor=(1, 0, 0, 0.1), edgecolor="red", hatch="///", linewidth=0)


def plot(width: float = 3.4, height: float = 2.4, caption: Sequence[str] = (), columns: int = 1) -> tuple[Figure, list]:
    """Make an empty figure with `columns` axes side by side and room for its caption: (figure, axes).

    A style with a narrow page puts the axes into several rows of this height.
    """
    page = current().page if width >= PAGE_WIDTH else min(width, current().page)
    side_by_side = max(1, min(columns, round(columns * page / width)))
    rows = -(-columns // side_by_side)
    side_by_side = -(-columns // rows)  # 3 + 3 of 6, not 5 + 1
    text = _paragraph(caption, page - 0.16)
    shown = text if current().caption else ""
    above, below = rows * height, _caption_height(shown)
    with styled():
        figure = Figure(figsize=(page, above + below), layout="constrained")
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0, below / (above + below), 1, above / (above + below)))
        axes = list(figure.subplots(rows, side_by_side, squeeze=False).flat)
        for unused in axes[columns:]:
            unused.remove()
        _caption(figure, shown, below - 0.06)
    figure.caption = " ".join(text.split("\n"))  # type: ignore[attr-defined]  # our attribute, for alt texts
    return figure, axes[:columns]


def draw_matrix(axes: Any, values: np.ndarray, title: str, bound: float) -> None:
    """Draw a small matrix [H, W] with its numbers on red (up to `bound`), white (0) and blue (down to -`bound`)."""
    axes.imshow(values, cmap="bwr", vmin=-2 * bound, vmax=2 * bound)
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, typeset(f"{value:zg}"), ha="center", va="center", color="black" if value else "0.6")
    axes.set_xticks(np.arange(0.5, values.shape[1] - 1), [])
    axes.set_yticks(np.arange(0.5, values.shape[0] - 1), [])
    axes.tick_params(length=0)
    axes.grid(color="0.85", linewidth=0.6)
    axes.spines[:].set(visible=True, color="0.85")
    axes.set_title(title, fontsize=7)


def _caption_height(text: str) -> float:
    """Return the height of a caption in inches; 0 without one."""
    return 0.135 * (text.count("\n") + 1) + 0.12 if text else 0.0


def _caption(figure: Figure, text: str, top: float) -> None:
    width, height = figure.get_size_inches()
    figure.text(
        0.08 / width, top / height, text, ha="left", va="top", fontsize=_CAPTION_SIZE, linespacing=1.25, color="0.25"
    )


class _Enlarged(PdfFile):
    """A PDF whose pages are larger by the style's scale than the figures on them say; text stays text."""

    def newPage(self, width: float, height: float) -> None:
        scale = current().scale
        super().newPage(scale * width, scale * height)
        self.output(scale, 0, 0, scale, 0, 0, Op.concat_matrix)

    def beginStream(self, id: int, len: int | None, extra: Any = None, *options: Any, **named: Any) -> None:
        if extra and "PatternType" in extra:  # hatches: PDF places them on the page, whatever is drawn there
            extra = extra | {"Matrix": [current().scale * value for value in extra["Matrix"]]}
        super().beginStream(id, len, extra, *options, **named)


class _Pages(PdfPages):
    def __init__(self, file: io.BytesIO, metadata: dict[str, None]) -> None:
        super().__init__(file, metadata=metadata)
        self._file = _Enlarged(file, metadata=metadata)


def save(figure: Figure, stem: Path) -> None:
    """Write `stem`.png and `stem`.pdf in the style's size, atomically; equal figures give equal bytes."""
    style = current()
    dpi: Any = style.dpi * style.scale
    with styled():
        FigureCanvasAgg(figure)
        png, pdf = io.BytesIO(), io.BytesIO()
        size = {"dpi": (style.dpi, style.dpi)}  # as the file states it
        figure.savefig(png, format="png", dpi=dpi, metadata={"Software": None}, pil_kwargs=size)
        write_bytes(stem.with_name(f"{stem.name}.png"), png.getvalue())
        with _Pages(pdf, dict.fromkeys(("CreationDate", "Producer", "Creator"))) as pages:
            pages.savefig(figure, dpi=dpi)
        write_bytes(stem.with_name(f"{stem.name}.pdf"), pdf.getvalue())
