"""The incremental engine against brute force on images of 96 to 160 pixels, where a window moves the logits by little."""

import logging

import adversarial
import networks
import pytest
import torch
from torch import Tensor, nn

from vis.incremental import Incremental, _say
from vis.methods.forward import evaluating
from vis.methods.relevance import LRP


@pytest.fixture(autouse=True)
def _every_message():
    _say.cache_clear()


def windows(net: nn.Module, size: int | tuple[int, int], h: int = 9, w: int = 6) -> tuple[Tensor, Tensor, Tensor]:
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
    x, at, patches = windows(net, size)
    with evaluating(net), torch.no_grad():
        engine = Incremental(net, x, low=low)
        engine.by_patches = by_patches
        found, whole = engine.logits(at, patches), one_by_one(net, x, at, patches)
        change = (whole - net(x)).abs().amax(1)
    assert (change > 1e-9).all(), "a window that changes nothing shows nothing"
    return float(((found - whole).abs().amax(1) / change).max()), engine


@pytest.mark.parametrize("name", adversarial.TABLE)
def test_windows_are_those_of_brute_force_and_every_fallback_says_so(name, caplog):
    with caplog.at_level(logging.INFO, "vis.incremental"):
        error, engine = error_of_the_change(name)
    assert error < 1e-9
    said = adversarial.TABLE[name][1]
    if said:
        assert said in caplog.text
        assert len(caplog.records) <= 2
    else:
        assert not caplog.records
        assert engine.network is not None
