"""LIME (Ribeiro et al. 2016): a linear model of what the superpixels of an image do for a class, around that image."""

import numpy as np
import torch
from torch import Tensor, nn

from vis.methods.base import Method
from vis.methods.cam import PASS_VALUES, output_targets
from vis.methods.forward import Forward
from vis.target import Target, Targets, score


class LIME(Method):
    """LIME (Ribeiro et al. 2016; ayyar2021, section 2.1): weights of superpixels in a linear model around the image.

        w = argmin  sum_i pi_i (f(x_i) - w^T m_i - b)^2 + alpha |w|^2        pi = exp(-d^2 / (2 sigma^2))

    m_i says which superpixels of sample x_i are kept; the others have their mean colour. A pixel has the weight of its
    superpixel: maps are [B, 1, H, W], signed, in units of f.
    samples: such images, each superpixel kept or not by a coin, the first with all of them. superpixels: about how many
    (SLIC). d: cosine distance from the whole image (the square root of the kernel of the authors' code, which it takes
    itself). alpha: of the ridge, whose intercept is free. output: what f is, the probability as in the paper, or the logit.
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
        if samples < 2 or superpixels < 2 or sigma <= 0 or alpha < 0 or output not in ("prob", "logit"):
            raise ValueError(
                "samples and superpixels are 2 or more, sigma is above 0, alpha 0 or more, output prob or logit"
            )
        self.samples, self.superpixels, self.sigma, self.alpha = samples, superpixels, sigma, alpha
        self.output, self.seed = output, seed

    def passes(self, model: nn.Module, image: Tensor) -> float:
        return self.samples

    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        images = forward.images.detach()
        chosen = [Target(t.unit, None, self.output) for t in output_targets(forward, targets, self.title)]  # type: ignore[arg-type]  # checked above
        return torch.stack([self._map(forward.model, x, t) for x, t in zip(images, chosen, strict=True)])

    @torch.no_grad()
    def _map(self, model: nn.Module, image: Tensor, target: Target) -> Tensor:
        from sklearn.linear_model import Ridge

        segments = self.segments(image)
        count = int(segments.max()) + 1
        kept = torch.from_numpy(np.random.default_rng(self.seed).integers(0, 2, (self.samples, count)))
        kept[0] = 1
        means = torch.stack([image[:, segments == s].mean(1) for s in range(count)], 1)[:, segments]  # [C, H, W]
        values = []
        for some in kept.to(image.device).split(max(1, PASS_VALUES // image.numel())):
            mask = some[:, segments][:, None].bool()
            values.append(score(model(torch.where(mask, image, means)), [target] * len(some)))
        near = 1 - (kept.sum(1) / count).sqrt()  # 1 - cosine of a sample and the whole image
        weights = torch.exp(-near.double().square() / (2 * self.sigma**2))
        ridge = Ridge(alpha=self.alpha)
        ridge.fit(kept.double().numpy(), torch.cat(values).cpu().double().numpy(), sample_weight=weights.numpy())
        return torch.from_numpy(ridge.coef_).to(image)[segments][None]

    def segments(self, image: Tensor) -> Tensor:
        """The superpixel 0, 1, ... of each pixel of an image [C, H, W]: [H, W]."""
        from skimage.segmentation import slic

        low, high = image.min(), image.max()
        pixels = ((image - low) / (high - low) if high > low else image * 0).cpu().double().numpy()
        labels = slic(pixels, n_segments=self.superpixels, channel_axis=0, start_label=0, convert2lab=len(pixels) == 3)
        return torch.from_numpy(np.unique(labels, return_inverse=True)[1].reshape(labels.shape)).to(image.device)
