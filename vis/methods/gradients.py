"""Methods that combine many gradients, or a gradient and a CAM (ayyar2021, Eq. 7, 8 and section 4.6.1)."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, fx, nn

from vis.graph.interpreter import Affine, Walk
from vis.graph.trace import NotTraceable
from vis.methods.backprop import Saliency
from vis.methods.base import Method
from vis.methods.baseline import Baseline, baseline_images, in_words, several
from vis.methods.cam import GradCAM
from vis.methods.forward import GUIDED, SALIENCY, Forward, NotApplicable, ReluRule
from vis.methods.layers import Reshape
from vis.methods.propagation import checked
from vis.methods.target import Target, Targets, as_targets

PASS_VALUES = 1 << 20  # of images at a time through a network and back: 6 of 3x224x224


def fixed(forward: Forward, targets: Targets) -> list[Target]:
    """Replace each target None by the unit that is largest for the unchanged image."""
    chosen = as_targets(targets, len(forward.images))
    forward.scores(targets)  # raises for a unit that is not there
    for i, target in enumerate(chosen):
        if target.unit is None:
            values = forward.output(target.layer)[i].detach()
            if target.output == "prob":
                values = values.softmax(0)
            unit = tuple(int(k) for k in np.unravel_index(int(values.argmax()), values.shape))
            chosen[i] = replace(target, unit=unit if len(unit) > 1 else unit[0])
    return chosen


def _passes(images: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (image, sample) indices of `count` samples of each image, in passes of about equal size."""
    pairs = torch.arange(len(images) * count, device=images.device)
    for some in pairs.tensor_split(math.ceil(len(pairs) / max(1, PASS_VALUES // images[0].numel()))):
        yield some % len(images), some // len(images)


class PathMethod(Method):
    """A method that sums gradients on a way from a baseline x0 to the image. A subclass implements `from_baseline`.

    It gives the meaning of `steps`; the map is the mean over the baselines (`vis.methods.baseline`), `seed` that of noise.
    """

    axiom = "completeness"
    mixed_error = 0.01

    def __init__(self, steps: int, baseline: Baseline | Sequence[Baseline], seed: int) -> None:
        if steps < 1:
            raise ValueError("steps is 1 or more")
        several(baseline)
        self.steps, self.baseline, self.seed = steps, baseline, seed

    @abstractmethod
    def from_baseline(self, forward: Forward, chosen: list[Target], x0: Tensor, k: int) -> Tensor:
        """Maps [B, C, H, W] of one baseline x0 [B or 1, C, H, W], the k-th."""

    @property
    def words(self) -> str:
        return f"from {in_words(self.baseline)}"

    def passes(self, model: nn.Module, image: Tensor) -> float:
        return 2 * self.steps * len(several(self.baseline))

    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        chosen, baselines = fixed(forward, targets), enumerate(self._baselines(forward))
        return torch.stack([self.from_baseline(forward, chosen, x0, k) for k, x0 in baselines]).mean(0)

    def _baselines(self, forward: Forward) -> list[Tensor]:
        return baseline_images(forward.images.detach(), self.baseline, forward.preprocess, self.seed)

    def total(self, forward: Forward, targets: Targets) -> Tensor:
        chosen, found = fixed(forward, targets), []
        for x0 in self._baselines(forward):
            x0 = x0.expand_as(forward.images)
            with Forward(forward.model, x0, list(forward.layers), forward.preprocess) as at_baseline:
                found.append(at_baseline.scores(chosen).detach())
        return forward.scores(chosen) - torch.stack(found).mean(0)


class IntegratedGradients(PathMethod):
    """Integrated gradients (Sundararajan et al. 2017; ayyar2021, section 4.4): gradients on the line from a baseline x0.

        R = (x - x0) * int_0^1 dS_c(x0 + alpha (x - x0)) / dx  d alpha        ayyar2021, Eq. 7

    Maps are signed, [B, C, H, W], in units of the target, which may be any unit.
    steps: gradients on the line. rule: gauss_legendre; riemann, at k / steps for k = 1 ... steps as in the paper; or uniform,
    at random (`ExpectedGradients`).
    baseline: black, gray, white, zero, mean, blur, noise or a tensor (`vis.methods.baseline`), or a list of these, as
    [black,white,blur]; R is then the mean. Black is black pixels: NotApplicable without `preprocess`. seed: of noise.

    Axiom: completeness, a map sums to S_c(x) - S_c(x0), the mean over the baselines, up to the error of the numerical
    integral.
    Costs `steps` forward and backward passes for each baseline, beside the shared forward pass; on a network of convolutions,
    ReLUs and poolings without biases, from zero, a logit has the same gradient on all the way: then one of each.
    """

    title = "Integrated gradients"

    def __init__(
        self,
        steps: int = 50,
        rule: str = "gauss_legendre",
        baseline: Baseline | Sequence[Baseline] = "black",
        seed: int = 0,
    ) -> None:
        super().__init__(steps, baseline, seed)
        if rule not in ("gauss_legendre", "riemann", "uniform"):
            raise ValueError(f"rule is gauss_legendre, riemann or uniform, not {rule!r}")
        self.rule = rule

    def from_baseline(self, forward: Forward, chosen: list[Target], x0: Tensor, k: int) -> Tensor:
        x = forward.images.detach()
        outputs = all(target.layer is None and target.output == "logit" for target in chosen)
        if outputs and not x0.any() and homogeneous(forward):
            return forward.gradient(chosen) * x
        alphas, weights = (x.new_tensor(each) for each in self._points(k))
        total = torch.zeros_like(x)
        x0 = x0.expand_as(x)
        for i, j in _passes(x, self.steps):
            points = x0[i] + alphas[j].view(-1, 1, 1, 1) * (x - x0)[i]
            with Forward(forward.model, points, list(forward.layers), forward.preprocess) as on_path:
                gradient = on_path.gradient([chosen[each] for each in i.tolist()])
            total.index_add_(0, i, weights[j].view(-1, 1, 1, 1) * gradient)
        return (x - x0) * total

    def _points(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Places in [0, 1] on the line from the k-th baseline, and their weights."""
        if self.rule == "gauss_legendre":
            nodes, weights = np.polynomial.legendre.leggauss(self.steps)
            return (nodes + 1) / 2, weights / 2
        alphas = np.arange(1, self.steps + 1) / self.steps
        if self.rule == "uniform":
            alphas = np.random.default_rng([self.seed, k]).random(self.steps)
        return alphas, np.full(self.steps, 1 / self.steps)


class ExpectedGradients(IntegratedGradients):
    """Expected gradients (Erion et al. 2021): integrated gradients, in the mean over many baselines x0.

        R = E_x0 E_alpha [(x - x0) * dS_c(x0 + alpha (x - x0)) / dx]        alpha uniform in [0, 1]

    Maps are signed, [B, C, H, W], in units of the target.
    baseline: a list of references, each a name or a tensor (`vis.methods.baseline`). The authors take training images:
    baseline=list(images). NotApplicable for black, gray and white without `preprocess`.
    samples: alphas drawn for each reference; 1 is enough with hundreds. seed: of these, and of noise.

    Axiom: completeness, a map sums to S_c(x) - E S_c(x0), up to the error of the draws.
    Costs `samples` forward and backward passes for each reference, beside the shared forward pass.
    """

    title = "Expected gradients"

    def __init__(
        self,
        samples: int = 25,
        baseline: Baseline | Sequence[Baseline] = ("black", "white", "blur", "noise"),
        seed: int = 0,
    ) -> None:
        super().__init__(samples, "uniform", baseline, seed)


class Homogeneous(Walk):
    """Walk through a network for which f(t x) = t f(x), t >= 0; raises NoRule for any other."""

    def affine(self, node: fx.Node, op: Affine, a: Tensor) -> Tensor:
        if op.b is not None and op.b.any():
            raise self.no_rule(node)
        return super().affine(node, op, a)

    def activation(self, node: fx.Node, g: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
        if self.traced.kind(node) not in ("relu", "leakyrelu"):
            raise self.no_rule(node)
        return super().activation(node, g, a)


@torch.no_grad()
def homogeneous(forward: Forward) -> bool:
    """Tell whether f(t x) = t f(x) for t >= 0: the gradient is then constant on the line from 0 to an image."""
    try:
        # At a small t, since the graph may add constants otherwise than by biases (a channel of coordinates, padding).
        checked(1024 * Homogeneous(forward.model).run(forward.images.detach()[:1] / 1024), forward)
    except (NotTraceable, NotApplicable):  # unknown: integrate the path in steps
        return False
    return True


class SmoothGrad(Method):
    """SmoothGrad (Smilkov et al. 2017; ayyar2021, section 4.5): the mean of a method's maps of noisy images.

        R = 1/n sum_i R(x + N(0, sigma^2))        ayyar2021, Eq. 8

    base: any method, the gradient by default; the maps have its shape, sign and errors. samples: n. noise_level: sigma in parts
    of x_max - x_min, 0.1 to 0.2 in the paper; the image is normalised, and so are they. Noise depends on the seed alone: images
    of a batch share its pattern. The target None stays the unit that is largest without noise.
    reduce: mean; square, the mean of R^2 (SmoothGrad^2, Hooker et al. 2019); variance, the variance of R over the samples
    (VarGrad, Adebayo et al. 2018). The last two are not negative.
    Costs `samples` times what the base does, beside the shared forward pass.
    """

    title = "SmoothGrad"
    display = "absolute"

    def __init__(
        self,
        base: Method | None = None,
        samples: int = 50,
        noise_level: float = 0.15,
        seed: int = 0,
        reduce: str = "mean",
    ) -> None:
        if samples < 1 or noise_level < 0:
            raise ValueError("samples is 1 or more, noise_level 0 or more")
        if reduce not in ("mean", "square", "variance"):
            raise ValueError(f"reduce is mean, square or variance, not {reduce!r}")
        self.base = Saliency() if base is None else base
        self.samples, self.noise_level, self.seed, self.reduce = samples, noise_level, seed, reduce

    @property
    def words(self) -> str:
        of = f"of {self.base.title} {self.base.words}" if self.base.words else ""
        return " ".join(
            filter(None, [{"square": "squared"}.get(self.reduce, self.reduce) * (self.reduce != "mean"), of])
        )

    @property
    def mixed_error(self) -> float | None:
        return self.base.mixed_error

    def passes(self, model: nn.Module, image: Tensor) -> float:
        return self.samples * (1 + self.base.passes(model, image))

    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        x = forward.images.detach()
        chosen = fixed(forward, targets)
        sigma = self.noise_level * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))
        shift = total = squares = torch.empty(0)
        for i, k in _passes(x, self.samples):
            patterns = {sample: self._noise(sample, x) for sample in set(k.tolist())}
            noisy = x[i] + sigma[i] * torch.stack([patterns[sample] for sample in k.tolist()])
            maps = self.base(forward.model, noisy, [chosen[image] for image in i.tolist()], forward.preprocess)
            if not len(total):
                shift, total, squares = maps.new_zeros(3, len(x), *maps.shape[1:])
            if self.reduce == "variance":  # of the differences from the first map, lest rounding errors remain
                shift[i[k == 0]] = maps[k == 0]
            maps = maps - shift[i]
            total.index_add_(0, i, maps)
            squares.index_add_(0, i, maps**2)
        n = self.samples
        variance = (squares / n - (total / n) ** 2).clamp(min=0)
        return {"mean": total / n, "square": squares / n, "variance": variance}[self.reduce]

    def _noise(self, sample: int, images: Tensor) -> Tensor:
        """Draw noise of deviation 1, the same for all images [B, C, H, W] of a size: [C, H, W]."""
        values = np.random.default_rng([self.seed, sample]).standard_normal(images.shape[1:])
        return torch.from_numpy(values).to(images)


class GuidedGradCAM(Method):
    """Guided Grad-CAM (Selvaraju et al. 2017; ayyar2021, section 4.6.1): guided backpropagation times Grad-CAM.

        R = GBP * Grad-CAM, upsampled

    layer, reshape: of Grad-CAM, None finds the last. Maps are signed, [B, C, H, W]. Raises NotApplicable as both do.
    Costs a shared forward pass, a backward pass to the image and one to the layer.
    """

    title = "Guided Grad-CAM"
    display = "midgray"
    mixed_error = 0.01
    rule: ClassVar[ReluRule] = GUIDED

    def __init__(self, layer: str | None = None, reshape: Reshape | None = None) -> None:
        self.layer, self.reshape = layer, reshape
        self._cam = GradCAM(layer, reshape=reshape)

    def layers(self, model: nn.Module, images: Tensor) -> list[str]:
        return self._cam.layers(model, images)

    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        return self._cam.explain(forward, targets) * forward.gradient(targets, self.rule)


class GradCAMGradient(GuidedGradCAM):
    """Grad-CAM times the gradient: what zhou2018 writes as Grad-CAM (Eq. 8).

        R = dS_c / dx * Grad-CAM, upsampled

    layer, reshape: of Grad-CAM, None finds the last. Maps are signed, [B, C, H, W]. Raises NotApplicable as Grad-CAM does.
    Costs a shared forward pass, a backward pass to the image and one to the layer.
    """

    title = "Grad-CAM x gradient"
    display = "diverging"
    rule = SALIENCY
