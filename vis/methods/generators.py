"""Adversarial generators (Charachon et al. 2020; ayyar2021, Section 6): the change in an image that changes its class.

For a fixed classifier and two of its classes, c(x) being the one of them that it prefers and c'(x) the other, two generators
of one architecture are trained together,

    g_s (similar)      is classified as x        g_a (adversarial)   is classified oppositely
    R(x) = |g_s(x) - g_a(x)|                                                                                       (27)

    loss = CE(f(g_s(x)), c) + CE(f(g_a(x)), c') + distance (|g_s(x) - x| + |g_a(x) - x|) + closeness |theta_s - theta_a|^2

with f the softmax over the two classes, mean absolute distances in parts of the data's range, and the mean square of the
parameters' differences ("minimal differences in their learnt parameters"): what both generators get wrong of an image
cancels in R. The survey does not state the loss; these are the terms it mentions, in their simplest form, without the
discriminator of a GAN. The single network that it calls noisy is x_a = g_a(x), trained alone, with the map |x - x_a|.
"""

import io
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vis.errors import UserError
from vis.graph.modes import evaluating
from vis.methods.base import Method, Subject
from vis.methods.forward import Forward, NotApplicable, output_targets
from vis.methods.target import Targets
from vis.system.console import progress
from vis.system.files import intact, write_bytes
from vis.windows.gaussian import ImageSequence

log = logging.getLogger(__name__)

_SAVE_SECONDS = 20.0  # between saved states of a training


class UNet(nn.Module):
    """Maps images [B, C, H, W] to images within [low, high] ([C] each); the identity before training.

    The change that it adds comes from a U-Net with two downsamplings, two upsamplings and skip connections.
    """

    def __init__(self, low: Tensor, high: Tensor, width: int) -> None:
        super().__init__()
        C = len(low)
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", low.view(-1, 1, 1))
        self.register_buffer("high", high.view(-1, 1, 1))
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride, padding=1)
            for a, b, stride in ((C, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2))
        )
        self.up = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in ((6 * width, 2 * width), (3 * width, width), (width + C, C))
        )

        for parameter in self.up[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        z = (x - self.low) / _span(self.low, self.high)
        maps = [z]
        for layer in self.down:
            maps.append(layer(maps[-1]).relu())
        out = maps.pop()
        for layer in self.up[:-1]:
            skip = maps.pop()
            out = layer(torch.cat([F.interpolate(out, skip.shape[2:]), skip], 1)).relu()
        made = z + self.up[-1](torch.cat([out, z], 1))
        # Clamp the values but not the gradient, so that a pixel outside the range can return.
        made = made + (made.clamp(0, 1) - made).detach()
        return self.low + (self.high - self.low) * made


class Generators(nn.Module):
    """The networks g_a and, for a pair, g_s. width: channels at full resolution."""

    def __init__(self, low: Tensor, high: Tensor, width: int, pair: bool, provenance: dict[str, Any]) -> None:
        super().__init__()
        self.width, self.pair, self.provenance = width, pair, provenance
        self.adversarial = UNet(low, high, width)
        self.similar = UNet(low, high, width) if pair else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(g_s(x), g_a(x)), or (x, x_a) of a single one; all [B, C, H, W]."""
        return self.similar(x), self.adversarial(x)

    def apart(self) -> Tensor:
        """The mean square of the differences between the parameters of a pair."""
        pairs = list(zip(self.similar.parameters(), self.adversarial.parameters(), strict=True))
        return torch.stack([(a - b).square().sum() for a, b in pairs]).sum() / sum(a.numel() for a, _ in pairs)

    def save(self, path: Path) -> None:
        """Write the parameters and their provenance to a file."""
        facts = {"width": self.width, "pair": self.pair, "provenance": self.provenance}
        _write(path, {"facts": facts, "state": {k: v.cpu() for k, v in self.state_dict().items()}})

    @classmethod
    def load(cls, path: Path) -> "Generators":
        """Read what `save` wrote. Raises UserError for any other file."""
        try:
            saved = _read(path, "cpu")
            state = saved["state"]
            low, high = (state[f"adversarial.{name}"].flatten() for name in ("low", "high"))
            found = cls(low, high, **saved["facts"])
            found.load_state_dict(state)
        except Exception as error:  # a damaged or foreign file
            raise UserError(f"{path} holds no generators that this project saved: remove it") from error
        return found


class AdversarialGenerators(Method):
    """The change that turns one of two classes into the other (Charachon et al. 2020; ayyar2021, section 6, Eq. 27).

        R(x) = |g_s(x) - g_a(x)|        g_s(x) is classified as x, g_a(x) oppositely

    Maps are [B, C, H, W], 0 or more, in the units of the network's input, the same for both classes. Call `fit` first;
    vis-run does, on the training images of the dataset that show one of the two `classes`. pair: false is the single
    generator, |x - x_a|. distance, closeness: weights of the loss. width: channels of a generator at full resolution.
    steps: of Adam, on `batch` images each, with a learning rate that falls from lr to 0 as a cosine.
    A map carries no information if g_a(x) keeps the class, or x is of neither: see `silent`.
    Raises NotApplicable for a target that is neither of the classes.
    Costs a training with 2 `steps` forward and backward passes of `batch` images, once for a network; a map then takes a
    pass of each generator.
    """

    title = "Adversarial generators"
    display = "absolute"
    why_silent = "the image is of neither class, or the adversarial image keeps its class"

    def __init__(
        self,
        classes: Sequence[int] = (3, 8),
        pair: bool = True,
        distance: float = 20.0,
        closeness: float = 10.0,
        width: int = 8,
        steps: int = 1500,
        batch: int = 16,
        lr: float = 2e-3,
        seed: int = 0,
    ) -> None:
        if not (
            isinstance(classes, Sequence)
            and len(classes) == len(set(map(str, classes))) == 2
            and all(isinstance(c, int) and c >= 0 for c in classes)
        ):
            raise ValueError(f"classes={classes}: give the numbers of two different classes, such as [3,8]")
        if min(width, steps, batch) < 1 or lr <= 0 or min(distance, closeness) < 0:
            raise ValueError("width, steps and batch must be 1 or more, lr above 0, distance and closeness 0 or more")
        self.classes, self.pair, self.distance, self.closeness = list(classes), pair, distance, closeness
        self.width, self.steps, self.batch, self.lr, self.seed = width, steps, batch, lr, seed
        self.learnt: Generators | None = None  # set by `fit`

    def decision(self, logits: Tensor) -> Tensor:
        """Which of the two classes logits [B, K] prefer: 0 or 1, [B]. Raises UserError if the network has fewer classes."""
        if max(self.classes) >= logits.shape[1]:
            raise UserError(f"classes={self.classes}: the network has the classes 0 to {logits.shape[1] - 1}")
        return logits[:, self.classes].argmax(1)

    def prepare(self, subject: Subject) -> None:
        """Train on the training images of the two classes, once for a network, these images and the method's parameters.

        The generators are cached, and an interrupted training resumes. Raises UserError if there are no such images,
        NotApplicable for a target that is neither of the classes.
        """
        with Forward(subject.model, subject.images, preprocess=subject.preprocess) as forward:
            for each in subject.targets:
                self.check(forward, each)
        data = subject.training_images()
        kept = [i for i, label in enumerate(data.labels) if label in self.classes]
        if {data.labels[i] for i in kept} != set(self.classes):
            raise UserError(
                f"{self.title} learn from labelled images of the classes {self.classes[0]} and {self.classes[1]}, and "
                f"{data.facts['data']} has none of one of them: give dataset=mnist, or other classes"
            )
        data = data.part(kept)
        parameters = {key: value for key, value in vars(self).items() if key != "learnt"}
        facts = data.facts | subject.network() | parameters
        file = subject.cache("generators", facts)
        if file.is_file():
            self.learnt = Generators.load(file)
            return
        log.info("training %s on %d images of %s, once, in %s", self.title.lower(), len(data), facts["data"], file)
        state = file.with_suffix(".training")
        self.fit(subject.model, data, state, **facts)
        assert self.learnt is not None
        self.learnt.save(file)
        state.unlink(missing_ok=True)

    def fit(self, model: nn.Module, images: ImageSequence, state: Path | None = None, **provenance: Any) -> None:
        """Train on images of the two classes, [N, C, H, W] as the network sees them, or a sequence of N.

        provenance: saved with the generators. state: a file for the state of the training, which resumes from it if it
        exists. On a CPU the same seed gives the same bits, also after a kill, and the global generator is untouched.
        """
        seen = [images[i] for i in range(len(images))]
        if not seen:
            raise UserError(
                f"{self.title} learn from images of the classes {self.classes}, and there is none: give some"
            )
        data = torch.stack(seen).float()
        low, high = data.amin((0, 2, 3)), data.amax((0, 2, 3))
        device, dtype = next((p.device, p.dtype) for p in model.parameters())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            learnt = Generators(low, high, self.width, self.pair, {"images": len(data), **provenance}).to(device)
        span = _span(low, high).to(device).view(-1, 1, 1)
        random = torch.Generator().manual_seed(self.seed)
        chosen = torch.randint(len(data), (self.steps, self.batch), generator=random)
        adam = torch.optim.Adam(learnt.parameters(), self.lr)
        begin = 0
        kept = _read(state, device) if state is not None and state.is_file() else {}
        if kept is None:
            log.warning("%s is damaged: the training starts again", state)
        elif kept:
            begin = kept["step"]
            learnt.load_state_dict(kept["learnt"])
            adam.load_state_dict(kept["adam"])
        saved, words = time.perf_counter(), f"training {self.title.lower()}"
        with evaluating(model):
            for step in progress(range(begin, self.steps), self.steps, "steps", done=begin, desc=words, leave=False):
                for group in adam.param_groups:
                    group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * step / self.steps))
                x = data[chosen[step]].to(device)
                c = self.decision(model(x.to(dtype)).detach())
                loss = self.closeness * learnt.apart() if self.pair else x.new_zeros(())
                for g, wanted in zip(learnt(x), (c, 1 - c), strict=True):
                    if g is not x:
                        loss = loss + F.cross_entropy(model(g.to(dtype))[:, self.classes], wanted)
                        loss = loss + self.distance * ((g - x).abs() / span).mean()
                adam.zero_grad()
                loss.backward()
                adam.step()
                if state is not None and time.perf_counter() - saved > _SAVE_SECONDS:
                    _write(state, {"step": step + 1, "learnt": learnt.state_dict(), "adam": adam.state_dict()})
                    saved = time.perf_counter()
        self.learnt = learnt.requires_grad_(False)

    def generate(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(g_s(x), g_a(x)) of images [B, C, H, W], or (x, x_a) of a single generator. Raises UserError before `fit`."""
        if self.learnt is None:
            raise UserError(f"{self.title} are not trained: call fit(model, images) first")
        with torch.no_grad():
            similar, adversarial = self.learnt.to(images.device)(images.float())
        return similar.to(images.dtype), adversarial.to(images.dtype)

    def silent(self, model: nn.Module, images: Tensor) -> Tensor:
        """For each image whether the largest logit is of neither class, or g_a(x) keeps the class; False before `fit`."""
        if self.learnt is None:
            return super().silent(model, images)
        with evaluating(model), torch.no_grad():
            logits, turned = model(images.clone()), model(self.generate(images)[1])
        neither = torch.isin(logits.argmax(1), torch.tensor(self.classes, device=logits.device), invert=True)
        return neither | (self.decision(logits) == self.decision(turned))

    def check(self, forward: Forward, targets: Targets) -> None:
        """Raise NotApplicable for a target that is neither of the classes, UserError for a network without them."""
        self.decision(forward.logits)
        others = {t.unit for t in output_targets(forward, targets, self.title)} - set(self.classes)
        if others:
            (a, b), other = self.classes, min(others, key=str)
            raise NotApplicable(
                f"{self.title} tell the classes {a} and {b} from each other, and a target is {other}: give target={a} or "
                f"target={b}, or other classes (methods.adversarial_generators.classes=[{a},{other}])"
            )

    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        self.check(forward, targets)
        similar, adversarial = self.generate(forward.images.detach())
        return (similar - adversarial).abs()


def _span(low: Tensor, high: Tensor) -> Tensor:
    """high - low, but 1 for a constant channel."""
    return torch.where(high > low, high - low, 1)


def _read(path: Path, device: torch.device | str) -> Any:
    """Read what `_write` wrote; None if the file is damaged."""
    try:
        return torch.load(path, map_location=device, weights_only=True) if intact(path) else None
    except Exception:  # for a damaged file torch raises almost anything
        return None


def _write(path: Path, what: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(what, buffer)
    write_bytes(path, buffer.getvalue())
