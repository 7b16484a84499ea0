"""zhou2018, Figure 18: the evidence in a photograph, and in the photograph rotated, flipped and cropped.

"All heatmaps except the last one mark the husky's ears and nose as strong positive evidence": the boxes of parts move with the
picture, and each map is for the class of the original. In the paper's last picture, a rotation, an ear is cut off. It does not
give the angles and the crop; these are ours. Two more views fill an ear, and an equal box elsewhere, with the mean colour.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.zhou2018.evidence import HIGH, EvidenceMaps, column, of_parts, photographs, ranks
from experiments.zhou2018.measures import boxes_mask
from vis.claims import Claim, Compared, above, below, on_digits, replicated
from vis.methods.perturbation import log2_odds
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output, Results

EAR, ELSEWHERE = "an ear filled", "a box elsewhere filled"
OTHER_EAR = "other ear"
PLACES = 10  # of boxes in the place of ears and nose


class Figure18(EvidenceMaps):
    """Compare maps of transformed photographs.

    rotate: two angles in degrees, anticlockwise; crop: top, left, bottom, right as shares of the sides. parts: see EvidenceMaps;
    two boxes of `ears`, of which the first is filled.
    """

    def __init__(self, rotate: Sequence[float], crop: Sequence[float], **maps: Any) -> None:
        super().__init__(**maps)
        self.parts = {
            image: dict(parts) | ({OTHER_EAR: parts["ears"][1:]} if len(parts.get("ears", ())) > 1 else {})
            for image, parts in self.parts.items()
        }
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

    def views(self, image: str) -> list[str]:
        return ["", *self.affine, *([EAR, ELSEWHERE] if OTHER_EAR in self.parts.get(image, ()) else [])]

    def view(self, pixels: Tensor, image: str, name: str) -> Tensor:
        if name in self.affine:
            return moved(pixels, self.affine[name])
        ear = list(self.parts[image]["ears"])[:1]
        return filled(pixels, ear if name == EAR else self._elsewhere(image, ear, 0))

    def part(self, boxes: Sequence[Sequence[float]], view: str, size: Sequence[int]) -> Tensor:
        mask = super().part(boxes, view, size)
        return moved(mask[None, None].double(), self.affine[view])[0, 0] > 0.5 if view in self.affine else mask

    def compute(self, run: Run, task: Task) -> Output:
        output = super().compute(run, task)
        for fact in output.tables.get("images", ()):
            parts = self.parts.get(fact["image"], {})
            boxes: list[Sequence[float]] = [*parts.get("ears", []), *parts.get("nose", [])]
            if boxes and not fact["view"]:
                model, laplace = run.model(), next(iter(run.config.methods.values())).laplace
                pixels = run.batch(model, task["images"]).pixels
                places = (self._elsewhere(fact["image"], boxes, seed) for seed in range(PLACES))
                pictures = [filled(pixels, boxes), *(filled(pixels, each) for each in places)]
                x = run.preprocess(model)(torch.cat(pictures).to(run.dtype))
                with torch.no_grad():
                    p = model.net(x.to(run.device)).double().softmax(1)[:, fact["unit"]].cpu()
                lost = fact["log2_odds"] - log2_odds(p, model.num_classes or 2, laplace)
                row = {"image": fact["image"], "lost": float(lost[0]), "lost_elsewhere": float(lost[1:].mean())}
                output.tables["filled"] = [row]
        return output

    def _elsewhere(self, image: str, boxes: Sequence[Sequence[float]], seed: int) -> list[list[float]]:
        """Return boxes of the same sizes at random places outside the parts of an image, if there are such places."""
        generator, found = torch.Generator().manual_seed(seed), []
        taken = boxes_mask([box for part in self.parts[image].values() for box in part], (100, 100))
        for top, left, bottom, right in boxes:
            height, width = bottom - top, right - left
            for _ in range(100):
                y, x = (torch.rand(2, generator=generator) * torch.tensor([1 - height, 1 - width])).tolist()
                if not (taken & boxes_mask([[y, x, y + height, x + width]], (100, 100))).any():
                    break
            found.append([y, x, y + height, x + width])
        return found

    def claims(self, results: Results) -> list[Claim]:
        method = next(iter(results.config.methods))
        *same, last = ["", *self.affine]
        marked = [ranks(results, method, part, HIGH, view) for view in same for part in ("ears", "nose")]
        rank = {
            (part, view): column(results, "parts", "rank", method=method, part=part, view=view)
            for part in ("eyes", OTHER_EAR)
            for view in ("", last, EAR, ELSEWHERE)
        }
        lost = column(results, "filled", "lost") - column(results, "filled", "lost_elsewhere")
        help_ = Compared(
            "bits lost if ears and nose are filled - if equal boxes elsewhere are",
            lost,
            above(0),
            null=0.0,
            control="boxes at random places",
        )
        eye = Compared(
            f"mean rank of the evidence in the eyes, {last} - original",
            rank["eyes", last] - rank["eyes", ""],
            above(0),
            null=0.0,
            control="the original",
        )
        guess = [
            Compared(
                f"mean rank of the evidence in the {part}, {EAR} - {ELSEWHERE}",
                rank[part, EAR] - rank[part, ELSEWHERE],
                rule,
                null=0.0,
                control=ELSEWHERE,
            )
            for part, rule in ((OTHER_EAR, below(0)), ("eyes", above(0)))
        ]
        found = [
            of_parts(results, "Z-F18-a", ["ears", "nose"], marked),
            of_parts(results, "Z-F18-b", ["ears", "nose"], [help_]),
            of_parts(results, "Z-F18-c", ["eyes"], [eye]),
            of_parts(results, "Z-F18-d", ["ears", "eyes"], guess),
        ]
        views = "rotations and a crop of ours, of which the paper does not give the size"
        return replicated(found, [*photographs(results), views], on_digits(results.config))


def filled(pixels: Tensor, boxes: Sequence[Sequence[float]]) -> Tensor:
    """Fill boxes of an image [1, C, H, W] with its mean colour."""
    return torch.where(boxes_mask(boxes, pixels.shape[2:]), pixels.mean((2, 3), keepdim=True), pixels)


def _rotation(angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def moved(images: Tensor, affine: Tensor) -> Tensor:
    """Resample images [B, C, H, W] bilinearly at the places to which `affine` [3, 3] maps each pixel; black outside."""
    grid = F.affine_grid(affine[None, :2].to(images), list(images[:1].shape), align_corners=False)
    return F.grid_sample(images, grid.expand(len(images), -1, -1, -1), align_corners=False)
