"""The incremental engine against brute force on images of 96 to 160 pixels, where a window moves the logits by little."""

import logging

import adversarial
import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vis.graph.modes import evaluating
from vis.graph.receptive_field import receptive_field
from vis.graph.trace import trace
from vis.methods import LRP
from vis.windows.engine import Incremental, say_once


@pytest.fixture(autouse=True)
def _every_message():
    say_once.cache_clear()


def windows(size: int | tuple[int, int], h: int = 9, w: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """An image [1, 2, H, W] and windows of it, at corners, borders and within, with patches."""
    H, W = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 2, H, W, generator=generator, dtype=torch.float64)
    inside = torch.stack([torch.randint(0, n, (3,), generator=generator) for n in (H - h, W - w)], 1)
    at = torch.cat([torch.tensor([[0, 0], [H - h, W - w], [0, W - w], [H // 2, 0]]), inside])
    return x, at, torch.randn(len(at), 2, h, w, generator=generator, dtype=torch.float64)


def one_by_one(net: nn.Module, x: Tensor, at: Tensor, patches: Tensor) -> Tensor:
    logits = []
    for (top, left), patch in zip(at.tolist(), patches, strict=True):
        image = x.clone()
        image[0, :, top : top + patch.shape[1], left : left + patch.shape[2]] = patch
        logits.append(net(image))
    return torch.cat(logits)


def error_of_the_change(
    name: str, low: torch.dtype | None = None, by_patches: bool = False
) -> tuple[float, Incremental]:
    """The largest difference from full passes, in parts of what that window changes."""
    build, _, size = adversarial.TABLE[name]
    torch.manual_seed(0)
    net = networks.randomise(build()).double().eval()
    x, at, patches = windows(size)
    with evaluating(net), torch.no_grad():
        engine = Incremental(net, x, low=low)
        engine.by_patches = by_patches
        found, whole = engine.logits(at, patches), one_by_one(net, x, at, patches)
        change = (whole - net(x)).abs().amax(1)
    assert (change > 1e-9).all(), "a window that changes nothing shows nothing"
    return float(((found - whole).abs().amax(1) / change).max()), engine


@pytest.mark.parametrize("name", adversarial.TABLE)
def test_windows_are_those_of_brute_force_and_every_fallback_says_so(name, caplog):
    with caplog.at_level(logging.INFO, "vis.windows.engine"):
        error, engine = error_of_the_change(name)
    assert error < 1e-9
    said = adversarial.TABLE[name][1]
    if said:
        assert said in caplog.text
        assert len(caplog.records) <= 2
    else:
        assert not caplog.records
        assert engine.network is not None
        assert error_of_the_change(name, torch.float64, True)[0] < 1e-9  # as changes, in the products of a GPU


def test_a_layer_called_conv2d_is_taken_for_one_by_no_method():
    """LRP of a weight standardisation is that of the weights that it makes."""
    torch.manual_seed(0)
    own, plain = adversarial.Conv2d(2, 4, 3).double(), nn.Conv2d(2, 4, 3).double()
    with torch.no_grad():
        w = own.weight - own.weight.mean((1, 2, 3), keepdim=True)
        plain.weight.copy_(w / (w.std((1, 2, 3), keepdim=True) + 1e-5))
        plain.bias.copy_(own.bias)
    head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(400, 5))
    found, wanted = (
        LRP(rule="epsilon")(nn.Sequential(c, head).double(), networks.images(), None) for c in (own, plain)
    )
    assert wanted.abs().max() > 0
    assert (found - wanted).abs().max() < 1e-12 * wanted.abs().max()


@pytest.mark.parametrize("pad", [nn.ZeroPad2d((0, 3, 2, 0)), nn.ConstantPad2d((1, 2, 0, 4), 0.3)])
@pytest.mark.parametrize("axis", [2, 3])
def test_padding_moves_what_a_position_sees(pad, axis):
    net = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), pad, nn.Conv2d(3, 4, 3)).double()
    traced = trace(net, 2, (20, 24))
    seen, mixing = receptive_field(traced, axis)
    assert [node.op for node in mixing] == ["output"]
    x = torch.rand(1, 2, 20, 24, dtype=torch.float64, requires_grad=True)
    output = net(x).movedim(axis, 0)
    for row, (first, last) in zip(output, list(seen.values())[-2], strict=True):
        (gradient,) = torch.autograd.grad(row.square().sum(), x, retain_graph=True)
        reached = gradient.abs().movedim(axis, 0).flatten(1).sum(1).nonzero().flatten().tolist()
        assert (reached[0], reached[-1]) == (first, last) if reached else last < first


class OwnKernel(nn.Module):
    """A convolution by weights that the image makes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv(F.adaptive_avg_pool2d(x, 3)).movedim(0, 1).expand(-1, 2, -1, -1))


@pytest.mark.parametrize(
    "net", [OwnKernel(), nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))], ids=repr
)
def test_every_position_sees_all_of_what_makes_weights_or_statistics(net):
    seen, _ = receptive_field(trace(net.double().eval(), 2, (20, 24)))
    assert (list(seen.values())[-2] == [0, 19]).all()
