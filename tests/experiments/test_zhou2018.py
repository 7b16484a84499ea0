"""zhou2018: its equations against other ways to the same number, and each figure from command to verdict, at a small size."""

import logging

import numpy as np
import pytest
import torch
from concluded import concluded
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.zhou2018 import gaussian_inputs, geometric_mean
from vis import metrics
from vis.data import digits, mnist
from vis.models import CNNMnist

# The MNIST network with random weights on digits, large windows far apart.
TINY = (
    "preset=small",
    "model=cnn_mnist",
    "model.weights=null",
    "model.init=kaiming_normal",
    "dataset=digits",
    "dataset.limit=2",
)


def tiny(*methods: str) -> tuple[str, ...]:
    return TINY + tuple(
        f"methods.{m}.{k}={v}" for m in methods for k, v in {"window": 6, "patch": 10, "stride": 5}.items()
    )


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for handler in logging.getLogger().handlers[:]:
        if isinstance(handler, logging.FileHandler):  # of another test's run, whose folder is gone
            logging.getLogger().removeHandler(handler)


# --- equations --------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(1, 8), st.integers(0, 999))
def test_the_geometric_mean_of_softmaxes_is_the_softmax_of_the_mean(K, S, seed):
    random = np.random.default_rng(seed)
    z, P = 5 * random.standard_normal((S, K)), random.dirichlet(np.ones(S))
    by_logs = np.exp(P @ np.log(geometric_mean.softmax(z)))
    ours = geometric_mean.geometric_mean(geometric_mean.softmax(z), P)
    np.testing.assert_allclose(ours, by_logs / by_logs.sum(), rtol=1e-12)
    np.testing.assert_allclose(ours, geometric_mean.softmax(P @ z), rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.floats(-8, 8), st.floats(0.1, 5))
def test_the_error_of_a_relu_is_that_of_scipys_quadrature(mu, sigma):
    from scipy import integrate, stats

    density = stats.norm(mu, sigma).pdf
    expected = integrate.quad(lambda x: x * density(x), 0, max(mu, 0) + 40 * sigma, points=[max(mu, 0)], limit=200)[0]
    error = abs(expected - max(mu, 0))
    assert gaussian_inputs.relu_error(mu, sigma) == pytest.approx(error, abs=1e-7 * (1 + abs(mu)))
    by_parts = gaussian_inputs.relu_error_by_quadrature(mu, sigma)
    assert gaussian_inputs.relu_error(mu, sigma) == pytest.approx(by_parts, abs=1e-12 * (1 + abs(mu)))


@pytest.mark.parametrize(
    ("name", "small"),
    [
        ("geometric_mean", ["experiment.draws=5"]),
        ("gaussian_inputs", ["seeds=1", "experiment.samples=2000"]),
        ("sigmoid", ["experiment.draws=5"]),
        ("figure8", []),
    ],
)
def test_the_equations_hold(name, small):
    _, found = concluded(f"experiment=zhou2018/{name}", *small)
    assert {c["verdict"] for c in found.values()} == {"holds"}


def test_the_taylor_expansion_is_of_first_order_where_the_network_has_a_gradient():
    _, found = concluded("experiment=zhou2018/taylor", *tiny("pda_fast")[1:], "experiment.steps=[3e-5,1e-4,1.0]")
    assert found["eq37"]["verdict"] == "holds"


def test_the_approximations_error_is_larger_in_the_deeper_network_or_it_is_said():
    names = ("six_layers", "vgg11", "vgg16")
    random = [f"experiment.models.{n}.{k}" for n in names for k in ("weights=null", "init=kaiming_normal")]
    results, found = concluded(
        "experiment=zhou2018/depth", "dataset=digits", "dataset.limit=2", "experiment.samples=20", *random
    )
    assert len(results.rows()) == 3 * 2
    assert found["deeper"]["verdict"] == "not measured"
    assert len(found["here_deeper"]["values"]) == 2


def test_table_2s_formula_is_algorithm_3_with_windows_of_a_pixel():
    _, found = concluded("experiment=zhou2018/table2", *tiny("pda_gradient"))
    assert found["formula"]["verdict"] == "holds"


def test_the_times_of_an_image_follow_from_their_parts():
    one = ("~experiment.models.vgg16", "~experiment.models.googlenet", "methods.pda.samples=3")
    sizes = ("experiment.rounds=1", "experiment.windows=20", "experiment.batch=2")
    results, found = concluded("experiment=zhou2018/figure12", *one, *sizes)
    (row,) = results.rows()
    assert row["windows"] == 215**2
    assert found["exact"]["verdict"] == "holds"
    pda, fast = 3 * row["forward"] + row["draw"], row["forward"] + row["mean"]
    assert found["ten"]["values"] == [pytest.approx(pda / fast)]
    assert found["expensive"]["verdict"] == "not measured", "there is one network"


# --- what they stand on -----------------------------------------------------------------------------------------------


def test_the_mnist_network_is_tensorflows():
    assert sum(p.numel() for p in CNNMnist().parameters()) == 3_274_634
    assert CNNMnist()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(ValueError, match="4x4 or more"):
        CNNMnist(input_size=3)


def test_mnist_falls_back_to_digits_only_where_asked(tmp_path):
    train, test = (mnist(str(tmp_path), train=part, fallback=True) for part in (True, False))
    assert sorted([*train.names, *test.names]) == sorted(digits().names)
    with pytest.raises(Exception, match="MNIST can neither be read"):
        mnist(str(tmp_path))


def test_sim_and_total_variation_by_hand():
    a = torch.tensor([[1.0, 3.0], [0.0, -5.0]])[None, None]
    b = torch.tensor([[2.0, 1.0], [1.0, 9.0]])[None, None]
    assert float(metrics.sim(a, b)) == pytest.approx(min(1 / 4, 2 / 13) + min(3 / 4, 1 / 13))
    assert float(metrics.sim(a, 7 * a)) == pytest.approx(1)
    assert float(metrics.total_variation(a)) == pytest.approx((2 + 5 + 1 + 8) / 9)
