"""Jobs that submitit runs, without Slurm."""

import signal
from types import SimpleNamespace

import pytest

from vis.runner import cluster


def test_submitit_local_starts_as_many_jobs_at_a_time_as_the_machine_runs_well(tmp_path, monkeypatch):
    log = []

    def submitted(_cluster, _settings, numbers, _run, exclusive):
        log.append(list(numbers))
        return {number: SimpleNamespace(job_id=str(number)) for number in numbers}

    monkeypatch.setattr(cluster, "processes", lambda: 2)
    monkeypatch.setattr(cluster, "_settings", lambda *_: ("local", {"folder": ""}))
    monkeypatch.setattr(cluster, "_submit", submitted)
    monkeypatch.setattr(cluster, "_wait", lambda _cluster, _folder, jobs, _waiting: log.append(f"{len(jobs)} ended"))
    cluster.submit(tmp_path, [], range(5), [7, 8], str, lambda: None)
    together = [[0, 1], "2 ended", [2, 3], "2 ended", [4], "1 ended"]
    assert log == [*together, [7], "1 ended", [8], "1 ended"]


def test_a_command_that_is_ended_ends_its_jobs_on_this_machine(tmp_path, monkeypatch):
    terminated = []

    def ended(*_):
        raise KeyboardInterrupt

    jobs = {n: SimpleNamespace(job_id=str(40 + n), done=lambda n=n: n == 0) for n in (0, 1)}
    monkeypatch.setattr(cluster.os, "kill", lambda *process: terminated.append(process))
    monkeypatch.setattr(cluster, "processes", lambda: 2)
    monkeypatch.setattr(cluster, "_settings", lambda *_: ("local", {"folder": ""}))
    monkeypatch.setattr(cluster, "_submit", lambda *_, exclusive: jobs)
    monkeypatch.setattr(cluster, "_wait", ended)
    with pytest.raises(KeyboardInterrupt):
        cluster.submit(tmp_path, [], range(2), [], str, lambda: None)
    assert terminated == [(41, signal.SIGTERM)], "job 0 was done"
