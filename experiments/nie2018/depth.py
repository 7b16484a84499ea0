"""nie2018, section 3.2.2: "the behaviors of these visualizations will barely change when increasing the depth of neural
networks": the three-layer CNN with 1 to 5 more convolutions, without and with its max-pooling.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.nie2018.three_layer import CNN, LABELS, ThreeLayer, column, images, random_networks, targets
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.oldclaims import Claim, Criterion, departures, mean_and_spread, near_zero
from vis.store.run_folder import Results

PAPER = {"models": {"cnn": CNN | {"num_filters": 256}, "pool": CNN | {"num_filters": 256, "pool": "9x9"}}}
BARELY = "the behaviors of these visualizations will barely change when increasing the depth of neural networks"
CHANGE = 0.15  # of HP, from 0 (noise) to 1 (the input); a larger change is visible in a map


class Depth(ThreeLayer):
    """Measure maps at several depths. depths: numbers of extra convolutions."""

    def __init__(self, models: Mapping[str, Mapping[str, Any]], depths: Sequence[int]) -> None:
        super().__init__(models)
        self.depths = list(depths)

    def settings(self) -> dict[str, tuple[str, dict[str, Any]]]:
        return {f"{network}_{n}": (network, {"extra": n}) for network in self.models for n in self.depths}

    def claims(self, results: Results) -> list[Claim]:
        target = targets(results)[0]

        def of(network: str, method: str) -> dict[str, list[float]]:
            where = {"method": method, "target": target}
            return {f"{n} more": column(results, "HP", setting=f"{network}_{n}", **where) for n in self.depths}

        def claim(network: str, method: str, criterion: Criterion) -> Claim:
            metric = "HP, " + {"cnn": "without pooling", "pool": "with max-pooling"}[network]
            reason = departures(results.config.experiment, {"models": {network: PAPER["models"][network]}})
            sentence = f"{BARELY} ({LABELS[method]})"
            return Claim(
                f"{method}_{network}",
                sentence,
                source="Section 3.2.2",
                metric=metric,
                criterion=criterion,
                values=of(network, method),
                reason=reason,
            )

        same = Criterion(f"largest - smallest < {CHANGE}", lambda values: max(values) - min(values) < CHANGE, least=2)
        noise = near_zero(0.05, each=True)
        return [
            claim("cnn", "gbp", same),
            claim("pool", "gbp", same),
            claim("pool", "deconvnet", same),
            claim("cnn", "deconvnet", noise),
            claim("cnn", "saliency", noise),
            claim("pool", "saliency", noise),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        image, target, node = images(results)[0], targets(results)[0], results.config.experiment.models.cnn
        rows: list[PanelRow] = []
        for network in self.models:
            for method in (m for m in LABELS if m in results.config.methods):
                panels = []
                for n in self.depths:
                    setting = f"{network}_{n}"
                    values = column(results, "HP", image=image, setting=setting, method=method, target=target)
                    map_ = display.minmax(results.arrays[f"{image}/{setting}/{target}/{method}"])
                    panels.append(Panel(map_, "" if rows else f"{n} more", mean_and_spread(values)))
                rows.append(PanelRow(panels, LABELS[method] + ("-pool" if network == "pool" else "")))
        caption = [
            f"A random three-layer CNN (N = {node.num_filters}, stride {node.stride}; below with 9x9 max-pooling) and the same "
            "with more 3x3 convolutions, each with its ReLU, before its dense layer",
            *random_networks(results),
            "Under each map: HP, its correlation with the input after a high-pass",
        ]
        return {"figure": panel_grid(rows, caption, panel=1.1)}
