"""Processes that torchrun started train one network together, on the CPU, as one process does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training import TINY, Stop, images
from torch import nn

import vis
from vis.models.initialise import initialise
from vis.training.loop import Training
from vis.training.recipe import Recipe

RECIPE = Recipe(epochs=3, batch_size=8, lr=0.05, crop=1, flip=True)


def trained(folder: Path, stop: int = 0) -> Training:
    """21 images in batches of 8: the last of an epoch, of 5, is shared unevenly. stop: the step in which it ends."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    initialise(net, "kaiming_normal", 1.0, 0)
    steps = []

    def wall() -> None:
        net[3].weight.data[:, 100:] = 0  # type: ignore[union-attr,index]  # the dense layer
        steps.append(0)
        if len(steps) == stop:
            raise Stop

    net.apply_wall = wall  # type: ignore[assignment]  # as vis.models.wall gives it to a network
    wall()
    data = images(21), images(9, seed=1)
    training = Training(net.double(), *data, RECIPE, lambda x: x - 0.5, 0, "cpu", folder, save_seconds=0)
    list(training)
    return training


SCRIPT = """
import sys; from pathlib import Path; import torch; from test_ddp import *; from vis.system import shards
folder = Path(sys.argv[1])
unbroken = trained(folder / "unbroken")
torch.save((unbroken.rows, unbroken.net.state_dict()), folder / f"unbroken{shards.rank()}.pt")
try:
    trained(folder / "stopped", stop=6)
except Stop:  # as the sixth step was told to
    resumed = trained(folder / "stopped")
    torch.save((resumed.rows, resumed.net.state_dict()), folder / f"resumed{shards.rank()}.pt")
"""


def torchrun(*arguments: str, cwd: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


def without_times(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in rows]


def test_two_processes_train_as_one(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun("script.py", str(tmp_path), cwd=tmp_path)
    one = trained(tmp_path / "one")
    (rows, net), (_, other) = (torch.load(tmp_path / f"unbroken{rank}.pt") for rank in (0, 1))
    for row, expected in zip(without_times(rows), without_times(one.rows), strict=True):
        assert row == pytest.approx(expected, rel=1e-12)  # in float64: measured 2e-16
    for key, value in one.net.state_dict().items():
        assert torch.equal(net[key], other[key])  # both processes have the same network
        torch.testing.assert_close(net[key], value, rtol=1e-9, atol=1e-12)
    assert (net["3.weight"][:, 100:] == 0).all()

    resumed, weights = torch.load(tmp_path / "resumed0.pt")
    assert without_times(resumed) == without_times(rows)
    assert all(torch.equal(weights[key], net[key]) for key in net)


@pytest.mark.slow
def test_a_run_of_the_experiment_is_trained_by_two(tmp_path):
    torchrun("-m", "vis.run", *TINY, "outputs=two", cwd=tmp_path)
    (folder,) = (tmp_path / "two").glob("*/*_train")
    run = vis.load_run(folder)
    assert [row["epoch"] for row in run.rows()] == [1, 2]
    assert (folder / "weights.pt").is_file()
    assert run.rows("networks")[0]["train_images"] == 40
