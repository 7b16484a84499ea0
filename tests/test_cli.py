"""The command line: help, listings, completion, the config, the run folder."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL
from PIL import Image

import vis
from vis.claims import Column, above
from vis.config.compose import compose_config, register, spelled_out
from vis.config.options import GROUPS, collected, describe, options
from vis.errors import Lacking, UserError
from vis.store.run_folder import Output, RunFolder
from vis.store.tables import numbers

FILES = (
    "figure.png", "figure.pdf", "maps.npz", "table.csv", "table.md", "predictions.csv", "claims.json", "config.yaml",
    ".hydra/overrides.yaml", "provenance.json", "status.json", "run.log", "index.html",
)  # fmt: skip


def test_help_teaches_three_commands_that_work(vis_run):
    text = vis_run("--help").out
    commands = [line.split("   ")[0].strip() for line in text.splitlines() if line.startswith("  vis-run ")]
    assert len(commands) >= 3
    register()
    for line in commands[:3]:
        overrides = [word for word in shlex.split(line)[1:] if not word.startswith(("image=", "-"))]
        compose_config(overrides)


@pytest.mark.parametrize("arguments", [["--help"], ["--list"], ["--cfg", "job"], ["--version"], ["method=gbq"]])
def test_answers_without_torch(arguments, tmp_path):
    code = f"import sys; from vis.run import main; main({arguments!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.parametrize("group", GROUPS)
def test_the_listing_names_every_option_with_a_line_on_each(group, vis_run):
    text = vis_run("--list").out
    for name, file in options(group).items():
        assert describe(file), f"{file} has no comment that says what it is"
        assert f"  {name} " in text


def test_completion_sees_nested_experiments(tmp_path):
    line = "vis-run experiment="
    done = subprocess.run(
        [sys.executable, "-m", "vis.run", "-sc", "query=bash"], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))},
    )  # fmt: skip
    words = done.stdout.split()
    assert "experiment=visualize" in words
    assert "experiment=nie2018/figure4" in words
    assert not any("/_" in word for word in words)


def test_a_run_folder_is_complete(vis_run):
    folder = vis_run(
        *SMALL, "method=[saliency,deconvnet,gbp]", "target=[max,random,3]", "dataset.names=[tabby,coffee]"
    ).folder
    for name in FILES:
        assert (folder / name).stat().st_size > 0, name
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "done"
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["command"].startswith("vis-run model=cnn3_random")
    assert [data["images"] for data in provenance["datasets"]] == [2]
    results = vis.load_run(folder)
    assert results.arrays["0/coffee/random/gbp"].shape == (3, 32, 32)
    assert {row["method"] for row in results.rows(image="tabby", target="3")} == {"saliency", "deconvnet", "gbp"}
    assert not list(folder.glob(".*.tmp"))


def test_two_runs_in_one_second_get_two_folders(tmp_path):
    from vis.store.run_folder import reserve

    assert reserve(tmp_path, "visualize") != reserve(tmp_path, "visualize")


def test_an_own_image_may_have_any_name(vis_run, tmp_path):
    Image.effect_noise((50, 40), 80).convert("RGB").save(tmp_path / "mein Kätzchen (1), it's.png")
    folder = vis_run(*SMALL, "image=mein Kätzchen (1), it's.png").folder
    assert "0/mein Kätzchen (1), it's/max/gbp" in vis.load_run(folder).arrays


def test_random_targets_depend_on_the_seed_and_the_image_only(vis_run):
    def classes(*more: str) -> list[str]:
        rows = vis.load_run(vis_run(*SMALL, "target=random", *more).folder).rows()
        return [row["class"] for row in rows]

    both = classes("dataset.names=[tabby,coffee,rocket]")
    assert classes("dataset.names=[coffee]") == both[1:2]
    assert classes("dataset.names=[tabby,coffee,rocket]", "batch_size=1") == both


def test_a_folder_of_the_users_does_not_shadow_ours(command, tmp_path):
    for name in ("conf", "experiments"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong folder')")
    (tmp_path / "conf" / "config.yaml").write_text("nonsense: true")
    done = command(*SMALL)
    assert done.returncode == 0, done.stderr


def test_configs_of_ones_own(vis_run, tmp_path):
    own = tmp_path / "mine" / "method"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package methods.mine\n# My method\n_target_: vis.methods.Saliency\n")
    assert "mine" in vis_run("--list", "--config-dir", "mine").out
    folder = vis_run("--config-dir", "mine", *SMALL, "method=[mine,gbp]").folder
    assert "0/tabby/max/mine" in vis.load_run(folder).arrays


def test_a_method_has_its_constructors_defaults(vis_run, tmp_path):
    folder = vis_run(*SMALL, "method=occlusion", "methods.occlusion.window=16", "methods.occlusion.stride=16").folder
    stored = RunFolder(folder).config().methods.occlusion
    assert (stored.window, stored.fill, stored.laplace) == (16, "gray", 100_000.0)
    assert "Did you mean 'methods.occlusion.window'" in vis_run("method=occlusion", "methods.occlusion.windw=16").err
    own = tmp_path / "mine" / "method"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package methods.mine\n_target_: written.Mine\n")
    (tmp_path / "written.py").write_text(
        "import broken\nfrom vis.methods import RISE\nN = 3\n\n\nclass Parent(RISE):\n"
        "    def __init__(self, a, b: float = 1, c=(1, 2), d=N, *, e=None, f):\n        pass\n\n\nclass Mine(Parent):\n    pass\n"
    )
    shown = vis_run("--config-dir", "mine", "method=mine", "--cfg", "job", "-p", "methods").out
    assert shown.splitlines()[1:] == [
        "mine:",
        "  _target_: written.Mine",
        "  b: 1.0",
        "  c:",
        "  - 1",
        "  - 2",
        "  e: null",
    ]


def test_a_pattern_of_a_collection_is_a_papers_items_in_its_order(tmp_path):
    names = ["figure2", "figure10", "table1", "lemma1", "theorem1", "proposition1", "depth", "supplement_figure1"]
    (tmp_path / "experiment" / "mine").mkdir(parents=True)
    for name in [*names, "finding1", "_base"]:
        (tmp_path / "experiment" / "mine" / f"{name}.yaml").write_text(f"experiment: {{name: mine/{name}}}\n")
    (tmp_path / "experiment" / "mine" / "all.yaml").write_text("experiment: {name: mine/all, all: [mine/*]}\n")
    files = options("experiment", [tmp_path])
    collection = {"all": ["mine/*", "nie2018/figure1"], "findings": ["mine/finding*"]}
    assert collected(collection, files) == [*(f"mine/{name}" for name in names), "nie2018/figure1"]
    assert collected(collection, files, "findings") == ["mine/finding1"]
    with pytest.raises(UserError, match=r"mnie/\* in experiment.all matches no experiment"):
        collected({"all": ["mnie/*"]}, files)


def test_a_method_of_ones_own(vis_run, tmp_path, monkeypatch):
    (tmp_path / "ownmethod.py").write_text(
        "from vis.methods import Method\n\n\nclass Mine(Method):\n    def explain(self, forward, targets):\n"
        "        return forward.gradient(targets) * forward.images\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = vis_run(*SMALL, "+methods.mine._target_=ownmethod.Mine").folder
    assert "0/tabby/max/mine" in vis.load_run(folder).arrays


def test_a_failing_run_exits_1_with_one_line_and_can_be_resumed(vis_run, tmp_path, monkeypatch):
    (tmp_path / "fails_at_first.py").write_text(
        "import os\nfrom vis.methods import Saliency\n\n\nclass Failing(Saliency):\n    def explain(self, forward, targets):\n"
        "        if not os.path.exists('mended'):\n            raise RuntimeError('broken\\nin two lines')\n"
        "        return super().explain(forward, targets)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    ran = vis_run(*SMALL, "+methods.mine._target_=fails_at_first.Failing")
    assert ran.code == 1
    assert "RuntimeError: broken (see" in ran.err.strip().splitlines()[-1]
    (folder,) = (tmp_path / "outputs").glob("*/*")
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    assert "in two lines" in (folder / "traceback.txt").read_text()
    (tmp_path / "mended").touch()
    assert vis_run("--resume", str(folder)).folder == folder
    assert json.loads((folder / "status.json").read_text())["state"] == "done"


def test_redraw_draws_without_computing(vis_run):
    folder = vis_run(*SMALL).folder
    before = (folder / "figure.png").read_bytes()
    (folder / "figure.png").unlink()
    assert vis_run("--redraw", str(folder)).folder == folder
    assert (folder / "figure.png").read_bytes() == before


MANY = (*SMALL, "dataset.names=all", "batch_size=1", "seeds=4", "method=[saliency,gbp]")


def test_a_killed_run_resumes_to_the_same_bytes(command, tmp_path):
    whole = Path(command(*MANY, "outputs=whole").stdout.strip())
    words = [sys.executable, "-m", "vis.run", *MANY, "outputs=killed"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while len(list(tmp_path.glob("killed/*/*/parts/*.npz"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    (killed,) = tmp_path.glob("killed/*/*")
    assert 3 <= len(list(killed.glob("parts/*.npz"))) < 20
    assert not (killed / "maps.npz").exists()
    done = command("--resume", str(killed))
    assert done.returncode == 0, done.stderr
    for name in ("maps.npz", "tables.json", "table.csv", "predictions.csv", "claims.json", "figure.png", "figure.pdf"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert not (killed / "parts").exists()


def test_one_folder_takes_one_process(vis_run, tmp_path):
    from vis.store.run_folder import RunFolder

    folder = vis_run(*SMALL).folder
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"state": "interrupted"}))
    with RunFolder(folder).locked():
        ran = vis_run("--resume", str(folder))
    assert ran.code == 2
    assert "another process is working in" in ran.err
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"


def test_seeds_and_thread_counts_do_not_leak_between_runs(vis_run):
    first = vis.load_run(vis_run(*SMALL, "seed=5").folder).arrays["5/tabby/max/gbp"]
    vis_run(*SMALL, "seed=6")
    assert np.array_equal(first, vis.load_run(vis_run(*SMALL, "seed=5").folder).arrays["5/tabby/max/gbp"])


@pytest.mark.parametrize("broken", ["maps.npz", "tables.json", "config.yaml"])
def test_a_damaged_run_folder_is_a_clear_error(broken, vis_run):
    folder = vis_run(*SMALL).folder
    (folder / broken).write_bytes((folder / broken).read_bytes()[:20])
    ran = vis_run("--redraw", str(folder))
    assert ran.code == 2
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("preset", ["paper", "small", "tiny"])
def test_every_experiment_composes_under_every_preset(preset):
    register()
    # The authors' weights or images may be missing; at small sizes, only the VGG that the project trains and keeps.
    may_lack = {"paper": "", "small": "experiment=train_vgg_cifar10", "tiny": "nothing"}[preset]
    for experiment in options("experiment"):
        reason = None
        try:
            config = compose_config([f"experiment={experiment}", f"preset={preset}"])
        except Lacking as error:
            reason = str(error)
        assert config.experiment.name == experiment if reason is None else may_lack in reason


def one_of_each_kind() -> list[str]:
    """The first experiment of each class, e.g. one of the galleries."""
    found = {
        name: re.search(r"_target_: (experiments\.\S+)", f.read_text()) for name, f in options("experiment").items()
    }
    kinds = {target[1]: name for name, target in found.items() if target}
    return sorted(kinds.values())


@pytest.mark.parametrize("experiment", one_of_each_kind())
def test_every_kind_of_experiment_can_be_planned_and_nothing_is_made(experiment, vis_run, tmp_path):
    ran = vis_run(f"experiment={experiment}", "--dry-run")
    assert ran.code == 0, ran.err
    *replication, plan = ran.out.partition(f"experiment {experiment}: ")[0::2]
    assert replication == [""] or replication[0].endswith("The run is then a replication:\n"), (
        "its weights or images are missing"
    )
    assert plan
    assert re.search(r"estimate +[\d.]+ (s|min|h), [\d.]+ GB of memory, \d+ MB on disk|cost +not estimated", ran.out)
    assert list(tmp_path.iterdir()) == []


def test_the_plan_counts_what_the_network_does(vis_run):
    out = vis_run("--dry-run", "dataset.names=all", "method=[gbp,saliency]").out
    assert "138.4 M weights, 30.94 GFLOP forward" in out  # VGG-16's published numbers: 138 M, 15.5 G multiply-adds


def test_nan_is_not_an_empty_cell_and_decides_no_claim(tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin(compose_config([]))
    folder.add(0, Output(tables={"table": [{"mu": math.nan, "label": None}, {"mu": 0.5, "label": 3}]}))
    rows = folder.merge().rows()
    assert math.isnan(rows[0]["mu"])
    assert rows[0]["label"] is None
    assert numbers(rows, "mu") == [0.5]
    assert above(0, least=1).verdict(Column(rows, "mu", "label").values) == "undecided"


def test_the_dry_run_of_a_sweep_names_its_jobs_and_runs_none(vis_run, tmp_path):
    ran = vis_run("-m", "model=cnn3_random", "model.num_filters=4,8", "--dry-run")
    assert [line.partition(": ")[2].split()[-1] for line in ran.out.splitlines() if line.startswith("job")] == [
        "model.num_filters=4",
        "model.num_filters=8",
    ]
    assert ran.out.count("estimate ") == 2
    assert list(tmp_path.iterdir()) == []


def test_continue_skips_damaged_folders(vis_run, tmp_path):
    first = vis_run(*SMALL)
    damaged = first.folder.parent / "99-99-99_sweep"
    damaged.mkdir()
    (damaged / "sweep.json").write_text("{")
    assert vis_run("--continue", *SMALL).folder == first.folder


def test_a_glob_in_a_sweep_expands_to_the_matching_names():
    register()
    assert spelled_out(["experiment=glob(nie2018/theorem*)"], []) == ["experiment=nie2018/theorem1,nie2018/theorem2"]


def test_options_of_the_model_of_a_small_preset_are_known(vis_run):
    words = ["experiment=compare", "preset=tiny", "dataset.limit=1", "--dry-run"]
    weights = [vis_run(*words, f"model.width={width}").out.partition("model ")[2] for width in (0.0625, 0.125)]
    assert weights[0].split()[0] == weights[1].split()[0] == "vgg_small:"
    assert weights[0] != weights[1]


@pytest.mark.parametrize("option", ["--continue", "--resume"])
def test_a_dry_run_resumes_nothing(option, vis_run, tmp_path):
    ran = vis_run("--dry-run", option, *([str(tmp_path)] if option == "--resume" else []))
    assert ran.code == 2
    assert option in ran.err
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_overrides_preset_small():
    register()
    words = ["experiment=nie2018/figure5", "preset=tiny"]
    assert compose_config(words[:1]).experiment.filters == [8, 16, 32, 64]
    small = compose_config(words)
    assert small.experiment.filters == [8, 16, 32]
    assert small.experiment.models.cnn.num_classes == 10
    own = compose_config([*words, "experiment.filters=[2]", "experiment.models.cnn.num_classes=7", "seeds=1"])
    assert (own.experiment.filters, own.experiment.models.cnn.num_classes, own.seeds) == ([2], 7, 1)
    assert own.experiment.models.fcn.num_classes == 10


def test_a_network_of_ones_own_that_flattens_with_view(vis_run, tmp_path, monkeypatch):
    (tmp_path / "viewnet.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self, width):\n        super().__init__()\n"
        "        self.conv, self.fc = nn.Conv2d(3, width, 3), nn.Linear(width * 30 * 30, 5)\n\n"
        "    def forward(self, x):\n        x = self.conv(x).relu()\n        return self.fc(x.view(x.size(0), -1))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ("model=custom", "model._target_=viewnet.Net", "+model.width=4", "model.init=default", "model.input_size=32")
    folder = vis_run(*own, "dataset.names=[tabby,coffee]").folder
    assert vis.load_run(folder).arrays["0/coffee/max/gbp"].shape == (3, 32, 32)


def test_a_folder_that_is_gone_is_a_clear_error(command, tmp_path):
    (tmp_path / "gone").mkdir()
    words = [sys.executable, "-m", "vis.run", *SMALL]
    script = f"cd gone && rmdir ../gone && {' '.join(words)}"
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == "vis-run: the current directory no longer exists: cd to another"


@pytest.mark.parametrize("arguments", [["--list"], ["--cfg", "job"], SMALL])
def test_an_output_that_cannot_be_written_is_one_line(arguments, command):
    with open("/dev/full", "w") as full:
        done = command(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "vis-run: standard output: No space left on device"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_an_unknown_matplotlib_backend_does_not_matter(command):
    done = command(*SMALL, env={**os.environ, "MPLBACKEND": "Qt6Agg"})
    assert done.returncode == 0, done.stderr


def test_resume_is_advised_only_where_it_is_possible(tmp_path):
    from vis.store.run_folder import failure

    assert failure(RuntimeError("no torch"), tmp_path) == "the run failed: RuntimeError: no torch"
    (tmp_path / "config.yaml").touch()
    assert failure(RuntimeError("boom"), tmp_path).endswith(f"(go on with vis-run --resume {tmp_path})")
    (tmp_path / "my runs").mkdir()
    (tmp_path / "my runs" / "config.yaml").touch()
    assert failure(RuntimeError("boom"), tmp_path / "my runs").endswith(f"--resume '{tmp_path}/my runs')")
