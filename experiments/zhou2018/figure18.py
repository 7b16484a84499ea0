"""zhou2018, Figure 18: the evidence in a photograph, and in the photograph rotated, flipped and cropped.

"All heatmaps except the last one mark the husky's ears and nose as strong positive evidence": each map, for the class of the
original, is put back (the transformation undone) and correlated with the original's where both see the same. In the paper's
last picture, a rotation, an ear is cut off. It does not give the angles and the crop; these are ours.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.zhou2018.evidence import EvidenceMaps, images_of, map_of
from vis import metrics
from vis.oldclaims import Claim, Criterion, above, paper_and_here
from vis.store.run_folder import Results

SAME = "all heatmaps except the last one mark the husky's ears and nose as strong positive evidence"
LAST = "as for the last case, when one ear is occluded, VGG16 marks its eye as positive evidence"


class Figure18(EvidenceMaps):
    """Compare maps of transformed photographs.

    rotate: two angles in degrees, anticlockwise; crop: top, left, bottom, right as shares of the sides.
    """

    def __init__(self, rotate: Sequence[float], crop: Sequence[float], **maps: Any) -> None:
        super().__init__(**maps)
        top, left, bottom, right = crop
        first, last = (math.radians(angle) for angle in rotate)
        self.affine: Mapping[str, Tensor] = {  # from a place in the picture to one in the image, (x, y) in [-1, 1]
            "rotated": _rotation(first),
            "flipped": torch.tensor([[-1.0, 0, 0], [0, 1, 0], [0, 0, 1]]),
            "cropped": torch.tensor(
                [[right - left, 0, left + right - 1], [0, bottom - top, top + bottom - 1], [0, 0, 1]]
            ),
            "rotated again": _rotation(last),
        }

    def views(self) -> list[str]:
        return ["", *self.affine]

    def view(self, pixels: Tensor, name: str) -> Tensor:
        return moved(pixels, self.affine[name])

    def claims(self, results: Results) -> list[Claim]:
        reason = self.not_the_papers(results)
        method = next(iter(results.config.methods))
        originals = [i for i in images_of(results) if not any(i.endswith(" " + view) for view in self.affine)]
        agreement = {view: [self._agreement(results, i, view, method) for i in originals] for view in self.affine}
        *same, last = self.affine
        metric = f"correlation of the {method} map, put back, with the original's"
        lower = Criterion("below each of the others", lambda values: values[-1] < min(values[:-1]))
        kept = {view: agreement[view] for view in same}
        claim = partial(Claim, source=self.source, metric=metric)
        measured = [
            claim("invariant", SAME, criterion=above(0.5, each=True), values=kept),
            claim("last", LAST, criterion=lower, values=kept | {last: agreement[last]}),
        ]
        return paper_and_here(measured, reason)

    def _agreement(self, results: Results, image: str, view: str, method: str) -> float:
        """Return the correlation of a view's map, transformed back, with the image's map, where the view shows the image."""
        original = torch.from_numpy(map_of(results, image, method))[None].double()
        map_ = torch.from_numpy(map_of(results, f"{image} {view}", method))[None].double()
        inverse = torch.linalg.inv(self.affine[view])
        seen = moved(torch.ones_like(map_), inverse) > 0.99
        return float(metrics.pearson(original[seen][None], moved(map_, inverse)[seen][None]))


def _rotation(angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def moved(images: Tensor, affine: Tensor) -> Tensor:
    """Resample images [B, C, H, W] bilinearly at the places to which `affine` [3, 3] maps each pixel; black outside."""
    grid = F.affine_grid(affine[None, :2].to(images), list(images[:1].shape), align_corners=False)
    return F.grid_sample(images, grid.expand(len(images), -1, -1, -1), align_corners=False)
