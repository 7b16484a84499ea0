"""nie2018, the galleries of the supplement: three methods (rows) for three logits (columns) of one image.

The number under a row is the correlation of a method's maps of two logits. Galleries draw; `figure2` and `figure7` judge.
"""

from collections.abc import Sequence
from itertools import combinations

from matplotlib.figure import Figure

from experiments.nie2018.trained import LABELS, batches_of_the_model, images_of, network_of, wanted, weights_words
from vis import metrics
from vis.claims import Claim, mean_and_spread
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.models import Model
from vis.runner.experiment import Batch, Experiment, Load, Run, Task
from vis.runner.explainer import Explained
from vis.store.run_folder import Output, Results


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
        units = [run.units_of(model, target, batch.names) for target in run.targets]
        return self.compared(run, task, model, batch, run.explain(model, batch.x, units))

    def compared(self, run: Run, task: Task, model: Model, batch: Batch, explained: Explained) -> Output:
        """Correlate the maps of each two logits of an image; the largest logit may be one of the others."""
        seed, (maps, logits) = task["seed"], explained
        meant = [run.units_of(model, target, batch.names) or logits.argmax(1).tolist() for target in run.targets]
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
            if seed == run.seeds[0] and task["images"][0] + i < 6:
                output.arrays[f"{image}/pixels"] = batch.pixels[i].numpy()
                for target, each in zip(run.targets, maps, strict=True):
                    output.arrays |= {f"{image}/{target}/{method}": each[method][i].numpy() for method in run.methods}
        return output

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        figures: dict[str, Figure] = {}
        for image in [name for name in images_of(results) if f"{name}/pixels" in results.arrays]:
            where = {"image": image, "seed": results.config.seed}
            targets = results.rows("logits", again=False, **where)
            rows: list[PanelRow] = []
            for method in results.config.methods:
                pixels = None if rows else display.picture(results.arrays[f"{image}/pixels"])
                panels = [Panel(pixels, "" if rows else f"Input: {image}")]
                for each in targets:
                    title = f"max: {each['class']}" if each["target"] == "max" else each["class"]
                    map_ = display.minmax(results.arrays[f"{image}/{each['target']}/{method}"])
                    panels.append(Panel(map_, "" if rows else title))
                values = [row["correlation"] for row in results.rows(method=method, image=image)]
                panels[1].note = f"correlation {mean_and_spread(values)}" if values else ""
                rows.append(PanelRow(panels, LABELS.get(method, method)))
            seeds = len({row["seed"] for row in results.rows()})
            caption = [
                weights_words(results) + f"; maps: {display.scaling('minmax')[1]}",
                "Under each row: correlation of the maps of two logits, mean ± standard deviation over the pairs"
                + (f" and {seeds} seeds" if seeds > 1 else ""),
                "A logit that is also the largest is shown once" if results.rows("logits", again=True, **where) else "",
                wanted(results, [self.paper]),
            ]
            figures["figure" if not figures else f"figure_{image}".replace("/", "_")] = panel_grid(rows, caption)
        return figures
