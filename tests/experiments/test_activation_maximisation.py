"""Activation maximisation, zhou2018 Eqs. (1) to (3), against closed forms."""

import numpy as np
import pytest
import torch
import yaml
from concluded import concluded
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn

from experiments.zhou2018.activation_maximisation import Regulariser, blurred, clipped, maximise, rms, spectra
from experiments.zhou2018.generator import features, trained
from vis.config.home import CONF
from vis.data import preprocessing
from vis.errors import UserError
from vis.models import imagenet_classes

UNIT = preprocessing("unit_range")
NONE = Regulariser()


class Linear(nn.Module):
    """a_i(x) = w_i x, for images of 1x4x4."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 2).double()

    def forward(self, x):
        return self.fc(x.flatten(1))


def ascent(regulariser: Regulariser, steps: int = 400, eta: float = 0.05, net: nn.Module | None = None) -> torch.Tensor:
    torch.manual_seed(0)
    return maximise(net or Linear(), 1, torch.full((1, 1, 4, 4), 0.5).double(), regulariser, UNIT, steps, eta, seed=0)


def test_without_a_regulariser_every_pixel_ends_where_the_class_is_largest():
    torch.manual_seed(0)
    net = Linear()
    expected = (net.fc.weight[1] > 0).double().view(1, 1, 4, 4)  # of all images in [0, 1]
    assert torch.equal(ascent(NONE), expected)


def test_l2_decay_ends_at_the_fixed_point_of_equation_3():
    torch.manual_seed(0)
    w = Linear().fc.weight.detach()[1].view(1, 1, 4, 4)
    decay, eta = 0.1, 0.05
    # x = (1 - decay) (x + eta w / rms(w)), within [0, 1]
    fixed = ((1 - decay) / decay * eta * w / w.square().mean().sqrt()).clamp(0, 1)
    torch.testing.assert_close(ascent(Regulariser(decay=decay), eta=eta), fixed, atol=1e-10, rtol=0)


def test_a_norm_constraint_keeps_equation_1s_norm_where_no_pixel_leaves_its_range():
    image = ascent(Regulariser(rms=0.3), 200, eta=0.01)
    assert image.max() < 1
    assert rms(image) == pytest.approx(0.3, rel=1e-3), "pixels below 0 are cut after a step"
    torch.manual_seed(0)
    w = Linear().fc.weight[1].detach().view(1, 1, 4, 4)
    assert torch.nn.functional.cosine_similarity(image.flatten(), w.clamp(min=0).flatten(), dim=0) > 0.99


@settings(max_examples=15, deadline=None)
@given(st.floats(0.3, 2.0), st.integers(9, 14), st.integers(0, 99))
def test_the_blur_is_scipys(sigma, side, seed):
    x = np.random.default_rng(seed).random((1, 2, side, side))
    radius = min(int(np.ceil(4 * sigma)), side - 1)
    for c in range(2):
        expected = ndimage.gaussian_filter(x[0, c], sigma, mode="mirror", radius=radius)
        np.testing.assert_allclose(blurred(torch.from_numpy(x), sigma)[0, c], expected, atol=1e-12)


def test_clipping_takes_the_smallest_share_of_pixels_in_all_channels():
    x = torch.arange(1.0, 9).view(1, 2, 2, 2)
    size = torch.tensor([[3.0, 1.0], [4.0, 2.0]])[None, None]
    assert torch.equal(clipped(x, size, 0.5), torch.tensor([[[[1.0, 0], [3, 0]], [[5, 0], [7, 0]]]]))
    assert torch.equal(clipped(x, size, 0.0), x)
    gradient = torch.tensor([1.0, 1, 1, 1, -0.2, -0.2, -0.2, 0]).view(1, 2, 2, 2)
    # contributions |x g| are 0, .8, 1.6 and 4: the first pixel goes, though its gradient does not vanish
    assert torch.equal(
        Regulariser(contribution=0.25)(x, gradient, 0) == 0, torch.eye(4)[0].bool().view(1, 1, 2, 2).expand_as(x)
    )


def test_the_blur_comes_every_few_steps_only():
    x, g = torch.rand(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)
    regulariser = Regulariser(blur=0.5, blur_every=3)
    assert [torch.equal(regulariser(x, g, step), x) for step in range(6)] == [True, True, False] * 2


def test_jitter_finds_the_image_whose_shifts_are_all_like_the_class():
    torch.manual_seed(0)
    net = Linear()
    net.fc.weight.data[1] = torch.eye(4)[0].repeat(4).double()  # the first column
    still, shaken = ascent(NONE, 50, net=net), ascent(Regulariser(jitter=2), 200, net=net)
    assert still[..., 0].min() == 1
    assert torch.equal(still[..., 1:], torch.full((1, 1, 4, 3), 0.5).double())
    assert shaken.min() > 0.99  # every column was the first at some step


def test_the_network_is_left_as_it_was_and_a_dead_class_is_an_error():
    net = Linear().train()
    ascent(NONE, 3, net=net)
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    nn.init.zeros_(net.fc.weight)
    with pytest.raises(UserError, match="class 1 has no gradient"):
        ascent(NONE, 3, net=net)


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"norm": -0.1}, {"blur_every": 0}, {"jitter": -1}])
def test_a_regulariser_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="0 or"):
        Regulariser(**wrong)


def test_a_generator_learns_to_invert_a_network_and_is_ascended():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2)).double()
    pixels = torch.rand(64, 1, 4, 4).double().round()
    G = trained(net, pixels, UNIT, steps=400, seed=0)
    codes = torch.zeros(1, 12, 1, 1).double()
    assert G(codes).shape == (1, 1, 4, 4)
    z = features(net, pixels, UNIT)
    torch.testing.assert_close(z, net[:3](pixels))
    error = (G.pixels((z / (3 * z.std(0)).clamp(min=1e-12)).clamp(max=1)) - pixels).square().mean()
    assert error < 0.5 * (pixels.mean(0) - pixels).square().mean(), "nearer than the mean image"
    whole = nn.Sequential(G, net)
    best = maximise(whole, 1, codes + 0.1, NONE, UNIT, 30, 0.05, seed=0)
    assert whole(best)[0, 1] > whole(codes + 0.1)[0, 1]


def test_random_signs_lead_nowhere_and_a_spectrum_is_parsevals():
    torch.manual_seed(0)
    net = Linear()
    walk = ascent(Regulariser(shuffled=True), 50, net=net)
    assert net(walk)[0, 1] < net(ascent(NONE, 50, net=net))[0, 1]
    x = torch.rand(1, 1, 8, 8)
    side = torch.fft.fftfreq(8, dtype=torch.float64)
    ring = (torch.cartesian_prod(side, side).norm(dim=1) / 0.5 * 16).clamp(max=15).long()
    total = (spectra(x)[0].exp() * ring[1:].bincount(minlength=16)).sum()
    assert float(total) == pytest.approx(float(64**2 * x.double().var(correction=0)), rel=1e-6)


def test_the_experiment_measures_every_column_of_every_class():
    random = [
        f"{key}.{v}" for key in ("model", "experiment.networks.judge") for v in ("weights=null", "init=kaiming_normal")
    ]
    small = (
        "experiment=zhou2018/activation_maximisation", "model=cnn_mnist", "model@experiment.networks.judge=vgg_small",
        "dataset=digits", "dataset.limit=20", *random,
    )  # fmt: skip
    sizes = ("target=[3,7]", "experiment.steps=3", "experiment.generator={images: 20, steps: 3}")
    results, claims = concluded(*small, *sizes)
    assert len(results.rows()) == 2 * 9
    assert {row["class"] for row in results.rows()} == {"logit 3", "logit 7"}
    assert all(x.min() >= 0 and x.max() <= 1 for x in results.arrays.values())
    assert {f"Z-1-{letter}" for letter in "abcdef"} | {"regularised"} == claims.keys()
    assert claims["Z-1-d"]["verdict"] == "undecided", "two classes"
    assert {row["judge"] for row in results.rows()} == {"random weights (kaiming_normal, seed 0)"}
    rows = {name: [r["high"] for r in results.rows(column=name)] for name in ("none", "all")}
    differences = [a - b for a, b in zip(rows["none"], rows["all"], strict=True)]
    assert claims["regularised"]["compared"][0]["values"] == pytest.approx(differences)
    with pytest.raises(UserError, match="class names"):
        concluded(*small, "target=max")


def test_the_default_classes_are_those_of_imagenet():
    target = yaml.safe_load((CONF / "experiment" / "zhou2018" / "activation_maximisation.yaml").read_text())["target"]
    assert set(target) <= set(imagenet_classes())
