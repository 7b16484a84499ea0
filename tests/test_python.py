"""Runs from Python: load_run, load_runs, their tables and pictures; names, notes and tags of runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL
from reports.test_report import claim, made

import vis
from vis.errors import UserError
from vis.reports.items import Item
from vis.reports.report import main as report
from vis.store.run_folder import RunFolder
from vis.system.files import write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
COMPARED = {"metric": "pear", "verdict": "holds", "rule": "above 0.65", "measured": "0.776", "values": [0.7, 0.8],
            "control": "", "control_values": [0.0], "interval": [0.6, None]}  # fmt: skip


def finished(folder, **changes):
    """A run's folder with all that load_run reads."""
    import numpy as np

    made(folder, **changes)
    np.savez(folder / "maps.npz", allow_pickle=False, pixels=np.zeros((3, 4, 4)))
    write_json(folder / "tables.json", {"table": [{"method": "gbp", "pear": 0.7}, {"method": "lrp", "pear": 0.1}]})
    return folder


def test_dir_lists_the_loaders_and_import_stays_light():
    assert {"load_run", "load_runs"} <= set(dir(vis))
    code = "import sys, vis; dir(vis); assert not {'numpy', 'omegaconf', 'torch', 'PIL', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="load_rum"):
        _ = vis.load_rum  # type: ignore[attr-defined]  # the mistake is the test


def test_a_run_has_claims_tables_and_a_short_repr(tmp_path):
    claims = [claim(compared=[COMPARED]), claim("lrp", "fails", differences=["VGG-11", "3 seeds"])]
    run = vis.load_run(finished(tmp_path / "a", claims=claims))
    assert [c.verdict for c in run.claims] == ["holds", "fails"]
    assert run.rows("claims", id="lrp")[0]["differences"] == "VGG-11; 3 seeds"
    (row,) = run.rows("comparisons")
    assert (row["id"], row["mean"], row["n"], row["low"], row["high"]) == ("gbp", 0.75, 2, 0.6, None)
    assert row["deviation"] == pytest.approx(0.0707, abs=1e-4)
    assert repr(run) == (f"<nie2018/figure4: reproduction: 1 holds, 1 fails; tables: table (2 rows); {tmp_path / 'a'}>")
    assert re.search(r'<b>nie2018/figure4</b>.*<img alt="figure" src="data:image/jpeg', run._repr_html_())
    (tmp_path / "a" / "figure.png").unlink()
    assert "img" not in run._repr_html_()


def test_frames(tmp_path):
    pytest.importorskip("pandas")
    run = vis.load_run(finished(tmp_path / "a"))
    assert list(run.to_frame()["verdict"]) == ["holds"]
    assert run.to_frame("table").shape == (2, 2)
    with pytest.raises(UserError, match=r"has no table 'tabel'\. Did you mean 'table'"):
        run.to_frame("tabel")
    assert vis.load_runs(tmp_path).to_frame("table")["pear"].mean() == pytest.approx(0.4)


def test_without_pandas_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    run = vis.load_run(finished(tmp_path / "a"))
    with pytest.raises(ImportError, match="pip install pandas"):
        run.to_frame()
    assert run.rows("claims")


def test_runs_are_found_filtered_and_sliced(tmp_path):
    experiment = {"name": "zhou2018/table1"}
    finished(tmp_path / "2026-11-26" / "9_b", status={"seconds": 2})
    finished(tmp_path / "2026-11-26" / "10_a", name="zhou2018/table1", experiment=experiment)
    made(tmp_path / "2026-11-26" / "11_c", state="running")
    (tmp_path / "latest").symlink_to(tmp_path / "2026-11-26" / "10_a")
    runs = vis.load_runs(tmp_path)
    assert [folder.name for folder in runs.folders] == ["9_b", "10_a"]
    assert [run.config.experiment.name for run in runs] == ["nie2018/figure4", "zhou2018/table1"]
    assert len(runs.claims) == 2
    assert len(vis.load_runs(tmp_path, experiment="zhou2018/*")) == len(runs[1:]) == 1
    assert not vis.load_runs(tmp_path, preset="small")
    assert [row["run"] for row in runs.rows("table", method="gbp")] == ["2026-11-26/9_b", "2026-11-26/10_a"]
    assert repr(runs) == f"<2 runs in {tmp_path}: reproduction: 2 hold>"
    assert runs._repr_html_().count("<img") == 2
    with pytest.raises(UserError, match=r"no run in .* has the key sed"):
        vis.load_runs(tmp_path, sed=1)
    with pytest.raises(UserError, match="has a table 'tabel'"):
        runs.rows("tabel")
    with pytest.raises(UserError, match="there is no folder"):
        vis.load_runs(tmp_path / "none")
    write_text(tmp_path / "2026-11-26" / "9_b" / "config.yaml", "a: [")
    with pytest.warns(UserWarning, match="damaged"):
        assert len(vis.load_runs(tmp_path)) == 1


def test_a_sweeps_runs_know_their_values_and_names_notes_and_tags_are_shown(vis_run):
    words = ("name=wide", 'note=more filters, or fewer: <see "3">', "tags=[talk,draft]")
    folder = vis_run("-m", *SMALL, "model.num_filters=2,4", "method=[saliency,gbp]", *words).folder
    assert folder.name.endswith("_wide_sweep")
    with pytest.raises(UserError, match=r"vis\.load_runs"):
        vis.load_run(folder)
    runs = vis.load_runs(folder, tags="talk", methods="gbp")
    assert len(runs) == 2
    rows = runs.rows("table", method="gbp")
    assert [row["model.num_filters"] for row in rows] == [2, 4]
    assert rows[0]["run_note"] == 'more filters, or fewer: <see "3">'
    assert (rows[0]["run_name"], rows[0]["run_tags"]) == ("wide", "talk, draft")
    assert len(vis.load_runs(folder, **{"model.num_filters": 4})) == 1
    assert repr(runs[0]).startswith('<visualize "wide" "talk" "draft": no claims; tables: table (2 rows)')
    assert "more filters, or fewer: &lt;see" in runs[0]._repr_html_()
    page = (runs[0].folder / "index.html").read_text()
    assert "<p class=small>note: more filters, or fewer: &lt;see" in page
    assert "<p class=small>tags: talk, draft" in page
    assert Item("", "", runs[0].folder).labels["name"] == "wide"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tags=draft"], "tags=draft is not a list"),
        (["tags=[1,a]"], r"tags=\[1,a\] is not a list of words"),
        (["tags=[[a]]"], "is not a list of words"),
    ],
)
def test_mistakes_in_names_notes_and_tags(words, message, vis_run):
    ran = vis_run(*SMALL, *words)
    assert ran.code == 2
    assert re.search(message, ran.err)


def test_the_guides_code_runs(vis_run, tmp_path):
    """The block under "From Python", on a run with its arrays."""
    pytest.importorskip("pandas")
    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"## From Python\n\n```python\n(.*?)```", text, flags=re.S)
    assert vis_run(*SMALL, "method=gbp").code == 0
    names: dict[str, object] = {}
    exec(code, names)
    assert names["run"].rows("table", method="gbp")  # type: ignore[attr-defined]  # exec knows no types


def test_the_report_shows_the_note_of_a_run(tmp_path):
    folder = finished(tmp_path / "a")
    config = RunFolder(folder).config()
    config.note, config.tags = "with <old> weights", ["draft"]
    RunFolder(folder).replace_config(config)
    assert report([str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "· note: with &lt;old&gt; weights · tags: draft</p>" in page
