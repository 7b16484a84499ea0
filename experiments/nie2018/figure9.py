"""nie2018, Figure 9, and the supplement's Figures 10 and 11: GBP in partly trained networks.

Weights are trained up to a layer and random behind it (a star), or trained except for one layer (a diamond). "from
"Conv1-1*" to "Conv5-1*" GBP keeps filtering out more image patches as the number of trained convolutional layers increases.
However, from "Conv5-1*" to "FC3*" (i.e., the fully-trained case) GBP behaves almost the same". Without a layer: "blurry for
"Conv1-1", clean with much background information for "Conv3-1" and clean without background information for "Conv5-1"".

Each network explains its own largest logit. Columns of the table beside `patches` and `background` (see `trained`):

    sharpness    share of the gray map's energy that a high-pass (sigma 2) lets through; little is "blurry"
    distance     l2 distance to the fully trained network's map, both divided by their norm
    same         correlation with that map
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from experiments.nie2018.trained import (
    difference,
    energy_of,
    images_of,
    in_background,
    judged,
    network_of,
    randomised,
    surviving_patches,
    wanted,
)
from vis import metrics
from vis.claims import Claim, Column, Compared, above, below, mean, mean_and_spread, near
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, plot, styled
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

SIGNS = {"up_to": "*", "except": "\N{WHITE DIAMOND}"}
PATCHES, BACKGROUND = "share of patches that survive", "share of the energy in the background"


class Figure9(Experiment):
    """Measure GBP in partly trained networks.

    up_to, except_layers: layers in the order of the forward pass, by the network's or the paper's names; claims need the
    paper's four, dense layers last. paper: the paper's images.
    """

    metrics = ("background", "patches", "distance")
    series = "layer"

    def __init__(
        self,
        up_to: Sequence[str],
        except_layers: Sequence[str],
        paper: Sequence[str],
    ) -> None:
        self.settings = {"up_to": list(up_to), "except": list(except_layers)}
        self.paper = paper

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed, "images": images} for seed in run.seeds for images in run.batches(len(run.dataset), 8)]

    def load(self, run: Run, task: Task) -> Load:
        images, networks = len(task["images"]), 2 + sum(map(len, self.settings.values()))
        return Load(run.config.model, task["seed"], images * networks, 1, images * (1 + networks))

    def compute(self, run: Run, task: Task) -> Output:
        seed = task["seed"]
        output = Output(tables={"table": []})
        full: Tensor | None = None
        for kind, layers in {"trained": ["all"], "random": ["none"], **self.settings}.items():
            for layer in layers:
                changes = {"trained": {}, "random": randomised(run.config.model)}.get(kind, {f"trained_{kind}": layer})
                model = network_of(run, task, **changes)
                batch = run.batch(model, task["images"])
                (maps,) = (
                    run.explain(model, batch.x, [run.units_of(model, run.targets[0], batch.names)]).maps[0].values()
                )
                full = maps if full is None else full
                energy, gray, fine = energy_of(maps), metrics.luma(maps), metrics.high_pass(maps)
                numbers = {
                    "patches": surviving_patches(energy).tolist(),
                    "background": in_background(energy, batch.names, run.drawn(model, task["images"])),
                    "sharpness": (fine.square().flatten(1).sum(1) / gray.square().flatten(1).sum(1)).tolist(),
                    "distance": metrics.unit_distance(maps, full).tolist(),
                    "same": metrics.pearson(maps, full).tolist(),
                }
                for i, image in enumerate(batch.names):
                    row = {"seed": seed, "image": image, "kind": kind, "layer": layer}
                    values = {name: each[i] for name, each in numbers.items()}
                    output.tables["table"].append({**row, **values, "weights": model.weights})
                    if seed == run.seeds[0] and task["images"][0] + i < 4:
                        output.arrays[f"{image}/{kind}/{layer}"] = maps[i].numpy()
                        output.arrays[f"{image}/pixels"] = batch.pixels[i].numpy()
        return output

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return what training adds to GBP's patches in the dense layers, over what it adds in the convolutions."""
        if len(self.settings["up_to"]) < 2:
            return {}
        last = self.settings["up_to"][-2]

        def patches(kind: str, layer: str, image: str) -> float:
            return mean([row["patches"] for row in results.rows(kind=kind, layer=layer, image=image)])

        rows: Rows = []
        for image in images_of(results):
            none, conv, all_ = (patches(*at, image) for at in (("random", "none"), ("up_to", last), ("trained", "all")))
            rows.append({"image": image, "convolutions": conv - none, "dense": all_ - conv})
        gain = mean([row["convolutions"] for row in rows])
        return {"steps": [row | {"dense_share": row["dense"] / gain} for row in rows]}

    def claims(self, results: Results) -> list[Claim]:
        if any(len(layers) != 4 for layers in self.settings.values()):
            return []

        def of(name: str, kind: str, layer: str) -> Column:
            return Column(results.rows(kind=kind, layer=layer), name, "image")

        return judged([*self._up_to(results, of), *self._except(of)], results, self.paper)

    def _up_to(self, results: Results, of: Any) -> list[Claim]:
        *convolutions, _ = self.settings["up_to"]
        steps = results.rows("steps")
        return [
            Claim("N-4.5-a", [
                difference(f"{PATCHES}: {b}* minus {a}*", of("patches", "up_to", b), of("patches", "up_to", a), below(0))
                for a, b in pairwise(convolutions)
            ]),
            Claim("N-4.5-b", [
                Compared(f"correlation of {convolutions[-1]}* and the fully trained", of("same", "up_to", convolutions[-1]),
                         above(0.9, fails=0.7, ours="the bounds are ours"), null=of("same", "random", "none"),
                         control="random weights in all layers"),
            ]),
            Claim("N-4.5-c", [
                Compared(f"{PATCHES}: {convolutions[-1]}* minus random", Column(steps, "convolutions", "image"), below(0),
                         null=0.0, control="no effect: 0"),
                Compared(f"{PATCHES}: fully trained minus {convolutions[-1]}*, over the mean of the first",
                         Column(steps, "dense_share", "image"), near(0, 0.1, fails=1, ours="10 % is our bound"),
                         null=1.0, control="the dense layers do as much: 1"),
            ]),
        ]  # fmt: skip

    def _except(self, of: Any) -> list[Claim]:
        *layers, _ = self.settings["except"]
        first, middle, last = layers[0], layers[1], layers[-1]
        sign = SIGNS["except"]
        return [
            Claim("N-4.5-d", [
                difference(f"share of fine detail: {first}{sign} minus {_title(kind, layer)}", of("sharpness", "except", first),
                           of("sharpness", kind, layer), below(0))
                for kind, layer in (("trained", "all"), *(("except", layer) for layer in layers[1:]))
            ]),
            Claim("N-4.5-e", [
                difference(f"{BACKGROUND}: {middle}{sign} minus {last}{sign}", of("background", "except", middle),
                           of("background", "except", last), above(0)),
                difference(f"{BACKGROUND}: {last}{sign} minus fully trained", of("background", "except", last),
                           of("background", "trained", "all"), near(0, 0.05, ours="the bound is ours"),
                           null=of("background", "random", "none") - of("background", "trained", "all"),
                           control="random weights in all layers"),
            ]),
            Claim("N-4.5-f", [
                difference(f"distance to the fully trained map: {b}{sign} minus {a}{sign}", of("distance", "except", b),
                           of("distance", "except", a), below(0))
                for a, b in pairwise(layers)
            ]),
        ]  # fmt: skip

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        images, config = images_of(results), results.config
        caption = [
            f"GBP in a partly trained {config.model.name} ({results.rows(kind='trained')[0]['weights']}). {SIGNS['up_to']}: "
            f"trained up to this layer, random behind it; {SIGNS['except']}: trained except for this layer",
            f"Random weights: {config.model.init or 'truncated_normal'}, std {config.model.std}, "
            + (f"seed {config.seed} of {config.seeds}" if config.seeds > 1 else f"seed {config.seed}"),
            display.scaling("minmax")[1],
            "Under each map: r, its correlation with the fully trained map; p, the share of patches that survive; b, the "
            "share of its energy in the background, where the photograph has a box around its object",
            wanted(results, self.paper),
        ]
        rows: list[PanelRow] = []
        shown = [name for name in images if f"{name}/pixels" in results.arrays]
        for image in shown[: 4 // sum(map(bool, self.settings.values()))]:
            for kind, layers in self.settings.items():
                if not layers or len(layers) > 6:
                    continue
                panels = [Panel(display.picture(results.arrays[f"{image}/pixels"]), "" if rows else "Input", image)]
                for setting, layer in [*((kind, layer) for layer in layers), ("trained", "all")]:
                    if (setting, layer) == ("up_to", layers[-1]):
                        continue  # all layers: the fully trained network
                    cells = results.rows(image=image, kind=setting, layer=layer)[: 1 if setting == "trained" else None]
                    title = _title(setting, layer)
                    map_ = display.minmax(results.arrays[f"{image}/{setting}/{layer}"])
                    panels.append(Panel(map_, title, _note(cells)))
                rows.append(PanelRow(panels))
        figures = {"figure": panel_grid(rows, caption, panel=1.3)} if rows else {}
        if self.settings["up_to"]:
            figures["layers" if rows else "figure"] = _curves(results, self.settings["up_to"], caption)
        return figures


def _title(kind: str, layer: str) -> str:
    return f"{layer}{SIGNS[kind]}" if kind in SIGNS else "fully trained"


def _note(cells: Rows) -> str:
    """The numbers under a map: mean and standard deviation over the seeds."""
    names = {"r": "same", "p": "patches", "b": "background"}
    values = {letter: [c[name] for c in cells if c[name] is not None] for letter, name in names.items()}
    return "\n".join(f"{letter} {mean_and_spread(each, 2)}" for letter, each in values.items() if each)


def _curves(results: Results, layers: Sequence[str], caption: Sequence[str]) -> Figure:
    """Plot how the numbers change as layers become trained one by one."""
    titles = {"background": "energy in the background", "patches": "patches that survive", "same": "correlation"}
    figure, axes = plot(6.9, 2.2, caption[:2], columns=3)
    with styled():
        for each, (name, title) in zip(axes, titles.items(), strict=True):
            for i, image in enumerate(images_of(results)[:6]):
                values = [[r[name] for r in results.rows(image=image, kind="up_to", layer=layer)] for layer in layers]
                if None not in values[0]:
                    each.plot(range(len(layers)), [sum(v) / len(v) for v in values], "o-", color=f"C{i}", label=image)
            each.set_xticks(range(len(layers)), layers, rotation=90)
            each.set_title(title)
        axes[2].legend(loc="lower right")
    return figure
