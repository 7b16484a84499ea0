"""zhou2018, Figure 17: a second husky. "It is obvious that the strongest evidence speaking for its class is the husky's eye."

The claim is judged for images with `experiment.part.<image>=[top,left,bottom,right]`, the place of the eye.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.zhou2018.evidence import EvidenceMaps, images_of, map_of
from vis.claims import Claim, above
from vis.store.run_folder import Results

EYE = "the strongest evidence speaking for its class is the husky's eye"


class Figure17(EvidenceMaps):
    """Locate the strongest evidence. part: {image: box in which the paper claims it, as shares of the sides}."""

    def __init__(self, part: Mapping[str, Sequence[float]], **maps: Any) -> None:
        super().__init__(**maps)
        self.part = part

    def measured(self, results: Results) -> list[Claim]:
        method, hits = next(iter(results.config.methods)), []
        for image in images_of(results):
            if image in self.part:
                map_ = map_of(results, image, method)[0]
                place = np.unravel_index(map_.argmax(), map_.shape)
                y, x = ((i + 0.5) / n for i, n in zip(place, map_.shape, strict=True))
                top, left, bottom, right = self.part[image]
                hits.append(float(top <= y < bottom and left <= x < right))
        missing = "" if hits else "no image has a box in experiment.part"
        metric = "1 where the largest evidence lies in the part's box"
        eye = Claim("eye", EYE, source=self.source, metric=metric, criterion=above(0.5), values=hits, reason=missing)
        return [eye, *super().measured(results)]
