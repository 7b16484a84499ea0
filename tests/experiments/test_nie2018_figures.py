"""nie2018's figures on random and trained weights: from command to verdict, in one process and in several."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from PIL import Image

from experiments.nie2018.deletion import ratio
from experiments.nie2018.figure2 import recovered
from experiments.nie2018.figure3 import fit
from experiments.nie2018.figure7 import two_logits
from experiments.nie2018.figure8 import ascent, relu_states
from experiments.nie2018.figure9 import _stages
from experiments.nie2018.filters import effective_rank, gabor_fit
from experiments.nie2018.supplement_figure9 import left_difference, textured
from experiments.nie2018.supplement_figure12 import grid
from experiments.nie2018.trained import (
    FIXATED,
    background,
    before_last_relu,
    in_background,
    judged,
    objects_of,
    predicted,
    surviving_patches,
)
from vis import load_run, metrics
from vis.claims import Claim, interval, jackknife
from vis.config.compose import compose_config, register
from vis.data.datasets import KNOWN
from vis.models import build_model
from vis.runner.experiment import Run

RESULTS = ("maps.npz", "tables.json", "table.csv", "claims.json", "figure.png")
RANDOM = {"_target_": "vis.models.VGGSmall", "init": "truncated_normal", "std": 0.1, "num_classes": 10}
FIGURE7 = (
    "experiment=nie2018/figure7",
    "model@experiment.models.random=vgg_small",
    "experiment.models.random.weights=null",
    "experiment.models.random.init=truncated_normal",
    "seeds=1",
    "batch_size=2",
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """Weights that stand for trained ones: no test says what they show."""
    torch.save(build_model(RANDOM, seed=7).net.state_dict(), tmp_path / "weights.pt")
    return str(tmp_path / "weights.pt")


def claims(folder: Path) -> dict:
    return {c["id"]: c for c in json.loads((folder / "claims.json").read_text(encoding="utf-8"))}


def test_distances():
    a = torch.tensor([[1.0, 2, 3, 5]]).view(1, 1, 2, 2)
    assert metrics.minmax_distance(a, 7 * a - 3).item() == pytest.approx(0)
    assert metrics.minmax_distance(a, -a).item() == pytest.approx(np.linalg.norm([-1, -0.5, 0, 1]))
    assert metrics.minmax_distance(a, torch.ones_like(a)).item() == pytest.approx(np.linalg.norm([0, 0.25, 0.5, 1]))
    assert metrics.distance(a, 2 * a).item() == pytest.approx(39**0.5)


def test_a_confidence_interval():
    low, high = interval([1.0, 2.0, 3.0])  # t of 2 degrees of freedom: 4.303; standard error 1/sqrt(3)
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert interval([1.0]) == (-np.inf, np.inf)


def test_two_logits_differ_and_depend_on_seed_and_name_alone():
    pairs = [two_logits(0, f"image {i}", 10) for i in range(200)]
    assert all(a != b for a, b in pairs)
    assert {a for a, _ in pairs} == set(range(10))
    assert two_logits(0, "image 3", 10) == pairs[3] != two_logits(1, "image 3", 10)


def test_figure7_with_two_networks(vis_run, checkpoint):
    folder = vis_run(
        *FIGURE7, "model@experiment.models.trained=vgg_small", f"experiment.models.trained.weights={checkpoint}"
    ).folder
    results = load_run(folder)
    rows = results.rows(network="trained", method="gbp")
    assert [r["image"] for r in rows] == list(KNOWN)
    a, b = (torch.from_numpy(results.arrays[f"random/tabby/{n}/gbp"])[None] for n in (1, 2))
    assert results.rows(network="random", method="gbp")[0]["unit"] == pytest.approx(metrics.unit_distance(a, b).item())
    assert not any("cameraman" in name for name in results.arrays)  # samples: 2
    distance = results.rows(network="trained", image="tabby", method="gbp")[0]
    assert 0 < distance["noise"] < 2
    found = claims(folder)
    assert found["N-4.3-b"]["verdict"] in ("holds", "fails", "undecided")
    assert found["N-4.3-b"]["kind"] == "replication"
    assert found["N-4.3-b"]["differences"] == [
        "vgg_small instead of VGG-16",
        "7 photographs instead of 10,000 images of ImageNet's test set",
    ]
    (ratio,) = [
        r for r in results.rows() if (r["network"], r["image"], r["method"]) == ("trained", "tabby", "saliency")
    ]
    dec = results.rows(network="trained", image="tabby", method="deconvnet")[0]["unit"]
    larger = found["N-4.3-b"]["compared"][0]["values"][0]
    assert larger == pytest.approx(ratio["unit"] / max(dec, distance["unit"]))


def test_figure7_without_trained_weights(vis_run):
    folder = vis_run(*FIGURE7, "dataset.limit=2", "experiment.samples=1").folder
    found = claims(folder)
    assert {found[id_]["verdict"] for id_ in ("N-4.3-b", "N-E-a")} == {"not measured"}
    assert "could not be downloaded" in found["N-4.3-b"]["measured"]
    assert "random: HP, GBP minus saliency map" in found["N-E-a"]["measured"]
    ran = vis_run(*FIGURE7, "experiment.optional=[]")
    assert ran.code == 2
    assert "preset=tiny" in ran.err


def test_images_of_the_next_units_are_read_once_and_ahead():
    register()
    run = Run(compose_config(["dataset=photographs", *SMALL]))
    model, data, read = run.model(), run.dataset, []
    run.reader.dataset = replace(data, read=lambda i: read.append(i) or data.read(i))
    run.reader.upcoming = [1, 2]
    run.batch(model, [0])
    run.reader.upcoming = []
    ahead = run.batch(model, [1, 2])
    assert sorted(read) == [0, 1, 2]
    assert torch.equal(ahead.x, Run(run.config).batch(model, [1, 2]).x)


def own(checkpoint: str) -> tuple[str, ...]:
    """Small networks with weights of one's own, in place of the trained VGG-16."""
    return ("model=vgg_small", f"model.weights={checkpoint}")


def test_figure2_without_weights_says_what_to_do(vis_run, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # no cached weights
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    ran = vis_run("experiment=nie2018/figure2")
    assert ran.code == 2
    assert "preset=tiny" in ran.err
    assert "model.weights=FILE" in ran.err


def test_a_gallery_compares_each_pair_of_logits_once(vis_run, checkpoint):
    folder = vis_run(
        "experiment=nie2018/supplement_figure2", *own(checkpoint), "target=[max,0,1,2,3,4,5,6,7,8,9]", "method=[gbp]"
    ).folder
    results = load_run(folder)
    rows = results.rows(method="gbp")
    assert len(rows) == 45  # of 55 pairs: the largest logit is one of the ten
    assert all(abs(row["correlation"]) < 1 - 1e-9 for row in rows)
    assert sum(row["again"] for row in results.rows("logits")) == 1
    assert claims(folder) == {}


def test_a_gallery_names_the_papers_image(vis_run):
    small = ("model=vgg_small", "model.weights=null", "model.init=truncated_normal", "seeds=2", "target=[1,2]")
    folder = vis_run("experiment=nie2018/supplement_figure3", *small).folder
    assert "The paper's image: panda" in json.loads((folder / "figures.json").read_text())["figure"]


def test_figure2_measures_maps_beside_noise_other_photographs_and_random_weights(vis_run, checkpoint):
    folder = vis_run(
        "experiment=nie2018/figure2", *own(checkpoint), "target=[max,3,5]", "seeds=1", "batch_size=3"
    ).folder
    results = load_run(folder)
    trained = results.rows("photographs", network="trained", method="gbp")
    tabby, rocket = trained[0], trained[-1]
    assert rocket["object"] == "object"
    assert 0 < rocket["background"] < 1
    assert rocket["background_other"] != rocket["background"]
    a, b = (torch.from_numpy(results.arrays[f"{name}/max/gbp"])[None] for name in ("tabby", "coffee"))
    assert tabby["other"] == pytest.approx(metrics.pearson(a, b).item())
    assert -1 < tabby["logits"] <= 1
    assert tabby["noise"] > 0.5
    assert "noise" not in results.rows("photographs", network="random")[0]
    found = claims(folder)
    assert all(each["verdict"] in ("holds", "fails", "undecided") for each in found.values())
    assert "vgg_small instead of VGG-16" in found["N-2.2-a"]["differences"]


def test_a_linear_function_of_the_input_is_recovered_from_it():
    x = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    mixed = torch.einsum("oc,bchw->bohw", torch.tensor([[1.0, 2, 0], [0, -1, 1], [3, 0, 1]]), x)
    assert recovered(mixed + 5, x).item() == pytest.approx(1)
    assert recovered(torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(1)), x).item() < 0.05


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_fgsm_raises_the_loss(loss):
    net = build_model(RANDOM | {"init": "kaiming_normal"}).net.double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = net(x).topk(2).indices

    def J(x: torch.Tensor) -> torch.Tensor:
        first, second = net(x).gather(1, before).T
        return second - first if loss == "margin" else -net(x).log_softmax(1).gather(1, before[:, :1])[:, 0]

    assert (J(x + 1e-4 * ascent(net, x, loss).sign()) > J(x)).all()


def test_states_of_all_relus():
    model = build_model(RANDOM)
    states = relu_states(model.net, torch.zeros(2, 3, 32, 32))
    assert len(states) == 10  # 8 convolutions and 2 dense layers
    assert not any(state.any() for state in states)  # zero biases


@pytest.mark.parametrize("model", ["trained", "random"])
def test_figure8(model, vis_run, checkpoint):
    weights = own(checkpoint) if model == "trained" else (
        "model=vgg_small", "model.weights=null", "model.init=truncated_normal", "seeds=2"
    )  # fmt: skip
    name = "figure8" if model == "trained" else "figure8_random"
    folder = vis_run(f"experiment=nie2018/{name}", "dataset.limit=2", *weights).folder
    attacks = load_run(folder).rows("attacks", version="adversary")
    assert len(attacks) == (2 if model == "trained" else 4)
    assert all(0 < a["linf_gray_levels"] < 2.001 and 0 < a["relu_states_flipped"] < 1 for a in attacks)
    found = claims(folder)
    if model == "random":
        assert list(found) == ["attack_beyond_noise"]
    else:
        assert {"N-4.4-a", "N-4.4-c", "N-4.4-d"} < set(found)
        assert found["N-4.4-d"]["verdict"] == "undecided"  # of two photographs


def test_background_and_patches():
    inside = 1 - background((200, 100), (0.0, 0.0, 0.5, 1.0))
    assert inside[:100].sum() == inside.sum() == pytest.approx(np.pi * 50 * 50, rel=0.01)
    assert surviving_patches(torch.ones(1, 1, 32, 32)).item() == pytest.approx(1)
    one = torch.zeros(1, 1, 32, 32)
    one[0, 0, 4, 5] = 3
    assert surviving_patches(one).item() == pytest.approx(1 / 256)


def test_an_image_without_an_object_has_no_background():
    energy = torch.ones(2, 1, 20, 20, dtype=torch.float64)
    outside = background((20, 20), (0.0, 0.0, 1.0, 1.0))
    known, unknown = in_background(energy, ["a", "b"], {"a": 1 - outside})
    assert unknown is None
    assert known == pytest.approx(outside.mean().item())


def test_the_fixated_area_is_the_object_where_there_are_fixations():
    register()
    run = Run(compose_config(["dataset=photographs", *SMALL]))
    model, data = run.model(), run.dataset
    assert objects_of(run, model, [0]).what == "object"
    density = Image.fromarray(np.uint8(np.linspace(0, 255, 100)).repeat(100).reshape(100, 100))  # brightest below
    run.reader.dataset = replace(data, gaze=lambda i: density)
    objects = objects_of(run, model, [5, 6])
    assert objects.what == "fixated area"
    assert objects.own["officer"].mean().item() == pytest.approx(FIXATED, abs=0.01)
    assert objects.own["officer"][:16].sum() == 0
    energy = 1 - objects.own["officer"][None, None]
    found = objects.backgrounds(torch.cat([energy, energy]), ["officer", "rocket"])
    assert found == {"background": [1.0, 1.0], "background_other": [1.0, 1.0]}


class Rectified(torch.nn.Module):
    """SqueezeNet's head: a class map of each logit, a ReLU, the mean."""

    def __init__(self) -> None:
        super().__init__()
        maps = [torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)]
        self.classifier = torch.nn.Sequential(torch.nn.Dropout(), *maps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(x).flatten(1)


def test_the_relu_behind_the_class_maps_is_away_only_within_the_block():
    net = Rectified().eval()
    model = replace(build_model(RANDOM), net=net, node={"arch": "squeezenet1_1"})
    x = -torch.ones(1, 3, 8, 8)
    with before_last_relu(model):
        inside = net(x)
    assert inside.equal(net.classifier[1](x).mean((2, 3)))
    assert net(x).equal(inside.relu())
    assert predicted(model, x) == [int(net(x).argmax())]


@pytest.mark.parametrize("name", ["figure9", "trained_layers"])
def test_figure9(name, vis_run, checkpoint):
    layers = ("experiment.up_to=[conv1_1,conv5_1,fc3]",) if name == "trained_layers" else ()
    inits = ("experiment.inits=[truncated_normal,kaiming_normal]",) if name == "figure9" else ()
    folder = vis_run(
        f"experiment=nie2018/{name}", *own(checkpoint), "dataset.limit=4", "seeds=1", *layers, *inits
    ).folder
    rows = load_run(folder).rows()
    assert {r["init"] for r in rows} == {"truncated_normal", *(["kaiming_normal"] if inits else [])}
    whole = [r for r in rows if r["kind"] == "trained" or (r["kind"], r["layer"]) == ("up_to", "fc3")]
    assert all(r["same"] == pytest.approx(1) for r in whole)
    assert not any(r["same"] > 0.999 for r in rows if r["layer"] in ("conv1_1", "none"))
    found = claims(folder)
    assert sorted(found) == ([f"N-4.5-{letter}" for letter in "abcdef"] if name == "figure9" else [])
    if found:
        step = found["N-4.5-f"]["compared"][0]

        def distance(layer: str) -> float:
            return np.mean(
                [r["distance"] for r in rows
                 if (r["kind"], r["layer"], r["image"], r["init"]) == ("except", layer, "tabby", "truncated_normal")]
            )  # fmt: skip

        assert step["values"][0] == pytest.approx(distance("conv3_1") - distance("conv1_1"))


def test_each_partly_trained_network_explains_its_own_largest_logit(vis_run, checkpoint):
    folder = vis_run("experiment=nie2018/figure9", *own(checkpoint), "seeds=1", "dataset.limit=1").folder
    results = load_run(folder)
    register()
    arguments = [f"model.weights={checkpoint}", "model.trained_up_to=conv3_1", "method=gbp"]
    run = Run(compose_config(["model=vgg_small", *arguments]))
    model = run.model()
    x = run.batch(model, [0]).x
    own_map = run.explain(model, x, [[int(model.net(x).argmax())]]).maps[0]["gbp"]
    assert torch.from_numpy(results.arrays["tabby/up_to/conv3_1"])[None].equal(own_map)


def test_figure9_of_a_network_that_is_not_kept_says_how_to_train_it(vis_run):
    found = claims(vis_run("experiment=nie2018/figure9_vgg", "preset=small").folder)
    assert {claim["verdict"] for claim in found.values()} == {"not measured"}
    assert "vis-run experiment=train_vgg_cifar10 dataset.path=FOLDER|ZIP" in found["N-4.5-d"]["measured"]
    ran = vis_run("model=vgg_cifar10")
    assert ran.code == 2
    assert "no network is kept at outputs/networks/vgg_cifar10.pt" in ran.err


def test_a_kept_network_is_named_by_its_training(vis_run, tmp_path):
    with zipfile.ZipFile(tmp_path / "cifar.zip", "w") as archive:
        for i, (split, class_) in enumerate(itertools.product(("train", "test"), ("cat", "dog"))):
            data = io.BytesIO()
            Image.new("RGB", (32, 32), (60 * i, 20, 30)).save(data, "png")
            archive.writestr(f"{split}/{class_}/{i}.png", data.getvalue())
    small = ("model.width=0.01", "dataset.path=cifar.zip", "model.num_classes=2")
    vis_run("experiment=train_vgg_cifar10", *small, "experiment.recipe.epochs=1", "experiment.recipe.warmup=0")
    facts = json.loads((tmp_path / "outputs/networks/vgg_cifar10.json").read_text(encoding="utf-8"))
    assert facts["trained_on"] == "CIFAR-10 train, cifar.zip"
    assert facts["train_images"] == facts["val_images"] == 2
    folder = vis_run("model=vgg_cifar10", "dataset=cifar10", *small, "target=1").folder
    words = json.loads((folder / "figures.json").read_text(encoding="utf-8"))["figure"]
    assert f"trained by the project on CIFAR-10 train, cifar.zip (top-1 {100 * facts['val_top1']:.1f} %)" in words
    layers = "experiment.models.trained.width=0.01", "experiment.models.trained.num_classes=2"
    found = claims(vis_run("experiment=nie2018/figure9_vgg", "preset=small", *layers).folder)
    assert found["N-4.5-d"]["verdict"] != "not measured"


def test_stages_of_a_resnet(vis_run):
    resnet = ("model=cifar_resnet20", "model.depth=8", "model.init=kaiming_normal")
    register()
    model = Run(compose_config([*resnet])).model()
    assert _stages(model) == ["conv1", "layer1", "layer2", "layer3", "linear"]


def test_figure3(vis_run, checkpoint):
    networks = (
        *FIGURE7[1:5],
        "model@experiment.models.trained=vgg_small",
        f"experiment.models.trained.weights={checkpoint}",
        "experiment.pairs=8",
    )
    folder = vis_run("experiment=nie2018/figure3", *networks).folder
    results = load_run(folder)
    state = torch.load(checkpoint)["classifier.0.weight"].double()
    (row,) = results.rows("neurons", network="trained", neuron=44)
    assert row["std"] == pytest.approx(state[44].std(correction=0).item())
    assert len(results.rows("pairs", network="trained")) == 8
    a, b = (torch.from_numpy(results.arrays[f"trained/tabby/{n}/gbp"])[None] for n in (26, 44))
    assert metrics.pearson(a, b).item() > 0
    assert {"N-3.2.3-h", "N-3.2.3-i", "N-3.2.3-j", "N-E9", "saliency_apart"} <= set(claims(folder))


def test_the_fit_of_a_gaussian():
    random = np.random.default_rng(0)
    gaussian, laplace = fit(random.normal(2, 3, 20_000), 0), fit(random.laplace(size=20_000), 1)
    assert gaussian["D"] < 0.01 < 0.04 < laplace["D"] == pytest.approx(laplace["D_laplace"], abs=0.02)
    assert laplace["kurtosis"] == pytest.approx(3, abs=0.6)


def test_ranks_and_gabor_functions_of_filters():
    assert effective_rank(torch.eye(6)) == pytest.approx(1)
    assert effective_rank(torch.ones(6, 9)) == pytest.approx(1 / 6)
    axis = torch.arange(11.0) - 5
    gabor = torch.exp(-(axis[:, None] ** 2 + axis**2) / 10) * torch.sin(1.2 * axis)
    noise = torch.randn(11, 11, generator=torch.Generator().manual_seed(0))
    like, unlike = gabor_fit(torch.stack([gabor, noise]))
    assert like > 0.9 > 0.5 > unlike


def test_filters_of_a_network(vis_run, checkpoint):
    trained = ("model@experiment.models.trained=vgg_small", f"experiment.models.trained.weights={checkpoint}")
    folder = vis_run("experiment=nie2018/filters", *FIGURE7[1:4], *trained, "dataset.limit=2").folder
    results = load_run(folder)
    weight = torch.load(checkpoint)["features.0.weight"].double()
    (row,) = results.rows("networks", network="trained")
    assert row["rank"] == pytest.approx(effective_rank(weight.flatten(1)))
    assert all(r["dead"] == 0 or 0 < r["dead"] < 1 for r in results.rows("photographs"))
    assert claims(folder)["N-3.2.3-c"]["verdict"] in ("undecided", "fails")


def test_deletion(vis_run, checkpoint):
    folder = vis_run("experiment=nie2018/deletion", *own(checkpoint), "seeds=1", "dataset.limit=2").folder
    results = load_run(folder)
    row = results.rows(image="tabby", method="gbp")[0]
    own_curve, other, chance = results.arrays["tabby/gbp"]
    assert own_curve[0] == other[0] == chance[0]
    assert own_curve[-1] == pytest.approx(chance[-1])
    assert row["gap"] == pytest.approx(np.trapezoid(other - own_curve) / 16, abs=1e-5)
    assert {"N-2.2-e", "N-3.2.3-a"} == set(claims(folder))


def test_the_ratio_of_two_gaps_has_the_uncertainty_of_both():
    own, of = [0.02, 0.02, 0.02, 0.02], [0.01, 0.02, 0.4, 0.37]
    found = jackknife(list(zip(own, of, strict=True)), ratio)
    leave_out = [0.06 / (0.8 - each) for each in of]
    assert found == pytest.approx([4 * 0.1 - 3 * each for each in leave_out])
    assert interval([a / np.mean(of) for a in own]) == pytest.approx((0.1, 0.1))  # as if Grad-CAM's gap were certain
    low, high = interval(found)
    assert high - low > 0.1
    assert jackknife([(0.2, 0.1), (0.4, 0.2), (0.6, 0.3)], ratio) == pytest.approx([2, 2, 2])
    assert np.isnan(ratio([(0.1, 0.0)]))


def test_a_grid_has_its_period():
    noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert (grid(noise, 4) < 3).all()
    noise[:, :, ::4, ::4] += 2
    assert (grid(noise, 4) > 10).all()
    assert (grid(noise, 8) < 3).all()  # most of its frequencies are not those of 4


def test_a_folder_takes_the_place_of_named_photographs(tmp_path):
    register()
    for words in (["preset=small"], ["preset=paper"]):
        chosen = ["experiment=nie2018/supplement_figure1", "dataset=folder", f"dataset.path={tmp_path}", *words]
        assert "names" not in compose_config(chosen).dataset


def test_differences_from_the_papers_setting(vis_run, checkpoint):
    results = load_run(vis_run("experiment=nie2018/supplement_figure2", *own(checkpoint), "target=[1,2]").folder)
    (claim,) = judged([Claim("N-1-c", [])], results, ["dog"])
    assert claim.differences == ["vgg_small instead of VGG-16", "coffee instead of dog"]
    results.config.preset = "small"
    (claim,) = judged([Claim("N-1-c", [])], results, ["coffee"])
    assert claim.reason == ""
    results.config.preset = "tiny"
    (claim,) = judged([Claim("N-1-c", [])], results, ["coffee"])
    assert claim.reason
    assert claim.differences == ["vgg_small instead of VGG-16"]
    results.config.model = {"_target_": "vis.models.VGG16", "num_classes": 1000, "pool": "max", "input_size": 224}
    for weights, sha256, differences in (
        ("torchvision", "397923af" + "0" * 56, []),
        (
            "torchvision",
            "0" * 64,
            ["weights of torchvision with the sha256 00000000 instead of the published 397923af"],
        ),
        ("mine.pt", "1" * 64, ["weights of a file with the sha256 11111111 instead of the published 397923af"]),
        ("mine.pt", None, ["weights of a file instead of the published 397923af"]),
    ):
        results.config.model.update(weights=weights, sha256=sha256)
        assert judged([Claim("N-1-c", [])], results, ["coffee"])[0].differences == differences


def test_the_edge_detector_and_its_texture():
    x = torch.arange(64 * 64.0).view(1, 1, 64, 64).expand(1, 3, 64, 64) / 64
    assert (left_difference(x)[..., 1:] == 1 / 64).all()
    assert (left_difference(x)[..., 0] == 0).all()
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    noise[..., :32] = 0  # flat on the left
    where = textured(noise, 3)
    assert where[..., 40:].mean() > 0.95 > 0.05 > where[..., :24].mean()


def test_supplement_figure9(vis_run, checkpoint):
    folder = vis_run("experiment=nie2018/supplement_figure9", *own(checkpoint), "seeds=1").folder
    rows = load_run(folder).rows(map="edge", network="trained")
    assert all(row["local"] == pytest.approx(1) and row["edges"] > 1 > row["background"] > 0 for row in rows)
    assert {"N-F-a", "N-F-b", "N-F-c"} == set(claims(folder))


def torchrun(*arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "vis.run",
        *arguments,
    ]


MANY = (*FIGURE7, "dataset=digits", "dataset.limit=100", "device=cpu")


@pytest.mark.slow
def test_two_processes_give_what_one_gives_also_when_they_were_killed(command, tmp_path):
    one = Path(command(*MANY, "outputs=one", env=os.environ | {"OMP_NUM_THREADS": "1"}).stdout.strip())
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        torchrun(*MANY, "outputs=two"), cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    (two,) = tmp_path.glob("two/*/*")
    assert done.stdout.strip() == str(two)  # one folder, said once
    process = subprocess.Popen(torchrun(*MANY, "outputs=killed"), cwd=tmp_path, env=environment, start_new_session=True)
    deadline = time.monotonic() + 100
    while len(list(tmp_path.glob("killed/*/*/parts/*.npz"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (killed,) = tmp_path.glob("killed/*/*")
    assert 5 <= len(list(killed.glob("parts/*.npz"))) < 50
    subprocess.run(torchrun("--resume", str(killed)), cwd=tmp_path, env=environment, check=True, capture_output=True)
    for name in RESULTS:
        assert (two / name).read_bytes() == (one / name).read_bytes(), name
        assert (killed / name).read_bytes() == (one / name).read_bytes(), name


@pytest.mark.slow
def test_what_is_no_run_ends_in_all_processes(tmp_path):
    done = subprocess.run(torchrun("--version"), cwd=tmp_path, check=True, capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("vis-run ")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.slow
def test_a_mistake_ends_all_processes(tmp_path):
    done = subprocess.run(
        torchrun("method=gbq"), cwd=tmp_path, check=False, capture_output=True, text=True, timeout=100
    )
    assert done.returncode != 0
    assert "there is no method 'gbq'" in done.stderr
