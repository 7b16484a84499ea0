"""What a run or a sweep is at."""

import signal
import subprocess
import sys
import time

from conftest import SMALL

from vis.reports.status import status

SWEPT = (*SMALL[:1], "model.num_filters=4,8", *SMALL[2:])


def test_the_status_of_runs_and_sweeps(vis_run):
    folder = vis_run(*SMALL).folder
    assert status(folder).startswith("done in ")
    sweep = vis_run("-m", *SWEPT).folder
    lines = status(sweep).splitlines()
    assert [line.partition("): ")[2].split()[0] for line in lines[:2]] == ["done", "done"]
    assert lines[-1] == "2 jobs: 2 done"
    ran = vis_run("--status", str(folder))
    assert (ran.code, ran.out.strip()) == (0, status(folder))


def test_the_status_while_the_time_of_a_task_is_being_written(tmp_path):
    (tmp_path / "status.json").write_text('{"state": "interrupted", "tasks": 4}')
    for written, times in (("", ""), ("4,", ""), ("4,1.5\n5,2", "1.5 s a task"), ("4,1.5\n5,2.5\n", "2 s a task")):
        (tmp_path / "timings.csv").write_text(written)
        line = status(tmp_path)
        assert (times in line) if times else ("a task" not in line)
        assert "--resume" not in line  # which needs a config


def test_sigterm_ends_a_run_and_says_how_to_go_on(tmp_path):
    words = ["experiment=nie2018/theorem1", "seeds=400", "outputs=out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vis.run", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    ended = time.monotonic() + 120
    while not list(tmp_path.glob("out/*/*/parts/*.npz")) and time.monotonic() < ended:
        time.sleep(0.2)
    (folder,) = tmp_path.glob("out/*/*")
    assert status(folder).startswith("running, ")
    assert "left" in status(folder)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.splitlines()[-1] == f"vis-run: terminated; go on with vis-run --resume {folder}"
    assert status(folder).startswith("interrupted, ")
