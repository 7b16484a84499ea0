"""ayyar2021: its figures from command to verdict at a small size, and their numbers against other ways to the same."""

import hashlib

import numpy as np
import pytest
import torch
from concluded import concluded
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from experiments.ayyar2021 import figure9, figure10, gallery, influence, mosaic, perturbations
from vis.config.compose import compose_config
from vis.errors import UserError
from vis.models import VGGSmall
from vis.runner.experiment import Run

# The small network with random weights, on two photographs.
TINY = (
    "preset=tiny",
    "model=vgg_small",
    "model.weights=null",
    "model.init=kaiming_normal",
    "dataset.limit=2",
)


# --- Appendix A ---------------------------------------------------------------------------------------------------------


def test_the_equations_of_appendix_a_hold_in_float64():
    results, claims = concluded("experiment=ayyar2021/figure10")
    assert {c["verdict"] for c in claims.values()} == {"holds"}
    assert len(results.rows()) == 21
    Y, F, G = (results.arrays[name] for name in ("Y", "F", "G"))
    dY = results.arrays["dY"]  # Eq. (32), entries with one, two and four terms
    assert dY[0, 0] == G[0, 0] * F[0, 0]
    assert dY[0, 1] == G[0, 0] * F[0, 1] + G[0, 1] * F[0, 0]
    assert dY[1, 1] == G[0, 0] * F[1, 1] + G[0, 1] * F[1, 0] + G[1, 0] * F[0, 1] + G[1, 1] * F[0, 0]
    assert results.arrays["O"][0, 0] == (Y[:2, :2] * F).sum()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 999))
def test_full_convolution_is_the_adjoint_of_the_convolution(C, K, k, length, seed):
    generator = torch.Generator().manual_seed(seed)
    Y, F, G = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((1, C, k + 3, length + 2), (K, C, k, length), (1, K, 4, 3))
    )
    forward = (torch.nn.functional.conv2d(Y, F) * G).sum()
    torch.testing.assert_close((Y * figure10.full_convolution(G, F)).sum(), forward, rtol=1e-11, atol=1e-11)


def test_a_filter_that_is_not_turned_is_found_wrong(monkeypatch):
    Y, F, G = (torch.arange(1.0, n * n + 1).view(n, n).double() for n in (3, 2, 2))
    turned = figure10.full_convolution
    monkeypatch.setattr(figure10, "full_convolution", lambda g, f: turned(g, f.flip(2, 3)))
    errors, _, _ = figure10.compared(Y[None], F[None, None], G[None])
    assert errors["eq33"] > 1
    assert errors["deconvnet"] > 1
    assert errors["eq32"] == 0


def test_matrices_of_the_wrong_size_are_the_users_mistake():
    with pytest.raises(UserError, match="2x2"):
        figure10.Figure10([[1, 2, 3]] * 3, [[1, 2]] * 2, [[1, 2, 3]], 0)


# --- numbers of a map ---------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.floats(1e-3, 1e3))
def test_numbers_of_a_map_do_not_depend_on_its_scale(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    maps, pixels = torch.randn(2, 3, 9, 9, generator=generator), torch.rand(2, 3, 9, 9, generator=generator)
    found, scaled = gallery.numbers_of(maps, pixels), gallery.numbers_of(scale * maps, pixels)
    for name in found:
        torch.testing.assert_close(found[name], scaled[name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[name][1:], gallery.numbers_of(maps[1:], pixels[1:])[name])


def test_numbers_of_a_map_by_hand():
    map_ = torch.zeros(1, 2, 4, 4)
    map_[0, 0, 0, 0], map_[0, 1, 1, 1], map_[0, 1, 2, 2] = -4.0, 4.0, 1.0
    found = gallery.numbers_of(map_, torch.rand(1, 1, 4, 4))
    assert found["high"] == 2 / 16  # |-4| and 4 are above 2
    assert found["spread"] == pytest.approx((16 + 16 + 1) ** 2 / (16 * (256 + 256 + 1)))
    assert gallery.numbers_of(torch.zeros(1, 1, 4, 4), torch.rand(1, 1, 4, 4))["high"].isnan()


def test_sobel_is_scipys():
    gray = np.random.default_rng(0).random((7, 9))
    expected = np.hypot(*(ndimage.sobel(gray, axis, mode="nearest") for axis in (0, 1)))
    np.testing.assert_allclose(gallery.sobel(torch.from_numpy(gray)[None, None])[0, 0], expected, atol=1e-12)


def test_a_map_is_as_sharp_as_its_contours_are_the_images():
    pixels = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    assert gallery.numbers_of(pixels, pixels)["sharpness"] > 0.95
    assert abs(gallery.numbers_of(noise, pixels)["sharpness"]) < 0.2


def test_the_cutoff_is_the_frequency_of_a_wave():
    wave = torch.sin(2 * np.pi * 0.125 * torch.arange(32, dtype=torch.float64)).expand(1, 1, 32, 32)
    assert gallery.cutoff(wave + 3) == pytest.approx(0.125)


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_where_a_map_lies_by_hand(share):
    ones = torch.zeros(1, 1, 10, 10)
    ones.flatten()[: int(100 * share)] = 1
    found = figure9.lies(ones, torch.rand(1, 1, 10, 10), torch.rand(1, 1, 10, 10), ones.bool())
    assert found["area"] == pytest.approx(0.8 * share, abs=0.011)
    assert found["covered"] == pytest.approx(min(1, 0.2 / share))


# --- figures ------------------------------------------------------------------------------------------------------------


def test_figure5_has_the_numbers_of_the_four_panels():
    results, claims = concluded("experiment=ayyar2021/figure5")
    assert {id_: c["verdict"] for id_, c in claims.items()} == {
        "A-4.2-a": "holds",
        "A-4.2-b": "fails",
        "A-4.3-a": "holds",
    }
    np.testing.assert_array_equal(results.arrays["saliency"], [[-2, 0, -1], [6, 0, 0], [0, -1, 3]])
    np.testing.assert_array_equal(results.arrays["deconvnet"], [[0, 3, 0], [6, 0, 1], [2, 0, 3]])
    np.testing.assert_array_equal(results.arrays["gbp"], [[0, 0, 0], [6, 0, 0], [0, 0, 3]])


@pytest.mark.parametrize(("number", "count"), [(4, 1), (6, 2), (8, 3), (9, 9)])
def test_galleries_on_random_weights_measure_only_what_is_exact(number, count):
    results, claims = concluded(f"experiment=ayyar2021/figure{number}", *TINY, "dataset.limit=4")
    assert len(claims) == count
    exact = {"A-3.3-a": "fails", "A-F9-f": "holds"}
    for id_, claim in claims.items():
        assert claim["verdict"] == exact.get(id_, "not measured")
        assert id_ in exact or "random" in claim["measured"]
    assert {row["method"] for row in results.rows()} >= set(results.config.methods)


def test_a_gallery_on_another_trained_network_replicates(tmp_path):
    weights = tmp_path / "weights.pt"
    torch.manual_seed(0)
    torch.save(VGGSmall(width=0.125).state_dict(), weights)
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    words = (f"model.weights={weights}", "model=vgg_small", "dataset.limit=4")
    _, claims = concluded("experiment=ayyar2021/figure6", *words)
    assert claims["A-4.3-d"]["kind"] == "replication"
    assert claims["A-4.3-d"]["differences"] == [
        "vgg_small instead of resnet34",
        f"vgg_small, weights weights.pt (sha256 {sha256[:8]}), instead of published weights",
        "other images than buildings of MexCulture",
    ]
    assert claims["A-4.3-c"]["kind"] == "replication"
    assert {c["verdict"] for c in claims.values()} <= {"holds", "fails", "undecided"}
    _, claims = concluded("experiment=ayyar2021/figure6", *words[:2], "dataset.limit=1")
    assert {c["verdict"] for c in claims.values()} == {"undecided"}


def test_figure1_the_largest_loss_is_the_largest_of_all_windows():
    results, claims = concluded("experiment=ayyar2021/figure1", *TINY)
    for fact in results.rows():
        windows = results.rows("windows", image=fact["image"])
        assert len(windows) == 4
        assert max(w["loss"] for w in windows) == windows[-1]["loss"]
        assert windows[-1]["loss"] >= results.arrays[f"{fact['image']}/map"].max()
        at = (slice(None), *(slice(windows[-1][side], windows[-1][side] + 8) for side in ("top", "left")))
        assert results.arrays[f"{fact['image']}/covered"][-1][at] == pytest.approx(0.5, abs=1e-6), "gray"
    assert claims["A-2.1-d"]["verdict"] == "not measured"
    with pytest.raises(UserError, match="occlusion"):
        concluded("experiment=ayyar2021/figure1", *TINY, "method=[saliency]")


def test_a_mosaic_shows_four_photographs_in_cells_that_do_not_overlap():
    run = Run(compose_config(("experiment=ayyar2021/figure1", *TINY[:4], "dataset.limit=4")))
    _, classes, cells = mosaic.mosaic(run, 1)
    assert len(classes) == 4
    assert cells.sum(0).eq(1).all()
    assert cells[0, 0, 0, -1], "the first photograph of index 1 is at the upper right"
    assert mosaic.share_on(torch.ones(1, 1, 32, 32), cells[2]) == 0.25


def test_figure7_goes_from_black_to_the_image_and_converges():
    results, claims = concluded("experiment=ayyar2021/figure7", *TINY, "dataset.limit=4", "precision=float64")
    path = results.arrays["tabby"]
    assert len(path) == 7
    assert abs(path[0]).max() < 1e-6
    np.testing.assert_allclose(path[3], path[6] / 2, atol=1e-6)
    assert claims["A-4.4-a"]["verdict"] == "holds"
    with pytest.raises(UserError, match="integrated_gradients"):
        concluded("experiment=ayyar2021/figure7", *TINY, "method=[saliency]")


def test_figures_2_and_3_have_the_sizes_of_the_layers():
    results, claims = concluded("experiment=ayyar2021/figure2")
    shapes = [row["shape"] for row in results.rows()]
    assert shapes[0] == [3, 224, 224]
    assert shapes[1] == [64, 55, 55]
    assert shapes[-1] == [10]
    assert claims["A-3.1-b"]["verdict"] == "fails"
    assert [row["block"] for row in results.rows("convolutions")] == [1, 1, 0, 0, 1], "AlexNet"
    results, claims = concluded("experiment=ayyar2021/figure3", *TINY[1:4])
    assert claims["A-3.1-c"]["verdict"] == "holds"
    with pytest.raises(UserError, match="model=alexnet"):
        concluded("experiment=ayyar2021/figure2", "model=resnet50_random")


def test_without_the_papers_weights_the_error_names_the_small_preset(vis_run):
    ran = vis_run("experiment=ayyar2021/figure6")
    assert ran.code in (0, 2)  # 0 where the weights are there
    assert ran.code == 0 or "preset=tiny" in ran.err


# --- definitions, networks, influence, perturbations, SmoothGrad --------------------------------------------------------


def test_definitions_hold_and_fail_as_the_ledger_says():
    _, claims = concluded("experiment=ayyar2021/definitions", "seeds=2")
    fails = {id_ for id_, claim in claims.items() if claim["verdict"] == "fails"}
    assert fails == {"A-3.2-b", "A-4.2-c", "A-4.2-f"}
    assert {c["verdict"] for id_, c in claims.items() if id_ not in fails} == {"holds"}
    off = claims["A-4.2-g"]["compared"][0]["control_values"]
    assert min(off) > 1e-3, "the rectification makes a difference"


def test_networks_are_told_apart_by_their_functions():
    results, claims = concluded("experiment=ayyar2021/networks", "experiment.archs=[squeezenet1_1,mobilenet_v3_small]")
    found = {row["arch"]: (row["relu"], row["max_pool"], row["gradcam"]) for row in results.rows()}
    assert found == {"squeezenet1_1": (1, 1, 1), "mobilenet_v3_small": (1, 0, 1)}
    assert claims["A-3.1-a"]["verdict"] == claims["A-4.6-f"]["verdict"] == "holds"
    assert claims["A-3.1-d"]["verdict"] == "undecided"


def test_the_influence_of_pixels_in_a_linear_network():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    x, generator = torch.rand(1, 8, 8), torch.Generator().manual_seed(0)
    w = net[1].weight[0].detach().view(1, 8, 8)
    maps = {"saliency": w, "integrated_gradients": w * x, "lrp": w * x, "deconvnet": w, "gradcam": w.relu()[None]}
    item = influence.Influence("", cells=4, step=0.1, radii=[0.01], directions=8)
    found = item.of_image(net, x, [0, 0], maps, generator)
    assert found["saliency"]["R2 0.01"] == pytest.approx(1, abs=1e-3)
    assert found["saliency"]["along_negative"] < 0 < found["saliency"]["along_positive"]
    step = 0.1 * (x.max() - x.min()).item() * w.abs().max().item()
    assert found["saliency"]["change"] == pytest.approx(step / net(x)[0, 0].abs().item(), rel=1e-3)
    assert found["saliency"]["change"] >= found["random"]["change"]


def test_a_random_mask_has_the_values_of_the_mask_and_is_smooth():
    mask = torch.rand(1, 1, 28, 28) ** 4
    random = perturbations.rearranged(mask, seed=0)
    torch.testing.assert_close(random.flatten().sort().values, mask.flatten().sort().values)
    assert perturbations.roughness(random) < perturbations.roughness(mask)


def test_perturbations_are_judged_in_a_small_run():
    results, claims = concluded(
        "experiment=ayyar2021/perturbations", *TINY, "dataset=photographs", "dataset.limit=1", "methods.lime.samples=30",
        "methods.meaningful_perturbation.iterations=4", "experiment.fresh=20", "experiment.masks=2",
    )  # fmt: skip
    assert set(claims) == {"A-2.1-c", "A-2.1-e", "A-2.1-f"}
    assert results.rows()[0]["R2"] <= 1


def test_smoothgrad_is_judged_within_its_range_of_noise():
    results, claims = concluded(
        "experiment=ayyar2021/sparsity", *TINY, "dataset=photographs", "methods.smoothgrad.samples=2"
    )
    assert set(claims) == {"A-4.5-a", "A-4.5-b", "A-4.5-c", "focus"}
    within = results.rows("levels", method="within", image="tabby")[0]["sharpness"]
    rows = {row["method"]: row["sharpness"] for row in results.rows(image="tabby")}
    assert within == pytest.approx((rows["smoothgrad_10"] + rows["smoothgrad"] + rows["smoothgrad_20"]) / 3)
    assert len(claims["A-4.5-b"]["compared"]) == 4
