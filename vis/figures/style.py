"""The style of all figures: width, font, resolution, colours. The runner sets it from a run's config before it draws.

Figures are laid out for text of 8 points and then enlarged as a whole, so that lines, gaps and small print keep their
proportions: at 16 points and a width of 300 mm, a page for the layout is 150 mm wide.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from matplotlib import colormaps
from matplotlib.font_manager import fontManager

from vis.errors import UserError, did_you_mean

FONT = 8  # points: the size for which figures are laid out
_INCHES = {"mm": 1 / 25.4, "cm": 1 / 2.54, "in": 1.0}
_GENERIC = ("sans-serif", "serif", "monospace")
SCALINGS = ("midgray", "diverging", "absolute", "overlay", "evidence", "minmax")  # in vis.figures.display
INSTALLED = {font.name for font in fontManager.ttflist}
# Okabe and Ito's colours, which people of any colour vision tell apart, in the order of matplotlib's own hues.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#7F7F7F", "#F0E442")


@dataclass(frozen=True)
class Style:
    """The values of a style, as conf/figure/_base.yaml explains them. Raises UserError for values that make no sense."""

    width: str = "175mm"
    font: float = FONT
    family: str = "sans-serif"
    dpi: int = 200
    heat: str = "viridis"
    diverging: str = "bwr"
    scaling: str = "method"
    caption: bool = True

    def __post_init__(self) -> None:
        if not 0.5 <= self.inches <= 60:
            raise UserError(f"figure.width={self.width} is not a length from 13mm to 1500mm")
        for key, low, high in (("font", 3, 100), ("dpi", 20, 2400)):
            if not low <= getattr(self, key) <= high:
                raise UserError(f"figure.{key}={getattr(self, key)} is not from {low} to {high}")
        for key in ("heat", "diverging"):
            if (name := getattr(self, key)) not in colormaps:
                raise UserError(f"matplotlib has no colours {name!r} (figure.{key}).{did_you_mean(name, colormaps)}")
        if self.scaling not in (known := ("method", *SCALINGS)):
            raise UserError(
                f"there is no scaling {self.scaling!r} (figure.scaling).{did_you_mean(self.scaling, known)}"
            )
        if self.family not in _GENERIC and self.family not in INSTALLED:
            hint = did_you_mean(self.family, {*_GENERIC, *INSTALLED})
            raise UserError(f"the font {self.family!r} is not installed (figure.family).{hint}")

    @property
    def inches(self) -> float:
        """The width of the widest figures."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(mm|cm|in)", str(self.width))
        if not match:
            raise UserError(f"figure.width={self.width} is not a length: 85mm, 8.5cm or 3.35in")
        return float(match[1]) * _INCHES[match[2]]

    @property
    def scale(self) -> float:
        """How much a figure is enlarged after its layout."""
        return self.font / FONT

    @property
    def page(self) -> float:
        """The width of the widest figures before they are enlarged, in inches."""
        return self.inches / self.scale


_current = Style()


def current() -> Style:
    """Return the style in use."""
    return _current


def use(config: Mapping[str, Any]) -> None:
    """Use the style of a run's config; the default one if the run is older than styles. Raises UserError."""
    global _current
    values = dict(config.get("figure") or {})
    known = [each.name for each in fields(Style)]
    if unknown := [str(key) for key in values if key not in known]:
        raise UserError(f"figures have no option figure.{unknown[0]}.{did_you_mean(unknown[0], known)}")
    _current = Style(**values)
