"""An experiment from command to claims, in memory."""

import json
from pathlib import Path

from vis.config.compose import compose_config
from vis.runner.execute import build_experiment
from vis.runner.experiment import Run
from vis.store.run_folder import Results


def concluded(*overrides: str) -> tuple[Results, dict]:
    """What an experiment stores, and its claims; its figures are drawn and thrown away."""
    config = compose_config(overrides)
    run, experiment = Run(config), build_experiment(config)
    results = Results({}, {}, config, Path())
    for unit in experiment.tasks(run):
        part = experiment.compute(run, unit)
        results.arrays.update(part.arrays)  # type: ignore[attr-defined]  # a dictionary here
        for table, rows in json.loads(json.dumps(part.tables)).items():
            results.tables.setdefault(table, []).extend(rows)
    results.tables |= experiment.summaries(results)
    claims = experiment.claims(results)
    assert all(figure.caption for figure in experiment.draw(results, claims).values())
    return results, {claim.name: claim.record() for claim in claims}
