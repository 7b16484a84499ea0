"""Numbers of evidence maps [H, W]: how concentrated they are, where they lie, and how two of them agree."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from scipy.stats import rankdata
from torch import Tensor

from vis.metrics import largest, pearson


def boxes_mask(boxes: Sequence[Sequence[float]], size: Sequence[int]) -> Tensor:
    """Return a mask [H, W] of boxes (top, left, bottom, right) in shares of the sides."""
    mask = torch.zeros(*size, dtype=torch.bool)
    for box in boxes:
        top, left, bottom, right = (round(v * n) for v, n in zip(box, [*size, *size], strict=True))
        mask[top:bottom, left:right] = True
    return mask


def pixels_holding(map_: Tensor, share: float = 0.8) -> float:
    """Return the fewest pixels that hold a share of the |evidence|, as a share of all pixels; NaN for a map of zeros."""
    sums = map_.abs().flatten().sort(descending=True).values.cumsum(0)
    return (int((sums < share * sums[-1]).sum()) + 1) / len(sums) if sums[-1] > 0 else math.nan


def of_map(map_: Tensor, object_: Tensor | None, others: Sequence[Tensor] = ()) -> dict[str, Any]:
    """Return a map's concentration and, if a mask of the object is given, how its |evidence| lies to the object.

    others: maps of other images. on_object: the share in the object; on_object_other: the others' mean share in this place;
    area: the object's share of the image. outside: the 99th percentile outside over that inside; outside_shuffled: of the map
    with its pixels in random order.
    """
    found: dict[str, Any] = {"log2_pixels": math.log2(pixels_holding(map_)), "object": object_ is not None}
    if object_ is None:
        return found
    size = map_.abs()
    order = torch.randperm(size.numel(), generator=torch.Generator().manual_seed(0))
    found |= {"on_object": share_in(map_, object_), "area": float(object_.double().mean())}
    if others:
        found["on_object_other"] = sum(share_in(each, object_) for each in others) / len(others)
    found["outside"] = _outside(size, object_)
    return found | {"outside_shuffled": _outside(size.flatten()[order].view_as(size), object_)}


def share_in(map_: Tensor, mask: Tensor) -> float:
    """Return the share of a map's |evidence| in a mask; NaN for a map of zeros."""
    return float(map_[mask].abs().sum() / map_.abs().sum())


def _outside(size: Tensor, mask: Tensor) -> float:
    if mask.all() or not mask.any():
        return math.nan
    return float(size[~mask].quantile(0.99) / size[mask].quantile(0.99))


def of_pair(a: Tensor, b: Tensor, other: Tensor | None, object_: Tensor | None) -> dict[str, Any]:
    """Return how two maps of an image agree. other: the second method's map of another image.

    log2_norms: |log2| of the ratio of their norms. drawn: the share of their variance that differs, half of the variance of
    the difference over the mean variance. overlap: the share of the largest 10 % of pixels that they have in common.
    signs_differ: the share of the object's pixels for which one is evidence for and the other against the class.
    """
    norms = float(a.norm()), float(b.norm())
    found: dict[str, Any] = {
        "pearson": float(pearson(a[None], b[None])),
        "log2_norms": abs(math.log2(norms[0] / norms[1])) if min(norms) > 0 else math.nan,
        "drawn": float((a - b).var() / (a.var() + b.var())),
        "overlap": _overlap(a, b),
    }
    if other is not None:
        found["overlap_other"] = _overlap(a, other)
    if object_ is not None:
        found["signs_differ"] = float((a * b < 0)[object_].double().mean())
    return found


def _overlap(a: Tensor, b: Tensor, share: float = 0.1) -> float:
    first, second = (largest(each[None, None], share) for each in (a, b))
    return float((first & second).sum() / first.sum())


def of_part(map_: Tensor, part: Tensor, other: Tensor | None) -> dict[str, Any]:
    """Return how the evidence lies to a part of the image (a mask).

    rank: the mean rank of its pixels, from 0 (least evidence of the map) to 1; .5 by chance. rank_other: of another image's
    map in its place. mean: its mean evidence in standard deviations of the map. beyond: the share of |evidence| outside it.
    top: its share of the 5 % of pixels with the most evidence. hit: 1 if it holds the most. area: its share of the image.
    """
    found = {
        "rank": _rank(map_, part),
        "mean": float(map_[part].mean() / map_.std()),
        "beyond": 1 - share_in(map_, part),
        "top": float(largest(map_[None, None], 0.05)[0, 0][part].sum() / round(0.05 * map_.numel())),
        "hit": float(part.flatten()[map_.argmax()]),
        "area": float(part.double().mean()),
    }
    return found if other is None else found | {"rank_other": _rank(other, part)}


def _rank(map_: Tensor, part: Tensor) -> float:
    ranks = torch.from_numpy(rankdata(map_.flatten().numpy())).view_as(map_)
    return float((ranks[part].mean() - 1) / (map_.numel() - 1))
