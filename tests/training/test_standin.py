"""Stand-ins are trained once, cached, and named in results."""

import logging
import threading
from collections.abc import Iterator

import pytest
import torch

import vis
import vis.data
from vis.config.compose import compose_config, register
from vis.config.options import load_node, options
from vis.errors import UserError
from vis.models import build_model
from vis.runner.experiment import Run
from vis.training.loop import Training
from vis.training.recipe import Recipe
from vis.training.standin import standin


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Train stand-ins on forty digits for one epoch, to save time."""
    few = vis.data.digits().first(40)
    monkeypatch.setattr(vis.data, "digits", lambda: few)
    monkeypatch.setitem(vis.training.standin.STANDIN_RECIPES, "digits", Recipe(epochs=1, batch_size=16))
    vis.training.standin._fingerprint.cache_clear()
    yield
    vis.training.standin._fingerprint.cache_clear()


def node(**changes: object) -> dict[str, object]:
    return load_node(options("model")["vgg_small"]) | {"width": 0.02} | changes


@pytest.mark.usefixtures("few_digits")
def test_a_stand_in_is_trained_once_also_by_two_at_a_time(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    made = []
    threads = [threading.Thread(target=lambda: made.append(standin(node(), tmp_path, "cpu"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made[0] == made[1]
    assert caplog.text.count("training a stand-in") == 1
    assert "no cifar10 in data" in caplog.text
    assert "trained by the project on scikit-learn's digits (top-1" in made[0].words
    assert standin(node(trained_up_to="conv3_1", std=0.2), tmp_path, "cpu") == made[0]
    assert standin(node(width=0.03), tmp_path, "cpu").path != made[0].path
    build_model(node(weights=str(made[0].path)))


@pytest.mark.usefixtures("few_digits")
def test_a_stopped_stand_in_goes_on(tmp_path, monkeypatch):
    evaluate = Training.evaluate
    monkeypatch.setattr(Training, "evaluate", lambda self: self.save() or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        standin(node(), tmp_path, "cpu")
    monkeypatch.setattr(Training, "evaluate", evaluate)
    monkeypatch.setattr(Training, "_learn", None)  # all steps are done
    assert standin(node(), tmp_path, "cpu").path.is_file()


@pytest.mark.usefixtures("few_digits")
def test_a_run_with_a_stand_in_says_so(vis_run):
    ran = vis_run("model=vgg_small", "model.width=0.02", "model.init=truncated_normal", "model.trained_up_to=conv3_1")
    weights = vis.load_run(ran.folder).rows()[0]["weights"]
    assert weights.startswith("a stand-in trained by the project on scikit-learn's digits (top-1")
    assert "up to conv3_1, random weights (truncated_normal" in weights
    assert (ran.folder.parents[1] / "standins").is_dir()


@pytest.mark.usefixtures("few_digits")
def test_a_run_looks_for_a_stand_in_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    register()
    run = Run(compose_config(["model=vgg_small", "model.width=0.02", f"outputs={tmp_path}", "device=cpu"]))
    whole = run.model()
    partly = run.model(init="truncated_normal", trained_up_to="conv3_1")
    assert "up to conv3_1" in partly.weights
    assert not torch.equal(whole.net.classifier[0].weight, partly.net.classifier[0].weight)
    assert caplog.text.count("no cifar10 in data") == 1


@pytest.mark.parametrize("trained_on", ["imagenet", "cifar10:nowhere"])
def test_a_stand_in_that_cannot_be(tmp_path, trained_on):
    with pytest.raises(UserError, match=f"trained_on={trained_on}"):
        standin(node(trained_on=trained_on), tmp_path, "cpu")


@pytest.mark.slow
def test_the_stand_in_knows_its_digits(tmp_path):
    words = standin(node(width=0.125, trained_on="digits"), tmp_path, "cpu").words
    assert float(words.rpartition("top-1 ")[2].split()[0]) > 97  # measured: 99.2


@pytest.mark.slow
def test_the_stand_in_knows_mnist(tmp_path, data):
    words = standin(node(width=0.125, trained_on=f"mnist:{data / 'mnist'}"), tmp_path, "cpu").words
    assert "MNIST train" in words
    assert float(words.rpartition("top-1 ")[2].split()[0]) > 97  # measured: 98.7
