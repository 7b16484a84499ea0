"""The rules of nie2018, Eq. (1)-(2), on autograd's graph; units of other layers; large networks against captum."""

import warnings
from collections.abc import Callable

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checks import close, error, l2_error, last_layer
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from references import naive, replaced
from torch import Tensor, nn

from vis.methods import (
    DECONVNET,
    GUIDED,
    SALIENCY,
    DeconvNet,
    Forward,
    GuidedBackprop,
    NotApplicable,
    ReluRule,
    Saliency,
    Target,
    explain_all,
)
from vis.system import device
from vis.system.device import set_precision

RULES = {"saliency": SALIENCY, "deconvnet": DECONVNET, "gbp": GUIDED}
METHODS = {"saliency": Saliency(), "deconvnet": DeconvNet(), "gbp": GuidedBackprop()}

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


# --- the three rules -------------------------------------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("network", ["vgg_like", "overlapping_pools", "batch_norm"])
def test_the_rules_equal_a_backward_pass_written_neuron_by_neuron(network, rule):
    net, x = networks.build(network), networks.images(1)
    with Forward(net, x) as forward:
        for unit in (0, 3):
            expected = torch.from_numpy(naive(net, x[0].numpy(), unit, rule))
            assert close(forward.gradient(unit, rule)[0], expected)


def one_relu(y: np.ndarray, R: np.ndarray, rule: ReluRule, relu: Callable[[Tensor], Tensor] = F.relu) -> np.ndarray:
    """What is left of the gradient R behind a ReLU with input y."""

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (relu(x) * torch.from_numpy(R)).flatten(1).sum(1, keepdim=True)

    with Forward(Net(), torch.from_numpy(y)[None, None]) as forward:
        return forward.gradient(0, rule)[0, 0].numpy()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (SALIENCY, [[-2, 0, -1], [6, 0, 0], [0, -1, 3]]),
        (DECONVNET, [[0, 3, 0], [6, 0, 1], [2, 0, 3]]),
        (GUIDED, [[0, 0, 0], [6, 0, 0], [0, 0, 3]]),
    ],
    ids=RULES,
)
def test_the_numeric_example_of_the_relu_rules(rule, expected):
    """Springenberg et al. 2014, Figure 1; ayyar2021, Figure 5."""
    y = np.array([[1.0, -1, 5], [2, -5, -7], [-3, 2, 4]])
    R = np.array([[-2.0, 3, -1], [6, -3, 1], [2, -1, 3]])
    assert one_relu(y, R, rule).tolist() == expected


SPELLINGS = {
    "F.relu": F.relu,
    "in place": lambda x: F.relu(x, inplace=True),
    "Tensor.relu_": Tensor.relu_,
    "clamp": lambda x: x.clamp(min=0),
    "clamp_": lambda x: x.clamp_(min=0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clip": lambda x: x.clip(0, 1e9),
    "threshold": lambda x: F.threshold(x, 0, 0),
    "hardtanh": lambda x: F.hardtanh(x, 0, 1e9),
}


@every_rule
@pytest.mark.parametrize("spelling", SPELLINGS)
@settings(max_examples=15, deadline=None)
@given(values=arrays(np.float64, (2, 3, 3), elements=st.floats(-9, 9).filter(bool)))
def test_every_spelling_of_a_relu_follows_the_rule(spelling, rule, values):
    y, R = values
    T = np.maximum(R, 0) if rule.rectify_gradient else R
    expected = T * (y > 0) if rule.mask_by_input else T
    assert np.array_equal(one_relu(y, R, rule, SPELLINGS[spelling]), expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), scale=st.floats(1e-3, 1e3), network=st.sampled_from(list(networks.APPLICABLE)))
def test_a_larger_logit_gives_a_larger_map_of_the_same_form(seed, scale, network):
    """The rules are positively homogeneous in the gradient."""
    net, x = networks.build(network, seed), networks.images(1, seed)
    before = explain_all(METHODS, net, x, [0])[0][0]
    with torch.no_grad():
        last_layer(net).weight.mul_(scale)
    for name, maps in before.items():
        assert torch.allclose(METHODS[name](net, x, 0), scale * maps, rtol=1e-9, atol=1e-12 * scale)


def test_a_gradient_that_two_branches_share_is_not_rectified_twice_or_for_both():
    """x goes through a ReLU and around it; the gradient that arrives at both branches is one tensor for autograd."""

    class Around(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (F.relu(x) + x).flatten(1).neg()[:, :1]

    x = torch.ones(1, 1, 1, 1)
    with Forward(Around(), x) as forward:
        assert [forward.gradient(0, rule).item() for rule in (GUIDED, DECONVNET, SALIENCY)] == [-1, -1, -2]


def test_one_forward_pass_serves_three_methods_and_two_logits():
    net, x = networks.build("residual"), networks.images()
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    maps, _ = explain_all(METHODS, net, x, [1, [3, 0, 2]])
    assert len(calls) == 1
    for name, rule in RULES.items():
        assert close(maps[0][name], replaced(rule)(net, x, 1))
        assert close(maps[1][name][:1], replaced(rule)(net, x[:1], 3))


def test_the_rules_do_not_depend_on_the_order_of_the_backward_passes():
    net, x = networks.build("functional"), networks.images()
    with Forward(net, x) as forward:
        first = {name: forward.gradient(0, rule) for name, rule in RULES.items()}
        again = {name: forward.gradient(0, rule) for name, rule in reversed(RULES.items())}
    assert all(torch.equal(first[name], again[name]) for name in RULES)


@pytest.mark.slow
def test_a_relu_that_is_hidden_in_a_compiled_graph_is_an_error():
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.compile(networks.build("vgg_like"), backend="aot_eager")
        with pytest.raises(NotApplicable, match="CompiledFunction"):
            GuidedBackprop()(net, networks.images())


def test_a_network_that_cuts_its_graph_is_an_error():
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1).relu()

    with pytest.raises(NotApplicable, match="no gradient connects"):
        Saliency()(Cut(), networks.images())


# --- units of other layers -------------------------------------------------------------------------------------------


@every_rule
def test_any_unit_of_any_layer_is_a_target(rule):
    """The map of a layer's unit is the map of the network that ends there; the in-place ReLU behind it changes nothing."""
    net, x = networks.build("vgg_like"), networks.images()
    method = next(METHODS[name] for name, each in RULES.items() if each == rule)
    assert close(method(net, x, Target(5, layer="7")), method(net[:8], x, 5))
    ends_there = nn.Sequential(*net[:4], nn.Flatten())
    assert close(method(net, x, Target((3, 2, 4), layer="3")), method(ends_there, x, 3 * 36 + 2 * 6 + 4))


def test_a_channel_is_the_sum_of_its_neurons():
    net, x = networks.build("vgg_like"), networks.images(1)
    neurons = [Target((3, i, j), layer="3") for i in range(6) for j in range(6)]
    every_neuron = Saliency()(net, x.expand(36, -1, -1, -1), neurons)
    assert close(Saliency()(net, x, Target(3, layer="3")), every_neuron.sum(0, keepdim=True))


def test_each_image_may_have_a_target_in_another_layer():
    net, x = networks.build("residual"), networks.images()
    targets = [Target(1), Target((0, 5, 5), layer="conv2"), Target(3, output="prob")]
    together = GuidedBackprop()(net, x, targets)
    for i, target in enumerate(targets):
        assert close(together[i : i + 1], GuidedBackprop()(net, x[i : i + 1], target))


def test_calls_of_a_reused_module_are_told_apart():
    net, x = networks.build("residual"), networks.images()
    with Forward(net, x, ["relu:0", "relu:2", "conv3"]) as forward:
        first, last = forward.layers["relu:0"], forward.layers["relu:2"]
        assert torch.equal(first, net.conv1(x).relu())
        assert torch.equal(net.fc(last.mean((2, 3))), forward.logits)
        assert forward.layers["conv3"].min() < 0  # before the in-place ReLU
        at_layer = forward.gradient(1, SALIENCY, of=last)
    assert close(at_layer, net.fc.weight[1].detach()[None, :, None, None].expand_as(last) / 144)
    with pytest.raises(NotApplicable, match="relu is called several times: relu:0 is its first call"):
        Saliency()(net, x, Target(0, layer="relu"))
    with pytest.raises(NotApplicable, match="relu:3 is not called in the forward pass, or not that often"):
        Saliency()(net, x, Target(0, layer="relu:3"))
    with pytest.raises(NotApplicable, match="Residual has no layer 'conv9'"):
        Saliency()(net, x, Target(0, layer="conv9"))


def test_a_layer_that_returns_no_tensor_is_an_error():
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = Two()

        def forward(self, x: Tensor) -> Tensor:
            return self.two(x)[0].flatten(1)

    with pytest.raises(NotApplicable, match="layer two returns a tuple, not a tensor"):
        Saliency()(Net(), networks.images(), Target(0, layer="two"))


def test_after_the_forward_pass_its_values_are_left_without_the_graph():
    net, x = networks.build("residual"), networks.images()
    with Forward(net, x, ["conv1"]) as forward:
        logits = forward.logits
    assert torch.equal(forward.logits, logits)
    assert not forward.logits.requires_grad
    assert not forward.layers["conv1"].requires_grad
    with pytest.raises(NotApplicable, match="the forward pass is over"):
        forward.gradient(0, GUIDED)


# --- large networks against other implementations --------------------------------------------------------------------


def large(arch: str) -> nn.Module:
    from vis.models import VGG16, torchvision_classifier

    torch.manual_seed(0)
    return networks.randomise(VGG16() if arch == "vgg16" else torchvision_classifier(arch))


def captum_maps(net: nn.Module, x: Tensor, unit: int) -> dict[str, Tensor]:
    from captum import attr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maps = {
            "saliency": attr.Saliency(net).attribute(x, target=unit, abs=False),
            "deconvnet": attr.Deconvolution(net).attribute(x, target=unit),
            "gbp": attr.GuidedBackprop(net).attribute(x, target=unit),
        }
    return {name: each.detach() for name, each in maps.items()}


def our_maps(net: nn.Module, x: Tensor, unit: int) -> dict[str, Tensor]:
    return explain_all(METHODS, net, x, [unit])[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["vgg16", "alexnet", "resnet50"])
def test_maps_equal_captums(arch, record_property):
    net, x = large(arch).double(), torch.randn(2, 3, 128, 128, dtype=torch.float64)
    expected = captum_maps(net, x, 482)
    double = {name: error(maps, expected[name]) for name, maps in our_maps(net, x, 482).items()}
    net, x = net.float(), x.float()
    expected = captum_maps(net, x, 482)
    ours = our_maps(net.to(memory_format=torch.channels_last), x, 482)  # as vis-run has it: other sums, flipped ReLUs
    single = {name: l2_error(maps, expected[name]) for name, maps in ours.items()}
    record_property("errors", {"float64 max": double, "float32 l2": single})
    assert max(double.values()) < 1e-12
    assert max(single.values()) < 2e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch",
    [
        "googlenet",
        "densenet121",
        "resnet18",
        "inception_v3",
        "mobilenet_v2",
        "mnasnet0_5",
        "regnet_x_400mf",
        "regnet_y_400mf",
        "shufflenet_v2_x0_5",
        "squeezenet1_1",
    ],
)
def test_maps_equal_those_of_the_network_with_replaced_relus(arch, record_property):
    """Captum is silently wrong where ReLUs are functional: googlenet, densenet121, inception_v3."""
    net, x = large(arch).double(), torch.randn(1, 3, 128, 128, dtype=torch.float64)
    with torch.no_grad():
        unit = int(net(x).argmax())  # squeezenet ends in a ReLU: other logits may be dead
    maps = our_maps(net, x, unit)
    errors = {name: error(maps[name], replaced(rule)(net, x, unit)) for name, rule in RULES.items()}
    record_property("errors", {"float64 max": errors})
    assert max(errors.values()) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["convnext_tiny", "efficientnet_b0", "mobilenet_v3_small", "vit_b_32"])
def test_large_networks_with_other_activations_are_refused(arch):
    net, x = large(arch), torch.randn(1, 3, 224, 224)
    for method in (DeconvNet(), GuidedBackprop()):
        with pytest.raises(NotApplicable, match="rules for ReLUs"):
            method(net, x)


def test_mixed_precision_is_tf32_in_the_backward_pass_alone(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # restored at the end
    monkeypatch.setattr(device, "is_native", lambda *_: False)  # no bfloat16
    set_precision("mixed")
    net = networks.build("vgg_like", dtype=torch.float32)
    seen = []
    handle = next(m for m in net.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(
        lambda *_: seen.append(torch.backends.cudnn.allow_tf32)
    )
    try:
        with Forward(net, networks.images(dtype=torch.float32)) as forward:
            forward.logits.grad_fn.register_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
            forward.gradient(0, GUIDED)
        assert seen == [False, True]
        assert torch.backends.cudnn.allow_tf32 is False
    finally:
        set_precision("float32")
        handle.remove()
