"""nie2018, Figure 7: the l2 distance between the maps of two random logits, averaged over images.

"the average l2 distance of saliency map is much larger than that of both GBP and DeconvNet in either a random VGG or a
trained VGG, which clearly demonstrates that saliency map is class-sensitive but GBP and DeconvNet are not. Interestingly,
in the trained VGG-16 net, the average l2 distance of DeconvNet is slightly larger than that of GBP."

The paper does not say how its maps are scaled before the distance is taken. Maps of different methods differ by orders of
magnitude, so here they are divided by their l2 norm (unit, from 0 to 2); min-max scaled and raw distances stand in the table,
beside the distance of the maps of one logit with and without ±2 gray levels added to the input (noise), the correlation of
the two logits' maps, and HP.
SqueezeNet's maps are those before its last ReLU (`trained.before_last_relu`); as_is is the distance behind it, over maps that are
not 0, and zeros the share of the two maps that are 0. The network `control` is the trained one with random weights.
An image's two logits depend only on the seed and its name. One pass over a batch yields the maps of all methods and both
logits; the run keeps the numbers of each image and the maps of the first few.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.nie2018.figure8 import random_signs
from experiments.nie2018.trained import (
    GIVEN_10K,
    LABELS,
    RandomAndTrained,
    before_last_relu,
    difference,
    judged,
    network_label,
    network_of,
    rectified,
)
from vis import metrics
from vis.claims import Claim, Column, Compared, Rule, above, below, interval, mean
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, plot, styled
from vis.runner.experiment import Load, Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

DISTANCES = {"unit": metrics.unit_distance, "minmax": metrics.minmax_distance, "raw": metrics.distance}
BATCH = 8  # images at a time where batch_size is auto

OURS = "the bounds are ours"
E_IMAGES = ("dog", "panda", "forest", "mastiff")  # of the supplement's figures 1 to 8


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
        node, kept = self.models[task["network"]], self._kept(run, task)
        maps = (3 + 2 * rectified(node)) * len(run.methods)
        return Load(node, task["seed"], len(task["images"]), maps, kept * (1 + 2 * len(run.methods)))

    def compute(self, run: Run, task: Task) -> Output:
        network, seed = task["network"], task["seed"]
        model = network_of(run, task, self.models[network])
        batch = run.batch(model, task["images"])
        pairs = [two_logits(seed, name, model.num_classes or 1000) for name in batch.names]
        targets = [list(logits) for logits in zip(*pairs, strict=True)]
        keep = run.device.type != "mps"
        with before_last_relu(model):
            first, second = run.explain(model, batch.x, targets, keep).maps
        noisy = (batch.pixels + random_signs(seed, batch) * 2 / 255).clamp(0, 1).to(batch.x.dtype)
        x = run.preprocess(model)(noisy).to(batch.x.device, memory_format=model.memory_format)
        with before_last_relu(model):
            (noise,) = run.explain(model, x, targets[:1], keep).maps
        as_is = run.explain(model, batch.x, targets, keep).maps if rectified(model.node) else []
        output = Output(tables={"table": []})
        for method in run.methods:
            found = {name: of(first[method], second[method]).tolist() for name, of in DISTANCES.items()}
            found |= {
                "noise": metrics.unit_distance(first[method], noise[method]).tolist(),
                "correlation": metrics.pearson(first[method], second[method]).tolist(),
                "HP": metrics.high_pass_pearson(first[method], batch.x.to(first[method].device)).tolist(),
            }
            if as_is:
                a, b = (each[method] for each in as_is)
                none = [(each == 0).flatten(1).all(1) for each in (a, b)]
                distances = zip(metrics.unit_distance(a, b).tolist(), (none[0] | none[1]).tolist(), strict=True)
                found["as_is"] = [None if zero else value for value, zero in distances]
                found["zeros"] = ((none[0].double() + none[1].double()) / 2).tolist()
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

    def summaries(self, results: Results) -> dict[str, Rows]:
        return {"ratios": list(_ratios(results))}

    def claims(self, results: Results) -> list[Claim]:
        if not set(LABELS) <= set(results.config.methods):
            return []
        found = []
        for network, id_ in (("random", "N-4.3-a"), ("trained", "N-4.3-b")):
            metric = f"{network}: unit l2 distance of the saliency maps over the larger of the others"
            larger = Compared(metric, self._ratio(results, "larger", network), above(2, fails=1.2, ours=OURS),
                              null=1.0, control="equal distances: 1")  # fmt: skip
            found += judged([Claim(id_, [larger])], results, GIVEN_10K, [network], before_relu=True)
        both = ["random", "trained"]
        found += judged([Claim("N-4.3-c", self._beyond_noise(results))], results, GIVEN_10K, both, before_relu=True)
        control = "control" if "control" in self.networks() else "random"
        slightly = Rule(((1, 2),), ((-np.inf, 1), (2, np.inf)), ours="up to twice is our reading of slightly")
        exchanged = "(distance of DeconvNet minus GBP's) x (HP of GBP minus DeconvNet's)"
        trained = [
            Claim("N-4.3-d", [
                Compared("unit l2 distance of DeconvNet over GBP's", self._ratio(results, "slightly", "trained"), slightly,
                         null=self._ratio(results, "slightly", control), control="random weights"),
            ]),
            Claim("N-4.3-e", [
                Compared(exchanged, self._ratio(results, "exchanged", "trained"), above(0), null=0.0,
                         control="no relation: 0"),
            ]),
        ]  # fmt: skip
        found += judged(trained, results, GIVEN_10K, ["trained"], before_relu=True)
        compelling = Claim("N-E-a", self._compelling(results))
        return found + judged([compelling], results, E_IMAGES, both, before_relu=True)

    def _ratio(self, results: Results, name: str, network: str) -> Column:
        return Column(results.rows("ratios", network=network), name, _per(network))

    def _beyond_noise(self, results: Results) -> list[Compared]:
        metric = "distance of two logits' maps over that of one logit's with noise of 2 gray levels"
        return [
            Compared(f"{network}, {LABELS[method]}: {metric}", self._ratio(results, f"beyond_{method}", network),
                     above(1) if method == "saliency" else below(0.5, fails=1, ours=OURS), null=1.0,
                     control="no more than by the noise: 1")
            for network in ("random", "trained") for method in LABELS
        ]  # fmt: skip

    def _compelling(self, results: Results) -> list[Compared]:
        def of(name: str, network: str, method: str) -> Column:
            return Column(results.rows(network=network, method=method), name, _per(network))

        what = {"HP": "HP", "correlation": "correlation of the maps of two logits"}
        return [
            difference(f"{network}: {metric}, {LABELS[method]} minus saliency map", of(name, network, method),
                       of(name, network, "saliency"), above(0))
            for network in ("random", "trained") for name, metric in what.items() for method in ("deconvnet", "gbp")
        ]  # fmt: skip

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        networks = list(dict.fromkeys(row["network"] for row in results.rows("weights")))
        count = len({row["image"] for row in results.rows()})
        seeds = f", {results.config.seeds} seeds of the random weights" if results.config.seeds > 1 else ""
        notes = [
            f"Bars: mean over {plural(count, 'image')}{seeds}, and its 95 % confidence interval, cut at 0",
            *(f"{network_label(results, n)}: {results.rows('weights', network=n)[0]['weights']}" for n in networks),
            *_behind(results, networks),
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
                        map_ = display.midgray(results.arrays[f"{where}/{number}/{cell['method']}"], display.CLIP)
                        title = "" if rows else LABELS.get(cell["method"], str(cell["method"]))
                        panels.append(Panel(map_, title, f"logit {logit}"))
                rows.append(PanelRow(panels, network_label(results, network)))
        caption = ["Maps of two random logits of the same image", display.scaling("midgray")[1]]
        return panel_grid(rows, caption)


def _per(network: str) -> str:
    """The independent units: photographs of one trained network, otherwise networks."""
    return "image" if network == "trained" else "seed"


def _ratios(results: Results) -> Iterator[dict[str, Any]]:
    """Yield the ratios that claims compare, a row for each network, seed and photograph."""
    cells: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in results.rows():
        cells.setdefault((row["network"], row["seed"], row["image"]), {})[row["method"]] = row
    for (network, seed, image), of in cells.items():
        if not set(LABELS) <= set(of):
            continue
        sal, dec, gbp = (of[method]["unit"] for method in LABELS)
        yield {
            "network": network, "seed": seed, "image": image, "larger": sal / max(dec, gbp), "slightly": dec / gbp,
            "exchanged": (dec - gbp) * (of["gbp"]["HP"] - of["deconvnet"]["HP"]),
            **{f"beyond_{m}": of[m]["unit"] / of[m]["noise"] for m in LABELS},
        }  # fmt: skip


def _behind(results: Results, networks: Sequence[str]) -> Iterator[str]:
    """Describe the distances behind a network's last ReLU, for the caption."""
    for network in networks:
        rows = [row for row in results.rows(network=network) if row.get("zeros") is not None]
        if not rows:
            continue
        kept = {m: [r["as_is"] for r in rows if r["method"] == m and r["as_is"] is not None] for m in LABELS}
        distances = ", ".join(f"{mean(values):.3f} ({LABELS[m]})" for m, values in kept.items() if values)
        yield (
            f"{network_label(results, network)}: maps before its last ReLU; behind it the distances of maps that are not 0 are "
            f"{distances}, and {mean([row['zeros'] for row in rows]):.1%} of the maps are 0"
        )


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
                        place, height, [[height - max(low, 0)], [top - height]], color="black", capsize=2, linewidth=0.8
                    )
                axes.text(place, top, f"{height:.3g}", ha="center", va="bottom", fontsize=6.5)
        axes.set_xticks(range(len(networks)), [network_label(results, n).replace(" ", "\n", 1) for n in networks])
        axes.set_ylabel("mean l2 distance")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
