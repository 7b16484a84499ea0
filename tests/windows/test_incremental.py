"""The incremental engine equals full passes: small networks of every kind, random ones, and the four large ones."""

import logging

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from checks import state
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vis.windows.plan
from vis.errors import UserError
from vis.graph.modes import evaluating
from vis.methods.perturbation import cut, log2_odds
from vis.models import build_model, torchvision_classifier
from vis.windows.engine import Incremental, say_once
from vis.windows.plan import relative_work


@pytest.fixture(autouse=True)
def _every_message():
    say_once.cache_clear()


def full_passes(net: nn.Module, x: Tensor, windows: Tensor, patches: Tensor) -> Tensor:
    images = x.repeat(len(windows), 1, 1, 1)
    for image, (top, left), patch in zip(images, windows.tolist(), patches, strict=True):
        image[:, top : top + patch.shape[1], left : left + patch.shape[2]] = patch
    return torch.cat([net(image[None]) for image in images])


def every_window(size: int, h: int, w: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(size - h + 1), torch.arange(size - w + 1))


def both(
    net: nn.Module, x: Tensor, windows: Tensor, h: int, w: int, low: torch.dtype | None = None, gpu: bool = False
) -> tuple[Tensor, Tensor, Incremental]:
    """Logits of the engine and of full passes for random patches; the engine. gpu: in the products that it makes there."""
    generator = torch.Generator().manual_seed(2)
    patches = torch.randn(len(windows), x.shape[1], h, w, generator=generator, dtype=torch.float64).to(x.dtype)
    with evaluating(net), torch.no_grad():
        engine = Incremental(net, x, low=low)
        engine.by_patches, network = gpu, engine.network
        logits = engine.logits(windows, patches)
        assert engine.network is network, "it fell back to full passes"
        return logits, full_passes(net, x, windows, patches), engine


def error(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


FORMS = [(None, False), (None, True), (torch.float64, False), (torch.float64, True)]  # values and changes; CPU and GPU


class Fancy(nn.Module):
    """Dilated, grouped, rectangular and even kernels; strides larger than kernels; ceil mode; padded average pooling;
    a response norm; a value that is changed in place and read again; an operation without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, (3, 2), padding=(2, 0), dilation=(2, 1))
        self.conv2 = nn.Conv2d(4, 4, 3, padding="same", groups=2)
        self.skip = nn.Conv2d(4, 4, 1, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.mean = nn.AvgPool2d(2, stride=1, padding=1)
        self.norm = nn.LocalResponseNorm(3)
        self.scale = nn.Parameter(torch.linspace(0.5, 2, 4).view(1, 4, 1, 1))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        y = F.relu(x, inplace=True)
        x = self.scale * x + self.conv2(y)  # x is what the ReLU left
        x = self.norm(self.mean(x - 1))
        x = self.pool(-x)[..., :3, :3] + self.skip(x)[..., :3, :3].cumsum(2)
        return self.fc(x.amax((2, 3)).view(x.size(0), -1))


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = networks.vgg_like()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if x.abs().sum() >= 0 else x


@pytest.mark.parametrize(("h", "w"), [(1, 1), (3, 3), (2, 5), (12, 12)])
@pytest.mark.parametrize("name", [*networks.APPLICABLE, *networks.WITHOUT_RULE, "fancy"])
def test_it_equals_full_passes_at_every_place(name, h, w):
    torch.manual_seed(0)
    net = networks.randomise(Fancy()).double() if name == "fancy" else networks.build(name)
    for low, gpu in FORMS if h == 2 else FORMS[:1]:
        got, wanted, _ = both(net, networks.images(1), every_window(12, h, w), h, w, low, gpu)
        assert error(got, wanted) < 1e-12


@st.composite
def random_networks(draw) -> tuple[nn.Sequential, int]:
    """Convolutions and poolings of any geometry that fits, then a dense layer; and the side of a window."""
    layers: list[nn.Module] = []
    size, channels = 14, 2
    for _ in range(draw(st.integers(1, 5))):
        k, s = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        p, kind = draw(st.integers(0, k // 2)), draw(st.sampled_from(["conv", "conv", "max", "avg"]))
        ceil = draw(st.booleans())
        layer: nn.Module
        if kind == "conv":
            d = draw(st.integers(1, 2))
            layer = nn.Conv2d(
                channels, 3, k, s, p, d, padding_mode=draw(st.sampled_from(["zeros", "replicate", "circular"]))
            )
        elif kind == "max":
            layer = nn.MaxPool2d(k, s, p, ceil_mode=ceil)
        else:
            layer = nn.AvgPool2d(k, s, p, ceil, draw(st.booleans()), draw(st.sampled_from([None, 3])))
        try:
            size = layer(torch.zeros(1, channels, size, size)).shape[-1]
        except RuntimeError:  # it does not fit
            continue
        channels = 3 if kind == "conv" else channels
        norm = draw(st.sampled_from([[], [nn.BatchNorm2d(channels)]]))
        layers += [layer, *norm, draw(st.sampled_from([nn.ReLU(), nn.ReLU(inplace=True), nn.Tanh()]))]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size**2, 4)), draw(st.integers(1, 6))


@settings(max_examples=40, deadline=None)
@given(random_networks(), st.sampled_from(FORMS))
def test_it_equals_full_passes_of_random_networks(drawn, form):
    net, k = drawn
    net = networks.randomise(net).double()
    x = torch.randn(1, 2, 14, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got, wanted, _ = both(net, x, every_window(14, k, k)[::3], k, k, *form)
    assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-12)


PLACES = [[0, 0], [214, 107], [33, 96], [150, 214]]


@pytest.mark.parametrize(
    ("arch", "saved"), [("alexnet", 3.8), ("vgg16", 10), ("googlenet", 4), ("resnet50", 2.7)], ids=lambda v: str(v)
)
def test_large_networks_are_exact_and_do_little_of_the_work(arch, saved):
    network = {"_target_": "vis.models.torchvision_classifier", "arch": arch}
    if arch == "vgg16":
        network = {"_target_": "vis.models.VGG16"}
    torch.manual_seed(0)
    net, x = build_model(network | {"init": "kaiming_normal"}).net, torch.randn(1, 3, 224, 224)
    networks.randomise(net)
    got, wanted, engine = both(net, x, torch.tensor(PLACES), 10, 10)
    assert error(got, wanted) < 1e-4
    macs, full = engine.work(every_window(224, 10, 10)[::97], 10, 10)
    assert full / macs > saved


@pytest.mark.parametrize(
    ("arch", "low", "gpu"),
    [("resnet18", None, False), ("resnet18", torch.float64, True), ("googlenet", torch.float64, False)],
)
def test_large_networks_are_exact_in_float64(arch, low, gpu):
    torch.manual_seed(0)
    net = networks.randomise(torchvision_classifier(arch)).double()
    x = torch.randn(1, 3, 160, 160, dtype=torch.float64)
    got, wanted, _ = both(net, x, torch.tensor([[0, 0], [150, 3], [70, 81], [33, 150]]), 10, 10, low, gpu)
    assert error(got, wanted) < 1e-12


def small_vgg() -> nn.Module:
    torch.manual_seed(0)
    model = {"_target_": "vis.models.VGGSmall", "width": 0.25, "input_size": 32, "init": "kaiming_normal"}
    return networks.randomise(build_model(model).net)


def evidence_error(found: Tensor, wanted: Tensor) -> float:
    """Of the evidence for the class of the image, which stands last among the logits; in parts of the evidence's RMS."""

    def evidence(logits: Tensor) -> Tensor:
        odds = log2_odds(logits.double().softmax(1)[:, logits[-1].argmax()], logits.shape[1])
        return odds[-1] - odds[:-1]

    return ((evidence(found) - evidence(wanted)).norm() / evidence(wanted).norm()).item()


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.bfloat16, 0.02), (torch.float16, 0.002)], ids=["bfloat16", "float16"]
)
@pytest.mark.parametrize("native", [False, True])
def test_rounded_changes_give_the_evidence_and_rounded_values_do_not(dtype, most, native, monkeypatch, caplog):
    monkeypatch.setattr("vis.windows.low_precision.is_native", lambda *_: native)
    net, windows = small_vgg(), every_window(32, 4, 4)[::13]
    image = F.avg_pool2d(torch.randn(1, 3, 36, 36), 5, 1)
    patches = (
        cut(image[0], windows, 4).mean((2, 3), keepdim=True).expand(-1, -1, 4, 4)
    )  # what a window says, taken away
    with evaluating(net), torch.no_grad(), caplog.at_level(logging.INFO, "vis.windows.engine"):
        engine = Incremental(net, image, low=dtype)
        found = torch.cat([engine.logits(windows, patches), engine.base])
        wanted = torch.cat([full_passes(net, image, windows, patches), net(image)])
        net, image, patches = (each.to(dtype) for each in (net, image, patches))
        naive = torch.cat([full_passes(net, image, windows, patches), net(image)])
    assert evidence_error(found, wanted) < most
    assert evidence_error(naive, wanted) > 5 * evidence_error(found, wanted)
    assert ("gains no speed" in caplog.text) is not native


@pytest.mark.parametrize("layer", ["features.0", "classifier.0"])
def test_what_does_not_fit_into_float16_is_an_error(layer):
    net, image = small_vgg(), torch.rand(1, 3, 32, 32)
    dict(net.named_modules())[layer].weight.data.mul_(1e7)
    windows, patches = every_window(32, 4, 4)[::99], torch.zeros(9, 3, 4, 4)
    with evaluating(net), torch.no_grad():
        assert Incremental(net, image, low=torch.bfloat16).logits(windows, patches).isfinite().all()
        with pytest.raises(UserError, match="overflow float16: use bfloat16 or float32"):
            Incremental(net, image, low=torch.float16).logits(windows, patches)


def test_the_share_of_the_work_is_known_without_weights():
    net, windows = networks.build("residual"), every_window(12, 3, 3)
    macs, full = both(net, networks.images(1), windows[:1], 3, 3)[2].work(windows, 3, 3)
    assert relative_work(networks.Residual().eval().to("meta"), 2, (12, 12), windows, 3) == macs / full < 1
    assert relative_work(Untraceable(), 2, (12, 12), windows, 3) == 1


def calls(net: nn.Module) -> list[int]:
    """How many images each of its passes has; filled from now on."""
    found: list[int] = []

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(inputs[0], Tensor) and inputs[0].device.type != "meta":
            found.append(len(inputs[0]))

    net.register_forward_pre_hook(count)
    return found


def test_the_check_takes_three_full_passes_once_and_is_spared_where_windows_are_as_few():
    net, windows, patches = networks.build("residual"), every_window(12, 3, 3), torch.zeros(100, 2, 3, 3).double()
    passes = calls(net)
    with torch.no_grad():
        engine = Incremental(net, networks.images(1))
        few = engine.logits(windows[:3], patches[:3])
        assert passes == [1, 1, 1, 1]  # the image and the windows
        assert engine.logits(windows, patches).sub(engine.logits(windows, patches)).abs().max() == 0
        assert passes == 7 * [1]
    assert error(few, full_passes(net, networks.images(1), windows[:3], patches[:3])) < 1e-12


def test_a_rule_that_forgets_a_row_is_found_by_what_a_window_changes(monkeypatch, caplog):
    """In float32, on an image so large that it moves the logits by less than 1 % of the largest."""
    reached = vis.windows.plan.reached
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 4, 5), nn.AvgPool2d(4), nn.Flatten())
    net, image = nn.Sequential(net, nn.Linear(4 * 39**2, 5)).eval(), torch.randn(1, 2, 160, 160)
    net[1].bias.data += 3
    windows, patches = every_window(160, 8, 8)[::1999], torch.randn(12, 2, 8, 8)
    assert both(net, image, windows, 8, 8)[2].network is not None
    monkeypatch.setattr(vis.windows.plan, "reached", lambda *args: np.maximum(reached(*args) - [0, args[2] == 5], 0))
    with caplog.at_level(logging.INFO, "vis.windows.engine"), torch.no_grad():
        found = Incremental(net, image).logits(windows, patches)
    whole = full_passes(net, image, windows, patches)
    change = (whole - net(image)).abs().max()
    assert change < 0.01 * whole.abs().max()
    assert (found - whole).abs().max() < 1e-3 * change
    assert "each window takes a full pass: Sequential has effects that its graph does not show" in caplog.text


def test_logits_near_zero_are_no_reason_for_full_passes():
    """A classifier of two classes at its boundary: rounding is that of the products, not of their sum."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 5), nn.ReLU(), nn.BatchNorm2d(8), nn.AvgPool2d(4), nn.Flatten())
    net, image = nn.Sequential(net, nn.Linear(8 * 39**2, 2)).eval(), torch.randn(1, 2, 160, 160)
    with torch.no_grad():
        net[1].bias -= net(image)[0]
        assert net(image).abs().max() < 1e-6
    windows = every_window(160, 2, 2)[::1999]
    got, wanted, _ = both(net, image, windows, 2, 2)
    assert (got - wanted).abs().max() < 1e-5


def test_a_low_precision_that_is_off_by_more_than_three_percent_is_not_used(caplog):
    """Where weights differ by less than bfloat16 can tell, and only their difference counts."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(400, 5)).eval()
    net[0].weight.data.div_(100).add_(1)
    net[2].weight.data.view(5, 4, 100).sub_(net[2].weight.data.view(5, 4, 100).mean(1, keepdim=True))
    with caplog.at_level(logging.INFO, "vis.windows.engine"):
        image = networks.images(1, dtype=torch.float32)
        found, wanted = (both(net, image, every_window(12, 3, 3), 3, 3, low)[0] for low in (torch.bfloat16, None))
    assert "bfloat16 is not used: its error is over 3% of what windows change" in caplog.text
    assert torch.equal(found, wanted)


def test_windows_are_never_computed_in_tf32(monkeypatch):
    """It rounds the logits by as much as a window changes them."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    net, seen = networks.build("vgg_like"), []
    net[0].register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    with torch.no_grad():
        Incremental(net, networks.images(1)).logits(every_window(12, 3, 3), torch.zeros(100, 2, 3, 3).double())
    assert set(seen) == {False}
    assert torch.backends.cudnn.allow_tf32 is True


def test_patches_stay_as_they_were_where_a_network_begins_in_place():
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(200, 3)).double().eval()
    patches = torch.randn(9, 1, 3, 3, dtype=torch.float64)
    before = patches.clone()
    with torch.no_grad():
        Incremental(net, networks.images(1)[:, :1]).logits(every_window(12, 3, 3)[:9], patches)
    assert torch.equal(patches, before)


def test_a_network_that_returns_no_logits_is_an_error():
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(ValueError, match=r"windows need logits \[1, K\], Pair returns a tuple"):
        Incremental(Pair(), networks.images(1))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: torchvision.models.shufflenet_v2_x0_5(weights=None), "no rule for view in stage2.0"),
        (
            lambda: torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=5),
            "no rule for reshape in VisionTransformer",
        ),
    ],
    ids=["shufflenet", "vit"],
)
def test_transformers_and_shuffled_channels_say_that_they_are_computed_whole(build, said, caplog):
    torch.manual_seed(0)
    net, windows = networks.randomise(build()).double(), every_window(32, 5, 5)[::200]
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with caplog.at_level(logging.INFO, "vis.windows.engine"):
        got, wanted, _ = both(net, image, windows, 5, 5)
    assert error(got, wanted) < 1e-12
    assert [said in record.message for record in caplog.records] == [True]


def test_what_cannot_be_traced_is_run_whole_and_says_so(caplog):
    torch.manual_seed(0)
    net = networks.randomise(Untraceable()).double()
    with caplog.at_level(logging.INFO, "vis.windows.engine"):
        got, wanted, engine = both(net, networks.images(1), every_window(12, 3, 3), 3, 3)
    assert engine.network is None
    assert error(got, wanted) < 1e-12
    assert "each window takes a full pass: Untraceable cannot be traced" in caplog.text


def test_operations_without_a_rule_are_named(caplog):
    with caplog.at_level(logging.INFO, "vis.windows.engine"):
        both(networks.build("functional"), networks.images(1), every_window(12, 3, 3)[:2], 3, 3)
    assert "getitem" in caplog.text


def test_memory_bounds_how_many_windows_go_through_at_a_time_and_not_the_result():
    net, x = networks.build("residual"), networks.images(1)
    windows = every_window(12, 3, 3)
    patches = torch.randn(len(windows), 2, 3, 3, dtype=torch.float64)
    with evaluating(net), torch.no_grad():
        few, many = Incremental(net, x, memory_gb=1e-5), Incremental(net, x)
        assert few.batch(windows.numpy(), 3, 3) < 10 < many.batch(windows.numpy(), 3, 3)
        assert error(few.logits(windows, patches), many.logits(windows, patches)) < 1e-12


@pytest.mark.parametrize("name", ["residual", "functional"])
def test_network_and_image_stay_as_they_were(name):
    net, x = networks.build(name).train(), networks.images(1)
    before, pixels = state(net), x.clone()
    both(net, x, every_window(12, 3, 3), 3, 3)
    assert state(net) == before
    assert torch.equal(x, pixels)
