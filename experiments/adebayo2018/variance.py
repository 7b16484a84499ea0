"""adebayo2018: which varies more, the similarity over images or over random networks of one image?

Each image is compared with several random networks. If images vary more, one random network for each image is enough.

The methods and stages share their images, so the interval is that of the jackknife over images.
"""

from collections.abc import Sequence

from experiments.randomisation import MEASURES, Randomisation
from vis.claims import Claim, Column, Compared, above, jackknife, mean, on_digits, spread
from vis.store.run_folder import Results
from vis.store.tables import Rows


class Variance(Randomisation):
    """Compare the spread over images with the spread over the random networks (seeds) of an image."""

    floor = False

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the standard deviations of each similarity over images and over random networks, and pseudo-values by image."""
        rows: Rows = []
        images: Rows = []
        stages = list(dict.fromkeys(row["variant"] for row in results.rows(kind="cascading")))
        for stage in stages:
            for method in map(str, results.config.methods):
                for name in MEASURES:
                    by_image: dict[str, list[float]] = {}
                    for row in results.rows(kind="cascading", variant=stage, method=method):
                        if row[name] is not None:
                            by_image.setdefault(row["image"], []).append(row[name])
                    groups = {image: values for image, values in by_image.items() if len(values) > 1}
                    if len(groups) < 2:
                        continue
                    where = {"stage": stage, "method": method, "measure": name}
                    over_images, over_networks = variances(list(groups.values()))
                    rows.append(where | {"over networks": over_networks**0.5, "over images": over_images**0.5})
                    images += [
                        where | {"image": image, "more over images": value}
                        for image, value in zip(
                            groups, jackknife(list(groups.values()), more_over_images), strict=False
                        )
                    ]
        return {"variances": rows, "pseudo_values": images}

    def claims(self, results: Results) -> list[Claim]:
        more = Column(results.rows("pseudo_values", measure="ssim"), "more over images", "image")
        compared = Compared("SSIM: (variance over images - over networks) / their sum, mean over methods and stages", more,
                            above(0), null=0.0, control="equal variances: 0")  # fmt: skip
        sentence = "The SSIM varies more over images than over the random networks of one image."
        return [
            Claim("variance", [compared], sentence=sentence, source="The project", reason=on_digits(results.config))
        ]


def variances(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the variance over images and over random networks; groups: an image's values.

    The one over images is that of their means without the share of the networks: var(means) - w^2 / n, or 0.
    """
    within = mean([spread(values) ** 2 for values in groups])
    between = spread([mean(values) for values in groups]) ** 2 - within / mean([len(values) for values in groups])
    return max(0.0, between), within


def more_over_images(groups: Sequence[Sequence[float]]) -> float:
    """Return (variance over images - over networks) / their sum; 0 if nothing varies."""
    images, networks = variances(groups)
    return (images - networks) / (images + networks or 1.0)
