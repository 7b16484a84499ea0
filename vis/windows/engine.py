"""Compute the logits of a network for images that differ from one image in a window each, without full passes.

`vis.windows.plan` finds the rectangle of each feature map that a window changes, `vis.windows.base_pass` runs the image
itself, and `vis.windows.window_pass` computes the rectangles. Whole maps are computed where rectangles fill most of a map,
and from an operation without a rule on.

The logits equal those of full passes up to the order of sums. For each image three windows are compared with full passes;
the tolerance is relative to what the windows change. Unlike Krypton (Nakandala et al. 2019), rectangles are clipped at the
borders, and each window has its own instead of a common one.
"""

import logging
import math
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn

from vis.errors import first_line
from vis.graph.trace import NotTraceable
from vis.system.device import tf32
from vis.windows.base_pass import BasePass
from vis.windows.low_precision import LowPrecision
from vis.windows.plan import WHOLE, Network
from vis.windows.rectangles import Places
from vis.windows.window_pass import WindowPass

log = logging.getLogger(__name__)

T = TypeVar("T")
_UNTRACED = 1 << 22  # values of images in a batch of full passes: 27 images of 3x224x224
_CHECKS = 3  # windows that are compared with full passes
_WRONG = 1e-3  # larger errors, relative to what a window changes, are not rounding
_ROUNDED = 0.03  # tolerance in low precision, relative to what windows change


@cache
def say_once(words: str, level: int = logging.INFO) -> None:
    """Log a message once, not for each image."""
    log.log(level, words)


class Incremental:
    """Compute the logits of one image [1, C, H, W] (`base`, [1, K]) and of copies with a window replaced.

    model: in eval mode (`vis.graph.modes.evaluating`). memory_gb: limits how many windows are computed at a time.
    low: multiply changes in this type; None computes values in the image's type.
    Every window takes a full pass, and the log says why, if the network cannot be traced or has effects that its graph does
    not show; three windows are compared with full passes first.

    Raises ValueError if the network does not return logits.
    """

    @tf32(allowed=False)  # its rounding errors are as large as the changes
    def __init__(self, model: nn.Module, image: Tensor, memory_gb: float = 4.0, low: torch.dtype | None = None) -> None:
        self.model, self.image, self.memory_gb = model, image.detach(), memory_gb
        self.low = LowPrecision(low, image.device) if low else None
        self.by_patches = image.device.type != "cpu"  # a few large products instead of a convolution for each size
        if self.low and self.low.held is not low:
            say_once(f"{self.low.name} gains no speed: {image.device.type} cannot multiply in it, so float32 is used")
        self._checked = False
        self._together = True  # a batch has the same logits as its images one by one
        self.network: Network | None = None
        with torch.no_grad():
            self.base = model(self.image.clone())
        if not isinstance(self.base, Tensor) or self.base.ndim != 2:
            raise ValueError(f"windows need logits [1, K], {type(model).__name__} returns a {type(self.base).__name__}")
        self._size = self.base.abs().max()
        try:
            network = Network(model, image.shape[1], (image.shape[2], image.shape[3]))
        except NotTraceable as error:
            say_once(f"each window takes a full pass: {error}")
            return
        with torch.no_grad():  # legacy weight norm has set its weights in the pass above
            found = self._try(lambda: BasePass(network, self.image, keep_dense=low is not None))
        if isinstance(found, str):
            say_once(f"each window takes a full pass: {found}")
            return
        self.network, self._base_pass = network, found
        self._size = torch.maximum(self._size, found.scale)
        if self._equal(found.logits, self.base):
            self.base = found.logits  # summed in the same order as those of windows
        if network.unknown:
            say_once(f"no rule for {', '.join(network.unknown)}: whole maps are computed from there on")

    @torch.no_grad()
    @tf32(allowed=False)
    def logits(self, windows: Tensor, patches: Tensor) -> Tensor:
        """Return the logits [n, K] with patches [n, C, h, w] in windows at (top, left) [n, 2] inside the image.

        Raises UserError if float16 overflows.
        """
        at = windows.cpu().numpy().astype(np.int64)
        if not self._checked and len(at) <= _CHECKS:  # checking would cost as much
            return self._one_by_one(at, patches)
        if not self._checked:
            self._check(patches)
        batch, parts = self.batch(at, *patches.shape[2:]), []
        for first in range(0, len(at), batch):
            some = slice(first, first + batch)
            parts.append(self._pass(at[some], patches[some]))
        if self.low:
            self.low.check_overflow()
        return torch.cat(parts)

    def work(self, windows: Tensor, h: int, w: int) -> tuple[float, float]:
        """Return the multiply-accumulates for windows [n, 2] of size h x w, here and by full passes."""
        assert self.network is not None
        at = windows.cpu().numpy().astype(np.int64)
        return self.network.work(self._plan(at, h, w), len(at))

    def _plan(self, at: np.ndarray, h: int, w: int) -> dict[fx.Node, Places | None]:
        assert self.network is not None
        whole = math.inf if self.low else WHOLE  # low precision applies to rectangles alone
        return self.network.plan(at[:, 0], at[:, 1], h, w, whole)

    def batch(self, at: np.ndarray, h: int, w: int) -> int:
        """Return how many of the windows [n, 2] of size h x w are computed at a time."""
        if self.network is None:
            return max(1, _UNTRACED // self.image.numel()) if self._together else 1
        some = at[np.linspace(0, len(at) - 1, min(len(at), 64)).astype(int)]
        needed = self.network.memory(self._plan(some, h, w), len(some), self.image.element_size())
        return int(max(1, min(len(at), self.memory_gb * 1e9 / needed)))

    def _pass(self, at: np.ndarray, patches: Tensor) -> Tensor:
        """Return the logits of windows [n, 2], computed together."""
        if self.network is None:
            return self._full(at, patches)
        plan = self._plan(at, *patches.shape[2:])
        return WindowPass(self._base_pass, plan, patches, self.low, self.by_patches).logits()

    def _full(self, at: np.ndarray, patches: Tensor) -> Tensor:
        images = self.image.repeat(len(at), 1, 1, 1)
        for image, (top, left), patch in zip(images, at, patches, strict=True):
            image[:, top : top + patch.shape[1], left : left + patch.shape[2]] = patch
        return self.model(images)

    def _one_by_one(self, at: np.ndarray, patches: Tensor) -> Tensor:
        return torch.cat([self._full(at[i : i + 1], patches[i : i + 1]) for i in range(len(at))])

    def _check(self, patches: Tensor) -> None:
        """Compare three windows with full passes of one image each; stop using what turns out to be wrong.

        The windows are in two corners and the middle, with the patches that change the image most there. They are computed
        in the image's precision first, then in low precision.
        """
        self._checked = True
        (H, W), (h, w) = self.image.shape[2:], patches.shape[2:]
        at = np.array([[0, 0], [(H - h) // 2, (W - w) // 2], [H - h, W - w]])
        assert len(at) == _CHECKS
        here = [self.image[:, :, top : top + h, left : left + w] for top, left in at.tolist()]
        patches = patches[torch.stack([(patches - each).square().sum((1, 2, 3)).argmax() for each in here])]
        whole, why = self._one_by_one(at, patches), ""
        if self.network is not None:
            low, self.low = self.low, None
            exact = self._try(lambda: self._pass(at, patches))
            if isinstance(exact, str):
                why = exact
            elif not self._equal(exact, whole):
                why = f"{type(self.model).__name__} has effects that its graph does not show (hooks, in-place changes)"
            elif low:
                self.low = low
                found = self._pass(at, patches)
                low.check_overflow()
                error, change = ((each - exact).square().mean().sqrt() for each in (found, self.base))
                if not error <= _ROUNDED * change + self._rounding(exact):
                    say_once(f"{low.name} is not used: its error is over {_ROUNDED:.0%} of what windows change")
                    self.low = None
        if self.network is None or why:
            self.network = None
            together = self._try(lambda: self._full(at, patches))
            self._together = not isinstance(together, str) and self._equal(together, whole)
            if not self._together:
                why = f"{type(self.model).__name__} mixes the images of a batch"
            if why:
                say_once(f"each window takes a full pass{'' if self._together else ' of its own'}: {why}")

    def _try(self, run: Callable[[], T]) -> T | str:
        """Return the result of `run`, or its error: the network's code may refuse another memory layout or batch size."""
        try:
            return run()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a network's own code may raise anything
            return f"{type(self.model).__name__}, {first_line(error)}"

    def _equal(self, found: Tensor, whole: Tensor) -> bool:
        """Return True if logits equal those of full passes up to rounding and a small part of what a window changes."""
        change = (whole - self.base).abs().amax(1, keepdim=True)
        return bool(((found - whole).abs() <= _WRONG * change + self._rounding(whole)).all())

    def _rounding(self, logits: Tensor) -> Tensor:
        """Bound the rounding difference between two passes.

        A running sum of n products, each step rounded by eps / sqrt(12) of the sum so far, has an error of sqrt(n / 24) eps
        of the final size (less in practice, as sums are blocked). The errors of layers add up randomly, so n counts the
        products behind one output of every layer; 4 eps cover everything else. The size is the largest logit, or the
        largest that logits would have if no products cancelled.
        """
        n = sum(math.prod(p.shape[1:]) for p in self.model.parameters() if p.ndim > 1)
        eps = torch.finfo(logits.dtype).eps
        return eps * (4 + math.sqrt(n / 24)) * torch.maximum(logits.abs().max(), self._size)
