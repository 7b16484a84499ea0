"""what-holds.md: what was measured about each method, from stored runs."""

import pytest
from test_report import made

from vis.reports.report import main
from vis.store.run_folder import Output, RunFolder

AUC = {"gbp": [0.7, 0.8, 0.9], "edges": [0.4, 0.5, 0.6]}


def run(folder, **options):
    """A run of ayyar2021/people, whose config declares a property, with three images and two methods."""
    made(folder, "ayyar2021/people", **options)
    rows = [{"image": str(i), "method": m, "auc": v} for m, values in AUC.items() for i, v in enumerate(values)]
    stored = RunFolder(folder)
    stored.add(0, Output(tables={"table": rows}))
    stored.merge()


def page(tmp_path):
    assert main([str(tmp_path)]) == 0
    return (tmp_path / "what-holds.md").read_text()


def test_a_declared_property_is_a_column_and_a_section_with_intervals(tmp_path):
    run(tmp_path / "2026-11-21" / "a")
    text = page(tmp_path)
    assert (
        "agreement with people"
        in text.splitlines()[next(i for i, s in enumerate(text.splitlines()) if "| method" in s)]
    )
    section = text.partition("## Agreement with people")[2]
    assert "vis-run experiment=ayyar2021/people" in section
    assert section.index("`gbp`") < section.index("`edges`")  # more is better
    (row,) = [line for line in section.splitlines() if line.startswith("| `gbp`")]
    mean, low, high, n = [float(cell) for cell in row.split("|")[2:6]]
    assert (mean, n) == (pytest.approx(0.8), 3)
    assert low < 0.7 < 0.9 < high  # a t interval of three images


def test_a_tiny_run_does_not_count(tmp_path):
    run(tmp_path / "2026-11-21" / "a", preset="tiny")
    assert "##" not in page(tmp_path)
