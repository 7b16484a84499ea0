"""nie2018, Figure 3: why trained weights filter out image patches, and why GBP and DeconvNet do not tell neurons apart.

(a) a toy example: weights in a cone; patches in the opposite one, the "dead zone", pass no ReLU. (b), (c) "the histograms of
weights connected to the respective one of any two different neurons in the first fully connected layer of the trained VGG-16
net are very similar to each other ... which means the (modified) gradients at any two different neurons in the layer "fc1"
with respect to the input image are almost the same" (Eq. 9).

Finding 10: that does not follow. In a random VGG-16 the histograms of two neurons are just as alike, and the saliency maps of
the two have nothing in common. So the maps of the neurons are compared as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.nie2018.trained import LABELS, RandomAndTrained, network_label, not_the_papers
from vis import metrics
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, plot, styled
from vis.methods.target import Target
from vis.models import resolve_layer
from vis.oldclaims import Claim, above, below, increasing, near_zero
from vis.runner.experiment import Load, Run, Task
from vis.store.run_folder import Output, Results

ALIKE = "the histograms of weights connected to any two different neurons in fc1 are very similar to each other"
SAME = "the (modified) gradients at any two different neurons in the layer fc1 are almost the same: {}"
NOT_SAME = "Finding 10: the histograms are as alike in a random network, yet the saliency maps have nothing in common."
STAND_IN = "Of the stand-in network: GBP tells the two neurons less apart than the saliency map."
DEAD = "all image patches lying in the dead zone will be filtered out by the forward ReLU"
CONE = np.deg2rad(25)  # half the angle of the toy's two cones


def toy(seed: int, count: int = 40) -> dict[str, np.ndarray]:
    """Draw weights w in a cone, patches y in the opposite cone and patches y in any direction: points [count, 2]."""
    random = np.random.default_rng([seed, 3])

    def points(direction: float, spread: float) -> np.ndarray:
        angle, radius = direction + random.uniform(-spread, spread, count), np.sqrt(random.uniform(0.1, 1, count))
        return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    up = np.deg2rad(60)
    return {"w": points(up, CONE), "dead": points(up + np.pi, CONE), "any": points(0, np.pi)}


class Figure3(RandomAndTrained):
    """Compare weights and maps of two neurons. neurons: two of fc1; layer: another layer; the rest: see RandomAndTrained."""

    metrics = ("correlation",)
    series = "method"

    def __init__(
        self, models: Mapping[str, Mapping[str, Any]], neurons: Sequence[int], layer: str, **networks: Any
    ) -> None:
        super().__init__(models, **networks)
        (self.a, self.b), self.layer = neurons, layer

    def tasks(self, run: Run) -> Sequence[Task]:
        return [
            {"network": network, "seed": seed, "images": images}
            for network in self.networks()
            for seed in self.seeds(run, network)
            for images in run.batches(len(run.dataset), 4)
        ]

    def load(self, run: Run, task: Task) -> Load:
        images, maps = len(task["images"]), 2 * len(run.methods)
        return Load(self.models[task["network"]], task["seed"], images, maps, images * (1 + maps))

    def compute(self, run: Run, task: Task) -> Output:
        from scipy.stats import ks_2samp

        network, seed = task["network"], task["seed"]
        model = run.model(self.models[network], seed)
        batch = run.batch(model, task["images"])
        layer = resolve_layer(model.net, self.layer)
        first, second = run.explain(
            model, batch.x, [[Target(n, layer)] * len(batch.names) for n in (self.a, self.b)]
        ).maps
        output = Output(tables={"table": [], "weights": []})
        if task["images"][0] == 0:
            weight: Any = model.net.get_submodule(layer).weight
            w = [weight[n].detach().double().cpu().numpy().ravel() for n in (self.a, self.b)]
            row = {"network": network, "seed": seed, "KS": float(ks_2samp(*w).statistic), "count": len(w[0])}
            row |= {f"{name}_{n}": float(of(v)) for n, v in zip((self.a, self.b), w, strict=True)
                    for name, of in (("mean", np.mean), ("std", np.std))}  # fmt: skip
            output.tables["weights"].append(row | {"weights": model.weights})
            if seed == run.seeds[0]:
                output.arrays |= {
                    f"{network}/weights/{n}": v.astype(np.float32) for n, v in zip((self.a, self.b), w, strict=True)
                }
                output.arrays |= {f"{network}/toy/{n}": v for n, v in toy(run.config.seed).items()}
        for method in run.methods:
            correlation = metrics.pearson(first[method], second[method])
            for i, image in enumerate(batch.names):
                row = {"network": network, "seed": seed, "image": image, "method": method}
                output.tables["table"].append({**row, "correlation": correlation[i].item()})
                if seed == run.seeds[0]:
                    for n, maps in ((self.a, first), (self.b, second)):
                        output.arrays[f"{network}/{image}/{n}/{method}"] = maps[method][i].numpy()
        if seed == run.seeds[0]:
            output.arrays |= {
                f"{network}/{image}/pixels": batch.pixels[i].numpy() for i, image in enumerate(batch.names)
            }
        return output

    def claims(self, results: Results) -> list[Claim]:
        found: list[Claim] = []
        metric = f"correlation of the maps of neurons {self.a} and {self.b}"
        ks = f"Kolmogorov-Smirnov distance of the weights into neurons {self.a} and {self.b}"
        points = {name: results.arrays[f"{next(iter(self._measured(results)))}/toy/{name}"] for name in ("w", "dead")}
        through = float((points["dead"] @ points["w"].T > 0).mean())
        found.append(
            Claim(
                "dead_zone",
                DEAD,
                source="Figure 3 (a)",
                metric="share of (patch, weight) that pass, in the toy",
                criterion=near_zero(1e-12),
                values=[through],
            )
        )
        for network in self.models:
            random = network == "random"
            reason = not_the_papers(results, network, random)
            alike = [row["KS"] for row in results.rows("weights", network=network)]
            here = "Finding 10: " if random else ""
            found.append(
                Claim(
                    f"{network}_alike",
                    here + ALIKE,
                    source="Figure 3 (b, c)",
                    metric=ks,
                    criterion=below(0.05, each=True),
                    values=alike,
                    reason=reason,
                    origin="project" if random else "paper",
                )
            )
            for method in (m for m in LABELS if m in results.config.methods):
                values = [row["correlation"] for row in results.rows(network=network, method=method)]
                if random and method == "saliency":
                    claim = Claim(
                        "finding10",
                        NOT_SAME,
                        source="Section 3.2.3, Eq. 9",
                        metric=metric,
                        criterion=near_zero(0.04, each=True),
                        values=values,
                        reason=reason,
                        origin="project",
                    )
                else:
                    sentence = SAME.format(LABELS[method])
                    claim = Claim(
                        f"{network}_{method}",
                        sentence,
                        source="Section 3.2.3, Eq. 9",
                        metric=metric,
                        criterion=above(0.9),
                        values=values,
                        reason=reason,
                    )
                found.append(claim)
            if not random and reason and alike:
                by_method = {
                    LABELS[m]: [row["correlation"] for row in results.rows(network=network, method=m)]
                    for m in ("saliency", "gbp")
                    if m in results.config.methods
                }
                found.append(
                    Claim(
                        "standin_order",
                        STAND_IN,
                        source="Section 3.2.3, Eq. 9",
                        metric=metric,
                        criterion=increasing(),
                        values=by_method,
                        origin="project",
                    )
                )
        return found

    def _measured(self, results: Results) -> list[str]:
        return list(dict.fromkeys(row["network"] for row in results.rows("weights")))

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, networks = results.config, self._measured(results)
        stats = [results.rows("weights", network=network)[0] for network in networks]
        caption = [
            "(a) A toy: weights w in a cone, patches y in the dead zone opposite, which no w lets through the ReLU",
            f"The others: weights into the neurons {self.a} and {self.b} of {self.layer}",
            *(f"{s['network']}: {s['weights']}, KS distance {s['KS']:.3f}, std {s[f'std_{self.a}']:.3g} and "
              f"{s[f'std_{self.b}']:.3g}" for s in stats),
            *(f"{n}: not measured, {why}" for n, why in config.experiment.missing.items()),
        ]  # fmt: skip
        figure, axes = plot(2.3 * (1 + len(networks)), 2.2, caption, columns=1 + len(networks))
        with styled():
            for (name, color), label in zip((("w", "C1"), ("dead", "0.4")), ("w", "y, dead zone"), strict=True):
                points = results.arrays[f"{networks[0]}/toy/{name}"]
                center = np.arctan2(*points.mean(0)[::-1])
                angles = np.linspace(center - CONE, center + CONE, 30)
                axes[0].fill(
                    *np.vstack([[0, 0], np.stack([np.cos(angles), np.sin(angles)], axis=1)]).T, color=color, alpha=0.15
                )
                axes[0].plot(*points.T, ".", color=color, label=label)
            axes[0].set_aspect("equal")
            axes[0].set_title("(a) a toy example")
            axes[0].set_xlim(-1, 1.6)
            axes[0].legend(loc="lower right")
            for each, network in zip(axes[1:], networks, strict=True):
                w = [results.arrays[f"{network}/weights/{n}"] for n in (self.a, self.b)]
                bins = np.linspace(min(v.min() for v in w), max(v.max() for v in w), min(60, int(len(w[0]) ** 0.5)))
                for v, n in zip(w, (self.a, self.b), strict=True):
                    each.hist(v, bins, histtype="step", density=True, label=f"neuron {n}")
                each.set_title(
                    "stand-in" if config.experiment.models[network].weights == "standin" else f"{network} VGG"
                )
                each.set_yticks([])
            axes[-1].legend()
        return {"figure": figure, "maps": self._maps(results, networks)}

    def _maps(self, results: Results, networks: list[str]) -> Figure:
        rows: list[PanelRow] = []
        image, seed = results.rows()[0]["image"], results.config.seed
        for network in networks:
            for n in (self.a, self.b):
                pixels = display.picture(results.arrays[f"{network}/{image}/pixels"])
                panels = [Panel(pixels, "" if rows else "Input", image)]
                for row in results.rows(network=network, image=image, seed=seed):
                    map_ = display.minmax(results.arrays[f"{network}/{image}/{n}/{row['method']}"])
                    note = f"correlation {row['correlation']:.3f}" if n == self.b else ""
                    panels.append(Panel(map_, "" if rows else LABELS.get(row["method"], str(row["method"])), note))
                rows.append(PanelRow(panels, f"{network_label(results, network)}, {n}"))
        caption = [
            f"Maps of the neurons {self.a} and {self.b} of {self.layer}, and under them the correlation of the two",
            display.scaling("minmax")[1],
        ]
        return panel_grid(rows, caption)
