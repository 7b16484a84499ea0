"""Remarks on maps that show nothing or repeat another map, for tables and captions."""

from collections.abc import Mapping

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from vis.methods.base import Method
from vis.methods.layers import OnFeatureMaps, holds_class_maps
from vis.runner.explainer import method_title
from vis.store.tables import Rows

SHOWN = 3  # a caption names so many images; it counts more of them


def remarks(
    methods: Mapping[str, Method], maps: Mapping[str, Tensor], model: nn.Module, images: Tensor, config: DictConfig
) -> dict[str, list[str]]:
    """Return a remark on each map [B, ...], by method: all zero, constant, not finite, the same as another method's, or "".

    A map is the same as that of an earlier method in `maps` if they are equal up to a positive factor and rounding.
    """
    found: dict[str, list[str]] = {}
    directions: dict[str, Tensor] = {}
    for name, values in maps.items():
        v = values.flatten(1).double()
        found[name] = [_remark(methods[name], each, torch.finfo(values.dtype).eps) for each in v]
        v = directions[name] = v / v.norm(dim=1, keepdim=True)
        for i, own in enumerate(found[name]):
            for other in directions if not own else ():
                if other != name and _same(v[i], directions[other][i], torch.finfo(values.dtype).eps):
                    why = _why_same(methods[name], methods[other], model, images)
                    found[name][i] = f"the same as {method_title(config, other)}, up to a factor{why}"
                    break
    return found


def sentences(rows: Rows, config: DictConfig) -> list[str]:
    """Return a caption's sentences on the remarks (`note`) in the rows of a table by method and image; each remark once.

    If the rows have several targets, a remark names the target as well.
    """
    images: dict[tuple[str, str], list[str]] = {}
    total: dict[str, set[str]] = {}
    several = len({row.get("target") for row in rows}) > 1
    for row in rows:
        map_ = f"{row['image']} (target {row['target']})" if several else row["image"]
        total.setdefault(row["method"], set()).add(map_)
        if row.get("note") and map_ not in (own := images.setdefault((row["method"], row["note"]), [])):
            own.append(map_)
    said = []
    for (method, note), own in images.items():
        count = len(total[method])
        where = (
            f" of {', '.join(own)}"
            if len(own) <= SHOWN
            else f" of {len(own)} of {count} {'maps' if several else 'images'}"
        )
        said.append(f"{method_title(config, method)}{where if len(own) < count or count == 1 else ''}: {note}")
    return said


def plural(count: int, noun: str) -> str:
    """Return a count and its noun: `1 image`, `2 images`."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _remark(method: Method, values: Tensor, eps: float) -> str:
    if not values.isfinite().all():
        return "not finite"
    if not values.any():
        return "all zero" + (f", {why}" if (why := method.why_zero()) else "")
    if values.max() - values.min() <= 8 * eps * values.abs().max():
        return "constant"
    return ""


def _same(a: Tensor, b: Tensor, eps: float) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= 1e3 * eps)


def _why_same(a: Method, b: Method, model: nn.Module, images: Tensor) -> str:
    if not isinstance(a, OnFeatureMaps) or not isinstance(b, OnFeatureMaps):
        return ""
    (layer,) = a.layers(model, images)
    both = [layer] == b.layers(model, images) and holds_class_maps(model, images, layer)
    return f", since layer {layer} holds class maps" if both else ""
