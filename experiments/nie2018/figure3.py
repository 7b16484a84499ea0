"""nie2018, Figure 3: why trained weights filter out image patches, and why GBP and DeconvNet do not tell neurons apart.

(a) a toy example: weights in a cone; patches in the opposite one, the "dead zone", pass no ReLU. (b), (c) "the histograms of
weights connected to the respective one of any two different neurons in the first fully connected layer of the trained VGG-16
net are very similar to each other ... which means the (modified) gradients at any two different neurons in the layer "fc1"
with respect to the input image are almost the same" (Eq. 9).

Tables: `pairs`, the Kolmogorov-Smirnov distance of the weights into two neurons; `neurons`, the fit of a Gaussian to the
weights into one; `table`, for each photograph and method,

    correlation   of the maps of two neurons, mean over pairs; other: of a neuron's maps of two photographs
    eq9           cosine of the map of the largest logit and the mean of the neurons' maps; eq9_other: of the next photograph's
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn.functional import normalize

from experiments.nie2018.trained import (
    LABELS,
    RandomAndTrained,
    judged,
    network_label,
    network_of,
)
from vis import metrics
from vis.claims import Claim, Column, Compared, Rule, above, below, near
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, plot, styled
from vis.methods.target import Target
from vis.models import resolve_layer
from vis.runner.experiment import Load, Run, Task
from vis.store.run_folder import Output, Results

CONE = np.deg2rad(25)  # half the angle of the toy's two cones
OURS = "the bounds are ours"
APART = (
    "In a random network the histograms of two neurons are as alike, yet their saliency maps have nothing in common."
)
RECTIFIED = ("deconvnet", "gbp")


def toy(seed: int, count: int = 40) -> dict[str, np.ndarray]:
    """Draw weights w in a cone, patches y in the opposite cone and patches y in any direction: points [count, 2]."""
    random = np.random.default_rng([seed, 3])

    def points(direction: float, spread: float) -> np.ndarray:
        angle, radius = direction + random.uniform(-spread, spread, count), np.sqrt(random.uniform(0.1, 1, count))
        return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    up = np.deg2rad(60)
    return {"w": points(up, CONE), "dead": points(up + np.pi, CONE), "any": points(0, np.pi)}


def fit(weights: np.ndarray, seed: int) -> dict[str, float]:
    """Return the distance of weights from the Gaussian of their mean and deviation, that of Laplace draws, and the kurtosis."""
    from scipy.stats import kstest, kurtosis

    def distance(values: np.ndarray) -> float:
        return float(kstest((values - values.mean()) / values.std(), "norm").statistic)

    laplace = np.random.default_rng([seed, 9]).laplace(size=len(weights))
    return {"D": distance(weights), "D_laplace": distance(laplace), "kurtosis": float(kurtosis(weights)),
            "std": float(weights.std())}  # fmt: skip


class Figure3(RandomAndTrained):
    """Compare weights and maps of pairs of neurons.

    neurons: the two that are drawn; layer: theirs; pairs: how many pairs of weights are compared; maps: how many neurons'
    maps; the rest: see RandomAndTrained.
    """

    metrics = ("correlation",)
    series = "method"

    def __init__(
        self, models: Mapping[str, Mapping[str, Any]], neurons: Sequence[int], layer: str, pairs: int, maps: int,
        **networks: Any,
    ) -> None:  # fmt: skip
        super().__init__(models, **networks)
        self.neurons, self.layer, self.pairs, self.maps = list(neurons), layer, pairs, maps

    def tasks(self, run: Run) -> Sequence[Task]:
        return [
            {"network": network, "seed": seed, "images": images}
            for network in self.networks()
            for seed in self.seeds(run, network)
            for images in run.batches(len(run.dataset), 4)
        ]

    def load(self, run: Run, task: Task) -> Load:
        images, maps = len(task["images"]), (1 + max(2, self.maps)) * len(run.methods)
        return Load(self.models[task["network"]], task["seed"], images + 1, maps, images * (1 + 2 * len(run.methods)))

    def compute(self, run: Run, task: Task) -> Output:
        network, seed = task["network"], task["seed"]
        model = network_of(run, task, self.models[network])
        layer = resolve_layer(model.net, self.layer)
        weight: Any = model.net.get_submodule(layer).weight
        rows = weight.detach().flatten(1).double().cpu().numpy()
        output = Output(tables={"table": []})
        if task["images"][0] == 0:
            self._weights(output, rows, {"network": network, "seed": seed}, model.weights)
            if seed == run.seeds[0]:
                output.arrays |= {f"{network}/weights/{n}": rows[n].astype(np.float32) for n in self.neurons}
                output.arrays |= {f"{network}/toy/{n}": points for n, points in toy(run.config.seed).items()}
        following = [(task["images"][-1] + 1) % len(run.dataset)]
        batch = run.batch(model, [*task["images"], *following])
        others = np.random.default_rng([seed, 26]).permutation(len(rows))
        chosen = [*self.neurons, *(int(n) for n in others if n not in self.neurons)][: max(2, self.maps)]
        explained = run.explain(model, batch.x, [None, *([Target(n, layer)] * len(batch.x) for n in chosen)]).maps
        count = len(task["images"])
        for method in run.methods:
            maps = torch.stack([each[method] for each in explained])
            numbers = _of_neurons(maps, count)
            for i, image in enumerate(batch.names[:count]):
                row = {"network": network, "seed": seed, "image": image, "method": method}
                output.tables["table"].append(row | {name: values[i] for name, values in numbers.items()})
                if seed == run.seeds[0] and task["images"][0] + i == 0:
                    for n, map_ in zip(self.neurons, maps[1:], strict=False):
                        output.arrays[f"{network}/{image}/{n}/{method}"] = map_[i].numpy()
                    output.arrays[f"{network}/{image}/pixels"] = batch.pixels[i].numpy()
        return output

    def _weights(self, output: Output, rows: np.ndarray, where: dict[str, Any], words: str) -> None:
        """Add the tables of the weights of all pairs and neurons; the drawn pair comes first."""
        from scipy.stats import ks_2samp

        random = np.random.default_rng([where["seed"], 44])
        pairs = [tuple(self.neurons), *(random.choice(len(rows), 2, replace=False) for _ in range(self.pairs - 1))]
        output.tables["pairs"] = [
            where | {"pair": f"{a}, {b}", "KS": float(ks_2samp(rows[a], rows[b]).statistic), "weights": words}
            for a, b in pairs
        ]
        output.tables["neurons"] = [
            where | {"neuron": int(n), **fit(rows[n], where["seed"])}
            for n in dict.fromkeys(n for p in pairs for n in p)
        ]

    def claims(self, results: Results) -> list[Claim]:
        def of(name: str, method: str, network: str = "trained") -> Column:
            return Column(results.rows(network=network, method=method), name, "image")

        if not set(LABELS) <= set(results.config.methods):
            return []
        neurons, pairs = (results.rows(table, network="trained") for table in ("neurons", "pairs"))
        near_one = above(0.9, fails=0.7, ours=OURS)
        found = [
            Claim("N-3.2.3-h", [
                Compared("Kolmogorov-Smirnov distance of the weights into two neurons", Column(pairs, "KS", "pair"),
                         below(0.05, fails=0.1, ours=OURS), null=1.0, control="weights of opposite signs: 1"),
            ]),
            Claim("N-3.2.3-i", [
                Compared("distance of a neuron's weights from a Gaussian", Column(neurons, "D", "neuron"),
                         below(0.02, fails=0.05, ours=OURS), null=Column(neurons, "D_laplace", "neuron"),
                         control="Laplace draws"),
                Compared("excess kurtosis", Column(neurons, "kurtosis", "neuron"), below(1, ours=OURS), null=3.0,
                         control="Laplace: 3"),
            ]),
            Claim("N-3.2.3-j", [
                Compared(f"{LABELS[m]}: correlation of the maps of two neurons", of("correlation", m), near_one,
                         null=of("other", m), control="maps of two photographs") for m in RECTIFIED
            ]),
            Claim("N-E9", [
                Compared(f"{LABELS[m]}: cosine of the largest logit's map and the mean of the neurons' maps", of("eq9", m),
                         near_one, null=of("eq9_other", m), control="the next photograph's neurons") for m in RECTIFIED
            ]),
        ]  # fmt: skip
        return [*judged(found, results, ["tabby"], ["trained"]), *self._means(results)]

    def _means(self, results: Results) -> list[Claim]:
        """Judge the conclusion from histograms to maps where it must hold as well: on random weights."""
        pairs = results.rows("pairs", network="random")
        alike = Compared("random weights: Kolmogorov-Smirnov distance of the weights into two neurons",
                         Column(pairs, "KS", "seed"), below(0.05, fails=0.1, ours=OURS), null=1.0,
                         control="weights of opposite signs: 1")  # fmt: skip

        def maps(method: str, rule: Rule, null: str) -> Compared:
            rows, others = (results.rows(network="random", method=m) for m in (method, null))
            metric = f"random weights, {LABELS[method]}: correlation of the maps of two neurons"
            control = "maps of two photographs" if method == null else LABELS[null]
            return Compared(metric, Column(rows, "correlation", "seed"), rule, control=control,
                            null=Column(others, "other" if method == null else "correlation", "seed"))  # fmt: skip

        same = [maps(method, above(0.9, fails=0.5, ours=OURS), method) for method in LABELS]
        apart = Claim("saliency_apart", [alike, maps("saliency", near(0, 0.1, ours=OURS), "gbp")], sentence=APART,
                      source="against Section 3.2.3, Figure 3")  # fmt: skip
        premise = all(value < 0.1 for value in alike.column.values)
        return judged([*[Claim("N-3.2.3-k", same)] * premise, apart], results, "", ["random"])

    def _measured(self, results: Results) -> list[str]:
        return list(dict.fromkeys(row["network"] for row in results.rows("pairs")))

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, networks = results.config, self._measured(results)
        caption = [
            "(a) A toy: weights w in a cone; patches y in the dead zone opposite, which no w lets through the ReLU; other "
            "patches, of which some weights let each through",
            f"The others: weights into neurons {self.neurons[0]} and {self.neurons[1]} of {self.layer}, and their "
            "Kolmogorov-Smirnov distance",
            *(f"{n}: {results.rows('pairs', network=n)[0]['weights']}" for n in networks),
            *(f"{n}: not measured, {why}" for n, why in config.experiment.missing.items()),
        ]
        figure, axes = plot(2.3 * (1 + len(networks)), 2.2, caption, columns=1 + len(networks))
        with styled():
            _draw_toy(axes[0], {n: results.arrays[f"{networks[0]}/toy/{n}"] for n in ("w", "dead", "any")})
            for each, network, letter in zip(axes[1:], networks, "bc", strict=False):
                w = [results.arrays[f"{network}/weights/{n}"] for n in self.neurons]
                bins = np.linspace(min(v.min() for v in w), max(v.max() for v in w), min(60, int(len(w[0]) ** 0.5)))
                for v, n in zip(w, self.neurons, strict=True):
                    each.hist(v, bins, histtype="step", density=True, label=f"neuron {n}")
                distance = results.rows("pairs", network=network)[0]["KS"]
                each.set_title(f"({letter}) {network_label(results, network)}, distance {distance:.3f}")
                each.set_xlabel("weight")
                each.set_yticks([])
            axes[-1].legend()
        return {"figure": figure, "maps": self._maps(results, networks)}

    def _maps(self, results: Results, networks: list[str]) -> Figure:
        rows: list[PanelRow] = []
        image, seed = results.rows()[0]["image"], results.config.seed
        for network in networks:
            for n in self.neurons:
                pixels = display.picture(results.arrays[f"{network}/{image}/pixels"])
                panels = [Panel(pixels, "" if rows else "Input", image)]
                for row in results.rows(network=network, image=image, seed=seed):
                    map_ = display.midgray(results.arrays[f"{network}/{image}/{n}/{row['method']}"], display.CLIP)
                    note = f"correlation {row['correlation']:.3f}" if n == self.neurons[-1] else ""
                    panels.append(Panel(map_, "" if rows else LABELS.get(row["method"], str(row["method"])), note))
                rows.append(PanelRow(panels, f"{network_label(results, network)}, {n}"))
        caption = [
            f"Maps of neurons {self.neurons[0]} and {self.neurons[1]} of {self.layer}. Under them: correlation of the maps of "
            f"two neurons, mean over {max(2, self.maps) - 1} pairs",
            f"Maps: {display.scaling('midgray')[1]}",
        ]
        return panel_grid(rows, caption)


def _of_neurons(maps: torch.Tensor, count: int) -> dict[str, list[float]]:
    """Return the columns of the table. maps [1 + neurons, B, C, H, W]: of the largest logit, then of neurons."""
    logit, neurons = maps[0], maps[1:]
    unit = normalize(neurons.double().flatten(2), dim=2).mean(0).view_as(logit)
    pairs = [metrics.pearson(a[:count], b[:count]) for a, b in pairwise(neurons)]
    numbers = {
        "correlation": torch.stack(pairs).mean(0),
        "other": metrics.pearson(neurons[0][:count], neurons[0][1:]),
        "eq9": metrics.cosine(logit[:count], unit[:count]),
        "eq9_other": metrics.cosine(logit[:count], unit[1:]),
    }
    return {name: values[:count].tolist() for name, values in numbers.items()}


def _draw_toy(axes: Any, points: Mapping[str, np.ndarray]) -> None:
    for name, color, label in (("any", "0.8", "y, others"), ("w", "C1", "w"), ("dead", "0.4", "y, dead zone")):
        if name != "any":
            center = np.arctan2(*points[name].mean(0)[::-1])
            angles = np.linspace(center - CONE, center + CONE, 30)
            axes.fill(
                *np.vstack([[0, 0], np.stack([np.cos(angles), np.sin(angles)], axis=1)]).T, color=color, alpha=0.15
            )
        axes.plot(*points[name].T, ".", color=color, label=label)
    axes.set_aspect("equal")
    axes.set_title("(a) a toy example")
    axes.set_xlim(-1, 1.9)
    axes.legend(loc="lower right")
