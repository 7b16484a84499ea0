"""nie2018, Figure 5: GBP in a random CNN with N filters (top row) and in a random FCN with Nh hidden units (bottom row).

"as the number of filters N increases (resp. the hidden layer size Nh), the visual quality of GBP in the CNN (resp. in
the FCN) becomes better. Interestingly, even by setting Nh = 70000, which is definitely unrealistic, the FCN cannot
achieve a comparable performance to the CNN with N = 64."

The noise in a map falls as 1/N: tan2 = .943 pi^2 D/N, with D = d inputs in the FCN, and D = 3 s^2 in the CNN with stride
s, whose patches overlap. (pi^2 is for Gaussian weights, .943 for cutting them at two standard deviations.) So the FCN
equals the CNN, pixel by pixel, at Nh = N d / (3 s^2). The second figure shows both, at two strides and two sizes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import interpolate

from experiments.nie2018.three_layer import CNN, FCN, LABELS, ThreeLayer, column, images, random_networks
from vis import display, metrics
from vis.claims import Claim, departures, increasing, mean, mean_and_spread, within
from vis.experiment import Run, Unit
from vis.figures import Panel, PanelRow, panel_grid
from vis.record import Part, Results

PAPER = {
    "filters": [8, 16, 32, 64],
    "hidden": [5000, 10000, 40000, 70000],
    "models": {"cnn": CNN, "fcn": FCN | {"input_size": 64}},
}
LAW = 0.943 * math.pi**2

BETTER = (
    "as the number of filters N increases (resp. the hidden layer size Nh), the visual quality of GBP becomes better"
)
COMPARABLE = "even by setting Nh = 70000, the FCN cannot achieve a comparable performance to the CNN with N = 64"
FALLS = "Finding: the noise in a map falls as 1/N (as 1/Nh)."
MATCHES = "Finding: FCN and CNN are equal, pixel by pixel, at Nh = N d / (3 s^2), whatever the filters' size."


class Figure5(ThreeLayer):
    """filters: N; hidden: Nh; other_stride: a second stride at which the CNN with most filters is computed, or null."""

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
        return found | {f"fcn_{n}": ("fcn", {"hidden": n}) for n in self.hidden}

    def _largest(self, stride: int) -> str:
        """The setting of the CNN with most filters at a stride."""
        return f"cnn_{self.filters[-1]}" + (f"_stride_{stride}" if stride != self.strides[0] else "")

    def numbers(self, map_: Tensor, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
        viewed = metrics.cosine(_viewed(map_, self.view), _viewed(x, self.view))
        return super().numbers(map_, x, weight) | {"cosine_viewed": viewed}

    def compute(self, run: Run, unit: Unit) -> Part:
        part = super().compute(run, unit)
        for name, array in list(part.arrays.items()):
            part.arrays[f"{name}_viewed"] = _viewed(torch.from_numpy(array)[None], self.view)[0].numpy()
        return part

    def claims(self, results: Results) -> list[Claim]:
        def of(name: str, setting: str) -> list[float]:
            return column(results, name, setting=setting, method="gbp")

        top = {f"N = {n}": of("cosL", f"cnn_{n}") for n in self.filters}
        bottom = {f"Nh = {n}": of("cosL", f"fcn_{n}") for n in self.hidden}
        few = "" if results.config.seeds >= 4 else f"needs the mean of 4 seeds or more (seeds={results.config.seeds})"
        paper = [
            Claim("cnn_grows", BETTER, "Section 4.1", "cosL, the CNN", increasing(), top, reason=few),
            Claim("fcn_grows", BETTER, "Section 4.1", "cosine, the FCN", increasing(), bottom, reason=few),
        ]
        fcn, first = f"fcn_{self.hidden[-1]}", self.strides[0]
        for stride in self.strides:
            for name, words in (("cosine", "pixel by pixel"), ("cosine_viewed", f"viewed at {self.view}x{self.view}")):
                stride_name = "" if stride == first else f"_stride{stride}"
                pair = {
                    f"FCN, Nh = {self.hidden[-1]}": of(name, fcn),
                    f"CNN, N = {self.filters[-1]}": of(name, self._largest(stride)),
                }
                paper.append(
                    Claim(
                        f"fcn_below_cnn{stride_name}{'' if name == 'cosine' else '_viewed'}",
                        COMPARABLE,
                        "Section 4.1" + ("" if stride == first else "; another stride than the paper's"),
                        f"cosine of map and input, {words}, stride {stride}",
                        increasing(),
                        pair,
                    )
                )
        d = 3 * self.view**2
        laws = (
            {f"N = {n}": [t * n / (LAW * 3 * first**2) for t in of("tan2", f"cnn_{n}")] for n in self.filters},
            {f"Nh = {n}": [t * n / (LAW * d) for t in of("tan2", f"fcn_{n}")] for n in self.hidden},
        )
        # Nh tan2 is the same for all sizes: tan2 of the CNN says at which Nh the FCN has it too.
        constants = [
            mean(each) for each in zip(*([t * n for t in of("tan2", f"fcn_{n}")] for n in self.hidden), strict=True)
        ]
        match = {}
        for stride in self.strides:
            predicted = self.filters[-1] * d / (3 * stride**2)
            cnn = of("tan2", self._largest(stride))
            match[f"stride {stride}, of {predicted:.0f}"] = [
                c / t / predicted for c, t in zip(constants, cnn, strict=True)
            ]
        findings = [
            Claim("cnn_law", FALLS, "Theorem 1", "tan2 over .943 pi^2 3 s^2 / N", within(1, 0.25), laws[0], reason=few),
            Claim("fcn_law", FALLS, "Theorem 1", "tan2 over .943 pi^2 d / Nh", within(1, 0.10), laws[1], reason=few),
            Claim(
                "matching_size", MATCHES, "Section 4.1", "Nh of equal tan2 over N d / (3 s^2)", within(1, 0.25), match
            ),
        ]
        reason = departures(results.config.experiment, PAPER)
        return [replace(claim, reason=reason or claim.reason) for claim in paper + findings]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        arrays, config = results.arrays, results.config
        image, method = images(results)[0], next(iter(config.methods))
        label = LABELS.get(method, method)

        def panel(setting: str, title: str, number: str, viewed: str = "") -> Panel:
            values = column(results, number, image=image, setting=setting, method=method)
            map_ = arrays[f"{image}/{setting}/{method}{viewed}"]
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
    """Images [B, C, H, W] as they look side by side: resized with antialiasing."""
    return interpolate(images, size=(side, side), mode="bilinear", antialias=True)
