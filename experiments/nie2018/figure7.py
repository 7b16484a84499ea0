"""nie2018, Figure 7: the l2 distance between the maps of two random logits, averaged over images.

"the average l2 distance of saliency map is much larger than that of both GBP and DeconvNet in either a random VGG or a
trained VGG, which clearly demonstrates that saliency map is class-sensitive but GBP and DeconvNet are not. Interestingly,
in the trained VGG-16 net, the average l2 distance of DeconvNet is slightly larger than that of GBP."

The paper does not say how its maps are scaled before the distance is taken. Maps of different methods differ by orders of
magnitude, so here they are divided by their l2 norm (unit, from 0 to 2); min-max scaled and raw distances stand in the table.
An image's two logits depend only on the seed and its name. One pass over a batch yields the maps of all methods and both
logits; the run keeps the numbers of each image and the maps of the first few.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.nie2018.trained import LABELS, RandomAndTrained, network_label, not_the_papers
from vis import metrics
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, plot, styled
from vis.oldclaims import Claim, Criterion, above, increasing, interval, mean
from vis.runner.experiment import Load, Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results

DISTANCES = {"unit": metrics.unit_distance, "minmax": metrics.minmax_distance, "raw": metrics.distance}
BATCH = 8  # images at a time where batch_size is auto

LARGER = "the average l2 distance of saliency map is much larger than that of both GBP and DeconvNet in a {} VGG"
SLIGHTLY = "in the trained VGG-16 net, the average l2 distance of DeconvNet is slightly larger than that of GBP"
ORDER = "Finding: on random weights each image has the order of the means."
STAND_IN = "Of the stand-in network: the saliency map depends most on the logit, GBP least."


def two_logits(seed: int, image: str, count: int) -> tuple[int, int]:
    """Draw two different logits of `count` for the image of this name."""
    first, second = np.random.default_rng([seed, zlib.crc32(image.encode())]).choice(count, 2, replace=False)
    return int(first), int(second)


class Figure7(RandomAndTrained):
    """Measure the distance of two logits' maps. samples: images whose maps are kept; the rest: see RandomAndTrained."""

    metrics = ("unit", "minmax", "raw")
    series = "method"

    def __init__(self, models: Mapping[str, Mapping[str, Any]], samples: int, **networks: Any) -> None:
        super().__init__(models, **networks)
        self.samples = samples

    def tasks(self, run: Run) -> Sequence[Task]:
        return [
            {"network": network, "seed": seed, "images": images}
            for network in self.networks()
            for seed in self.seeds(run, network)
            for images in run.batches(len(run.dataset), BATCH)
        ]

    def _kept(self, run: Run, task: Task) -> int:
        """Return the number of a task's images that are among the samples."""
        return sum(i < self.samples for i in task["images"]) if task["seed"] == run.seeds[0] else 0

    def load(self, run: Run, task: Task) -> Load:
        maps, kept = 2 * len(run.methods), self._kept(run, task)
        return Load(self.models[task["network"]], task["seed"], len(task["images"]), maps, kept * (1 + maps))

    def compute(self, run: Run, task: Task) -> Output:
        network, seed = task["network"], task["seed"]
        model = run.model(self.models[network], seed)
        batch = run.batch(model, task["images"])
        pairs = [two_logits(seed, name, model.num_classes or 1000) for name in batch.names]
        targets = [list(logits) for logits in zip(*pairs, strict=True)]
        first, second = run.explain(model, batch.x, targets, keep=run.device.type != "mps").maps
        output = Output(tables={"table": []})
        for method in run.methods:
            found = {name: of(first[method], second[method]).tolist() for name, of in DISTANCES.items()}
            for i, image in enumerate(batch.names):
                row = {"network": network, "seed": seed, "image": image, "method": method, "logits": list(pairs[i])}
                output.tables["table"].append(row | {name: values[i] for name, values in found.items()})
        for i in range(self._kept(run, task)):
            where = f"{network}/{batch.names[i]}"
            output.arrays[f"{where}/pixels"] = batch.pixels[i].numpy()
            for method in run.methods:
                for number, maps in enumerate((first, second), start=1):
                    output.arrays[f"{where}/{number}/{method}"] = maps[method][i].cpu().numpy()
        output.tables["weights"] = [{"network": network, "seed": seed, "weights": model.weights}] * (
            task["images"][0] == 0
        )
        return output

    def claims(self, results: Results) -> list[Claim]:
        found: list[Claim] = []
        unit = "l2 distance of unit-l2 maps"
        order = Criterion("saliency > DeconvNet > GBP in each image", lambda values: all(v > 0 for v in values))
        apart = Criterion("95 % confidence interval above 0", lambda values: interval(values)[0] > 0)

        def claim(name: str, sentence: str, metric: str, criterion: Criterion, values: Any, **options: Any) -> None:
            metric = f"{unit}, {metric}" if metric else unit
            options = {"source": "Figure 7, section 4.3", "reason": reason} | options
            found.append(Claim(name, sentence, metric=metric, criterion=criterion, values=values, **options))

        for network in ("random", "trained"):
            sal, dec, gbp = ([row["unit"] for row in results.rows(network=network, method=method)] for method in LABELS)
            each = list(zip(sal, dec, gbp, strict=True))
            reason = not_the_papers(results, network, random=network == "random")
            much = [s / max(d, g) for s, d, g in each]
            claim(f"{network}_larger", LARGER.format(network), "saliency over the larger of the others", above(2), much)
            if network == "random":
                smaller = "the smaller of saliency - DeconvNet and DeconvNet - GBP"
                least, ratio = [min(s - d, d - g) for s, d, g in each], [s / g for s, _, g in each]
                claim("random_order", ORDER, smaller, order, least, origin="project")
                claim("random_ratio", LARGER.format(network), "saliency over GBP", above(8), ratio)
            else:
                claim("trained_slightly", SLIGHTLY, "DeconvNet - GBP", apart, [d - g for _, d, g in each])
                if reason and each:
                    here = {"GBP": gbp, "DeconvNet": dec, "saliency map": sal}
                    claim("standin_order", STAND_IN, "", increasing(), here, reason="", origin="project")
        return found

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        networks = list(dict.fromkeys(row["network"] for row in results.rows("weights")))
        count = len({row["image"] for row in results.rows()})
        seeds = f", {results.config.seeds} seeds of the random weights" if results.config.seeds > 1 else ""
        notes = [
            f"Bars: mean over {plural(count, 'image')}{seeds}, and its 95 % confidence interval",
            *(f"{n}: {results.rows('weights', network=n)[0]['weights']}" for n in networks),
            *(f"{n}: not measured, {why}" for n, why in results.config.experiment.missing.items()),
        ]
        distance = "Mean l2 distance between the maps of two random logits, of maps "
        return {
            "figure": _bars(results, networks, "unit", [distance + "divided by their l2 norm", *notes]),
            "other_scaling": _bars(results, networks, "minmax", [distance + "scaled to [0, 1]", *notes]),
            "samples": self._samples(results, networks),
        }

    def _samples(self, results: Results, networks: list[str]) -> Figure:
        rows: list[PanelRow] = []
        for network in networks:
            for key in [k for k in results.arrays if k.startswith(f"{network}/") and k.endswith("/pixels")][
                : self.samples
            ]:
                where, image = key.removesuffix("/pixels"), key.split("/", 1)[1].removesuffix("/pixels")
                panels = [Panel(display.picture(results.arrays[key]), "" if rows else "Input", image)]
                for cell in results.rows(network=network, image=image, seed=results.config.seed):
                    for number, logit in enumerate(cell["logits"], start=1):
                        map_ = display.minmax(results.arrays[f"{where}/{number}/{cell['method']}"])
                        title = "" if rows else LABELS.get(cell["method"], str(cell["method"]))
                        panels.append(Panel(map_, title, f"logit {logit}"))
                rows.append(PanelRow(panels, network_label(results, network)))
        caption = ["Maps of two random logits of the same image", display.scaling("minmax")[1]]
        return panel_grid(rows, caption)


def _by_image(results: Results, network: str, distance: str) -> dict[str, list[float]]:
    """Return {method: one number for each image, its mean over the seeds}."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in results.rows(network=network):
        values.setdefault(row["method"], {}).setdefault(row["image"], []).append(row[distance])
    return {method: [mean(each) for each in images.values()] for method, images in values.items()}


def _bars(results: Results, networks: list[str], distance: str, caption: Sequence[str]) -> Figure:
    """Draw the paper's bar chart: a group for each network, a bar for each method."""
    figure, (axes,) = plot(4.2, 2.4, caption)
    with styled():
        methods = list(results.config.methods)
        width = 0.8 / len(methods)
        for i, method in enumerate(methods):
            for j, network in enumerate(networks):
                values = _by_image(results, network, distance)[method]
                place, height = j + (i - (len(methods) - 1) / 2) * width, mean(values)
                label = LABELS.get(method, method) if j == 0 else None
                axes.bar(place, height, 0.92 * width, color=f"C{i}", label=label)
                top = height
                if len(values) > 1:
                    low, top = interval(values)
                    axes.errorbar(
                        place, height, [[height - low], [top - height]], color="black", capsize=2, linewidth=0.8
                    )
                axes.text(place, top, f"{height:.3g}", ha="center", va="bottom", fontsize=6.5)
        axes.set_xticks(range(len(networks)), [network_label(results, n) for n in networks])
        axes.set_ylabel("mean l2 distance")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
