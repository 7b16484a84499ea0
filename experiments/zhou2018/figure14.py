"""zhou2018, Figure 14: photographs, their evidence by PDA and by the efficient algorithm; and by PDA with other draws.

The second PDA is the control: two maps of one algorithm differ by sampling noise alone.
"""

import math

from experiments.zhou2018.evidence import (
    BOXES,
    HIGH,
    LOW,
    EvidenceMaps,
    column,
    of_parts,
    on_objects,
    photographs,
    ranks,
)
from vis.claims import Claim, Compared, above, below, near, on_digits, replicated
from vis.store.run_folder import Results
from vis.store.tables import Rows

MUCH = math.log2(1.5)  # more pixels, in octaves
WEAK = 0.5  # of the object's intensity
OURS = "the bounds are ours"
PIXELS = "log2 of the pixels that hold 80 % of |evidence|"
SEEDS = "PDA with other draws in place of the efficient algorithm"


class Figure14(EvidenceMaps):
    """Compare where the two algorithms find evidence. pda_again is PDA with another seed."""

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the tables of maps, and what takes two maps of an image.

        focused: 1 if PDA is much noisier and the efficient map weak outside the object. back: the product of the mean
        evidence in this part by PDA and by the efficient algorithm; back_again: by PDA with other draws.
        """
        tables = super().summaries(results)
        maps = {(row["image"], row["method"]): row for row in tables["maps"]}
        back = {(row["image"], row["method"]): row["mean"] for row in tables["parts"] if row["part"] == "back"}
        rows = []
        for image in dict.fromkeys(image for image, _ in maps):
            row, pda, fast = {"image": image}, maps.get((image, "pda")), maps.get((image, "pda_fast"))
            if pda and fast and fast["object"]:
                noisier = pda["log2_pixels"] - fast["log2_pixels"] > MUCH
                row["focused"] = float(noisier and fast["outside"] < WEAK)
            for name, method in (("back", "pda_fast"), ("back_again", "pda_again")):
                if {(image, "pda"), (image, method)} <= back.keys():
                    row[name] = back[image, "pda"] * back[image, method]
            rows.append(row)
        return tables | {"properties": rows}

    def claims(self, results: Results) -> list[Claim]:
        found = [*_noise(results), *_objects(results), *_parts(results)]
        return replicated(found, photographs(results), on_digits(results.config))


def _noise(results: Results) -> list[Claim]:
    fast, pda, again = (column(results, "maps", "log2_pixels", method=m) for m in ("pda_fast", "pda", "pda_again"))
    much = above(MUCH, 0, least=BOXES, ours="1.5 times as many pixels for `much` is ours")
    noisier = Compared(f"{PIXELS}, PDA - efficient", pda - fast, much, null=pda - again, control=SEEDS)
    drawn = Compared(
        "share of the variance of PDA's map that its draws make",
        column(results, "pairs", "drawn", a="pda", b="pda_again"),
        above(0.1, 0.01, least=BOXES, ours="a tenth and a hundredth are ours"),
        null=0.0,
        control="the efficient algorithm, which draws nothing",
    )
    return [Claim("Z-F14-b", [noisier]), Claim("Z-F16-b", [drawn])]


def _objects(results: Results) -> list[Claim]:
    names = ("pda_fast", "pda", "pda_again")
    fast, pda, again = (column(results, "maps", "on_object", method=m) for m in names)
    gain, control, on_object = fast - pda, again - pda, "share of |evidence| in the object, efficient - PDA"
    unlike = 2 * math.sqrt(math.fsum(v**2 for v in control.values) / max(1, len(control.values)))
    similar = near(
        0, unlike, least=BOXES, ours="similar means twice the root mean square of PDA's own differences between seeds"
    )
    fast_pixels, pda_pixels, again_pixels = (column(results, "maps", "log2_pixels", method=m) for m in names)
    fewer = Compared(
        f"{PIXELS}, efficient - PDA",
        fast_pixels - pda_pixels,
        below(0, least=BOXES),
        null=again_pixels - pda_pixels,
        control=SEEDS,
    )
    weak = Compared(
        "99th percentile of |evidence| outside the object over that inside, efficient",
        column(results, "maps", "outside", method="pda_fast"),
        below(WEAK, 1, least=BOXES, ours=OURS),
        null=column(results, "maps", "outside_shuffled", method="pda_fast"),
        control="the map with its pixels in random order",
    )
    focused = Compared(
        "images where PDA's evidence is on 1.5 times as many pixels, and the efficient map outside is below half of inside",
        column(results, "properties", "focused"),
        above(0.5, of="share", least=BOXES),
        null=0.5,
        control="half of the images",
    )
    signs = Compared(
        "share of the object's pixels with opposite signs, PDA and efficient - PDA and PDA with other draws",
        column(results, "pairs", "signs_differ", a="pda", b="pda_fast")
        - column(results, "pairs", "signs_differ", a="pda", b="pda_again"),
        above(0, least=BOXES),
        null=0.0,
        control=SEEDS,
    )
    elsewhere = [column(results, "maps", "on_object_other", method=m) for m in names[:2]]
    focus = Compared(
        on_object,
        gain,
        above(0, least=BOXES),
        null=elsewhere[0] - elsewhere[1],
        control="the maps of other photographs in the same boxes",
    )
    quality = Compared(
        on_object, gain, similar, null=1.0, control="a map that lies in the object, another that does not"
    )
    claims = {
        "Z-2.1-x": [quality] if control.values else [],
        "Z-4-c": [fewer, focus],
        "Z-F14-c": [weak],
        "Z-F14-d": [focused],
        "Z-F14-h": [signs],
    }
    return [Claim(id_, compared, reason=on_objects(results)) for id_, compared in claims.items()]


def _parts(results: Results) -> list[Claim]:
    """The sentences on the paper's husky, bee eater and maillot."""
    both = ("pda", "pda_fast")
    husky = [ranks(results, m, part, HIGH) for m in both for part in ("ears", "nose")]
    husky += [ranks(results, m, "forehead", LOW) for m in both]
    bird = [ranks(results, m, part, rule) for m in both for part, rule in (("feather", HIGH), ("tail", LOW))]
    chest = [
        ranks(results, "pda", "chest", LOW),
        ranks(results, "pda_fast", "chest", near(0.5, 0.2, least=BOXES, ours=OURS)),
    ]
    fast, pda, again = (
        column(results, "parts", "beyond", method=m, part="head") for m in ("pda_fast", "pda", "pda_again")
    )
    head = Compared(
        "share of |evidence| outside the head, PDA - efficient",
        pda - fast,
        above(0, least=BOXES),
        null=pda - again,
        control=SEEDS,
    )
    top, area = (column(results, "parts", name, method="pda", part="wall") for name in ("top", "area"))
    wall = Compared(
        "share of the wall in the 5 % of pixels with the most evidence - its share of the image, PDA",
        top - area,
        above(0, least=BOXES),
        null=0.0,
        control="evidence that lies anywhere",
    )
    back = Compared(
        "mean evidence on the back by PDA times that by the efficient algorithm, in standard deviations of the maps",
        column(results, "properties", "back"),
        below(0, least=BOXES),
        null=column(results, "properties", "back_again"),
        control=SEEDS,
    )
    claims = {
        "Z-F14-a": (["ears", "nose", "forehead"], husky),
        "Z-F14-e": (["feather", "tail"], bird),
        "Z-F14-f": (["head"], [head]),
        "Z-F14-g": (["wall"], [wall]),
        "Z-F14-i": (["chest"], chest),
        "Z-F14-j": (["back"], [back]),
    }
    return [of_parts(results, id_, parts, compared) for id_, (parts, compared) in claims.items()]
