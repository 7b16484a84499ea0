"""The tasks of a Slurm array, or of srun, share a run. No Slurm is needed: it says by environment variables what a process is."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL
from PIL import Image

from vis.runner.execute import execute_shard
from vis.store.run_folder import RunFolder
from vis.system import shards

ARRAY = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_PROCID": "0"}
STEP = {"SLURM_JOB_ID": "9", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "4"}
MANY = (*SMALL, "seeds=12", "batch_size=1", "outputs=out")  # a task for each seed


@pytest.mark.parametrize(
    ("environment", "job", "place"),
    [
        ({}, "", (0, 1)),
        (
            {"SLURM_JOB_ID": "8", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},
            "",
            (0, 1),
        ),  # the script of sbatch --ntasks=4
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "2"}, "7", (2, 3)),
        (
            ARRAY | {"SLURM_ARRAY_TASK_ID": "20", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "5"},
            "7",
            (2, 3),
        ),
        (STEP | {"SLURM_PROCID": "3"}, "9.2", (3, 4)),
        (ARRAY | STEP | {"SLURM_ARRAY_TASK_ID": "1", "SLURM_PROCID": "3"}, "7", (7, 12)),
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "1", "SUBMITIT_EXECUTOR": "slurm"}, "", (0, 1)),  # a job of a sweep
        (
            ARRAY | {"MASTER_ADDR": "a", "WORLD_SIZE": "2", "RANK": "1", "SLURM_ARRAY_TASK_ID": "2"},
            "",
            (1, 2),
        ),  # torchrun
    ],
)
def test_what_a_process_is(monkeypatch, environment, job, place):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (shards.slurm(), shards.place()) == (job, place)


def start(tmp_path: Path, index: int, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | ARRAY | {"SLURM_ARRAY_TASK_ID": str(index), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vis.run", *words]
    return subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(*processes: subprocess.Popen[str]) -> list[tuple[str, str]]:
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs


def computed(folder: Path) -> list[int]:
    return sorted(int(line.partition(",")[0]) for line in (folder / "timings.csv").read_text().splitlines())


def test_the_tasks_of_an_array_share_one_run(tmp_path, command):
    alone = Path(command(*MANY, "outputs=alone").stdout.strip())
    outputs = end(*(start(tmp_path, index, *MANY) for index in range(2)))
    (folder,) = tmp_path.glob("out/*/*")
    assert "".join(out for out, _ in outputs).strip() == str(folder), "the leader says it"
    assert computed(folder) == list(range(12)), "each once"
    for name in ("maps.npz", "tables.json", "claims.json"):
        assert (folder / name).read_bytes() == (alone / name).read_bytes(), name
    ((out, err),) = end(start(tmp_path, 2, *MANY))  # had to wait for a place, and comes when all is done
    assert (out, err) == ("", f"{folder}, the run of Slurm job 7, is complete\n")
    assert computed(folder) == list(range(12))
    end(start(tmp_path, 2, *MANY, "seed=5"))
    assert len(list(tmp_path.glob("out/*/*"))) == 2, "another command is another run"


def test_another_task_concludes_what_a_killed_one_led(tmp_path):
    slow = (*MANY, "model.input_size=64", "method=smoothgrad")
    leader = start(tmp_path, 0, *slow)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/*/*/parts/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.01)
    leader.send_signal(signal.SIGKILL)
    leader.communicate()
    (folder,) = tmp_path.glob("out/*/*")
    before = computed(folder)
    assert 0 < len(before) < 12
    end(start(tmp_path, 1, *slow))
    assert RunFolder(folder).status["state"] == "done"
    assert len(computed(folder)) - 12 <= 1, "only the task in the killed process may be computed twice"
    assert set(computed(folder)) == set(range(12))


def test_a_run_is_resumed_by_an_array(tmp_path, command):
    folder = Path(command(*MANY).stdout.strip())
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"state": "interrupted"}))
    end(*(start(tmp_path, index, "--resume", str(folder)) for index in range(2)))
    assert RunFolder(folder).status["state"] == "done"
    assert computed(folder) == sorted([*range(12)] * 2)


@pytest.mark.parametrize("words", [("-m", *SMALL, "seed=0,1"), ("experiment=nie2018/all", "preset=tiny")])
def test_the_tasks_of_an_array_do_not_each_start_many_runs(vis_run, monkeypatch, words):
    for name, value in (ARRAY | {"SLURM_ARRAY_TASK_ID": "1"}).items():
        monkeypatch.setenv(name, value)
    ran = vis_run(*words)
    assert ran.code == 2
    assert "once, with hydra/launcher=submitit_slurm" in ran.err


def test_a_process_that_helps_reads_relative_paths_as_the_run_does(vis_run, tmp_path, monkeypatch):
    Image.new("RGB", (32, 32)).save(tmp_path / "cat.png")
    run = RunFolder(vis_run(*SMALL, "image=cat.png").folder)
    run.set_status(state="interrupted")
    (run.path / "parts").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert execute_shard(run.path) == 1


def test_a_task_that_arrives_when_the_run_is_over_computes_nothing(vis_run, monkeypatch):
    folder = vis_run(*SMALL).folder
    status = RunFolder(folder).status
    monkeypatch.setattr(RunFolder, "status", property(lambda _: status | {"state": "running"}))  # read before the end
    for name, value in (ARRAY | {"SLURM_ARRAY_TASK_ID": "1"}).items():
        monkeypatch.setenv(name, value)
    assert execute_shard(folder) == 0
    assert not (folder / "parts").exists()
    (folder / "parts").mkdir()  # its removal had begun
    read = iter([status | {"state": "running"}])
    monkeypatch.setattr(RunFolder, "status", property(lambda _: next(read, status)))
    assert execute_shard(folder) == 0


def test_without_slurm_its_launcher_is_refused(vis_run, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    ran = vis_run("-m", *SMALL, "seed=0,1", "hydra/launcher=submitit_slurm")
    assert ran.code == 2
    assert "takes Slurm's sbatch" in ran.err
