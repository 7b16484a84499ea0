"""ayyar2021, Figure 9: LRP-epsilon with and without biases, LRP-alpha1beta0 and FEM; where they lie and what they sum to.

The relevance of a pixel by LRP is the sum over its channels. The important regions of an image are the fifth of its pixels whose
covering by a gray window costs the score most (occlusion). Controls: white noise, the feature maps' sum, a random map at their
resolution, a Gaussian in the centre, and the contours of the next image.
"""

import copy
import zlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.ayyar2021.gallery import Gallery
from experiments.ayyar2021.verdicts import POSITIVE, lead, on_trained
from vis import metrics
from vis.claims import Claim, Column, Compared, Rule, below, exactly, near
from vis.methods.forward import Forward
from vis.metrics import clipped, sobel, strength
from vis.runner.experiment import Batch, Run
from vis.store.run_folder import Results

RULES = ("lrp", "lrp_no_bias", "lrp_alpha1_beta0")
TIGER = "the tiger of Figure 9"


class Figure9(Gallery):
    """Compare rules of LRP with one another and with FEM. The run needs the methods of RULES, fem and occlusion."""

    note = ("area", "80 % on")
    titles: ClassVar = {
        "lrp": "LRP-ε",
        "lrp_no_bias": "LRP-ε\nignore bias",
        "lrp_alpha1_beta0": "LRP-αβ\nα = 1, β = 0",
    }

    def title(self, config: Any, method: str) -> str:
        return str(self.titles.get(method) or super().title(config, method))

    def further(
        self, run: Run, images: Sequence[int], batch: Batch, maps: Mapping[str, Tensor], classes: Sequence[int]
    ) -> dict[str, dict[str, Tensor]]:
        run.require_methods(*RULES, "fem", "occlusion")
        model, preprocess = run.model(), run.preprocess(run.model())
        (layer,) = run.methods["fem"].layers(model.net, batch.x)
        with torch.no_grad(), Forward(model.net, batch.x, [layer], preprocess) as forward:
            features, logits = forward.layers[layer].abs().sum(1, keepdim=True).cpu().double(), forward.logits.cpu()
        score = logits.gather(1, torch.tensor(classes)[:, None])[:, 0].double()
        following = run.batch(model, [(i + 1) % len(run.dataset) for i in images]).pixels
        important = metrics.largest(maps["occlusion"], 0.2)
        sides = batch.pixels.shape[2:]
        random, noise = (
            torch.stack([drawn(image, shape) for image in batch.names])
            for shape in ((1, *features.shape[2:]), (1, *sides))
        )
        random, features = (F.interpolate(each, sides, mode="bilinear") for each in (random, features))
        centre = torch.hann_window(sides[0], dtype=torch.float64)[:, None] * torch.hann_window(
            sides[1], dtype=torch.float64
        )
        everything = {
            **maps,
            **{method: maps[method].sum(1, keepdim=True) for method in RULES},
            "random": random - random.amin((2, 3), keepdim=True),
            "noise": noise,
            "features": features,
        }
        everything["centre"] = centre.expand_as(features)
        found = {name: lies(each, batch.pixels, following, important) for name, each in everything.items()}
        for method in RULES:
            R = maps[method].double()
            found[method]["sum"] = R.sum((1, 2, 3)) / score
            found[method]["sum_error"] = (found[method]["sum"] - 1).abs()
            found[method]["negative"] = R.clamp(max=0).abs().sum((1, 2, 3)) / R.abs().sum((1, 2, 3))
        near_by = copy.copy(run.methods["lrp"])
        near_by.epsilon = 1.1 * near_by.epsilon  # type: ignore[attr-defined]  # of LRP
        again = near_by(model.net, batch.x, list(classes), preprocess).cpu()
        pairs = [metrics.pearson(maps[a], maps[b]) for a, b in combinations(RULES, 2)]
        found["lrp"] |= {"alike": torch.stack(pairs).mean(0), "alike_near": metrics.pearson(maps["lrp"], again)}
        return found

    def claims(self, results: Results) -> list[Claim]:
        def of(method: str, name: str) -> Column:
            return Column(results.rows(method=method), name, "image")

        def one(id_: str, metric: str, column: Column, rule: Rule, null: Column | float, control: str) -> Claim:
            return Claim(id_, [Compared(metric, column, rule, null=null, control=control)])

        epsilon, rest = RULES[0], ("lrp", "lrp_no_bias", "fem")
        contours = "correlation with the image's gradient magnitude - with the next image's"
        pixels, participation = "share of pixels with 80 % of the map", "participation (sum |R|)² / (n sum R²)"
        covered = "share of the important regions in the map's highest fifth"
        contour = [
            Compared(contours, of(RULES[2], "contour"), POSITIVE, null=0.0, control="the next image's contours: 0")
        ]
        contour += [lead(results, "contour", RULES[2], method, metric=contours) for method in rest]
        whole = [lead(results, "covered", "fem", other, metric=covered) for other in ("random", *RULES)]
        objects = [lead(results, "covered", "features", other, metric=covered) for other in ("centre", "random")]
        tiger = [
            one("A-F9-a", "correlation of the maps of the three rules", of(epsilon, "alike"), below(0.5, 0.9),
                of(epsilon, "alike_near"), "LRP-ε with 1.1 ε"),
            one("A-F9-b", "Σ|R⁻| / Σ|R|", of(epsilon, "negative"), near(0.5, 0.1), of(RULES[2], "negative"),
                "LRP with α = 1, β = 0"),
            Claim("A-F9-c", [lead(results, "area", "lrp", "noise", metric=pixels)]),
            Claim("A-F9-d", [
                lead(results, name, "lrp", "lrp_no_bias", metric=metric)
                for name, metric in (("area", pixels), ("participation", participation))
            ]),
            Claim("A-F9-e", [lead(results, "sum_error", "lrp_no_bias", "lrp", metric="|ΣR / S - 1|")]),
            one("A-F9-f", "Σ|R⁻| / Σ|R|", of(RULES[2], "negative"), exactly(0, 1e-6), of(epsilon, "negative"), "LRP-ε"),
            Claim("A-F9-g", contour),
            Claim("A-F9-h", whole),
        ]  # fmt: skip
        return [*on_trained(results, tiger, "vgg16", TIGER), *on_trained(results, [Claim("A-4.6-b", objects)])]


def drawn(image: str, shape: Sequence[int]) -> Tensor:
    """Return Gaussian numbers that depend on an image's name alone."""
    return torch.from_numpy(np.random.default_rng(zlib.crc32(image.encode())).standard_normal(shape))


def lies(maps: Tensor, pixels: Tensor, following: Tensor, important: Tensor) -> dict[str, Tensor]:
    """Compute on which pixels maps [B, C, H, W] lie.

    area: the share of pixels with 80 % of the map. participation: (sum v)² / (n sum v²), 1 where all pixels are equal. covered:
    the share of the important regions in the map's highest fifth. contour: the correlation of the map with the gradient
    magnitude of the image - with the following image's.
    """
    v = strength(maps)
    flat = v.flatten(1)
    ranked = flat.sort(descending=True).values.cumsum(1)
    own, other = (metrics.pearson(clipped(v), sobel(each)) for each in (pixels, following))
    both = (metrics.largest(v, 0.2) & important).sum((1, 2, 3))
    return {
        "area": (ranked < 0.8 * ranked[:, -1:]).double().mean(1),
        "participation": flat.sum(1).square() / (flat.shape[1] * flat.square().sum(1)),
        "covered": both / important.sum((1, 2, 3)),
        "contour": own - other,
    }
