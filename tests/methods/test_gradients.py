"""Integrated gradients, SmoothGrad and FEM beyond the contract of every method (tests/methods/test_methods.py)."""

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vis.config.instantiate import construct
from vis.errors import UserError
from vis.methods import (
    CAM,
    Forward,
    GradCAM,
    GuidedBackprop,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
    Target,
    gradients,
)
from vis.methods.fem import fem


def close(got: Tensor, expected: Tensor) -> bool:
    return ((got - expected).abs().max() / expected.abs().max()).item() < 1e-12


def images_seen(net: nn.Module) -> list[int]:
    """Fills with the number of images of each pass."""
    seen: list[int] = []
    net.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    return seen


# --- integrated gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["gauss_legendre", "riemann"])
@pytest.mark.parametrize("network", ["functional", "residual", "gelu"])
def test_more_steps_make_integrated_gradients_complete(network, rule):
    net, x = networks.build(network), networks.images()
    errors = []
    for steps in (3, 80, 400):
        method = IntegratedGradients(steps, rule, "mean")
        errors.append(method.axiom_error(net, x, 1, method(net, x, 1)).mean().item())
    assert errors[2] < min(errors[0] / 10, 1e-2)
    if (network, rule) == ("gelu", "gauss_legendre"):  # smooth
        assert errors[1] < 1e-12


def test_the_sum_of_riemann_is_at_the_right_ends_of_the_steps():
    net, x = networks.build("functional"), networks.images()
    expected = x * sum(Saliency()(net, k / 4 * x, 2) for k in (1, 2, 3, 4)) / 4
    assert close(IntegratedGradients(4, "riemann", "zero")(net, x, 2), expected)


def test_a_network_without_biases_needs_one_pass_from_zero():
    net, x = networks.build("overlapping_pools"), networks.images()
    seen = images_seen(net)
    maps = IntegratedGradients(50, baseline="zero")(net, x, 1)
    assert sum(seen) == len(x)
    assert close(maps, x * Saliency()(net, x, 1))
    seen.clear()
    IntegratedGradients(50)(net, x, 1, networks.preprocess)
    assert sum(seen) == 51 * len(x), "black is not the network's zero"
    seen.clear()
    several = IntegratedGradients(50, baseline=["zero", "mean"])(net, x, 1)
    assert sum(seen) == 51 * len(x)
    assert close(several, (maps + IntegratedGradients(50, baseline="mean")(net, x, 1)) / 2)


@pytest.mark.parametrize("network", ["vgg_like", "batch_norm", "residual", "functional", "gelu"])
def test_biases_and_activations_that_bend_are_seen(network):
    with Forward(networks.build(network), networks.images()) as forward:
        assert not gradients.homogeneous(forward)


class Coordinates(nn.Module):
    """No bias, and yet a constant: where a pixel is (CoordConv), or what is around the image."""

    def __init__(self, padded: bool) -> None:
        super().__init__()
        self.padded, self.conv = padded, nn.Conv2d(2 if padded else 3, 5, 3, bias=False)
        self.register_buffer("place", torch.linspace(-1, 1, 12).expand(1, 1, 12, 12))

    def forward(self, x: Tensor) -> Tensor:
        around = F.pad(x, (1, 1, 1, 1), value=0.5)
        return (
            self.conv(around if self.padded else torch.cat([x, self.place.expand(x.size(0), -1, -1, -1)], 1))
            .relu()
            .mean((2, 3))
        )


@pytest.mark.parametrize("padded", [False, True])
def test_constants_that_are_no_biases_are_seen(padded):
    torch.manual_seed(0)
    net, method = Coordinates(padded).double(), IntegratedGradients(400, baseline="zero")
    for x in (networks.images(), 30 * networks.images()):
        assert method.axiom_error(net, x, 1, method(net, x, 1)).max() < 1e-2


def test_a_relu6_and_a_probability_are_not_homogeneous():
    net = nn.Sequential(nn.Conv2d(2, 5, 3, bias=False), nn.ReLU6(), nn.Flatten(), nn.Linear(500, 5, bias=False))
    with Forward(net.double(), networks.images()) as forward:
        assert not gradients.homogeneous(forward)
    net, x = networks.build("overlapping_pools"), networks.images()
    seen = images_seen(net)
    IntegratedGradients(10, baseline="zero")(net, x, Target(1, output="prob"))
    assert sum(seen) == 11 * len(x)


def test_any_unit_of_any_layer_is_integrated():
    net, x = networks.build("vgg_like"), networks.images()
    targets = [Target(2, layer="7"), Target(1), Target(None, layer="3")]
    method = IntegratedGradients(200, baseline="zero")
    maps = method(net, x, targets)
    assert method.axiom_error(net, x, targets, maps).max() < 5e-2
    assert close(maps[:1], method(net[:8], x[:1], 2))


def test_how_many_images_go_through_at_once_does_not_matter(monkeypatch):
    net, x = networks.build("residual"), networks.images()
    methods = [IntegratedGradients(7, baseline="mean"), SmoothGrad(GuidedBackprop(), 7)]
    expected = [method(net, x) for method in methods]
    monkeypatch.setattr(gradients, "PASS_VALUES", 4 * x[0].numel())
    seen = images_seen(net)
    assert all(close(method(net, x), maps) for method, maps in zip(methods, expected, strict=True))
    assert max(seen) == 4


# --- SmoothGrad ------------------------------------------------------------------------------------------------------


def test_the_unit_that_is_largest_without_noise_is_smoothed():
    net, x = networks.build("vgg_like"), networks.images()
    method = SmoothGrad(samples=10, noise_level=2.0)
    assert close(method(net, x), method(net, x, net(x).argmax(1)))


def test_a_unit_found_without_noise_is_one_that_every_method_takes():
    torch.manual_seed(0)
    pooled = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    ).double()
    x = networks.images()
    method = SmoothGrad(CAM(), samples=2)
    assert close(method(pooled, x), method(pooled, x, pooled(x).argmax(1)))


def test_noise_depends_on_the_seed_and_scales_with_the_image():
    net, x = networks.build("overlapping_pools"), networks.images()
    maps = SmoothGrad(samples=4)(net, x, 1)
    assert not close(maps, SmoothGrad(samples=4, seed=1)(net, x, 1))
    assert close(maps, SmoothGrad(samples=4)(net, 7 * x, 1))  # its gradient does not see the scale of an image


def test_smoothgrad_of_any_method_from_a_config():
    node = {"_target_": "vis.methods.SmoothGrad", "base": {"_target_": "vis.methods.GradCAM", "layer": "conv2"}}
    method = construct(node, "methods.smoothgrad")
    assert isinstance(method.base, GradCAM)
    assert method(networks.build("residual"), networks.images()).shape == (3, 1, 12, 12)
    node["base"]["lyer"] = "conv2"
    with pytest.raises(UserError, match=r"takes no parameter methods.smoothgrad.base.lyer. Did you mean 'layer'"):
        construct(node, "methods.smoothgrad")


# --- FEM -------------------------------------------------------------------------------------------------------------


def test_fem_by_hand():
    """Means 1 and 2, deviations sqrt(3) and 0: 4 is above 2.73, and 2 is not below 2."""
    A = torch.tensor([[[[4.0, 0], [0, 0]], [[2, 2], [2, 2]]]])
    assert fem(A).tolist() == [[[3, 2], [2, 2]]]
    assert fem(A, K=2).tolist() == [[[2, 2], [2, 2]]]


def test_fem_keeps_constant_feature_maps_whatever_their_mean_is_rounded_to():
    constants = torch.rand(500, generator=torch.Generator().manual_seed(0))
    kept = fem(constants.view(-1, 1, 1, 1).expand(-1, 1, 14, 14).contiguous())
    assert torch.allclose(kept, constants.view(-1, 1, 1).expand_as(kept))


def test_fem_of_feature_maps_with_three_dimensions():
    A = networks.images(2).view(2, 2, 6, 6, 4)
    flat = fem(A.reshape(2, 2, 36, 4))
    assert torch.equal(fem(A), flat.view(2, 6, 6, 4))


class InPlace(nn.Module):
    """A statement in place that no value of the graph reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bias = nn.Conv2d(2, 5, 3, bias=False), nn.Parameter(torch.randn(5, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.add_(self.bias)
        return y.relu().mean((2, 3))


def test_a_bias_that_the_graph_does_not_show_is_no_shortcut():
    torch.manual_seed(0)
    net, x = InPlace().double(), networks.images()
    maps = IntegratedGradients(400, baseline="zero")(net, x, 1)
    difference = (net(x) - net(torch.zeros_like(x)))[:, 1]
    assert torch.allclose(maps.flatten(1).sum(1), difference, rtol=1e-2)
