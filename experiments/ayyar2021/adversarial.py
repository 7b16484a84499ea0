"""ayyar2021, Section 6, Eq. (27): two generators against one, on two classes of a trained network.

    R(x) = |g_s(x) - g_a(x)|        a single generator:  |x - x_a|

Both are trained on the training images of the two classes (`vis.methods.generators`, kept in `outputs/generators`) and judged
on their test images: does g_s keep the class, does g_a flip it, and is the pair's map less noisy, as the survey reports for
Charachon et al.'s X-rays? Their classifier and images are not public, so the verdicts here are on the project's own claims.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure

from experiments.ayyar2021.gallery import numbers_of
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.oldclaims import POSITIVE, Claim, Criterion, mean, paper_and_here
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

SOURCE = "Section 6, Eq. 27"
SAME = "g_s is trained to generate an image that has the same output as the input image x by the network"
OPPOSITE = "g_a network is trained to produce an image with a prediction that is opposite to that of the x"
NOISY = (
    "The approach of just one network to generate an adversarial image (x_a) and use the difference in the input image x and the "
    "x_a as the explanation was observed to produce noisy and non-intuitive features"
)
PAIR, SINGLE = "adversarial_generators", "adversarial_single"


def share_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact (Clopper-Pearson) confidence limits of the share of ones among zeros and ones."""
    from scipy.stats import binomtest

    found = binomtest(int(sum(values)), len(values)).proportion_ci(confidence)
    return float(found.low), float(found.high)


MOSTLY = Criterion("95% interval of the share above 0.9", lambda values: share_interval(values)[0] > 0.9)


class AdversarialPair(Experiment):
    """Compare the generator pair with the single generator.

    images: the most images of the two classes; rows: images in the figure.
    """

    metrics = ("spread", "variation")
    series = "method"

    def __init__(self, images: int, rows: int) -> None:
        self.images, self.rows = images, rows

    def tasks(self, run: Run) -> Sequence[Task]:
        run.require_methods(PAIR, SINGLE)
        classes = list(run.config.methods[PAIR].classes)
        labels = list(run.dataset.labels)
        # In turn, so that the first rows of the figure show both.
        of = [[i for i, label in enumerate(labels) if label == c] for c in classes]
        chosen = [i for both in zip(*of, strict=False) for i in both][: self.images]
        if not chosen:
            raise UserError(
                f"{run.dataset.origin} has no images of both classes {classes}: dataset=mnist, or other classes"
            )
        return [{"images": chosen[i : i + 100], "drawn": 0 if i else self.rows} for i in range(0, len(chosen), 100)]

    def load(self, run: Run, task: Task) -> Load | None:
        return None  # the training dominates, and it is done once

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        batch = run.batch(model, task["images"])
        methods: dict[str, Any] = dict(run.methods)
        pair = methods[PAIR]
        with torch.no_grad():
            decided = pair.decision(model.net(batch.x))
        classes = torch.tensor(pair.classes, device=decided.device)[decided].tolist()
        (maps,), _ = run.explain(model, batch.x, [classes])
        preprocess = run.preprocess(model)
        output = Output(tables={"table": []})
        for name in (PAIR, SINGLE):
            images = methods[name].generate(batch.x)
            with torch.no_grad():
                kept, turned = (pair.decision(model.net(each)) == decided for each in images)
            found = numbers_of(maps[name], batch.pixels)
            for i, image in enumerate(batch.names):
                row: dict[str, Any] = {"image": image, "label": batch.labels[i], "class": classes[i], "method": name}
                row |= {"stays": float(kept[i]), "flips": float(not turned[i])}
                row |= {key: found[key][i].item() for key in ("spread", "variation")}
                output.tables["table"].append(row | {"weights": model.weights, "images": run.dataset.origin})
            for i, image in enumerate(batch.names[: task["drawn"]]):
                output.arrays[f"{image}/{name}"] = maps[name][i].numpy()
                for which, each in zip(("similar", "adversarial"), images, strict=True):
                    output.arrays[f"{image}/{name}/{which}"] = preprocess.inverse(each[i : i + 1].cpu())[0].numpy()
        return output

    # --- from what is stored ------------------------------------------------------------------------------------------

    def claims(self, results: Results) -> list[Claim]:
        pair, single = results.rows(method=PAIR), results.rows(method=SINGLE)

        def less(key: str) -> list[float]:
            return [b[key] - a[key] for a, b in zip(pair, single, strict=True)]

        claim = partial(Claim, source=SOURCE)
        measured = [
            claim(
                "similar_stays",
                SAME,
                metric="share of images whose class stays on g_s(x)",
                criterion=MOSTLY,
                values=[r["stays"] for r in pair],
            ),
            claim(
                "adversarial_flips",
                OPPOSITE,
                metric="share of images whose class flips on g_a(x)",
                criterion=MOSTLY,
                values=[r["flips"] for r in pair],
            ),
            claim(
                "less_noisy",
                NOISY,
                metric="total variation, |x - x_a| - |g_s(x) - g_a(x)|",
                criterion=POSITIVE,
                values=less("variation"),
            ),
            claim(
                "fewer_pixels",
                NOISY,
                metric="participation ratio, |x - x_a| - |g_s(x) - g_a(x)|",
                criterion=POSITIVE,
                values=less("spread"),
            ),
        ]
        return paper_and_here(measured, f"{pair[0]['images']}, not Charachon et al.'s X-rays")

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return shares with confidence intervals, and means, for the pair and for the single generator."""
        rows = []
        for name in (PAIR, SINGLE):
            found = results.rows(method=name)
            row: dict[str, Any] = {"method": name, "images": len(found)}
            for key in ("stays", "flips"):
                values = [r[key] for r in found]
                low, high = share_interval(values)
                row |= {key: mean(values), f"{key}_low": low, f"{key}_high": high}
            rows.append(row | {key: mean([r[key] for r in found]) for key in ("spread", "variation")})
        return {"summary": rows}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows: list[PanelRow] = []
        both, arrays = (
            {name: {r["image"]: r for r in results.rows(method=name)} for name in (PAIR, SINGLE)},
            results.arrays,
        )
        for image, pair in list(both[PAIR].items())[: self.rows]:
            single, top = both[SINGLE][image], not rows
            classes = {True: str(pair["class"]), False: str(sum(results.config.methods[PAIR].classes) - pair["class"])}

            def picture(key: str, title: str, class_: str, *, image: str = image, top: bool = top) -> Panel:
                return Panel(display.picture(arrays[f"{image}/{key}"]), title if top else "", f"class {class_}")

            def map_(key: str, title: str, row: Any, *, image: str = image, top: bool = top) -> Panel:
                note = f"variation {row['variation']:.2f}\nspread {row['spread']:.3f}"
                return Panel(display.absolute(arrays[f"{image}/{key}"]), title if top else "", note)

            rows.append(
                PanelRow(
                    [
                        picture(f"{SINGLE}/similar", "x", classes[True]),
                        picture(f"{PAIR}/similar", "similar\n$g_s(x)$", classes[bool(pair["stays"])]),
                        picture(f"{PAIR}/adversarial", "adversarial\n$g_a(x)$", classes[not pair["flips"]]),
                        map_(PAIR, "$|g_s(x) - g_a(x)|$", pair),
                        picture(f"{SINGLE}/adversarial", "one generator\n$x_a$", classes[not single["flips"]]),
                        map_(SINGLE, "$|x - x_a|$", single),
                    ]
                )
            )
        config, first = results.config, results.rows()[0]
        shares = {
            name: [mean([r[key] for r in results.rows(method=name)]) for key in ("stays", "flips")] for name in both
        }
        caption = [
            f"{config.model.name}, {first['weights']}; {first['images']}, {plural(len(both[PAIR]), 'image')}",
            f"The class stays on g_s(x) for {shares[PAIR][0]:.1%} of them, flips on g_a(x) for {shares[PAIR][1]:.1%}, and on the "
            f"single generator's x_a for {shares[SINGLE][1]:.1%}",
            f"Maps: {display.scaling('absolute')[1]}; variation: total variation; spread: participation ratio",
        ]
        return {"figure": panel_grid(rows, caption)}
