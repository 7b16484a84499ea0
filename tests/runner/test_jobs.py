"""The jobs of a sweep: what a killed process leaves behind."""

import pytest

from vis.errors import Incomplete, UserError
from vis.runner import jobs
from vis.store.run_folder import RunFolder
from vis.store.sweep_plan import begin


def killed(*_):
    pass


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("ended", "error"), [(killed, Incomplete), (interrupted, KeyboardInterrupt)])
def test_a_job_whose_process_was_ended_is_interrupted_and_one_at_work_is_not(ended, error, tmp_path, monkeypatch):
    begin(tmp_path, [["seed=0"], ["seed=1"]], [], "vis-run", processes=2)
    runs = [RunFolder(tmp_path / f"{number}_seed={number}") for number in range(2)]
    for run in runs:
        run.path.mkdir()
        run.set_status(state="running")
    monkeypatch.setattr(jobs, "fan_out", ended)
    with runs[1].locked(), pytest.raises(error):
        jobs.resume(tmp_path, "vis-run")
    assert runs[0].status["state"] == "interrupted"
    assert "ended from outside" in runs[0].status["error"]
    assert runs[1].status["state"] == "running"


def test_a_folder_of_configs_that_is_gone_is_named(tmp_path):
    begin(tmp_path, [["seed=0"]], [tmp_path / "mine"], "vis-run", collection="mine")
    with pytest.raises(UserError, match="mine of --config-dir no longer exists: put it back"):
        jobs.resume(tmp_path, "vis-run")
