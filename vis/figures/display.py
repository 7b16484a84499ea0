"""Turn signed maps into pictures by named scalings, each with a sentence for the caption.

Methods return raw maps; nothing here changes a number that is reported.

In a trained network's pixel maps, single pixels reach five to ten times the 99th percentile: scaled to these, a map looks
blank. So maps are clipped to [-c, c], where c is the `clip`-th percentile of the map's magnitudes. Two scalings are not
clipped: `minmax`, as in nie2018, and `overlay`, for upsampled maps, whose largest values cover an area.
"""

from collections.abc import Callable, Mapping

import numpy as np

from vis.errors import UserError, did_you_mean
from vis.figures.style import current

Picture = np.ndarray  # [H, W, 3] in [0, 1]
CLIP = 99.0


def picture(pixels: np.ndarray) -> Picture:
    """Convert pixels [C, H, W] in [0, 1] to a picture."""
    image = np.moveaxis(np.asarray(pixels, dtype=np.float32), 0, -1).clip(0, 1)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def clipped(values: np.ndarray, clip: float) -> np.ndarray:
    """Divide values by the `clip`-th percentile of their magnitudes, or by the largest if that is 0; clip to [-1, 1]."""
    magnitudes = np.abs(values)
    return (values / (np.percentile(magnitudes, clip) or magnitudes.max() or 1.0)).clip(-1, 1)


def minmax(map_: np.ndarray) -> Picture:
    """Scale an RGB map from its minimum (0) to its maximum (1) over all channels (nie2018). A constant map is mid-gray."""
    low, high = map_.min(), map_.max()
    constant = high - low <= 8 * np.finfo(map_.dtype).eps * np.abs(map_).max()
    return picture(np.full_like(map_, 0.5) if constant else (map_ - low) / (high - low))


def midgray(map_: np.ndarray, clip: float = 100) -> Picture:
    """Show a signed RGB map: 0 is mid-gray; in each channel positive values are brighter, negative ones darker."""
    return picture(0.5 + 0.5 * clipped(map_, clip))


def diverging(map_: np.ndarray, clip: float = 100) -> Picture:
    """Show the sum over channels, symmetric around 0; by default, red is positive, blue negative, white 0."""
    from matplotlib import colormaps

    return colormaps[current().diverging](0.5 + 0.5 * clipped(map_.sum(0), clip))[..., :3]


def absolute(map_: np.ndarray, clip: float = CLIP) -> Picture:
    """Show the largest absolute value over channels; black is 0 (ayyar2021, section 4.2)."""
    return picture(clipped(np.abs(map_).max(0, keepdims=True), clip))


def heat(map_: np.ndarray) -> Picture:
    """Show a CAM's sum over channels in the style's colours, from 0 (or its minimum, if negative) to its maximum."""
    from matplotlib import colormaps

    values = map_.sum(0)
    low, high = min(values.min(), 0.0), values.max()
    return colormaps[current().heat]((values - low) / (high - low) if high > low else np.zeros_like(values))[..., :3]


def overlay(map_: np.ndarray, pixels: np.ndarray, alpha: float = 0.6) -> Picture:
    """Blend the `heat` of a map [1 or 3, H, W] with its image [C, H, W] (taimeskhanov2024, Figures 1 and 7 to 9)."""
    return (alpha * heat(map_) + (1 - alpha) * picture(pixels)).clip(0, 1)


def evidence(map_: np.ndarray, pixels: np.ndarray, clip: float = 100) -> Picture:
    """Draw a signed map [1 or 3, H, W] over its image [C, H, W] in pale gray: red is for, blue against (zhou2018)."""
    values = clipped(map_.sum(0), clip)[..., None]
    strength = np.abs(values)
    colour = np.where(values > 0, (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    gray = 0.4 + 0.6 * picture(pixels).mean(-1, keepdims=True)  # blue on black would be invisible
    return ((1 - 0.85 * strength) * gray + 0.85 * strength * colour).clip(0, 1)


_RED_BLUE = ("bwr", "seismic", "RdBu_r", "coolwarm")  # from blue, negative, to red
Scaling = Callable[[np.ndarray, np.ndarray], Picture]  # of a map and the pixels of its image

SCALINGS: dict[str, tuple[Callable[[np.ndarray, np.ndarray, float], Picture], str]] = {
    "minmax": (lambda map_, _, clip: minmax(map_), "min-max over each RGB map"),
    "midgray": (lambda map_, _, clip: midgray(map_, clip), "in RGB, 0 is mid-gray"),
    "diverging": (
        lambda map_, _, clip: diverging(map_, clip),
        "sum over channels, {signs}, centred at 0",
    ),
    "absolute": (lambda map_, _, clip: absolute(map_, clip), "largest absolute value over channels"),
    "overlay": (
        lambda map_, pixels, _: overlay(map_, pixels),
        "{heat} colours from 0 to the maximum of each map, over the image",
    ),
    "evidence": (evidence, "sum over channels, red positive, blue negative, over the gray image"),
}


def scaling(name: str, clip: float = CLIP) -> tuple[Scaling, str]:
    """Return a scaling by name, clipped at a percentile (100: no clipping): (function, sentence). Raises UserError."""
    if name not in SCALINGS:
        raise UserError(f"there is no scaling {name!r}.{did_you_mean(name, SCALINGS)}")
    if not 0 < clip <= 100:
        raise UserError(f"clip={clip:g} is not a percentile: give a value above 0, up to 100 (no clipping)")
    show, words = SCALINGS[name]
    style = current()
    signs = "red positive, blue negative" if style.diverging in _RED_BLUE else f"{style.diverging} colours"
    words = words.format(heat=style.heat, signs=signs)
    if name not in ("minmax", "overlay") and clip < 100:
        ordinal = {"1": "st", "2": "nd", "3": "rd"}.get(f"{clip:g}"[-1], "th")
        words += f", clipped at the {clip:g}{ordinal} percentile of each map"
    return lambda map_, pixels: show(map_, pixels, clip), words


def sentences(shown: Mapping[str, str], clip: float = CLIP) -> list[str]:
    """Describe the scaling of maps {title: scaling} for a caption: one sentence for each scaling, with its titles."""
    alike: dict[str, list[str]] = {}
    for title, name in shown.items():
        alike.setdefault(scaling(name, clip)[1], []).append(title)
    if len(alike) == 1:
        alike = {words: ["Maps"] for words in alike}
    return [f"{', '.join(titles)}: {words}" for words, titles in alike.items()]
