"""Mutations of a run's tables: what a claim says when its sentence is true, when it is false, and when nothing is there.

One list for all claims, applied through the columns that each declares: values that the rule calls true must give `holds`,
values that it calls false `fails`, and the control's values anything but `holds`. The tables are those of a small run, with
as many networks and images as the rules require. Claims that are exact in each value are exempt.

Run as a script, it prints the claims of a run's folder that a mutation kills.
"""

import copy
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vis.claims import Claim, Column, Compared, Range
from vis.config.home import provide_experiments
from vis.runner.execute import build_experiment
from vis.runner.experiment import Experiment
from vis.store.run_folder import Results, RunFolder

UNITS = 12  # networks or images, at least


def killed(folder: Path) -> dict[str, str]:
    """The claims of a run that survive a mutation which should change their verdict: {id: what is wrong}."""
    run = RunFolder(folder)
    results = run.results()
    experiment = build_experiment(results.config)
    results.tables |= experiment.summaries(results)
    claims = _claims(experiment, _multiplied(results, experiment.claims(results)))
    return {id_: wrong for id_ in claims if (wrong := _wrong(id_, experiment, results))}


def _claims(experiment: Experiment, results: Results) -> dict[str, Claim]:
    wanted = results.config.experiment.get("claims") or ["*"]
    claims = experiment.claims(results)
    return {claim.id: claim for claim in claims if any(fnmatchcase(claim.id, pattern) for pattern in wanted)}


def _wrong(id_: str, experiment: Experiment, results: Results) -> str:
    for name, write, right in MUTATIONS:
        mutant = _multiplied(results, experiment.claims(results))
        claim = _claims(experiment, mutant)[id_]
        if all(each.rule.of == "each" for each in claim.compared):
            return ""
        if name == "false" and not any(each.rule.fails for each in claim.compared):
            continue
        if not claim.compared:
            return "it compares nothing in a small run"
        for _ in range(3):  # a column may be compared more than once
            for each in _claims(experiment, mutant)[id_].compared:
                write(each)
        verdict = _claims(experiment, mutant)[id_].judged
        if not right(verdict):
            return f"{name} values give {verdict!r}"
    return ""


def _multiplied(results: Results, claims: Sequence[Claim]) -> Results:
    """Copies of the tables with at least UNITS units for each column, and as many as its rule requires."""
    found = Results(results.arrays, copy.deepcopy(results.tables), results.config, results.folder)
    most = max([UNITS, *(each.rule.least for claim in claims for each in claim.compared)])
    columns = [column for claim in claims for column in _columns(claim) if column.rows]
    owner = {id(row): name for name, rows in results.tables.items() for row in rows}
    keys: dict[str | None, list[set[str]]] = {}  # by the table of the column; None: of rows that a claim has made
    for column in columns:
        keys.setdefault(owner.get(id(column.rows[0])), []).append(set(column.per))
    for name, rows in found.tables.items():
        sets = [*keys.get(name, []), *keys.get(None, [])] or [set()]
        shared = set.intersection(*sets) or set.union(
            *sets
        )  # a key that not all have in common may choose the rows of some
        of = [key for key in shared if any(key in row for row in rows)]
        sizes = [
            len(column.by_unit) for column in columns if owner.get(id(column.rows[0])) == name
        ]  # some have few of a table's units
        sizes += [len({row.get(key) for row in rows}) for key in of]  # a column may be per each of them
        units = min(filter(None, sizes), default=0)
        for number in range(1, math.ceil(most / units) if of and units else 0):
            rows += [row | {k: _renamed(row[k], number) for k in of if k in row} for row in rows[: len(rows) // number]]
    return found


def _columns(claim: Claim) -> Iterator[Column]:
    for each in claim.compared:
        for column in (each.column, each.column.minus, each.null):
            if isinstance(column, Column):
                yield column


def _renamed(value: Any, number: int) -> Any:
    if isinstance(value, float):  # close to the setting it is a copy of
        return value + 1e-6 * number
    return value + 1000 * number if isinstance(value, int) else f"{value}~{number}"


# -- Writing -----------------------------------------------------------------------------------------------------------


def _write(each: Compared, value: Callable[[], float]) -> None:
    for unit in list(dict.fromkeys(map(each.column.unit, each.column.rows))):
        target = value() + (each.column.subtracted(unit) or 0.0)
        for row in each.column.rows:
            if each.column.unit(row) == unit:
                row[each.column.name] = target


def _inside(ranges: tuple[Range, ...], each: Compared) -> Callable[[], float]:
    low, high = ranges[0]
    if each.rule.of == "share":
        return lambda: float(high >= 1)
    size = max(1.0, abs(low) if math.isfinite(low) else abs(high))
    if math.isinf(low) or math.isinf(high):
        middle = low + size if math.isinf(high) else high - size
    else:
        middle, size = (low + high) / 2, high - low
    noise = random.Random(0)
    return lambda: middle + 0.01 * size * noise.uniform(-1, 1)


def _true(each: Compared) -> None:
    _write(each, _inside(each.rule.holds, each))


def _false(each: Compared) -> None:
    _write(each, _inside(each.rule.fails or ((-math.inf, -1e9),), each))


def _null(each: Compared) -> None:
    controls, noise = list(each.controls), random.Random(0)
    if controls and each.rule.of != "share":
        _write(each, lambda: noise.choice(controls) + 1e-9 * noise.uniform(-1, 1))
    elif controls:
        share = sum(controls) / len(controls)
        _write(each, lambda: float(noise.random() < share))


MUTATIONS: tuple[tuple[str, Callable[[Compared], None], Callable[[str], bool]], ...] = (
    ("true", _true, lambda verdict: verdict == "holds"),
    ("false", _false, lambda verdict: verdict == "fails"),
    ("the control's", _null, lambda verdict: verdict != "holds"),
)


if __name__ == "__main__":
    provide_experiments()
    for path in sys.argv[1:]:
        for claim, wrong in killed(Path(path)).items():
            print(f"{claim}: {wrong}")
