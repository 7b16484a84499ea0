"""Sweeps: one table, one figure, one page, also when jobs fail."""

import csv
import json

from conftest import SMALL


def rows(folder):
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_ends_with_one_table_and_one_figure(vis_run):
    folder = vis_run("-m", *SMALL, "model.num_filters=2,4,8", "seeds=2", "method=[saliency,gbp]").folder
    assert folder.name.endswith("visualize_sweep")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert names == ["0_model.num_filters=2", "1_model.num_filters=4", "2_model.num_filters=8"]
    table = rows(folder)
    assert len(table) == 3 * 2 * 2
    assert {row["model.num_filters"] for row in table} == {"2", "4", "8"}
    for name in ("figure.png", "figure.pdf", "index.html", "table.md"):
        assert (folder / name).stat().st_size > 0
    gbp = [float(r["pearson_input"]) for r in table if r["method"] == "gbp" and r["seed"] == "0"]
    assert gbp[0] < gbp[-1]  # nie2018: more filters, better recovery


def test_a_failed_job_does_not_end_a_sweep_and_resume_runs_only_what_is_missing(vis_run, tmp_path, monkeypatch):
    (tmp_path / "sometimes.py").write_text(
        "import os\nfrom vis.methods import Saliency\n\n\nclass Sometimes(Saliency):\n    def __init__(self, number):\n"
        "        self.number = number\n\n    def explain(self, forward, targets):\n"
        "        if self.number == 2 and not os.path.exists('mended'):\n            raise RuntimeError('broken')\n"
        "        return super().explain(forward, targets)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    ran = vis_run("-m", *SMALL, "+methods.mine._target_=sometimes.Sometimes", "+methods.mine.number=1,2,3")
    assert ran.code == 1
    assert "1 of the sweep's jobs not done: job 1 failed: RuntimeError: broken" in ran.err
    (folder,) = (tmp_path / "outputs").glob("*/*")
    states = {row["job"]: row["state"] for row in rows(folder)}
    assert states == {"0": "done", "1": "failed", "2": "done"}
    assert (folder / "figure.png").exists()
    times = {p: p.stat().st_mtime_ns for p in folder.glob("[02]_*/maps.npz")}
    (tmp_path / "mended").touch()
    assert vis_run("--resume", str(folder)).folder == folder
    assert {row["state"] for row in rows(folder)} == {"done"}
    assert {p: p.stat().st_mtime_ns for p in times} == times


def test_jobs_that_never_started_are_run_on_resume(vis_run):
    import shutil

    folder = vis_run("-m", *SMALL, "model.num_filters=2,4").folder
    shutil.rmtree(folder / "1_model.num_filters=4")
    assert vis_run("--resume", str(folder)).folder == folder
    assert {row["state"] for row in rows(folder)} == {"done"}
    assert {row["model.num_filters"] for row in rows(folder)} == {"2", "4"}


def test_a_sweep_over_models_and_a_range(vis_run):
    folder = vis_run(
        "-m", "model=cnn3_random,fcn3_random", "model.num_classes=5", "model.input_size=16", "seed=range(0,3)"
    ).folder
    assert len(rows(folder)) == 6
    assert len(json.loads((folder / "sweep.json").read_text())["jobs"]) == 6
