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
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise UserError(f"cannot read the image {path}: {reason}") from error


def _plain(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel, or floats: PIL's convert would clip them to 255
        values = np.asarray(image, dtype=np.float64)
        integer_range = {"I;16": 65535.0, "I;16B": 65535.0, "I;16L": 65535.0}.get(image.mode)
        top = integer_range or (1.0 if values.max() <= 1 else 255.0 if values.max() <= 255 else 65535.0)
        return Image.fromarray((values.clip(0, top) / top * 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("L" if image.mode in ("L", "1") else "RGB")


def to_pixels(image: Image.Image, size: tuple[int, int], channels: int, resize: int | None = None) -> Tensor:
    """Pixels [C, H, W] in [0, 1]: the image resized (bilinear, antialiased) so that it covers the size, cut at its centre.

    size: (height, width). resize: the shorter side before the cut, e.g. 256 for the ImageNet convention; by default
    the image just covers the size. channels: 3 or 1.
    """
    height, width = size
    image = image.convert("RGB" if channels == 3 else "L")
    if resize is None:
        scale = max(width / image.width, height / image.height)
    else:
        scale = resize / min(image.width, image.height)
    scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    image = image.crop((left, top, left + width, top + height))
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
    return pixels.permute(2, 0, 1).contiguous() if channels == 3 else pixels[None].contiguous()
