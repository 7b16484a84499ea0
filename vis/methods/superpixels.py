"""LIME and Kernel SHAP: linear models of the score around an image, over its superpixels."""

import math
from abc import abstractmethod
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from vis.methods.base import Method
from vis.methods.forward import Forward, NotApplicable, in_passes, output_targets
from vis.methods.target import Target, Targets, score


class _Superpixels(Method):
    """A weight for each superpixel, from images that keep some superpixels and show the others in their mean colour.

    A pixel has the weight of its superpixel: maps are [B, 1, H, W], signed, in units of f, the probability or the logit.
    """

    def __init__(self, samples: int = 1000, superpixels: int = 50, output: str = "prob", seed: int = 0) -> None:
        if samples < 2 or superpixels < 2 or output not in ("prob", "logit"):
            raise ValueError("samples and superpixels are 2 or more, output is prob or logit")
        self.samples, self.superpixels, self.output, self.seed = samples, superpixels, output, seed

    def passes(self, model: nn.Module, image: Tensor) -> float:
        return self.samples

    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        images, maps = forward.images.detach(), []
        for image, target in zip(images, output_targets(forward, targets, self.title), strict=True):
            segments = self.segments(image)
            means = torch.stack([image[:, segments == s].mean(1) for s in range(int(segments.max()) + 1)], 1)
            chosen = Target(target.unit, None, self.output)  # type: ignore[arg-type]  # checked above
            weights = self.weights(forward.model, image, segments, means, chosen)
            maps.append(torch.from_numpy(weights).to(image)[segments][None])
        return torch.stack(maps)

    @abstractmethod
    def weights(self, model: nn.Module, image: Tensor, segments: Tensor, means: Tensor, target: Target) -> np.ndarray:
        """Return the weights [S] of the superpixels of an image [C, H, W] with mean colours [C, S]."""

    @torch.no_grad()
    def scores(
        self, model: nn.Module, image: Tensor, segments: Tensor, means: Tensor, kept: np.ndarray, target: Target
    ) -> np.ndarray:
        """Compute f for each of n choices of superpixels, kept [n, S] of 0 and 1: [n] in float64."""
        coloured, values = means[:, segments], []
        for some in in_passes(torch.from_numpy(kept).to(image.device), image.numel()):
            mask = some[:, segments][:, None].bool()
            values.append(score(model(torch.where(mask, image, coloured)), [target] * len(some)))
        return torch.cat(values).cpu().double().numpy()

    def segments(self, image: Tensor) -> Tensor:
        """Number the superpixel 0, 1, ... of each pixel of an image [C, H, W]: [H, W]."""
        from skimage.segmentation import slic

        low, high = image.min(), image.max()
        pixels = ((image - low) / (high - low) if high > low else image * 0).cpu().double().numpy()
        labels = slic(pixels, n_segments=self.superpixels, channel_axis=0, start_label=0, convert2lab=len(pixels) == 3)
        return torch.from_numpy(np.unique(labels, return_inverse=True)[1].reshape(labels.shape)).to(image.device)


class LIME(_Superpixels):
    """LIME (Ribeiro et al. 2016; ayyar2021, section 2.1): weights of superpixels in a linear model around the image.

        w = argmin  sum_i pi_i (f(x_i) - w^T m_i - b)^2 + alpha |w|^2        pi = exp(-d^2 / (2 sigma^2))

    m_i marks the superpixels that sample x_i keeps; the others have their mean colour. A pixel has the weight of its
    superpixel: maps are [B, 1, H, W], signed, in units of f.
    samples: the number of such images. Each keeps a superpixel with probability 1/2, the first keeps all. superpixels: their
    approximate number (SLIC). d: cosine distance from the whole image; pi is the authors' sqrt(exp(-d^2 / sigma^2)).
    alpha: penalty of the ridge regression, whose intercept is free. output: f is the probability (prob), as in the paper, or
    the logit. seed: of the samples.
    Raises NotApplicable for a unit of another layer.
    Costs `samples` forward passes for each image.
    """

    title = "LIME"

    def __init__(
        self,
        samples: int = 1000,
        superpixels: int = 50,
        sigma: float = 0.25,
        alpha: float = 1.0,
        output: str = "prob",
        seed: int = 0,
    ) -> None:
        super().__init__(samples, superpixels, output, seed)
        if sigma <= 0 or alpha < 0:
            raise ValueError("sigma is above 0, alpha 0 or more")
        self.sigma, self.alpha = sigma, alpha

    def weights(self, model: nn.Module, image: Tensor, segments: Tensor, means: Tensor, target: Target) -> np.ndarray:
        from sklearn.linear_model import Ridge

        kept = np.random.default_rng(self.seed).integers(0, 2, (self.samples, means.shape[1]))
        kept[0] = 1
        near = 1 - np.sqrt(kept.mean(1))  # 1 - cosine of a sample and the whole image
        ridge = Ridge(alpha=self.alpha)
        values = self.scores(model, image, segments, means, kept, target)
        return ridge.fit(kept, values, sample_weight=np.exp(-(near**2) / (2 * self.sigma**2))).coef_


class KernelSHAP(_Superpixels):
    """Kernel SHAP (Lundberg & Lee 2017): the Shapley values of an image's superpixels, by a weighted regression.

        phi = argmin  sum_z pi(z) (f(z) - f(0) - phi^T z)^2        subject to sum_s phi_s = f(1) - f(0)
        pi(z) = (S - 1) / (binom(S, |z|) |z| (S - |z|))

    z in {0, 1}^S marks the superpixels that are kept, of S; the others have their mean colour. A pixel has the value of its
    superpixel: maps are [B, 1, H, W], signed, in units of f.
    samples: the number of choices z. If it reaches 2^S, each z counts once and the values are exact; otherwise z are drawn in
    proportion to pi, each with its complement. superpixels: their approximate number (SLIC). output: f is the probability
    (prob) or the logit. seed: of the draws.
    Raises NotApplicable for a unit of another layer, and where the samples do not determine the values: S superpixels need
    at least 2 (S - 1).
    Costs `samples` forward passes for each image.
    """

    title = "Kernel SHAP"

    def weights(self, model: nn.Module, image: Tensor, segments: Tensor, means: Tensor, target: Target) -> np.ndarray:
        S = means.shape[1]
        kept, pi = self._choices(S)
        ends = np.stack([np.zeros(S, dtype=int), np.ones(S, dtype=int)])
        empty, whole, *values = self.scores(model, image, segments, means, np.concatenate([ends, kept]), target)
        # The constraint gives the last value: phi_S = f(1) - f(0) - the others.
        change, last = whole - empty, kept[:, -1]
        root = np.sqrt(pi)
        y = root * (np.array(values) - empty - last * change)
        phi, _, rank, _ = np.linalg.lstsq(root[:, None] * (kept[:, :-1] - last[:, None]), y, rcond=None)
        if rank < S - 1:
            raise NotApplicable(
                f"Kernel SHAP: {self.samples} samples do not determine the values of {S} superpixels: give at least "
                f"{2 * (S - 1)}, better many more"
            )
        return np.append(phi, change - phi.sum())

    def _choices(self, S: int) -> tuple[np.ndarray, np.ndarray]:
        """Return choices [n, S] that keep some superpixels, not all, and their weights [n] in the regression."""
        if self.samples >= 2**S:
            kept = np.array([z for z in product((0, 1), repeat=S) if 0 < sum(z) < S]).reshape(-1, S)
            return kept, np.array([(S - 1) / (math.comb(S, k) * k * (S - k)) for k in kept.sum(1).tolist()])
        rng, sizes = np.random.default_rng(self.seed), np.arange(1, S)
        chance = 1 / (sizes * (S - sizes))
        half = rng.choice(sizes, self.samples // 2, p=chance / chance.sum())
        kept = (rng.random((len(half), S)).argsort(1) < half[:, None]).astype(int)
        return np.concatenate([kept, 1 - kept]), np.ones(2 * len(half))
