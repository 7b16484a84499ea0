"""nie2018, Figure 4: three methods in a random three-layer CNN (top row) and FCN (bottom row), input "tabby".

"From left to right, each column represents GBP, DeconvNet and saliency map, respectively. Only GBP visualization in the
CNN is human-interpretable."
"""

from collections.abc import Mapping

from matplotlib.figure import Figure

from experiments.nie2018.three_layer import (
    CNN,
    FCN,
    LABELS,
    ThreeLayer,
    column,
    images,
    photographs,
    random_networks,
    targets,
)
from experiments.nie2018.verdicts import READABLE, noise, readable
from vis.claims import Claim, Column, Compared, above, at_small_sizes, below, departures, mean_and_spread, replicated
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.store.run_folder import Results
from vis.store.tables import Rows

PAPER = {"models": {"cnn": CNN | {"num_filters": 256}, "fcn": FCN | {"hidden": 4096}}}
ONE_CAUSE = (("saliency", "cnn"), ("gbp", "fcn"), ("deconvnet", "fcn"), ("saliency", "fcn"))  # or none


class Figure4(ThreeLayer):
    def claims(self, results: Results) -> list[Claim]:
        """Judge maps of the first target: with a backward ReLU (GBP, DeconvNet) or without, local (CNN) or not (FCN)."""
        rows = {
            (m, n): results.rows(network=n, method=m, target=targets(results)[0]) for m in LABELS for n in self.models
        }
        if not all(rows.values()):
            return []
        gbp, control = rows["gbp", "cnn"], {"control": "GBP in the CNN"}

        def noisy(method: str, network: str) -> list[Compared]:
            return noise(f"{LABELS[method]}-{network.upper()}", rows[method, network], "seed", gbp, **control)

        def hidden(method: str, network: str) -> Compared:
            """Judge that a map does not show the input."""
            metric, hp = f"{LABELS[method]}-{network.upper()}: HP", Column(rows[method, network], "HP", "seed")
            return Compared(metric, hp, below(0.1, 0.2, ours=READABLE), null=Column(gbp, "HP", "seed"), **control)

        seen = readable("GBP-CNN", gbp, "seed")
        both = [seen, readable("Deconv-CNN", rows["deconvnet", "cnn"], "seed")]
        small = at_small_sizes(results.config)
        found = [
            Claim("N-0-a", [*both, *(hidden(*each) for each in ONE_CAUSE)]),
            Claim("N-4.1-a", [seen], reason=small),
            Claim("N-4.1-b", [*noisy("deconvnet", "cnn"), *noisy("saliency", "cnn")]),
            Claim("N-4.1-c", [each for m in LABELS for each in noisy(m, "fcn")], reason=small),
            Claim("N-4.1-d", [hidden("gbp", "fcn")], reason=small),
            self._coarse(rows),
        ]
        return replicated(found, photographs(results) + departures(results.config.experiment, PAPER))

    def _coarse(self, rows: Mapping[tuple[str, str], Rows]) -> Claim:
        """Return the finding on the FCN: what a high-pass hides there, block means show."""
        blocks, saliency = (Column(rows[m, "fcn"], "blocks", "seed") for m in ("gbp", "saliency"))
        metric, control = "GBP-FCN: correlation of 16x16 block means", "the saliency map of the FCN"
        compared = Compared(metric, blocks, above(0.2, 0.1, ours=READABLE), null=saliency, control=control)
        sentence = "GBP in the FCN holds the input at a low resolution."
        return Claim("coarse_fcn", [compared], sentence=sentence, source="Section 4.1, against Figure 4")

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config = results.config
        image, target = images(results)[0], targets(results)[0]
        methods = sorted(config.methods, key=lambda m: list(LABELS).index(m) if m in LABELS else len(LABELS))
        rows = []
        for network in config.experiment.models:
            panels = [Panel(display.picture(results.arrays[f"{image}/{network}/input"]), f"input: {image}")]
            for method in methods:
                map_ = results.arrays[f"{image}/{network}/{target}/{method}"]
                where = {"image": image, "network": network, "target": target, "method": method}
                pear, fine = (mean_and_spread(column(results, name, **where)) for name in ("pear", "HP"))
                note = f"correlation {pear}\nhigh-passed {fine}"
                title = f"{LABELS.get(method, method)}-{network.upper()}"
                panels.append(Panel(display.minmax(map_), title, note))
            rows.append(PanelRow(panels))
        cnn, fcn = config.experiment.models.cnn, config.experiment.models.fcn
        k = cnn.kernel_size
        caption = [
            f"A random three-layer CNN ({k}x{k}x3 filters, N = {cnn.num_filters}, stride {cnn.stride}; top) and a random "
            f"three-layer FCN ({fcn.hidden} hidden units; bottom)",
            *random_networks(results),
            "Under each map: its correlation with the input, and that of the two after a high-pass",
        ]
        return {"figure": panel_grid(rows, caption)}
