"""Test whether maps depend on the weights: the sanity check of Adebayo et al. 2018 (arXiv 1810.03292).

The weights are randomised layer by layer from the logits down (cascading), or in one layer alone (independent). The maps
of the class that the trained network predicts are compared with the maps of the trained network.

The floor is the similarity of the maps of one image by two independent random networks: what images have in common whatever the
weights. A map passes if it ends there.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from vis import metrics
from vis.claims import Claim, Column, Compared, above, below, mean, replicated, spread
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import PAGE_WIDTH, Panel, PanelRow, panel_grid, plot, styled
from vis.models import Model, skeleton
from vis.runner.experiment import Experiment, Load, Run, Task, map_words, method_scaling, method_title, method_words
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results

PASSES = "{}: the map depends on the weights of the network, as the sanity check of Adebayo et al. 2018 asks."
TRAINED, FLOOR = "trained", "two random networks"
OTHER = 1_000_003  # between the seeds of two random networks
SIMILARITIES = {"spearman": metrics.spearman, "ssim": metrics.ssim, "pearson": metrics.pearson}


class Randomisation(Experiment):
    """Compare maps of trained and randomised networks.

    samples: number of images whose maps are stored. independent: also randomise each layer alone. sentence: the id of a paper's
    sentence about GradCAM; None for a finding about each method.
    """

    metrics = ("pearson", "ssim")
    series = "method"

    def __init__(self, samples: int, independent: bool, sentence: str | None = None) -> None:
        self.samples, self.independent, self.sentence = samples, independent, sentence

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed, "images": images} for seed in run.seeds for images in run.batches(len(run.dataset), 16)]

    def load(self, run: Run, task: Task) -> Load:
        return Load(run.config.model, task["seed"], len(task["images"]), len(self._variants(run)) * run.passes, 0)

    def _variants(self, run: Run) -> dict[str, tuple[str, dict[str, Any]]]:
        """Return {label: (kind, changes to the model's config)}, the trained network first."""
        net = skeleton(run.config.model)[0]
        names = {module: name for name, module in getattr(net, "layer_names", {}).items()}
        layers = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        init = {"init": run.config.model.get("init") or "kaiming_normal"}
        found: dict[str, tuple[str, dict[str, Any]]] = {TRAINED: (TRAINED, {})}
        for i in reversed(range(len(layers))):
            change = {"trained_up_to": layers[i - 1]} if i else {"weights": None}
            found[f"from {names.get(layers[i], layers[i])}"] = ("cascading", init | change)
        for layer in layers if self.independent else ():
            found[f"only {names.get(layer, layer)}"] = ("independent", init | {"trained_except": layer})
        found[FLOOR] = ("floor", init | {"weights": None})
        return found

    def compute(self, run: Run, task: Task) -> Output:
        seed, output = task["seed"], Output(tables={"table": []})
        trained: dict[str, Any] = {}
        random: dict[str, Any] = {}
        classes: list[int] = []
        for label, (kind, changes) in self._variants(run).items():
            model: Model = run.model(seed=seed + OTHER * (kind == "floor"), **changes)
            if kind == TRAINED and not model.trained:
                raise UserError(
                    f"{model.name} has random weights already: the check needs trained ones (model.weights=)"
                )
            batch = run.batch(model, task["images"])
            (maps,), logits = run.explain(model, batch.x, [classes or None])
            if kind == TRAINED:
                trained, classes = maps, logits.argmax(1).tolist()
                output.tables["network"] = [{"seed": seed, "weights": model.weights, "standin": model.standin}]
            if kind == "cascading":
                random = maps  # the last of them is wholly random
            for method, values in maps.items():
                other = (random if kind == "floor" else trained)[method]
                similar = {name: of(values, other).tolist() for name, of in SIMILARITIES.items()}
                for i, image in enumerate(batch.names):
                    row = {"seed": seed, "variant": label, "kind": kind, "image": image, "method": method}
                    output.tables["table"].append(row | {name: each[i] for name, each in similar.items()})
                    if task["images"][i] < self.samples and seed == run.seeds[0] and kind in (TRAINED, "cascading"):
                        output.arrays[f"{image}/{label}/{method}"] = values[i].numpy()
                        output.arrays[f"{image}/pixels"] = batch.pixels[i].numpy()
        return output

    def claims(self, results: Results) -> list[Claim]:
        config = results.config
        if self.sentence:
            other = [
                f"{config.model.name}, {results.rows('network')[0]['weights']}, instead of the Inception v3 of [12]"
            ]
            return replicated([Claim(self.sentence, self._passes(results, "gradcam"))], other)
        return [
            Claim(
                str(m), self._passes(results, m), sentence=PASSES.format(method_title(config, m)), source="The project"
            )
            for m in config.methods
        ]

    def _passes(self, results: Results, method: str) -> list[Compared]:
        """Compare the last similarity of the cascade with the floor, and with that of the trained map, 1."""
        last_variant = results.rows(kind="cascading")[-1]["variant"]
        found = []
        for name, words in (("spearman", "rank correlation"), ("ssim", "SSIM")):
            last, floor, same = (
                Column(results.rows(variant=variant, method=method), name, "image")
                for variant in (last_variant, FLOOR, TRAINED)
            )
            found += [
                Compared(f"{words} with the trained map, all weights random, minus that of {FLOOR}", last - floor,
                         below(0.2, ours="0.2 is ours"), null=same - floor, control="a map that ignores the weights"),
                Compared(f"{words} lost over the cascade", same - last, above(0.2, ours="0.2 is ours"), null=0.0,
                         control="a map that ignores the weights"),
            ]  # fmt: skip
        return found

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        network = results.rows("network")[0]
        images = len({row["image"] for row in results.rows()})
        kinds = [kind for kind in ("cascading", "independent") if results.rows(kind=kind)]
        caption = [
            "Correlation of a map with that of the trained network as weights become random: mean and standard deviation "
            f"over {plural(images, 'image')}",
            "Cascading: from the named layer to the logits"
            + ("; independent: the named layer alone" if len(kinds) > 1 else ""),
            "Dotted: the correlation of the maps of two independent random networks",
            *method_words(results.config),
            f"{results.config.model.name}, {network['weights']}",
        ]
        figure, axes = plot(PAGE_WIDTH, 2.3, caption, columns=len(kinds))
        with styled():
            for axis, kind in zip(axes, kinds, strict=True):
                labels = list(dict.fromkeys(row["variant"] for row in results.rows(kind=kind)))
                for method in results.config.methods:
                    groups = [[r["pearson"] for r in results.rows(variant=v, method=method)] for v in labels]
                    errors = [spread(g) if len(g) > 1 else 0.0 for g in groups]
                    axis.errorbar(range(len(labels)), [mean(g) for g in groups], errors, marker="o", capsize=2,
                                  label=method_title(results.config, method))  # fmt: skip
                for i, method in enumerate(results.config.methods):
                    floor = mean([r["pearson"] for r in results.rows(kind="floor", method=method)])
                    axis.axhline(floor, color=f"C{i}", linewidth=0.7, linestyle=":", zorder=0)
                axis.set_xticks(range(len(labels)), [v.partition(" ")[2] for v in labels], rotation=45, ha="right")
                axis.set_title(kind.capitalize())
                axis.set_ylim(-0.5, 1.05)
            axes[0].set_ylabel("correlation")
            axes[0].legend()
        return {"figure": figure, "maps": self._maps(results)}

    def _maps(self, results: Results) -> Figure:
        shown = [key.removesuffix("/pixels") for key in results.arrays if key.endswith("/pixels")]
        variants = [TRAINED, *dict.fromkeys(row["variant"] for row in results.rows(kind="cascading"))]
        variants = [variants[i] for i in np.unique(np.linspace(0, len(variants) - 1, 8).round().astype(int))]
        rows: list[PanelRow] = []
        for image in shown:
            pixels = results.arrays[f"{image}/pixels"]
            for method in results.config.methods:
                show, _ = display.scaling(method_scaling(results.config, method))
                panels = [Panel(display.picture(pixels), "" if rows else "Input", image)]
                for variant in variants:
                    cell = results.rows(image=image, variant=variant, method=method)[0]
                    map_ = results.arrays[f"{image}/{variant}/{method}"]
                    panels.append(Panel(show(map_, pixels), "" if rows else variant, f"r = {cell['pearson']:.2f}"))
                rows.append(PanelRow(panels, method_title(results.config, method)))
        config = results.config
        caption = [
            "r: correlation with the map of the trained network",
            *map_words(config),
            f"{config.model.name}, {results.rows('network')[0]['weights']}",
        ]
        return panel_grid(rows, caption)
