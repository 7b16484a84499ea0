"""nie2018's figures on random and trained weights: from command to verdict, in one process and in several."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL

from experiments.nie2018.figure7 import two_logits
from experiments.nie2018.figure8 import ascent, relu_states
from experiments.nie2018.figure9 import background, surviving_patches
from experiments.nie2018.supplement_figure9 import left_difference, textured
from vis import load_run, metrics
from vis.config.compose import compose_config, register
from vis.models import build_model
from vis.oldclaims import interval
from vis.runner.experiment import Run

RESULTS = ("maps.npz", "tables.json", "table.csv", "claims.json", "figure.png")
RANDOM = {"_target_": "vis.models.VGGSmall", "init": "truncated_normal", "std": 0.1, "num_classes": 10}
FIGURE7 = (
    "experiment=nie2018/figure7",
    "model@experiment.models.random=vgg_small",
    "experiment.models.random.weights=null",
    "experiment.models.random.init=truncated_normal",
    "seeds=1",
    "batch_size=2",
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """Weights that stand for trained ones: no test says what they show."""
    torch.save(build_model(RANDOM, seed=7).net.state_dict(), tmp_path / "weights.pt")
    return str(tmp_path / "weights.pt")


def claims(folder: Path) -> dict:
    return {c["id"]: c for c in json.loads((folder / "claims.json").read_text(encoding="utf-8"))}


def test_distances():
    a = torch.tensor([[1.0, 2, 3, 5]]).view(1, 1, 2, 2)
    assert metrics.minmax_distance(a, 7 * a - 3).item() == pytest.approx(0)
    assert metrics.minmax_distance(a, -a).item() == pytest.approx(np.linalg.norm([-1, -0.5, 0, 1]))
    assert metrics.minmax_distance(a, torch.ones_like(a)).item() == pytest.approx(np.linalg.norm([0, 0.25, 0.5, 1]))
    assert metrics.distance(a, 2 * a).item() == pytest.approx(39**0.5)


def test_a_confidence_interval():
    low, high = interval([1.0, 2.0, 3.0])  # t of 2 degrees of freedom: 4.303; standard error 1/sqrt(3)
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert interval([1.0]) == (-np.inf, np.inf)


def test_two_logits_differ_and_depend_on_seed_and_name_alone():
    pairs = [two_logits(0, f"image {i}", 10) for i in range(200)]
    assert all(a != b for a, b in pairs)
    assert {a for a, _ in pairs} == set(range(10))
    assert two_logits(0, "image 3", 10) == pairs[3] != two_logits(1, "image 3", 10)


def test_figure7_with_two_networks(vis_run, checkpoint):
    folder = vis_run(
        *FIGURE7, "model@experiment.models.trained=vgg_small", f"experiment.models.trained.weights={checkpoint}"
    ).folder
    results = load_run(folder)
    rows = results.rows(network="trained", method="gbp")
    assert [r["image"] for r in rows] == ["tabby", "astronaut", "coffee", "rocket", "cameraman"]
    a, b = (torch.from_numpy(results.arrays[f"random/tabby/{n}/gbp"])[None] for n in (1, 2))
    assert results.rows(network="random", method="gbp")[0]["unit"] == pytest.approx(metrics.unit_distance(a, b).item())
    assert not any("coffee" in name for name in results.arrays)  # samples: 2
    found = claims(folder)
    assert {found[f"{network}_larger"]["verdict"] for network in ("random", "trained")} == {"not measured"}
    assert "_target_ is vis.models.VGGSmall (paper: vis.models.VGG16)" in found["random_larger"]["measured"]


def test_figure7_without_trained_weights(vis_run):
    folder = vis_run(*FIGURE7, "dataset.limit=2", "experiment.samples=1").folder
    found = claims(folder)
    assert found["trained_larger"]["verdict"] == "not measured"
    assert "could not be downloaded" in found["trained_larger"]["measured"]
    ran = vis_run(*FIGURE7, "experiment.optional=[]")
    assert ran.code == 2
    assert "preset=small" in ran.err


def test_images_of_the_next_units_are_read_once_and_ahead():
    register()
    run = Run(compose_config(["dataset=photographs", *SMALL]))
    model, data, read = run.model(), run.dataset, []
    run.reader.dataset = replace(data, read=lambda i: read.append(i) or data.read(i))
    run.reader.upcoming = [1, 2]
    run.batch(model, [0])
    run.reader.upcoming = []
    ahead = run.batch(model, [1, 2])
    assert sorted(read) == [0, 1, 2]
    assert torch.equal(ahead.x, Run(run.config).batch(model, [1, 2]).x)


def own(checkpoint: str) -> tuple[str, ...]:
    """Small networks with weights of one's own, in place of the trained VGG-16."""
    return ("model=vgg_small", f"model.weights={checkpoint}")


def test_figure2_without_weights_says_what_to_do(vis_run):
    ran = vis_run("experiment=nie2018/figure2")
    assert ran.code == 2
    assert "preset=small" in ran.err
    assert "model.weights=FILE" in ran.err


def test_a_gallery_leaves_out_pairs_of_the_same_logit(vis_run, checkpoint):
    folder = vis_run(
        "experiment=nie2018/figure2", *own(checkpoint), "target=[max,0,1,2,3,4,5,6,7,8,9]", "method=[gbp]"
    ).folder
    rows = load_run(folder).rows(method="gbp")
    assert len(rows) == 54  # of 55 pairs: the largest logit is one of the ten
    assert all(abs(row["correlation"]) < 1 - 1e-9 for row in rows)


def test_a_gallery_names_the_papers_image(vis_run):
    small = ("model=vgg_small", "model.weights=null", "model.init=truncated_normal", "seeds=2", "target=[1,2]")
    folder = vis_run("experiment=nie2018/supplement_figure3", *small).folder
    assert claims(folder)["class_sensitive"]["verdict"] == "not measured"
    assert "The paper's image: panda" in json.loads((folder / "figures.json").read_text())["figure"]


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_fgsm_raises_the_loss(loss):
    net = build_model(RANDOM | {"init": "kaiming_normal"}).net.double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = net(x).topk(2).indices

    def J(x: torch.Tensor) -> torch.Tensor:
        first, second = net(x).gather(1, before).T
        return second - first if loss == "margin" else -net(x).log_softmax(1).gather(1, before[:, :1])[:, 0]

    assert (J(x + 1e-4 * ascent(net, x, loss).sign()) > J(x)).all()


def test_states_of_all_relus():
    model = build_model(RANDOM)
    states = relu_states(model.net, torch.zeros(2, 3, 32, 32))
    assert len(states) == 10  # 8 convolutions and 2 dense layers
    assert not any(state.any() for state in states)  # zero biases


@pytest.mark.parametrize("model", ["trained", "random"])
def test_figure8(model, vis_run, checkpoint):
    weights = own(checkpoint) if model == "trained" else (
        "model=vgg_small", "model.weights=null", "model.init=truncated_normal", "seeds=2"
    )  # fmt: skip
    name = "figure8" if model == "trained" else "figure8_random"
    folder = vis_run(f"experiment=nie2018/{name}", "dataset.limit=2", *weights).folder
    attacks = load_run(folder).rows("attacks", version="adversary")
    assert len(attacks) == (2 if model == "trained" else 4)
    assert all(0 < a["linf_gray_levels"] < 2.001 and 0 < a["relu_states_flipped"] < 1 for a in attacks)
    found = claims(folder)
    assert found["linf"]["verdict"] == "holds"
    assert found["gbp_unchanged"]["verdict"] == "not measured"
    assert found["here_gbp"]["verdict"] in ("holds", "fails")


def test_background_and_patches():
    inside = 1 - background((200, 100), (0.0, 0.0, 0.5, 1.0))
    assert inside[:100].sum() == inside.sum() == pytest.approx(np.pi * 50 * 50, rel=0.01)
    assert surviving_patches(torch.ones(1, 1, 32, 32)).item() == pytest.approx(1)
    one = torch.zeros(1, 1, 32, 32)
    one[0, 0, 4, 5] = 3
    assert surviving_patches(one).item() == pytest.approx(1 / 256)


@pytest.mark.parametrize("name", ["figure9", "trained_layers"])
def test_figure9(name, vis_run, checkpoint):
    layers = ("experiment.up_to=[conv1_1,conv5_1,fc3]",) if name == "trained_layers" else ()
    folder = vis_run(f"experiment=nie2018/{name}", *own(checkpoint), "seeds=2", "dataset.names=[tabby]", *layers).folder
    rows = load_run(folder).rows()
    whole = [r for r in rows if r["kind"] == "trained" or (r["kind"], r["layer"]) == ("up_to", "fc3")]
    assert all(r["same"] == pytest.approx(1) for r in whole)
    assert not any(r["same"] > 0.999 for r in rows if r["layer"] == "conv1_1")


def test_figure3(vis_run, checkpoint):
    networks = (
        *FIGURE7[1:5],
        "model@experiment.models.trained=vgg_small",
        f"experiment.models.trained.weights={checkpoint}",
    )
    folder = vis_run("experiment=nie2018/figure3", *networks, "dataset.limit=2").folder
    (row,) = load_run(folder).rows("weights", network="trained")
    state = torch.load(checkpoint)["classifier.0.weight"].double()
    assert row["std_44"] == pytest.approx(state[44].std(correction=0).item())
    assert claims(folder)["dead_zone"]["verdict"] == "holds"


def test_the_edge_detector_and_its_texture():
    x = torch.arange(64 * 64.0).view(1, 1, 64, 64).expand(1, 3, 64, 64) / 64
    assert (left_difference(x)[..., 1:] == 1 / 64).all()
    assert (left_difference(x)[..., 0] == 0).all()
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    noise[..., :32] = 0  # flat on the left
    where = textured(noise, 3)
    assert where[..., 40:].mean() > 0.95 > 0.05 > where[..., :24].mean()


def test_supplement_figure9(vis_run, checkpoint):
    folder = vis_run("experiment=nie2018/supplement_figure9", *own(checkpoint)).folder
    assert all(0 < row["edge"] < 1 and row["area"] < 0.5 for row in load_run(folder).rows())


def torchrun(*arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "vis.run",
        *arguments,
    ]


MANY = (*FIGURE7, "dataset=digits", "dataset.limit=100", "device=cpu")


@pytest.mark.slow
def test_two_processes_give_what_one_gives_also_when_they_were_killed(command, tmp_path):
    one = Path(command(*MANY, "outputs=one", env=os.environ | {"OMP_NUM_THREADS": "1"}).stdout.strip())
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        torchrun(*MANY, "outputs=two"), cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    (two,) = tmp_path.glob("two/*/*")
    assert done.stdout.strip() == str(two)  # one folder, said once
    process = subprocess.Popen(torchrun(*MANY, "outputs=killed"), cwd=tmp_path, env=environment, start_new_session=True)
    deadline = time.monotonic() + 100
    while len(list(tmp_path.glob("killed/*/*/parts/*.npz"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (killed,) = tmp_path.glob("killed/*/*")
    assert 5 <= len(list(killed.glob("parts/*.npz"))) < 50
    subprocess.run(torchrun("--resume", str(killed)), cwd=tmp_path, env=environment, check=True, capture_output=True)
    for name in RESULTS:
        assert (two / name).read_bytes() == (one / name).read_bytes(), name
        assert (killed / name).read_bytes() == (one / name).read_bytes(), name


@pytest.mark.slow
def test_what_is_no_run_ends_in_all_processes(tmp_path):
    done = subprocess.run(torchrun("--version"), cwd=tmp_path, check=True, capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("vis-run ")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.slow
def test_a_mistake_ends_all_processes(tmp_path):
    done = subprocess.run(
        torchrun("method=gbq"), cwd=tmp_path, check=False, capture_output=True, text=True, timeout=100
    )
    assert done.returncode != 0
    assert "there is no method 'gbq'" in done.stderr
