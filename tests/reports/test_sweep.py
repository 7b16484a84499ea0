"""Sweeps: one table, one figure, one page, also when jobs fail."""

import csv
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import SMALL
from markupsafe import escape
from PIL import Image

from vis.claims import ledger
from vis.reports.report import main as report
from vis.reports.sweep import _figure
from vis.store.run_folder import RunFolder
from vis.store.sweep_plan import plan


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
    assert "1 of the sweep's jobs not done: job 1 failed: methods.mine: RuntimeError: broken" in ran.err
    (folder,) = (tmp_path / "outputs").glob("*/*")
    states = {row["job"]: row["state"] for row in rows(folder)}
    assert states == {"0": "done", "1": "failed", "2": "done"}
    assert (folder / "figure.png").exists()
    page = (folder / "index.html").read_text()
    assert "<h1>Sweep over methods.mine.number</h1>" in page
    assert f"vis-run --resume {folder}" in page
    assert 'alt="pearson_input, high_pass_pearson_input against methods.mine.number: mean over' in page
    (log,) = re.findall(r'<a href="([^"]+)">job 1</a>', page)
    assert "RuntimeError: broken" in (folder / unquote(log)).read_text()
    shown = page[page.index("<table") : page.index("</table>")].split("<tr>")[1:]
    assert len({re.sub("</t[dh]>", "|", row).count("|") for row in shown}) == 1, "each value is in its column"
    times = {p: p.stat().st_mtime_ns for p in folder.glob("[02]_*/maps.npz")}
    (tmp_path / "mended").touch()
    assert vis_run("--resume", str(folder)).folder == folder
    assert {row["state"] for row in rows(folder)} == {"done"}
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert "--resume" not in (folder / "index.html").read_text()


@pytest.mark.parametrize(
    ("words", "column", "own"),
    [
        (("method=gbp,[gbp,saliency]",), "method", ["gbp", "gbp", "saliency"]),
        (("target=max,[max,3]",), "target", ["max", "max", "3"]),
        (("seed=0,1", "seeds=2"), "seed", ["0", "1", "1", "2"]),
        (("image=a/cat.png,b/cat.png",), "image", ["a/cat.png", "b/cat.png"]),
    ],
)
def test_rows_of_a_job_with_several_values_of_the_swept_key_have_their_own(vis_run, words, column, own):
    for folder in ("a", "b"):  # both have the name cat in their jobs
        Path(folder).mkdir()
        Image.new("RGB", (32, 32), (20, 90, 200)).save(f"{folder}/cat.png")
    table = rows(vis_run("-m", *SMALL, *words).folder)
    assert [row[column] for row in table] == own
    assert {row["state"] for row in table} == {"done"}


def test_the_figure_has_a_line_for_each_value_of_a_swept_series():
    table = [{"method": method, "r": r} for method, r in (("gbp", 0.5), ("gbp", 0.7), ("saliency", 0.1))]
    (axes,) = _figure(table, ["method"], ["r"], "method").axes
    lines = {label: list(line[0].get_ydata()) for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    assert lines == {"gbp": [pytest.approx(0.6)], "saliency": [0.1]}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"jobs": []}', '{"command": "", "cwd": "/", "config_dirs": [], "jobs": [3]}']
)
def test_a_damaged_plan_is_one_line_and_hides_nothing(vis_run, tmp_path, text, capsys):
    folder = tmp_path / "outputs" / "2026-01-01" / "sweep"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(text)
    for word in ("--resume", "--redraw"):
        ran = vis_run(word, str(folder))
        assert (ran.code, ran.out) == (2, "")
        assert ran.err == f"vis-run: {folder / 'sweep.json'} is damaged: start the sweep again\n"
    (folder.parent / "compare_a_b.html").touch()
    assert plan(folder.parent / "compare_a_b.html") is None, "--continue looks at all that lies beside runs"
    assert report([str(tmp_path / "outputs")]) == 0
    assert "sweep.json is damaged" in (tmp_path / "outputs" / "report.html").read_text()
    capsys.readouterr()


def test_a_damaged_job_is_named_and_the_others_stand_in_the_table(vis_run):
    folder = vis_run("-m", *SMALL, "model.num_filters=2,4").folder
    (folder / "0_model.num_filters=2" / "tables.json").write_text("{")
    ran = vis_run("--resume", str(folder))
    assert ran.code == 1
    assert [row["state"] for row in rows(folder)] == ["damaged", "done"]
    assert "0_model.num_filters=2 has no readable results" in ran.err


@pytest.mark.parametrize(
    "launcher", [["joblib", "hydra.launcher.n_jobs=2"], ["submitit_local", "hydra.launcher.timeout_min=5"]]
)
def test_other_launchers_end_with_the_same_table(command, vis_run, launcher):
    sweep = ("-m", *SMALL, "model.num_filters=2,4")
    before = rows(vis_run(*sweep).folder)
    ran = command(*sweep, f"hydra/launcher={launcher[0]}", *launcher[1:])
    assert ran.returncode == 0, ran.stderr
    assert rows(Path(ran.stdout.strip())) == before
    assert "subset" not in ran.stderr, "fontTools tells what it does to fonts"


def test_jobs_that_never_started_are_run_on_resume(vis_run):
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


COLLECTION = """# @package _global_
# Two of a paper's items
defaults:
  - override /model: null
  - override /method: null
experiment:
  name: both
  all: [ayyar2021/figure5, needy]
  findings: [found]
"""
FINDING = """# @package _global_
# What was found
defaults:
  - /experiment/ayyar2021/figure5
experiment:
  name: found
  claims: [A-4.3-a, A-4.2-b*]
"""
NEEDY = """# @package _global_
# Needs weights
defaults:
  - override /model: vgg16
experiment:
  _target_: experiments.visualize.Visualize
  name: needy
  rows: 1
  scaling: minmax
  replication: {model: resnet50_random}
"""


@pytest.fixture
def collection(tmp_path):
    """A config folder with a collection of two items, one of which needs weights that cannot be had."""
    folder = tmp_path / "configs" / "experiment"
    folder.mkdir(parents=True)
    (folder / "both.yaml").write_text(COLLECTION)
    (folder / "found.yaml").write_text(FINDING)
    (folder / "needy.yaml").write_text(NEEDY)
    return ("--config-dir", str(folder.parent))


def test_a_collection_of_experiments_is_one_page_with_their_claims(vis_run, collection, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no_weights"))
    folder = vis_run("experiment=both", *collection).folder
    with (folder / "claims.csv").open(newline="") as file:
        claims = list(csv.DictReader(file))
    assert [c["item"] for c in claims] == ["ayyar2021/figure5"] * 3
    page = (folder / "index.html").read_text()
    assert page.index("Two of a paper") < page.index("What was found") < page.index('id="ayyar2021-figure5"')
    pictures = re.findall(r'<a class=picture href="([^"]+)"', page)
    assert len(pictures) == page.count("<img") == 2
    assert all((folder / picture).is_file() for picture in pictures)
    (needy,) = folder.glob("1_*")
    assert RunFolder(needy).config().model.name == "resnet50_random", "its weights are missing: it ran as a replication"
    findings = page[page.index("What was found") : page.index('id="ayyar2021-figure5"')]
    shown = {id_: str(escape(ledger()[id_]["sentence"])) in findings for id_ in ("A-4.2-a", "A-4.2-b", "A-4.3-a")}
    assert shown == {"A-4.2-a": False, "A-4.2-b": True, "A-4.3-a": True}


def test_a_collection_in_two_processes_has_the_same_results_as_in_one(vis_run, collection, tmp_path):
    folder = tmp_path / "configs" / "experiment"
    (folder / "both.yaml").write_text(COLLECTION.replace("needy", "ayyar2021/figure10"))
    words = ("experiment=both", *collection)
    one = vis_run(*words, "hydra/launcher=basic")
    two = vis_run(*words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert (one.code, two.code) == (0, 0)
    assert "in 2 processes" in two.err
    for job in ("0_", "1_"):
        (first,), (second,) = (each.folder.glob(f"{job}*") for each in (one, two))
        for name in ("maps.npz", "tables.json", "claims.json"):
            assert (first / name).read_bytes() == (second / name).read_bytes()
    assert json.loads((two.folder / "sweep.json").read_text())["processes"] == 2


def test_a_collection_goes_on_behind_the_items_that_are_done(vis_run, collection):
    folder = vis_run("experiment=both", "preset=small", *collection).folder
    (first,) = folder.glob("0_*")
    (second,) = folder.glob("1_*")
    shutil.rmtree(second)
    before = (first / "maps.npz").stat().st_mtime_ns
    assert vis_run("--resume", str(folder)).folder == folder
    assert (first / "maps.npz").stat().st_mtime_ns == before
    assert (folder / "index.html").read_text().count("<img") == 2


def test_mistakes_with_collections(vis_run, collection, tmp_path):
    ran = vis_run("-m", "experiment=both", "seed=1,2", *collection)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "leave out -m" in ran.err
    ran = vis_run("experiment=both", "model.std=0.2", *collection)
    assert ran.code == 2
    assert not (tmp_path / "outputs").exists()


def test_an_experiment_keeps_the_claims_that_its_config_names(vis_run, collection):
    folder = vis_run("experiment=found", *collection).folder
    assert [claim["id"] for claim in json.loads((folder / "claims.json").read_text())] == ["A-4.2-b", "A-4.3-a"]


def test_the_plan_of_a_collection_says_what_is_missing(vis_run, tmp_path):
    folder = tmp_path / "configs" / "experiment"
    folder.mkdir(parents=True)
    (folder / "both.yaml").write_text(COLLECTION.replace("needy", "taimeskhanov2024/table1"))
    ran = vis_run("experiment=both", "--dry-run", "--config-dir", str(folder.parent))
    assert ran.code == 0
    assert ran.out.startswith("experiment ayyar2021/figure5: ")
    assert "The run is then a replication:\nexperiment taimeskhanov2024/table1: " in ran.out
