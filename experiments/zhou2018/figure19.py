"""zhou2018, Figure 19: the efficient algorithm, and its first-order form, the gradient times the change of each window."""

import math

from experiments.zhou2018.evidence import BOXES, EvidenceMaps, column, on_objects, photographs
from vis.claims import Claim, Compared, above, below, on_digits, replicated
from vis.store.run_folder import Results

NOISY = above(math.log2(1.2), 0, least=BOXES, ours="1.2 times as many pixels for `too noisy` is ours")


class Figure19(EvidenceMaps):
    """Judge how much of the efficient map the simplified one keeps."""

    def claims(self, results: Results) -> list[Claim]:
        pair = {"a": "pda_fast", "b": "pda_gradient"}
        captures = Compared(
            "share of the efficient map's largest 10 % of pixels that are also the simplified map's - of another image's",
            column(results, "pairs", "overlap", **pair) - column(results, "pairs", "overlap_other", **pair),
            above(0, least=BOXES),
            null=0.0,
            control="the simplified map of another image",
        )
        pixels, object_ = (
            column(results, "maps", name, method="pda_gradient") - column(results, "maps", name, method="pda_fast")
            for name in ("log2_pixels", "on_object")
        )
        control = "the efficient map itself"
        noisy = [
            Compared(
                "log2 of the pixels that hold 80 % of |evidence|, simplified - efficient",
                pixels,
                NOISY,
                null=0.0,
                control=control,
            ),
            Compared(
                "share of |evidence| in the object, simplified - efficient",
                object_,
                below(0, least=BOXES),
                null=0.0,
                control=control,
            ),
        ]
        found = [Claim("Z-F19-d", [captures]), Claim("Z-F19-e", noisy, reason=on_objects(results))]
        return replicated(found, photographs(results), on_digits(results.config))
