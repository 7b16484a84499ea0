"""Baselines and fills: black is black pixels as the network sees them, whoever calls; captions say what a baseline is."""

import copy
import json

import networks
import pytest
import relevances
import torch
from checks import close, error
from hypothesis import given, settings
from hypothesis import strategies as st
from references import covered, integrated
from torch import Tensor, nn

from vis.config.compose import compose_config
from vis.data import preprocessing
from vis.methods import DeepLIFT, IntegratedGradients, NotApplicable, Occlusion, OptiCAM, Saliency, SmoothGrad
from vis.methods.baseline import baseline_image, baseline_images
from vis.runner.experiment import Run, method_words
from vis.store.run_folder import load_run

METHODS = {
    "integrated_gradients": IntegratedGradients(7),
    "deeplift": DeepLIFT(),
    "deeplift_reveal_cancel": DeepLIFT("reveal_cancel"),
    "opticam": OptiCAM(iterations=5),
    "occlusion": Occlusion(window=3),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def tiny() -> nn.Module:
    """Without biases and paddings."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5, bias=False))


def moved(net: nn.Module, x0: Tensor) -> nn.Module:
    """What `tiny` gives for x0 + an image: from a colour x0 [C] is from zero there."""
    net = copy.deepcopy(net)
    net[0].bias = nn.Parameter(net[0].weight.sum((2, 3)) @ x0)
    return net


# --- black is black ---------------------------------------------------------------------------------------------------


def test_a_run_starts_from_black_pixels(vis_run):
    """On a normalised network without biases, where from the network's zero all this would be gradient times input."""
    words = ["model=custom", "model._target_=test_baselines.tiny", "model.input_size=12", "model.init=normal"]
    words += ["dataset.names=all", "dataset.limit=2", "target=2", "precision=float64", f"method=[{','.join(METHODS)}]"]
    words += ["methods.integrated_gradients.steps=7", "methods.opticam.iterations=5", "methods.occlusion.window=3"]
    ran = vis_run(*words)
    run = Run(compose_config(words))
    net = run.model().net.cpu()
    batch = run.batch(run.model(), [0, 1])
    x = batch.x.cpu()
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    black, gray = -mean / std, (0.5 - mean) / std
    from_black, y = moved(net, black), x - black.view(3, 1, 1)
    expected = {
        "integrated_gradients": integrated(from_black, y, 2),
        "deeplift": relevances.deeplift(False)(from_black, y, 2),
        "deeplift_reveal_cancel": relevances.deeplift(True)(from_black, y, 2),
        "opticam": OptiCAM(iterations=5, baseline="zero")(from_black, y, 2),
        "occlusion": covered(moved(net, gray), x - gray.view(3, 1, 1), 2),
    }
    arrays, from_zero = load_run(ran.folder).arrays, Saliency()(net, x, 2) * x
    for name, maps in expected.items():
        stored = torch.stack([torch.from_numpy(arrays[f"0/{image}/2/{name}"]) for image in batch.names])
        assert error(stored, maps) < 1e-7, name
        assert error(stored, from_zero.expand_as(stored) if maps.shape[1] == 3 else maps * 0 + 1) > 0.1


@every_method
@pytest.mark.parametrize("colour", ["black", "gray", "white"])
def test_a_colour_of_pixels_is_the_zero_of_the_network_that_is_moved_there(method, colour):
    torch.manual_seed(0)
    net, pixels = tiny().double(), torch.rand(2, 3, 12, 12, dtype=torch.float64)
    preprocess = preprocessing("imagenet")
    method, zero = copy.copy(method), copy.copy(method)
    key = "fill" if isinstance(method, Occlusion) else "baseline"
    setattr(method, key, colour)
    setattr(zero, key, "zero")
    value = {"black": 0.0, "gray": 0.5, "white": 1.0}[colour]
    x, x0 = preprocess(pixels), preprocess(torch.full_like(pixels[:1], value))
    expected = zero(moved(net, x0[0, :, 0, 0]), x - x0, 2)
    assert error(method(net, x, 2, preprocess), expected) < 1e-9
    setattr(method, key, x0[0, :, :1, :1])
    assert error(method(net, x, 2), expected) < 1e-9, "a tensor needs no preprocessing"


@pytest.mark.filterwarnings("ignore")  # captum speaks of its hooks
@pytest.mark.parametrize("baseline", ["black", "white", ["black", "gray", "mean"]])
def test_maps_equal_captums_from_the_same_images(baseline):
    attr = pytest.importorskip("captum.attr")  # a dev dependency
    net, x = networks.build("batch_norm"), networks.images(2)
    colours = [baseline] if isinstance(baseline, str) else baseline
    images = {
        "black": networks.preprocess(torch.zeros_like(x)),
        "gray": networks.preprocess(torch.full_like(x, 0.5)),
        "white": networks.preprocess(torch.ones_like(x)),
        "mean": x.mean((2, 3), keepdim=True).expand_as(x),
    }
    theirs = torch.stack(
        [attr.IntegratedGradients(net).attribute(x, images[c], 2, n_steps=9, method="gausslegendre") for c in colours]
    ).mean(0)
    assert error(IntegratedGradients(9, baseline=baseline)(net, x, 2, networks.preprocess), theirs) < 1e-6  # in float32
    theirs = torch.stack([attr.DeepLift(net).attribute(x, images[c], 2) for c in colours]).mean(0)
    assert error(DeepLIFT(baseline=baseline)(net, x, 2, networks.preprocess), theirs.detach()) < 1e-9


@every_method
def test_without_a_preprocessing_nobody_guesses_what_black_is(method):
    net, x = networks.build("vgg_like"), networks.images(1)
    for each in (method, SmoothGrad(method, samples=2)):
        with pytest.raises(
            NotApplicable, match=r"(black|gray) pixels depend on .* pass preprocess=.* a tensor or zero"
        ):
            each(net, x, 1)


# --- several ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda b: IntegratedGradients(9, baseline=b), lambda b: DeepLIFT(baseline=b)])
def test_several_baselines_are_the_mean_of_each(make):
    net, x = networks.build("residual"), networks.images(2)
    given = ["black", "white", "blur", x.flip(0), [0.2, 0.9]]
    several, one_by_one = make(given), [make(each)(net, x, 1, networks.preprocess) for each in given]
    maps = several(net, x, 1, networks.preprocess)
    assert close(maps, torch.stack(one_by_one).mean(0))
    total = torch.stack([net(x)[:, 1] - net(x0.expand_as(x))[:, 1] for x0 in references(given, x)]).mean(0)
    errors = several.axiom_error(net, x, 1, maps, networks.preprocess)
    assert torch.allclose(errors, ((maps.sum((1, 2, 3)) - total) / total).abs().detach())


def references(given: list, x: Tensor) -> list[Tensor]:
    return baseline_images(x, given, networks.preprocess)


def test_each_noise_is_another_one():
    first, second = references(["noise", "noise"], networks.images())
    assert not torch.equal(first, second)
    assert torch.equal(first, references(["noise"], networks.images())[0])


# --- what they are ----------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 99), kind=st.sampled_from(["zero", "black", "mean", "blur", "noise"]))
@settings(max_examples=10, deadline=None)
def test_a_baseline_is_of_its_own_image_within_its_range(seed, kind):
    x = networks.images(3, seed)
    baseline = baseline_image(x, kind, networks.preprocess, 7).expand_as(x)
    for i in range(3):
        assert torch.equal(baseline[i], baseline_image(x[i : i + 1], kind, networks.preprocess, 7)[0])
        assert x[i].min() <= baseline[i].max() <= x[i].max()


def test_baselines_are_what_they_are_called():
    x = networks.images()
    assert torch.allclose(
        baseline_image(x, "black", networks.preprocess)[0, :, 3, 4], torch.tensor([-2, -5 / 3]).double()
    )
    assert torch.allclose(
        baseline_image(x, [0.6, 0.2], networks.preprocess)[0, :, 3, 4], torch.tensor([1.0, -1.0]).double()
    )
    assert torch.allclose(baseline_image(x, "mean", None)[1, :, 3, 4], x[1].mean((1, 2)))
    assert not torch.equal(baseline_image(x, "noise", None, 0), baseline_image(x, "noise", None, 1))
    assert 0 < baseline_image(x, "blur", None).std() < x.std()
    for tensor in (x, x[:1], x[0], x[0, :, :1, :1]):
        assert torch.equal(baseline_image(x, tensor, None).expand_as(x), tensor.expand_as(x))


def test_table1_masks_to_the_papers_black():
    """Opti-CAM of taimeskhanov2024 masks in [0, 1]; its black is -mean / std of ImageNet."""
    folders = (
        "experiment.datasets.mix.path=.",
        "experiment.datasets.gen.path=.",
        "model.weights=null",
        "model.init=normal",
    )
    paper, small = (folders, [-2.117904, -2.035714, -1.804444]), (("preset=tiny",), [0.0])
    for words, black in (paper, small):
        run = Run(compose_config(["experiment=taimeskhanov2024/table1", *words]))
        x = torch.zeros(1, len(black), 2, 2)
        found = baseline_image(
            x, run.methods["opticam"].baseline, preprocessing(run.config.model.preprocess), part=True
        )
        assert torch.allclose(found[0, :, 0, 0], torch.tensor(black), atol=1e-6)


def test_black_of_unit_norm_is_an_image_of_norm_1_and_no_part_of_one():
    x = torch.rand(2, 3, 8, 8)
    preprocess = preprocessing("unit_norm")
    assert baseline_image(x, "black", preprocess).norm().item() == pytest.approx(1)
    with pytest.raises(NotApplicable, match="gray pixels cannot replace a part of an image"):
        Occlusion(window=3)(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), preprocess(x), 1, preprocess)


@pytest.mark.parametrize("wrong", ["grey", [], [255, 255], -0.5, ["black", 7], None])
def test_what_is_no_baseline_is_an_error(wrong):
    for make in (IntegratedGradients, DeepLIFT, OptiCAM):
        with pytest.raises(ValueError, match="a baseline is black, gray, white, zero"):
            make(baseline=wrong)
    with pytest.raises(ValueError, match="a baseline is"):
        Occlusion(fill=wrong)


def test_one_baseline_where_one_is_wanted():
    for make in (lambda: OptiCAM(baseline=["black", "white"]), lambda: Occlusion(fill=["black", "white"])):
        with pytest.raises(ValueError, match="give one baseline"):
            make()


@pytest.mark.parametrize(
    ("baseline", "preprocess", "message"),
    [
        ([0.1, 0.2, 0.3], networks.preprocess, "3 numbers, the images have 2 channels"),
        (torch.zeros(2, 8, 8), None, r"the baseline is \[2, 8, 8\], the images are \[3, 2, 12, 12\]"),
        (torch.zeros(2, 2, 12, 12), None, r"the baseline is \[2, 2, 12, 12\]"),
        ("black", lambda pixels: pixels[..., :8, :8], "no image of the same shape of black pixels"),
        ("black", lambda pixels: (pixels - pixels.mean()) / pixels.std(), "no image of the same shape of black pixels"),
    ],
)
def test_a_baseline_that_does_not_fit_the_images_is_an_error(baseline, preprocess, message):
    with pytest.raises(NotApplicable, match=message):
        IntegratedGradients(2, baseline=baseline)(networks.build("vgg_like"), networks.images(), 1, preprocess)


# --- captions ---------------------------------------------------------------------------------------------------------


def test_captions_name_the_baseline(vis_run):
    small = ["model=cnn_masked", "model.init=kaiming_normal", "dataset=stacked_digits", "dataset.limit=1"]
    small += ["method=[integrated_gradients,deeplift,occlusion,gbp]", "methods.occlusion.stride=10"]
    small += ["methods.integrated_gradients.steps=2", "methods.integrated_gradients.baseline=[white,blur]"]
    folder = vis_run(*small).folder
    (folder / "figures.json").unlink()
    assert vis_run("--redraw", str(folder)).code == 0
    caption = json.loads((folder / "figures.json").read_text(encoding="utf-8"))["figure"]
    assert "Integrated gradients from white pixels and the blurred image. DeepLIFT against black pixels." in caption
    assert "Occlusion by gray pixels." in caption
    folder = vis_run("experiment=compare", "experiment.steps=2", *small).folder
    captions = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    assert all("DeepLIFT against black pixels" in each for each in captions.values())


def test_a_method_of_a_method_names_its_baseline():
    words = ["method=[smoothgrad,opticam,lrp]", "methods.smoothgrad.base._target_=vis.methods.IntegratedGradients"]
    assert method_words(compose_config(words)) == [
        "SmoothGrad of Integrated gradients from black pixels",
        "Opti-CAM masking to black pixels",
        "LRP by the composite epsilon_plus",
    ]


def test_the_bound_of_odds_is_said_of_odds_alone(caplog):
    net, x = networks.build("vgg_like"), networks.images()[:1]
    net[-1].weight.data *= 1e4  # probability 1
    for evidence, said in (("score", False), ("odds", True)):
        caplog.clear()
        with caplog.at_level("INFO"):
            Occlusion(window=3, fill="zero", evidence=evidence)(net, x)
        assert ("Laplace" in caplog.text) is said
