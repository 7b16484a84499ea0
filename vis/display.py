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


SCALINGS: dict[str, tuple[Callable[[np.ndarray], Picture], str]] = {
    "minmax": (minmax, "min-max over each RGB map"),
    "diverging": (diverging, "sum over channels, red positive, blue negative, centred at 0"),
    "absolute": (absolute, "largest absolute value over channels, cut at the 99.5th percentile"),
}


def scaling(name: str) -> tuple[Callable[[np.ndarray], Picture], str]:
    """The scaling of that name: (function, sentence). Raises UserError."""
    if name not in SCALINGS:
        raise UserError(f"there is no scaling {name!r}.{did_you_mean(name, SCALINGS)}")
    return SCALINGS[name]
