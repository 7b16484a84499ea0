"""Sweeps, collections and shared runs on a real Slurm, which scripts/local_slurm.sh starts: nothing is lost or done twice."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import SMALL
from test_shards import computed

from vis.store.run_folder import RunFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("sbatch"), reason="Slurm is not installed: apt-get install slurm-wlm munge"),
]
SCRIPT = Path(__file__).parents[2] / "scripts" / "local_slurm.sh"
SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=10")
ONE_AT_A_TIME = (*SLURM, "hydra.launcher.cpus_per_task=2")
TASKS = 10
SLOW = (*SMALL, "method=[]", "+methods.slow._target_=slow.Slow", f"seeds={TASKS}", "batch_size=1")
METHOD = """import time
from vis.methods import Saliency


class Slow(Saliency):
    def explain(self, forward, targets):
        time.sleep(0.5)
        return super().explain(forward, targets)
"""


COLLECTION = """# @package _global_
# Two of a paper's items
defaults:
  - override /model: null
  - override /method: null
experiment:
  name: both
  all: [ayyar2021/figure5, ayyar2021/figure10]
"""


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("slurm") / "local"
    environment = os.environ | {"CPUS": "2"}
    done = subprocess.run([SCRIPT, "start", folder], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    before = os.environ.copy()
    os.environ["SLURM_CONF"] = done.stdout.strip().partition("=")[2]
    yield
    subprocess.run([SCRIPT, "stop", folder], check=True, timeout=100)
    assert not folder.exists()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of one process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "slow.py").write_text(METHOD)
    command = [sys.executable, "-m", "vis.run", *SLOW]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), str(folder)])}
    done = subprocess.run(
        command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=100
    )
    return Path(done.stdout.strip())


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The experiments' own folder is on the path of jobs, and a method that takes its time."""
    (tmp_path / "slow.py").write_text(METHOD)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SCRIPT.parents[1]), str(tmp_path)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def start(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vis.run", *words]
    return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


def until(true: Callable[[], object], seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def parts(tmp_path: Path, job: int) -> int:
    return len(list(tmp_path.glob(f"out/*/*/{job}_*/parts/*.npz")))


def number(tmp_path: Path, job: int) -> str:
    """The number that Slurm gave a job of the sweep."""
    (file,) = tmp_path.glob("out/*/*/submitted.json")
    return str(json.loads(file.read_text())[str(job)])


def assert_done_once(folder: Path, jobs: int, again: int = 0) -> None:
    """Each task of each job has a result and was computed once, but for so many that a killed process was at."""
    assert Counter(row["state"] for row in rows(folder)) == {"done": jobs * TASKS}
    for job in range(jobs):
        (path,) = folder.glob(f"{job}_*")
        assert {row["seed"] for row in rows(path)} == {str(seed) for seed in range(TASKS)}
        assert set(computed(path)) == set(range(TASKS))
        assert len(computed(path)) <= TASKS + again


def test_a_sweep(command):
    sweep = ("-m", *SMALL, "model.num_filters=2,4,8")
    before = rows(Path(command(*sweep).stdout.strip()))
    ran = command(*sweep, *SLURM)
    assert ran.returncode == 0, ran.stderr
    assert rows(Path(ran.stdout.strip())) == before
    assert "sacct" not in ran.stderr
    assert "submitted 3 jobs" in ran.stderr


def test_a_collection(command, tmp_path):
    folder = tmp_path / "configs" / "experiment"
    folder.mkdir(parents=True)
    (folder / "both.yaml").write_text(COLLECTION)
    words = ("experiment=both", "--config-dir", str(folder.parent))
    here, there = (command(*words, *launcher) for launcher in (("hydra/launcher=basic",), SLURM))
    assert (here.returncode, there.returncode) == (0, 0), there.stderr
    one, two = (Path(ran.stdout.strip()) for ran in (here, there))
    for job in ("0_", "1_"):
        (first,), (second,) = (each.glob(f"{job}*") for each in (one, two))
        assert first.name == second.name
        for name in ("maps.npz", "tables.json", "claims.json"):
            assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (two / "index.html").read_text().count("<img") == (one / "index.html").read_text().count("<img") > 0
    times = {path: path.stat().st_mtime_ns for path in two.glob("0_*/maps.npz")}
    shutil.rmtree(*two.glob("1_*"))
    again = command("--resume", str(two))
    assert again.returncode == 0, again.stderr
    assert "submitted 1 jobs" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_cancelled_job_goes_on_where_it_was(tmp_path, command):
    process = start(tmp_path, "-m", *SLOW, "model.num_filters=2,4,8", "outputs=out", *SLURM)
    until(lambda: parts(tmp_path, 1) >= 3)
    run("scancel", number(tmp_path, 1))
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 1
    (folder,) = tmp_path.glob("out/*/*")
    (path,) = folder.glob("1_*")
    assert "1 of the sweep's jobs not done: job 1 interrupted" in errors
    stored = len(RunFolder(path).done())
    assert 3 <= stored < TASKS
    assert {row["job"]: row["state"] for row in rows(folder)} == {"0": "done", "1": "interrupted", "2": "done"}
    again = command("--resume", str(folder))
    assert again.returncode == 0, again.stderr
    assert_done_once(folder, 3, again=1)


def test_a_requeued_job_goes_on_where_it_was(tmp_path):
    more = "hydra.launcher.max_num_timeout=1"
    process = start(tmp_path, "-m", *SLOW, "model.num_filters=2,4", "outputs=out", *SLURM, more)
    until(lambda: parts(tmp_path, 0) >= 2 and parts(tmp_path, 1) >= 2)
    for job, end in enumerate(
        (["scontrol", "requeue"], ["scancel", "--signal=USR2"])
    ):  # preempted; its time nearly over
        run(*end, number(tmp_path, job))
        until(lambda job=job: "PENDING" in run("scontrol", "show", "job", number(tmp_path, job)))
        run("scontrol", "update", f"jobid={number(tmp_path, job)}", "starttime=now")  # not in two minutes
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_done_once(next(tmp_path.glob("out/*/*")), 2, again=1)


def test_a_drained_node(tmp_path):
    process = start(tmp_path, "-m", *SLOW, "model.num_filters=2,4,8", "outputs=out", *ONE_AT_A_TIME)
    until(lambda: parts(tmp_path, 0) >= 2)
    run("scontrol", "update", "nodename=ALL", "state=drain", "reason=test")
    until(lambda: json.loads(next(tmp_path.glob("out/*/*/0_*/status.json")).read_text())["state"] == "done")
    time.sleep(8)  # the command asks what the others wait for
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "DRAINED" in errors or "ReqNodeNotAvail" in errors
    assert "the jobs stay in Slurm's queue; to end them: scancel" in errors
    (folder,) = tmp_path.glob("out/*/*")
    assert Counter(row["state"] for row in rows(folder)) == {"done": TASKS, "not started": 2}
    again = start(tmp_path, "--resume", str(folder))
    time.sleep(5)
    run("scontrol", "update", "nodename=ALL", "state=resume")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert "2 jobs are still in Slurm's queue" in errors
    assert "submitted" not in errors
    assert_done_once(folder, 3)


@pytest.mark.parametrize("how", ["array", "srun", "array of places"])
def test_one_run_shared_by_the_tasks_of_slurm(tmp_path, alone, how):
    line = f"{sys.executable} -m vis.run {' '.join(SLOW)} outputs=out"
    options = {
        "array": ["--array=0-3"],
        "srun": ["--ntasks=2"],
        "array of places": ["--array=0-2%1"],  # one after the other: the first does it all
    }[how]
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n{'srun ' * (how == 'srun')}{line}\n")
    output = f"--output={tmp_path}/%x.%a.txt"
    run("sbatch", f"--chdir={tmp_path}", output, *options, str(script))
    until(lambda: not run("squeue", "--noheader"))
    (folder,) = tmp_path.glob("out/*/*")
    assert RunFolder(folder).status["state"] == "done"
    assert computed(folder) == list(range(TASKS))
    for name in ("maps.npz", "tables.json", "table.csv"):
        assert (folder / name).read_bytes() == (alone / name).read_bytes(), name


def test_an_array_whose_leader_is_cancelled(tmp_path):
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n{sys.executable} -m vis.run {' '.join(SLOW)} outputs=out\n")
    job = run("sbatch", "--parsable", f"--chdir={tmp_path}", "--output=/dev/null", "--array=0-1", str(script)).strip()
    until(lambda: len(list(tmp_path.glob("out/*/*/parts/*.npz"))) >= 2)
    (folder,) = tmp_path.glob("out/*/*")
    run("scancel", "--full", f"{job}_0")
    until(lambda: RunFolder(folder).status.get("state") == "done")
    assert set(computed(folder)) == set(range(TASKS))
    assert len(computed(folder)) <= TASKS + 1
    assert Counter(row["seed"] for row in rows(folder)) == {str(seed): 1 for seed in range(TASKS)}
