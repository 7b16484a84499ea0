"""From signed maps to pictures. Named scalings, each with the sentence that a caption needs.

Methods return raw maps; nothing here feeds back into a number.
"""

from collections.abc import Callable

import numpy as np

from vis.errors import UserError, did_you_mean

Picture = np.ndarray  # [H, W, 3] in [0, 1]


def picture(pixels: np.ndarray) -> Picture:
    """Pixels [C, H, W] in [0, 1] as a picture."""
    image = np.moveaxis(np.asarray(pixels, dtype=np.float32), 0, -1).clip(0, 1)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def minmax(map_: np.ndarray) -> Picture:
    """Over the whole RGB map, from its minimum (0) to its maximum (1): how nie2018 shows maps."""
    low, high = map_.min(), map_.max()
    return picture((map_ - low) / (high - low) if high > low else np.full_like(map_, 0.5))


def diverging(map_: np.ndarray) -> Picture:
    """Sum over the channels; red is positive, blue negative, white 0, symmetric around 0."""
    from matplotlib import colormaps

    values = map_.sum(0)
    bound = np.abs(values).max() or 1.0
    return colormaps["seismic"](0.5 + 0.5 * values / bound)[..., :3]


def absolute(map_: np.ndarray) -> Picture:
    """Largest absolute value over the channels, black 0, white its 99.5th percentile (ayyar2021, section 4.2)."""
    values = np.abs(map_).max(0)
    top = np.percentile(values, 99.5) or 1.0
    return picture((values / top)[None])


def heat(map_: np.ndarray) -> Picture:
    """Of a CAM: the `jet` colours of its sum over the channels, from 0 (or its minimum, where that is below) to its maximum."""
    from matplotlib import colormaps

    values = map_.sum(0)
    low, high = min(values.min(), 0.0), values.max()
    return colormaps["jet"]((values - low) / (high - low) if high > low else np.zeros_like(values))[..., :3]


def overlay(map_: np.ndarray, pixels: np.ndarray, alpha: float = 0.6) -> Picture:
    """A map [1 or 3, H, W] as `heat` over the pixels [C, H, W] of its image (taimeskhanov2024, Figures 1 and 7 to 9)."""
    return (alpha * heat(map_) + (1 - alpha) * picture(pixels)).clip(0, 1)


def evidence(map_: np.ndarray, pixels: np.ndarray) -> Picture:
    """A signed map [1 or 3, H, W] over the image [C, H, W] in pale gray: red is for, blue against (zhou2018)."""
    values = map_.sum(0)
    strength = (np.abs(values) / (np.abs(values).max() or 1.0))[..., None]
    colour = np.where((values > 0)[..., None], (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    gray = 0.4 + 0.6 * picture(pixels).mean(-1, keepdims=True)  # blue on black could not be seen
    return ((1 - 0.85 * strength) * gray + 0.85 * strength * colour).clip(0, 1)


Scaling = Callable[[np.ndarray, np.ndarray], Picture]  # of a map and the pixels of its image

SCALINGS: dict[str, tuple[Scaling, str]] = {
    "minmax": (lambda map_, _: minmax(map_), "min-max over each RGB map"),
    "diverging": (lambda map_, _: diverging(map_), "sum over channels, red positive, blue negative, centred at 0"),
    "absolute": (lambda map_, _: absolute(map_), "largest absolute value over channels, cut at the 99.5th percentile"),
    "overlay": (overlay, "jet colours from 0 to the maximum of each map, over the image"),
    "evidence": (evidence, "sum over channels, red positive, blue negative, over the gray image"),
}


def scaling(name: str) -> tuple[Scaling, str]:
    """The scaling of that name: (function, sentence). Raises UserError."""
    if name not in SCALINGS:
        raise UserError(f"there is no scaling {name!r}.{did_you_mean(name, SCALINGS)}")
    return SCALINGS[name]
