"""ayyar2021, section 7: attacks and shattering against other ways to the same; each experiment from command to verdict."""

import json
import time

import numpy as np
import pytest
import torch
from concluded import concluded
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score
from test_ayyar2021 import TINY
from torch import nn

from experiments.ayyar2021 import fem, people, shattering, sparsity
from experiments.ayyar2021.attacks import moved, random_signs
from experiments.ayyar2021.cost import Cost
from experiments.ayyar2021.similarity import area
from vis.config.compose import compose_config
from vis.errors import UserError
from vis.methods import IntegratedGradients, Method, NotApplicable, Saliency
from vis.metrics.attacks import deepfool, equal_noise, fgsm, one_pixel
from vis.models import CifarResNet
from vis.runner.experiment import Run
from vis.store.run_folder import load_run


def linear(seed: int, classes: int = 4, side: int = 3) -> tuple[nn.Module, torch.Tensor]:
    """A linear classifier in float64 and two images in the middle of [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2 * side * side, classes)).double().requires_grad_(False)
    for p in net.parameters():
        p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return net, 0.4 + 0.2 * torch.rand(2, 2, side, side, generator=generator, dtype=torch.float64)


# --- attacks ------------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999))
def test_deepfool_on_a_linear_network_is_the_closed_form(seed):
    net, x = linear(seed)
    f, W = net(x), net[1].weight
    for image, logits, found in zip(x, f, deepfool(net, x), strict=True):
        own = int(logits.argmax())
        ways = []
        for k in set(range(len(logits))) - {own}:
            w, gap = W[k] - W[own], logits[own] - logits[k]
            ways.append(1.02 * (gap / w.norm() + 1e-4) * w / w.norm())
        r = min(ways, key=lambda way: way.norm()).view_as(image)
        if (image + r).min() < 0 or (image + r).max() > 1:
            continue  # the way leaves [0, 1]
        torch.testing.assert_close(found - image, r, rtol=1e-9, atol=1e-12)
        assert net(found[None]).argmax() != own


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999), st.floats(0.001, 0.3))
def test_fgsm_is_the_worst_perturbation_of_a_linear_two_class_network(seed, eps):
    net, x = linear(seed, classes=2)
    classes = net(x).argmax(1)
    w = net[1].weight[1 - classes] - net[1].weight[classes]
    torch.testing.assert_close(fgsm(net, x, classes, eps) - x, eps * w.sign().view_as(x), rtol=1e-9, atol=1e-12)


def test_one_pixel_finds_what_brute_force_finds():
    for seed in range(4):
        net, x = linear(seed, classes=2)
        classes = net(x).argmax(1)
        for i, found in enumerate(one_pixel(net, x, classes)):
            assert (found != x[i]).any(0).sum() == 1
            c = int(classes[i])
            corners = []  # of a linear network, the worst colour is a corner of the cube
            for row, column, a, b in np.ndindex(3, 3, 2, 2):
                image = x[i].clone()
                image[:, row, column] = torch.tensor([a, b], dtype=torch.float64)
                corners.append((net(image[None])[0, c] - net(image[None])[0, 1 - c]).item())
            margin = (net(found[None])[0, c] - net(found[None])[0, 1 - c]).item()
            assert (margin < 0) == (min(corners) < 0)
            if margin > 0:  # searched to the end
                assert margin == pytest.approx(min(corners), abs=0.05)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999), st.floats(0.001, 1.0))
def test_the_controls_noise_is_as_long_as_the_attack(seed, size):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(
        3, 3, 6, 6, generator=generator, dtype=torch.float64
    ).round()  # black and white: half the noise is cut
    attacked = (x + size * torch.randn(x.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    noisy = equal_noise(x, attacked, seed)
    lengths = [(each - x).flatten(1).norm(dim=1) for each in (noisy, attacked)]
    torch.testing.assert_close(*lengths, rtol=1e-9, atol=1e-9)
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    torch.testing.assert_close(noisy[1:], equal_noise(x[1:], attacked[1:], seed))


def test_random_signs_take_the_steps_of_fgsm_in_random_directions():
    net, x = linear(0)
    attacked = fgsm(net, x, net(x).argmax(1), 0.1)
    steps = random_signs(x, attacked, 0) - x
    torch.testing.assert_close(steps.abs(), (attacked - x).abs())
    assert not torch.equal(steps.sign(), (attacked - x).sign())


def test_noise_that_is_cut_goes_as_far_as_it_can():
    white = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    noise = equal_noise(white, 0 * white) - white  # half of its signs lead out of [0, 1]
    assert set(noise.unique().tolist()) == {-1.0, 0.0}
    assert 0 < noise.norm() < 8


def test_attacks_of_a_batch_are_those_of_its_images():
    net, x = linear(5)
    classes = net(x).argmax(1)
    for attack in (fgsm, lambda f, x, c: deepfool(f, x), one_pixel):
        each = torch.cat([attack(net, x[i : i + 1], classes[i : i + 1]) for i in range(len(x))])
        torch.testing.assert_close(attack(net, x, classes), each, rtol=1e-12, atol=1e-12)


def test_a_dead_network_has_no_boundary():
    net = nn.Sequential(nn.Flatten(), nn.Linear(18, 3))
    nn.init.zeros_(net[1].weight)
    x = torch.rand(1, 2, 3, 3)
    torch.testing.assert_close(deepfool(net, x), x)


def test_attacks_change_classes_and_noise_less():
    small = ("experiment.population=20", "experiment.generations=2", "method=[guided_gradcam,lrp,deeplift,fem]")
    results, claims = concluded("experiment=ayyar2021/attacks", *TINY, "dataset=photographs", *small)
    facts = {(row["image"], row["attack"]): row for row in results.rows("attacks")}
    for image in ("tabby", "coffee"):
        assert facts[image, "deepfool"]["flipped"] == 1
        for attack in ("fgsm", "deepfool", "one_pixel"):
            within = 0.1 if attack == "fgsm" else 1e-4  # random signs are cut at 0 and 1 elsewhere than FGSM's
            assert facts[image, f"{attack}_noise"]["l2"] == pytest.approx(facts[image, attack]["l2"], rel=within)
            assert facts[image, f"{attack}_noise"]["attack_l2"] == facts[image, attack]["l2"]
    assert facts["tabby", "fgsm"]["largest"] == pytest.approx(0.1, rel=1e-5)
    assert all(-1 <= row[column] <= 1 for row in results.rows() for column in ("fgsm", "deepfool_noise", "new_class"))
    insensitive = claims["A-7-g"]
    assert insensitive["verdict"] == "not measured", "random weights"
    assert "random" in insensitive["measured"]
    rows = {(row["image"], row["method"]): row for row in results.rows()}
    flipped = [image for image in ("tabby", "coffee") if facts[image, "fgsm"]["flipped"]]
    falls = [rows[image, "lrp"]["fgsm_noise"] - rows[image, "lrp"]["fgsm"] for image in flipped]
    assert insensitive["compared"][0]["values"] == pytest.approx(falls)
    assert {row["image"] for row in results.rows("falls")} == set(flipped)
    assert claims["A-7-f"]["compared"][0]["control_values"] != claims["A-7-f"]["compared"][0]["values"]
    assert claims["A-7-d"]["verdict"] == "not measured", "methods are missing"
    assert len(results.rows("focus")) == 2


def test_attacks_that_are_left_out_are_not_measured():
    few = ("experiment.attacks=[fgsm]", "method=[guided_gradcam,lrp,deeplift,fem]")
    results, claims = concluded("experiment=ayyar2021/attacks", *TINY, "dataset=photographs", *few)
    assert {row["attack"] for row in results.rows("attacks")} == {"fgsm", "fgsm_noise", "small_noise"}
    assert "leaves out deepfool" in claims["A-6-b"]["reason"]
    with pytest.raises(UserError, match="give fgsm"):
        concluded("experiment=ayyar2021/attacks", *TINY, "experiment.attacks=[deepfool]")


def test_the_pixel_that_is_moved_keeps_its_colour():
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    attacked = x.clone()
    attacked[0, :, 2, 3] = torch.tensor([1.0, 0.0, 1.0])
    found = moved(x, attacked, [0, 1])
    assert torch.equal(found[1], x[1]), "the attack changed nothing there"
    ((i, j),) = (found[0] != x[0]).any(0).nonzero().tolist()
    assert (i, j) != (2, 3)
    assert found[0, :, i, j].tolist() == [1.0, 0.0, 1.0]


# --- shattering ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [False, True])
def test_the_gradient_of_a_random_network_is_the_chain_rule_written_out(residual):
    depth, width, beta = 3, 5, 0.3
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)
    found = shattering.gradient(depth, residual, width, beta, x, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)

    def normal(rows: int, columns: int) -> np.ndarray:
        values = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
        return values.numpy() * (2 / columns) ** 0.5

    W = normal(width, 1)
    h, slope = x.numpy()[:, None] * W[:, 0], np.tile(W[:, 0], (7, 1))
    for _ in range(depth):
        W = normal(width, width)
        a, scale = h - h.mean(0), h.std(0) if residual else np.ones(width)
        branch, inner = np.maximum(a / scale, 0) @ W.T, ((a > 0) * slope / scale) @ W.T
        h, slope = (h + beta * branch, slope + beta * inner) if residual else (branch, inner)
    np.testing.assert_allclose(found, slope @ normal(1, width)[0], rtol=1e-10)


def test_autocorrelation_is_numpys():
    g = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    centred = (g - g.mean()).numpy()
    expected = np.correlate(centred, centred, "full")[39:46]
    np.testing.assert_allclose(shattering.autocorrelation(g, 6), expected / expected[0], atol=1e-12)


def test_gradients_shatter_in_plain_networks_and_less_in_residual_ones():
    small = ("experiment.networks=4", "experiment.depths=[2,24]", "experiment.width=100", "experiment.channels=4")
    results, claims = concluded("experiment=ayyar2021/shattering", *small)
    assert "depths = [2, 24] instead of [2, 4, 10, 24, 50]" in claims["A-7-c"]["differences"]
    falls, white, *maps = claims["A-7-c"]["compared"]
    assert falls["verdict"] == "holds"
    assert len(maps) == 2 * 3  # of saliency, guided backpropagation and DeconvNet
    assert claims["residual_networks_resist"]["verdict"] == "holds"
    assert len(results.rows()) == 4 * (2 + 2 * 2)
    first = [results.rows(kind="plain", depth=depth, network=0)[0]["correlation"] for depth in (2, 24)]
    assert falls["values"][0] == pytest.approx((first[1] - first[0]) / np.log2(12))
    assert len(white["values"]) == 4
    with pytest.raises(UserError, match="rising"):
        concluded("experiment=ayyar2021/shattering", "experiment.depths=[24,2]")


def test_neighbours_of_white_noise_are_unrelated_and_those_of_a_ramp_alike():
    noise = torch.randn(1, 1, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert abs(sparsity.neighbours(noise)) < 0.05
    ramp = torch.arange(64.0)[None, None, None].expand(1, 1, 64, 64)
    assert sparsity.neighbours(ramp).item() == pytest.approx(1)


def test_the_gini_coefficient_is_the_mean_difference_over_twice_the_mean():
    maps = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    for found, map_ in zip(sparsity.gini(maps), maps, strict=True):
        v = map_.abs().amax(0).flatten().double()
        assert found == pytest.approx(((v[:, None] - v).abs().mean() / (2 * v.mean())).item())


def test_a_resnet_without_shortcuts_has_its_layers_and_normalised_features():
    net = CifarResNet(20)
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = shattering.normalised(shattering.plain(net, torch.Generator().manual_seed(0)), x)
    convs = [[m.weight.shape for m in each.modules() if isinstance(m, nn.Conv2d)] for each in (net, found)]
    assert convs[0] == convs[1]
    assert not found.training
    torch.testing.assert_close(found[:2](x).mean((0, 2, 3)), torch.zeros(16), atol=1e-5, rtol=0)


def test_a_trained_resnet_stands_beside_the_random_ones(tmp_path):
    torch.save(CifarResNet(20).state_dict(), tmp_path / "trained.pt")
    small = ("experiment.networks=2", "experiment.depths=[2,4]", "experiment.width=20", "experiment.channels=2")
    given = (f"experiment.models.resnet20.weights={tmp_path / 'trained.pt'}", "~experiment.models.resnet56")
    results, claims = concluded("experiment=ayyar2021/shattering", *small, *given)
    kinds = [(row["kind"], row["depth"]) for row in results.rows("resnets", image="tabby", method="DeconvNet")]
    assert kinds == [("plain", 20), ("residual", 20), ("trained", 20), ("plain", 32), ("residual", 32)]
    assert "trained_resnets_shatter" not in claims, "the deepest is not trained"


# --- maps ---------------------------------------------------------------------------------------------------------------


def test_similarity_leads_each_gradient_based_method():
    chosen = "method=[fem,gradcam,saliency,gbp,lrp]"
    results, claims = concluded("experiment=ayyar2021/similarity", *TINY, "dataset=photographs", chosen)
    cc = {m: np.array([row["coarse"] for row in results.rows(method=m)]) for m in ("gradcam", "saliency", "gbp")}
    compared = {each["metric"]: each["values"] for each in claims["A-7-b"]["compared"]}
    assert len(compared) == 2 * 2 + 2, "and a random class, and the centre"
    found = compared["CC with FEM of means of cells, gradcam - gbp"]
    np.testing.assert_allclose(found, cc["gradcam"] - cc["gbp"])
    with pytest.raises(UserError, match="needs fem"):
        concluded("experiment=ayyar2021/similarity", *TINY, "dataset=photographs", "method=[gradcam]")


def test_the_area_of_a_map_is_the_pixels_of_four_fifths():
    map_ = torch.zeros(1, 1, 4, 4)
    map_[0, 0, 0] = torch.tensor([5.0, -3.0, 1.0, 1.0])
    assert area(map_).tolist() == [1 / 16]  # 5 of 10, and 3 more reach 0.8
    assert area(torch.ones(1, 3, 10, 10)).item() == pytest.approx(0.8, abs=0.011)


def test_maps_change_more_under_more_noise_and_not_without():
    words = ("experiment.levels=[1e-7,0.1]", "method=[saliency,integrated_gradients]", "precision=float64")
    results, claims = concluded("experiment=ayyar2021/noise", *TINY, "dataset=photographs", *words)
    for image in ("tabby", "coffee"):
        for method in ("saliency", "integrated_gradients", "gradient_times_image"):
            change = {row["level"]: row["change"] for row in results.rows("levels", image=image, method=method)}
            assert change[1e-7] < 0.1 * change[0.1]  # above 0 where equal pixels meet in a pooling
    assert set(claims) == {"A-4.4-b", "A-4.4-c", "A-4.4-d", "averaging", "baseline"}


def test_one_step_of_integrated_gradients_is_gradient_times_image():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).double()
    x = torch.rand(2, 2, 6, 6, dtype=torch.float64)
    found = IntegratedGradients(steps=1, rule="riemann")(net, x, None, lambda pixels: 2 * pixels - 1)
    torch.testing.assert_close(found, Saliency()(net, x) * (x + 1))


# --- cost ---------------------------------------------------------------------------------------------------------------


def test_the_cost_of_a_method_is_its_passes():
    chosen = "method=[fem,saliency,gbp,smoothgrad,cam,occlusion]"
    small = ("methods.smoothgrad.samples=7", "experiment.rounds=2")
    results, claims = concluded("experiment=ayyar2021/cost", *TINY, "dataset=photographs", chosen, *small)
    passes = {row["method"]: row["passes"] for row in results.rows(round=0)}
    assert passes["fem"] == 1
    assert passes["saliency"] == passes["gbp"] == 2
    assert passes["smoothgrad"] == 1 + 2 * 7
    assert (
        1 < passes["occlusion"] < 1 + 2 + 2 * 3 + 4 * 4
    )  # the image; the base; the check of three windows; the windows
    assert "global average pooling" in results.rows("left_out")[0]["why"]
    assert len(results.rows(method="fem")) == 2
    lead = [np.log2(results.rows(method="saliency", round=i)[0]["seconds"] / fem["seconds"]) for i, fem in
            enumerate(results.rows(method="fem"))]  # fmt: skip
    other = [np.log2(results.rows(method="gbp", round=i)[0]["seconds"] / fem["seconds"]) for i, fem in
             enumerate(results.rows(method="fem"))]  # fmt: skip
    (found,) = claims["A-7-i"]["compared"]
    assert found["values"] in (pytest.approx(lead), pytest.approx(other))
    assert claims["A-7-i"]["verdict"] == "undecided", "two rounds"


class Late(Method):
    """Not applicable at first; its next call is slow, as one that imports."""

    calls = 0

    def explain(self, forward, targets):
        self.calls += 1
        if self.calls == 1:
            raise NotApplicable("not yet")
        time.sleep(0.5 * (self.calls == 2))
        return forward.images.detach()


def test_the_first_call_of_a_method_is_not_timed():
    run = Run(compose_config(("experiment=ayyar2021/cost", *TINY, "dataset=photographs", "method=gbp")))
    run.explainer.methods = {"gbp": run.methods["gbp"], "late": Late()}
    cost = Cost(3)
    rows = [
        row for unit in cost.tasks(run) for row in cost.compute(run, unit).tables["table"] if row["method"] == "late"
    ]
    assert [row["round"] for row in rows] == [1, 2], "left out of the first round"
    assert all(row["seconds"] < 0.4 and row["passes"] == 1 for row in rows)


# --- people -------------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999))
def test_areas_under_roc_curves_are_scikit_learns(seed):
    random = np.random.default_rng(seed)
    values, masks = (
        torch.from_numpy(random.integers(0, 5, 20).astype(float)),
        torch.from_numpy(random.random((3, 20)) < 0.3),
    )
    for found, mask in zip(people.auc(values, masks), masks, strict=True):
        if mask.any():
            assert found.item() == pytest.approx(roc_auc_score(mask, values))


@pytest.fixture
def looked_at(tmp_path):
    """Pictures of 64x64 with a white square where people look: to the left, to the right, nowhere."""
    for part in ("images", "fixation_maps"):
        (tmp_path / part).mkdir()
    for name, left in (("a", 0), ("b", 48), ("c", None)):
        picture = Image.new("L", (64, 64))
        if left is not None:
            picture.paste(255, (left, 16, left + 16, 48))
        for part in ("images", "fixation_maps"):
            picture.save(tmp_path / part / f"{name}.png")
    return f"dataset.path={tmp_path}"


def test_maps_are_compared_with_where_people_look(looked_at):
    words = (
        "experiment=ayyar2021/people",
        *TINY,
        "dataset=osie",
        looked_at,
        "method=[saliency,fem]",
        "dataset.resize=32",
    )
    results, claims = concluded(*words)
    assert {row["image"] for row in results.rows()} == {"a.png", "b.png"}
    rows = {row["method"]: row for row in results.rows(image="a.png")}
    assert set(rows) == {"saliency", "fem", "lrp_alpha1_beta0", "centre", "edges"}, "random weights already"
    assert rows["edges"]["auc"] > 0.7 > rows["edges"]["auc_other"]
    assert rows["edges"]["own"] > 0.2
    assert rows["centre"]["own"] == pytest.approx(0, abs=1e-6), "both places are as near to the centre"
    assert claims["A-7-k"]["verdict"] == "not measured", "random weights"
    assert claims["A-7-k"]["needs"] == 1
    assert "where people look" in claims["A-5.3-c"]["metric"]


@pytest.mark.slow
def test_people_look_at_what_guided_backpropagation_shows(data, weights):
    network = (
        "model=torchvision",
        "model.arch=squeezenet1_1",
        f"model.weights={weights / 'squeezenet1_1_imagenet.pt'}",
    )
    photographs = ("dataset=osie", f"dataset.path={data / 'gaze' / 'osie'}", "dataset.limit=24")
    words = ("experiment=ayyar2021/people", "preset=small", *network, *photographs, "method=[gbp,fem]")
    results, claims = concluded(*words)
    own = {m: np.mean([row["own"] for row in results.rows(method=m)]) for m in ("gbp", "edges", "centre")}
    assert own["gbp"] > own["edges"] - 0.02
    assert own["edges"] > 0.05
    assert abs(own["centre"]) < 0.03
    assert claims["A-5.3-c"]["verdict"] in ("holds", "fails", "undecided")


def test_the_drawn_boxes_of_the_photographs_count_where_nobody_looked():
    results, claims = concluded("experiment=ayyar2021/people", *TINY, "dataset.limit=3", "method=[saliency,fem]")
    assert {row["image"] for row in results.rows()} <= {"tabby", "coffee", "cameraman"}
    gains = [
        row["auc"] - results.rows(method="centre", image=row["image"])[0]["auc"] for row in results.rows(method="fem")
    ]
    assert claims["A-5.3-c"]["compared"][0]["values"] == pytest.approx(gains)
    assert "box" in claims["A-5.3-c"]["metric"]


def test_images_without_boxes_are_named(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "mine.png")
    words = (
        "experiment=ayyar2021/people",
        *TINY,
        "dataset=folder",
        f"dataset.path={tmp_path}",
        "method=[saliency,fem]",
    )
    with pytest.raises(UserError, match=r"boxes=\{mine.png"):
        concluded(*words)
    results, _ = concluded(*words, "boxes={mine.png: [0, 0, 0.5, 1]}")
    assert results.rows()[0]["area"] == 0.5


def test_maps_of_networks_lie_on_the_ink_or_not(vis_run):
    words = (
        "model.input_size=32",
        "dataset=digits",
        "dataset.limit=40",
        "experiment.images=5",
        "method=[saliency,fem]",
    )
    sizes = ("experiment.recipe.epochs=2", "experiment.depths=[11]", "seeds=2")
    run = load_run(vis_run("experiment=ayyar2021/accuracy", *words, *sizes).folder)
    assert len(run.rows()) == 2 * 3 * 2 * 5  # seeds, networks, methods, images
    assert all(0 <= row["auc"] <= 1 for row in run.rows())
    assert len(run.rows("training")) == 2 * 3 * 2
    (claim,) = json.loads((run.folder / "claims.json").read_text())
    assert len(claim["compared"][0]["values"]) == 2  # a number for each round, not for each image
    assert claim["verdict"] == "undecided"


def test_a_map_of_feature_maps_that_are_gaussian_has_a_sixth_above_one_deviation():
    maps = torch.randn(8, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = fem.of_features(torch.cat([maps, torch.zeros(3, 40, 40)]), 0)
    assert found["share"] == pytest.approx(fem.RARE, abs=0.01)
    assert found["skewness"] == pytest.approx(0, abs=0.1)
    assert found["share_exponential"] == pytest.approx(np.exp(-2), abs=0.01)
    assert found["skewness_exponential"] == pytest.approx(2, abs=0.3)


def test_what_fem_leaves_out():
    _, claims = concluded("experiment=ayyar2021/fem", *TINY, "dataset=photographs")
    verdicts = {id_: claim["verdict"] for id_, claim in claims.items()}
    assert verdicts["A-5.3-f"] == verdicts["A-5.3-g"] == "holds"
    assert verdicts["A-5.3-d"] == "fails", "max-pooling makes no Gaussian pyramid"
    assert [each["verdict"] for each in claims["A-5.3-d"]["compared"]] == ["holds", "fails", "fails"]


def test_the_classification_part_alone_is_shuffled():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).requires_grad_(False)
    x = torch.rand(2, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    other, features = fem.without_classifier(net, x, "1", 0)
    torch.testing.assert_close(features.float(), net[:2](x))
    assert torch.equal(other[0].weight, net[0].weight)
    assert not torch.equal(other[3].weight, net[3].weight)
    assert torch.equal(other[3].weight.flatten().sort().values, net[3].weight.flatten().sort().values)


def test_parameters_of_methods_that_were_not_chosen_are_nothing():
    config = compose_config(["experiment=ayyar2021/people", "preset=tiny", "method=[fem,gradcam]"])
    assert set(config.methods) == {"fem", "gradcam", "lrp_alpha1_beta0"}, "the last is no parameter: it has a target"
