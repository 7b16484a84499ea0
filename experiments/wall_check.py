"""Measure the activity mu of maps in the rows of an image that the network provably cannot see.

    mu = ||map[dead rows]||_2 / ||map||_2          taimeskhanov2024, Eq. (7)

The check takes any network with a wall (`model=vgg16_masked`, or another one with `model.wall.rows=`), any methods, including
a user's own (`+methods.mine._target_=my.module.MyMethod`), and any images. It verifies the wall on each image: the gradient
of the logits is exactly 0 in the dead rows, and blanking them changes no logit.
mu does not depend on the scale of a map, but it does on a shift. So it is measured twice: on the map as it is, and on the map
with its minimum shifted to 0 (min-max), as for the numbers of taimeskhanov2024. Signed maps are not shifted. A map of zeros
has no mu.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vis import metrics
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import PAGE_WIDTH, Panel, PanelRow, panel_grid, plot, styled, wrapped
from vis.models import Model
from vis.models.wall import gradient_by_row
from vis.oldclaims import Claim, Criterion, mean, spread
from vis.runner.experiment import (
    Batch,
    Experiment,
    Load,
    Run,
    Task,
    map_words,
    method_class,
    method_title,
    method_words,
)
from vis.runner.remarks import plural, remarks, sentences
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows, numbers
from vis.system.device import local_convolutions

UNSEEN = "no logit depends on the rows {}..{} of the image"
BLIND = "{}: the map is 0 where the network cannot see"
WALL = "The wall"
NOTHING = Criterion("each exactly 0", lambda values: all(v == 0 for v in values))
BATCH = 4


class WallCheck(Experiment):
    """Measure mu of any method.

    samples: number of images of each dataset whose maps are stored. datasets: {name: config node}; {}: the run's own dataset.
    """

    metrics = ("mu", "mu_minmax")
    series = "method"

    def __init__(self, samples: int, datasets: Mapping[str, Mapping[str, Any]] = {}) -> None:
        self.samples = samples
        self.datasets = datasets

    def _runs(self, run: Run) -> dict[str, Run]:
        return {name: run.on(node) for name, node in self.datasets.items() if node} or {"": run}

    def tasks(self, run: Run) -> Sequence[Task]:
        seeds = run.seeds[:1] if run.config.model.weights else run.seeds
        return [
            {"seed": seed, "dataset": name, "images": images}
            for seed in seeds
            for name, on in self._runs(run).items()
            for images in run.batches(len(on.dataset), BATCH)
        ]

    def load(self, run: Run, task: Task) -> Load:
        kept = sum(i < self.samples for i in task["images"])
        count = len(run.methods)
        return Load(run.config.model, task["seed"], len(task["images"]), 4 + run.passes + count, kept * (1 + count))

    @local_convolutions()
    def compute(self, run: Run, task: Task) -> Output:
        name, seed = task["dataset"], task["seed"]
        model = run.model(seed=seed)
        if model.dead_rows is None:
            raise UserError(
                f"{model.name} has no wall: it sees the whole image. Give model.wall.rows=... (the number of rows of the last "
                "feature map that it reads), or take model=vgg16_masked or cnn_masked"
            )
        on = self._runs(run)[name]
        batch = on.batch(model, task["images"])
        units = run.units_of(model, run.targets[0], batch.names)
        (maps,), logits = run.explain(model, batch.x, [units])
        classes = units or logits.argmax(1).tolist()
        wall = self._wall(model, batch, logits)
        output = Output(tables={"table": [], "wall": []})
        for i, image in enumerate(batch.names):
            where = {"seed": seed, "dataset": name, "image": image}
            output.tables["wall"].append(where | {key: values[i] for key, values in wall.items()})
            kept = task["images"][i] < self.samples and seed == run.seeds[0]
            if kept:
                output.arrays[f"{name}/{image}/pixels"] = batch.pixels[i].numpy()
            for method, values in maps.items():
                if kept:
                    output.arrays[f"{name}/{image}/{method}"] = values[i].numpy()
        notes = remarks(run.methods, maps, model.net, batch.x, run.config)
        drops = {m: self._drop(on, model, batch, values, logits, classes) for m, values in maps.items()}
        for method, values in maps.items():
            low = values.amin((1, 2, 3), keepdim=True)
            mu, shifted = (metrics.unseen_activity(m, model.dead_rows).tolist() for m in (values, values - low))
            if low.min() < 0:  # a shift would turn the zeros of a signed map into activity
                shifted = mu
            for i, image in enumerate(batch.names):
                row = {"seed": seed, "dataset": name, "image": image, "method": method}
                row |= {"class": model.class_name(classes[i]), "mu": mu[i], "mu_minmax": shifted[i]}
                output.tables["table"].append(row | {"drop": drops[method][i], "note": notes[method][i]})
        if task["images"][0] == 0:
            output.tables["network"] = [
                {
                    "seed": seed,
                    "dataset": name,
                    "weights": model.weights,
                    "rows": list(model.dead_rows),
                    "height": model.input_size[0],
                    "standin": model.standin,
                    "trained": model.trained,
                    "data": on.dataset.origin,
                }
            ]
        return output

    def _wall(self, model: Model, batch: Batch, logits: Tensor) -> dict[str, list[float]]:
        """Return, by image, the largest gradients in and just above the dead rows, and the effects of blanking on the logits."""
        assert model.dead_rows is not None
        first, last = model.dead_rows
        by_row = torch.stack([gradient_by_row(model.net, x[None]) for x in batch.x]).cpu()
        below, above = batch.x.clone(), batch.x.clone()
        below[:, :, first : last + 1] = 0
        above[:, :, :first] = 0
        with torch.no_grad():
            below, above = model.net(below).cpu(), model.net(above).cpu()
        return {
            "dead_gradient": by_row[:, first : last + 1].amax(1).tolist(),
            "live_gradient": by_row[:, first - 1].tolist(),
            "blank_dead": (below - logits).abs().amax(1).tolist(),
            "blank_live_changes_class": (above.argmax(1) != logits.argmax(1)).float().tolist(),
        }

    def _drop(
        self, run: Run, model: Model, batch: Batch, maps: Tensor, logits: Tensor, classes: list[int]
    ) -> list[float | None]:
        """Return the average drop of each image when it is masked by its min-max scaled map; None for signed maps."""
        if maps.shape[1] != 1 or maps.amin() < 0:
            return [None] * len(maps)
        low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
        mask = (maps - low) / torch.where(high > low, high - low, 1)
        x = run.preprocess(model)(batch.pixels * mask).to(batch.x)
        with torch.no_grad():
            masked = model.net(x).cpu()
        chosen = torch.arange(len(maps)), torch.tensor(classes)
        p, p_masked = (values.double().softmax(1)[chosen] for values in (logits, masked))
        return metrics.average_drop(p, p_masked).tolist()

    # --- from what is stored ------------------------------------------------------------------------------------------

    def wall_claims(self, results: Results) -> list[Claim]:
        """Return the claims that the network cannot see the dead rows."""
        first, last = results.rows("network")[0]["rows"]
        sentence, wall = UNSEEN.format(first, last), results.rows("wall")
        gradient, blanked = [row["dead_gradient"] for row in wall], [row["blank_dead"] for row in wall]
        return [
            Claim(
                "wall_gradient",
                sentence,
                source=WALL,
                metric="largest |gradient| in these rows",
                criterion=NOTHING,
                values=gradient,
            ),
            Claim(
                "wall_blank",
                sentence,
                source=WALL,
                metric="change of the logits when they are blanked",
                criterion=NOTHING,
                values=blanked,
            ),
        ]

    def claims(self, results: Results) -> list[Claim]:
        found = self.wall_claims(results)
        for method in results.config.methods:
            mu, zeros = activity(results, method)
            sentence = BLIND.format(method_title(results.config, method))
            reason = "" if mu else f"all {zeros} maps are 0"
            found.append(
                Claim(
                    f"{method}_blind",
                    sentence,
                    source="Eq. 7",
                    metric="mu",
                    criterion=NOTHING,
                    values=mu,
                    reason=reason,
                )
            )
        return found

    def summaries(self, results: Results) -> dict[str, Rows]:
        rows: Rows = []
        for dataset in datasets(results):
            for method in results.config.methods:
                row: dict[str, Any] = {"dataset": dataset, "method": method_title(results.config, method)}
                for column in ("mu", "mu_minmax"):
                    values, zeros = activity(results, method, column, dataset)
                    hundred = [100 * v for v in values]
                    row |= {
                        f"{column} x 100": mean(hundred) if hundred else None,
                        f"{column} std": spread(hundred) if len(hundred) > 1 else None,
                    }
                drops = numbers(results.rows(dataset=dataset, method=method), "drop")
                rows.append(
                    row | {"images": len(values), "zero maps": zeros, "average drop": mean(drops) if drops else None}
                )
        return {"summary": rows}

    def paper(self, method: str, dataset: str) -> tuple[float, float] | None:
        """Return the paper's mu x 100 and its standard deviation, for the figure."""
        return None

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        return {"figure": self._bars(results)} | {
            f"maps_{name}" if name else "maps": self.gallery(results, name) for name in datasets(results)
        }

    def _bars(self, results: Results) -> Figure:
        """Draw mu x 100 of each method as a bar for each dataset, and the paper's value as a ring."""
        names, methods = datasets(results), list(results.config.methods)
        network = results.rows("network")[0]
        first, last = network["rows"]
        constant = 100 * math.sqrt((last - first + 1) / network["height"])
        zeros = sum(activity(results, method, dataset=name)[1] for method in methods for name in names)
        data = dict.fromkeys(row["data"] for row in results.rows("network"))
        caption = [
            f"Activity mu x 100 of the maps in the rows {first}..{last}, which the network cannot see: mean and standard "
            f"deviation over {plural(len(results.rows('wall')), 'image')}; maps without a sign are min-max scaled",
            f"Dashed: mu of a constant map, {constant:.1f}",
            "Rings: the paper's values" if any(self.paper(m, n) for m in methods for n in names) else "",
            f"Left out, since a map of zeros has no mu: {plural(zeros, 'map')}" if zeros else "",
            *method_words(results.config),
            *sentences(results.rows(), results.config),
            f"{results.config.model.name}, {network['weights']}; {'; '.join(data)}",
        ]
        figure, (axes,) = plot(PAGE_WIDTH, 2.4, caption)
        with styled():
            width = 0.8 / len(names)
            for j, name in enumerate(names):
                for i, method in enumerate(methods):
                    values = [100 * v for v in activity(results, method, "mu_minmax", name)[0]]
                    x = i + (j - (len(names) - 1) / 2) * width
                    if values:
                        error = spread(values) if len(values) > 1 else 0
                        axes.bar(x, mean(values), 0.92 * width, yerr=error, color=f"C{j}", ecolor="0.4", capsize=2,
                                 error_kw={"linewidth": 0.8}, label=name if name and i == 0 else None)  # fmt: skip
                        axes.text(
                            x, mean(values) + error + 1, f"{mean(values):.1f}", ha="center", va="bottom", fontsize=6
                        )
                    if value := self.paper(method, name):
                        axes.plot(x, value[0], "o", mfc="none", color="black", markersize=4)
            axes.axhline(constant, color="0.5", linewidth=0.7, linestyle="--", zorder=0)
            labels = [method_title(results.config, method) for method in methods]
            turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(labels) > 7 else {}
            axes.set_xticks(range(len(labels)), labels, **turned)
            axes.set_ylabel("mu x 100")
            if any(names):
                axes.legend()
        return figure

    def gallery(self, results: Results, dataset: str) -> Figure:
        """Draw a row for each image: the image, and each method's map over it, with the dead zone hatched."""
        config, network = results.config, results.rows("network")[0]
        dead = tuple(network["rows"])
        named = dict.fromkeys(row["image"] for row in results.rows(dataset=dataset))
        images = [image for image in named if f"{dataset}/{image}/pixels" in results.arrays]
        rows: list[PanelRow] = []
        for image in images:
            pixels = results.arrays[f"{dataset}/{image}/pixels"]
            cells = {row["method"]: row for row in results.rows(dataset=dataset, image=image)}
            label = next(iter(cells.values()))["class"]
            panels = [Panel(display.picture(pixels), "" if rows else "Input", str(label), dead)]
            for method in results.config.methods:
                show, _ = display.scaling(method_class(results.config, method).display)
                map_, mu = results.arrays[f"{dataset}/{image}/{method}"], cells[method]["mu_minmax"]
                note = "zeros" if math.isnan(mu) else f"{100 * mu:.1f}"
                heading = "" if rows else method_title(results.config, method)
                panels.append(Panel(show(map_, pixels), heading, note, dead))
            rows.append(PanelRow(panels))
        caption = [
            f"Under each map: mu x 100, its activity in the rows {dead[0]}..{dead[1]} (hatched), which the network cannot see",
            *map_words(config),
            f"{config.model.name}, {network['weights']}",
        ]
        return panel_grid(wrapped(rows), caption)


def datasets(results: Results) -> list[str]:
    """Return the names of the datasets, in their order."""
    return list(dict.fromkeys(row["dataset"] for row in results.rows()))


def activity(results: Results, method: str, column: str = "mu", dataset: str | None = None) -> tuple[list[float], int]:
    """Return mu of a method's maps, and the number of maps of zeros, which have none."""
    rows = results.rows(method=method) if dataset is None else results.rows(method=method, dataset=dataset)
    values = numbers(rows, column)
    return values, len(rows) - len(values)
