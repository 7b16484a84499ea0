"""adebayo2018: the randomisation trial; each word against closed forms or another way to the same, each item from end to end."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import nn

from experiments.adebayo2018.scales import compared, contributions, larger_contributes_more
from experiments.randomisation import BLURRED, WHITE, controls, similarities, views
from vis.config.compose import compose_config
from vis.methods import LRP, InputXGradient
from vis.metrics.deletion import patch_flipping
from vis.models import VGGSmall, build_model
from vis.models.initialise import permute
from vis.runner.execute import build_experiment
from vis.store.run_folder import Results, load_run

TINY = ("preset=tiny",)


def small_vgg(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return VGGSmall(depth=11, width=0.125, num_classes=10, in_channels=3).double().eval()


# --- words ----------------------------------------------------------------------------------------------------------------


def test_patch_flipping_deletes_the_patches_with_the_largest_sums_first():
    """A linear network whose first class is the sum of the first channel: each patch takes its own sum away."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).double()
    x = torch.rand(2, 3, 28, 28, generator=generator, dtype=torch.float64)
    maps = torch.randn(2, 3, 28, 28, generator=generator, dtype=torch.float64)
    found = patch_flipping(net, x, maps, [0, 1], torch.full((1, 1, 1, 1), 0.5), first=6, steps=3)
    for i, label in enumerate((0, 1)):
        sums = {(r, c): maps[i, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].sum() for r in range(14) for c in range(14)}
        image, drops = x[i : i + 1].clone(), []
        before = net(image).softmax(1)[0, label]
        for number, (r, c) in enumerate(sorted(sums, key=lambda place: -sums[place])[:6]):
            image[:, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2] = 0.5
            if number % 2:
                drops.append(before - net(image).softmax(1)[0, label])
        torch.testing.assert_close(found[i], torch.stack(drops).mean())


def test_similarities_are_those_of_scipy_and_skimage():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, 20, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    b[1] = 0
    found = similarities(views(a), views(b))
    assert all(values[1].isnan() for values in found.values())  # a map of zeros has no similarity
    p, q = (m[0].sum(0).numpy() for m in (a, b))
    assert found["signed"][0] == pytest.approx(spearmanr(p.ravel(), q.ravel()).statistic)
    assert found["rank"][0] == pytest.approx(spearmanr(abs(p).ravel(), abs(q).ravel()).statistic)
    scaled = [np.minimum(abs(m) / np.quantile(abs(m), 0.995), 1) for m in (p, q)]
    scaled = [(m - m.min()) / (m.max() - m.min()) for m in scaled]
    assert found["ssim"][0] == pytest.approx(structural_similarity(*scaled, data_range=1))
    assert all(float(values[0]) == pytest.approx(1) for values in similarities(views(a), views(3 * a)).values())


def test_noise_is_drawn_anew_for_each_key_and_alike_for_the_same():
    pixels = torch.rand(1, 3, 56, 56)
    first, again, other = (controls(key, ["cat"], pixels) for key in ("a", "a", "b"))
    for name in (WHITE, BLURRED):
        assert torch.equal(first[name], again[name])
        assert abs(similarities(views(first[name]), views(other[name]))["signed"].item()) < (
            0.1 if name == WHITE else 0.9
        )


def test_permuted_weights_are_the_same_numbers_in_each_tensor():
    net, before = small_vgg(), small_vgg().state_dict()
    permute(net, seed=3, only=lambda name: not name.startswith("features.0"))
    moved = 0
    for name, values in net.named_parameters():
        assert torch.equal(values.flatten().sort().values, before[name].flatten().sort().values), name
        same = torch.equal(values, before[name])
        assert same if name.startswith("features.0") else True
        moved += not same
    assert moved > 10
    again = small_vgg()
    permute(again, seed=3, only=lambda name: not name.startswith("features.0"))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_a_model_is_permuted_above_the_layer_that_it_is_trained_up_to(tmp_path):
    torch.save(small_vgg().float().state_dict(), tmp_path / "net.pt")
    node = {"_target_": "vis.models.VGGSmall", "depth": 11, "width": 0.125, "num_classes": 10, "in_channels": 3,
            "weights": str(tmp_path / "net.pt"), "init": "permuted"}  # fmt: skip
    whole, part = build_model(node), build_model(node | {"trained_up_to": "features.0"})
    original = small_vgg().float().state_dict()
    assert torch.equal(part.net.state_dict()["features.0.weight"], original["features.0.weight"])
    assert not torch.equal(whole.net.state_dict()["features.0.weight"], original["features.0.weight"])
    last = list(original)[-2]
    assert not torch.equal(part.net.state_dict()[last], original[last])
    assert "others permuted inside each tensor (seed 0)" in part.weights
    assert part.trained


def test_permuting_takes_trained_weights(vis_run):
    ran = vis_run("model=cnn3_random", "model.init=permuted", "method=saliency")
    assert (ran.code, "permutes trained weights" in ran.err) == (2, True)


def test_lrp_z_with_biases_in_the_denominator_is_input_x_gradient():
    """So the trial does not list it as a method of its own."""
    net, x = small_vgg(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    ixg, lrp = InputXGradient()(net, x, [3, 4]), LRP(rule="zero", bias=True)(net, x, [3, 4])
    assert similarities(views(ixg), views(lrp))["signed"].tolist() == pytest.approx([1, 1], abs=1e-9)


def test_contributions_of_channels_under_a_linear_head_are_weight_times_sum():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).double()
    x = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    activations, own = contributions(net, x, "1", [1, 2])
    expected = torch.stack([net[4].weight[k] * a.mean((1, 2)) for k, a in zip((1, 2), activations, strict=True)])
    torch.testing.assert_close(own, expected.detach())


def test_random_weights_keep_the_scales_and_equal_activations_keep_nothing():
    """Contributions w a with Gaussian w: kept is far above the null, and signed contributions are unrelated."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4000, generator=generator, dtype=torch.float64).mul(1.5).exp()
    own, random = (torch.randn(4000, generator=generator, dtype=torch.float64) * a for _ in range(2))
    found = compared(a[:, None, None], own, random)
    assert found["kept"] > 0.4
    assert found["top"] > 0.3
    assert abs(found["null"]) < 0.05
    assert abs(found["signed"]) < 0.05
    assert set(compared(a[:, None, None], own, 0 * random).values()) == {None}


@pytest.mark.parametrize("ratio", [1, 2, 4, 10])
def test_larger_activations_contribute_more_with_the_probability_of_the_closed_form(ratio):
    w = np.random.default_rng(0).standard_normal((2, 200_000))
    assert np.mean(abs(ratio * w[0]) > abs(w[1])) == pytest.approx(larger_contributes_more(ratio), abs=4e-3)
    assert larger_contributes_more(2) == pytest.approx(0.705, abs=5e-4)


# --- items ----------------------------------------------------------------------------------------------------------------


def test_the_trial_runs_and_has_both_arms_and_the_controls(vis_run):
    ran = vis_run("experiment=adebayo2018/trial", *TINY)
    assert ran.code == 0, ran.err
    run = load_run(ran.folder)
    assert {row["kind"] for row in run.rows()} == {"trained", "cascading", "permuted", "other"}
    assert {WHITE, BLURRED, "edges", "saliency", "lrp_alpha1_beta0"} <= {
        row["method"] for row in run.rows(kind="permuted")
    }
    assert len({row["variant"] for row in run.rows(kind="cascading")}) == 3
    assert all(row["ssim"] == pytest.approx(1) for row in run.rows(method="edges", kind="cascading"))
    assert all(abs(row["drop"]) <= 1 for row in run.rows("flips"))
    assert {"figure", "permuted", "orders", "maps"} == set(json.loads((ran.folder / "figures.json").read_text()))
    claims = {c["id"]: c for c in json.loads((ran.folder / "claims.json").read_text())}
    assert {"A1", "A2", "A3", "A3b", "A4", "A4b", "B1", "B1b", "B1c", "B3", "B3b", "arms", "flipping-gbp"} <= set(
        claims
    )
    assert {c["verdict"] for c in claims.values()} == {"not measured"}  # on digits
    assert claims["B1"]["kind"] == "replication"
    assert claims["A1"]["kind"] == "finding"


def test_a_users_method_and_stages_are_in_the_trial(vis_run):
    mine = (
        "experiment=adebayo2018/trial",
        *TINY,
        "method=[saliency,fem]",
        "dataset.limit=2",
        "experiment.permuted=false",
    )
    ran = vis_run(*mine, "experiment.stages=[classifier,features]")
    assert ran.code == 0, ran.err
    run = load_run(ran.folder)
    assert {row["variant"] for row in run.rows(kind="cascading")} == {"from classifier", "from features"}
    assert {"saliency", "fem"} <= {row["method"] for row in run.rows()}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("experiment.stages=0", "experiment.stages=0: give 1 or more"),
        ("experiment.stages=[nothing]", "has no layer 'nothing'"),
        ("experiment.stages=[features.1]", "features.1 has no convolution and no dense layer"),
    ],
)
def test_wrong_stages_give_one_line(vis_run, option, message):
    ran = vis_run("experiment=adebayo2018/trial", *TINY, "dataset.limit=2", option)
    assert (ran.code, message in ran.err) == (2, True), ran.err


def test_random_weights_leave_the_activations_below_as_they_are(vis_run):
    ran = vis_run("experiment=adebayo2018/scales", *TINY)
    assert ran.code == 0, ran.err
    rows = load_run(ran.folder).rows()
    assert {row["change"] for row in rows} == {0.0}
    assert all(-1 <= row[name] <= 1 for row in rows for name in ("kept", "signed", "null") if row[name] is not None)
    wrong = vis_run("experiment=adebayo2018/scales", *TINY, "experiment.layers=[[features.0]]")
    assert (wrong.code, "give pairs" in wrong.err) == (2, True), wrong.err


@pytest.mark.slow
def test_noise_times_the_image_keeps_the_image_in_absolute_values_alone(vis_run):
    ran = vis_run("experiment=adebayo2018/calibration", *TINY)
    assert ran.code == 0, ran.err
    run = load_run(ran.folder)
    assert np.mean([row["rank"] for row in run.rows(pair="product")]) > 0.1
    assert abs(np.mean([row["signed"] for row in run.rows(pair="product")])) < 0.05


def test_the_interval_over_images_does_not_narrow_with_the_methods_that_share_them():
    generator = np.random.default_rng(0)
    similar = {image: generator.normal(image / 4, 0.2, 5).tolist() for image in range(6)}

    def values(methods: list[str]) -> list[float]:
        rows = [
            {"kind": "cascading", "variant": "from fc", "method": m, "image": str(i), "ssim": v, "rank": v, "signed": v}
            for m in methods
            for i, of_image in similar.items()
            for v in of_image
        ]
        config = compose_config(["experiment=adebayo2018/variance", f"method=[{','.join(methods)}]"])
        results, experiment = Results({}, {"table": rows}, config, Path()), build_experiment(config)
        results.tables |= experiment.summaries(results)
        return experiment.claims(results)[0].compared[0].column.values

    one = values(["saliency"])
    assert len(one) == 6
    assert values(["saliency", "gbp"]) == pytest.approx(one)
    matrix = np.array(list(similar.values()))
    ratios = []
    for kept in (list(range(6)), *([k for k in range(6) if k != i] for i in range(6))):
        within = matrix[kept].var(1, ddof=1).mean()
        between = matrix[kept].mean(1).var(ddof=1) - within / 5
        ratios.append((between - within) / (between + within))
    assert one == pytest.approx([6 * ratios[0] - 5 * each for each in ratios[1:]])


@pytest.mark.slow
def test_the_variances_are_those_of_images_and_networks(vis_run):
    ran = vis_run("experiment=adebayo2018/variance", *TINY)
    assert ran.code == 0, ran.err
    run = load_run(ran.folder)
    rows = [
        r
        for r in run.rows(kind="cascading", method="saliency")
        if r["variant"] == run.rows(kind="cascading")[0]["variant"]
    ]
    groups = [
        [r["ssim"] for r in rows if r["image"] == image and r["ssim"] is not None]
        for image in {r["image"] for r in rows}
    ]
    within = math.sqrt(np.mean([np.var(values, ddof=1) for values in groups if len(values) > 1]))
    variances = build_experiment(run.config).summaries(run)["variances"]
    (found, *_) = [r for r in variances if r["method"] == "saliency" and r["measure"] == "ssim"]
    assert found["over networks"] == pytest.approx(within)
