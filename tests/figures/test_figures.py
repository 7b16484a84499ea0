"""Figures: nothing is cut off, and no text overlaps another or a picture."""

import itertools
import warnings
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from vis.figures.layout import Panel, PanelRow, panel_grid, save, styled, typeset, wrapped

LONG = [
    "A caption with sentences that go on for a while, WIDE CAPITALS INCLUDED, MMMM WWWW " * 3,
    "and numbers: 0.1 ± 0.2",
]


@pytest.mark.parametrize("columns", [1, 2, 4, 7])
@pytest.mark.parametrize("label", ["", "viewed at 64x64"])
def test_nothing_is_cut_off_or_overlaps(columns, label):
    panel = Panel(np.zeros((8, 8, 3)), "title", "r 0.12\nHP -0.3")
    with styled():
        figure = panel_grid([PanelRow([panel] * columns, label), PanelRow([panel], label)], LONG)
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        texts = [t for axes in figure.axes for t in (axes.title, *axes.texts)] + list(figure.texts)
        boxes = [t.get_window_extent(renderer) for t in texts if t.get_text()] + [a.bbox for a in figure.axes]
        width, height = figure.canvas.get_width_height()
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    for one, other in itertools.combinations(boxes, 2):
        apart = one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0
        assert apart, (one, other)


def test_equal_figures_are_equal_files(tmp_path):
    for name in ("a", "b"):
        save(panel_grid([PanelRow([Panel(np.ones((4, 4, 3)), "title")])], ["caption"]), tmp_path / name)
    for kind in ("png", "pdf"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_a_name_without_a_font_raises_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(panel_grid([PanelRow([Panel(np.ones((4, 4, 3)), "猫", "猫")], "猫")], ["猫"]), tmp_path / "figure")


def test_minus_and_times_are_typeset():
    assert typeset("7x7x3, -0.1 to -.5, up-to-date, 2018-11, box") == "7×7×3, −0.1 to −.5, up-to-date, 2018-11, box"


def test_a_row_of_many_maps_is_broken_and_keeps_its_titles():
    picture = np.zeros((4, 4, 3))
    rows = [PanelRow([Panel(picture, t, f"{t}{r}") for t in "iabcde"], f"row {r}") for r in range(2)]
    rows[1].panels = [replace(panel, title="") for panel in rows[1].panels]
    broken = wrapped(rows, columns=4)
    assert [[p.title for p in row.panels] for row in broken] == [["i", "a", "b", "c"], ["", "d", "e"]] * 2
    assert [p.note for row in broken for p in row.panels if p.picture is not None] == [
        f"{t}{r}" for r in range(2) for t in "iabcde"
    ]
    assert [row.label for row in broken] == ["row 0", "", "row 1", ""]
    assert wrapped(rows, columns=6) == rows
