"""nie2018, Figure 6: three methods in a random three-layer CNN with max-pooling (top row) and in a random VGG-16 (bottom).

"neither GBP or saliency map is impacted by the max-pooling, whereas the DeconvNet visualization has now become human
interpretable instead of being the random noise as before." And in VGG "both GBP and DeconvNet reconstruct every
fine-grained detail of the input image".

DeconvNet owes this to max-pooling: with average pooling in VGG-16 its map shows nothing of the input. GBP is impacted as
well: with overlapping windows an edge wins many times, so the map turns edge-like. DeconvNet recovers only part of the
details . Saliency maps of the maximum logit keep an HP of .017 in both, since its weights point towards the active units;
that of a random logit is 0. Figures: the paper's, and the same networks without max-pooling.
"""

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from scipy.stats import kurtosis
from torch import Tensor
from torch.nn.functional import unfold

from experiments.nie2018.three_layer import (
    CNN,
    LABELS,
    POOL,
    WEIGHTS,
    Shown,
    ThreeLayer,
    column,
    images,
    photographs,
    random_networks,
    targets,
)
from experiments.nie2018.verdicts import READABLE, noise, readable
from vis import metrics
from vis.claims import (
    Claim,
    Column,
    Compared,
    Rule,
    above,
    at_small_sizes,
    below,
    departures,
    mean,
    mean_and_spread,
    near,
    replicated,
    spread,
)
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.store.run_folder import Results
from vis.store.tables import Rows

VGG = {"input_size": 224, **WEIGHTS}
PAPER = {
    "models": {"cnn": CNN | {"num_filters": 256}, "pool": POOL | {"num_filters": 256}, "vgg": VGG, "average": VGG},
}
TITLES = {"pool": "pool", "vgg": "VGG", "cnn": "CNN", "average": "VGG-average"}
PATCH = 16  # pixels
STATISTICS = {
    "HP": "HP",
    "pear": "correlation with the input",
    "kurtosis": "excess kurtosis",
    "participation": "participation ratio",
}
OURS = "the bounds are ours"


def recovered_patches(maps: Tensor, x: Tensor) -> Tensor:
    """Return the share of the 16x16 patches in which map and input correlate by more than .5 after a high-pass: [B]."""
    a, b = (unfold(metrics.high_pass(each), PATCH, stride=PATCH) for each in (maps, x))  # [B, 256, patches]
    a, b = (torch.nn.functional.normalize(each - each.mean(1, keepdim=True), dim=1) for each in (a, b))
    return ((a * b).sum(1) > 0.5).double().mean(1)


class Figure6(ThreeLayer):
    def numbers(self, shown: Shown, target: int, method: str) -> dict[str, Tensor]:
        map_ = shown.maps[target][method]
        return super().numbers(shown, target, method) | {
            "patches": recovered_patches(map_, shown.x),
            "kurtosis": torch.from_numpy(kurtosis(map_.flatten(1).double().numpy(), axis=1)),
            "participation": metrics.participation_ratio(map_),
        }

    def summaries(self, results: Results) -> dict[str, Rows]:
        """By seed and method, how max-pooling changes each statistic, in standard deviations of a change between two seeds."""
        rows: Rows = []
        for method in (m for m in LABELS if m in results.config.methods):
            for name in STATISTICS:
                of: dict[str, dict[int, float]] = {"cnn": {}, "pool": {}}
                for network, values in of.items():
                    for seed in dict.fromkeys(row["seed"] for row in results.rows()):
                        where = {"seed": seed, "network": network, "method": method, "target": targets(results)[0]}
                        values[seed] = mean(column(results, name, **where))
                free = list(of["cnn"].values())
                null = 2**0.5 * spread(free) if len(free) > 1 else float("nan")
                rows += [
                    {"seed": seed, "method": method, "statistic": name, "change": (of["pool"][seed] - value) / null}
                    for seed, value in of["cnn"].items()
                ]
        return {"changes": rows}

    def claims(self, results: Results) -> list[Claim]:
        if not set(LABELS) <= set(results.config.methods):
            return []
        rows = {
            (m, n): results.rows(network=n, method=m, target=targets(results)[0]) for m in LABELS for n in self.models
        }
        found = replicated(
            [*self._pooling(results, rows), *self._vgg(results, rows)],
            photographs(results) + departures(results.config.experiment, PAPER),
        )
        return [*found, *self._findings(rows)]

    def _pooling(self, results: Results, rows: Mapping[tuple[str, str], Rows]) -> list[Claim]:
        """Judge what max-pooling changes in the three-layer CNN."""

        def change(method: str, name: str) -> Column:
            return Column(results.rows("changes", method=method, statistic=name), "change", "seed")

        impact = [
            Compared(f"{LABELS[m]}: change of {words}, in sds of a change between seeds", change(m, name), near(0, 3, ours=OURS),
                null=change("deconvnet", "HP"), control="the change of DeconvNet's HP")
            for m in ("gbp", "saliency") for name, words in STATISTICS.items()
        ]  # fmt: skip
        free = noise("Deconv-CNN", rows["deconvnet", "cnn"], "seed", rows["gbp", "cnn"], "GBP in the CNN")
        pooled, small = readable("Deconv-pool", rows["deconvnet", "pool"], "seed"), at_small_sizes(results.config)
        return [Claim("N-4.2-a", impact), Claim("N-4.2-b", [pooled, *free], reason=small)]

    def _vgg(self, results: Results, rows: Mapping[tuple[str, str], Rows]) -> list[Claim]:
        """Judge maps of the random VGG-16, and what they owe to its max-pooling."""

        def of(method: str, network: str, name: str = "HP") -> Column:
            return Column(rows[method, network], name, "seed")

        gbp, deconvnet = (readable(f"{LABELS[m]}-VGG", rows[m, "vgg"], "seed") for m in ("gbp", "deconvnet"))
        average = Compared("Deconv-VGG with average pooling: HP", of("deconvnet", "average"), below(0.1, 0.2, ours=READABLE),
            null=of("gbp", "average"), control="GBP with average pooling")  # fmt: skip
        deeper = [
            Compared(f"{LABELS[m]}: HP, VGG minus CNN-pool", of(m, "vgg") - of(m, "pool"), near(0, 0.15, ours=OURS),
                null=of("deconvnet", "pool") - of("deconvnet", "cnn"), control="what max-pooling changes in DeconvNet")
            for m in LABELS
        ]  # fmt: skip
        detail = [
            Compared(f"{LABELS[m]}-VGG: share of recovered 16x16 patches", of(m, "vgg", "patches"), above(0.9, 0.75, ours=OURS),
                null=of("deconvnet", "average", "patches"), control="DeconvNet with average pooling")
            for m in ("gbp", "deconvnet")
        ]  # fmt: skip
        saliency = noise("Sal-VGG", rows["saliency", "vgg"], "seed", rows["gbp", "vgg"], "GBP in the VGG")
        return [
            Claim("N-4.2-c", [deconvnet, average]),
            Claim("N-4.2-d", [gbp, deconvnet, *saliency]),
            Claim("N-4.2-e", deeper, reason=at_small_sizes(results.config)),
            Claim("N-4.2-f", detail),
        ]

    def _findings(self, rows: Mapping[tuple[str, str], Rows]) -> list[Claim]:
        def differ(metric: str, name: str, a: tuple[str, str], b: tuple[str, str], least: Rule) -> Compared:
            column = Column(rows[a], name, "seed") - Column(rows[b], name, "seed")
            return Compared(metric, column, least, null=0, control="no difference")

        pool, cnn, vgg = ("gbp", "pool"), ("gbp", "cnn"), ("gbp", "vgg")
        edges = [
            differ("GBP: HP, pooled minus not", "HP", pool, cnn, above(0)),
            differ("GBP: correlation with the input, pooled minus not", "pear", pool, cnn, below(0)),
        ]
        detail = [differ("HP in the random VGG, GBP minus DeconvNet", "HP", vgg, ("deconvnet", "vgg"), above(0))]
        return [
            Claim("edge_like", edges, sentence="Max-pooling makes GBP's map edge-like.", source="Section 4.2, against Figure 6"),
            Claim("more_detail", detail, sentence="In a random VGG-16, GBP recovers more of the fine detail than DeconvNet.",
                source="Section 4.2, Figure 6"),
        ]  # fmt: skip

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        image, target, node = images(results)[0], targets(results)[0], results.config.experiment.models.pool
        methods = [m for m in LABELS if m in results.config.methods]

        def rows(*networks: str) -> list[PanelRow]:
            found = []
            for network in networks:
                panels = [Panel(display.picture(results.arrays[f"{image}/{network}/input"]), f"input: {image}")]
                for method in methods:
                    where = {"image": image, "network": network, "target": target, "method": method}
                    pear, fine = (mean_and_spread(column(results, name, **where)) for name in ("pear", "HP"))
                    map_ = results.arrays[f"{image}/{network}/{target}/{method}"]
                    title = f"{LABELS[method]}-{TITLES[network]}"
                    panels.append(Panel(display.minmax(map_), title, f"correlation {pear}\nhigh-passed {fine}"))
                found.append(PanelRow(panels))
            return found

        size = f"N = {node.num_filters}, stride {node.stride}"
        notes = [
            *random_networks(results),
            "Under each map: its correlation with the input, and that after a high-pass",
        ]
        top = f"A random three-layer CNN ({size}) with a {node.pool} max-pooling (top) and a random VGG-16 (bottom)"
        without = f"The same without max-pooling: a random three-layer CNN ({size}; top), VGG-16 with average pooling (bottom)"
        return {
            "figure": panel_grid(rows("pool", "vgg"), [top, *notes]),
            "without_max_pooling": panel_grid(rows("cnn", "average"), [without, *notes]),
        }
