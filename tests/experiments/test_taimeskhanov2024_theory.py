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
from PIL import Image

from experiments.taimeskhanov2024 import definitions, proposition1, theorem1
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


def test_proposition_1(vis_run):
    small = ("seeds=1", "dataset.limit=1", "experiment.filters=[1,3]", "experiment.layers=[1,2,3]")
    found = claims(vis_run("experiment=taimeskhanov2024/proposition1", *small).folder)
    verdicts = {id_: c["verdict"] for id_, c in found.items()}
    assert verdicts.pop("T-C-b") == "fails", "windows of zeros have as many maxima as positions"
    assert set(verdicts) == {"T-2.1-c", "T-P1", "T-P1-b", "T-P1-c", "T-C-a"}
    assert set(verdicts.values()) == {"holds"}
    assert {c["kind"] for c in found.values()} == {"reproduction"}
    assert [len(found[id_]["compared"][0]["values"]) for id_ in ("T-P1", "T-P1-b")] == [3, 3]


# --- Definitions ------------------------------------------------------------------------------------------------------


def test_what_the_paper_says_of_its_definitions(vis_run, monkeypatch):
    monkeypatch.setattr(definitions, "STEPS", 20)
    found = claims(vis_run("experiment=taimeskhanov2024/definitions", "seeds=4", "dataset.limit=1").folder)
    verdicts = {id_: c["verdict"] for id_, c in found.items()}
    del verdicts["T-D6"]  # it takes all the steps
    assert {id_ for id_, v in verdicts.items() if v == "fails"} == {"T-1-a", "T-3.3-e", "T-D3", "T-D7", "T-2.1-b"}
    held = {"T-1-b", "T-2.2-a", "T-2.3-d", "T-D1", "T-D2", "T-D5", "T-A-a", "T-A-b"}
    assert {id_ for id_, v in verdicts.items() if v == "holds"} == held
    positive, negative = (each["values"] for each in found["T-D7"]["compared"])
    assert (set(positive), set(negative)) == ({1.0}, {-1.0}), "a weight falls with the drop where the score is negative"


def test_global_weights_are_found_where_there_are_any():
    B = torch.rand(5, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha = torch.tensor([1.0, -2, 0, 3, 0.5], dtype=torch.float64)
    found, residual = definitions.global_weights((alpha[:, None, None] * B).sum(0), B)
    torch.testing.assert_close(found, alpha)
    assert residual < 1e-14
    assert definitions.global_weights((B * B).sum(0), B)[1] > 0.01


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


THEOREM1 = ("experiment=taimeskhanov2024/theorem1", "experiment.filters=[24,64]")


def test_theorem_1_and_its_appendix(vis_run):
    small = ("seeds=4", "experiment.samples=8000", "experiment.networks=100", "experiment.taus=[1.0,2.0]")
    folder = vis_run(*THEOREM1, *small).folder
    verdicts = {id_: c["verdict"] for id_, c in claims(folder).items()}
    assert verdicts.pop("T-E8") == "fails", "tau^2 is missing, which tau = 1 hides"
    assert verdicts.pop("T-D-a") == "fails", "there is a closed form"
    assert set(verdicts) == {"T-T1", "T-2.3-b", "T-L1", "T-L2", "T-L3", "T-D-10", "T-D-11", "T-D-12", "T-D-13"}
    assert set(verdicts.values()) == {"holds"}
    assert (folder / "bound.csv").is_file()
    assert (folder / "figure.png").is_file()


def test_twice_the_bound_and_a_wrong_closed_form_would_be_found(vis_run, monkeypatch):
    once = theorem1.bound
    monkeypatch.setattr(theorem1, "bound", lambda V, norm, tau: 2 * once(V, norm, tau))
    monkeypatch.setattr(theorem1, "expectation", lambda V, norm, tau: 3 * once(V, norm, tau))
    small = (
        "seeds=4",
        "experiment.samples=500",
        "experiment.networks=60",
        "experiment.filters=[256]",
        "experiment.taus=[1.0]",
    )
    found = claims(vis_run(*THEOREM1[:1], *small).folder)
    assert (found["T-T1"]["verdict"], found["T-D-a"]["verdict"]) == ("fails", "holds")


def test_covariances_are_those_of_the_patches():
    """Eq. (8) with tau = 1: the slope is 1, and not with larger patches."""
    image = torch.rand(1, 29, 29, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([400, 500, 780])
    found = theorem1.covariance(image, positions, 1.0, 2000, torch.Generator().manual_seed(0))
    assert found["slope"] == pytest.approx(1, abs=0.02)
    assert found["slope 3x3"] < 0.9


# --- Figures 3 and 6 --------------------------------------------------------------------------------------------------


def test_figure_3_gradcam_of_a_fixed_class(vis_run):
    folder = vis_run("experiment=taimeskhanov2024/figure3", "seeds=40", "dataset.limit=1").folder
    found, results = claims(folder), load_run(folder)
    assert [found[id_]["verdict"] for id_ in ("T-2.3-a", "T-2.3-c")] == ["holds", "fails"]
    assert [found[id_]["kind"] for id_ in ("T-2.3-a", "T-F3")] == ["reproduction", "replication"]
    assert "scikit-learn's digits" in found["T-F3"]["differences"][0]
    assert {(row["first"], row["last"]) for row in results.rows()} == {(15, 28)}
    row = next(row for row in results.rows() if row["mu"])
    map_ = results.arrays[f"{row['image']}/{row['seed']}"][0]
    assert row["mu"] == pytest.approx(np.linalg.norm(map_[15:]) / np.linalg.norm(map_), rel=1e-5)
    assert len(results.arrays) == 1 + 6, "only the maps of the figure are kept"


def test_a_digit_is_padded_and_not_resized(data):
    digits = mnist(str(data / "mnist"))
    pixels = theorem1.digit(SimpleNamespace(dataset=digits), 3)
    assert torch.equal((pixels[0, :28, :28] * 255).round().byte(), torch.from_numpy(np.array(digits.read(3))))
    assert not pixels[0, 28].any()
    assert not pixels[0, :, 28].any()


def test_figure_6_shows_the_dead_zone_of_the_network(vis_run):
    folder = vis_run("experiment=taimeskhanov2024/figure6", "preset=tiny").folder
    results = load_run(folder)
    assert {(row["first"], row["last"]) for row in results.rows()} == {(27, 55)}
    assert len(results.rows()) == 5
    assert results.arrays["0/0"].shape == (1, 56, 28)
    assert (folder / "manifest.csv").is_file()
    assert {c["verdict"] for c in claims(folder).values()} == {"not measured"}


def test_figure_6_compares_built_images_with_their_parts(vis_run, tmp_path):
    rng = np.random.default_rng(0)
    for k in range(3):
        for i in range(2):
            (tmp_path / "val" / f"n{k}").mkdir(parents=True, exist_ok=True)
            noise = Image.fromarray(rng.integers(0, 255, (30, 30, 3), dtype=np.uint8)).resize((240, 230))
            noise.save(tmp_path / "val" / f"n{k}" / f"{i}.png")
    stacks = ("dataset=stack_mix_imagenet", f"dataset.path={tmp_path}")
    found = claims(vis_run("experiment=taimeskhanov2024/figure6", *stacks, f"experiment.stack_gen={tmp_path}").folder)
    assert (found["T-E6"]["verdict"], found["T-E6"]["kind"]) == ("holds", "replication")
    assert found["T-E6"]["compared"][0]["control_values"][0] > 0
    assert "labels" in found["T-3.2-a"]["measured"], "three class folders are not ImageNet's thousand"
    assert len(found["T-3.2-c"]["compared"][1]["values"]) == 6


def test_which_band_of_an_image_matters(vis_run):
    folder = vis_run("experiment=taimeskhanov2024/centred", "model=vgg_small", "model.init=kaiming_normal", "model.weights=null",
                     "dataset=digits", "dataset.limit=6").folder  # fmt: skip
    (claim,) = claims(folder).values()
    assert claim["id"] == "T-3.1-h"
    assert claim["kind"] == "replication"
    assert {"lost, bottom", "lost, top", "lost, middle"} < load_run(folder).rows()[0].keys()
