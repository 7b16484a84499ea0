"""Boxes drawn by hand around the objects of photographs, known by the sha256 of their files (`boxes.yaml`)."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import yaml

from vis.data.images import fitted_size

Box = tuple[float, float, float, float]  # top, left, bottom, right, as shares of the sides


@dataclass(frozen=True)
class Drawn:
    """What is drawn on a photograph: the box of its object, and boxes of parts, as shares of the whole photograph's sides."""

    box: Box
    parts: dict[str, Box]


@cache
def _all() -> dict[str, Drawn]:
    text = resources.files("vis.data").joinpath("boxes.yaml").read_text(encoding="utf-8")
    return {
        sha256: Drawn(tuple(row["box"]), {part: tuple(box) for part, box in row.get("parts", {}).items()})
        for sha256, row in yaml.load(text, yaml.CSafeLoader).items()
    }


@cache
def drawn(path: Path) -> Drawn | None:
    """Return what is drawn on the photograph in a file; None if it is none of those in `boxes.yaml`."""
    with path.open("rb") as file:
        return _all().get(hashlib.file_digest(file, "sha256").hexdigest())


def in_view(box: Box, picture: tuple[int, int], size: tuple[int, int], resize: int | None = None) -> Box | None:
    """Return the part of a box that `to_pixels` keeps, as shares of the sides of its result; None if it keeps nothing.

    picture: (width, height) of the whole photograph. size, resize: see `to_pixels`.
    """
    (w, h), (height, width) = fitted_size(picture, size, resize), size
    top, left = round((h - height) / 2), round((w - width) / 2)
    y0, x0, y1, x1 = box[0] * h - top, box[1] * w - left, box[2] * h - top, box[3] * w - left
    seen = max(y0, 0) / height, max(x0, 0) / width, min(y1, height) / height, min(x1, width) / width
    return seen if seen[0] < seen[2] and seen[1] < seen[3] else None
