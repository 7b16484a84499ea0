"""The plan of a sweep: its jobs, as stored in its folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vis.config.options import slug
from vis.config.overrides import parse_overrides
from vis.store.stored import read_json
from vis.system.files import write_json


def begin(
    folder: Path,
    jobs: Sequence[Sequence[str]],
    config_dirs: Sequence[Path],
    command: str,
    **collection: Any,
) -> None:
    """Store the jobs of a sweep, so that `vis-run --resume` can finish it.

    collection: of jobs that a config lists: its name (`collection`, e.g. nie2018/all), how many `processes` run them, and
    for each job its estimated `seconds` and whether it runs `alone`.
    """
    plan = {"command": command, "cwd": str(Path.cwd()), "config_dirs": list(map(str, config_dirs)), "jobs": jobs}
    write_json(folder / "sweep.json", plan | collection)


def plan(folder: Path) -> dict[str, Any] | None:
    """Read what `begin` stored; None if the folder is not a sweep. Raises UserError if the file is damaged."""
    return read_json(folder / "sweep.json", _checked, "start the sweep again")


def _checked(plan: Any) -> dict[str, Any]:
    jobs = plan["jobs"]
    texts = [plan["command"], plan["cwd"], *plan["config_dirs"], *(word for job in jobs for word in job)]
    if not (jobs and all(isinstance(job, list) for job in jobs) and all(isinstance(text, str) for text in texts)):
        raise ValueError("not the plan of a sweep")
    return plan


def job_folder(folder: Path, number: int) -> Path | None:
    """Return the folder of a job, or None if the job has not started."""
    return next(folder.glob(f"{number}_*"), None)


def job_name(jobs: Sequence[Sequence[str]], number: int) -> str:
    """Return the name Hydra gives a job's folder: its number and the values that differ between jobs."""
    keys = set(swept_values(jobs)[0])
    own = sorted(o.input_line or "" for o in parse_overrides(list(jobs[number])) if o.key_or_group in keys)
    return f"{number}_{slug(','.join(own))}"


def swept_values(jobs: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Return the values of each job for the keys that differ between jobs."""
    values = [{o.key_or_group: o.value() for o in parse_overrides(list(job))} for job in jobs]
    keys = [key for key in values[0] if len({str(v.get(key)) for v in values}) > 1]
    return [{key: v[key] if isinstance(v[key], int | float) else str(v[key]) for key in keys} for v in values]
