"""Read image files of any mode, orientation and size."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vis.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def read_image(path: Path | BinaryIO) -> Image.Image:
    """Read an image file, given by its path or open, as 8-bit RGB or gray ("L"), upright, with transparent pixels on white.

    Raises UserError if the file is missing, truncated or not an image.
    """
    name = path if isinstance(path, Path) else getattr(path, "name", "the image")
    try:
        with Image.open(path) as image:
            return _plain(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise UserError(f"no image file {name}") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is not a readable image") from error
    except Exception as error:  # on damaged files Pillow's decoders can raise almost anything
        raise UserError(f"cannot read the image {name}: {str(error) or type(error).__name__}") from error


def _plain(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits per pixel, or floats: PIL's convert would clip them to 255
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
    """Resize an image (bilinear, antialiased) to cover the size, and crop its centre: pixels [C, H, W] in [0, 1].

    size: (height, width). resize: the shorter side before the crop, e.g. 256 for the ImageNet convention, if that covers
    the size; by default the image just covers it. channels: 3 or 1. Rounds as torchvision's Resize and CenterCrop do.
    Raises UserError if `image` is not a PIL image.
    """
    if not isinstance(image, Image.Image):
        raise UserError(f"the dataset read {type(image).__name__} {image!r}: expected an image (PIL.Image.Image)")
    pixels = (
        torch.from_numpy(np.array(fitted(image.convert("RGB" if channels == 3 else "L"), size, resize))).float() / 255
    )
    return pixels.permute(2, 0, 1).contiguous() if channels == 3 else pixels[None].contiguous()


def fitted(image: Image.Image, size: tuple[int, int], resize: int | None = None) -> Image.Image:
    """Resize and crop as `to_pixels` does, keeping the image's mode."""
    height, width = size
    scaled = fitted_size(image.size, size, resize)
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def fitted_size(picture: tuple[int, int], size: tuple[int, int], resize: int | None = None) -> tuple[int, int]:
    """Return the (width, height) to which `to_pixels` resizes a picture of this (width, height) before it crops the centre."""
    height, width = size
    w, h = picture
    shorter = min(w, h)
    if resize is not None and w * resize >= width * shorter and h * resize >= height * shorter:
        return w * resize // shorter, h * resize // shorter
    return (width, h * width // w) if width * h >= height * w else (w * height // h, height)
