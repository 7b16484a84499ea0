"""zhou2018, Figure 15: PDA, and the efficient algorithm with the mean of PDA's draws in place of the conditional mean.

It is to tell two sources of their difference apart, sampling and approximation. Two maps are controls: PDA with other draws,
and the efficient algorithm with the mean of other draws than PDA's.
"""

from experiments.zhou2018.evidence import BOXES, HIGH, LOW, EvidenceMaps, column, of_parts, photographs, ranks
from vis.claims import Claim, Column, Compared, above, below, on_digits, replicated
from vis.store.run_folder import Results
from vis.store.tables import Rows

OURS = "the bounds are ours"


class Figure15(EvidenceMaps):
    """Compare maps with draws and without. Methods: pda, pda_again, pda_fast, pda_fast_sampled, pda_fast_other."""

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the tables of maps, and the share of the difference of PDA and efficient map that the draws explain."""
        tables = super().summaries(results)
        pairs = {(row["image"], row["a"], row["b"]): row["pearson"] for row in tables["pairs"]}
        rows = []
        for image in dict.fromkeys(image for image, *_ in pairs):
            row = {"image": image}
            for name, method in (("own", "pda_fast_sampled"), ("other", "pda_fast_other")):
                alike, drawn = pairs.get((image, "pda", "pda_fast")), pairs.get((image, "pda", method))
                if alike is not None and drawn is not None and alike < 1:
                    row[name] = 1 - (1 - drawn) / (1 - alike)
            rows.append(row)
        return tables | {"explained": rows}

    def claims(self, results: Results) -> list[Claim]:
        found = [*_hypothesis(results), *_identical(results), *_parts(results)]
        return replicated(found, photographs(results), on_digits(results.config))


def _hypothesis(results: Results) -> list[Claim]:
    shape = Compared(
        "share of 1 - correlation of PDA and the efficient map that goes if PDA's draws replace the conditional mean",
        column(results, "explained", "own"),
        above(0.5, least=BOXES),
        null=column(results, "explained", "other"),
        control="the mean of other draws than PDA's",
    )
    norms = {
        name: column(results, "pairs", "log2_norms", a=a, b=b)
        for name, a, b in (
            ("approximation", "pda", "pda_fast_sampled"),
            ("sampling", "pda_fast", "pda_fast_sampled"),
            ("seeds", "pda", "pda_again"),
        )
    }
    intensity = Compared(
        "|log2| of the ratio of the maps' norms, PDA and mean of its draws - mean of draws and conditional mean",
        norms["approximation"] - norms["sampling"],
        above(0, least=BOXES),
        null=norms["seeds"] - norms["sampling"],
        control="PDA with other draws in place of the mean of its draws",
    )
    return [Claim("Z-F15-g", [shape]), Claim("Z-F15-h", [intensity])]


def _identical(results: Results) -> list[Claim]:
    """The maillot, known by its wall, and the other photographs."""
    alike = {
        (wall, pair): Column(
            [r for r in results.rows("pairs", a=pair[0], b=pair[1]) if r["wall"] is wall], "pearson", "image"
        )
        for wall in (True, False)
        for pair in (("pda", "pda_fast_sampled"), ("pda", "pda_fast"), ("pda_fast", "pda_fast_sampled"))
    }
    maillot = Compared(
        "correlation of PDA and the efficient map with the mean of PDA's draws",
        alike[True, ("pda", "pda_fast_sampled")],
        above(0.8, 0.5, least=BOXES, ours=OURS),
        null=alike[True, ("pda", "pda_fast")],
        control="the efficient map with the conditional mean",
    )
    others = Compared(
        "correlation of the efficient maps with the conditional mean and the mean of draws",
        alike[False, ("pda_fast", "pda_fast_sampled")],
        above(0.9, 0.7, least=BOXES, ours=OURS),
        null=alike[False, ("pda", "pda_fast")],
        control="PDA and the efficient map with the conditional mean",
    )
    return [of_parts(results, "Z-F15-b", ["wall"], [maillot]), Claim("Z-F15-d", [others])]


def _parts(results: Results) -> list[Claim]:
    drawn = ("pda", "pda_fast_sampled")
    wall = [ranks(results, m, part, rule) for m in drawn for part, rule in (("wall", HIGH), ("sheet", LOW))]
    change = {
        part: column(results, "parts", "mean", method="pda_fast_sampled", part=part)
        - column(results, "parts", "mean", method="pda_fast", part=part)
        for part in ("above_head", "chest")
    }
    metric, control = "mean evidence, mean of draws - conditional mean, in standard deviations of the map", "no change"
    return [
        of_parts(results, "Z-F15-c", ["wall", "sheet"], wall),
        *(
            of_parts(results, id_, [part], [Compared(metric, change[part], rule, null=0.0, control=control)])
            for id_, part, rule in (
                ("Z-F15-e", "above_head", above(0, least=BOXES)),
                ("Z-F15-f", "chest", below(0, least=BOXES)),
            )
        ),
    ]
