"""Measure the activity mu of maps in the rows of an image that the network provably cannot see.

    mu = ||map[dead rows]||_2 / ||map||_2          taimeskhanov2024, Eq. (7)

The check takes any network with a wall (`model=vgg16_masked`, or another one with `model.wall.rows=`), any methods, including
a user's own (`+methods.mine._target_=my.module.MyMethod`), and any images. It verifies the wall on each image: the gradient
of the logits is exactly 0 in the dead rows, and blanking them changes no logit. There are two controls: a constant map, and the
map of the same class by the same network without its wall.

mu does not depend on the scale of a map, but it does on a shift. So it is measured twice: on the map as it is, and on the map
with its minimum shifted to 0 (min-max), as for the numbers of taimeskhanov2024. Signed maps are not shifted. A map of zeros
has no mu.

A network with a wall that it was not trained with no longer knows some images: `least` leaves out those whose class it gives
a smaller probability.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
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
from vis.runner.experiment import (
    Batch,
    Experiment,
    Load,
    Run,
    Task,
    method_class,
    method_scaling,
    method_title,
    method_words,
)
from vis.runner.explainer import Explainer
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
    convention: `paper` takes maps as they are, `table1` with their minimum shifted to 0 (min-max). least: the least probability
    of the explained class by which an image counts. limits: {method: number of images of each dataset, with those that do not
    count}, for expensive methods; these have the control on the first dataset only.
    """

    metrics = ("mu", "mu_minmax")
    series = "method"
    rings = "Rings: the paper's values"
    not_drawn: Sequence[str] = ()  # methods that are measured but not in the pictures

    def __init__(
        self,
        samples: int,
        datasets: Mapping[str, Mapping[str, Any]] = {},
        unwalled: Mapping[str, Any] | None = None,
        convention: str = "table1",
        least: float = 0.0,
        limits: Mapping[str, int] = {},
    ) -> None:
        self.samples, self.datasets, self.unwalled = samples, datasets, unwalled
        self.mu, self.least, self.limits = "mu_minmax" if convention == "table1" else "mu", least, limits
        self._models: tuple[int, Model, Model | None] | None = None
        self._explainers: dict[Any, Explainer] = {}

    def _runs(self, run: Run) -> dict[str, Run]:
        if run.config.image is not None:  # the user's own images, as they are
            return {"": run}
        return {name: run.on(_composed(node)) for name, node in self.datasets.items() if node} or {"": run}

    def _explained(
        self, run: Run, model: Model, batch: Batch, classes: list[int], numbers: list[int], limits: Mapping[str, int]
    ) -> tuple[dict[str, tuple[list[int], Tensor]], dict[str, list[str]]]:
        """Return {method: (places in the batch, maps)} and the remarks on the maps.

        numbers: of the images in the dataset; limits: {method: the first number that it leaves out}.
        """
        groups: dict[tuple[int, ...], list[str]] = {}
        for name in map(str, run.methods):
            places = tuple(i for i, n in enumerate(numbers) if n < limits.get(name, math.inf))
            groups.setdefault(places, []).append(name)
        found: dict[str, tuple[list[int], Tensor]] = {}
        notes: dict[str, list[str]] = {}
        for places, names in groups.items():
            if places:
                x = batch.x[list(places)]
                (maps,), _ = self._explainer(run, names).explain(model, x, [[classes[i] for i in places]])
                found |= {name: (list(places), values) for name, values in maps.items()}
                notes |= remarks({name: run.methods[name] for name in names}, maps, model.net, x, run.config)
        return {name: found[name] for name in run.methods if name in found}, notes

    def _explainer(self, run: Run, names: list[str]) -> Explainer:
        """Return an explainer with some of the run's methods."""
        key = (id(run), *names)
        if key not in self._explainers:
            config = copy.deepcopy(run.config)
            OmegaConf.set_struct(config, False)
            config.methods = {name: config.methods[name] for name in names}
            self._explainers[key] = Explainer(config, run.reader)
        return self._explainers[key]

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
        output = Output(tables={"table": [], "wall": [], "left_out": [], "network": []})
        (constant,) = metrics.unseen_activity(torch.ones(1, 1, *model.input_size), model.dead_rows).tolist()
        if task["images"][0] == 0:
            network = {"seed": seed, "dataset": name, "network": model.name, "weights": model.weights}
            network |= {"trained": model.trained, "standin": model.standin, "rows": list(model.dead_rows)}
            network |= {"height": model.input_size[0], "constant": constant, "data": on.dataset.origin}
            network |= {"images": len(on.dataset), "unwalled": twin.weights if twin else None}
            # Whether the wall is one of a global pooling, and the control has the same weights
            pooled = not hasattr(model.net, "apply_wall") and twin is not None and twin.sha256 == model.sha256
            output.tables["network"].append(network | {"pooled": pooled})
        batch, numbers, classes = self._counted(on, run, model, task["images"], output)
        if not numbers:
            return output
        found, notes = self._explained(on, model, batch, classes, numbers, self.limits)
        first = name == next(iter(self._runs(run)))
        few = self.limits if first else dict.fromkeys(self.limits, 0)
        controls = self._explained(on, twin, batch, classes, numbers, few)[0] if twin else {}
        with torch.no_grad():
            logits = model.net(batch.x).cpu()
        wall = self._wall(model, batch, logits)
        shown = on.dataset.classes or () if model.trained else ()
        names = [shown[c] if len(shown) == model.num_classes else model.class_name(c) for c in classes]
        labels = ["" if label is None or label >= len(shown) else shown[label] for label in batch.labels]
        for i, image in enumerate(batch.names):
            output.tables["wall"].append(
                {"seed": seed, "dataset": name, "image": image} | {key: values[i] for key, values in wall.items()}
            )
        for method, (places, values) in found.items():
            mu, shifted = _activities(values, model.dead_rows)
            activity = shifted if self.mu == "mu_minmax" else mu
            control: list[float | None] = [None] * len(mu)
            same = list(control)
            if method in controls:
                other = controls[method][1]
                control = _activities(other, model.dead_rows)[self.mu == "mu_minmax"]
                same = list(metrics.pearson(values, other).tolist())
            drops = self._drop(on, model, batch, values, logits, classes, places)
            for j, i in enumerate(places):
                if numbers[i] < self.samples and seed == run.seeds[0]:
                    kept = {"pixels": batch.pixels[i], method: values[j]}
                    output.arrays |= {f"{name}/{batch.names[i]}/{key}": each.numpy() for key, each in kept.items()}
                row = {"seed": seed, "dataset": name, "image": batch.names[i], "method": method}
                row |= {"class": names[i], "label": labels[i], "mu": mu[j], "mu_minmax": shifted[j]}
                over = (activity[j] or 0.0) / constant  # a map of zeros highlights nothing
                if self.mu == "mu_minmax":
                    over = over or (mu[j] or 0.0) / constant  # a shift makes a constant map 0
                row |= {"mu_unwalled": control[j], "over constant": over, "highlighted": float(over > HIGHLIGHTED)}
                row["unwalled over constant"] = (control[j] or 0.0) / constant if method in controls else None
                row |= {"r with unwalled": same[j], "drop": drops[j], "note": notes[method][j]}
                output.tables["table"].append(row)
        return output

    @torch.no_grad()
    def _counted(
        self, on: Run, run: Run, model: Model, images: list[int], output: Output
    ) -> tuple[Batch, list[int], list[int]]:
        """Return the images that count as a batch, their numbers and the classes to explain; list the others in `left_out`."""
        batch = on.batch(model, images)
        logits = model.net(batch.x)
        units = run.units_of(model, run.targets[0], batch.names)
        classes: list[int] = units or logits.argmax(1).tolist()
        p = logits.double().softmax(1)[torch.arange(len(images)), torch.tensor(classes, device=logits.device)].tolist()
        kept = [i for i in range(len(images)) if p[i] >= self.least]
        for i in set(range(len(images))) - set(kept):
            output.tables["left_out"].append(
                {"image": batch.names[i], "class": model.class_name(classes[i]), "p": p[i]}
            )
        some = Batch(batch.x[kept], batch.pixels[kept], [batch.names[i] for i in kept], [batch.labels[i] for i in kept])
        return some, [images[i] for i in kept], [classes[i] for i in kept]

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
        self, run: Run, model: Model, batch: Batch, maps: Tensor, logits: Tensor, classes: list[int], places: list[int]
    ) -> list[float | None]:
        """Return the average drop of images when they are masked by their min-max scaled maps; None for signed maps.

        places: of the maps' images in the batch.
        """
        if maps.shape[1] != 1 or maps.amin() < 0:
            return [None] * len(maps)
        low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
        mask = (maps - low) / torch.where(high > low, high - low, 1)
        x = run.preprocess(model)(batch.pixels[places] * mask).to(batch.x)
        with torch.no_grad():
            masked = model.net(x).cpu()
        chosen = torch.arange(len(maps)), torch.tensor([classes[i] for i in places])
        p, p_masked = (values.double().softmax(1)[chosen] for values in (logits[places], masked))
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
        return {"figure": self._bars(results)} | self.galleries(results, "maps")

    def galleries(self, results: Results, title: str) -> dict[str, Figure]:
        """Draw the gallery of each dataset of which maps are stored."""
        stored = [name for name in datasets(results) if any(key.startswith(f"{name}/") for key in results.arrays)]
        return {
            f"{title}_{name}" if name and len(stored) > 1 else title: self.gallery(results, name) for name in stored
        }

    def _count(self, results: Results) -> str:
        """Say how many images were measured, and which were left out."""
        network, counted = results.rows("network"), results.rows("wall")
        each = len({row["image"] for row in counted})
        text = plural(len(counted), "image")
        if self.least:
            text = f"{each} of {network[0]['images']} images, whose class has p = {self.least:g} or more with the wall"
        fewer = [
            f"{method_title(results.config, m)}: {count}"
            for m in self._drawn(results)
            if 0 < (count := len({row["image"] for row in results.rows(method=m)})) < each
        ]
        return text + f" ({', '.join(fewer)})" * bool(fewer)

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
        data = _words({row["dataset"]: row["data"] for row in results.rows("network")})
        hidden = [method_title(results.config, m) for m in results.config.methods if m in self.not_drawn]
        caption = [
            f"Activity mu x 100 of the maps in the rows {first}..{last}, which the network cannot see: mean and standard "
            f"deviation over {self._count(results)}",
            "Maps without a sign are min-max scaled" if self.mu == "mu_minmax" else "",
            f"Dashed: mu of a constant map, {constant:.1f}",
            f"Crosses: the same maps of the network without its wall, {network['unwalled']}"
            if network["unwalled"]
            else "",
            f"Windows and cells of {', '.join(wide)} reach across the wall: some of their activity below it is due to that"
            if wide
            else "",
            self.rings if any(self.paper(m, n) for m in methods for n in names) else "",
            f"Left out, since a map of zeros has no mu: {plural(zeros, 'map')}" if zeros else "",
            *(words for words in method_words(results.config) if not words.startswith(tuple(hidden))),
            *sentences([row for row in results.rows() if row["method"] in methods], results.config),
            f"{results.config.model.name}, {network['weights']}; {data}",
        ]
        figure, (axes,) = plot(PAGE_WIDTH, 2.4, caption)
        with styled():
            width = 0.8 / max(1, len(names))
            for j, name in enumerate(names):
                for i, method in enumerate(methods):
                    rows = results.rows(method=method, dataset=name)
                    values, control = ([100 * v for v in numbers(rows, key)] for key in (self.mu, "mu_unwalled"))
                    x = i + (j - (len(names) - 1) / 2) * width
                    if values:
                        error = spread(values) if len(values) > 1 else 0
                        axes.bar(x, mean(values), 0.92 * width, yerr=error, color=f"C{j}", ecolor="0.4", capsize=2,
                                 error_kw={"linewidth": 0.8}, label=name if name and i == 0 else None)  # fmt: skip
                        size = 6 if len(names) < 3 else 5
                        place = x, mean(values) + error + 1
                        axes.text(*place, f"{mean(values):.1f}", ha="center", va="bottom", fontsize=size)
                    if control:
                        axes.plot(x, mean(control), "x", color="0.2", markersize=4, markeredgewidth=0.8)
                    if value := self.paper(method, name):
                        axes.plot(x, value[0], "o", mfc="none", color="black", markersize=4)
            axes.axhline(constant, color="0.5", linewidth=0.7, linestyle="--", zorder=0)
            labels = [method_title(results.config, method) for method in methods]
            turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(labels) > 7 else {}
            axes.set_xticks(range(len(labels)), labels, **turned)
            axes.set_ylabel("mu x 100")
            axes.set_ylim(bottom=0)
            if any(names):
                axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(names))
        return figure

    def gallery(self, results: Results, dataset: str) -> Figure:
        """Draw a row for each image: the image, and each method's map over it, with the dead zone hatched."""
        config, network = results.config, results.rows("network")[0]
        dead = tuple(network["rows"])
        named = dict.fromkeys(row["image"] for row in results.rows(dataset=dataset))
        images = [image for image in named if f"{dataset}/{image}/pixels" in results.arrays]
        hidden = [method_title(config, m) for m in config.methods if m in self.not_drawn]
        rows: list[PanelRow] = []
        for image in images:
            pixels = results.arrays[f"{dataset}/{image}/pixels"]
            cells = {row["method"]: row for row in results.rows(dataset=dataset, image=image)}
            any_ = next(iter(cells.values()))
            label = f"predicted: {any_['class']}" + (f"; true: {any_['label']}" if any_["label"] else "")
            panels = [Panel(display.picture(pixels), "" if rows else "Input", label, dead)]
            for method in self._drawn(results):
                heading = "" if rows else method_title(results.config, method)
                if method not in cells:  # beyond the method's limit
                    panels.append(Panel(None, heading, "not measured"))
                    continue
                show, _ = display.scaling(method_scaling(results.config, method))
                map_, mu = results.arrays[f"{dataset}/{image}/{method}"], cells[method][self.mu]
                note = "zeros" if mu is None else f"{100 * mu:.1f}"
                panels.append(Panel(show(map_, pixels), heading, note, dead))
            rows.append(PanelRow(panels))
        caption = [
            f"Under each map: mu x 100, its activity in the rows {dead[0]}..{dead[1]} (hatched), which the network cannot see. "
            f"A constant map has {100 * network['constant']:.1f}",
            *display.sentences({method_title(config, m): method_scaling(config, m) for m in self._drawn(results)}),
            *(words for words in method_words(config) if not words.startswith(tuple(hidden))),
            f"{config.model.name}, {network['weights']}",
        ]
        return panel_grid(wrapped(rows), caption)


def _composed(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dataset's config node; a dataset inside it keeps only what its function takes."""
    own = ("preprocess", "resize", "limit")
    return {
        key: {k: v for k, v in value.items() if k not in own} if isinstance(value, Mapping) else value
        for key, value in node.items()
    }


def _words(data: Mapping[str, str]) -> str:
    """Return the origins of datasets; what composed ones have in common is said once."""
    heads, _, tails = zip(*(words.partition(": ") for words in data.values()), strict=True)
    if len(data) > 1 and len(set(tails)) == 1 and tails[0]:
        return "; ".join(f"{name}: {head}" for name, head in zip(data, heads, strict=True)) + f"; from {tails[0]}"
    return "; ".join(dict.fromkeys(data.values()))


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
    """Say what a method's maps do behind the wall: `blind`, `sees through`, or `little` in between; "" without maps."""
    values = [row["over constant"] for row in rows]
    if not values:
        return ""
    if not any(values):
        return "blind"
    return "sees through" if interval(values)[0] > HIGHLIGHTED else "little"
