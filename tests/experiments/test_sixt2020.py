"""sixt2020 and experiment=convergence: their numbers by other means, their verdicts, and a user's mistakes."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from concluded import concluded
from torch import nn

from experiments import convergence
from experiments.sixt2020 import random_logit, theorem1
from vis import metrics
from vis.config.compose import compose_config
from vis.runner.execute import build_experiment
from vis.store.run_folder import Results

SMALL = ("experiment=convergence", "preset=tiny", "model=cnn_mnist", "model.weights=null", "model.init=kaiming_normal",
         "dataset.limit=2")  # fmt: skip


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_cosines_by_position_are_those_of_numpy():
    a, b = (torch.randn(2, 3, 4, 5, dtype=torch.float64) for _ in range(2))
    a[0, :, 1, 2] = 0
    found = convergence.position_cosines(a, b).view(2, 4, 5)
    for i, y, x in itertools.product(range(2), range(4), range(5)):
        u, v = a[i, :, y, x].numpy(), b[i, :, y, x].numpy()
        if (i, y, x) == (0, 1, 2):
            assert math.isnan(found[i, y, x])
        else:
            assert found[i, y, x].item() == pytest.approx(abs(u @ v) / np.linalg.norm(u) / np.linalg.norm(v))


def test_the_gaussian_baseline_is_that_of_draws():
    assert convergence.gaussian_cosine(3) == pytest.approx(
        0.5
    )  # the cosine of two random directions in space is uniform
    assert convergence.gaussian_cosine(1) == 1
    a, b = torch.randn(1, 16, 200_000), torch.randn(1, 16, 200_000)
    drawn = convergence.position_cosines(a, b).median().item()
    assert convergence.gaussian_cosine(16) == pytest.approx(drawn, abs=0.005)


def test_parallel_channels_with_a_strength_of_their_own_converge_by_position_alone():
    c, first, second = torch.rand(1, 8, 1, 1), torch.randn(1, 1, 9, 9), torch.randn(1, 1, 9, 9)
    (row,) = convergence.similarities([c * first, c * second])
    assert row["pos"] == pytest.approx(1)
    assert row["flat"] == pytest.approx(metrics.cosine(first, second).abs().item())


def test_zero_vectors_are_dropped_and_counted():
    a, b = torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2)
    a[..., 0, 0] = 0
    assert convergence.similarities([a, b])[0]["dropped"] == 0.25
    (row,) = convergence.similarities([0 * a, b])
    assert row["pos"] is None
    assert row["flat"] is None


def test_blocks_are_what_an_image_passes_once():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)
            )
            self.unused, self.twice, self.head = nn.Linear(1, 1), nn.ReLU(), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.twice(self.twice(self.features(x))).mean((2, 3)))

    assert convergence.blocks(Net(), torch.randn(1, 3, 12, 12)) == ["features.2", "features.3", "features.4", "head"]


def test_reduced_maps_are_clipped_at_percentiles():
    maps = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    by_size = random_logit.reduced(maps, "midgray", (0.5, 99.5))
    largest = maps[0].abs().amax(0).numpy()
    assert np.allclose(by_size[0, 0], largest.clip(*np.percentile(largest, [0.5, 99.5])))
    assert np.allclose(random_logit.reduced(maps, "diverging", (0, 100))[1, 0], maps[1].sum(0))


def test_ssim_of_either_sign():
    a = torch.randn(1, 1, 16, 16, dtype=torch.float64)
    assert random_logit.either_sign(a, -a).item() == pytest.approx(1)
    assert metrics.ssim(a, -a, window=5).item() < 0.1


def test_columns_of_alpha_beta_sum_to_one():
    W = np.random.default_rng(0).standard_normal((30, 20))
    assert np.allclose(theorem1.alpha_beta(W, 1).sum(0), 1)
    assert np.allclose(theorem1.alpha_beta(W, 3).sum(0), 1)
    assert (theorem1.alpha_beta(W, 1) >= 0).all()


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_theorem_1():
    results, claims = concluded("experiment=sixt2020/theorem1", "preset=small")
    assert {claim["verdict"] for claim in claims.values()} == {"holds"}
    assert claims["S1"]["kind"] == "reproduction"
    gaussian = results.rows("squares", kind="gaussian", factors=theorem1.FACTORS)
    assert min(row["sigma"] for row in gaussian) > 0.1
    alpha10, gaussian = ([r["distance"] for r in results.rows(kind=k, factors=15)] for k in ("alpha10", "gaussian"))
    (never,) = claims["never"]["compared"]
    assert never["values"] == pytest.approx([a - g for a, g in zip(alpha10, gaussian, strict=True)])


def test_relevance_of_a_random_vgg():
    tiny = ("experiment=sixt2020/vgg16", "preset=tiny", "method=[saliency,gbp]")
    results, claims = concluded(*tiny)
    assert claims["S2_lrp_alpha1_beta0"]["verdict"] == "holds"
    assert claims["S1b"]["verdict"] == "holds"  # three dense layers
    rows = results.rows("agreement", start="logits")
    assert all(-1 <= row["rank_correlation"] <= 1 for row in rows)
    z = results.rows(method="lrp_z", start="multiples of the logits", layer="image")
    assert len(z) == len({(row["seed"], row["image"]) for row in z}) > 0


def test_a_users_network_and_methods():
    results, claims = concluded(
        *SMALL, "method=[saliency,gbp]", "experiment.starts=[logits,features.3]", "experiment.vectors=3"
    )
    assert {row["start"] for row in results.rows()} == {"logits", "features.3"}
    assert set(claims) == {
        f"{m}_{s}_{n}" for m in ("saliency", "gbp") for s in ("logits", "features.3") for n in ("pos", "flat")
    }
    whole = [row["flat"] for row in results.rows(method="gbp", start="logits", layer="image")]
    assert whole == pytest.approx([row["flat"] for row in concluded(*SMALL, "method=gbp", "experiment.starts=[logits]",
                                  "experiment.vectors=3", "batch_size=1")[0].rows(layer="image")], abs=1e-6)  # fmt: skip


def test_each_half_of_a_sentence_has_to_hold():
    config = compose_config(["experiment=sixt2020/random_logit"])
    methods = list(map(str, config.methods))

    def verdicts(same_logit: float, gap: float) -> dict[str, str]:
        rows = [
            {"image": i, "method": m, "network": n, "test": test, "ssim": ssim + 0.001 * (i % 3)}
            for i in range(12)
            for m in methods
            for n, test, ssim in (
                ("average pooling", "random logit", same_logit),
                ("average pooling", "other image", 0.95),
                ("", "random logit", 0.5 + gap * (m in random_logit.CONVERGING)),
                ("", "other image", 0.2),
            )
        ]
        lifted = [{"image": i, "method": m, "lifted": 0.1 * (m in random_logit.NOT_CONVERGING) + 0.001 * (i % 3)}
                  for i in range(12) for m in methods]  # fmt: skip
        experiment = build_experiment(config)
        results = Results({}, {"table": rows, "scale": [], "lifted": lifted, "agreement": []}, config, Path())
        found = {claim.id: claim.judged for claim in experiment.claims(results)}
        return {id_: found[id_] for id_ in ("without_switches", "data_range")}

    assert verdicts(same_logit=0.95, gap=0.3) == {"without_switches": "holds", "data_range": "holds"}
    assert verdicts(same_logit=0.3, gap=-0.3) == {"without_switches": "fails", "data_range": "fails"}


@pytest.mark.slow
def test_deconvnet_without_switches_shows_the_same_for_all_images():
    results, claims = concluded(
        "experiment=sixt2020/random_logit", "preset=tiny", "method=[gbp,deconvnet]", "experiment.convergence=false"
    )
    assert {row["network"] for row in results.rows()} == {"", "average pooling"}
    assert claims["S5"]["verdict"] == "not measured"
    same = results.rows(test="random logit", method="gbp", network="")
    assert all(0 <= row["ssim"] <= 1 for row in same)
    other = [row["s"] for row in results.rows("scale", test="other image", method="gbp", network="")]
    assert sum(other) / len(other) == pytest.approx(0, abs=1e-9)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=gradcam"], "methods.gradcam: GradCAM has no backward pass from layer to layer"),
        (["method=gbp", "experiment.vectors=1"], "experiment.vectors=1: give 2 or more"),
        (["method=gbp", "experiment.starts=[]"], "experiment.starts is empty"),
        (["method=gbp", "experiment.starts=[conv9]"], "has no layer 'conv9'"),
        (["method=gbp", "experiment.layers=[nowhere]"], "has no layer 'nowhere'"),
    ],
)
def test_a_mistake_is_one_line(words, said, vis_run):
    ran = vis_run(*SMALL, *words)
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_the_control_needs_two_images(vis_run):
    ran = vis_run("experiment=sixt2020/random_logit", "preset=tiny", "dataset.limit=1")
    assert ran.code == 2
    assert "dataset.limit=2 or more" in ran.err
