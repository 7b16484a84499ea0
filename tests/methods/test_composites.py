"""LRP's composites and rules against zennit's, numbers of rules, the range of pixels, activations and products."""

import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import networks
import pytest
import relevances
import torch
from torch import Tensor, nn
from torchvision.transforms import Normalize

from vis.config.compose import compose_config
from vis.config.options import options
from vis.data.preprocess import PREPROCESSING
from vis.methods import LRP, DeepTaylor, NotApplicable
from vis.methods.relevance import COMPOSITES

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "lrp_networks.py"))
PAIRS, SUMS_DIFFER, error = SCRIPT["PAIRS"], SCRIPT["SUMS_DIFFER"], SCRIPT["error"]
build = cache(SCRIPT["build"])
folded = cache(SCRIPT["folded"])


def equals_zennits(network: str, rule: str, size: int) -> None:
    net, x = build(network), SCRIPT["images"](size, 0)
    unit = int(net(x).argmax())
    method, make = PAIRS[rule]
    stabilizer = 1e-6 if rule == "epsilon" else 1e-14  # at additions LRP-epsilon has its epsilon, the others have none
    assert error(method(net, x, unit), SCRIPT["zennits"](folded(net), x, unit, make, stabilizer)) < 1e-9


@pytest.mark.parametrize("rule", PAIRS)
@pytest.mark.parametrize("network", ["conv_bn", "squeezenet1_1"])
def test_rules_and_composites_equal_zennits(network, rule):
    equals_zennits(network, rule, 48)


@pytest.mark.parametrize(
    "rule", ["gamma", "epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1"]
)
def test_they_do_on_skip_connections(rule):
    equals_zennits("resnet18", rule, 32)


@pytest.mark.slow
@pytest.mark.parametrize("rule", PAIRS)
@pytest.mark.parametrize("network", ["vgg16", "resnet18", "resnet50"])
def test_they_do_on_large_networks(network, rule):
    if "resnet" in network and rule in SUMS_DIFFER:
        pytest.skip("one rule for all is one for additions too")
    equals_zennits(network, rule, 64)


def size_of(method: LRP, net: nn.Module, x: Tensor) -> float:
    """The sum of abs R / abs S."""
    logits = net(x)[0]
    return (method(net, x, int(logits.argmax())).abs().sum() / logits.max().abs()).item()


def test_gamma_is_bounded_on_skip_connections_and_signed_pixels_where_the_papers_is_noise():
    net, x = build("resnet18"), SCRIPT["images"](32, 0)
    assert size_of(LRP("gamma"), net, x) < 2
    assert size_of(LRP("gamma_eq14"), net, x) > 10


def test_gammas_are_the_same_where_nothing_is_negative():
    net, x = networks.build("overlapping_pools"), networks.images().abs()
    for parameter in net.parameters():
        parameter.data.abs_()
    assert error(LRP("gamma")(net, x, 1), LRP("gamma_eq14")(net, x, 1)) < 1e-12


# --- which rule where ------------------------------------------------------------------------------------------------


def test_the_default_is_a_composite_and_a_rule_takes_its_place():
    net, x = networks.build("vgg_like"), networks.images()
    assert torch.equal(LRP()(net, x), LRP(composite="epsilon_plus")(net, x))
    assert torch.equal(LRP("gamma", composite="epsilon_plus_flat")(net, x), LRP("gamma")(net, x))
    assert not torch.equal(LRP()(net, x), LRP("epsilon")(net, x))


def test_rules_for_some_layers_leave_the_others_to_the_composite():
    net, x = networks.build("vgg_like"), networks.images()
    flat = LRP(composite="epsilon_plus_flat")(net, x)
    assert torch.equal(LRP(rules={"input": "flat"})(net, x), flat)
    assert torch.equal(LRP(rules={"0": "flat"})(net, x), flat)


def test_a_rule_has_a_number_of_its_own_in_each_layer():
    net, x = networks.build("vgg_like"), networks.images()
    own = LRP("zero", {"0": {"gamma": 0.5}, "3": "gamma", "dense": {"epsilon": 1.0}})(net, x)
    assert error(own, LRP("epsilon", {"0": {"gamma": 0.5}, "3": {"gamma": 0.25}}, epsilon=1.0)(net, x)) < 1e-12
    assert error(own, LRP("zero", {"0": "gamma", "3": "gamma", "dense": "epsilon"})(net, x)) > 1e-3


def test_depth_is_a_matter_of_names():
    net, x = networks.build("vgg_like"), networks.images()
    by_depth = LRP(rules={"[0-2]": {"gamma": 0.5}, "*": {"epsilon": 0.1}})(net, x)
    assert torch.equal(by_depth, LRP("epsilon", {"0": "gamma"}, epsilon=0.1, gamma=0.5)(net, x))


# --- the range of pixels ---------------------------------------------------------------------------------------------


def pixels() -> Tensor:
    return torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def colour() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    return net.double()


@pytest.mark.parametrize("make", [DeepTaylor, lambda **box: LRP(composite="epsilon_gamma_box", **box)])
def test_the_box_is_what_the_preprocessing_makes_of_black_and_white(make):
    normalise = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    black, white = ([(v - m) / s for m, s in zip(normalise.mean, normalise.std, strict=True)] for v in (0, 1))
    net, x = colour(), normalise(pixels())
    explicit = make(low=black, high=white)(net, x, 1)
    assert error(make()(net, x, 1, normalise), explicit) < 1e-12
    assert error(make(low=torch.tensor(black), high=torch.tensor(white))(net, x, 1), explicit) < 1e-6
    assert error(make(low=-9.0, high=9.0)(net, x, 1, normalise), explicit) > 1e-3
    image = make(low="image", high="image")(net, x, 1, normalise)
    assert error(image, make(low=x.amin((2, 3), keepdim=True), high=x.amax((2, 3), keepdim=True))(net, x, 1)) < 1e-12


@pytest.mark.parametrize("name", PREPROCESSING)
def test_the_box_encloses_the_image_whatever_the_preprocessing(name):
    """Then deep Taylor relevance has the sign of the logit; unit_norm scales a dark image up, beyond its white."""
    preprocess, dark = PREPROCESSING[name], pixels() / 10
    dark[:, :, 3, 3] = 1
    net, x = colour(), preprocess(dark)
    for unit in range(3):
        maps = DeepTaylor()(net, x, unit, preprocess)
        assert (maps * net(x)[:, unit].sign().view(-1, 1, 1, 1)).min() >= -1e-12 * maps.abs().max()


def test_a_box_is_not_guessed():
    net, x = networks.build("vgg_like"), networks.images()
    for method in (DeepTaylor(), DeepTaylor(low=0.0), LRP(composite="epsilon_gamma_box"), LRP(rules={"0": "zb"})):
        with pytest.raises(NotApplicable, match=r"zb needs the range of pixel values: preprocess=, low= and high="):
            method(net, x)


def test_a_box_of_another_number_of_channels_or_name_is_an_error():
    with pytest.raises(NotApplicable, match="has 3 numbers, the images have 2 channels"):
        DeepTaylor([0.0, 0.0, 0.0], 1.0)(networks.build("vgg_like"), networks.images())
    with pytest.raises(ValueError, match="low and high are numbers, a tensor or image, not 'black' and 1"):
        LRP(low="black", high=1.0)


def test_a_network_without_convolutions_reads_the_pixels_of_the_box():
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(288, 4)).double(), networks.images()
    assert error(LRP("zero", {"input": "zb"}, low=0.0, high=0.0)(net, x, 1), LRP("zero", bias=False)(net, x, 1)) < 1e-12


def test_a_box_is_refused_behind_a_normalisation_of_the_networks_own():
    class Normalising(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x - 0.5) / 0.25)

    with pytest.raises(NotApplicable, match="zb is for layers that read the image itself; flat and wsquare"):
        DeepTaylor(0.0, 1.0)(Normalising(*colour()).double(), pixels())


# --- activations, products, normalisations ---------------------------------------------------------------------------


@pytest.mark.parametrize("network", networks.WITHOUT_RULE)
@pytest.mark.parametrize("rule", ["zero", "gamma", "zplus", "flat"])
def test_an_activation_passes_relevance_as_it_is(network, rule):
    net, x = networks.build(network), networks.images(2)
    assert error(LRP(rule)(net, x, 3), relevances.lrp(rule, gamma=0.25)(net, x, 3)) < 1e-11


class Formula(nn.Module):
    """Logits [B, 1] of pixels u and two dense layers without biases."""

    def __init__(self, formula: Callable[[Tensor, nn.Linear, nn.Linear], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.formula = formula
        self.first, self.second = (nn.Linear(8, 8, bias=False, dtype=torch.float64) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x.flatten(1), self.first, self.second).sum(1, keepdim=True)


def contributions(x: Tensor, layer: nn.Linear) -> Tensor:
    """Shares of the inputs in each output, [1, 8 outputs, 8 inputs]."""
    c = x.flatten(1)[:, None] * layer.weight.detach()
    return c / c.sum(2, keepdim=True)


def test_the_two_factors_of_a_product_have_half_of_its_relevance_each():
    """Achtibat et al. 2024: the uniform rule. Of the network's value and its gate, here."""
    net = Formula(lambda u, first, second: first(u) * second(u).sigmoid())
    x = networks.images(1)[:, :, :2, :2]
    R = x.flatten(1) @ net.first.weight.T * (x.flatten(1) @ net.second.weight.T).sigmoid()
    expected = (R[:, :, None] * (contributions(x, net.first) + contributions(x, net.second)) / 2).sum(1)
    assert error(LRP("zero")(net, x, 0), expected.detach().view_as(x)) < 1e-12


def test_a_gate_of_a_whole_map_has_half_of_the_maps_relevance():
    net = Formula(lambda u, first, second: first(u) * second(u)[:, :1].sigmoid())
    x = networks.images(1)[:, :, :2, :2]
    R = net(x).item() / 2
    shares = torch.autograd.grad(net.first(x.flatten(1)).sum(), net.first.weight)[0]  # the inputs, once a row
    values = (net.first.weight * shares).detach().sum(0) * torch.sigmoid(net.second(x.flatten(1))[0, 0]).detach() / 2
    expected = values + R * contributions(x, net.second)[0, 0]
    assert error(LRP("zero")(net, x, 0), expected.view_as(x)) < 1e-12


def test_a_layer_norm_passes_relevance_as_it_is():
    net = Formula(lambda u, first, second: nn.functional.layer_norm(first(u), (8,)) * 2)
    x = networks.images(1)[:, :, :2, :2]
    R = 2 * nn.functional.layer_norm(net.first(x.flatten(1)), (8,)).detach()
    net_class = Formula(lambda u, first, second: second(nn.functional.layer_norm(first(u), (8,))))
    expected = (R[:, :, None] * contributions(x, net.first)).sum(1)
    assert error(LRP("zero")(net, x, 0), expected.view_as(x)) < 1e-12
    assert LRP("zero")(net_class, x, 0).any()


GATED_OR_SMOOTH = ("efficientnet_b0", "mobilenet_v3_small", "regnet_y_400mf", "convnext_tiny")


def has_a_map(arch: str, rule: str) -> None:
    """Finite, and not constant: flat leaves each patch of convnext constant, and patches that differ by a few percent."""
    net, x = build(arch), SCRIPT["images"](32, 0)
    method = LRP(**{"composite" if rule in COMPOSITES else "rule": rule}, low=-6.0, high=6.0)
    maps = method(net, x, int(net(x).argmax()))
    assert maps.isfinite().all()
    assert maps.std() > 1e-3 * maps.abs().mean()


@pytest.mark.parametrize("arch", GATED_OR_SMOOTH)
def test_gated_and_smooth_networks_have_maps(arch):
    has_a_map(arch, "epsilon_plus")


@pytest.mark.slow
@pytest.mark.parametrize("arch", GATED_OR_SMOOTH)
@pytest.mark.parametrize("rule", [*COMPOSITES, "epsilon", "gamma", "zplus"])
def test_they_have_by_every_composite(arch, rule):
    has_a_map(arch, rule)


def test_attention_is_an_error_that_names_it():
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x[:, 0], x[:, 0], x[:, 0])[0].mean(1)

    with pytest.raises(NotApplicable, match=r"there is no rule for attention \(MultiheadAttention\)"):
        LRP()(Attending().double(), networks.images())


# --- the configs -----------------------------------------------------------------------------------------------------


def test_the_surveys_experiments_ask_for_lrp_epsilon():
    """Its figures and claims are about LRP-epsilon, whatever the default is."""
    found = 0
    for experiment in options("experiment"):
        if experiment.startswith("ayyar2021/") and not experiment.startswith("ayyar2021/_"):
            method = (compose_config([f"experiment={experiment}"]).get("methods") or {}).get("lrp")
            found += method is not None
            assert method is None or method.rule == "epsilon", experiment
    assert found >= 8


def test_rules_with_numbers_are_given_on_the_command_line(vis_run):
    tiny = ("model=cnn3_random", "model.num_filters=4", "model.num_classes=10", "model.input_size=32")
    given = ("+methods.lrp.rules={conv*:{gamma:0.5}}", "methods.lrp.composite=epsilon_gamma_box")
    folder = vis_run("method=lrp", *tiny, "dataset.limit=1", *given).folder
    assert "gamma: 0.5" in (folder / "config.yaml").read_text()
    assert "conv: the rules are" in vis_run("method=lrp", *tiny, "methods.lrp.rules.conv={delta:1}").err
