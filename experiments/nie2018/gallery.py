"""nie2018, the galleries of the supplement: three methods (rows) for three logits (columns) of one image.

The number under a row is the correlation of a method's maps of two logits. Galleries draw; `figure2` and `figure7` judge.
SqueezeNet's maps are those before its last ReLU (`trained.before_last_relu`); `max` is the class that the network predicts.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

from matplotlib.figure import Figure
from torch import Tensor

from experiments.nie2018.trained import (
    LABELS,
    batches_of_the_model,
    before_last_relu,
    images_of,
    network_of,
    predicted,
    rectified,
    wanted,
    weights_words,
)
from vis import metrics
from vis.claims import Claim, mean_and_spread
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.models import Model
from vis.runner.experiment import Batch, Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results

Maps = Mapping[str, Tensor]  # of each method
BEFORE = " before the network's last ReLU"


def logits_of(run: Run, model: Model, batch: Batch, targets: Sequence[int | str]) -> list[list[int]]:
    """Return the logits that each target means, one for each image; `max` is the class that the network predicts."""
    best = predicted(model, batch.x)
    return [run.units_of(model, target, batch.names) or best for target in targets]


class Gallery(Experiment):
    """Draw and correlate maps of several logits. paper: the image that the paper shows."""

    metrics = ("correlation",)
    series = "method"

    def __init__(self, paper: str) -> None:
        self.paper = paper

    def tasks(self, run: Run) -> Sequence[Task]:
        return batches_of_the_model(run)

    def load(self, run: Run, task: Task) -> Load:
        images, maps = len(task["images"]), len(run.methods) * len(run.targets)
        return Load(run.config.model, task["seed"], images, maps, images * (1 + maps))

    def compute(self, run: Run, task: Task) -> Output:
        model = network_of(run, task)
        batch = run.batch(model, task["images"])
        units = logits_of(run, model, batch, run.targets)
        with before_last_relu(model):
            maps = run.explain(model, batch.x, units).maps
        return self.compared(run, task, model, batch, units, maps)

    def compared(
        self, run: Run, task: Task, model: Model, batch: Batch, meant: Sequence[list[int]], maps: Sequence[Maps]
    ) -> Output:
        """Correlate the maps of each two logits of an image; the largest logit may be one of the others.

        meant: the logits of each target, one for each image of the batch.
        """
        seed = task["seed"]
        output = Output(tables={"logits": [], "table": []})
        for i, image in enumerate(batch.names):
            where, units = {"seed": seed, "image": image}, [each[i] for each in meant]
            output.tables["logits"] += [
                {**where, "target": str(target), "class": model.class_name(unit), "again": unit in units[:position]}
                for position, (target, unit) in enumerate(zip(run.targets, units, strict=True))
            ]
            different = {unit: position for position, unit in reversed(list(enumerate(units)))}  # its first position
            for a, b in combinations(sorted(different.values()), 2):
                for method in run.methods:
                    correlation = metrics.pearson(maps[a][method][i : i + 1], maps[b][method][i : i + 1]).item()
                    pair = f"{run.targets[a]}, {run.targets[b]}"
                    row = {**where, "method": method, "logits": pair, "correlation": correlation}
                    output.tables["table"].append(row | {"weights": model.weights})
            if seed == run.seeds[0] and task["images"][0] + i < 4:
                output.arrays[f"{image}/pixels"] = batch.pixels[i].numpy()
                for target, each in zip(run.targets, maps, strict=True):
                    output.arrays |= {f"{image}/{target}/{method}": each[method][i].numpy() for method in run.methods}
        return output

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        drawn = [name for name in images_of(results) if f"{name}/pixels" in results.arrays]
        names = ["figure", *(f"figure_{image}".replace("/", "_") for image in drawn[1:])]
        return {name: self.page(results, image) for name, image in zip(names, drawn, strict=True)}

    def page(self, results: Results, image: str, scaling: str = "midgray") -> Figure:
        """Draw the maps of an image, one row for each method."""
        show, words = display.scaling(scaling)
        where = {"image": image, "seed": results.config.seed}
        targets = results.rows("logits", again=False, **where)
        rows: list[PanelRow] = []
        for method in results.config.methods:
            pixels = None if rows else display.picture(results.arrays[f"{image}/pixels"])
            panels = [Panel(pixels, "" if rows else f"Input: {image}")]
            for each in targets:
                title = f"max: {each['class']}" if each["target"] == "max" else each["class"]
                map_ = results.arrays[f"{image}/{each['target']}/{method}"]
                panels.append(Panel(show(map_, results.arrays[f"{image}/pixels"]), "" if rows else title))
            values = [row["correlation"] for row in results.rows(method=method, image=image)]
            panels[1].note = f"correlation {mean_and_spread(values)}" if values else ""
            rows.append(PanelRow(panels, LABELS.get(method, method)))
        seeds = len({row["seed"] for row in results.rows()})
        caption = [
            weights_words(results) + f"; maps{BEFORE * rectified(results.config.model)}: {words}",
            "Under each row: correlation of the maps of two logits, mean ± standard deviation over the pairs"
            + (f" and {seeds} seeds" if seeds > 1 else ""),
            "A logit that is also the largest is shown once" if results.rows("logits", again=True, **where) else "",
            *self.notes(results),
            wanted(results, [self.paper]),
        ]
        return panel_grid(rows, caption)

    def notes(self, results: Results) -> list[str]:
        """Return more sentences for the caption."""
        return []
