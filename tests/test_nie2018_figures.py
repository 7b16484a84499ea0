"""nie2018's figures on random and trained weights: from command to verdict, in one process and in several."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.nie2018.figure7 import two_logits
from vis import load_run, metrics
from vis.claims import interval
from vis.models import build_model

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
    return {c["name"]: c for c in json.loads((folder / "claims.json").read_text(encoding="utf-8"))}


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
    assert claims(folder)["trained_slightly"]["verdict"] in ("holds", "fails")


def test_figure7_without_trained_weights(vis_run):
    folder = vis_run(*FIGURE7, "method=[saliency,deconvnet,gbp]").folder
    found = claims(folder)
    assert found["random_order"]["verdict"] in ("holds", "fails")
    assert found["trained_larger"]["verdict"] == "not measured"
    assert "could not be downloaded" in found["trained_larger"]["measured"]
    ran = vis_run(*FIGURE7, "experiment.optional=[]")
    assert ran.code == 2
    assert "preset=small" in ran.err


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
def test_a_mistake_ends_all_processes(tmp_path):
    done = subprocess.run(
        torchrun("method=gbq"), cwd=tmp_path, check=False, capture_output=True, text=True, timeout=100
    )
    assert done.returncode != 0
    assert "there is no method 'gbq'" in done.stderr
