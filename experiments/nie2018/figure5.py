"""nie2018, Figure 5: GBP in a random CNN with N filters (top row) and in a random FCN with Nh hidden units (bottom row).

"as the number of filters N increases (resp. the hidden layer size Nh), the visual quality of GBP in the CNN (resp. in
the FCN) becomes better. Interestingly, even by setting Nh = 70000, which is definitely unrealistic, the FCN cannot
achieve a comparable performance to the CNN with N = 64."

The noise in a map falls as 1/N: tan2 = .943 pi^2 D/N, with D = d inputs in the FCN, and D = 3 s^2 in the CNN with stride
s, whose patches overlap. (pi^2 is for Gaussian weights, .943 for cutting them at two standard deviations.) So the FCN
equals the CNN, pixel by pixel, at Nh = N d / (3 s^2). The second figure shows both, at two strides and two sizes.
The law holds for logits that are chosen regardless of their values: the weights of the maximum logit point towards the active
units, so its maps have less noise, by 12 % at Nh = 5000 and falling as 1/sqrt(Nh). Both are measured.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import interpolate

from experiments.nie2018.three_layer import (
    CNN,
    FCN,
    LABELS,
    Shown,
    ThreeLayer,
    column,
    images,
    photographs,
    random_networks,
    slope,
    targets,
)
from vis import metrics
from vis.claims import (
    Claim,
    Column,
    Compared,
    above,
    at_small_sizes,
    departures,
    mean,
    mean_and_spread,
    near,
    replicated,
)
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

PAPER = {
    "filters": [8, 16, 32, 64],
    "hidden": [5000, 10000, 40000, 70000],
    "models": {"cnn": CNN, "fcn": FCN | {"input_size": 64}},
}
LAW = 0.943 * math.pi**2
OURS = "the bound is ours"
EQUAL = "cnn_equal"


class Figure5(ThreeLayer):
    """Measure GBP for growing networks.

    filters: numbers N; hidden: numbers Nh; other_stride: a second stride for the CNN with most filters, or null. Also measured:
    a CNN of as many hidden units as the largest FCN, on images of the same size.
    """

    def __init__(
        self,
        models: Mapping[str, Mapping[str, Any]],
        filters: Sequence[int],
        hidden: Sequence[int],
        other_stride: int | None = None,
    ) -> None:
        super().__init__(models)
        self.filters, self.hidden = list(filters), list(hidden)
        self.strides = [int(models["cnn"]["stride"])] + ([] if other_stride is None else [other_stride])
        self.view = int(models["fcn"]["input_size"])

    def settings(self) -> dict[str, tuple[str, dict[str, Any]]]:
        found: dict[str, tuple[str, dict[str, Any]]] = {f"cnn_{n}": ("cnn", {"num_filters": n}) for n in self.filters}
        for stride in self.strides[1:]:
            found[f"{self._largest(stride)}"] = ("cnn", {"num_filters": self.filters[-1], "stride": stride})
        units = (self.view // self.strides[0]) ** 2  # of a filter
        found[EQUAL] = ("cnn", {"num_filters": max(1, round(self.hidden[-1] / units)), "input_size": self.view})
        return found | {f"fcn_{n}": ("fcn", {"hidden": n}) for n in self.hidden}

    def _largest(self, stride: int) -> str:
        """Return the setting of the CNN with most filters at a stride."""
        return f"cnn_{self.filters[-1]}" + (f"_stride_{stride}" if stride != self.strides[0] else "")

    def numbers(self, shown: Shown, target: int, method: str) -> dict[str, Tensor]:
        map_, x = (_viewed(each, self.view) for each in (shown.maps[target][method], shown.x))
        viewed = {"cosine_viewed": metrics.cosine(map_, x), "HP_viewed": metrics.high_pass_pearson(map_, x)}
        return super().numbers(shown, target, method) | viewed

    def compute(self, run: Run, task: Task) -> Output:
        output = super().compute(run, task)
        for name, array in list(output.arrays.items()):
            output.arrays[f"{name}_viewed"] = _viewed(torch.from_numpy(array)[None], self.view)[0].numpy()
        return output

    def summaries(self, results: Results) -> dict[str, Rows]:
        """By seed: slopes of HP over log2 of N and Nh, also in a random order; noise of the largest networks over its law."""
        rows, last = [], targets(results)[-1]  # a random logit, of which the law speaks
        for seed in dict.fromkeys(row["seed"] for row in results.rows()):
            row: dict[str, Any] = {"seed": seed}
            for network, sizes in (("cnn", self.filters), ("fcn", self.hidden)):
                settings = [f"{network}_{n}" for n in sizes]
                HP = [mean(column(results, "HP", seed=seed, setting=s, target=targets(results)[0])) for s in settings]
                order = np.random.default_rng(seed).permutation(len(HP))
                logs = np.log2(sizes)
                row |= {f"{network}_slope": slope(logs, HP), f"{network}_shuffled": slope(logs[order], HP)}
                tan2 = mean(column(results, "tan2", seed=seed, setting=settings[-1], target=last))
                energy = self.view**2 if network == "fcn" else self.strides[0] ** 2
                row[f"{network}_law"] = tan2 * sizes[-1] / (LAW * 3 * energy)
            rows.append(row | {"matching": row["fcn_law"] / row["cnn_law"]})
        return {"slopes": rows}

    def claims(self, results: Results) -> list[Claim]:
        target, slopes = targets(results)[0], results.rows("slopes")
        cnn, fcn = self._largest(self.strides[0]), f"fcn_{self.hidden[-1]}"

        def HP(setting: str, name: str = "HP_viewed") -> Column:
            return Column(results.rows(setting=setting, target=target, method="gbp"), name, "seed")

        def grows(network: str, size: str) -> list[Compared]:
            own, shuffled = (Column(slopes, f"{network}_{name}", "seed") for name in ("slope", "shuffled"))
            control = f"{size} in a random order"
            return [Compared(f"slope of HP over log2 {size}", own, above(0), null=shuffled, control=control)]

        largest = f"N = {self.filters[-1]} and Nh = {self.hidden[-1]}"
        comparable = Compared(f"HP of the CNN minus that of the FCN at {self.view}x{self.view}, {largest}", HP(cnn) - HP(fcn),
            above(0), null=0, control="equal HP")  # fmt: skip
        local = Compared(f"HP of the CNN minus that of the FCN, with {self.hidden[-1]} hidden units each", HP(EQUAL) - HP(fcn),
            above(0), null=0, control="equal HP")  # fmt: skip
        papers = [
            Claim("N-4.1-e", grows("cnn", "N")),
            Claim("N-4.1-f", grows("fcn", "Nh")),
            Claim("N-4.1-g", [comparable], reason=at_small_sizes(results.config)),
            Claim("N-4.1-h", [local]),
        ]
        differences = photographs(results) + departures(results.config.experiment, PAPER)
        return [*replicated(papers, differences), self._matching(results)]

    def _matching(self, results: Results) -> Claim:
        """Return the finding on the law of the noise."""
        by_k = (results.config.experiment.models.cnn.kernel_size / self.strides[0]) ** 2

        def law(metric: str, name: str, within: float, null: float, control: str) -> Compared:
            column = Column(results.rows("slopes"), name, "seed")
            return Compared(metric, column, near(1, within, ours=OURS), null=null, control=control)

        laws = [
            law("noise over .943 pi^2 3 s^2 / N, CNN", "cnn_law", 0.25, by_k, "p in place of 3 s^2"),
            law("noise over .943 pi^2 d / Nh, FCN", "fcn_law", 0.1, 2.0, "twice as many inputs"),
            law("Nh of equal noise over N d / (3 s^2)", "matching", 0.25, 1 / by_k, "p in place of 3 s^2"),
        ]
        sentence = "The noise in a map falls as 1/N, so FCN and CNN are equal at Nh = N d / (3 s^2), whatever the filters' size."
        return Claim("matching_size", laws, sentence=sentence, source="Section 4.1, against Figure 5")

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        arrays, config = results.arrays, results.config
        image, target, method = images(results)[0], targets(results)[0], next(iter(config.methods))
        label = LABELS.get(method, method)

        def panel(setting: str, title: str, number: str, viewed: str = "") -> Panel:
            values = column(results, number, image=image, setting=setting, method=method, target=target)
            map_ = arrays[f"{image}/{setting}/{target}/{method}{viewed}"]
            return Panel(display.minmax(map_), title, f"cosine {mean_and_spread(values)}")

        rows, side = [], {"cnn": config.experiment.models.cnn.input_size, "fcn": self.view}
        for network, symbol, sizes in (("cnn", "N", self.filters), ("fcn", "Nh", self.hidden)):
            shown = display.picture(arrays[f"{image}/{network}_{sizes[0]}/input"])
            panels = [Panel(shown, f"input, {side[network]}x{side[network]}")]
            panels += [panel(f"{network}_{n}", f"{symbol} = {n}", "cosine") for n in sizes]
            rows.append(PanelRow(panels, network.upper()))
        stride = self.strides[0]
        caption = [
            f"{label} in a random three-layer CNN with N filters (stride {stride}; top) and in a random three-layer FCN "
            f"with Nh hidden units (bottom), input {image}",
            *random_networks(results),
            "Under each map: its cosine with the input",
        ]
        networks = [
            (self._largest(stride), f"CNN, N = {self.filters[-1]}, stride {stride}") for stride in self.strides
        ] + [(f"fcn_{self.hidden[-1]}", f"FCN, Nh = {self.hidden[-1]}")]
        compared = [
            PanelRow([panel(setting, title, "cosine") for setting, title in networks], "as computed"),
            PanelRow(
                [panel(s, "", "cosine_viewed", "_viewed") for s, _ in networks], f"viewed at {self.view}x{self.view}"
            ),
        ]
        other = [
            f"{label} in the largest networks, as computed (top) and all at the FCN's resolution (bottom)",
            *random_networks(results),
            "Under each map: its cosine with the input, at that resolution",
        ]
        return {"figure": panel_grid(rows, caption), "comparison": panel_grid(compared, other)}


def _viewed(images: Tensor, side: int) -> Tensor:
    """Resize images [B, C, H, W] with antialiasing to the size at which they are compared."""
    return interpolate(images, size=(side, side), mode="bilinear", antialias=True)
