"""zhou2018: its equations against other ways to the same number, and each figure from command to verdict, at a small size."""

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from concluded import concluded
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.zhou2018 import evidence, figure18, gaussian_inputs, geometric_mean
from vis import metrics
from vis.config.compose import compose_config, options
from vis.data import digits, mnist
from vis.methods import Target
from vis.models import CNNMnist
from vis.runner.experiment import Run
from vis.store.run_folder import Results

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


# --- maps -------------------------------------------------------------------------------------------------------------


def test_a_map_is_the_methods_own_however_its_windows_are_cut():
    small = ("experiment=zhou2018/figure14", *tiny("pda", "pda_fast"), "precision=float64", "methods.pda.samples=2")
    one, _ = concluded(*small)
    cut, _ = concluded(*small, "experiment.windows=13")
    assert len(one.rows()) == 4  # two images, two methods
    assert len(cut.rows()) == 4 * 3  # 36 windows, with the last row and column
    assert evidence.images_of(cut) == ["digit_0000", "digit_0001"]
    run = Run(one.config)
    model = run.model()
    evidence.learn(run, model, own_images=True)
    for i, image in enumerate(evidence.images_of(one)):
        x = run.batch(model, [i]).x
        for name, method in run.methods.items():
            expected = method(model.net, x, Target(int(model.net(x).argmax())))[0].numpy()
            for results in (one, cut):
                np.testing.assert_allclose(evidence.map_of(results, image, name), expected, atol=1e-9)


def test_a_killed_run_goes_on_and_ends_with_equal_bytes(vis_run, monkeypatch):
    small = ("experiment=zhou2018/figure14", *tiny("pda", "pda_fast"), "experiment.windows=18", "dataset.limit=1")
    whole = vis_run(*small).folder
    compute, calls = evidence.EvidenceMaps.compute, []

    def killed(self, run, unit):
        calls.append(unit)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(self, run, unit)

    monkeypatch.setattr(evidence.EvidenceMaps, "compute", killed)
    before = set(whole.parent.iterdir())
    assert vis_run(*small).code != 0
    (stopped,) = set(whole.parent.iterdir()) - before
    assert vis_run("--resume", str(stopped)).folder == stopped
    assert len(calls) == 3 + 4 - 2
    assert (stopped / "maps.npz").read_bytes() == (whole / "maps.npz").read_bytes()
    assert (stopped / "claims.json").read_bytes() == (whole / "claims.json").read_bytes()
    assert (stopped / "figure.png").read_bytes() == (whole / "figure.png").read_bytes()


def test_without_weights_the_way_out_is_named(vis_run, tmp_path):
    for name in ("figure14", "figure11"):
        ran = vis_run(f"experiment=zhou2018/{name}")
        assert ran.code == 2
        assert "preset=small" in ran.err
    assert not list((tmp_path / "outputs").glob("*/*"))


@pytest.mark.parametrize(
    ("name", "methods", "extra"),
    [
        ("figure9", ["pda"], ["experiment.samples=20"]),
        ("figure11", ["pda_fast"], ["experiment.samples=20"]),
        ("figure15", ["pda", "pda_fast"], ["methods.pda.samples=2", "+methods.pda_fast_sampled.stride=5"]),
        ("figure16", ["pda_fast"], ["experiment.samples=100", "experiment.draws=3"]),
        ("figure17", ["pda_fast"], ["+experiment.part={digit_0000: [0, 0, 1, 1]}"]),
        ("figure19", ["pda_fast", "pda_gradient"], []),
    ],
)
def test_a_figure_says_of_the_paper_nothing_and_of_what_is_here_something(name, methods, extra):
    _, found = concluded(f"experiment=zhou2018/{name}", *tiny(*methods), *extra)
    here = {n for n in found if n.startswith("here_")}
    assert here
    for n in here:
        assert found[n]["verdict"] != "not measured" or "box" in found[n]["measured"]
        assert found[n.removeprefix("here_")]["verdict"] == "not measured"


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


def test_figure_13_counts_and_takes_a_digit_of_each_class():
    small = [o for o in tiny("pda", "pda_fast") if "patch" not in o]
    results, found = concluded("experiment=zhou2018/figure13", *small, "dataset.limit=40", "methods.pda.samples=2")
    assert found["accuracy"]["verdict"] == "not measured", "it is not MNIST's"
    assert [row["label"] for row in results.rows("images")] == list(range(10))
    assert sum(row["images"] for row in results.rows("accuracy")) == 40


def test_all_views_of_an_image_are_explained_for_its_class():
    results, _ = concluded("experiment=zhou2018/figure18", *tiny("pda_fast"))
    rows = results.rows("images")
    assert [row["image"] for row in rows[:3]] == ["digit_0000", "digit_0000 rotated", "digit_0000 flipped"]
    assert len({row["unit"] for row in rows}) > 1
    for i in range(0, len(rows), 5):
        assert len({row["unit"] for row in rows[i : i + 5]}) == 1


def test_what_a_rotation_moves_is_put_back():
    image = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    quarter = figure18._rotation(math.pi / 2)
    torch.testing.assert_close(figure18.moved(image, quarter), image.rot90(1, (2, 3)), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        figure18.moved(figure18.moved(image, quarter), torch.linalg.inv(quarter)), image, atol=1e-5, rtol=0
    )
    figure = figure18.Figure18([20, -45], [0.25, 0.0, 0.75, 0.5], source="")
    torch.testing.assert_close(figure.view(image, "flipped"), image.flip(3))
    enlarged = figure.view(image, "cropped")
    assert enlarged[..., 0:2, 0:2].mean() == pytest.approx(float(image[..., 2, 0].mean()), abs=0.35)


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


def test_a_verdict_of_the_papers_needs_its_network_and_its_windows():
    def why(**model: object) -> str:
        config = compose_config(["experiment=zhou2018/figure14", "methods.pda.patch=14", "model.weights=torchvision"])
        config.model.update(model)
        return evidence.not_the_papers(Results({}, {}, config, Path()))

    assert why() == "patch is 14 (paper: 18)"
    assert why(num_classes=10) == "num_classes is 10 (paper: 1000), patch is 14 (paper: 18)"
    assert why(weights="standin") == "stand-in weights, not ImageNet's"
    assert why(weights=None) == "random weights"


@pytest.mark.parametrize("item", sorted(name for name in options("experiment") if name.startswith("zhou2018/figure")))
def test_at_small_sizes_a_network_of_digits_sees_digits(item):
    config = compose_config([f"experiment={item}", "preset=small"])
    assert (
        config.get("model") is None or config.model.name != "cnn_mnist" or config.dataset._target_ == "vis.data.mnist"
    )


def test_a_small_size_of_a_dataset_keeps_its_other_parameters():
    assert compose_config(["experiment=zhou2018/figure16", "preset=small"]).dataset.limit == 4
    chosen = compose_config(["experiment=zhou2018/figure16", "preset=small", "dataset=samples"]).dataset
    assert (chosen._target_, chosen.limit, "option" in chosen) == ("vis.data.samples", 4, False)
