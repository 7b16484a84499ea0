"""Measure the activity mu of maps in the rows of an image that the network provably cannot see.

    mu = ||map[dead rows]||_2 / ||map||_2          taimeskhanov2024, Eq. (7)

The check takes any network with a wall (`model=vgg16_masked`, or another one with `model.wall.rows=`), any methods, including
a user's own (`+methods.mine._target_=my.module.MyMethod`), and any images. It verifies the wall on each image: the gradient
of the logits is exactly 0 in the dead rows, and blanking them changes no logit. There are two controls: a constant map, and the
map of the same class by the same network without its wall.

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
from vis.claims import Claim, Column, Compared, each_above, exactly, interval, mean, spread
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import PAGE_WIDTH, Panel, PanelRow, panel_grid, plot, styled, wrapped
from vis.methods import LIME, PDA, RISE, GradCAM, MeaningfulPerturbation, Occlusion, PDAFast
from vis.methods.forward import Forward
from vis.models import Model
from vis.models.wall import gradient_by_row
from vis.runner.experiment import Batch, Experiment, Load, Run, Task, method_class, method_title, method_words
from vis.runner.remarks import plural, remarks, sentences
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows, numbers
from vis.system.device import local_convolutions

WIDE = (Occlusion, PDA, PDAFast, LIME, RISE, MeaningfulPerturbation)  # their windows and cells reach across the wall
HIGHLIGHTED = 0.1  # of a constant map's mu: what counts as highlighting, our choice
IMAGE = ("dataset", "image")
BATCH = 4


def walled(run: Run, seed: int | None = None) -> Model:
    """Return the run's model. Raises UserError if it has no wall."""
    model = run.model(seed=seed)
    if model.dead_rows is None:
        raise UserError(
            f"{model.name} has no wall, it sees the whole image: add model.wall.rows=... (the rows of the last feature map "
            "that it reads), or take model=vgg16_masked or cnn_masked"
        )
    return model


def unwalled(run: Run, model: Model, x: Tensor, seed: int | None = None, **changes: Any) -> Model:
    """Return the run's model without its wall, with other changes to its config."""
    rows = None
    if hasattr(model.net, "wall_rows"):  # a network made for a wall: all rows of its last feature map are live
        (layer,) = GradCAM().layers(model.net, x[:1])
        with Forward(model.net, x[:1], [layer]) as forward:
            rows = forward.layers[layer].shape[2]
    return run.model(seed=seed, wall={"rows": rows}, **changes)


class WallCheck(Experiment):
    """Measure mu of any method.

    samples: number of images of each dataset whose maps are stored. datasets: {name: config node}; {}: the run's own dataset.
    unwalled: changes to the model's config for the control without a wall, such as other weights; None: no such control.
    """

    metrics = ("mu", "mu_minmax")
    series = "method"
    not_drawn: Sequence[str] = ()  # methods that are measured but not in the pictures

    def __init__(
        self,
        samples: int,
        datasets: Mapping[str, Mapping[str, Any]] = {},
        unwalled: Mapping[str, Any] | None = None,
    ) -> None:
        self.samples, self.datasets, self.unwalled = samples, datasets, unwalled
        self._models: tuple[int, Model, Model | None] | None = None

    def _runs(self, run: Run) -> dict[str, Run]:
        return {name: run.on(node) for name, node in self.datasets.items() if node} or {"": run}

    def _pair(self, run: Run, seed: int) -> tuple[Model, Model | None]:
        """Return the network of a seed and the one without a wall, which are both kept."""
        if self._models is None or self._models[0] != seed:
            self._models = None
            model, twin = walled(run, seed), None
            if self.unwalled is not None:
                x = torch.zeros(1, model.channels, *model.input_size, device=run.device, dtype=run.dtype)
                twin = unwalled(run, model, x, seed, **self.unwalled)
            self._models = (seed, model, twin)
        return self._models[1:]

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
        return Load(
            run.config.model, task["seed"], len(task["images"]), 4 + 2 * (run.passes + count), kept * (1 + count)
        )

    @local_convolutions()
    def compute(self, run: Run, task: Task) -> Output:
        name, seed = task["dataset"], task["seed"]
        model, twin = self._pair(run, seed)
        assert model.dead_rows is not None
        on = self._runs(run)[name]
        batch = on.batch(model, task["images"])
        units = run.units_of(model, run.targets[0], batch.names)
        (maps,), logits = run.explain(model, batch.x, [units])
        classes: list[int] = units or logits.argmax(1).tolist()
        controls = run.explain(twin, batch.x, [classes]).maps[0] if twin else {}
        wall = self._wall(model, batch, logits)
        output = Output(tables={"table": [], "wall": []})
        shown = on.dataset.classes or () if model.trained else ()
        names = [shown[c] if len(shown) == model.num_classes else model.class_name(c) for c in classes]
        labels = ["" if label is None or label >= len(shown) else shown[label] for label in batch.labels]
        for i, image in enumerate(batch.names):
            output.tables["wall"].append(
                {"seed": seed, "dataset": name, "image": image} | {key: values[i] for key, values in wall.items()}
            )
            if task["images"][i] < self.samples and seed == run.seeds[0]:
                kept = {"pixels": batch.pixels[i]} | {method: values[i] for method, values in maps.items()}
                output.arrays |= {f"{name}/{image}/{key}": values.numpy() for key, values in kept.items()}
        notes = remarks(run.methods, maps, model.net, batch.x, run.config)
        (constant,) = metrics.unseen_activity(torch.ones(1, 1, *model.input_size), model.dead_rows).tolist()
        for method, values in maps.items():
            mu, shifted = _activities(values, model.dead_rows)
            control = _activities(controls[method], model.dead_rows)[1] if twin else [None] * len(mu)
            drops = self._drop(on, model, batch, values, logits, classes)
            for i, image in enumerate(batch.names):
                row = {
                    "seed": seed,
                    "dataset": name,
                    "image": image,
                    "method": method,
                    "class": names[i],
                    "label": labels[i],
                }
                row |= {"mu": mu[i], "mu_minmax": shifted[i], "mu_unwalled": control[i]}
                over = (
                    shifted[i] or mu[i] or 0.0
                ) / constant  # a shift makes a constant map 0; a map of zeros highlights nothing
                row |= {"over constant": over, "highlighted": float(over > HIGHLIGHTED)}
                row["unwalled over constant"] = (control[i] or 0.0) / constant if twin else None
                output.tables["table"].append(row | {"drop": drops[i], "note": notes[method][i]})
        if task["images"][0] == 0:
            network = {
                "seed": seed,
                "dataset": name,
                "network": model.name,
                "weights": model.weights,
                "trained": model.trained,
            }
            network |= {"standin": model.standin, "rows": list(model.dead_rows), "height": model.input_size[0]}
            network |= {"constant": constant, "data": on.dataset.origin, "images": len(on.dataset)}
            output.tables["network"] = [network | {"unwalled": twin.weights if twin else None}]
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
            "blank_dead_changes_class": (below.argmax(1) != logits.argmax(1)).float().tolist(),
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

    def claims(self, results: Results) -> list[Claim]:
        rows, (first, last) = results.rows("wall"), results.rows("network")[0]["rows"]
        above = Column(rows, "live_gradient", IMAGE)
        proof = [
            Compared("largest gradient of the logits in these rows", Column(rows, "dead_gradient", IMAGE), exactly(0),
                     null=above, control="the row above"),
            Compared("change of the logits when they are blanked", Column(rows, "blank_dead", IMAGE), exactly(0),
                     null=1.0, control="a network that sees them"),
            Compared("largest gradient in the row above", above, each_above(0), null=0.0, control="the dead rows"),
        ]  # fmt: skip
        sentence = f"No logit depends on the rows {first} to {last} of the image; the row above them matters."
        return [Claim("wall", proof, sentence=sentence, source="The project")]

    def summaries(self, results: Results) -> dict[str, Rows]:
        rows: Rows = []
        for dataset in datasets(results):
            for method in results.config.methods:
                row: dict[str, Any] = {"dataset": dataset, "method": method_title(results.config, method)}
                for column in ("mu", "mu_minmax", "mu_unwalled"):
                    values = [100 * v for v in numbers(results.rows(dataset=dataset, method=method), column)]
                    row |= {
                        f"{column} x 100": mean(values) if values else None,
                        f"{column} std": spread(values) if len(values) > 1 else None,
                    }
                some = results.rows(dataset=dataset, method=method)
                drops = numbers(some, "drop")
                row |= {"constant map x 100": 100 * results.rows("network")[0]["constant"], "answer": _answer(some)}
                row |= {"images": len(some), "zero maps": sum(r["mu"] is None for r in some)}
                rows.append(row | {"average drop": mean(drops) if drops else None})
        return {"summary": rows}

    def paper(self, method: str, dataset: str) -> tuple[float, float] | None:
        """Return the paper's mu x 100 and its standard deviation, for the figure."""
        return None

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        return {"figure": self._bars(results)} | {
            f"maps_{name}" if name else "maps": self.gallery(results, name) for name in datasets(results)
        }

    def _drawn(self, results: Results) -> list[str]:
        return [str(method) for method in results.config.methods if method not in self.not_drawn]

    def _bars(self, results: Results) -> Figure:
        """Draw mu x 100 of each method as a bar for each dataset, and the paper's value as a ring."""
        names, methods = datasets(results), self._drawn(results)
        network = results.rows("network")[0]
        first, last = network["rows"]
        constant = 100 * network["constant"]
        zeros = sum(row["mu"] is None for row in results.rows())
        wide = [method_title(results.config, m) for m in methods if issubclass(method_class(results.config, m), WIDE)]
        data = dict.fromkeys(row["data"] for row in results.rows("network"))
        caption = [
            f"Activity mu x 100 of the maps in the rows {first}..{last}, which the network cannot see: mean and standard "
            f"deviation over {plural(len(results.rows('wall')), 'image')}; maps without a sign are min-max scaled",
            f"Dashed: mu of a constant map, {constant:.1f}",
            f"Crosses: the same maps of the network without its wall, {network['unwalled']}"
            if network["unwalled"]
            else "",
            f"Windows and cells of {', '.join(wide)} reach across the wall: some of their activity below it is due to that"
            if wide
            else "",
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
                    rows = results.rows(method=method, dataset=name)
                    values, control = ([100 * v for v in numbers(rows, key)] for key in ("mu_minmax", "mu_unwalled"))
                    x = i + (j - (len(names) - 1) / 2) * width
                    if values:
                        error = spread(values) if len(values) > 1 else 0
                        axes.bar(x, mean(values), 0.92 * width, yerr=error, color=f"C{j}", ecolor="0.4", capsize=2,
                                 error_kw={"linewidth": 0.8}, label=name if name and i == 0 else None)  # fmt: skip
                        axes.text(
                            x, mean(values) + error + 1, f"{mean(values):.1f}", ha="center", va="bottom", fontsize=6
                        )
                    if control:
                        axes.plot(x, mean(control), "x", color="0.2", markersize=4, markeredgewidth=0.8)
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
            any_ = next(iter(cells.values()))
            label = f"predicted: {any_['class']}" + (f"; true: {any_['label']}" if any_["label"] else "")
            panels = [Panel(display.picture(pixels), "" if rows else "Input", label, dead)]
            for method in self._drawn(results):
                show, _ = display.scaling(method_class(results.config, method).display)
                map_, mu = results.arrays[f"{dataset}/{image}/{method}"], cells[method]["mu_minmax"]
                note = "zeros" if mu is None else f"{100 * mu:.1f}"
                heading = "" if rows else method_title(results.config, method)
                panels.append(Panel(show(map_, pixels), heading, note, dead))
            rows.append(PanelRow(panels))
        caption = [
            f"Under each map: mu x 100, its activity in the rows {dead[0]}..{dead[1]} (hatched), which the network cannot see",
            *display.sentences(
                {method_title(config, m): method_class(config, m).display for m in self._drawn(results)}
            ),
            *method_words(config),
            f"{config.model.name}, {network['weights']}",
        ]
        return panel_grid(wrapped(rows), caption)


def datasets(results: Results) -> list[str]:
    """Return the names of the datasets, in their order."""
    return list(dict.fromkeys(row["dataset"] for row in results.rows()))


def _activities(maps: Tensor, dead: tuple[int, int]) -> tuple[list[float | None], list[float | None]]:
    """Return mu of maps as they are, and with their minimum shifted to 0; None for a map of zeros."""
    low = maps.amin((1, 2, 3), keepdim=True)
    shifted = maps if low.min() < 0 else maps - low  # a shift would make a signed map's 0 an activity
    mu, mu_minmax = (
        [None if math.isnan(v) else v for v in metrics.unseen_activity(m, dead).tolist()] for m in (maps, shifted)
    )
    return mu, mu_minmax


def _answer(rows: Rows) -> str:
    """Say what a method's maps do behind the wall: `blind`, `sees through`, or `little` in between."""
    values = [row["over constant"] for row in rows]
    if not any(values):
        return "blind"
    return "sees through" if interval(values)[0] > HIGHLIGHTED else "little"
