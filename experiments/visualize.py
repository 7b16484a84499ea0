"""The default experiment: methods x targets x images of one model, as a labelled grid with a table of metrics."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig

from vis import display, metrics
from vis.claims import Claim
from vis.experiment import Experiment, Run, Unit
from vis.figures import Panel, PanelRow, panel_grid
from vis.instantiate import locate
from vis.methods import Method
from vis.record import Part, Results

BATCH = 4  # images at a time where batch_size is auto


class Visualize(Experiment):
    """scaling: a name of vis.display.SCALINGS, or "method" for each method's own. rows: of the figure, at most."""

    metrics = ("pearson_input", "high_pass_pearson_input")
    series = "method"

    def __init__(self, scaling: str = "method", rows: int = 12) -> None:
        self.scaling = scaling
        self.rows = rows
        if scaling != "method":
            display.scaling(scaling)

    def units(self, run: Run) -> Sequence[Unit]:
        return [{"seed": seed, "images": batch} for seed in run.seeds for batch in run.batches(len(run.dataset), BATCH)]

    def compute(self, run: Run, unit: Unit) -> Part:
        seed = unit["seed"]
        model = run.model(seed=seed)
        batch = run.batch(model, unit["images"])
        with torch.no_grad():
            logits = model.net(batch.x).double().cpu()
        probabilities = logits.softmax(1)
        targets = [
            [run.target_index(model, target, row, name) for row, name in zip(logits, batch.names, strict=True)]
            for target in run.targets
        ]
        part = Part()
        table = part.tables["table"] = []
        predictions = part.tables["predictions"] = []
        for i, name in enumerate(batch.names):
            part.arrays[f"{seed}/{name}/pixels"] = batch.pixels[i].numpy()
            for rank, index in enumerate(logits[i].argsort(descending=True)[:5].tolist(), start=1):
                predictions.append(
                    {
                        "seed": seed,
                        "image": name,
                        "label": batch.labels[i],
                        "rank": rank,
                        "class": model.class_name(index),
                        "logit": logits[i, index].item(),
                        "probability": probabilities[i, index].item(),
                    }
                )
        x = batch.x.cpu()
        for target, indices, maps in zip(run.targets, targets, run.explain(model, batch.x, targets), strict=True):
            for method, values in maps.items():
                correlation = metrics.pearson(values.expand_as(x), x)
                fine = metrics.high_pass_pearson(values, x)
                for i, name in enumerate(batch.names):
                    part.arrays[f"{seed}/{name}/{target}/{method}"] = values[i].numpy()
                    table.append(
                        {
                            "seed": seed,
                            "image": name,
                            "target": str(target),
                            "class": model.class_name(indices[i]),
                            "method": method,
                            "weights": model.weights,
                            "logit": logits[i, indices[i]].item(),
                            "probability": probabilities[i, indices[i]].item(),
                            "pearson_input": correlation[i].item(),
                            "high_pass_pearson_input": fine[i].item(),
                            "min": values[i].min().item(),
                            "max": values[i].max().item(),
                            "l2": values[i].norm().item(),
                        }
                    )
        return part

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config = results.config
        first = config.seed
        rows, sentences = [], []
        keys = list(dict.fromkeys((r["image"], r["target"], r["class"]) for r in results.rows(seed=first)))
        scalings = {name: self._scaling(name, config) for name in config.methods}
        for image, target, class_ in keys[: self.rows]:
            cells = results.rows(seed=first, image=image, target=target)
            panels = [Panel(display.picture(results.arrays[f"{first}/{image}/pixels"]), f"input: {image}")]
            for cell in cells:
                show, _ = display.scaling(scalings[cell["method"]])
                map_ = results.arrays[f"{first}/{image}/{target}/{cell['method']}"]
                panels.append(Panel(show(map_), _title(cell["method"], config), f"r = {cell['pearson_input']:.2f}"))
            rows.append(PanelRow(panels, f"{target}: {class_}" if target != class_ else class_))
        table = results.rows(seed=first)
        best = results.rows("predictions", seed=first, rank=1)
        sentences.append(f"{config.model.name}, {table[0]['weights']}")
        sentences += [
            f"{p['image']}: prediction {p['class']} with probability {p['probability']:.2g}" for p in best[:4]
        ]
        shown = sorted({scalings[name] for name in config.methods})
        sentences.append("Maps: " + "; ".join(display.scaling(name)[1] for name in shown))
        sentences.append("r is the correlation of map and input")
        if len(keys) > self.rows:
            sentences.append(f"First {self.rows} of {len(keys)} rows; all maps are in maps.npz")
        return {"figure": panel_grid(rows, sentences)}

    def _scaling(self, method: str, config: DictConfig) -> str:
        if self.scaling != "method":
            return self.scaling
        return str(_class(method, config).display)


def _class(method: str, config: DictConfig) -> type[Method]:
    return locate(config.methods[method]._target_, f"methods.{method}._target_")


def _title(method: str, config: DictConfig) -> str:
    return _class(method, config).title or method
