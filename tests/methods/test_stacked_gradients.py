"""The stacked reverse pass against autograd's, one at a time."""

import copy
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from vis.config.compose import compose_config
from vis.methods import (
    LRP,
    AblationCAM,
    DeconvNet,
    DeepLIFT,
    GuidedBackprop,
    IntegratedGradients,
    Saliency,
    ScoreCAM,
    SmoothGrad,
    deeplift,
    explain_all,
    relevance,
)
from vis.methods.forward import DECONVNET, GUIDED, SALIENCY, Forward, ReluRule
from vis.methods.propagation import is_chain
from vis.methods.stacked import stacked_gradients
from vis.models import VGGSmall
from vis.runner import experiment
from vis.runner.experiment import Run
from vis.system import device
from vis.system.device import is_native, set_precision
from vis.windows.engine import say_once

RULES = sorted(
    [SALIENCY, DECONVNET, GUIDED, ReluRule(False, False)], key=lambda rule: (rule.rectify_gradient, rule.mask_by_input)
)
METHODS = {"saliency": Saliency(), "deconvnet": DeconvNet(), "gbp": GuidedBackprop()}


class Odd(nn.Module):
    """What the kernels have to refuse or to pass on: overlapping pools, an odd size, branches, a scaled sum, a broadcast sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, dilation=2)
        self.up = nn.ConvTranspose2d(4, 6, 3, groups=2)
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.norm = nn.BatchNorm2d(6, affine=False)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.conv(x).relu(), 2)
        x = self.norm(self.up(x)).relu_()
        pooled = [
            nn.functional.interpolate(each, size=x.shape[2:]) for each in (self.pool(x), nn.functional.max_pool2d(x, 2))
        ]
        x = torch.add(x - pooled[1], pooled[0].sigmoid(), alpha=0.5)
        x = torch.cat([x, x.mean(1, keepdim=True) + x], dim=-1).relu()
        return self.fc(x.mean((2, 3)))


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return 2 * gradient


class Made(nn.Module):
    """Weights that the image makes, a dense layer with batch norm, and rows [B, T, C] joined at their end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.tokens = nn.Linear(36, 6)
        self.norm = nn.BatchNorm1d(4 * 12)
        self.fc = nn.Linear(48, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.conv.weight * x.mean((0, 2, 3))[:, None, None]
        x = nn.functional.conv2d(x, made, self.conv.bias, stride=5).relu()
        x = self.tokens(x.flatten(2))
        x = torch.cat([x, x.square()], -1).flatten(1)
        x = self.norm(nn.functional.linear(x, torch.eye(48, dtype=x.dtype) + x.mean(), self.fc.weight.mean(0))).relu()
        return self.fc(x)


def video() -> nn.Module:
    body = (
        nn.Conv3d(3, 3, 3),
        nn.BatchNorm3d(3),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(3, 5, 3),
        nn.BatchNorm3d(5),
        nn.ReLU(),
    )
    return nn.Sequential(*body, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(5, 7))


def dense() -> nn.Module:
    head = nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 7)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(8), *head)


@pytest.fixture
def mixed() -> Iterator[None]:
    set_precision("mixed")
    yield
    set_precision("float32")


def networks() -> dict[str, tuple[nn.Module, int]]:
    found = {
        "vgg": (VGGSmall(), 32),
        "odd": (Odd(), 37),
        "made": (Made(), 32),
        "dense": (dense(), 34),
        "video": (video(), 12),
    }
    for name in ("resnet18", "squeezenet1_1", "googlenet", "densenet121"):
        options = {"init_weights": False} if name == "googlenet" else {}
        found[name] = torchvision.models.get_model(name, weights=None, num_classes=7, **options), 64
    return found


@pytest.mark.parametrize("name", networks())
def test_every_row_is_the_gradient_that_autograd_finds(name):
    torch.manual_seed(0)
    net, size = networks()[name]
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_()
    net = net.double().eval()
    images = torch.randn(2, 3, *[size] * (3 if name == "video" else 2), dtype=torch.float64)
    if name != "video":
        net.to(memory_format=torch.channels_last)
    with Forward(net, images) as forward:
        rows = [(rule, logit) for rule in RULES for logit in (1, 3)]
        seeds = torch.zeros(len(rows), *forward.logits.shape, dtype=torch.float64)
        for seed, (_, logit) in zip(seeds, rows, strict=True):
            seed[:, logit] = 1
        rules = [(rule.rectify_gradient, rule.mask_by_input) for rule, _ in rows]
        found = stacked_gradients(forward.logits, seeds, forward.images, rules, torch.float64)
        assert found is not None
        for row, (rule, logit) in zip(found, rows, strict=True):
            expected = forward.gradient(logit, rule)
            assert (row - expected).norm() <= 1e-6 * expected.norm(), (rule, logit)


def test_rows_are_stacked_in_the_order_in_which_they_are_wanted(monkeypatch):
    wanted = [7, 2, 9, 0, 5, 3, 8, 1]  # the order decides the last bits of a gradient
    stacked = []
    monkeypatch.setattr(Forward, "reverse", lambda self, seeds, rules: stacked.append(seeds))
    with Forward(VGGSmall().eval(), torch.randn(1, 3, 32, 32)) as forward:
        forward.anticipate([(logit, SALIENCY) for logit in wanted])
    (seeds,) = stacked
    assert seeds.argmax(-1).flatten().tolist() == wanted


def test_the_gradient_of_a_layer_is_freed_once_the_layer_is_passed():
    gradients, alive = [], []

    def relu(_walk: Any, _node: Any, gradient: torch.Tensor) -> tuple[torch.Tensor]:
        gradients.append(weakref.ref(gradient))
        alive.append(sum(each() is not None for each in gradients))
        return (gradient.clone(),)

    layers = [layer for _ in range(6) for layer in (nn.Conv2d(3, 3, 3), nn.ReLU())]
    with Forward(nn.Sequential(*layers, nn.Flatten()), torch.randn(1, 3, 16, 16)) as forward:
        forward.reverse(torch.ones(1, *forward.logits.shape), kernels={"ReluBackward0": relu})
    assert alive == [1] * 6


def test_a_relu_in_another_spelling_is_left_to_autograd():
    class Clamped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.clamp(min=0).flatten(1)

    images = torch.randn(1, 3, 4, 4)
    with Forward(Clamped(), images) as forward:
        seeds = torch.ones(1, *forward.logits.shape)
        assert stacked_gradients(forward.logits, seeds, forward.images, [(True, True)], torch.float32) is None


def test_a_function_of_the_network_that_cannot_be_called_is_left_to_autograd():
    class Doubled(VGGSmall):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(Scaled.apply(x))

    net, images = Doubled().eval(), torch.randn(1, 3, 32, 32)
    with Forward(net, images) as forward:
        seeds = torch.ones(1, *forward.logits.shape)
        assert stacked_gradients(forward.logits, seeds, forward.images, [(True, True)], torch.float32) is None
    maps, _ = explain_all(METHODS, net, images, [0, 1])
    assert (maps[1]["gbp"] - GuidedBackprop()(net, images, 1)).abs().max() == 0


def test_weights_that_change_in_between_are_not_those_of_an_earlier_pass(mixed):
    torch.manual_seed(0)
    net, images = torchvision.models.resnet18(num_classes=7).eval(), torch.randn(1, 3, 64, 64)
    for precision in ("float32", "mixed"):
        set_precision(precision)
        explain_all(METHODS, net, images, [0, 1])
        for parameter in net.parameters():
            parameter.data.mul_(1.5)
        found = explain_all(METHODS, net, images, [0, 1])[0][1]
        expected = explain_all(METHODS, copy.deepcopy(net), images, [0, 1])[0][1]
        assert all(torch.equal(found[name], expected[name]) for name in METHODS)


def with_biases(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.1)
    return net.double().eval()


@pytest.mark.parametrize("name", ["vgg", "squeezenet1_1"])
@pytest.mark.parametrize("method", [LRP("zero"), LRP("epsilon"), LRP("epsilon", epsilon=0.5)], ids=repr)
def test_lrp_epsilon_from_the_shared_forward_pass_is_the_relevance_of_the_traced_graph(name, method, monkeypatch):
    torch.manual_seed(0)
    net, size = networks()[name]
    with_biases(net).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    images[:, :, 5:20, 5:20] = 0
    with monkeypatch.context() as other:
        other.setattr(relevance, "Relevance", None)  # not needed
        found = method(net, images, [1, 3])
    monkeypatch.setattr(relevance, "is_chain", lambda _: False)
    expected = method(net, images, [1, 3])
    assert (found - expected).norm() <= 1e-10 * expected.norm()


class Heads(nn.Module):
    """Logits of two heads, one of which is no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(256, 2)
        self.other = nn.Sequential(nn.Linear(256, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.one(x), self.other(x)], 1)


class Means(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(3).mean(2)


@pytest.mark.parametrize(
    ("layers", "chain"),
    [
        ((nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), Heads()), False),
        ((nn.Conv2d(3, 4, 3), nn.ReLU(), Means()), False),
        ((nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 5)), True),
        ((nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), True),
        ((nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), False),
        ((nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)), False),
        ((nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)), False),
        ((nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)), False),
        ((nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)), False),
        ((nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(256, 5)), False),
        ((nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()), False),
    ],
)
def test_only_a_chain_has_all_denominators_in_its_graph(layers, chain):
    torch.manual_seed(0)
    net, images = with_biases(nn.Sequential(*layers)), torch.randn(2, 3, 10, 10, dtype=torch.float64)
    with Forward(net, images) as forward:
        assert is_chain(forward.logits) == chain
    method = LRP("epsilon", epsilon=0.1)
    maps = method(net, images, 3)
    with pytest.MonkeyPatch.context() as other:
        other.setattr(relevance, "is_chain", lambda _: False)
        assert (maps - method(net, images, 3)).norm() <= 1e-10 * maps.norm()


@pytest.mark.parametrize("name", ["vgg", "resnet18", "googlenet"])
@pytest.mark.parametrize("baseline", ["zero", "noise"])
def test_deeplift_from_two_forward_passes_is_that_of_the_traced_graph(name, baseline, monkeypatch):
    torch.manual_seed(0)
    net, size = networks()[name]
    with_biases(net).to(memory_format=torch.channels_last)
    images, method = torch.randn(2, 3, size, size, dtype=torch.float64), DeepLIFT(baseline=baseline)
    with monkeypatch.context() as other:
        other.setattr(deeplift, "Reference", None)  # not needed
        found = method(net, images, [1, 3])
    monkeypatch.setattr(deeplift, "rescaled", lambda *_: None)
    expected = method(net, images, [1, 3])
    assert (found - expected).norm() <= 1e-10 * expected.norm()


needs_bfloat16 = pytest.mark.skipif(
    not is_native(torch.bfloat16, torch.device("cpu")), reason="this processor has no bfloat16 products"
)


@needs_bfloat16
@pytest.mark.parametrize(
    "method",
    [
        LRP("epsilon"),
        DeepLIFT(baseline="zero"),
        IntegratedGradients(5, baseline="zero"),
        SmoothGrad(samples=5),
        AblationCAM("features.6"),
        ScoreCAM(),
    ],
    ids=lambda method: type(method).__name__,
)
def test_other_methods_in_mixed_precision_have_the_error_that_they_state(method, mixed):
    torch.manual_seed(0)
    net, size = networks()["squeezenet1_1"]
    with_biases(net).float()
    images = torch.randn(2, 3, size, size)
    low = method(net, images, [1, 3])
    set_precision("float32")
    exact = method(net, images, [1, 3])
    assert 0 < (low - exact).norm() / exact.norm() < 2 * method.mixed_error


@needs_bfloat16
def test_the_log_says_once_what_mixed_precision_leaves_alone_and_warns_of_large_errors(mixed, caplog, monkeypatch):
    say_once.cache_clear()
    caplog.set_level("INFO")
    net, images = VGGSmall().eval(), torch.randn(1, 3, 32, 32)
    monkeypatch.setattr(Saliency, "mixed_error", 0.031)
    for _ in range(2):
        explain_all({"saliency": Saliency(), "gbp": GuidedBackprop(), "lrp": LRP()}, net, images, [0])
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "precision=mixed changes maps of saliency by up to 3.1 % (l2): use precision=float32"),
        ("INFO", "precision=mixed changes nothing in lrp"),
    ]


@needs_bfloat16
def test_with_mixed_precision_maps_differ_by_about_a_percent_and_the_logits_by_nothing(mixed):
    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None).eval()
    images, targets = torch.randn(3, 3, 64, 64), [None, [1, 2, 3], 7]
    low, logits = explain_all(METHODS, net, images, targets)
    set_precision("float32")
    exact, expected = explain_all(METHODS, net, images, targets)
    assert torch.equal(logits, expected)
    for each, other in zip(low, exact, strict=True):
        for name in METHODS:
            error = (each[name] - other[name]).norm() / other[name].norm()
            assert 0 < error < 0.03, name


def test_without_bfloat16_products_mixed_precision_changes_nothing_on_a_cpu(mixed, monkeypatch):
    monkeypatch.setattr(device, "is_native", lambda *_: False)
    net, images = VGGSmall().eval(), torch.randn(2, 3, 32, 32)
    (low,), _ = explain_all(METHODS, net, images, [None])
    set_precision("float32")
    (exact,), _ = explain_all(METHODS, net, images, [None])
    assert all(torch.equal(low[name], exact[name]) for name in METHODS)


def test_a_run_with_mixed_precision_says_that_the_processor_does_not_multiply_in_bfloat16(caplog, monkeypatch):
    say_once.cache_clear()
    caplog.set_level("INFO")
    monkeypatch.setattr(experiment, "is_native", lambda *_: False)
    Run(compose_config(["model=vgg_small", "precision=mixed", "device=cpu"]))
    assert "precision=mixed is float32 here" in caplog.text
