"""nie2018, section 3.2.2: "the behaviors of these visualizations will barely change when increasing the depth of neural
networks": the three-layer CNN with 1 to 5 more convolutions, without and with its max-pooling.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.nie2018.three_layer import CNN, LABELS, POOL, ThreeLayer, column, images, random_networks, targets
from experiments.nie2018.verdicts import noise
from vis.claims import Claim, Column, Compared, departures, mean, mean_and_spread, near, replicated
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.store.run_folder import Results
from vis.store.tables import Rows

PAPER = {"models": {"cnn": CNN | {"num_filters": 256}, "pool": POOL | {"num_filters": 256}}}
CHANGE = near(0, 0.15, ours="the bound is ours: HP runs from 0, noise, to 1, the input, and a larger change is visible")


class Depth(ThreeLayer):
    """Measure maps at several depths. depths: numbers of extra convolutions."""

    def __init__(self, models: Mapping[str, Mapping[str, Any]], depths: Sequence[int]) -> None:
        super().__init__(models)
        self.depths = list(depths)

    def settings(self) -> dict[str, tuple[str, dict[str, Any]]]:
        return {f"{network}_{n}": (network, {"extra": n}) for network in self.models for n in self.depths}

    def summaries(self, results: Results) -> dict[str, Rows]:
        """By seed, network and method: the change of HP from no extra convolution to the depth where it is largest."""
        rows = []
        for seed in dict.fromkeys(row["seed"] for row in results.rows()):
            for network in self.models:
                for method in (m for m in LABELS if m in results.config.methods):
                    where = {"seed": seed, "method": method, "target": targets(results)[0]}
                    HP = [mean(column(results, "HP", setting=f"{network}_{n}", **where)) for n in self.depths]
                    change = max((value - HP[0] for value in HP[1:]), key=abs)
                    rows.append({"seed": seed, "network": network, "method": method, "change": change})
        return {"changes": rows}

    def claims(self, results: Results) -> list[Claim]:
        if not set(LABELS) <= set(results.config.methods):
            return []
        names = {"cnn": "", "pool": ", max-pooling"}

        def HP(network: str, method: str) -> Column:
            return Column(results.rows(setting=f"{network}_{self.depths[0]}", method=method), "HP", "seed")

        pooling, gbp = HP("pool", "deconvnet") - HP("cnn", "deconvnet"), results.rows(network="cnn", method="gbp")
        changes = [
            Compared(f"largest change of HP, {LABELS[m]}{names[n]}",
                Column(results.rows("changes", network=n, method=m), "change", "seed"), CHANGE, null=pooling,
                control="the change of DeconvNet by max-pooling")
            for n in self.models for m in LABELS
        ]  # fmt: skip
        still = [
            each
            for n, m in (("cnn", "deconvnet"), ("cnn", "saliency"), ("pool", "saliency"))
            for each in noise(f"{LABELS[m]}{names[n]}", results.rows(network=n, method=m), "seed", gbp, "GBP")
        ]
        return replicated([Claim("N-3.2.2-a", changes + still)], departures(results.config.experiment, PAPER))

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
