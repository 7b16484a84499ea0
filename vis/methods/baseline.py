"""Baselines: the start of integrated gradients, the reference of DeepLIFT, the content of masked or covered pixels.

black, gray, white   pixels of 0, 1/2, 1 after the network's preprocessing; other pixels are given as a number in
                     [0, 1], or one for each channel
zero                 the network's own zero: the mean colour, where a mean is subtracted
mean, blur, noise    the image's mean colour; the image blurred by a Gaussian of a twentieth of its height; uniform noise
                     between the image's extreme values, the same pattern for all images of a size and a seed
a tensor             in the network's units: [B, C, H, W], or what broadcasts to it, as [C, 1, 1]
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vis.methods.forward import NotApplicable, Preprocessing

Baseline = str | float | Sequence[float] | Tensor
_PIXELS = {"black": 0.0, "gray": 0.5, "white": 1.0}
_WORDS = {name: f"{name} pixels" for name in _PIXELS} | {
    "zero": "the network's zero",
    "mean": "the image's mean colour",
    "blur": "the blurred image",
    "noise": "uniform noise",
}


def _pixel(given: object) -> Sequence[float]:
    """Return the values of a pixel given by name, number or numbers; an empty list for anything else."""
    value: object = _PIXELS.get(given) if isinstance(given, str) else given
    values: Sequence = value if isinstance(value, list | tuple) else [value]
    return values if all(isinstance(each, int | float) and 0 <= each <= 1 for each in values) else []


def several(given: Baseline | Sequence[Baseline]) -> list[Baseline]:
    """Turn one baseline or several into a list; numbers are one pixel. Raises ValueError for anything else."""
    found: list = list(given) if isinstance(given, list | tuple) and not _pixel(given) else [given]
    for each in found or [given]:
        if not (each in _WORDS if isinstance(each, str) else isinstance(each, Tensor) or _pixel(each)):
            raise ValueError(
                f"a baseline is {', '.join(_WORDS)}, a tensor, or a pixel of numbers in [0, 1], not {each!r}"
            )
    return found


def only(given: Baseline) -> Baseline:
    """Return a single baseline. Raises ValueError for several, and for anything else."""
    if len(several(given)) > 1:
        raise ValueError(f"give one baseline, not {given!r}")
    return given


def in_words(given: Baseline | Sequence[Baseline]) -> str:
    """Describe baselines in a caption: "black pixels", "black pixels and the blurred image"."""
    words = [_WORDS.get(str(each), f"pixels of {each}") for each in several(given) if not isinstance(each, Tensor)]
    if tensors := len(several(given)) - len(words):
        words.append("a given image" if tensors == 1 else f"{tensors} given images")
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def baseline_images(
    images: Tensor, given: Baseline | Sequence[Baseline], preprocess: Preprocessing | None, seed: int = 0
) -> list[Tensor]:
    """Make each baseline of images [B, C, H, W]: [B, C, H, W], or [1, C, H, W] for all. Every noise differs.

    Black pixels pass through `preprocess` like any image: with `unit_norm` their norm is 1 as well.
    """
    return [baseline_image(images, each, preprocess, seed + k) for k, each in enumerate(several(given))]


def baseline_image(
    images: Tensor, given: Baseline, preprocess: Preprocessing | None, seed: int = 0, part: bool = False
) -> Tensor:
    """Make a baseline of images [B, C, H, W], from each image alone: [B, C, H, W], or [1, C, H, W] for all.

    part: the baseline stands beside pixels of the image. Raises NotApplicable for named pixels without `preprocess`, for a part
    where the preprocessing scales whole images (`unit_norm`), and for a tensor of another shape.
    """
    if isinstance(given, Tensor):
        values = given.detach().to(images)
        values = values[None] if values.ndim == 3 else values
        if values.ndim != 4 or any(n not in (1, size) for n, size in zip(values.shape, images.shape, strict=True)):
            raise NotApplicable(f"the baseline is {list(given.shape)}, the images are {list(images.shape)}")
        return values.expand(-1, *images.shape[1:])
    if pixel := _pixel(given):
        return _preprocessed(images, pixel, preprocess, in_words(given), part)
    if given == "zero":
        return torch.zeros_like(images[:1])
    if given == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    if given == "blur":
        from torchvision.transforms.v2.functional import gaussian_blur  # half a second, for this one only

        sigma = images.shape[2] / 20
        kernel = [2 * min(int(3 * sigma), side - 1) + 1 for side in (images.shape[3], images.shape[2])]
        return gaussian_blur(images, kernel, [sigma, sigma])
    uniform = torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return low + (high - low) * uniform.to(images)


def _preprocessed(
    images: Tensor, pixel: Sequence[float], preprocess: Preprocessing | None, words: str, part: bool
) -> Tensor:
    """Preprocess an image of one colour: [1, C, H, W]."""
    if preprocess is None:
        raise NotApplicable(
            f"{words} depend on the network's preprocessing: pass preprocess=, the function that made these images from pixels "
            "in [0, 1], or take a tensor or zero as the baseline, which are in the network's units"
        )
    if len(pixel) not in (1, images.shape[1]):
        raise NotApplicable(f"{words} have {len(pixel)} numbers, the images have {images.shape[1]} channels")
    pixels = images.new_tensor(pixel).view(-1, 1, 1).expand_as(images[:1])
    found = preprocess(pixels).to(images)
    if found.shape != pixels.shape or not found.isfinite().all():
        raise NotApplicable(f"preprocess= makes no image of the same shape of {words}: give a tensor instead")
    if part:
        other = preprocess(torch.cat([pixels[..., :1], 0.75 * (1 - pixels[..., 1:])], 3)).to(images)
        if not torch.allclose(other[..., :1], found[..., :1]):
            raise NotApplicable(
                f"{words} cannot replace a part of an image: preprocess= scales whole images. Take mean, blur or zero"
            )
    return found
