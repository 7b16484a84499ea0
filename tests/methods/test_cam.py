"""Class activation maps against grad-cam, closed forms and brute force; the layer they look at; what they cost."""

import warnings
from contextlib import nullcontext, redirect_stderr
from io import StringIO

import cams
import networks
import pytest
import torch
import torch.nn.functional as F
from checks import Accident, close, l2_error, state
from torch import Tensor, nn

from vis import methods
from vis.errors import UserError
from vis.methods import (
    CAM,
    AblationCAM,
    EigenCAM,
    Forward,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    NotApplicable,
    OptiCAM,
    ScoreCAM,
    Target,
    XGradCAM,
    explain_all,
)
from vis.methods.from_layer import readers
from vis.methods.layers import feature_layer

GRADIENT_CAMS = (GradCAM, GradCAMPlusPlus, XGradCAM, HiResCAM, LayerCAM)
PEERS = (
    "GradCAM",
    "GradCAMPlusPlus",
    "XGradCAM",
    "HiResCAM",
    "LayerCAM",
    "EigenCAM",
    "EigenGradCAM",
    "ScoreCAM",
    "AblationCAM",
)


def trunk(*head: nn.Module) -> nn.Sequential:
    """Two convolutions, [B, 6, 12, 12] after layer 3, then `head`; float64, random."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), *head)
    return networks.randomise(net).double()


class TwoHeads(nn.Module):
    """Two dense layers read the feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.features = trunk()
        self.one, self.other = nn.Linear(6, 5).double(), nn.Linear(6, 5).double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.one(x.mean((2, 3))) + self.other(x.amax((2, 3)))


class Beside(nn.Module):
    """A convolution reads the maps, and beside it a module."""

    def __init__(self, beside: nn.Module) -> None:
        super().__init__()
        self.features, self.conv, self.beside = trunk(), nn.Conv2d(6, 6, 3, padding=1), beside
        self.fc = nn.Linear(864, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.fc((self.conv(x) + self.beside(x)).relu().flatten(1))


class View(nn.Module):
    """Takes no empty batch: `view` cannot infer a size from it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1)


def patched() -> nn.Module:
    """A convolution whose `forward` was put into the object."""
    conv = nn.Conv2d(6, 6, 1)
    conv.forward = lambda x: F.conv2d(x, 2 * conv.weight.abs())
    return conv


class Gate(nn.Module):
    """Squeeze and excitation: a dense layer reads the maps and scales them."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.gate, self.fc = trunk(), nn.Linear(6, 6).double(), nn.Linear(6, 5).double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.fc((x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]).amax((2, 3)))


class Around(nn.Module):
    """The image goes around the feature maps as well, and there is a use for its size."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.fc = trunk(), nn.Linear(8, 5).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([self.features(x).mean((2, 3)), x.mean((2, 3))], 1)) / x.view(len(x), -1).shape[1]


# --- against grad-cam ------------------------------------------------------------------------------------------------


def peer_maps(name: str, net: nn.Module, layer: str, x: Tensor, units: list[int]) -> Tensor:
    peer = pytest.importorskip("pytorch_grad_cam")  # a dev dependency
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with redirect_stderr(StringIO()), warnings.catch_warnings(action="ignore"):
        maps = getattr(peer, name)(net, [net.get_submodule(layer)])(x, [ClassifierOutputTarget(unit) for unit in units])
    return torch.from_numpy(maps)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("network", ["vgg_like", "overlapping_pools", "max_then_dense", "resnet18"])
def test_table1_equals_grad_cam(network, name):
    if network == "resnet18":
        from torchvision import models

        torch.manual_seed(0)
        net, x, layer, units = networks.randomise(models.resnet18()), torch.rand(2, 3, 32, 32), "layer1", [482, 3]
    else:
        net = trunk(nn.AdaptiveMaxPool2d(3), nn.Flatten(), nn.Linear(54, 5)).double()
        net = net if network == "max_then_dense" else networks.build(network)
        x, units = networks.images(2), [4, 1]
        layer = feature_layer(net, x)
    method = getattr(methods, name)
    options = [{"sign": 1}, {"sign": -1}] if name.startswith("Eigen") else [{}]  # theirs is arbitrary
    ours = [method(layer=layer, convention="table1", **each)(net, x, units)[:, 0] for each in options]
    theirs = peer_maps(name, net, layer, x, units)  # float32 in places
    errors = torch.stack([(maps - theirs).abs().amax((1, 2)) for maps in ours]).amin(0)
    assert theirs.max() > 0
    assert errors.max() < 1e-5


# --- closed forms ----------------------------------------------------------------------------------------------------


def test_behind_global_average_pooling_all_weights_are_those_of_the_dense_layer():
    """alpha_v = w_v / hw for GradCAM, and so on; for AblationCAM w_v mean(B_v) / y."""
    net, x = networks.build("residual"), networks.images()
    with Forward(net, x, ["relu:2"]) as forward:
        B, y = forward.layers["relu:2"], forward.logits[:, 3]
    w = net.fc.weight[3].detach().expand(3, -1)
    alphas = {
        CAM: w,
        GradCAM: w / 144,
        XGradCAM: w / 144**2,
        AblationCAM: w * B.detach().mean((2, 3)) / y.detach()[:, None],
    }
    for method, alpha in alphas.items():
        expected = torch.einsum("bv,bvhw->bhw", alpha, B.detach()).relu()[:, None]
        assert close(method()(net, x, 3), expected), method
    assert close(HiResCAM()(net, x, 3), GradCAM()(net, x, 3))


def test_hirescam_adds_up_to_the_logit():
    """Its map before the ReLU sums to y - b where everything behind the layer is linear (Draelos & Carin 2021)."""
    net, x = trunk(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(216, 5)), networks.images()
    net.double()
    with Forward(net, x, ["3"]) as forward:
        summed = HiResCAM().sum(forward, 2, "3")
        assert close(summed.sum((1, 2)), (forward.logits[:, 2] - net[-1].bias[2]).detach())


def test_cam_takes_the_relu_that_stands_before_the_pooling_into_the_feature_maps():
    """DenseNet ends in batch norm, ReLU, global average pooling."""
    net, x = trunk(), networks.images()
    net = nn.Sequential(net[:3], nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5).double()).eval()
    assert close(CAM(layer="0")(net, x, 1), CAM(layer="1")(net, x, 1))


@pytest.mark.parametrize("network", ["vgg_like", "overlapping_pools", "batch_norm"])
def test_cam_is_for_global_average_pooling_alone(network):
    with pytest.raises(NotApplicable, match="CAM needs global average pooling"):
        CAM()(networks.build(network), networks.images())


def test_the_rounding_of_bfloat16_hides_no_other_pooling():
    torch.manual_seed(0)
    x = networks.images(dtype=torch.bfloat16)
    for pooling, known in ((nn.AdaptiveAvgPool2d(1), True), (nn.AdaptiveMaxPool2d(1), False)):
        net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), pooling, nn.Flatten(), nn.Linear(6, 5)).bfloat16()
        with nullcontext() if known else pytest.raises(NotApplicable, match="CAM needs global average pooling"):
            assert CAM()(net, x, 1).shape == (3, 1, 12, 12)


def test_the_sign_of_eigencam():
    """The two signs are the two halves of one map; the first holds its largest magnitude."""
    net, x = networks.build("vgg_like"), networks.images()
    one, other = (EigenCAM(sign=sign).sum(Forward(net, x, ["4"]).__enter__(), None, "4") for sign in (1, -1))
    assert torch.equal(one, -other)
    assert (one.amax((1, 2)) == one.abs().amax((1, 2))).all()


def test_small_gradients_do_not_change_the_form_of_gradcam_pp():
    """In the convention paper, where no constant stands in the denominator; a logit of 1e-6 times the size."""
    net, x = networks.build("vgg_like"), networks.images()
    before = GradCAMPlusPlus()(net, x, 1)
    with torch.no_grad():
        net[-1].weight.mul_(1e-6)
    after = GradCAMPlusPlus()(net, x, 1)
    assert torch.allclose(after / after.amax(), before / before.amax(), atol=0.05)


# --- ablation without the images -------------------------------------------------------------------------------------

HEADS = {
    "flat": (lambda: trunk(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(216, 8), nn.ReLU(), nn.Linear(8, 5)), True),
    "view": (lambda: trunk(nn.MaxPool2d(2), View(), nn.Linear(216, 5)), True),
    "patched": (lambda: trunk(patched(), nn.Flatten(), nn.Linear(864, 5)), False),
    "no bias": (lambda: trunk(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(216, 5, bias=False)), True),
    "overlapping": (lambda: trunk(nn.AvgPool2d(3, 2, padding=1), nn.Flatten(), nn.Linear(216, 5)), True),
    "depthwise": (lambda: trunk(nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.Flatten(), nn.Linear(600, 5)), True),
    "two norms": (lambda: trunk(nn.LPPool2d(2, 2), nn.Flatten(), nn.Linear(216, 5)), True),
    "mixed channels": (lambda: trunk(nn.Conv2d(6, 6, 1), nn.Flatten(), nn.Linear(864, 5)), True),
    "convolution": (
        lambda: trunk(
            nn.Conv2d(6, 12, 3, groups=6, bias=False),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(12, 8, (3, 2), (1, 2), (2, 1), (2, 1)),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(120, 5),
        ),
        True,
    ),
    "reflected border": (
        lambda: trunk(nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(864, 5)),
        False,
    ),
    "groups": (lambda: trunk(nn.Conv2d(6, 6, 1, groups=2), nn.Flatten(), nn.Linear(864, 5)), False),
    "two convolutions": (lambda: Beside(nn.Conv2d(6, 6, 1)), True),
    "one and a skip connection": (lambda: Beside(nn.Identity()), False),
    "shuffled": (lambda: trunk(nn.ChannelShuffle(2), nn.Flatten(), nn.Linear(864, 5)), False),
    "normalised": (lambda: trunk(nn.LocalResponseNorm(2), nn.Flatten(), nn.Linear(864, 5)), False),
    "shifted": (lambda: trunk(nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(864, 5)), False),
    "no dense layer": (lambda: trunk(nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), True),
    "two heads": (TwoHeads, True),
    "gate": (Gate, False),
    "around": (Around, False),
}


@pytest.mark.parametrize("head", HEADS)
def test_ablation_equals_setting_each_map_to_0_in_a_full_pass(head):
    make, split = HEADS[head]
    net, x = make().double().eval(), networks.images()
    layer = "features" if hasattr(net, "features") else "3"
    with Forward(net, x, [layer]) as forward:
        assert bool(readers(net, x, layer, forward.layers[layer].detach())) == split
    expected = torch.stack([cams.ablationcam(net, x, unit, layer) for unit in (0, 3)])
    assert close(torch.stack([AblationCAM(layer=layer)(net, x, unit) for unit in (0, 3)]), expected)


@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3", "norm"])
def test_ablation_of_a_layer_that_a_skip_connection_goes_around(layer):
    net, x = networks.build("residual"), networks.images()
    assert close(AblationCAM(layer=layer)(net, x, 2), cams.ablationcam(net, x, 2, layer))


@pytest.mark.parametrize("head", ["flat", "mixed channels"])
def test_ablation_runs_no_image_through_what_lies_before_the_layer(head):
    net, x, rows = HEADS[head][0]().double(), networks.images(), []
    net[0].register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    AblationCAM()(net, x, 1)
    assert sum(rows) == len(x)  # the forward pass that all methods share


@pytest.mark.parametrize("method", [AblationCAM(), ScoreCAM(), OptiCAM(iterations=3, baseline="zero")])
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_the_model_is_left_as_it_was_found_when_a_later_pass_fails(method, passes):
    net, x, calls = networks.build("vgg_like").train(), networks.images(), iter(range(99))

    def accident(module: nn.Module, inputs: object, output: object) -> None:
        if next(calls) >= passes:
            raise Accident

    method(net, x, 1)  # now the layer is known
    net[-1].register_forward_hook(accident)
    before = state(net)
    with pytest.raises(Accident):
        method(net, x, 1)
    assert state(net) == before


# --- ScoreCAM and Opti-CAM -------------------------------------------------------------------------------------------


def test_scorecam_masks_a_few_images_at_a_time(monkeypatch):
    net, x, rows = networks.build("vgg_like"), networks.images(), []
    expected = ScoreCAM()(net, x, 1)
    monkeypatch.setattr("vis.methods.forward.PASS_VALUES", 2 * x[0].numel())
    net[0].register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    assert close(ScoreCAM()(net, x, 1), expected)
    assert max(rows[1:]) <= 2


def test_constant_feature_maps_share_a_pass_and_count_in_the_softmax():
    net, x, rows = networks.build("vgg_like"), networks.images(1), []
    with torch.no_grad():
        net[3].weight[:2] = 0
        net[3].bias[:2] = -1  # two maps of zeros
    expected = cams.scorecam(net, x, 1)
    net[0].register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    assert close(ScoreCAM()(net, x, 1), expected)
    assert sum(rows) == 1 + 2 + 1  # as it is, two masked, one for both constant maps


def adam_that_keeps_its_best(net: nn.Module, x: Tensor, unit: int, iterations: int) -> tuple[Tensor, Tensor]:
    """f [B] of the images masked with equal weights, and the largest f on Adam's way from there: Definition 6, by hand."""
    kept: list[Tensor] = []
    with torch.no_grad():
        cams.with_layer(net, x, cams.layer_of(net), lambda B: kept.append(B.clone()) or B)
    B = kept[0]
    beta = torch.full(B.shape[:2], 0.5, dtype=B.dtype, requires_grad=True)
    m, v, values = torch.zeros_like(beta), torch.zeros_like(beta), []
    for t in range(1, iterations + 2):
        maps = F.interpolate((beta.softmax(1)[:, :, None, None] * B).sum(1)[:, None], x.shape[2:], mode="bilinear")
        low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
        f = net(x * (maps - low) / torch.where(high > low, high - low, 1))[:, unit]
        values.append(f.detach())
        (g,) = torch.autograd.grad(-f.sum(), beta)
        g[B.amin((2, 3)) == B.amax((2, 3))] = 0  # but for rounding: the mask does not depend on them
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        beta = (beta.detach() - step).requires_grad_()
    return values[0], torch.stack(values).amax(0)


@pytest.mark.parametrize("network", ["vgg_like", "overlapping_pools", "residual"])
def test_opticam_ends_at_the_best_of_plain_adam(network):
    """On 120 images in all; at iterations that end where f still rises and where it oscillates."""
    net, x = networks.build(network), networks.images(40)
    equal, best = adam_that_keeps_its_best(net, x, 1, 50)
    assert (best > equal).sum() > 20, "there is something to find"
    opticam = OptiCAM(baseline="zero")
    (layer,) = opticam.layers(net, x)
    with Forward(net, x, [layer]) as forward:
        maps = opticam.sum(forward, 1, layer)
    up = F.interpolate(maps[:, None], x.shape[2:], mode="bilinear")
    low, high = up.amin((2, 3), keepdim=True), up.amax((2, 3), keepdim=True)
    with torch.no_grad():
        found = net(x * (up - low) / torch.where(high > low, high - low, 1))[:, 1]
    assert (found >= best - 1e-9 * best.abs()).all()


def test_images_whose_mask_nothing_changes_leave_the_batch():
    net, rows = networks.build("vgg_like"), []
    x = networks.images(4)
    x[1:3] = 0  # any mask of black is black
    one_by_one = torch.cat([OptiCAM(baseline="zero")(net, image, 1) for image in x.split(1)])
    net[0].register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    assert close(OptiCAM(baseline="zero")(net, x, 1), one_by_one)
    assert rows == [4, 4] + [2] * 50  # the shared pass, equal weights, 50 steps


def test_opticam_masks_the_pixels_not_the_networks_input():
    net, pixels = networks.build("vgg_like"), networks.images().sigmoid()

    class OnPixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(networks.preprocess(x))

    in_pixels = OptiCAM(baseline="zero")(OnPixels().eval(), pixels, 1)
    assert torch.allclose(OptiCAM()(net, networks.preprocess(pixels), 1, networks.preprocess), in_pixels, atol=1e-9)


# --- sharing, targets ------------------------------------------------------------------------------------------------


def test_five_cams_share_one_forward_pass_and_one_gradient(monkeypatch):
    net, x, passes, gradients = networks.build("vgg_like"), networks.images(), [], []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: gradients.append(1) or real(*a, **k))
    GradCAM()(net, x)  # finds the layer
    gradients.clear()
    net.register_forward_hook(lambda *_: passes.append(1))
    together, _ = explain_all({each.__name__: each() for each in GRADIENT_CAMS}, net, x, [1, 3])
    assert (len(passes), len(gradients)) == (1, 2)
    for each in GRADIENT_CAMS:
        assert torch.equal(together[1][each.__name__], each()(net, x, 3))


@pytest.mark.parametrize("method", GRADIENT_CAMS)
def test_a_unit_of_a_layer_and_a_probability_are_targets_of_gradient_cams(method):
    net, x = networks.build("vgg_like"), networks.images()
    assert close(method()(net, x, Target(5, layer="7")), method()(net[:8], x, 5))
    softmax = nn.Sequential(*net, nn.Softmax(1)).eval()
    assert close(method()(net, x, Target(2, output="prob")), method()(softmax, x, 2))


@pytest.mark.parametrize("method", [AblationCAM(), ScoreCAM(), OptiCAM(iterations=3, baseline="zero")])
def test_the_other_cams_explain_the_output(method):
    net, x = networks.build("vgg_like"), networks.images()
    softmax = nn.Sequential(*net, nn.Softmax(1)).eval()
    assert close(method(net, x, Target(2, output="prob")), method(softmax, x, 2))
    largest = net(x).argmax(1).tolist()
    assert torch.equal(method(net, x), method(net, x, largest))  # of the image, not of what is left of it
    with pytest.raises(NotApplicable, match="the network's output, not a unit of another layer"):
        method(net, x, Target(5, layer="7"))


# --- the layer -------------------------------------------------------------------------------------------------------


def test_a_network_that_takes_no_empty_batch():
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = networks.build("vgg_like")

        def forward(self, x: Tensor) -> Tensor:
            assert len(x)
            return self.net(x)

    net, x = Picky().eval(), networks.images()
    for method in (GradCAM(), AblationCAM()):
        assert close(method(net, x, 1), method(net.net, x, 1))


def test_a_layer_by_name():
    from vis.models import VGGSmall

    net, x = VGGSmall(depth=16).eval(), torch.rand(1, 3, 32, 32)
    assert torch.equal(GradCAM(layer="conv4_3")(net, x), GradCAM(layer="features.21")(net, x))
    residual, x = networks.build("residual"), networks.images()
    assert not torch.equal(GradCAM(layer="relu:0")(residual, x), GradCAM(layer="relu:2")(residual, x))
    with pytest.raises(UserError, match=r"VGGSmall has no layer 'conv4_9'. Did you mean"):
        GradCAM(layer="conv4_9")(net, torch.rand(1, 3, 32, 32))


def test_what_has_no_feature_maps_is_an_error():
    x = networks.images()
    with pytest.raises(NotApplicable, match="layer 7 gives"):
        GradCAM(layer="7")(networks.build("vgg_like"), x)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(288, 5)).double()
    with pytest.raises(NotApplicable, match="Sequential has no feature maps"):
        GradCAM()(flat, x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradCAM(convention="table2"), "convention is paper or table1, not 'table2'"),
        (lambda: EigenCAM(sign=0), "sign is 1 or -1"),
        (lambda: OptiCAM(lr=0), "lr above 0"),
        (lambda: OptiCAM(iterations=0), "iterations is 1 or more"),
        (lambda: GradCAM(reshape=[14]), r"reshape is .rows, columns. of the tokens, not .14."),
        (lambda: GradCAM(reshape=lambda tokens: tokens), "name the layer"),
    ],
)
def test_wrong_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_network_that_gives_0_has_a_map_of_zeros_not_nan():
    net, x = trunk(nn.Flatten(), nn.Linear(864, 5)), networks.images()
    net.double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    for method in (*GRADIENT_CAMS, EigenCAM, ScoreCAM, AblationCAM, OptiCAM):
        for convention in ("paper", "table1"):
            maps = method(convention=convention)(net, x, 1, networks.preprocess)
            assert torch.equal(maps, torch.zeros_like(x[:, :1]))


# --- precision=mixed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [ScoreCAM(), EigenCAM()])
def test_mixed_precision_rounds_masked_passes_and_features_to_bfloat16(method, monkeypatch):
    torch.manual_seed(0)
    net, x = networks.build("vgg_like").float(), networks.images().float()
    monkeypatch.setattr("vis.methods.cam.mixed_in_bfloat16", lambda device: False)
    expected = method(net, x)
    before = state(net)
    monkeypatch.setattr("vis.methods.cam.mixed_in_bfloat16", lambda device: True)
    found = method(net, x)
    assert 0 < l2_error(found, expected) < 0.02
    assert found.dtype == torch.float32
    assert state(net) == before
    with torch.no_grad():
        net[0].weight.mul_(-1)  # the copy in bfloat16 follows
    monkeypatch.setattr("vis.methods.cam.mixed_in_bfloat16", lambda device: False)
    expected = method(net, x)
    monkeypatch.setattr("vis.methods.cam.mixed_in_bfloat16", lambda device: True)
    assert l2_error(method(net, x), expected) < 0.02


def test_eigencam_without_a_target_runs_nothing_behind_its_layer():
    net, x, rows = networks.build("vgg_like"), networks.images(), []
    expected = EigenCAM()(net, x, 1)
    net[-1].register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    assert close(EigenCAM()(net, x), expected)
    assert rows == [0]
