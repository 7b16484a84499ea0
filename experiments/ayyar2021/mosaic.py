"""Mosaics of four photographs: where the object of a class lies is known, without boxes drawn by hand."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vis.runner.experiment import Run

MOSAIC = "mosaics of four photographs, one of which holds the object, instead of photographs"


def mosaic(run: Run, index: int) -> tuple[Tensor, list[int], Tensor]:
    """Return a picture [1, C, H, W] of an image and the three after it, their classes, and their cells, masks [4, 1, H, W].

    The cell of the first image changes with its index. A class is the network's for the image alone. Input of the network.
    """
    model, preprocess = run.model(), run.preprocess(run.model())
    batch = run.batch(model, [(index + i) % len(run.dataset) for i in range(4)])
    with torch.no_grad():
        classes = model.net(batch.x).argmax(1).tolist()
    height, width = (side // 2 for side in batch.pixels.shape[2:])
    small = F.interpolate(batch.pixels.double(), (height, width), mode="bilinear", antialias=True).clamp(0, 1)
    pixels, cells = torch.zeros_like(batch.pixels[:1]), torch.zeros(4, 1, *batch.pixels.shape[2:], dtype=torch.bool)
    for i, photograph in enumerate(small):
        top, left = (part * side for part, side in zip(divmod((index + i) % 4, 2), (height, width), strict=True))
        at = (..., slice(top, top + height), slice(left, left + width))
        pixels[at], cells[i][at] = photograph.to(pixels), True
    return preprocess(pixels.to(batch.x)), classes, cells


def share_on(map_: Tensor, cell: Tensor) -> float:
    """Return the share of a map [1, 1, H, W] that lies on a mask [1, H, W]; NaN for a map of zeros."""
    values = map_.double().cpu()
    return float(values[:, cell].sum() / values.sum())
