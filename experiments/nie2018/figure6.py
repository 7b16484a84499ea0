"""nie2018, Figure 6: three methods in a random three-layer CNN with max-pooling (top row) and in a random VGG-16 (bottom).

"neither GBP or saliency map is impacted by the max-pooling, whereas the DeconvNet visualization has now become human
interpretable instead of being the random noise as before." And in VGG "both GBP and DeconvNet reconstruct every
fine-grained detail of the input image".

DeconvNet owes this to max-pooling: with average pooling in VGG-16 its map shows nothing of the input. GBP is impacted as well
(finding 7): with overlapping windows an edge wins many times, so the map turns edge-like. DeconvNet recovers only part of the
details (finding 8). Saliency maps of the maximum logit keep an HP of .017 in both, since its weights point towards the active
units; that of a random logit is 0. Figures: the paper's, and the same networks without max-pooling.
"""

from matplotlib.figure import Figure

from experiments.nie2018.three_layer import CNN, LABELS, WEIGHTS, ThreeLayer, column, images, random_networks, targets
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.oldclaims import Claim, Criterion, Origin, above, below, departures, increasing, mean_and_spread, near_zero
from vis.store.run_folder import Results

VGG = {"input_size": 224, **WEIGHTS}
PAPER = {
    "cnn": CNN | {"num_filters": 256},
    "pool": CNN | {"num_filters": 256, "pool": "9x9"},
    "vgg": VGG | {"pool": "max"},
    "average": VGG | {"pool": "avg"},
}
TITLES = {"pool": "pool", "vgg": "VGG", "cnn": "CNN", "average": "VGG-average"}

READABLE = "the DeconvNet visualization has now become human interpretable instead of being the random noise as before"
UNIMPAIRED = "neither GBP or saliency map is impacted by the max-pooling"
VGG_MAPS = "both GBP and DeconvNet could produce human-interpretable visualizations in a random VGG-16 net"
VGG_NOISE = "in a random VGG-16 net only saliency map generates random noise"
POOLING = "the max-pooling is critical in helping DeconvNet produce human-interpretable visualizations"
EDGES = "Finding 7: GBP is impacted by the max-pooling: its map becomes edge-like, so HP rises and pear falls."
DETAIL = "Finding 8: in a random VGG, GBP reconstructs the fine detail and DeconvNet only part of it."


class Figure6(ThreeLayer):
    def claims(self, results: Results) -> list[Claim]:
        target = targets(results)[0]

        def of(name: str, network: str, method: str) -> list[float]:
            return column(results, name, network=network, method=method, target=target)

        def claim(
            name: str,
            sentence: str,
            metric: str,
            criterion: Criterion,
            *settings: tuple[str, str, str],
            origin: Origin = "paper",
        ) -> Claim:
            """Judge the values of one (column, network, method), or the means of several in the order given."""
            values = {f"{LABELS[m]}-{TITLES[n]}, {c}": of(c, n, m) for c, n, m in settings}
            paper = {"models": {n: PAPER[n] for _, n, _ in settings}}
            reason = departures(results.config.experiment, paper)
            chosen = values if len(settings) > 1 else of(*settings[0])
            return Claim(
                name,
                sentence,
                source="Section 4.2",
                metric=metric,
                criterion=criterion,
                values=chosen,
                reason=reason,
                origin=origin,
            )

        fine, whole = "HP: correlation of the high-passed map and input", "pear: correlation of map and input"
        tiny = near_zero(0.04, each=True)
        same = Criterion("pooling changes it by less than a tenth", lambda values: abs(values[1] / values[0] - 1) < 0.1)
        return [
            claim("deconvnet_pool", READABLE, fine, above(0.4), ("HP", "pool", "deconvnet")),
            claim("deconvnet_no_pool", READABLE, fine, near_zero(0.05, each=True), ("HP", "cnn", "deconvnet")),
            claim("saliency_pool", UNIMPAIRED, fine, tiny, ("HP", "pool", "saliency")),
            claim("gbp_pool", UNIMPAIRED, whole, same, ("pear", "cnn", "gbp"), ("pear", "pool", "gbp")),
            claim("gbp_vgg", VGG_MAPS, fine, above(0.5, each=True), ("HP", "vgg", "gbp")),
            claim("deconvnet_vgg_each", VGG_MAPS, fine, above(0.15, each=True), ("HP", "vgg", "deconvnet")),
            claim("deconvnet_vgg", VGG_MAPS, fine, above(0.3), ("HP", "vgg", "deconvnet")),
            claim("saliency_vgg", VGG_NOISE, fine, tiny, ("HP", "vgg", "saliency")),
            claim("deconvnet_average", POOLING, fine, below(0.1), ("HP", "average", "deconvnet")),
            claim("gbp_average", POOLING, fine, above(0.5, each=True), ("HP", "average", "gbp")),
            claim(
                "finding7_pear",
                EDGES,
                whole,
                increasing(),
                ("pear", "pool", "gbp"),
                ("pear", "cnn", "gbp"),
                origin="project",
            ),
            claim(
                "finding7_HP", EDGES, fine, increasing(), ("HP", "cnn", "gbp"), ("HP", "pool", "gbp"), origin="project"
            ),
            claim(
                "finding8_HP",
                DETAIL,
                fine,
                increasing(),
                ("HP", "vgg", "deconvnet"),
                ("HP", "vgg", "gbp"),
                origin="project",
            ),
            claim(
                "finding8_pear",
                DETAIL,
                whole,
                increasing(),
                ("pear", "vgg", "deconvnet"),
                ("pear", "vgg", "gbp"),
                origin="project",
            ),
        ]

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
