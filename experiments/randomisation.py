"""Test whether maps depend on the weights: the sanity check of Adebayo et al. 2018 (arXiv 1810.03292).

The weights are randomised block by block from the logits down (cascading), or in one layer alone (independent). A second arm
permutes the trained weights inside each tensor instead of drawing new ones. The maps of the class that the trained network
predicts are compared with the maps of the trained network:

    ssim     structural similarity of |map|, clipped at its 99.5th percentile
    rank     rank correlation of |map|
    signed   rank correlation of the map
    pearson  correlation of the map

Maps are summed over the channels. A map of zeros (the class's logit is dead in the random network) has no similarity.

What a number means is seen beside the controls: white noise, blurred noise (both drawn anew at each comparison) and the edges of
the image, which explain nothing; the map of another image by the trained network; and the maps of one image by two independent
random networks, the floor. A map passes if it ends at the floor.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from vis import metrics
from vis.claims import Claim, Column, Compared, above, below, mean, replicated, spread
from vis.errors import UserError
from vis.figures import display, style
from vis.figures.layout import PAGE_WIDTH, Panel, PanelRow, panel_grid, plot, styled
from vis.metrics import clipped, sobel
from vis.metrics.deletion import patch_flipping
from vis.models import Model, own_name, resolve_layer, skeleton
from vis.runner.experiment import Experiment, Load, Run, Task, map_words, method_scaling, method_title, method_words
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.store.tables import numbers

PASSES = "{}: the map depends on the weights of the network, as the sanity check of Adebayo et al. 2018 asks."
TRAINED, FLOOR, OTHER_IMAGE = "trained", "two random networks", "another image"
OTHER = 1_000_003  # between the seeds of two random networks
APART = 7919  # between the seeds of the random networks of two batches of images
WHITE, BLURRED, EDGES = "white_noise", "blurred_noise", "edges"
CONTROLS = {WHITE: "White noise", BLURRED: "Blurred noise", EDGES: "Edges of the image"}
COLOURS = [colour for colour in style.COLOURS if colour != "#7F7F7F"]  # gray is for the controls
MEASURES = {"ssim": "SSIM of |map|", "rank": "rank correlation of |map|", "signed": "rank correlation of the map"}


def views(maps: Tensor) -> dict[str, Tensor]:
    """Return maps [B, C, H, W] as each similarity compares them, by its name."""
    total = maps.double().sum(1, keepdim=True)
    return {
        "ssim": clipped(total),
        "rank": metrics.ranks(total.abs()),
        "signed": metrics.ranks(total),
        "pearson": total,
    }


def similarities(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the similarities [B] of the views of two maps, by name; NaN where one of the maps is zero everywhere."""
    zero = torch.stack([each["pearson"].abs().amax((1, 2, 3)) == 0 for each in (a, b)]).any(0)
    of = {name: metrics.ssim if name == "ssim" else metrics.pearson for name in a}
    return {name: of[name](a[name], b[name]).where(~zero, torch.nan) for name in a}


def noise(key: str, pixels: Tensor, blurred: bool = False) -> Tensor:
    """Return Gaussian noise [1, 1, H, W] that depends on the key; blurred: by 1/14 of the height (16 pixels of 224)."""
    values = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(pixels.shape[-2:])
    return torch.from_numpy(gaussian_filter(values, pixels.shape[-2] / 14) if blurred else values)[None, None]


def controls(key: str, names: Sequence[str], pixels: Tensor) -> dict[str, Tensor]:
    """Return the maps [B, 1, H, W] that are no explanation, by name. key: another one gives other noise."""
    drawn = {
        name: torch.cat([noise(f"{key}/{name}/{image}", pixels, name == BLURRED) for image in names])
        for name in (WHITE, BLURRED)
    }
    return {**drawn, EDGES: sobel(pixels)}


class Randomisation(Experiment):
    """Compare maps of trained and randomised networks.

    samples: number of images whose maps are stored. independent: also randomise each layer alone. stages: of the cascade, a
    number, or the layers or blocks down to which the network becomes random; None for every layer. permuted: also run the arm
    that permutes weights. together: images that share the random networks. flips: patches deleted to measure faithfulness,
    0 for none; flip_steps: forward passes for it. sentence: the id of a paper's sentence about GradCAM; None for a finding
    about each method.
    """

    metrics = ("ssim", "signed")
    series = "method"
    shown: ClassVar[Sequence[str]] = ("ssim", "signed")
    floor: ClassVar[bool] = True  # also compare two random networks

    def __init__(
        self, samples: int, independent: bool, stages: int | Sequence[str] | None = None, permuted: bool = False,
        together: int = 16, flips: int = 0, flip_steps: int = 16, sentence: str | None = None,
    ) -> None:  # fmt: skip
        self.samples, self.independent, self.stages, self.permuted = samples, independent, stages, permuted
        self.together, self.flips, self.flip_steps, self.sentence = together, flips, flip_steps, sentence

    def tasks(self, run: Run) -> Sequence[Task]:
        batches = run.batches(len(run.dataset), self.together)
        return [{"seed": seed, "images": images} for seed in run.seeds for images in batches]

    def load(self, run: Run, task: Task) -> Load:
        flips = self.flip_steps * (len(run.methods) + len(CONTROLS)) * (self.flips > 0)
        passes = len(self._variants(run)) * run.passes + flips
        return Load(run.config.model, task["seed"], len(task["images"]), passes, 0)

    def _stages(self, net: nn.Module, layers: list[str]) -> list[tuple[str, int]]:
        """Return the stages of the cascade, from the logits down: a name, and the index of the first random layer."""
        if self.stages is None or isinstance(self.stages, int):
            count = len(layers) if self.stages is None else min(self.stages, len(layers))
            if count < 1:
                raise UserError(f"experiment.stages={self.stages}: give 1 or more, or the names of layers")
            chosen = np.unique(np.linspace(len(layers) - 1, 0, count).round().astype(int))[::-1].tolist()
            return [(own_name(net, layers[i]), i) for i in chosen]
        found = []
        for stage in self.stages:
            block = resolve_layer(net, stage)
            inside = [i for i, layer in enumerate(layers) if f"{layer}.".startswith(f"{block}.")]
            if not inside:
                raise UserError(f"experiment.stages: {stage} has no convolution and no dense layer")
            found.append((own_name(net, block), inside[0]))
        return found

    def _variants(self, run: Run) -> list[tuple[str, str, dict[str, Any]]]:
        """Return (label, kind, changes to the model's config) of each network, the trained network first."""
        net = skeleton(run.config.model)[0]
        layers = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        init = {"init": run.config.model.get("init") or "kaiming_normal"}
        found: list[tuple[str, str, dict[str, Any]]] = [(TRAINED, TRAINED, {})]
        for kind in ("cascading", "permuted") if self.permuted else ("cascading",):
            arm, everything = (init, {"weights": None}) if kind == "cascading" else ({"init": "permuted"}, {})
            for name, i in self._stages(net, layers):
                found.append((f"from {name}", kind, arm | ({"trained_up_to": layers[i - 1]} if i else everything)))
        for layer in layers if self.independent else ():
            found.append((f"only {own_name(net, layer)}", "independent", init | {"trained_except": layer}))
        return found + [(FLOOR, "floor", init | {"weights": None})] * self.floor

    def compute(self, run: Run, task: Task) -> Output:
        seed, images, output = task["seed"], task["images"], Output(tables={"table": []})
        trained: dict[str, dict[str, Tensor]] = {}
        random: dict[str, dict[str, Tensor]] = {}
        classes: list[int] = []

        def add(label: str, kind: str, names: list[str], maps: Mapping[str, Any], others: Mapping[str, Any]) -> None:
            for method, own in maps.items():
                similar = similarities(own, others[method])
                for i, image in enumerate(names):
                    row = {"seed": seed, "variant": label, "kind": kind, "image": image, "method": method}
                    row |= {n: None if v[i].isnan() else v[i].item() for n, v in similar.items()}
                    output.tables["table"].append(row)

        for label, kind, changes in self._variants(run):
            model: Model = run.model(seed=seed + APART * images[0] + OTHER * (kind == "floor"), **changes)
            if kind == TRAINED and not model.trained:
                raise UserError(
                    f"{model.name} has random weights already: the check needs trained ones (model.weights=)"
                )
            batch = run.batch(model, images)
            (maps,), logits = run.explain(model, batch.x, [classes or None])
            maps = maps | controls(f"{seed}/{kind}/{label}", batch.names, batch.pixels)
            seen = {method: views(values) for method, values in maps.items()}
            if kind == TRAINED:
                trained, classes = seen, logits.argmax(1).tolist()
                output.tables["network"] = [{"seed": seed, "weights": model.weights, "standin": model.standin}]
                if len(run.dataset) > 1:
                    after = run.batch(model, [(i + 1) % len(run.dataset) for i in images])
                    (others,), _ = run.explain(model, after.x, [None])
                    others[EDGES] = sobel(after.pixels)
                    add(OTHER_IMAGE, "other", batch.names, {m: views(v) for m, v in others.items()}, trained)
                if self.flips:
                    output.tables["flips"] = self._flipped(model, batch, maps, classes)
            if kind == "cascading":
                random = seen  # the last of them is wholly random
            add(label, kind, batch.names, seen, random if kind == "floor" else trained)
            for i, image in enumerate(batch.names):
                if images[i] < self.samples and seed == run.seeds[0] and kind in (TRAINED, "cascading"):
                    output.arrays[f"{image}/pixels"] = batch.pixels[i].numpy()
                    stored = {m: v for m, v in maps.items() if m in run.methods or m == WHITE}
                    output.arrays |= {f"{image}/{label}/{m}": v[i].numpy() for m, v in stored.items()}
        return output

    def _flipped(self, model: Model, batch: Any, maps: dict[str, Tensor], classes: list[int]) -> list[dict[str, Any]]:
        """Return rows with the mean drop of the class probability as patches of the mean colour are put in."""
        gray, rows = torch.zeros(1, 1, 1, 1), []
        for method, values in maps.items():
            drops = patch_flipping(
                model.net, batch.x, values.to(batch.x.device), classes, gray, self.flips, self.flip_steps
            ).tolist()
            rows += [{"image": i, "method": method, "drop": d} for i, d in zip(batch.names, drops, strict=True)]
        return rows

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
        for name, words in (("signed", "rank correlation"), ("ssim", "SSIM")):
            last, floor, same = (
                Column(results.rows(variant=variant, kind=kind, method=method), name, "image")
                for variant, kind in ((last_variant, "cascading"), (FLOOR, "floor"), (TRAINED, TRAINED))
            )
            found += [
                Compared(f"{words} with the trained map, all weights random, minus that of {FLOOR}", last - floor,
                         below(0.2, ours="0.2 is ours"), null=same - floor, control="a map that ignores the weights"),
                Compared(f"{words} lost over the cascade", same - last, above(0.2, ours="0.2 is ours"), null=0.0,
                         control="a map that ignores the weights"),
            ]  # fmt: skip
        return found

    def title(self, config: DictConfig, method: str) -> str:
        """Return the name of a method or of a control."""
        return CONTROLS.get(method) or method_title(config, method)

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        kinds = [kind for kind in ("cascading", "permuted", "independent") if results.rows(kind=kind)]
        charts = {{"cascading": "figure"}.get(kind, kind): self._chart(results, kind) for kind in kinds}
        return charts | ({"maps": self._maps(results)} if self.samples else {})

    def _chart(self, results: Results, kind: str) -> Figure:
        config, network = results.config, results.rows("network")[0]
        images = len({row["image"] for row in results.rows()})
        random = {
            "cascading": "all weights from the named layer to the logits are random",
            "permuted": "all weights from the named layer to the logits are permuted inside their tensors",
            "independent": "the weights of the named layer alone are random",
        }
        caption = [
            f"Similarity of a map with that of the trained network as {random[kind]}: mean and standard deviation over "
            f"{plural(images, 'image')}",
            "Gray: maps that explain nothing. Dotted: the map of another image by the trained network",
            *method_words(config),
            f"{config.model.name}, {network['weights']}",
        ]
        labels = list(dict.fromkeys(row["variant"] for row in results.rows(kind=kind)))
        figure, axes = plot(PAGE_WIDTH, 2.7, caption, columns=len(self.shown))
        with styled():
            for axis, name in zip(axes, self.shown, strict=True):
                for i, method in enumerate([*config.methods, *CONTROLS]):
                    groups = [numbers(results.rows(variant=v, kind=kind, method=method), name) for v in labels]
                    points = [(x, g) for x, g in enumerate(groups) if g]
                    gray = method in CONTROLS
                    color = "0.55" if gray else COLOURS[i % len(COLOURS)]
                    marker = "sDx"[list(CONTROLS).index(method)] if gray else "o^v"[i // len(COLOURS) % 3]
                    axis.errorbar([x for x, _ in points], [mean(g) for _, g in points],
                                  [spread(g) if len(g) > 1 else 0.0 for _, g in points], markersize=3, capsize=2,
                                  elinewidth=0.6, linewidth=1, label=self.title(config, method), color=color,
                                  marker=marker)  # fmt: skip
                    other = numbers(results.rows(kind="other", method=method), name)
                    if other and not gray:
                        axis.axhline(mean(other), color=color, linewidth=0.7, linestyle=":", zorder=0)
                some = slice(None, None, -(-len(labels) // 16))
                layers = [label.partition(" ")[2] for label in labels]
                axis.set_xticks(range(len(labels))[some], layers[some], rotation=60, ha="right", rotation_mode="anchor")
                axis.set_title(MEASURES[name])
                axis.set_ylim(-0.3, 1.05)
            axes[0].set_ylabel("similarity with the trained map")
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
        return figure

    def _maps(self, results: Results) -> Figure:
        config = results.config
        shown = [key.removesuffix("/pixels") for key in results.arrays if key.endswith("/pixels")]
        variants = [TRAINED, *dict.fromkeys(row["variant"] for row in results.rows(kind="cascading"))]
        variants = [variants[i] for i in np.unique(np.linspace(0, len(variants) - 1, 8).round().astype(int))]
        rows: list[PanelRow] = []
        for image in shown:
            pixels = results.arrays[f"{image}/pixels"]
            for method in [*config.methods, WHITE]:
                if f"{image}/{TRAINED}/{method}" not in results.arrays:  # a run from before the controls
                    continue
                scaling = "absolute" if method == WHITE else method_scaling(config, method)
                show, _ = display.scaling(scaling)
                panels = [Panel(display.picture(pixels), "" if rows else "Input", image)]
                for variant in variants:
                    kind = TRAINED if variant == TRAINED else "cascading"
                    cell = results.rows(image=image, variant=variant, kind=kind, method=method)[0]
                    map_ = results.arrays[f"{image}/{variant}/{method}"]
                    note = "zero" if cell["ssim"] is None else f"{cell['ssim']:z.2f} / {cell['signed']:z.2f}"
                    panels.append(Panel(show(map_, pixels), "" if rows else variant, note))
                rows.append(PanelRow(panels, self.title(config, method)))
        caption = [
            "Below a map: SSIM of |map| / rank correlation of the map, with the trained network's map. The noise is drawn anew "
            "for each map",
            *map_words(config),
            f"{config.model.name}, {results.rows('network')[0]['weights']}",
        ]
        return panel_grid(rows, caption)
