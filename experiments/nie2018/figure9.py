"""nie2018, Figure 9, and the supplement's Figures 10 and 11: GBP in partly trained networks.

Weights are trained up to a layer and random behind it (a star), or trained except for one layer (a diamond). "from
"Conv1-1*" to "Conv5-1*" GBP keeps filtering out more image patches as the number of trained convolutional layers increases.
However, from "Conv5-1*" to "FC3*" (i.e., the fully-trained case) GBP behaves almost the same". Without a layer: "blurry for
"Conv1-1", clean with much background information for "Conv3-1" and clean without background information for "Conv5-1"".

Numbers of a map with energy E (its square, summed over the channels):

    background   share of E outside the ellipse in the box `object`, which is said to hold the image's object
    patches      (sum e)^2 / (n sum e^2) of the energies e of n = 16x16 patches: the share of patches that survive
    sharpness    share of the gray map's energy that a high-pass (sigma 2) lets through; little is "blurry"
    distance     l2 distance to the fully trained network's map, both divided by their norm
    same         correlation with that map
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from experiments.nie2018.trained import images_of, not_the_papers, wanted
from vis import metrics
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, plot, styled
from vis.oldclaims import Claim, Criterion, above, increasing, mean_and_spread
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results

SIGNS = {"up_to": "*", "except": "\N{WHITE DIAMOND}"}
BOX = (0.15, 0.15, 0.85, 0.85)  # top, left, bottom, right, as shares of the sides

FILTERS = (
    'from "Conv1-1*" to "Conv5-1*" GBP keeps filtering out more image patches as the number of trained layers increases'
)
DENSE = 'from "Conv5-1*" to "FC3*" (i.e., the fully-trained case) GBP behaves almost the same'
EARLIER = "the earlier convolutional layer has more important impact in the GBP visualization than the later"
BLURRY = 'GBP visualization is blurry for "Conv1-1", clean with much background for "Conv3-1", clean without it for "Conv5-1"'


def background(shape: tuple[int, int], box: Sequence[float]) -> Tensor:
    """Return a mask [H, W]: 1 outside the ellipse that fills a box (top, left, bottom, right, as shares of the sides), else 0."""
    top, left, bottom, right = box
    y, x = (torch.arange(n, dtype=torch.float64).add(0.5).div(n) for n in shape)
    radius2 = ((2 * y - top - bottom) / (bottom - top))[:, None] ** 2 + ((2 * x - left - right) / (right - left)) ** 2
    return (radius2 > 1).double()


def surviving_patches(energy: Tensor) -> Tensor:
    """Return the share of 16x16 patches that hold the energy [B, 1, H, W]: 1 if all hold the same, 1/256 if one holds all."""
    patches = adaptive_avg_pool2d(energy, 16).flatten(1)
    return patches.sum(1) ** 2 / (patches.shape[1] * patches.square().sum(1))


class Figure9(Experiment):
    """Measure GBP in partly trained networks.

    up_to, except_layers: layers, by the network's or the paper's names; object: {image: box}; paper: the paper's images.
    """

    metrics = ("background", "patches", "distance")
    series = "layer"

    def __init__(
        self,
        up_to: Sequence[str],
        except_layers: Sequence[str],
        object: Mapping[str, Sequence[float]],
        paper: Sequence[str],
        source: str,
    ) -> None:
        self.settings = {"up_to": list(up_to), "except": list(except_layers)}
        self.object, self.paper, self.source = object, paper, source

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed, "images": images} for seed in run.seeds for images in run.batches(len(run.dataset), 8)]

    def load(self, run: Run, task: Task) -> Load:
        images, networks = len(task["images"]), 1 + sum(map(len, self.settings.values()))
        return Load(run.config.model, task["seed"], images * networks, 1, images * (1 + networks))

    def compute(self, run: Run, task: Task) -> Output:
        seed, (method,) = task["seed"], list(run.methods)
        model = run.model(seed=seed)
        batch = run.batch(model, task["images"])
        whole = run.explain(model, batch.x, [run.units_of(model, run.targets[0], batch.names)])
        shape = (batch.pixels.shape[2], batch.pixels.shape[3])
        outside = torch.stack([background(shape, self.object.get(name, BOX)) for name in batch.names])[:, None]
        target = whole.logits.argmax(1).tolist() if run.targets[0] == "max" else None
        output = Output(tables={"table": []})
        if seed == run.seeds[0]:
            output.arrays |= {f"{image}/pixels": batch.pixels[i].numpy() for i, image in enumerate(batch.names)}
        for kind, layers in {"trained": ["all"], **self.settings}.items():
            for layer in layers:
                partly = model if kind == "trained" else run.model(None, seed, **{f"trained_{kind}": layer})
                logits = target or run.units_of(partly, run.targets[0], batch.names)
                maps = run.explain(partly, batch.x, [logits]).maps[0][method]
                full = whole.maps[0][method]
                energy = maps.double().square().sum(1, keepdim=True)
                gray, fine = metrics.luma(maps), metrics.high_pass(maps)
                numbers = {
                    "background": (energy * outside).flatten(1).sum(1) / energy.flatten(1).sum(1),
                    "patches": surviving_patches(energy),
                    "sharpness": fine.square().flatten(1).sum(1) / gray.square().flatten(1).sum(1),
                    "distance": metrics.unit_distance(maps, full),
                    "same": metrics.pearson(maps, full),
                }
                for i, image in enumerate(batch.names):
                    row = {"seed": seed, "image": image, "kind": kind, "layer": layer}
                    values = {name: each[i].item() for name, each in numbers.items()}
                    output.tables["table"].append({**row, **values, "weights": partly.weights})
                    if seed == run.seeds[0]:
                        output.arrays[f"{image}/{kind}/{layer}"] = maps[i].numpy()
        return output

    def claims(self, results: Results) -> list[Claim]:
        reason = not_the_papers(results)
        up_to, without = self.settings["up_to"], self.settings["except"]
        last = [layer for layer in up_to if not layer.startswith("fc")][-1:]  # "up to Conv5-1" and the like
        falling = Criterion(
            "each below the one before", lambda values: increasing().holds([-v for v in values]), least=2
        )
        found: list[Claim] = []

        def over(name: str, kind: str, layers: Sequence[str]) -> dict[str, list[float]]:
            return {
                f"{layer}{SIGNS[kind]}": [r[name] for r in results.rows(kind=kind, layer=layer)] for layer in layers
            }

        def claim(name: str, sentence: str, metric: str, criterion: Criterion, values: Any) -> None:
            paper = Claim(name, sentence, source=self.source, metric=metric, criterion=criterion, values=values)
            found.append(replace(paper, reason=reason))
            if reason:
                here = f"Of this network: {sentence}"
                found.append(replace(paper, name=f"here_{name}", sentence=here, origin="project"))

        convolutions = [layer for layer in up_to if not layer.startswith("fc")]
        if len(convolutions) > 1:
            where = "share of the map's energy in the background"
            claim("up_to_background", FILTERS, where, falling, over("background", "up_to", convolutions))
            claim(
                "up_to_patches",
                FILTERS,
                "share of patches that survive",
                falling,
                over("patches", "up_to", convolutions),
            )
        if last:
            (same,) = over("same", "up_to", last).values()
            claim("dense_layers", DENSE, f"correlation of {last[0]}* and the fully trained", above(0.9), same)
        if len(without) > 1:
            apart = "distance to the fully trained map"
            layers = [layer for layer in without if not layer.startswith("fc")]
            claim("except_distance", EARLIER, apart, falling, over("distance", "except", layers))
            sharp = over("sharpness", "except", layers)
            rest = Criterion("the first below all others", lambda values: values[0] < min(values[1:]))
            claim("except_blurry", BLURRY, "share of fine detail", rest, sharp)
            claim("except_background", BLURRY, "share of the map's energy in the background", falling,
                  over("background", "except", layers[1:]))  # fmt: skip
        return found

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        images, config = images_of(results), results.config
        caption = [
            f"GBP in a partly trained {config.model.name} ({results.rows(kind='trained')[0]['weights']}). {SIGNS['up_to']}: "
            f"trained up to this layer, random behind it; {SIGNS['except']}: trained except for this layer",
            f"Random weights: {config.model.init or 'truncated_normal'}, std {config.model.std}, "
            + (f"seed {config.seed} of {config.seeds}" if config.seeds > 1 else f"seed {config.seed}"),
            display.scaling("minmax")[1],
            "Under each map: its energy in the background, the share of patches that survive, correlation with the fully trained",
            wanted(results, self.paper),
        ]
        rows: list[PanelRow] = []
        for image in images[:4]:
            for kind, layers in self.settings.items():
                if not layers or len(layers) > 6:
                    continue
                panels = [Panel(display.picture(results.arrays[f"{image}/pixels"]), "" if rows else "Input", image)]
                for setting, layer in [*((kind, layer) for layer in layers), ("trained", "all")]:
                    cells = results.rows(image=image, kind=setting, layer=layer)
                    numbers = (
                        mean_and_spread([c[name] for c in cells], 2) for name in ("background", "patches", "same")
                    )
                    title = f"{layer}{SIGNS[setting]}" if setting != "trained" else "fully trained"
                    map_ = display.minmax(results.arrays[f"{image}/{setting}/{layer}"])
                    panels.append(Panel(map_, title, "\n".join(numbers)))
                rows.append(PanelRow(panels))
        figures = {"figure": panel_grid(rows, caption, panel=1.3)} if rows else {}
        if self.settings["up_to"]:
            figures["layers" if rows else "figure"] = _curves(results, self.settings["up_to"], caption)
        return figures


def _curves(results: Results, layers: Sequence[str], caption: Sequence[str]) -> Figure:
    """Plot how the numbers change as layers become trained one by one."""
    titles = {"background": "energy in the background", "patches": "patches that survive", "same": "correlation"}
    figure, axes = plot(6.9, 2.2, caption[:2], columns=3)
    with styled():
        for each, (name, title) in zip(axes, titles.items(), strict=True):
            for image in images_of(results):
                values = [[r[name] for r in results.rows(image=image, kind="up_to", layer=layer)] for layer in layers]
                each.plot(range(len(layers)), [sum(v) / len(v) for v in values], "o-", label=image)
            each.set_xticks(range(len(layers)), layers, rotation=90)
            each.set_title(title)
        axes[2].legend(loc="lower right")
    return figure
