"""LRP, deep Taylor and DeepLIFT: conservation, examples of the papers, composites, refusals, large networks."""

import copy

import networks
import pytest
import relevances
import torch
import torch.nn.functional as F
from checks import close
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vis.graph.interpreter import Walk
from vis.methods import LRP, DeepLIFT, DeepTaylor, Method, NotApplicable, Occlusion, Saliency, Target
from vis.methods.forward import Forward
from vis.models import VGG16, torchvision_classifier
from vis.models.streamed import StreamedLinear


def error(got: Tensor, expected: Tensor) -> float:
    """The largest difference in parts of the largest value; 0 for equal maps, all zeros included."""
    difference = (got - expected).abs().max().item()
    return difference and difference / expected.abs().max().item()


def conserved(method: Method, net: nn.Module, x: Tensor, unit: int | None = 2) -> float:
    """The axiom's error, of the worst image."""
    return method.axiom_error(net, x, unit, method(net, x, unit)).max().item()


BOX = {"low": "image", "high": "image"}


def classifier(forward) -> nn.Module:
    """A network [B, 2, 12, 12] -> [B, 5] from what it does with (self, images); it has a convolution and a dense layer."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.fc = nn.Linear(4, 5)

    Net.forward = lambda self, x: forward(self, x)
    torch.manual_seed(0)
    return networks.randomise(Net()).double()


# --- the rules of LRP ------------------------------------------------------------------------------------------------

RULES = {
    "gamma": (LRP("gamma"), relevances.lrp("gamma", gamma=0.25)),
    "gamma_eq14": (LRP("gamma_eq14"), relevances.lrp("gamma_eq14", gamma=0.25)),
    "wsquare": (LRP("wsquare"), relevances.lrp("wsquare")),
    "flat": (LRP("flat"), relevances.lrp("flat")),
    "alpha2beta1": (LRP("alpha_beta"), relevances.lrp("alpha_beta", alpha=2.0)),
    "alpha1beta0": (LRP("alpha_beta", alpha=1.0), relevances.lrp("alpha_beta", alpha=1.0)),
    "no bias": (LRP("epsilon", epsilon=0.01, bias=False), relevances.lrp("epsilon", epsilon=0.01, bias=False)),
    "flat and gamma": (LRP("gamma", {"input": "flat"}), relevances.lrp("gamma", first="flat", gamma=0.25)),
    "zb and epsilon": (LRP("epsilon", {"input": "zb"}, **BOX), relevances.lrp("epsilon", first="zb")),
}


@pytest.mark.parametrize("network", ["vgg_like", "batch_norm", "residual", "functional"])
@pytest.mark.parametrize("rule", RULES)
def test_rules_equal_their_equations_contribution_by_contribution(rule, network):
    method, reference = RULES[rule]
    net, x = networks.build(network), networks.images(2)
    assert error(method(net, x, 3), reference(net, x, 3)) < 1e-11


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), gamma=st.floats(0, 2))
@example(seed=226, gamma=0.0)  # a dead network: every ReLU is shut, the logits and the maps are 0
def test_relevance_is_conserved_without_biases(seed, gamma):
    net, x = networks.build("overlapping_pools", seed), networks.images(2, seed)
    for method in (LRP("zero"), LRP("gamma", gamma=gamma), LRP("alpha_beta", alpha=1.0), DeepTaylor(**BOX)):
        assert conserved(method, net, x, None) < 1e-8
    assert error(LRP("zero")(net, x), x * Saliency()(net, x)) < 1e-12


@pytest.mark.parametrize("network", ["vgg_like", "residual"])
def test_relevance_is_conserved_where_biases_are_ignored(network):
    net, x = networks.build(network), networks.images()
    assert conserved(LRP("zero", bias=False), net, x) < 1e-9
    assert conserved(LRP("zero"), net, x) > 1e-2


def test_deep_taylor_relevance_has_the_sign_of_the_logit():
    net, x = networks.build("residual"), networks.images()
    for unit in range(networks.CLASSES):
        assert (DeepTaylor(**BOX)(net, x, unit) * net(x)[:, unit].sign().view(-1, 1, 1, 1)).min() >= 0


def test_z_plus_is_alpha1_beta0_without_biases():
    net, x = networks.build("vgg_like"), networks.images()
    assert torch.equal(LRP("zplus")(net, x), LRP("alpha_beta", alpha=1.0, bias=False)(net, x))


def test_a_composite_names_layers_before_the_input_before_kinds():
    net, x = networks.build("vgg_like"), networks.images()

    def lrp(**rules: str) -> Tensor:
        return LRP("zero", rules, **BOX)(net, x, 1)

    assert torch.equal(lrp(dense="gamma"), lrp(**{"7": "gamma", "10": "gamma"}))
    assert torch.equal(lrp(conv="gamma"), lrp(**{"[03]": "gamma"}))
    assert torch.equal(lrp(input="gamma"), lrp(**{"0": "gamma"}))
    assert torch.equal(lrp(input="gamma", conv="zplus"), lrp(**{"0": "gamma", "3": "zplus"}))
    assert torch.equal(lrp(input="zb", **{"0": "gamma"}), lrp(input="gamma"))
    assert not torch.equal(lrp(input="gamma"), lrp())


def test_pixels_outside_of_the_image_are_the_box_of_z_b():
    """A wider box gives other shares; its sum stays."""
    net, x = networks.build("overlapping_pools"), networks.images()
    narrow, wide = DeepTaylor(**BOX), DeepTaylor(low=[-9.0, -8.0], high=[9.0])
    assert error(narrow(net, x), wide(net, x)) > 1e-3
    assert conserved(wide, net, x, None) < 1e-10


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rule": "delta"}, "rule: the rules are zero, epsilon, gamma, gamma_eq14, alpha_beta, .*, not 'delta'"),
        ({"rule": "zb"}, "not 'zb'"),
        ({"composite": "epsilon"}, "composite: the composites are epsilon_plus, .*, not 'epsilon'"),
        ({"rules": {"conv": "delta"}}, "conv: the rules are .*, not 'delta'"),
        ({"rules": {"conv": {"flat": 1}}}, "conv: the rules are .*, not {'flat': 1}"),
        ({"rules": {"conv": {"gamma": 1, "epsilon": 1}}}, "conv: the rules are"),
        ({"rules": {"conv": {"gamma": "much"}}}, "conv: the rules are"),
        ({"rules": {"conv": {"gamma": -1}}}, "gamma must be at least 0"),
        ({"epsilon": 0.0}, "epsilon must be above 0"),
        ({"alpha": 0.5}, "alpha must be at least 1"),
    ],
)
def test_parameters_that_make_no_sense_are_errors(parameters, message):
    with pytest.raises(ValueError, match=message):
        LRP(**parameters)


# --- DeepLIFT --------------------------------------------------------------------------------------------------------


class Minimum(nn.Module):
    """min(i1, i2) = i1 - relu(i1 - i2)."""

    def __init__(self) -> None:
        super().__init__()
        self.difference = nn.Linear(2, 1, bias=False)
        self.difference.weight.data = torch.tensor([[1.0, -1.0]])

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return x[:, :1] - F.relu(self.difference(x))


@given(first=st.floats(0.1, 9), second=st.floats(0.1, 9))
@settings(max_examples=20, deadline=None)
def test_reveal_cancel_gives_both_inputs_half_of_their_minimum(first, second):
    """Shrikumar et al. 2017, section 3.3 and 3.5.3: Rescale gives all to one of them."""
    net, x = Minimum().double(), torch.tensor([first, second], dtype=torch.float64).view(1, 2, 1, 1)
    half = torch.full_like(x, min(first, second) / 2)
    assert torch.allclose(DeepLIFT("reveal_cancel", "zero")(net, x), half, atol=1e-12)
    one = torch.where(x == min(first, second), x, 0)
    if first != second:
        assert torch.allclose(DeepLIFT(baseline="zero")(net, x), one, atol=1e-9)


@pytest.mark.parametrize("between", [nn.Identity(), nn.Dropout()], ids=repr)
def test_a_dropout_between_a_layer_and_its_relu_changes_nothing(between):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 8), nn.ReLU(), nn.Linear(8, 5)]
    net = nn.Sequential(*layers).double().eval()
    other = nn.Sequential(layers[0], between, *layers[1:4], between, *layers[4:]).eval()
    method, x = DeepLIFT("reveal_cancel", "zero"), networks.images()
    assert close(method(other, x, 1), method(net, x, 1))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 999),
    network=st.sampled_from([*networks.APPLICABLE, *networks.WITHOUT_RULE]),
    rule=st.sampled_from(["rescale", "reveal_cancel"]),
    baseline=st.sampled_from(["black", "zero", "mean", "blur", "noise", ["black", "white", "noise"]]),
)
@example(seed=226, network="overlapping_pools", rule="rescale", baseline="mean")
@example(
    seed=323, network="vgg_like", rule="reveal_cancel", baseline="blur"
)  # relevance that cancels to a logit's change of 0
def test_relevance_sums_to_the_difference_from_the_reference(seed, network, rule, baseline):
    net, x = networks.build(network, seed), networks.images(2, seed)
    method = DeepLIFT(rule, baseline)
    maps = method(net, x, 1, networks.preprocess)
    with Forward(net, x, preprocess=networks.preprocess) as forward:
        missing = maps.flatten(1).sum(1) - method.total(forward, 1).detach()
    assert (missing.abs() <= 1e-10 * maps.flatten(1).abs().sum(1)).all()


def test_an_image_that_is_its_reference_has_no_relevance():
    net, x = networks.build("residual"), torch.zeros(1, 2, 12, 12, dtype=torch.float64)
    for rule in ("rescale", "reveal_cancel"):
        assert not DeepLIFT(rule, "zero")(net, x, 1).any()


def test_rescale_is_the_gradient_times_the_difference_where_no_relu_switches():
    net, x = networks.build("batch_norm"), networks.images()
    x = x.mean((2, 3), keepdim=True) + 1e-6 * x
    dx = x - x.mean((2, 3), keepdim=True)
    assert error(DeepLIFT(baseline="mean")(net, x, 1), dx * Saliency()(net, x, 1)) < 1e-9


# --- the graph that is run by rules ----------------------------------------------------------------------------------


def rejoined(parts: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat([parts[1].relu(), parts[0]], 1)


SPELLINGS = {
    "functional layers": lambda self, x: F.linear(
        F.conv2d(x, self.conv.weight, bias=self.conv.bias, padding=1).mean((2, 3)), self.fc.weight
    ),
    "folded and not folded": lambda self, x: self.fc(
        (self.norm(self.conv(x)) + self.norm(x[:, [0, 1, 0, 1], 1:-1, 1:-1])).mean((2, 3))
    ),
    "constants": lambda self, x: self.fc((2 - self.conv(x * 3 - 1) / 2 + torch.ones(4, 1, 1)).mean((2, 3))),
    "differences": lambda self, x: self.fc(F.adaptive_avg_pool2d(-self.conv(x) - self.conv(x + x), 1).flatten(1).relu()),
    "in place": lambda self, x: self.fc(self.conv(x).add_(1).relu_().sum((2, 3))),
    "sizes": lambda self, x: self.fc(self.conv(x).view(x.size(0), 4, x.shape[2] // 2 * 20 - 20).mean(2)),
    "pools": lambda self, x: self.fc(F.max_pool2d(F.adaptive_max_pool2d(self.conv(x), 7), 3, 2, padding=1).mean((2, 3))),
    "dense along columns": lambda self, x: self.norm(self.fc(self.conv(x)[..., :4])).mean((1, 2)),
    "branches": lambda self, x: self.fc(rejoined(self.conv(x).chunk(2, 1)).mean((-1, -2))),
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_network_run_by_its_graph_gives_its_outputs_and_gradient(spelling):
    net, x = classifier(SPELLINGS[spelling]), networks.images()
    attributes = set(vars(net))
    assert error(Walk(net).run(x.clone()).detach(), net(x.clone()).detach()) < 1e-12
    assert error(LRP("zero")(net, x, 1), x * Saliency()(net, x, 1)) < 1e-9
    assert conserved(DeepLIFT(baseline="zero"), net, x) < 1e-10
    assert conserved(DeepLIFT("reveal_cancel", "zero"), net, x) < 1e-10
    assert set(vars(net)) == attributes


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda self, x: self.fc(self.conv(x).softmax(1).mean((2, 3))), "softmax in Net"),
        (lambda self, x: self.fc((self.conv(x) * self.conv(x)).mean((2, 3))), "mul in Net, of two values"),
        (lambda self, x: self.fc(torch.add(self.conv(x), 1, alpha=2).mean((2, 3))), "add in Net in this form"),
        (lambda self, x: self.fc(F.layer_norm(self.conv(x), (10, 10)).mean((2, 3))), "layernorm in Net"),
        (
            lambda self, x: F.conv2d(x, self.conv(x).mean(0).view(5, 2, 8, 5)).mean((2, 3)),
            "conv2d in Net, whose parameters",
        ),
        (
            lambda self, x: self.fc((self.conv(x).relu() + x.mean((1, 2, 3), keepdim=True).detach()).mean((2, 3))),
            "detach in Net",
        ),
        (
            lambda self, x: self.fc((self.conv(x).relu() + x.mean((1, 2, 3), keepdim=True).data).mean((2, 3))),
            "getattr in Net",
        ),
        (lambda self, x: self.fc(self.conv(x).clamp(max=x.mean()).mean((2, 3))), "clamp in Net, whose parameters"),
    ],
    ids=["softmax", "product", "alpha", "layer norm", "weights", "detach", "data", "bound"],
)
def test_an_operation_without_a_rule_is_an_error_that_names_it(operation, name):
    lrp_has_one = name.startswith(("mul", "layernorm"))
    for method in (DeepLIFT(baseline="zero"), DeepLIFT("reveal_cancel", "zero"), *([] if lrp_has_one else [LRP()])):
        with pytest.raises(NotApplicable, match=f"Net: there is no rule for {name}"):
            method(classifier(operation), networks.images(), 1)


def test_a_value_that_a_chain_of_layers_detaches_is_an_error():
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(x).relu(), 10).flatten(1)
        return F.linear(torch.cat([x, x.detach()], 1), self.fc.weight.repeat(1, 2), self.fc.bias)

    for method in (LRP("epsilon"), LRP(), DeepLIFT(baseline="zero")):
        with pytest.raises(NotApplicable, match="detach in Net"):
            method(classifier(forward), networks.images(), 1)


def test_what_the_code_of_a_network_does_not_say_is_an_error():
    """A hook that changes values, and a value that is read after an in-place operation on it."""

    def read_after(self: nn.Module, x: Tensor) -> Tensor:
        y = self.conv(x)
        F.relu(y, inplace=True)
        return self.fc(y.mean((2, 3)))

    hooked = networks.build("vgg_like")
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    seen_by_autograd, rescale = classifier(read_after), DeepLIFT(baseline="zero")
    for net in (seen_by_autograd, hooked):
        for method in (LRP(), rescale, DeepLIFT("reveal_cancel", "zero")):
            if net is seen_by_autograd and method is rescale:
                assert conserved(method, net, networks.images()) < 1e-10
                continue
            with pytest.raises(NotApplicable, match="gives other outputs than the network: a hook"):
                method(net, networks.images(), 1)


@pytest.mark.parametrize(
    "method", [LRP(), LRP("zero"), DeepLIFT(baseline="zero"), DeepLIFT("reveal_cancel", "zero")], ids=repr
)
@pytest.mark.parametrize("at", ["0", "0.0", "0.1", "1"])
def test_a_hook_that_changes_the_logits_by_little_is_an_error_or_counts(method, at):
    """A hook on a layer that removes a unit of little weight; one on a block is part of its code."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU())
    net, x = nn.Sequential(block, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(200, 5)).double(), networks.images()
    with torch.no_grad():
        net[-1].weight.view(5, 8, 25)[:, 3] *= 0.01
    without = copy.deepcopy(net)
    with torch.no_grad():
        without[-1].weight.view(5, 8, 25)[:, 3] = 0
    method(net, x, 1)  # traced before the hook is there
    keep = torch.ones(8, 1, 1, dtype=x.dtype).index_fill(0, torch.tensor(3), 0)
    net.get_submodule(at).register_forward_hook(lambda module, inputs, output: output * keep)
    if at == "0":
        assert close(method(net, x, 1), method(without, x, 1))
    else:
        with pytest.raises(NotApplicable, match="whose output a hook"):
            method(net, x, 1)


def test_one_of_many_logits_that_the_graph_does_not_give_is_an_error():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 500)).double(), networks.images()
    unit = int(net(x)[0].abs().argmax())
    smaller = torch.ones(500, dtype=x.dtype).index_fill(0, torch.tensor(unit), 0.95)
    net.register_forward_hook(lambda module, inputs, output: output * smaller)
    with pytest.raises(NotApplicable, match="gives other outputs than the network: a hook"):
        LRP()(net, x, unit)


def test_a_hook_that_looks_on_changes_no_map():
    net, x = networks.build("batch_norm"), networks.images()
    expected, seen = LRP()(net, x, 1), []
    for module in net:
        module.register_forward_hook(lambda module, inputs, output: seen.append(module))
    assert torch.equal(LRP()(net, x, 1), expected)
    assert {*seen} == {*net}


def test_a_network_that_cannot_be_traced_is_an_error():
    net = classifier(lambda self, x: self.fc(self.conv(x).mean((2, 3)) if x.sum() > 0 else x.mean((2, 3))))
    with pytest.raises(NotApplicable, match="Net cannot be traced"):
        LRP()(net, networks.images(), 1)


def test_only_logits_are_explained():
    net, x = networks.build("vgg_like"), networks.images()
    for method in (LRP(), DeepLIFT(baseline="zero")):
        with pytest.raises(NotApplicable, match="explains logits"):
            method(net, x, Target(1, output="prob"))
        with pytest.raises(NotApplicable, match="explains the network's output"):
            method(net, x, Target(1, layer="7"))


def test_a_rule_for_pixels_is_refused_where_a_layer_reads_something_else():
    net = classifier(lambda self, x: self.fc(self.conv(F.avg_pool2d(x, 2)).mean((2, 3))))
    with pytest.raises(NotApplicable, match="zb is for layers that read the image itself"):
        DeepTaylor(**BOX)(net, networks.images(), 1)
    assert LRP("flat")(net, networks.images(), 1).any()


def test_streamed_weights_leave_the_rules_that_do_without_them():
    from vis.models.initialise import initialise

    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), StreamedLinear(400, 5))
    initialise(net, "truncated_normal", 0.1, seed=0)
    x = networks.images(dtype=torch.float32)
    assert error(LRP("zero")(net, x, 1), x * Saliency()(net, x, 1)) < 1e-4
    assert conserved(DeepLIFT(baseline="zero"), net, x, 1) < 1e-4
    for method in (LRP("gamma"), DeepLIFT("reveal_cancel", "zero")):
        with pytest.raises(NotApplicable, match=r"no rule for 3 \(StreamedLinear\): its weights are streamed"):
            method(net, x, 1)


# --- large networks --------------------------------------------------------------------------------------------------


def large(arch: str, biases: bool = True) -> nn.Module:
    torch.manual_seed(0)
    net = VGG16() if arch == "vgg16" else torchvision_classifier(arch)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return (networks.randomise(net) if biases else net.eval()).double()


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["vgg16", "alexnet", "resnet50", "googlenet", "densenet121", "inception_v3"])
def test_large_networks_keep_the_axioms(arch, record_property):
    net, x = large(arch), torch.randn(1, 3, 128, 128, dtype=torch.float64)
    errors = {
        rule: conserved(DeepLIFT(rule, torch.tensor([-2.1, -2.0, -1.8]).view(3, 1, 1)), net, x)
        for rule in ("rescale", "reveal_cancel")
    }
    errors["gradient x input"] = error(LRP("zero")(net, x, 2), x * Saliency()(net, x, 2))
    record_property("errors", {"float64": errors})
    assert max(errors.values()) < 1e-10


@pytest.mark.slow
def test_vgg16_equals_captums():
    from captum.attr import LRP as CaptumLRP

    net, x = large("vgg16"), torch.randn(1, 3, 96, 96, dtype=torch.float64)
    expected = CaptumLRP(net).attribute(x, target=2)
    assert error(LRP("epsilon", epsilon=1e-9)(net, x, 2), expected.detach()) < 1e-4


def test_gamma_without_biases_follows_the_sign_without_biases():
    torch.manual_seed(0)
    layers = [layer for c in (2, 8, 8) for layer in (nn.Conv2d(c, 8, 3), nn.ReLU())]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).double()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.bias)
    maps = LRP("gamma", gamma=0.25, bias=False)(net, networks.images(), 1)
    assert maps.abs().sum() < 10 * net(networks.images())[:, 1].abs().sum()


def test_a_rule_for_layers_that_are_not_there_is_an_error():
    with pytest.raises(NotApplicable, match=r"covn fits no convolution"):
        LRP(rules={"covn": "gamma"})(networks.build("vgg_like"), networks.images(), 1)


def test_pixels_that_a_preprocessing_cannot_make_are_an_error():
    net, x = networks.build("vgg_like"), networks.images()
    with pytest.raises(NotApplicable, match="black pixels"):
        DeepTaylor()(net, x, 1, lambda pixels: pixels / pixels.flatten(1).norm(dim=1).view(-1, 1, 1, 1))


class Normalised(nn.Module):
    """Weights that its code makes of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("std", torch.tensor(2.0))
        self.conv = nn.Conv2d(2, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x * (1 / self.std) + torch.tensor(0.5)).relu().mean((2, 3))


def test_a_number_that_was_changed_since_counts():
    net, x = (
        classifier(
            lambda self, x: self.fc((self.conv(x) + self.scale * x.mean(1, keepdim=True)[..., 1:-1, 1:-1]).mean((2, 3)))
        ),
        networks.images(),
    )
    net.scale = 0.0
    LRP("zero")(net, x, 1)
    for net.scale in (0.001, 2.0):
        assert error(LRP("zero")(net, x, 1), x * Saliency()(net, x, 1)) < 1e-9


def test_a_traced_network_reads_its_buffers_and_is_left_as_it_was():
    net, x = Normalised().double(), networks.images()
    before = set(vars(net))
    LRP("zero")(net, x, 1)
    net.std.fill_(3.0)
    assert close(LRP("zero")(net, x, 1), LRP("zero")(copy.deepcopy(net), x, 1))
    Occlusion(window=3, fill="zero")(net, x, 1)
    assert set(vars(net)) == before
