"""adebayo2018: the randomisation trial, in which Adebayo et al. 2018 and Binder et al. 2023 disagree.

Adebayo et al. call a method sane if its map changes when the network's weights become random, from the logits down. Binder et
al. object that white noise, which explains nothing, changes most, and that the order of methods by this check is not their order
by faithfulness. Here both orders are measured on the same images, with the same controls:

    check          similarity with the trained network's map after each stage of the cascade (experiments/randomisation.py)
    faithfulness   pixel flipping: mean drop of the class probability as the first 64 of 14 x 14 patches get the mean colour

Each image has random networks of its own, so an interval over images covers both. The rules are those of the project's
specification of this trial, fixed before these measurements: similarities are "similar" above .5, "different" below .2 or no
higher than that of the maps of two images. Adebayo's sentences are judged as reported, not verbatim.

Three choices are ours. A2 asks for a paired difference below .2; the signed scales have a margin of .1; where the two arms are
compared, a map of zeros counts 0, which was chosen after a small run had shown DeconvNet's permuted maps to be mostly zero.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from experiments.randomisation import BLURRED, CONTROLS, MEASURES, WHITE, Randomisation
from vis import metrics
from vis.claims import Claim, Column, Compared, Rule, above, below, interval, mean, near, on_digits, replicated
from vis.figures.layout import plot, styled
from vis.runner.experiment import method_words
from vis.store.run_folder import Results
from vis.store.tables import Rows, numbers

IMAGES = 20  # the fewest for a verdict
PEER = "lrp_alpha1_beta0"  # fails the check by its SSIM, and is faithful
ADEBAYO, BINDER = "Adebayo et al. 2018, as reported", "beside Binder et al. 2023"


class Trial(Randomisation):
    """Judge the sentences of both papers."""

    shown: ClassVar[Sequence[str]] = ("ssim", "rank", "signed")
    floor: ClassVar[bool] = False

    def stages_of(self, results: Results) -> list[str]:
        """Return the labels of the cascade's stages, from the logits down."""
        return list(dict.fromkeys(row["variant"] for row in results.rows(kind="cascading")))

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return what the claims compare.

        least: for each image and method, the smallest difference to the noises' SSIM over the stages, and at the first and the
        last stage. orders: for each image, white noise's place in both orders, and the rank correlation of the orders.
        arms: SSIM at the middle stage, drawn anew minus permuted, where a map of zeros counts 0. trial: for each method, the
        means over images of all measures.
        """
        config, stages = results.config, self.stages_of(results)
        ssim = {(r["image"], r["variant"], r["method"]): r["ssim"] for r in results.rows(kind="cascading")}
        drop = {(r["image"], r["method"]): r["drop"] for r in results.rows("flips")}
        images, everyone = list(dict.fromkeys(image for image, *_ in ssim)), [*config.methods, *CONTROLS]
        least: Rows = []
        orders: Rows = []
        for image in images:
            for method in config.methods:
                over = {
                    control: [ssim[image, s, method] - ssim[image, s, control] for s in stages if
                              None not in (ssim[image, s, method], ssim[image, s, control])]
                    for control in (WHITE, BLURRED)
                }  # fmt: skip
                if len(over[WHITE]) == len(stages):
                    row = {"image": image, "method": method, "noise": min(over[WHITE])}
                    least.append(row | {"first": over[BLURRED][0], "last": over[BLURRED][-1]})
            known = [m for m in everyone if ssim.get((image, stages[0], m)) is not None and (image, m) in drop]
            if WHITE in known:
                check = np.array([-ssim[image, stages[0], m] for m in known])
                flips, own = np.array([drop[image, m] for m in known]), known.index(WHITE)
                order = {
                    "image": image, "saner": float((check > check[own]).sum() / (len(known) - 1)),
                    "more faithful": float((flips > flips[own]).sum() / (len(known) - 1)),
                    "agreement": spearman(check, flips),
                }  # fmt: skip
                orders.append(order)
        trial: Rows = []
        for method in everyone:
            means: dict[str, Any] = {"method": self.title(config, method)}
            for stage in stages:
                for name in MEASURES:
                    values = numbers(results.rows(kind="cascading", variant=stage, method=method), name)
                    means |= {f"{name} {stage}": mean(values) if values else None}
            values = numbers(results.rows("flips", method=method), "drop")
            trial.append(means | {"drop": mean(values) if values else None})
        return {
            "least": least,
            "orders": orders,
            "arms": self._arms(results),
            "trial": trial,
            "correlation": [self._of_orders(results)],
        }

    def middle_of(self, results: Results) -> str:
        """Return the label of the cascade's middle stage."""
        stages = self.stages_of(results)
        return stages[(len(stages) - 1) // 2]

    def _arms(self, results: Results) -> Rows:
        both = [
            {
                (r["image"], r["method"]): r["ssim"] or 0.0
                for r in results.rows(kind=kind, variant=self.middle_of(results))
            }
            for kind in ("cascading", "permuted")
        ]
        return [
            {"image": image, "method": method, "difference": own - both[1][image, method]}
            for (image, method), own in both[0].items()
            if (image, method) in both[1]
        ]

    def _of_orders(self, results: Results) -> dict[str, Any]:
        """Return the rank correlation of the mean orders, with and without the controls; intervals by bootstrap over images."""
        stage, config = self.stages_of(results)[0], results.config
        images = list(dict.fromkeys(row["image"] for row in results.rows("flips")))
        row: dict[str, Any] = {"maps": len(config.methods) + len(CONTROLS), "images": len(images)}
        generator = np.random.default_rng(0)
        draws = [np.arange(len(images)), *generator.integers(len(images), size=(1000, len(images)))]
        for words, methods in (("", [*config.methods, *CONTROLS]), (" methods alone", list(config.methods))):
            tables = []
            for table, name, where in (
                ("table", "ssim", {"kind": "cascading", "variant": stage}),
                ("flips", "drop", {}),
            ):
                found = {(r["image"], r["method"]): r[name] for r in results.rows(table, **where)}
                tables.append(np.array([[found.get((i, m)) for m in methods] for i in images], dtype=float))
            values = [spearman(-np.nanmean(tables[0][d], 0), np.nanmean(tables[1][d], 0)) for d in draws]
            low, high = np.nanquantile(values[1:], [0.025, 0.975])
            row |= {f"correlation{words}": values[0], f"low{words}": low, f"high{words}": high}
        return row

    def claims(self, results: Results) -> list[Claim]:
        stages = self.stages_of(results)
        first, middle, last = stages[0], self.middle_of(results), stages[-1]
        trained = "the trained network's own map: 1"

        def of(name: str, method: str, stage: str, kind: str = "cascading") -> Column:
            return Column(results.rows(kind=kind, variant=stage, method=method), name, "image")

        def similar(name: str, method: str, stage: str, rule: Rule, null: str = WHITE) -> Compared:
            words = f"{method}: {MEASURES[name]}, {stage}"
            if null == trained:
                return Compared(words, of(name, method, stage), rule, null=1.0, control=trained)
            return Compared(words, of(name, method, stage), rule, null=of(name, null, stage), control="white noise")

        def beyond_images(name: str, stage: str) -> Compared:
            other = Column(results.rows(kind="other", method="gradcam"), name, "image")
            own = of(name, "gradcam", "trained", "trained")
            return Compared(f"gradcam: {MEASURES[name]}, {stage}, minus that of the maps of two images",
                            of(name, "gradcam", stage) - other, below(0.2, ours="0.2 is ours"), null=own - other,
                            control=trained)  # fmt: skip

        def paired(words: str, table: str, name: str, more: str, less: str, rule: Rule, **where: Any) -> Compared:
            a, b = (Column(results.rows(table, method=m, **where), name, "image") for m in (more, less))
            return Compared(words, a - b, rule, null=0.0, control="no difference: 0")

        def over_noise(column: str, noise: str) -> list[Compared]:
            return [
                Compared(f"{m}: SSIM minus that of {noise}", Column(results.rows("least", method=m), column, "image"),
                         above(0), null=0.0, control="no difference: 0")
                for m in map(str, results.config.methods)
            ]  # fmt: skip

        def arm(method: str) -> Column:
            return Column(results.rows("arms", method=method), "difference", "image")

        invariant, passed, zero = above(0.9, 0.5), below(0.5, ours=".5 is ours"), near(0, 0.05)
        keep, arms = ("integrated_gradients", "input_x_gradient"), f"SSIM, {middle}, drawn anew minus permuted"
        chance = "chance: half of the maps"
        noise, order = "white noise, the smallest over the stages", results.rows("orders")
        at_first = {"kind": "cascading", "variant": first}
        faithful = "probability lost by pixel flipping"

        def finding(id_: str, sentence: str, compared: list[Compared], source: str = ADEBAYO, **options: Any) -> Claim:
            return Claim(id_, compared, sentence=sentence, source=source, **options)

        found = [
            finding("A1", "Gradients pass the sanity checks.", [
                similar("signed", "saliency", last, zero, trained), similar("signed", "saliency", first, passed, trained)]),
            finding("A2", "GradCAM passes the sanity checks, once the last convolution is random.",
                    [beyond_images(n, s) for s in dict.fromkeys((first, last)) for n in ("ssim", "signed")]),
            finding("A3", "Guided BackProp is invariant to the parameters of the higher layers.",
                    [similar(n, "gbp", s, invariant) for s in (first, middle) for n in ("ssim", "signed")]),
            finding("A3b", "Guided BackProp is entirely invariant to randomisation (withdrawn in version 3).",
                    [similar("signed", "gbp", last, above(0.9))]),
            finding("A4", "Integrated gradients and gradient x input keep the rank correlation of their absolute values, while "
                    "the signed one drops to about 0 at the first block.",
                    [c for m in keep for c in (similar("rank", m, first, above(0.5)),
                                               similar("signed", m, first, near(0, 0.15, ours=".15 is ours"), trained))]),
            finding("A4b", "Integrated gradients and gradient x input keep a high SSIM, which the gradient does not.",
                    [c for m in keep for c in (
                        similar("ssim", m, first, above(0.5)),
                        paired(f"{m}: SSIM minus the gradient's", "table", "ssim", m, "saliency", above(0), **at_first))]),
            Claim("B1", over_noise("noise", noise)),
            finding("B1b", "Smooth noise scores better than every method after the first block.",
                    over_noise("first", f"blurred noise, {first}"), BINDER),
            finding("B1c", "Smooth noise scores better than every method after all blocks.",
                    over_noise("last", f"blurred noise, {last}"), BINDER),
            Claim("B3", [
                Compared(f"share of the other maps that change more than white noise, {first}", Column(order, "saner", "image"),
                         below(0.1), null=0.5, control=chance),
                Compared("share of the other maps that are more faithful than white noise",
                         Column(order, "more faithful", "image"), above(0.5), null=0.5, control=chance),
                similar("ssim", PEER, first, above(0.5)),
                paired(f"{faithful}, {PEER} - white noise", "flips", "drop", PEER, WHITE, above(0)),
            ]),
            finding("B3b", "The order of maps by randomisation is the reverse of their order by faithfulness.",
                    [Compared("rank correlation of both orders, controls included", Column(order, "agreement", "image"), below(0),
                              null=0.0, control="unrelated orders: 0")], BINDER),
            finding("arms", "Whether weights are drawn anew or permuted decides about DeconvNet, and about no other method.", [
                Compared(f"{m}: {arms} (a map of zeros counts 0)", arm(m),
                         above(0.2, ours=".2 is ours") if m == "deconvnet" else near(0, 0.1, 0.2, ours=".1 and .2 are ours"),
                         null=0.0 if m == "deconvnet" else arm("deconvnet"),
                         control="no difference: 0" if m == "deconvnet" else "DeconvNet")
                for m in map(str, results.config.methods)], "The project"),
            *(finding(f"flipping-{m}", f"By pixel flipping, {self.title(results.config, m)} finds pixels that matter more than "
                      "those of white noise.", [paired(f"{faithful}, {m} - white noise", "flips", "drop", m, WHITE, above(0))],
                      "The project") for m in map(str, results.config.methods)),
        ]  # fmt: skip
        return judged(results, found)

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        return {"orders": self._orders(results), **super().draw(results, claims)}

    def _orders(self, results: Results) -> Figure:
        """Draw faithfulness against the score of the check, a point for each map."""
        config, first = results.config, self.stages_of(results)[0]
        row = self.summaries(results)["correlation"][0]
        over = [row[f"{end}{which}"] for which in ("", " methods alone") for end in ("correlation", "low", "high")]
        caption = [
            f"Mean and 95 % interval over {row['images']} images, each with its own random network",
            f"Sane: 1 - SSIM with the trained network's map, weights random {first}. Faithful: mean drop of the class "
            f"probability as the first {self.flips} of 14 x 14 patches get the mean colour (pixel flipping), minus that of white "
            "noise",
            "Rank correlation of both orders: {:.2f} ({:.2f} to {:.2f}) with the controls, {:.2f} ({:.2f} to {:.2f}) without "
            "(95 %, bootstrap over images)".format(*over),
            *method_words(config),
            f"{config.model.name}, {results.rows('network')[0]['weights']}",
        ]
        figure, (axis,) = plot(5.2, 3.6, caption)
        noise = {r["image"]: r["drop"] for r in results.rows("flips", method=WHITE)}
        points = []
        with styled():
            axis.axhline(0, color="0.85", linewidth=0.8, zorder=0)
            for method in [*config.methods, *CONTROLS]:
                x = [1 - v for v in numbers(results.rows(kind="cascading", variant=first, method=method), "ssim")]
                y = [r["drop"] - noise[r["image"]] for r in results.rows("flips", method=method)]
                if not x or not y:
                    continue
                bars = [abs(mean(v) - interval(v)[0]) if len(v) > 1 else 0.0 for v in (y, x)]
                color = "0.5" if method in CONTROLS else "C0"
                axis.errorbar(mean(x), mean(y), *bars, fmt="s" if method in CONTROLS else "o", color=color, markersize=4,
                              elinewidth=0.6)  # fmt: skip
                points.append((mean(x), mean(y), self.title(config, method), color))
            axis.set_xlabel("sane by the randomisation check: 1 - SSIM →")
            axis.set_ylabel("faithful by pixel flipping, minus noise →")
            axis.margins(0.12)
            low, high = axis.get_ylim()
            placed: list[tuple[float, float]] = []
            for sane, drop, title, color in sorted(points, key=lambda point: point[1]):
                at = (drop - low) / (high - low) + 0.02  # of the axis; above the labels of neighbours
                while any(abs(sane - x) < 0.3 and abs(at - y) < 0.045 for x, y in placed):
                    at += 0.01
                placed.append((sane, at))
                axis.text(sane + (-0.015 if sane > 0.9 else 0.015), low + at * (high - low), title, fontsize=6.5, color=color,
                          ha="right" if sane > 0.9 else "left", va="center")  # fmt: skip
        return figure


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return the rank correlation of two lists of numbers."""
    import torch

    return float(metrics.spearman(torch.from_numpy(a)[None], torch.from_numpy(b)[None]))


def judged(results: Results, claims: Sequence[Claim]) -> list[Claim]:
    """Add to claims on a trained network the fewest images of a verdict, what differs from the papers, or why there is none."""
    reason = on_digits(results.config)
    network = results.rows("network")[0]
    other = [f"{results.config.model.name}, {network['weights']}, instead of the networks of Binder et al."]
    enough = [
        replace(c, reason=reason, compared=[
            replace(each, rule=replace(each.rule, least=max(IMAGES, each.rule.least))) for each in c.compared])
        for c in claims
    ]  # fmt: skip
    return replicated(enough, other, reason)
