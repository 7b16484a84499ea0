"""Reference images: what the paths of integrated gradients start from and DeepLIFT compares with."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vis.methods.forward import NotApplicable

BASELINES = ("black", "mean", "blur", "noise")


def check_baseline(kind: str) -> None:
    """Raises ValueError for a baseline that is not there."""
    if kind not in BASELINES:
        raise ValueError(f"baseline is one of {', '.join(BASELINES)}, not {kind!r}")


def baseline_images(images: Tensor, kind: str, black: Sequence[float], seed: int) -> Tensor:
    """References for images [B, C, H, W], each from its own image alone: [B, C, H, W], or [1, C, H, W] for all.

    black: a black image; `black` is what black pixels are in the network's units: one number, or one for each channel.
    mean: the image's own mean colour. blur: the image under a Gaussian of a twentieth of its height. noise: uniform between
    the image's smallest and largest value, the same pattern for all images of one size and seed.
    """
    if kind == "black":
        if len(black) not in (1, images.shape[1]):
            raise NotApplicable(f"black has {len(black)} numbers, the images have {images.shape[1]} channels")
        return images.new_tensor(black).view(-1, 1, 1).expand_as(images[:1])
    if kind == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    if kind == "blur":
        from torchvision.transforms.v2.functional import gaussian_blur  # half a second, for this one only

        sigma = images.shape[2] / 20
        kernel = [2 * min(int(3 * sigma), side - 1) + 1 for side in (images.shape[3], images.shape[2])]
        return gaussian_blur(images, kernel, [sigma, sigma])
    uniform = torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return low + (high - low) * uniform.to(images)
