"""Evidence of windows: the drop of a class score when the content of a window is replaced.

Prediction difference analysis (PDA: Zintgraf et al. 2017; zhou2018) replaces a window w of side k by content that the rest
of the image predicts (`vis.windows.gaussian`). The evidence of w is

    log2 odds(c | x) - log2 odds(c | x without w)      odds = q / (1 - q), q = (p N + 1) / (N + K)

with p the softmax, K classes and N = 100,000 (the Laplace correction). A pixel's evidence is the mean over the windows that
contain it. PDA takes the mean probability over samples (Algorithm 1), PDAFast one pass with the conditional mean (2),
PDAGradient the first-order change of the probability (3), Occlusion a fixed colour. `vis.windows.engine` computes the passes.
"""

import logging
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vis.errors import NotApplicable, UserError
from vis.graph.modes import evaluating
from vis.methods.base import Method, Subject
from vis.methods.baseline import Baseline, baseline_image, in_words, only
from vis.methods.forward import Forward, Preprocessing, output_targets
from vis.methods.target import Target, Targets, score
from vis.system.console import progress
from vis.windows.engine import Incremental
from vis.windows.gaussian import ImageSequence, Marginal, PatchGaussian
from vis.windows.plan import relative_work

log = logging.getLogger(__name__)

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BLOCK = 1 << 11  # windows whose contents are held at a time


def windows_of(size: Sequence[int], k: int, stride: int = 1) -> Tensor:
    """List (top, left) of all windows of side k in an image (height, width), row by row: [n, 2].

    With a stride, windows at the last row and column are included. Raises UserError if no window fits.
    """
    if min(size) < k:
        raise UserError(f"a window of {k}x{k} does not fit into an image of {size[0]}x{size[1]}: give a smaller window")
    starts = [torch.tensor(sorted({*range(0, n - k + 1, stride), n - k})) for n in size]
    return torch.cartesian_prod(*starts)


def accumulate(evidence: Tensor, windows: Tensor, k: int, size: Sequence[int]) -> Tensor:
    """Return the mean evidence of the windows that contain each pixel, [C, H, W]; 0 for a pixel without windows.

    evidence [n, C] is for windows [n, 2] of side k, each once. A box filter: two sums along each axis for any k.
    """
    given, evidence = evidence, evidence.cpu().double()
    grid = evidence.new_zeros(evidence.shape[1] + 1, *(n - k + 1 for n in size))
    top, left = windows.cpu().unbind(1)
    grid[:, top, left] = torch.cat([evidence, torch.ones_like(evidence[:, :1])], 1).T
    for dim in (1, 2):
        n = size[dim - 1]
        total = torch.nn.functional.pad(grid.movedim(dim, -1).cumsum(-1), (1, 0))  # [..., n - k + 2]
        last = torch.arange(1, n + 1).clamp(max=n - k + 1)
        first = torch.arange(1 - k, n - k + 1).clamp(min=0)
        grid = (total[..., last] - total[..., first]).movedim(-1, dim)
    return (grid[:-1] / grid[-1].round().clamp(min=1)).to(given)


def in_float64(values: Tensor) -> Tensor:
    """Convert to float64, on the CPU for devices without it (Apple's)."""
    return values.cpu().double() if values.device.type == "mps" else values.double()


def log2_odds(p: Tensor, classes: int, laplace: float = 100_000) -> Tensor:
    """Compute log2 of q / (1 - q) with the Laplace correction q = (p N + 1) / (N + K), in float64; N = infinity means q = p.

    Raises NotApplicable for a single class.
    """
    if classes < 2:
        raise NotApplicable("the softmax over a single unit is 1 for every image and has no odds: explain the logit")
    p = in_float64(p)
    if math.isinf(laplace):
        return torch.logit(p) / math.log(2)
    return torch.log2((p * laplace + 1) / (laplace * (1 - p) + classes - 1))


def cut(image: Tensor, windows: Tensor, k: int) -> Tensor:
    """Copy the windows [n, 2] of side k out of an image [C, H, W]: [n, C, k, k]."""
    top, left = windows.to(image.device).unbind(1)
    return image.unfold(1, k, 1).unfold(2, k, 1)[:, top, left].transpose(0, 1).contiguous()


class _Windows(Method):
    """Base class of methods that replace windows.

    window: side k. stride: from one window to the next. per_channel: windows of one channel at a time, maps [B, C, H, W]
    instead of [B, 1, H, W]. laplace: N of the Laplace correction of probabilities; inf is none. memory_gb: memory limit of
    the passes. precision: of the products with the values that a window changes, bfloat16 or float16; float32 keeps the
    precision of the image.
    """

    precisions: ClassVar[Sequence[str]] = tuple(PRECISIONS)

    def __init__(
        self, window: int, stride: int, per_channel: bool, laplace: float, memory_gb: float, precision: str
    ) -> None:
        if window < 1 or not 1 <= stride <= window:
            raise ValueError("window is 1 or more, stride from 1 to window: each pixel is in one")
        if laplace <= 0 or memory_gb <= 0:
            raise ValueError("laplace and memory_gb are above 0")
        if precision not in self.precisions:
            raise ValueError(f"precision is {', '.join(self.precisions)}, not {precision!r}")
        self.window = window
        self.stride = stride
        self.per_channel = per_channel
        self.laplace = laplace
        self.memory_gb = memory_gb
        self.precision = precision

    def windows(self, images: Tensor) -> Tensor:
        """List all windows of images [..., H, W]: [n, 2]."""
        return windows_of(images.shape[-2:], self.window, self.stride)

    def passes(self, model: nn.Module, image: Tensor) -> float:
        C, *size = image.shape[1:]
        windows, draws = self.windows(image), max(1, getattr(self, "samples", 1))
        engine = relative_work(model, C, (size[0], size[1]), windows, self.window)
        return len(windows) * draws * engine * (C if self.per_channel else 1)

    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        images = forward.images.detach()
        windows, maps = self.windows(images), []
        for image, target in zip(images, output_targets(forward, targets, self.title), strict=True):
            evidence = self.evidence(forward.model, image, target, windows, forward.preprocess)
            maps.append(accumulate(evidence, windows, self.window, image.shape[1:]).to(image))
        return torch.stack(maps)

    def evidence(
        self,
        model: nn.Module,
        image: Tensor,
        target: Target,
        windows: Tensor,
        preprocess: Preprocessing | None = None,
    ) -> Tensor:
        """Compute the evidence [n, 1], or [n, C] per channel, of windows [n, 2] of an image [C, H, W] for a unit of the output.

        The evidence of a window does not depend on the others (up to rounding): ranges of windows can be computed apart,
        and `accumulate` makes the map of all.
        """
        with evaluating(model), torch.no_grad():
            engine = Incremental(model, image[None], self.memory_gb, PRECISIONS[self.precision])
            base = self._measure(engine.base[:, None], target)
            self._saturation(engine.base, target)
            channels = range(len(image)) if self.per_channel else [slice(None)]
            parts = []
            for some in progress(windows.split(_BLOCK), None, "blocks of windows", leave=False):
                contents = self._contents(image, some, preprocess)  # [n, S, C, k, k]
                n, S = contents.shape[:2]
                at, columns = some.repeat_interleave(S, 0), []
                for c in channels:
                    patches = cut(image, at, self.window)
                    patches[:, c] = contents.flatten(0, 1)[:, c]
                    columns.append(base - self._measure(engine.logits(at, patches).view(n, S, -1), target))
                parts.append(torch.stack(columns, 1))
            return torch.cat(parts)

    def _saturation(self, logits: Tensor, target: Target) -> None:
        """Log a message if the Laplace correction, not the network, bounds the evidence."""
        p, classes = in_float64(logits).softmax(1)[:, target.unit], logits.shape[1]
        if classes < 2:  # explained by its score: it has no odds
            return
        odds, most = (
            log2_odds(p, classes, self.laplace).item(),
            log2_odds(torch.ones_like(p), classes, self.laplace).item(),
        )
        if odds > most - 1 and not math.isinf(self.laplace):
            log.info(
                "class %s has the probability %.6f, so near 1 that the Laplace correction bounds its evidence: its log2 odds are "
                "%.2f, at most %.2f (laplace=.inf is none)", target.unit, p, odds, most,
            )  # fmt: skip

    @abstractmethod
    def _contents(self, image: Tensor, windows: Tensor, preprocess: Preprocessing | None = None) -> Tensor:
        """Return S replacements of each of the windows [n, 2]: [n, S, C, k, k]."""

    @abstractmethod
    def _measure(self, logits: Tensor, target: Target) -> Tensor:
        """Score the target: [n] from the logits of S passes [n, S, K]."""


class Learnt(_Windows):
    """Base class of methods that replace windows by content learnt from other images; call `fit` first.

    patch: side l of the patch that a window is conditioned on. samples: draws of each window; 0 takes the expectation.
    conditional: false takes the content of other images at the same
    position, whatever surrounds it. joint: one Gaussian for all channels, not one for each. gaussian: a file that
    `PatchGaussian.save` wrote; `vis-run` also takes a folder of images. Without one it learns from the dataset's other images or,
    if they are few, from bundled photographs; never from images that it explains.
    seed: of the draws.
    """

    def __init__(
        self,
        window: int = 10,
        patch: int = 18,
        stride: int = 1,
        samples: int = 0,
        conditional: bool = True,
        joint: bool = False,
        per_channel: bool = False,
        laplace: float = 100_000,
        gaussian: str | None = None,
        seed: int = 0,
        memory_gb: float = 4.0,
        precision: str = "float32",
    ) -> None:
        super().__init__(window, stride, per_channel, laplace, memory_gb, precision)
        if patch <= window:
            raise ValueError(f"patch={patch} has no pixels around a window of {window}: give a larger patch")
        if samples < 0:
            raise ValueError(f"samples is 0 or more, not {samples}")
        self.patch = patch
        self.samples = samples
        self.conditional = conditional
        self.joint = joint
        self.gaussian = gaussian
        self.seed = seed
        self.learnt: PatchGaussian | Marginal | None = None  # set by `fit`
        self._prepared: tuple[Any, ...] | None = None  # the kind of network input that it was fitted to

    def prepare(self, subject: Subject) -> None:
        """Fit on the folder of images that `gaussian` names, on `subject.pictures()` by default, or load the file it names.

        A fitted Gaussian is cached. Raises UserError if the file was fitted to images with another preprocessing.
        """
        kind = (subject.preprocess, subject.size, subject.channels)
        if self._prepared != kind:
            self._learn(subject)
            self._prepared = kind

    def _learn(self, subject: Subject) -> None:
        source = None if self.gaussian is None else Path(self.gaussian).expanduser()
        if source is not None and not source.is_dir() and self.conditional:
            gaussian = PatchGaussian.load(source)
            ours = getattr(subject.preprocess, "name", "")
            theirs = gaussian.provenance.get("preprocess", ours)
            if theirs != ours:
                raise UserError(f"the Gaussian in {source} was fitted to {theirs} images, the network takes {ours}")
            self.learnt = gaussian
            return
        images = subject.pictures(None if source is None else str(source))
        facts = images.facts | {"size": list(subject.size)}
        file = subject.cache("gaussians", (facts, subject.channels, self.patch, self.joint))
        if self.conditional and file.is_file():
            self.learnt = PatchGaussian.load(file)
            return
        log.info(
            "fitting the patch model of %s to %s (%d images); for others give gaussian=FOLDER",
            self.title, facts["data"], len(images),
        )  # fmt: skip
        self.fit(images, **facts)
        if isinstance(self.learnt, PatchGaussian):
            self.learnt.save(file)

    def fit(self, images: ImageSequence, **provenance: Any) -> None:
        """Fit to images [N, C, H, W] as the network sees them, or a sequence of N. provenance: saved with the Gaussian."""
        if self.conditional:
            self.learnt = PatchGaussian.fit(images, self.patch, joint=self.joint, provenance=provenance)
        else:
            self.learnt = Marginal.fit(images)

    @property
    def expected(self) -> PatchGaussian | Marginal:
        """Return the learnt distribution. Raises UserError if there is none, or if a loaded Gaussian has other parameters."""
        if self.learnt is None and self.conditional and self.gaussian is not None:
            self.learnt = PatchGaussian.load(Path(self.gaussian).expanduser())
        if self.learnt is None:
            raise UserError(f"{self.title} learns from images first: call fit(images), or give gaussian=FILE")
        found = self.learnt
        if isinstance(found, PatchGaussian) and (found.side, found.joint) != (self.patch, self.joint):
            raise UserError(
                f"the Gaussian in {self.gaussian} has patch={found.side} joint={found.joint}, "
                f"not the requested patch={self.patch} joint={self.joint}"
            )
        return found

    def _contents(self, image: Tensor, windows: Tensor, preprocess: Preprocessing | None = None) -> Tensor:
        if self.samples:
            return self.expected.samples(image, windows, self.window, self.samples, self.seed)
        return self.expected.means(image, windows, self.window)[:, None]

    def _measure(self, logits: Tensor, target: Target) -> Tensor:
        return log2_odds(in_float64(logits).softmax(-1)[..., target.unit].mean(1), logits.shape[-1], self.laplace)


class PDA(Learnt):
    """Prediction difference analysis (Zintgraf et al. 2017; zhou2018, Algorithm 1): the mean over draws of each window.

        evidence(w) = log2 odds(p(c|x)) - log2 odds(1/S sum_s p(c | x, w drawn))

    Maps are signed, in log2 odds: [B, 1, H, W], or [B, C, H, W] per channel. Draws depend only on the seed and the
    window's position, and are clipped to the range of the data. average: over the draws, of probabilities or of logits.
    Raises UserError without a learnt distribution (`fit`) and if no window fits, NotApplicable for a unit of another layer.
    Costs `samples` forward passes for each window, limited to the values that the window can change (`vis.windows.engine`).
    """

    title = "PDA"

    def __init__(
        self,
        window: int = 10,
        patch: int = 18,
        stride: int = 1,
        samples: int = 10,
        average: str = "probability",
        conditional: bool = True,
        joint: bool = False,
        per_channel: bool = False,
        laplace: float = 100_000,
        gaussian: str | None = None,
        seed: int = 0,
        memory_gb: float = 4.0,
        precision: str = "float32",
    ) -> None:
        super().__init__(
            window, patch, stride, samples, conditional=conditional, joint=joint, per_channel=per_channel, laplace=laplace,
            gaussian=gaussian, seed=seed, memory_gb=memory_gb, precision=precision,
        )  # fmt: skip
        if samples < 1:
            raise ValueError("PDA draws samples: give 1 or more, or take pda_fast, which uses their expectation")
        if average not in ("probability", "logit"):
            raise ValueError(f"average is probability or logit, not {average!r}")
        self.average = average

    def _measure(self, logits: Tensor, target: Target) -> Tensor:
        return super()._measure(logits.mean(1, keepdim=True) if self.average == "logit" else logits, target)


class PDAFast(Learnt):
    """Efficient prediction difference analysis (zhou2018, Algorithm 2): one pass per window, with its conditional mean.

        evidence(w) = log2 odds(p(c|x)) - log2 odds(p(c | x, w = E[w | what is around it]))

    samples: the number of draws whose mean replaces the conditional mean (its Figures 14 and 15); 0 for none. Maps and errors are
    those of PDA.
    Costs a forward pass for each window, limited to the values that the window can change (`vis.windows.engine`).
    """

    title = "Efficient PDA"

    def _contents(self, image: Tensor, windows: Tensor, preprocess: Preprocessing | None = None) -> Tensor:
        return super()._contents(image, windows).mean(1, keepdim=True)


class PDAGradient(PDAFast):
    """Simplified prediction difference analysis (zhou2018, Algorithm 3): the first-order change of the probability.

        evidence(w) = g^T (x - x')        g = dP(c|x)/dx, x' the image with the conditional mean in w

    Maps are signed, in units of the probability: [B, 1, H, W], or [B, C, H, W] per channel; errors are those of PDA.
    samples: as in PDAFast. precision: float32 alone, since no window has products to round; precision=mixed of the run rounds
    the backward pass.
    Costs a shared forward pass and a backward pass, and the conditional means of all windows.
    """

    title = "Simplified PDA"
    precisions = ("float32",)
    mixed_error = 0.01

    def passes(self, model: nn.Module, image: Tensor) -> float:
        return 1

    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        images, maps = forward.images.detach(), []
        chosen = output_targets(forward, targets, self.title)
        gradients = forward.gradient([replace(target, output="prob") for target in chosen])
        windows = self.windows(images)
        for image, g in zip(images, gradients, strict=True):
            parts = []
            for some in windows.split(_BLOCK):
                change = cut(image, some, self.window) - self._contents(image, some)[:, 0]
                products = (cut(g, some, self.window) * change).sum((2, 3))
                parts.append(products if self.per_channel else products.sum(1, keepdim=True))
            maps.append(accumulate(torch.cat(parts), windows, self.window, image.shape[1:]))
        return torch.stack(maps)


class Occlusion(_Windows):
    """Occlusion (Zeiler & Fergus 2014; ayyar2021, section 2.1): how much the target falls when a window is covered.

        evidence(w) = f(x) - f(x with `fill` in w)

    Maps are signed: [B, 1, H, W], or [B, C, H, W] per channel, in units of f: the logit or the probability, as the target
    says; evidence="odds" takes the log2 odds of zhou2018.
    fill: the content of a covered window (`vis.methods.baseline`): gray pixels as in the paper, black, white, pixels of a number
    in [0, 1] or one for each channel, zero, mean, blur, noise or a tensor.
    Raises UserError if no window fits, NotApplicable for a unit of another layer, and for named pixels without `preprocess`.
    Costs a forward pass for each window, limited to the values that the window can change (`vis.windows.engine`).
    """

    title = "Occlusion"

    def __init__(
        self,
        window: int = 10,
        fill: Baseline = "gray",
        stride: int = 1,
        evidence: str = "score",
        per_channel: bool = False,
        laplace: float = 100_000,
        memory_gb: float = 4.0,
        precision: str = "float32",
    ) -> None:
        super().__init__(window, stride, per_channel, laplace, memory_gb, precision)
        if evidence not in ("score", "odds"):
            raise ValueError(f"evidence is score or odds, not {evidence!r}")
        self.fill = only(fill)
        self.of = evidence

    @property
    def words(self) -> str:
        return f"by {in_words(self.fill)}"

    def covered(self, image: Tensor, preprocess: Preprocessing | None) -> Tensor:
        """Return an image [C, H, W] that is covered everywhere."""
        return baseline_image(image[None], self.fill, preprocess, part=True)[0]

    def _contents(self, image: Tensor, windows: Tensor, preprocess: Preprocessing | None = None) -> Tensor:
        return cut(self.covered(image, preprocess), windows, self.window)[:, None]

    def _saturation(self, logits: Tensor, target: Target) -> None:
        if self.of == "odds":  # no score is corrected
            super()._saturation(logits, target)

    def _measure(self, logits: Tensor, target: Target) -> Tensor:
        if self.of == "odds":
            return log2_odds(in_float64(logits[:, 0]).softmax(-1)[:, target.unit], logits.shape[-1], self.laplace)
        return score(logits[:, 0], [target] * len(logits))
