"""How much does a map change when the image hardly does? Max-sensitivity (Yeh et al. 2019, Definition 2)."""

from collections.abc import Callable

import torch
from torch import Tensor


def max_sensitivity(
    explain: Callable[[Tensor], Tensor], images: Tensor, radius: float = 0.2, samples: int = 10, seed: int = 0
) -> Tensor:
    """Return max_s ||explain(x + n_s) - explain(x)|| / ||explain(x)|| of each image [B, C, H, W]: [B]; lower is better.

    The noise n_s is uniform in [-radius, radius], in units of the images. It depends on the seed and the shape of an image alone,
    so images of a batch do not affect each other. explain: images -> maps, such as `lambda x: method(net, x, classes)`; fix the
    classes, since noise may change the largest logit. NaN for a map of zeros. More samples can only raise the value.
    """
    generator = torch.Generator().manual_seed(seed)
    maps = explain(images).double().flatten(1)
    largest = maps.new_zeros(len(images))
    for _ in range(samples):
        noise = radius * (2 * torch.rand(images.shape[1:], generator=generator, dtype=torch.float64) - 1)
        change = explain(images + noise.to(images)).double().flatten(1) - maps
        largest = torch.maximum(largest, change.norm(dim=1))
    return largest / maps.norm(dim=1)
