"""Preprocessing: map pixels in [0, 1] to network inputs, and back for display.

Each is affine, x = (scale * pixels - mean) / std, so it has an exact inverse. `unit_norm` also divides each image by its
norm, since nie2018's theory assumes ||x|| = 1; its inverse needs that norm.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vis.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Preprocess:
    """x = (scale * pixels - mean) / std, divided by its l2 norm if `unit_norm`.

    pixels are [B, C, H, W] in [0, 1], RGB or gray. mean and std have one value per channel, or one for all. Raises
    UserError if the images have another number of channels.
    """

    name: str
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    unit_norm: bool = False

    def _affine(self, pixels: Tensor) -> Tensor:
        mean, std = self._constants(pixels)
        return (self.scale * pixels - mean) / std

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.mean) not in (1, like.shape[1]):  # broadcasting would turn one gray channel into three
            raise UserError(
                f"preprocessing {self.name} is for {len(self.mean)} channels, the images have {like.shape[1]}"
            )
        shape = (-1, 1, 1)
        return like.new_tensor(self.mean).view(shape), like.new_tensor(self.std).view(shape)

    def norm(self, pixels: Tensor) -> Tensor:
        """Return the divisor of each image, [B, 1, 1, 1]; 1 without unit_norm, and for an all-zero image."""
        if not self.unit_norm:
            return pixels.new_ones(pixels.shape[0], 1, 1, 1)
        norm = self._affine(pixels).flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return torch.where(norm == 0, torch.ones_like(norm), norm)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Map pixels [B, C, H, W] in [0, 1] to a network input of the same shape."""
        return self._affine(pixels) / self.norm(pixels)

    def inverse(self, x: Tensor, norm: Tensor | float = 1.0) -> Tensor:
        """Map a network input back to pixels; norm: the value of `norm(pixels)`, which only unit_norm needs."""
        mean, std = self._constants(x)
        return (x * norm * std + mean) / self.scale


_CAFFE_MEAN = (123.68, 116.779, 103.939)
PREPROCESSING: dict[str, Preprocess] = {
    p.name: p
    for p in (
        Preprocess("mean_subtraction", scale=255.0, mean=_CAFFE_MEAN),
        Preprocess("unit_norm", scale=255.0, mean=_CAFFE_MEAN, unit_norm=True),
        Preprocess("imagenet", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        Preprocess("unit_range"),
        Preprocess("symmetric", mean=(0.5,), std=(0.5,)),
        Preprocess("mnist", mean=(0.1307,), std=(0.3081,)),
    )
}


def preprocessing(name: str) -> Preprocess:
    """Return the preprocessing of that name. Raises ValueError, which suggests a similar name, for an unknown one."""
    if name not in PREPROCESSING:
        raise ValueError(f"unknown preprocessing {name!r}.{did_you_mean(name, PREPROCESSING)}")
    return PREPROCESSING[name]
