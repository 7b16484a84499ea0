"""ayyar2021, Section 6, Eq. (27): two generators against one, on two classes of a trained network.

    R(x) = |g_s(x) - g_a(x)|        a single generator:  |x - x_a|

For each seed, three are trained on the training images of the two classes (`vis.methods.generators`, kept in
`outputs/generators`): the pair, a single one, and a pair whose parameters are not kept close. Test images judge them: does g_s
keep the class, does g_a flip it, and is the pair's map less noisy and more on the strokes (brighter than half of the brightest)?
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from experiments.ayyar2021.similarity import area
from experiments.ayyar2021.verdicts import POSITIVE
from vis import metrics
from vis.claims import Claim, Column, Compared, above, at_small_sizes, below, exactly, mean, replicated, share_interval
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.methods import AdversarialGenerators
from vis.models import Model
from vis.runner.experiment import Batch, Experiment, Load, Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

PAIR, SINGLE, UNTIED = "adversarial_generators", "single", "untied"


class AdversarialPair(Experiment):
    """Compare the generator pair with the single generator. A task is a training of each, from another seed.

    images: the most images of the two classes; rows: images in the figure.
    """

    metrics = ("area", "variation")
    series = "method"

    def __init__(self, images: int, rows: int) -> None:
        self.images, self.rows = images, rows

    def tasks(self, run: Run) -> Sequence[Task]:
        run.require_methods(PAIR)
        classes = list(run.config.methods[PAIR].classes)
        labels = list(run.dataset.labels)
        # In turn, so that the first rows of the figure show both.
        of = [[i for i, label in enumerate(labels) if label == c] for c in classes]
        chosen = [i for both in zip(*of, strict=False) for i in both][: self.images]
        if not chosen:
            raise UserError(
                f"{run.dataset.origin} has no images of both classes {classes}: dataset=mnist, or other classes"
            )
        return [{"seed": seed, "images": chosen, "drawn": self.rows * (seed == run.config.seed)} for seed in run.seeds]

    def load(self, run: Run, task: Task) -> Load | None:
        return None  # the training dominates, and it is done once

    def trained(self, run: Run, model: Model, batch: Batch, seed: int) -> dict[str, AdversarialGenerators]:
        """Return the pair, the single generator and the untied pair of a seed."""
        found = {}
        changed: dict[str, dict[str, Any]] = {PAIR: {}, SINGLE: {"pair": False}, UNTIED: {"closeness": 0.0}}
        for name, changes in changed.items():
            method = copy.copy(run.methods[PAIR])
            assert isinstance(method, AdversarialGenerators)
            vars(method).update({**changes, "seed": seed, "learnt": None})
            method.prepare(run.explainer.subject(model, batch.x, [method.classes[0]]))
            found[name] = method
        return found

    def compute(self, run: Run, task: Task) -> Output:
        model, seed = run.model(), task["seed"]
        batch = run.batch(model, task["images"])
        generators = self.trained(run, model, batch, seed)
        pair, preprocess = generators[PAIR], run.preprocess(model)
        with torch.no_grad():
            decided = pair.decision(model.net(batch.x))
        classes = torch.tensor(pair.classes, device=decided.device)[decided].tolist()
        stroke = batch.pixels > batch.pixels.amax((1, 2, 3), keepdim=True) / 2
        border = torch.cat([batch.pixels[..., [0, -1]].flatten(1), batch.pixels[..., [0, -1], :].flatten(1)], 1).amax(1)
        mnist = run.dataset.read(task["images"][0]).size == (28, 28)  # scikit-learn's digits are smaller
        output = Output(tables={"table": []})
        output.tables["trainings"] = [{"seed": seed} | {name: apart(generators[name]) for name in (PAIR, UNTIED)}]
        for name in (PAIR, SINGLE):
            images = generators[name].generate(batch.x)
            with torch.no_grad():
                kept, turned = (pair.decision(model.net(each)) == decided for each in images)
            maps = (images[0] - images[1]).abs().cpu()
            found = {"area": area(maps), "variation": metrics.total_variation(maps)}
            found["on_stroke"] = (maps * stroke).double().sum((1, 2, 3)) / maps.double().sum((1, 2, 3))
            for i, image in enumerate(batch.names):
                row: dict[str, Any] = {"seed": seed, "image": image, "class": classes[i], "method": name}
                row |= {"stays": float(kept[i]), "flips": float(not turned[i]), "kept_by_adversarial": float(turned[i])}
                row |= {"flipped_by_similar": float(not kept[i]), "border": border[i].item()}
                row |= {"brightest": batch.pixels[i].max().item()} | {key: found[key][i].item() for key in found}
                output.tables["table"].append(
                    row | {"weights": model.weights, "images": run.dataset.origin, "mnist": mnist}
                )
            for i, image in enumerate(batch.names[: task["drawn"]]):
                output.arrays[f"{image}/{name}"] = maps[i].numpy()
                for which, each in zip(("similar", "adversarial"), images, strict=True):
                    output.arrays[f"{image}/{name}/{which}"] = preprocess.inverse(each[i : i + 1].cpu())[0].numpy()
        return output

    # --- from what is stored ------------------------------------------------------------------------------------------

    def claims(self, results: Results) -> list[Claim]:
        pair, single = (results.rows(method=name) for name in (PAIR, SINGLE))
        first = [row for row in pair if row["seed"] == results.config.seed]

        def share(words: str, name: str, null: str, control: str) -> Compared:
            own, other = (Column(first, key, "image") for key in (name, null))
            return Compared(
                f"share of images whose class {words}", own, above(0.9, of="share"), null=other, control=control
            )

        def less(words: str, name: str, more: Rows, than: Rows) -> Compared:
            difference = Column(more, name, "seed") - Column(than, name, "seed")
            return Compared(words, difference, POSITIVE, null=0.0, control="no difference: 0")

        noisy = [
            less("share of pixels with 80 % of the map, |x - x_a| - |g_s(x) - g_a(x)|", "area", single, pair),
            less("share of the map on the strokes, |g_s(x) - g_a(x)| - |x - x_a|", "on_stroke", pair, single),
        ]
        tied, untied = (Column(results.rows("trainings"), name, "seed") for name in (PAIR, UNTIED))
        close = Compared("|θ_s - θ_a| / |θ_s|, pair - pair whose parameters are not kept close", tied - untied, below(0),
                         null=0.0, control="a pair that is not kept close: 0")  # fmt: skip
        black = Compared("brightest pixel of an image's border", Column(first, "border", "image"), exactly(0),
                         null=Column(first, "brightest", "image"), control="the brightest pixel of the image")  # fmt: skip
        digits = str(first[0]["images"])
        section6 = [
            Claim("A-6-c", [share("stays on g_s(x)", "stays", "kept_by_adversarial", "g_a")]),
            Claim("A-6-d", [share("flips on g_a(x)", "flips", "flipped_by_similar", "g_s")]),
            Claim("A-6-e", noisy),
            Claim("A-6-f", [close]),
        ]
        differences = [f"{digits} instead of medical images", "the project's loss, without a discriminator"]
        return [
            *replicated(section6, differences, at_small_sizes(results.config)),
            Claim("A-5.2-d", [black], reason="" if first[0]["mnist"] else f"it speaks of MNIST, not of {digits}"),
        ]

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return shares with confidence intervals, and means, for the pair and for the single generator."""
        rows = []
        for name in (PAIR, SINGLE):
            found = results.rows(method=name)
            row: dict[str, Any] = {
                "method": name,
                "images": len({r["image"] for r in found}),
                "trainings": results.config.seeds,
            }
            for key in ("stays", "flips"):
                values = [r[key] for r in found if r["seed"] == results.config.seed]
                low, high = share_interval(values)
                row |= {key: mean(values), f"{key}_low": low, f"{key}_high": high}
            rows.append(row | {key: mean([r[key] for r in found]) for key in ("area", "on_stroke", "variation")})
        return {"summary": rows}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows: list[PanelRow] = []
        arrays, seed = results.arrays, results.config.seed
        both = {name: {r["image"]: r for r in results.rows(method=name, seed=seed)} for name in (PAIR, SINGLE)}
        for image, pair in list(both[PAIR].items())[: self.rows]:
            single, top = both[SINGLE][image], not rows
            classes = {True: str(pair["class"]), False: str(sum(results.config.methods[PAIR].classes) - pair["class"])}

            def picture(key: str, title: str, class_: str, *, image: str = image, top: bool = top) -> Panel:
                return Panel(display.picture(arrays[f"{image}/{key}"]), title if top else "", f"class {class_}")

            def map_(key: str, title: str, row: Any, *, image: str = image, top: bool = top) -> Panel:
                note = f"80 % on {row['area']:.0%}\non strokes {row['on_stroke']:.0%}"
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
            name: [mean([r[key] for r in each.values()]) for key in ("stays", "flips")] for name, each in both.items()
        }
        caption = [
            f"{config.model.name}, {first['weights']}; {first['images']}, {plural(len(both[PAIR]), 'image')}",
            f"The class stays on g_s(x) for {shares[PAIR][0]:.1%} of them, flips on g_a(x) for {shares[PAIR][1]:.1%}, and on the "
            f"single generator's x_a for {shares[SINGLE][1]:.1%}",
            f"Maps: {display.scaling('absolute')[1]}; under them: the share of pixels with 80 % of "
            "the map, and the share of the map on the strokes",
        ]
        return {"figure": panel_grid(rows, caption)}


def apart(method: AdversarialGenerators) -> float:
    """Return |theta_s - theta_a| / |theta_s| of a pair."""
    assert method.learnt is not None
    similar, adversarial = (
        torch.cat([p.detach().flatten() for p in net.parameters()])
        for net in (method.learnt.similar, method.learnt.adversarial)
    )
    return ((similar - adversarial).norm() / similar.norm()).item()
