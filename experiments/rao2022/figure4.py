"""rao2022, Figures 4 and 9: methods at the input, a middle and the final layer, in GridPG, DiFull and DiPart.

The rules are those of the project's specification of this paper, which was written before these runs. Two remarks on what
they measure: where the class score is a pointwise function of the final layer (a 1x1 convolution, or global pooling and a dense
layer), IxG, IntGrad and Grad-CAM are the same map there, so that their agreement is algebra. And at the input, DiFull gives 1 by
construction to every method that multiplies or is a gradient: other cells have no gradient.
"""

import math

from matplotlib.figure import Figure

from experiments.rao2022.localisation import DISTINCT, OURS, RANDOM, SETTINGS, Localisation, title
from vis.claims import Claim, Column, Compared, Rule, above, below, exactly, near
from vis.figures.layout import PAGE_WIDTH, plot, styled
from vis.store.run_folder import Results
from vis.store.tables import Rows

BACKWARD = ("saliency", "gbp", "input_x_gradient", "integrated_gradients")
WEIGHTED = ("gradcam", "gradcam_pp", "ablationcam")  # CAMs with one weight for each feature map
SHADES = {"input": "0.85", "middle": "0.6", "final": "0.3"}


class Figure4(Localisation):
    """Judge what section 5.1 says of the scores."""

    def claims(self, results: Results) -> list[Claim]:
        names = [str(name) for name in results.config.methods]

        def of(method: str, layer: str, setting: str = "gridpg") -> Column:
            return self.column(results, setting, layer, method)

        def compared(what: str, column: Column, rule: Rule, null: float | Column, control: str) -> Compared:
            return Compared(what, column, rule, null=null, control=control)

        def improves(method: str, of_setting: str = "gridpg") -> Compared:
            gain = of(method, "final", of_setting) - of(method, "input", of_setting)
            return compared(
                f"{title(results.config, method)}, {SETTINGS[of_setting]}: final - input",
                gain,
                above(0, least=self.least_of(method)),
                0.0,
                "no difference: 0",
            )

        def at_least(method: str, layer: str, setting: str, bound: float) -> Compared:
            return compared(
                f"{title(results.config, method)}, {SETTINGS[setting]}, {layer}",
                of(method, layer, setting),
                above(bound, least=self.least_of(method), ours=OURS),
                of(RANDOM, layer, setting),
                "a random map",
            )

        def low(method: str) -> Compared:
            rule = below(self.chance + 0.1, least=self.least_of(method), ours=OURS)
            return compared(
                f"{title(results.config, method)}, GridPG, input",
                of(method, "input"),
                rule,
                of(method, "final"),
                "its final layer",
            )

        def close(method: str) -> Compared:
            gap = of(method, "final") - of("gradcam", "final")
            return compared(
                f"{title(results.config, method)} - GradCAM, GridPG, final",
                gap,
                near(0, 0.05, least=self.least_of(method), ours=OURS),
                0.25,
                "the whole way to chance, about .25",
            )

        def order(method: str, later: str, earlier: str) -> Compared:
            gap = of(method, later, "dipart") - of(method, earlier, "dipart")
            return compared(
                f"{title(results.config, method)}, DiPart: {later} - {earlier}",
                gap,
                above(0, least=self.least_of(method)),
                0.0,
                "no difference: 0",
            )

        def falls(method: str, first: str, second: str) -> Compared:
            gap = of(method, "final", first) - of(method, "final", second)
            return compared(
                f"{title(results.config, method)}, final: {SETTINGS[first]} - {SETTINGS[second]}",
                gap,
                above(0, least=self.least_of(method)),
                0.0,
                "no difference: 0",
            )

        backward = [m for m in BACKWARD if m in names]
        weighted = [m for m in WEIGHTED if m in names]
        chance = [
            compared(
                f"{SETTINGS[s]}, {layer}",
                of(RANDOM, layer, s),
                near(self.chance, 0.05, ours=OURS),
                1.0,
                "a perfect map",
            )
            for s in self.settings
            for layer in self.layers
        ]
        exact = [
            Compared(
                f"{title(results.config, m)}, DiFull, input",
                of(m, "input", "difull"),
                exactly(1, within=1e-9),
                null=of(RANDOM, "input", "difull"),
                control="a random map",
            )
            for m in backward
        ]
        spread = Column(results.rows("ranges"), "range", "grid")
        alike = Column(results.rows("ranges"), "range of the sums", "grid")
        found = [
            Claim("R-5.1-a", [low(m) for m in backward]),
            Claim("R-5.1-b", [improves(m) for m in backward]),
            Claim("R-5.1-c", [close(m) for m in ("input_x_gradient", "integrated_gradients") if m in names]),
            Claim("R-5.1-d", [at_least(m, layer, "difull", 0.95) for m in backward for layer in self.layers]),
            Claim("R-5.1-e", exact),
            Claim(
                "R-5.1-f",
                [
                    order(m, *pair)
                    for m in ("saliency", "gbp", "input_x_gradient")
                    if m in names
                    for pair in (("final", "middle"), ("middle", "input"))
                ],
            ),
            Claim(
                "R-5.1-g",
                [improves(m) for m in ("gradcam", "gradcam_pp") if m in names]
                + [
                    compared(
                        "LayerCAM, GridPG: final - input",
                        of("layercam", "final") - of("layercam", "input"),
                        below(0, least=self.least_of("layercam")),
                        0.0,
                        "no difference: 0",
                    )
                ],
            ),
            Claim(
                "R-5.1-h",
                [falls(m, "gridpg", "difull") for m in weighted] + [falls(m, DISTINCT, "difull") for m in weighted],
            ),
            Claim("R-5.1-i", [at_least("layercam", "final", "difull", 0.95)]),
            Claim("R-5.1-j", [at_least("occlusion", "final", "difull", 0.85)]),
            Claim(
                "R-same-layer",
                [
                    compared(
                        "range of the methods' means, GridPG, final",
                        spread,
                        below(0.05, ours=OURS),
                        0.25,
                        "the way to chance",
                    )
                ],
            ),
            Claim(
                "chance",
                chance,
                sentence="A map of noise scores 1/n^2 in every setting and at every layer.",
                source="The project",
            ),
            Claim(
                "same_sums",
                [
                    compared(
                        "range of IxG, IntGrad, GradCAM, HiResCAM, AblationCAM and Occlusion, GridPG, final",
                        alike,
                        below(0.05, least=8, ours=OURS),
                        0.25,
                        "the way to chance",
                    )
                ],
                sentence="Methods that give a final layer's values their weight in the class score agree there.",
                source="The project",
            ),
            Claim(
                "weights_of_a_channel",
                [
                    compared(
                        f"outside: {title(results.config, m)}, DiFull of distinct classes, final",
                        Column(results.rows(setting=DISTINCT, layer="final", method=m), "missed", "grid"),
                        above(0.25, least=self.least_of(m), ours="a quarter is ours"),
                        0.0,
                        "a method that sees what is disconnected",
                    )
                    for m in weighted
                ],
                sentence="CAMs with one weight for each feature map put more than a quarter of their attribution where nothing "
                "can act, also if no class is repeated.",
                source="The project",
            ),
        ]
        return self.judged(results, [claim for claim in found if claim.compared])

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return beside the scores the range of the methods' scores at the final layer, grid by grid."""
        rows: Rows = []
        sums = ("input_x_gradient", "integrated_gradients", "gradcam", "hirescam", "ablationcam", "occlusion")
        for grid in dict.fromkeys(row["grid"] for row in results.rows()):
            means = {}
            for method in results.config.methods:
                some = [row["score"] for row in results.rows(grid=grid, setting="gridpg", layer="final", method=method)]
                if some:
                    means[str(method)] = math.fsum(some) / len(some)
            alike = [value for name, value in means.items() if name in sums]
            if len(means) > 1 and len(alike) > 1:
                ranges = {
                    "range": max(means.values()) - min(means.values()),
                    "range of the sums": max(alike) - min(alike),
                }
                rows.append({"grid": grid} | ranges)
        return super().summaries(results) | {"ranges": rows}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        settings = [s for s in self.settings if results.rows(setting=s)]
        names = [str(m) for m in results.config.methods if results.rows(method=m)] + [RANDOM]
        caption = [
            "Share of the positive attribution that lies in the explained cell: quartiles of the maps, whiskers from the 5th "
            "to the 95th percentile; from light to dark: at " + ", ".join(self.layers),
            f"Dashed: chance, {self.chance:.2f}",
            *self.about(results),
        ]
        figure, axes = (
            plot(PAGE_WIDTH, 1.7, caption, columns=len(settings))
            if len(settings) < 2
            else _stacked(caption, len(settings))
        )
        with styled():
            for axis, setting in zip(axes, settings, strict=True):
                for i, method in enumerate(names):
                    for j, layer in enumerate(self.layers):
                        values = [row["score"] for row in results.rows(setting=setting, layer=layer, method=method)]
                        if values:
                            box = axis.boxplot(
                                [values],
                                positions=[i + 0.26 * (j - (len(self.layers) - 1) / 2)],
                                widths=0.22,
                                whis=(5, 95),
                                showfliers=False,
                                patch_artist=True,
                                medianprops={"color": "C1", "linewidth": 1.2},
                                boxprops={"linewidth": 0.5},
                                whiskerprops={"linewidth": 0.6},
                                capprops={"linewidth": 0.6},
                            )
                            box["boxes"][0].set_facecolor(SHADES.get(layer, "0.7"))
                axis.axhline(self.chance, color="C0", linewidth=0.8, linestyle="--", zorder=0)
                axis.set_ylim(-0.02, 1.03)
                axis.set_title(SETTINGS[setting])
                axis.set_ylabel("score")
                axis.set_xlim(-0.6, len(names) - 0.4)
                axis.set_xticks(
                    range(len(names)),
                    [title(results.config, m) for m in names] if axis is axes[-1] else [],
                    rotation=30,
                    ha="right",
                    rotation_mode="anchor",
                )
        return {"figure": figure}


def _stacked(caption: list[str], rows: int) -> tuple[Figure, list]:
    """Make axes one above the other."""
    figure, axes = plot(PAGE_WIDTH, 1.5 * rows, caption)
    axes[0].remove()
    with styled():
        return figure, list(figure.subplots(rows, 1))
