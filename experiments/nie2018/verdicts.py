"""Numbers that tell a readable map from noise, and the comparisons that judge them (all of nie2018).

    HP, blocks             correlation of map and input: of the gray images after a high-pass; of their means over 16x16 blocks
    HP_other               HP with another photograph
    HP_sds, blocks_sds     the same in standard deviations of their null, the correlation with other photographs

The null of a map is its correlation with each other bundled photograph, as it is and flipped.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from vis.claims import Column, Compared, Rule, above, near
from vis.data import samples, to_pixels
from vis.metrics import high_pass, luma

Rows = Sequence[dict[str, Any]]
READABLE = "the bounds are ours: DeconvNet in a random VGG-16, the weakest map that the paper calls interpretable, has .36 to .46"
NOISE = "the bounds are ours"


def against_others(maps: Tensor, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the columns above, [B] each. maps, x: [B, C, H, W]; names: of the images, so that none is its own null."""
    photographs, null = _photographs(x.shape[1], x.shape[2], x.shape[3])
    others = torch.tensor([[other != name for other in photographs] for name in names])
    found: dict[str, Tensor] = {}
    for name, vectors in null.items():
        vector = _vectors(maps)[name]
        own, all_ = (vector * _vectors(x)[name]).sum(1), vector @ vectors.T
        values = [row[other] for row, other in zip(all_, others, strict=True)]
        found |= {name: own, f"{name}_sds": own / torch.stack([v.std() for v in values])}
        if name == "HP":
            found["HP_other"] = torch.stack([v[0] for v in values])
    return found


@cache
def _photographs(channels: int, height: int, width: int) -> tuple[list[str], dict[str, Tensor]]:
    """Return the names of the bundled photographs, once for each flip, and their vectors."""
    data = samples("all")
    pixels = torch.stack([to_pixels(data.read(i), (height, width), channels) for i in range(len(data))])
    flips = torch.cat([pixels.flip(axes) for axes in ([], [3], [2], [2, 3])])
    return list(data.names) * 4, _vectors(flips)


def _vectors(images: Tensor) -> dict[str, Tensor]:
    """Return centred vectors of norm 1, whose products are correlations: [B, d] each."""
    images = images.cpu()
    shown = {"HP": high_pass(images), "blocks": adaptive_avg_pool2d(luma(images), 16)}
    return {name: normalize((v := each.flatten(1)) - v.mean(1, keepdim=True)) for name, each in shown.items()}


def noise(what: str, rows: Rows, per: str, null: Rows, control: str) -> list[Compared]:
    """Judge that maps are noise. null: rows of maps that are not, as GBP's."""
    options: dict[str, Any] = {"control": control}
    sds = "standard deviations of its null"
    return [
        Compared(
            f"{what}: HP", Column(rows, "HP", per), near(0, 0.03, ours=NOISE), null=Column(null, "HP", per), **options
        ),
        Compared(
            f"{what}: HP in {sds}",
            Column(rows, "HP_sds", per),
            Rule(((-3, 3),), ours=NOISE),
            null=Column(null, "HP_sds", per),
            **options,
        ),
        Compared(
            f"{what}: correlation of 16x16 block means in {sds}",
            Column(rows, "blocks_sds", per),
            near(0, 3, ours=NOISE),
            null=Column(null, "blocks_sds", per),
            **options,
        ),
    ]


def readable(what: str, rows: Rows, per: str) -> Compared:
    """Judge that maps show the input."""
    return Compared(
        f"{what}: HP",
        Column(rows, "HP", per),
        above(0.2, 0.1, ours=READABLE),
        null=Column(rows, "HP_other", per),
        control="another photograph in place of the input",
    )
