"""nie2018, Figure 9, and the supplement's Figures 10 and 11: GBP in partly trained networks.

Weights are trained up to a layer and random behind it (a star), or trained except for one layer (a diamond). "from
"Conv1-1*" to "Conv5-1*" GBP keeps filtering out more image patches as the number of trained convolutional layers increases.
However, from "Conv5-1*" to "FC3*" (i.e., the fully-trained case) GBP behaves almost the same". Without a layer: "blurry for
"Conv1-1", clean with much background information for "Conv3-1" and clean without background information for "Conv5-1"".

Each network explains its own largest logit. The random weights are the paper's (truncated Gaussians); `inits` adds others, of
which a claim has to hold for each. Where the images have neither fixations nor boxes, claims take `patches` in place of the
background. Columns of the table beside `patches` and `background` (see `trained`):

    sharpness    share of the gray map's energy that a high-pass (sigma 2) lets through; little is "blurry"
    distance     l2 distance to the fully trained network's map, both divided by their norm
    same         correlation with that map
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from experiments.nie2018.trained import (
    RANDOM,
    RandomAndTrained,
    difference,
    energy_of,
    images_of,
    judged,
    network_of,
    objects_of,
    outside,
    surviving_patches,
    wanted,
)
from vis import metrics
from vis.claims import Claim, Column, Compared, Rule, above, below, interval, mean, mean_and_spread, near, replicated
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, plot, styled
from vis.models import Model
from vis.runner.experiment import Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

SIGNS = {"up_to": "*", "except": "\N{WHITE DIAMOND}"}
PATCHES = "share of patches that survive"
OURS = "the bound is ours"
Setting = tuple[str, str]  # (kind, layer)


class Figure9(RandomAndTrained):
    """Measure GBP in partly trained networks.

    up_to, except_layers: layers in the order of the forward pass, by the network's or the paper's names, those of the dense
    layers (or the last one) last; [stages]: the modules of the network that have weights, such as a ResNet's stages.
    paper: the paper's images. inits: initialisations of the weights that are random. judges: whether it makes claims.
    models: {trained: config node} in place of the run's model; the rest: see RandomAndTrained.
    """

    metrics = ("background", "patches", "distance")
    series = "layer"

    def __init__(
        self,
        up_to: Sequence[str],
        except_layers: Sequence[str],
        paper: Sequence[str],
        inits: Sequence[str] = ("truncated_normal",),
        judges: bool = False,
        models: Mapping[str, Mapping[str, Any]] = {},
        **networks: Any,
    ) -> None:
        super().__init__(models, **networks)
        self.settings = {"up_to": list(up_to), "except": list(except_layers)}
        self.paper, self.inits, self.judges = paper, list(inits), judges

    def tasks(self, run: Run) -> Sequence[Task]:
        if self.missing:
            return []
        return [
            {"seed": seed, "init": init, "images": images}
            for init in self.inits
            for seed in run.seeds
            for images in run.batches(len(run.dataset), 8)
        ]

    def _node(self, config: DictConfig) -> DictConfig:
        return config.experiment.models.trained if self.models else config.model

    def load(self, run: Run, task: Task) -> Load:
        node = self._node(run.config)
        images, networks = (
            len(task["images"]),
            2 + sum(map(len, self.settings.values())),
        )
        return Load(node, task["seed"], images * networks, 1, images * (1 + networks))

    def compute(self, run: Run, task: Task) -> Output:
        seed, init, node = task["seed"], task["init"], self._node(run.config)
        output = Output(tables={"table": []})
        whole = network_of(run, task, node)
        settings = {kind: _stages(whole) if v == ["stages"] else v for kind, v in self.settings.items()}
        objects = objects_of(run, whole, task["images"])
        full: Tensor | None = None
        random = RANDOM | {"init": init}
        for kind, layers in {"trained": ["all"], "random": ["none"], **settings}.items():
            for layer in layers:
                partly = {f"trained_{kind}": layer, "init": init, "std": random["std"]}
                changes: dict[str, Any] = {"trained": {}, "random": random}.get(kind, partly)
                model = network_of(run, task, node, **changes)
                batch = run.batch(model, task["images"])
                (maps,) = (
                    run.explain(model, batch.x, [run.units_of(model, run.targets[0], batch.names)]).maps[0].values()
                )
                full = maps if full is None else full
                energy, gray, fine = energy_of(maps), metrics.luma(maps), metrics.high_pass(maps)
                numbers = {
                    "patches": surviving_patches(energy).tolist(),
                    **objects.backgrounds(energy, batch.names),
                    "sharpness": (fine.square().flatten(1).sum(1) / gray.square().flatten(1).sum(1)).tolist(),
                    "distance": metrics.unit_distance(maps, full).tolist(),
                    "same": metrics.pearson(maps, full).tolist(),
                    "HP": metrics.high_pass_pearson(maps, batch.x.cpu()).tolist(),
                }
                for i, image in enumerate(batch.names):
                    row = {
                        "seed": seed,
                        "init": init,
                        "image": image,
                        "kind": kind,
                        "layer": layer,
                        "object": objects.what,
                    }
                    values = {name: each[i] for name, each in numbers.items()}
                    output.tables["table"].append({**row, **values, "weights": model.weights})
                    if seed == run.seeds[0] and init == self.inits[0] and task["images"][0] + i < 4:
                        output.arrays[f"{image}/{kind}/{layer}"] = maps[i].numpy()
                        output.arrays[f"{image}/pixels"] = batch.pixels[i].numpy()
        return output

    def claims(self, results: Results) -> list[Claim]:
        if not self.judges:
            return []
        paper = {"up_to": ["conv1_1", "conv3_1", "conv5_1", "fc3"], "except": ["conv1_1", "conv3_1", "conv5_1", "fc3"]}
        words = [
            f"{', '.join(own)} instead of {', '.join(paper[kind])}"
            for kind, own in self.settings.items()
            if list(own) != paper[kind]
        ]
        found = [*self._up_to(results), *self._except(results)]
        found = judged(found, results, self.paper, ["trained"] if self.models else [])
        return replicated(found, list(dict.fromkeys(words)))

    def _of(self, results: Results, init: str) -> Any:
        """Return a function (column, kind, layer) that gives the column of networks with an initialisation."""
        return lambda column, kind, layer: Column(results.rows(kind=kind, layer=layer, init=init), column, "image")

    def _steps(
        self, results: Results, init: str, pairs: Sequence[tuple[Setting, Setting]], rule: Rule
    ) -> list[Compared]:
        """Compare what networks let through in pairs (a, b) of them: b minus a."""
        of, rows, found = self._of(results, init), results.rows(), []
        known = not rows or any(row["background"] is not None for row in rows)
        for a, b in pairs:
            metric = f"{self._words(init)}{outside(rows) if known else PATCHES}: {_title(*b)} minus {_title(*a)}"
            if known:
                null = of("background_other", *b) - of("background_other", *a)
                step = of("background", *b) - of("background", *a)
                found.append(
                    Compared(metric, step, rule, null=null, control="outside the object of another photograph")
                )
            else:
                found.append(difference(metric, of("patches", *b), of("patches", *a), rule, control="no change: 0"))
        return found

    def _words(self, init: str) -> str:
        return f"{init}: " * (len(self.inits) > 1)

    def _up_to(self, results: Results) -> list[Claim]:
        *convolutions, _ = self.settings["up_to"]
        last = ("up_to", convolutions[-1])
        trained, random = ("trained", "all"), ("random", "none")
        steps, same, account = [], [], []
        for init in self.inits:
            of = self._of(results, init)
            steps += self._steps(results, init, list(pairwise(("up_to", each) for each in convolutions)), below(0))
            same.append(
                Compared(f"{self._words(init)}correlation of {_title(*last)} and the fully trained", of("same", *last),
                         above(0.9, fails=0.7, ours="the bounds are ours"), null=of("same", *random),
                         control="random weights in all layers")
            )  # fmt: skip
            dense = self._steps(results, init, [(last, trained)], near(0, 0.05, ours=OURS))
            same += dense
            account += [*self._steps(results, init, [(random, last)], below(0)), *dense]
        return [Claim("N-4.5-a", steps), Claim("N-4.5-b", same), Claim("N-4.5-c", account)]

    def _except(self, results: Results) -> list[Claim]:
        *layers, _ = self.settings["except"]
        first, *middle, last = (("except", layer) for layer in layers)
        trained = ("trained", "all")
        blurry, cleaner, distances = [], [], []
        for init in self.inits:
            of, words = self._of(results, init), self._words(init)
            blurry.append(
                difference(f"{words}share of fine detail: {_title(*first)} minus fully trained", of("sharpness", *first),
                           of("sharpness", *trained), below(0))
            )  # fmt: skip
            cleaner += self._steps(results, init, [(last, each) for each in middle], above(0))
            cleaner += self._steps(results, init, [(trained, last)], near(0, 0.05, ours=OURS))
            distances += [
                difference(f"{words}distance to the fully trained map: {_title(*b)} minus {_title(*a)}", of("distance", *b),
                           of("distance", *a), below(0))
                for a, b in pairwise((first, *middle, last))
            ]  # fmt: skip
        return [Claim("N-4.5-d", blurry), Claim("N-4.5-e", cleaner), Claim("N-4.5-f", distances)]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        if not results.rows():
            return {}
        images, config = images_of(results), results.config
        settings = {kind: _layers(results, kind) for kind in SIGNS}
        caption = [
            f"GBP in a partly trained {self._node(config).name} ({results.rows(kind='trained')[0]['weights']})",
            f"{SIGNS['up_to']}: trained up to this layer, random behind it; {SIGNS['except']}: trained except for this layer",
            f"Random weights: {self.inits[0]}, "
            + (f"seed {config.seed} of {config.seeds}" if config.seeds > 1 else f"seed {config.seed}"),
            f"Maps: {display.scaling('midgray')[1]}",
            "Under each map: r, its correlation with the fully trained map; p, the share of patches that survive; b, the "
            f"{outside(results.rows())}",
            wanted(results, self.paper),
        ]
        rows: list[PanelRow] = []
        shown = [name for name in images if f"{name}/pixels" in results.arrays]
        for image in shown[: 4 // sum(map(bool, settings.values()))]:
            for kind, layers in settings.items():
                if not layers or len(layers) > 6:
                    continue
                panels = [Panel(display.picture(results.arrays[f"{image}/pixels"]), "" if rows else "Input", image)]
                for setting, layer in [*((kind, layer) for layer in layers), ("trained", "all")]:
                    if (setting, layer) == ("up_to", layers[-1]):
                        continue  # all layers: the fully trained network
                    cells = results.rows(image=image, kind=setting, layer=layer, init=self.inits[0])[
                        : 1 if setting == "trained" else None
                    ]
                    title = _title(setting, layer)
                    map_ = display.midgray(results.arrays[f"{image}/{setting}/{layer}"], display.CLIP)
                    panels.append(Panel(map_, title, _note(cells)))
                rows.append(PanelRow(panels))
        figures = {"figure": panel_grid(rows, caption, panel=1.3)} if rows else {}
        if settings["up_to"]:
            figures["layers" if rows else "figure"] = _curves(results, settings["up_to"], self.inits, caption)
        return figures


def _stages(model: Model) -> list[str]:
    """Return the names of a network's modules with weights, without normalisations: a ResNet's stem, stages, last layer."""
    children = model.net.named_children()
    return [
        name for name, child in children if next(child.parameters(), None) is not None and not name.startswith("bn")
    ]


def _layers(results: Results, kind: str) -> list[str]:
    return list(dict.fromkeys(row["layer"] for row in results.rows(kind=kind)))


def _title(kind: str, layer: str) -> str:
    return f"{layer}{SIGNS[kind]}" if kind in SIGNS else {"trained": "fully trained", "random": "random"}[kind]


def _note(cells: Rows) -> str:
    """The numbers under a map: mean and standard deviation over the seeds."""
    names = {"r": "same", "p": "patches", "b": "background"}
    values = {letter: [c[name] for c in cells if c[name] is not None] for letter, name in names.items()}
    return "\n".join(f"{letter} {mean_and_spread(each, 2)}" for letter, each in values.items() if each)


def _curves(results: Results, layers: Sequence[str], inits: Sequence[str], caption: Sequence[str]) -> Figure:
    """Plot how the numbers change as layers become trained: a line for each image, or the mean of many for each init."""
    titles = {"background": outside(results.rows()), "patches": PATCHES, "same": "correlation with the full map"}
    titles = {name: title for name, title in titles.items() if any(row[name] is not None for row in results.rows())}
    many = len(images_of(results)) > 6
    lines: dict[str, dict[str, Any]] = (
        {init: {"init": init} for init in inits}
        if many
        else {image: {"init": inits[0], "image": image} for image in images_of(results)}
    )
    note = ["Means over the images and their 95 % confidence intervals"] * many
    figure, axes = plot(6.9, 2.2, [*caption[:2], *note], columns=len(titles))
    with styled():
        for each, (name, title) in zip(axes, titles.items(), strict=True):
            for i, (label, where) in enumerate(lines.items()):
                places = [("random", "none"), *(("up_to", layer) for layer in layers)]
                columns = [Column(results.rows(kind=k, layer=layer, **where), name, "image") for k, layer in places]
                if not columns[0].values:
                    continue
                means = [mean(column.values) for column in columns]
                each.plot(range(len(columns)), means, "o-", color=f"C{i}", label=label)
                if many:
                    low, high = zip(*(interval(column.values) for column in columns), strict=True)
                    each.fill_between(range(len(columns)), low, high, color=f"C{i}", alpha=0.2, linewidth=0)
            each.set_xticks(range(1 + len(layers)), ["none", *layers], rotation=90)
            each.set_title(title, fontsize=7)
        axes[-1].legend(loc="lower right")
    return figure
