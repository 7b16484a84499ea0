"""adebayo2018: which varies more, the similarity over images or over random networks of one image?

Each image is compared with several random networks. If images vary more, one random network for each image is enough.
"""

from experiments.randomisation import MEASURES, Randomisation
from vis.claims import Claim, Column, Compared, above, mean, on_digits, spread
from vis.store.run_folder import Results
from vis.store.tables import Rows


class Variance(Randomisation):
    """Compare the spread over images with the spread over the random networks (seeds) of an image."""

    floor = False

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the standard deviations of each similarity over images and over random networks, and the log of their ratio.

        The one over images is that of their means, from which the share of the networks is taken: s^2 = var(means) - w^2 / n.
        """
        rows: Rows = []
        stages = list(dict.fromkeys(row["variant"] for row in results.rows(kind="cascading")))
        for stage in stages:
            for method in map(str, results.config.methods):
                for name in MEASURES:
                    by_image: dict[str, list[float]] = {}
                    for row in results.rows(kind="cascading", variant=stage, method=method):
                        if row[name] is not None:
                            by_image.setdefault(row["image"], []).append(row[name])
                    groups = [values for values in by_image.values() if len(values) > 1]
                    if len(groups) < 2:
                        continue
                    within = mean([spread(values) ** 2 for values in groups])
                    count = mean([len(values) for values in groups])
                    between = spread([mean(values) for values in groups]) ** 2 - within / count
                    rows.append({
                        "stage": stage, "method": method, "measure": name, "over networks": within**0.5,
                        "over images": max(0.0, between) ** 0.5,
                        "more over images": (max(0.0, between) - within) / (max(0.0, between) + within or 1.0),
                    })  # fmt: skip
        return {"variances": rows}

    def claims(self, results: Results) -> list[Claim]:
        more = Column(results.rows("variances", measure="ssim"), "more over images", ("method", "stage"))
        compared = Compared("SSIM: (variance over images - over networks) / their sum, by method and stage", more, above(0),
                            null=0.0, control="equal variances: 0")  # fmt: skip
        sentence = "The SSIM varies more over images than over the random networks of one image."
        return [
            Claim("variance", [compared], sentence=sentence, source="The project", reason=on_digits(results.config))
        ]
