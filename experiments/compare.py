"""Compare methods by numbers: whether they agree, whether the network uses the pixels that they mark, and what they cost.

For each image and method it measures deletion and insertion (Petsiuk et al. 2018; a blurred copy of the image replaces the
deleted pixels), participation ratio, total variation, correlation with the input, seconds and memory. For each pair of
methods it measures rank correlation, Pearson correlation, SIM and the Dice coefficient of the largest tenth of the pixels.
Pairs are compared by importance, the absolute value of a map summed over channels, since methods have maps of different kinds.
"""

import time
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torchvision.transforms.v2.functional import gaussian_blur

from vis import metrics
from vis.claims import Claim, mean, spread
from vis.figures import display
from vis.figures.layout import PAGE_WIDTH, Panel, PanelRow, panel_grid, plot, styled, wrapped
from vis.methods import explain_all
from vis.methods.forward import NotApplicable
from vis.metrics.deletion import curves
from vis.runner.experiment import Experiment, Load, Run, Task, method_scaling, method_title, method_words
from vis.runner.remarks import plural, remarks, sentences
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows, numbers
from vis.system.device import peak_memory_gb, reset_peak_memory, synchronise

AGREEMENT = {
    "spearman": metrics.spearman,
    "pearson": metrics.pearson,
    "sim": metrics.sim,
    "dice": lambda a, b: metrics.dice(metrics.largest(a, 0.1), metrics.largest(b, 0.1)),
}
COLUMNS = {
    "deletion": "area under the deletion curve, low is good",
    "insertion": "area under the insertion curve, high is good",
    "participation": "effective share of pixels that carry the map",
    "variation": "total variation over the sum of values",
    "pearson_input": "correlation with the input",
    "seconds": "seconds per image, forward pass included",
    "memory_gb": "additional peak memory, GB",
}


class Compare(Experiment):
    """Measure and compare methods.

    samples: number of images whose maps are stored. steps: number of steps of the deletion and insertion curves.
    """

    metrics = ("deletion", "insertion", "seconds")
    series = "method"

    def __init__(self, samples: int, steps: int) -> None:
        self.samples, self.steps = samples, steps

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed, "images": [i]} for seed in run.seeds for i in range(len(run.dataset))]

    def load(self, run: Run, task: Task) -> Load:
        count = len(run.methods)
        return Load(run.config.model, task["seed"], 1, run.passes + count * 2 * self.steps, 1 + count)

    def compute(self, run: Run, task: Task) -> Output:
        seed = task["seed"]
        model = run.model(seed=seed)
        batch = run.batch(model, task["images"])
        (image,) = batch.names
        units = run.units_of(model, run.targets[0], batch.names)
        with torch.no_grad():
            target = units or model.net(batch.x).argmax(1).tolist()
        side = 2 * (max(batch.x.shape[2:]) // 8) + 1
        blurred = gaussian_blur(batch.x, [side, side])
        output = Output(tables={"table": [], "agreement": [], "curves": []})
        where = {"seed": seed, "image": image}
        found: dict[str, torch.Tensor] = {}
        for name, method in run.methods.items():
            try:
                run.explainer.prepare(name, model, batch.x, [target])
                reset_peak_memory(run.device)
                before, began = peak_memory_gb(run.device), time.perf_counter()
                (maps,), _ = explain_all({name: method}, model.net, batch.x, [target], run.preprocess(model))
            except NotApplicable as error:
                output.tables.setdefault("left_out", []).append({**where, "method": name, "why": str(error)})
                continue
            values = found[name] = maps[name].detach()
            synchronise(run.device)
            seconds, memory = time.perf_counter() - began, peak_memory_gb(run.device) - before
            both = curves(model.net, batch.x, values, target, blurred, self.steps)
            row: dict[str, Any] = {**where, "method": name, "class": model.class_name(target[0])}
            row |= {"deletion": both.deletion_auc.item(), "insertion": both.insertion_auc.item()}
            row |= {
                "participation": metrics.participation_ratio(values).item(),
                "variation": metrics.total_variation(values).item(),
            }
            row |= {"pearson_input": metrics.pearson(values.expand_as(batch.x), batch.x).item()}
            output.tables["table"].append(row | {"seconds": seconds, "memory_gb": memory, "weights": model.weights})
            output.tables["curves"].append(
                {
                    **where,
                    "method": name,
                    "deletion": both.deletion[0].tolist(),
                    "insertion": both.insertion[0].tolist(),
                }
            )
            if task["images"][0] < self.samples and seed == run.seeds[0]:
                output.arrays[f"{image}/pixels"] = batch.pixels[0].numpy()
                output.arrays[f"{image}/{name}"] = values[0].cpu().numpy()
        notes = remarks(run.methods, found, model.net, batch.x, run.config)
        for row in output.tables["table"]:
            row["note"] = notes[row["method"]][0]
        run.explainer.warn_of_silent_maps(model, batch)
        importance = {name: values.abs().sum(1, keepdim=True) for name, values in found.items()}
        for a, b in combinations(importance, 2):
            numbers = {key: of(importance[a], importance[b]).item() for key, of in AGREEMENT.items()}
            output.tables["agreement"].append({**where, "a": a, "b": b, **numbers})
        return output

    def methods(self, results: Results) -> list[str]:
        """Return the names of the methods that apply to the network."""
        return list(dict.fromkeys(row["method"] for row in results.rows()))

    def matrix(self, results: Results, metric: str) -> np.ndarray:
        """Return the mean agreement of each pair of methods over the images, with 1 on the diagonal."""
        names = self.methods(results)
        values = np.eye(len(names))
        for i, j in combinations(range(len(names)), 2):
            pair = [row[metric] for row in results.rows("agreement", a=names[i], b=names[j])]
            values[i, j] = values[j, i] = mean(pair)
        return values

    def summaries(self, results: Results) -> dict[str, Rows]:
        config, rows, names = results.config, [], self.methods(results)
        for name in names:
            row: dict[str, Any] = {"method": method_title(config, name)}
            for column in COLUMNS:
                values = numbers(results.rows(method=name), column)
                row |= {
                    column: mean(values) if values else None,
                    f"{column} std": spread(values) if len(values) > 1 else None,
                }
            rows.append(row)
        matrix = self.matrix(results, "spearman")
        pairs = [
            {"method": name, **{other: float(matrix[i, j]) for j, other in enumerate(names)}}
            for i, name in enumerate(names)
        ]
        return {"summary": rows, "agreement_matrix": pairs}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        return {
            "figure": self._agreement(results),
            "faithfulness": self._faithfulness(results),
            "maps": self._maps(results),
        }

    def _about(self, results: Results) -> str:
        count = len({row["image"] for row in results.rows()})
        out = {row["method"]: row["why"] for row in results.rows("left_out")}
        network = f"{results.config.model.name}, {results.rows()[0]['weights']}, {plural(count, 'image')}"
        words = "; ".join([*method_words(results.config), network])
        some = {name: " of some images" if name in self.methods(results) else "" for name in out}
        return words + "".join(f"; {name} is left out{some[name]}: {why}" for name, why in out.items())

    def _agreement(self, results: Results) -> Figure:
        matrix, config = self.matrix(results, "spearman"), results.config
        labels = [method_title(config, name) for name in self.methods(results)]
        size = 0.42 * len(labels)
        caption = [
            "Agreement of methods: rank correlation of the importance of pixels, mean over the images",
            self._about(results),
        ]
        figure, (axes,) = plot(max(3.4, size + 1.3), max(2.2, size + 0.9), caption)
        with styled():
            axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
            for (i, j), value in np.ndenumerate(matrix):
                axes.text(
                    j,
                    i,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white" if abs(value) > 0.6 else "black",
                )
            axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(len(labels)), labels)
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
        return figure

    def _faithfulness(self, results: Results) -> Figure:
        caption = [
            "Probability of the class as pixels are deleted (left) or inserted (right), those with the largest values of the map "
            "first: mean over images; legend: area under the curve. A deleted pixel shows the blurred image",
            self._about(results),
        ]
        figure, axes = plot(PAGE_WIDTH, 2.6, caption, columns=2)
        with styled():
            for axis, which in zip(axes, ("deletion", "insertion"), strict=True):
                for name in self.methods(results):
                    curve = np.mean([row[which] for row in results.rows("curves", method=name)], axis=0)
                    area = mean([row[which] for row in results.rows(method=name)])
                    label = f"{method_title(results.config, name)} {area:.3f}"
                    axis.plot(np.linspace(0, 1, len(curve)), curve, label=label, linewidth=1)
                axis.set(
                    xlabel=f"share of pixels {'deleted' if which == 'deletion' else 'inserted'}", ylabel="probability"
                )
                axis.legend(fontsize=5.5)
        return figure

    def _maps(self, results: Results) -> Figure:
        config = results.config
        rows: list[PanelRow] = []
        for key in [key for key in results.arrays if key.endswith("/pixels")]:
            image, pixels = key.removesuffix("/pixels"), results.arrays[key]
            panels = [Panel(display.picture(pixels), "" if rows else "Input", image)]
            for name in self.methods(results):
                show, _ = display.scaling(method_scaling(config, name))
                heading, map_ = "" if rows else method_title(config, name), results.arrays.get(f"{image}/{name}")
                picture = display.picture(np.ones_like(pixels)) if map_ is None else show(map_, pixels)
                panels.append(Panel(picture, heading))
            rows.append(PanelRow(panels))
        shown = {method_title(config, m): method_scaling(config, m) for m in self.methods(results)}
        caption = [self._about(results), *display.sentences(shown), *sentences(results.rows(), config)]
        return panel_grid(wrapped(rows), caption)
