"""The items of the papers on a device against the CPU's stored numbers, for `scripts/gpu_check.py`.

The CPU's file (docs/gpu/cpu.json) has for each item its verdicts, the networks and images it used, and a sketch of its maps:
each stored array is divided by its norm, followed by the norm's logarithm, multiplied by random signs, and summed in 16
random groups of its numbers; the sketches of the arrays are added up. If e is the root mean square of the relative l2 errors
of two runs' arrays, the squared distance of their sketches has the expectation e^2 times the number of arrays.
"""

import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vis.config.check import check
from vis.config.compose import compose_config, replicated
from vis.errors import Lacking
from vis.runner.dry_run import costs_of
from vis.runner.execute import build_experiment, prepare, tasks_of
from vis.runner.experiment import Experiment, Run
from vis.runner.models import choose_sources
from vis.store.run_folder import RunFolder
from vis.store.stored import stored
from vis.store.sweep_plan import job_folder, plan

SKETCH = 16  # groups: the estimate of e has a standard deviation of about 20 %
DIGITS = 8  # significant ones of an entry


def sketch(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the number of floating-point arrays other than pictures, and their sketch."""
    total, count = np.zeros(SKETCH), 0
    for name in arrays:
        values = arrays[name]
        if values.dtype.kind != "f" or not values.size or name.endswith("pixels"):
            continue
        flat = np.nan_to_num(values.astype(np.float64).ravel())
        norm = np.linalg.norm(flat)
        vector = np.append(flat / norm, math.log(norm)) if norm else np.zeros(len(flat) + 1)
        bits = np.random.default_rng(zlib.crc32(name.encode())).integers(2 * SKETCH, size=len(vector), dtype=np.uint8)
        signed = np.where(bits & 1, vector, -vector)
        total += np.bincount(bits >> 1, signed, minlength=SKETCH)
        count += 1
    return {"arrays": count, "sketch": [float(f"{value:.{DIGITS}g}") for value in total]}


def distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return the root mean square of the relative l2 errors of the arrays behind two sketches, estimated."""
    if one["arrays"] != other["arrays"]:
        raise ValueError(f"{one['arrays']} arrays on the device, {other['arrays']} on the CPU")
    difference = np.subtract(one["sketch"], other["sketch"])
    return float(math.sqrt((difference**2).sum() / max(1, one["arrays"])))


def record(folder: Path) -> dict[str, Any]:
    """Return what is compared of a finished run."""
    found = stored(folder)
    entries = found.provenance.entries
    with np.load(folder / "maps.npz") as arrays:
        maps = sketch(arrays)
    return {
        "claims": {claim.id: claim.verdict for claim in found.claims},
        "weights": sorted(set(re.findall(r"sha256: (\w{64})", (folder / "config.yaml").read_text(encoding="utf-8")))),
        "standin": found.provenance.standin,
        "clock": bool(RunFolder(folder).config().experiment.get("alone")),
        "images": [each["fingerprint"] for each in entries["datasets"]],
        **maps,
    }


def runs(folder: Path) -> Iterator[tuple[str, Path | None]]:
    """Yield the items of a collection or sweep, and the folder of each that has started."""
    whole = plan(folder) if folder.is_dir() else None
    for number, job in enumerate((whole or {"jobs": []})["jobs"]):
        name = next(word.partition("=")[2] for word in job if word.startswith("experiment="))
        yield name, job_folder(folder, number)


def store(folder: Path, file: Path) -> int:
    """Write the file of the CPU's numbers from a finished collection; return the number of items in it.

    memory_gb: an estimate for the largest task of an item at the paper's size.
    """
    done = {name: path for name, path in runs(folder) if path and RunFolder(path).status.get("state") == "done"}
    lines = []
    for name, path in done.items():
        try:
            memory = max(planned([f"experiment={name}", "device=cpu", f"outputs={folder}"]).gigabytes, default=0.0)
        except Lacking:  # data that are only missing at the paper's size
            memory = 0.0
        entry = record(path) | {"memory_gb": round(memory, 3)}
        lines.append(f"{json.dumps(name)}: {json.dumps(entry)}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return len(done)


@dataclass
class Planned:
    """An item at the paper's size, ready to compute; gigabytes: an estimate for each task, 0 without one."""

    run: Run
    experiment: Experiment
    tasks: list[dict[str, Any]]
    gigabytes: list[float]


def planned(words: list[str]) -> Planned:
    """Plan an item at the paper's size, or its replication. Raises UserError if it cannot run here."""
    config = compose_config(words)
    try:
        check(config)
        choose_sources(config)
    except Lacking:
        config = replicated(config, words) or config
        choose_sources(config)
    prepare(config)
    experiment, run = build_experiment(config), Run(config, Path(config.outputs))
    experiment.resolve(run)
    tasks = tasks_of(experiment, run)
    loads = [experiment.load(run, task) for task in tasks]
    costs = costs_of(load for load in loads if load)
    sizes = [0.0] * len(tasks)
    for number, load in enumerate(loads):
        if load:
            cost = costs[str(load.model)]
            sizes[number] = (cost.weight_bytes + load.images * cost.activation_bytes) / 1e9
    return Planned(run, experiment, tasks, sizes)


@dataclass
class Compared:
    """An item on the device against the CPU.

    result: ok; wrong: verdicts or maps differ; failed; other: it cannot be compared; not run. equal: of `claims` verdicts.
    error: of the maps, NaN if it was not measured.
    """

    result: str
    words: str
    error: float = math.nan
    equal: int = 0
    claims: int = 0


def compare(path: Path | None, cpu: Mapping[str, Any] | None, tolerance: float) -> Compared:
    """Compare a run with the CPU's numbers."""
    status = RunFolder(path).status if path else {}
    if path is None or status.get("state") != "done":
        result = {"failed": "failed", "not measured": "other"}.get(str(status.get("state")), "not run")
        return Compared(result, str(status.get("error") or "time"))
    if cpu is None:
        return Compared("other", "the CPU's file does not have it")
    here = record(path)
    every = here["claims"] | cpu["claims"]
    unmeasured = {"not measured", None}  # on both sides: nothing to compare
    names = [name for name in every if {here["claims"].get(name), cpu["claims"].get(name)} - unmeasured]
    differing = [name for name in names if here["claims"].get(name) != cpu["claims"].get(name)]
    words = f"{len(names) - len(differing)} of {len(names)} verdicts equal"
    words += f" (not {', '.join(differing)})" if differing else ""
    if here["standin"] or cpu["standin"]:
        return Compared("other", f"networks trained on each device: {words}")
    if here["clock"]:
        return Compared("other", f"it reads the clock: {words}")
    if (here["weights"], here["images"]) != (cpu["weights"], cpu["images"]):
        return Compared("other", "other weights or images than the CPU's")
    if not names and not here["arrays"] and not cpu["arrays"]:
        return Compared("other", "nothing is measured here")
    error = distance(here, cpu)
    result = "wrong" if differing or not error <= tolerance else "ok"
    return Compared(result, words, error, len(names) - len(differing), len(names))
