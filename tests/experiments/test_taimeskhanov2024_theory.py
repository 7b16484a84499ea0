"""taimeskhanov2024's theory: its formulas against other ways to the same number, and each experiment from command to verdict."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.taimeskhanov2024 import proposition1, theorem1
from vis import load_run
from vis.data import mnist
from vis.methods import GradCAM, HiResCAM, XGradCAM


def claims(folder) -> dict:
    return {c["id"]: c for c in json.loads((Path(folder) / "claims.json").read_text(encoding="utf-8"))}


# --- Proposition 1 ----------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    V=st.integers(1, 3),
    L=st.integers(1, 4),
    kernel_pool=st.sampled_from([(3, 2), (5, 4), (1, 7), (2, 3)]),
    seed=st.integers(0, 99),
)
def test_the_closed_form_is_what_the_methods_compute(V, L, kernel_pool, seed):
    """Against this project's own CAMs on the whole network: alpha is what weighs B in their maps."""
    kernel, pool = kernel_pool
    net = proposition1.cnn(V, L, kernel, pool, width=4, seed=seed)
    x = torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    alpha = proposition1.coefficients(net, x, pool)
    B = net[:2](x[None]).detach()
    automatic = proposition1.by_autograd(net, x)
    for name, method in (("gradcam", GradCAM), ("xgradcam", XGradCAM), ("hirescam", HiResCAM)):
        np.testing.assert_allclose(alpha[name], automatic[name], rtol=1e-10, atol=1e-12)
        weights = torch.from_numpy(alpha[name])
        expected = (weights.view(V, *([1, 1] if weights.ndim == 1 else B.shape[2:])) * B[0]).sum(0).relu()
        map_ = method(layer="1")(net, x[None], targets=0)[0, 0]
        resized = torch.nn.functional.interpolate(expected[None, None], (28, 28), mode="bilinear")[0, 0]
        torch.testing.assert_close(map_, resized, rtol=1e-9, atol=1e-10)


def test_proposition_1_holds(vis_run):
    small = ("seeds=1", "dataset.limit=1", "experiment.filters=[1,3]", "experiment.layers=[1,2,3]")
    found = claims(vis_run("experiment=taimeskhanov2024/proposition1", *small).folder)
    assert set(found) == {"prop1_gradcam", "prop1_xgradcam", "prop1_hirescam"}
    assert {c["verdict"] for c in found.values()} == {"holds"}
    assert len(found["prop1_gradcam"]["values"]) == 6  # each V and L


# --- Theorem 1 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("V", [1, 2, 5])
def test_the_expectation_is_that_of_the_patterns_of_active_filters(V):
    """E[sqrt(Y)] by quadrature over the density of chi, given each number of active filters."""
    tau, norm = 0.7, 1.3
    x = np.linspace(0, 20, 200_001)
    total = 0.0
    for k in range(1, V + 1):
        density = x ** (k - 1) * np.exp(-(x**2) / 2) / (2 ** (k / 2 - 1) * math.gamma(k / 2))
        total += math.comb(V, k) / 2**V * float((x * density).sum() * (x[1] - x[0]))
    expected = tau**2 * norm * math.sqrt(14 * 14) / (2 * 28 * 28 * math.sqrt(math.pi)) * total
    assert theorem1.expectation(V, norm, tau) == pytest.approx(expected, rel=1e-6)


def test_the_papers_numbers_at_256_filters():
    norm = 0.0345 / theorem1.bound(256, 1.0, 1.0)  # of the patch of which they are
    assert theorem1.expectation(256, norm, 1.0) == pytest.approx(0.0528, abs=1e-4)


@given(st.integers(21, 2000))
def test_the_bound_is_below_the_expectation(V):
    assert 0 < theorem1.bound(V, 1.0, 1.0) < theorem1.expectation(V, 1.0, 1.0)


def test_theorem_1_and_its_appendix_hold(vis_run):
    small = ("seeds=2", "experiment.samples=500", "experiment.filters=[24,64]")
    folder = vis_run("experiment=taimeskhanov2024/theorem1", *small).folder
    found = claims(folder)
    assert set(found) == {"bound", "positive", "exact", "lemma_1", "lemma_2", "lemma_3"} | {
        f"eq_{n}" for n in (8, 10, 11, 12, 13)
    }
    assert {c["verdict"] for c in found.values()} == {"holds"}
    assert [found[f"eq_{n}"]["source"][-1] for n in (8, 10, 13)] == ["B", "D", "D"]
    results = load_run(folder)
    assert {row["V"] for row in results.rows()} == {24, 64}
    assert (folder / "figure.png").is_file()


def test_a_wrong_formula_would_be_found(vis_run, monkeypatch):
    monkeypatch.setattr(theorem1, "expectation", lambda V, norm, tau: 3 * theorem1.bound(V, norm, tau))
    small = ("seeds=1", "experiment.samples=500", "experiment.filters=[64]")
    found = claims(vis_run("experiment=taimeskhanov2024/theorem1", *small).folder)
    assert {name for name, c in found.items() if c["verdict"] == "fails"} == {"exact", "eq_12"}


# --- Figures 3 and 6 --------------------------------------------------------------------------------------------------


def test_figure_3_gradcam_highlights_what_the_network_cannot_see(vis_run):
    folder = vis_run("experiment=taimeskhanov2024/figure3", "seeds=2", "dataset.limit=2").folder
    found, results = claims(folder), load_run(folder)
    assert {c["verdict"] for c in found.values()} == {"holds"}
    assert {(row["first"], row["last"]) for row in results.rows()} == {(15, 28)}
    image, row = results.rows()[0]["image"], results.rows()[0]
    map_ = results.arrays[f"{image}/0"][0]
    assert row["mu"] == pytest.approx(np.linalg.norm(map_[15:]) / np.linalg.norm(map_), rel=1e-5)


def test_a_digit_is_padded_and_not_resized(data):
    digits = mnist(str(data / "mnist"))
    pixels = theorem1.digit(SimpleNamespace(dataset=digits), 3)
    assert torch.equal((pixels[0, :28, :28] * 255).round().byte(), torch.from_numpy(np.array(digits.read(3))))
    assert not pixels[0, 28].any()
    assert not pixels[0, :, 28].any()


def test_figure_6_shows_the_dead_zone_of_the_network(vis_run):
    folder = vis_run("experiment=taimeskhanov2024/figure6", "preset=small").folder
    results = load_run(folder)
    assert {(row["first"], row["last"]) for row in results.rows()} == {(27, 55)}
    assert len(results.rows()) == 5
    assert results.arrays["0/0"].shape == (1, 56, 28)
    assert (folder / "manifest.csv").is_file()
