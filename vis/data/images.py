"""Reading image files: any mode, any orientation, any size."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vis.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def read_image(path: Path) -> Image.Image:
    """The picture in a file as RGB or gray ("L"), upright, 8 bits; transparency on white.

    Raises UserError for a file that is missing, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            return _plain(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise UserError(f"no image file {path}") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is no image that can be read") from error
    except Exception as error:  # damaged files make Pillow's decoders raise almost anything
        raise UserError(f"cannot read the image {path}: {str(error) or type(error).__name__}") from error


def _plain(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel, or floats: PIL's convert would clip them to 255
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        largest = values.max()
        top = 65535 if image.mode.startswith("I;16") or largest > 255 else 255 if largest > 1 else 1
        return Image.fromarray((values.clip(0, top) / top * 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("L" if image.mode in ("L", "1") else "RGB")


def to_pixels(image: Image.Image, size: tuple[int, int], channels: int, resize: int | None = None) -> Tensor:
    """Pixels [C, H, W] in [0, 1]: the image resized (bilinear, antialiased) to cover the size, cut at its centre.

    size: (height, width). resize: the shorter side before the cut, e.g. 256 for the ImageNet convention, where that
    covers the size; by default the image just covers it. channels: 3 or 1. Rounds as torchvision's Resize and CenterCrop.
    Raises UserError for what is no picture.
    """
    if not isinstance(image, Image.Image):
        raise UserError(f"the dataset read {type(image).__name__} {image!r}: expected a picture (PIL.Image.Image)")
    pixels = (
        torch.from_numpy(np.array(fitted(image.convert("RGB" if channels == 3 else "L"), size, resize))).float() / 255
    )
    return pixels.permute(2, 0, 1).contiguous() if channels == 3 else pixels[None].contiguous()


def fitted(image: Image.Image, size: tuple[int, int], resize: int | None = None) -> Image.Image:
    """The picture of `to_pixels`, in its own mode."""
    height, width = size
    w, h = image.size
    shorter = min(w, h)
    if resize is not None and w * resize >= width * shorter and h * resize >= height * shorter:
        scaled = w * resize // shorter, h * resize // shorter
    elif width * h >= height * w:
        scaled = width, h * width // w
    else:
        scaled = w * height // h, height
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))
