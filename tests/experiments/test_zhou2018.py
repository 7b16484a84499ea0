"""zhou2018: its equations against other ways to the same number, and each figure from command to verdict, at a small size."""

import logging

import numpy as np
import pytest
import torch
from concluded import concluded
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.zhou2018 import (
    figure8,
    gaussian_fit,
    gaussian_inputs,
    geometric_mean,
    related_work,
)
from vis import metrics
from vis.data import digits, mnist
from vis.models import CNNMnist
from vis.windows.gaussian import PatchGaussian

# The MNIST network with random weights on digits, large windows far apart.
TINY = (
    "preset=tiny",
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


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.integers(2, 32))
def test_tangents_stay_within_a_quarter_of_the_change_of_slope_between_them(seed, k):
    for f in figure8.convex_functions(seed).values():
        assert (f.diff().diff() > -1e-12).all(), "it is convex"
        assert -1e-12 < figure8.by_tangents(f, k) <= 2 * (2 / (k - 1) + 1e-3) / 4
        assert figure8.of_a_concave(f) >= -1e-12


def test_equations_have_the_verdicts_that_algebra_gives_them():
    verdicts = {}
    for name, small in {
        "geometric_mean": ["experiment.draws=5"],
        "gaussian_inputs": ["seeds=1", "experiment.samples=2000"],
        "sigmoid": ["experiment.draws=5"],
        "figure8": ["seeds=2", "experiment.steps=3"],
    }.items():
        verdicts |= {id_: c["verdict"] for id_, c in concluded(f"experiment=zhou2018/{name}", *small)[1].items()}
    false = {"Z-2.1-m", "Z-2.1-n", "Z-2.1-p", "Z-3-d"}
    assert {id_ for id_, verdict in verdicts.items() if verdict == "fails"} == false
    assert verdicts["Z-2.1-j"] == "undecided", "two trainings"
    assert len(verdicts) == 2 + 10 + 7 + 4


def test_the_taylor_expansion_is_of_first_order_where_the_network_has_a_gradient():
    four = (*tiny("pda_fast")[1:], "dataset.limit=4", "experiment.windows=9")
    _, found = concluded("experiment=zhou2018/taylor", *four, "experiment.steps=[3e-5,1e-4,1.0]")
    assert found["Z-F19-a"]["verdict"] == "holds"


def test_a_gaussian_predicts_as_well_as_least_squares_on_the_patches_it_was_fitted_to():
    images = torch.randn(4, 1, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    learnt = PatchGaussian.fit(images, 6, 4000)
    small = {"digits": {}}
    found = gaussian_fit.GaussianFit(small, 4, 1000, 4000)._predict(learnt, images[0], 2, 0)
    patches = images.unfold(2, 6, 1).unfold(3, 6, 1).reshape(-1, 36).numpy()
    inside = np.zeros((6, 6), bool)
    inside[2:4, 2:4] = True
    x, y = patches[:, ~inside.ravel()], patches[:, inside.ravel()]
    ones = np.ones((len(x), 1))
    beta = np.linalg.lstsq(np.hstack([x, ones]), y, rcond=None)[0]
    own = images[0].unfold(1, 6, 1).unfold(2, 6, 1).reshape(-1, 36).numpy()
    rest = own[:, inside.ravel()] - np.hstack([own[:, ~inside.ravel()], np.ones((len(own), 1))]) @ beta
    expected = 1 - (rest**2).sum() / ((own[:, inside.ravel()] - images[0].mean().item()) ** 2).sum()
    assert found["R2"] == pytest.approx(expected, abs=0.03)
    assert abs(found["kurtosis of draws"]) < 0.5


# --- from command to verdict ------------------------------------------------------------------------------------------


def test_layers_that_are_linear_have_no_error_and_trainings_are_the_units():
    names = ("six_layers", "vgg16")
    random = [f"experiment.models.{n}.{k}" for n in names for k in ("weights=null", "init=kaiming_normal")]
    small = ("dataset=digits", "dataset.limit=2", "experiment.samples=20", "seeds=4")
    results, found = concluded("experiment=zhou2018/depth", *small, *random)
    assert len(results.rows()) == 2 * 4 * 2
    assert all(row["error"] < 1e-12 for row in results.rows("layers") if row["kind"] == "linear")
    assert all(min(each["values"]) > 0 for each in found["Z-3-s"]["compared"])
    assert len(found["Z-3-t"]["compared"][0]["values"]) == 4
    assert found["Z-3-t"]["kind"] == "replication"


def test_table_2s_formula_is_algorithm_3_with_windows_of_a_pixel_only():
    results, found = concluded("experiment=zhou2018/table2", *tiny("pda_gradient"))
    assert found["Z-T2-a"]["verdict"] == "fails"
    assert all(row["single"] < 1e-3 for row in results.rows())
    assert found["Z-1-k"]["verdict"] == "holds"
    assert found["Z-T2-b"]["verdict"] == "fails"


def test_a_cam_is_grad_cam_and_a_product_with_the_gradient_has_the_size_of_the_image():
    results, found = concluded(
        "experiment=zhou2018/related_work", *TINY, "dataset.limit=3", "model.init=kaiming_uniform"
    )
    assert (found["Z-1-l"]["verdict"], found["Z-1-n"]["verdict"]) == ("holds", "fails")
    assert all(row["bare_conservation"] < 1e-4 < row["shuffled_conservation"] for row in results.rows())
    assert {row["layer"] for row in results.rows("layers")} == {"last", "features.1"}
    assert found["Z-1-g"]["verdict"] == "not measured"


def test_a_pattern_is_moved_to_the_middle():
    map_ = torch.zeros(9, 9)
    map_[1, 7] = -2.0
    assert related_work.centred(map_)[0, 4, 4] == -2


def test_times_and_counts_follow_from_their_parts():
    one = ("~experiment.models.vgg16", "~experiment.models.googlenet", "methods.pda.samples=3")
    sizes = ("experiment.rounds=1", "experiment.windows=20", "experiment.batch=2", "experiment.pairs=2")
    results, found = concluded("experiment=zhou2018/figure12", *one, *sizes)
    (row,) = results.rows()
    assert row["windows"] == 215**2
    assert row["pda"] == pytest.approx(3 * row["forward"] + row["draw"])
    assert found["Z-1-v"]["compared"][0]["values"] == [pytest.approx(row["pda"] / row["efficient"])]
    verdicts = {id_: found[id_]["verdict"] for id_ in ("exact", "Z-2-a", "Z-2-b", "Z-2.1-c", "Z-2.1-v", "Z-F19-c")}
    assert verdicts.pop("Z-2-b") == "fails"
    assert set(verdicts.values()) == {"holds"}
    assert found["Z-F16-c"]["verdict"] == "not measured", "it is about VGG-16"


def test_table_1_counts_the_layers_and_needs_all_networks_for_ratios():
    two = ("~experiment.models.googlenet", "experiment.models.vgg16.input_size=32", "experiment.batch=1")
    _, found = concluded("experiment=zhou2018/table1", *two, "experiment.rounds=1")
    assert found["Z-3-r"]["verdict"] == "fails"
    assert found["Z-3-r"]["compared"][1]["values"] == [5]
    assert found["Z-2-c"]["verdict"] == "holds"
    assert found["Z-2-f"]["verdict"] == "not measured"


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
