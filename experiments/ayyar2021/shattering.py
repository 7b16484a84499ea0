"""ayyar2021, section 7: gradient shattering, in the set-up of Balduzzi et al. 2017 (Figures 1 and 2), and of maps of CNNs.

The gradient df/dx of random networks with one input and one output, at evenly spaced x, and its autocorrelation:

    plain      x_l = W_l ReLU(x_{l-1} - mean)                                    mean-centred
    residual   x_l = x_{l-1} + beta W_l ReLU(BN(x_{l-1}))                        their Eq. (2), alpha = 1

W is drawn by He's normal initialisation. Means and deviations are taken of each neuron over all x and are constants for the
gradient, so that f is a function of one x. White noise and brown noise (its running sum) are the two extremes.

Maps of random CNNs of 3x3 convolutions with a global average, by the methods that the survey names: the correlation of
neighbouring pixels, of a smooth random image. White noise has 0, the image itself nearly 1.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from experiments.ayyar2021.verdicts import POSITIVE
from vis import metrics
from vis.claims import Claim, Column, Compared, below, departures, interval, mean, near, replicated
from vis.errors import UserError
from vis.figures.layout import PAGE_WIDTH, plot, styled
from vis.methods import DeconvNet, GuidedBackprop, Saliency
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

PAPER = {"depths": [2, 4, 10, 24, 50], "width": 200, "beta": 0.1, "points": 256, "lags": 15}
METHODS = {"backpropagation": Saliency, "guided backpropagation": GuidedBackprop, "DeconvNet": DeconvNet}


def gradient(depth: int, residual: bool, width: int, beta: float, x: Tensor, generator: torch.Generator) -> Tensor:
    """Return df/dx [n] at x [n] for a random network with `depth` hidden layers of `width` ReLUs."""

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, dtype=x.dtype, generator=generator) * (2 / columns) ** 0.5

    x = x.detach().requires_grad_(True)
    h = x[:, None] @ normal(width, 1).T
    for _ in range(depth):
        a = h - h.mean(0).detach()
        if residual:
            h = h + beta * (a / h.std(0, correction=0).detach()).relu() @ normal(width, width).T
        else:
            h = a.relu() @ normal(width, width).T
    return torch.autograd.grad((h @ normal(1, width).T).sum(), x)[0]


def autocorrelation(g: Tensor, lags: int) -> Tensor:
    """Return sum_i (g_i - m) (g_{i+k} - m) / sum_i (g_i - m)^2 of a signal [n] for k = 0 ... lags: [lags + 1]."""
    g = g - g.mean()
    return torch.stack([(g[: len(g) - k] * g[k:]).sum() for k in range(lags + 1)]) / g.square().sum()


def cnn(depth: int, width: int, generator: torch.Generator) -> nn.Sequential:
    """Return a random network of `depth` 3x3 convolutions with ReLUs, a global average and a dense layer, in float64."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Conv2d(width if i else 3, width, 3, padding=1, bias=False), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10, bias=False)).double()
    for p in net.requires_grad_(False).parameters():
        p.copy_(torch.randn(p.shape, dtype=p.dtype, generator=generator) * (2 / p[0].numel()) ** 0.5)
    return net


def neighbours(maps: Tensor) -> float:
    """Return the correlation of neighbouring pixels of a map [1, C, H, W], mean of the two directions."""
    pairs = ((maps[:, :, 1:], maps[:, :, :-1]), (maps[..., 1:], maps[..., :-1]))
    return mean([metrics.pearson(a, b).item() for a, b in pairs])


def slope(depths: Sequence[int], values: Sequence[float]) -> float:
    """Return the slope of values over log2 of the depth."""
    return float(np.polyfit(np.log2(depths), values, 1)[0])


class Shattering(Experiment):
    """Measure the autocorrelation of gradients of random networks.

    depths: numbers of hidden layers, rising; networks: number of each kind and depth; points: number of x in [-2, 2];
    lags: number of lags of the autocorrelation; channels: of the CNNs, size: side of their images.
    """

    metrics = ("correlation",)
    series = "kind"

    def __init__(
        self,
        depths: Sequence[int],
        networks: int,
        width: int,
        beta: float,
        points: int,
        lags: int,
        channels: int,
        size: int,
    ) -> None:
        if len(depths) < 2 or sorted(set(depths)) != list(depths) or depths[0] < 1:
            raise UserError("experiment.depths must be two or more rising numbers, from 1")
        if not 0 < lags < points:
            raise UserError("experiment.lags must lie between 1 and experiment.points - 1")
        self.depths, self.networks, self.width, self.beta = list(depths), networks, width, beta
        self.points, self.lags, self.channels, self.size = points, lags, channels, size

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"network": i} for i in range(self.networks)]

    def compute(self, run: Run, task: Task) -> Output:
        number, output = task["network"], Output(tables={"table": []})
        generator = torch.Generator().manual_seed(1000 * run.config.seed + number)
        x = torch.linspace(-2, 2, self.points, dtype=torch.float64)
        noise = torch.randn(self.points, dtype=torch.float64, generator=generator)
        signals = {("white noise", 0): noise, ("brown noise", 0): noise.cumsum(0)}
        for depth in self.depths:
            for kind in ("plain", "residual"):
                signals[kind, depth] = gradient(depth, kind == "residual", self.width, self.beta, x, generator)
        for (kind, depth), g in signals.items():
            found = autocorrelation(g, self.lags)
            row = {"kind": kind, "depth": depth, "network": number, "correlation": found[1:].mean().item()}
            output.tables["table"].append(row | {"autocorrelation": found.tolist()})
            if not number:
                output.arrays[f"{kind}/{depth}"] = g.numpy()
        output.tables["maps"] = [{"network": number} | row for row in self.of_maps(generator)]
        return output

    def of_maps(self, generator: torch.Generator) -> Rows:
        """Return the correlation of neighbouring pixels of the maps of CNNs of each depth, of white noise and of the image."""
        noise = torch.randn(1, 3, self.size, self.size, dtype=torch.float64, generator=generator)
        image = avg_pool2d(noise, 5, 1, 2)
        rows: Rows = [
            {"kind": kind, "depth": 0, "correlation": neighbours(map_)}
            for kind, map_ in (("white noise", noise), ("image", image))
        ]
        for depth in self.depths:
            net = cnn(depth, self.channels, generator)
            rows += [
                {"kind": kind, "depth": depth, "correlation": neighbours(method()(net, image, [0]))}
                for kind, method in METHODS.items()
            ]
        return rows

    def _values(self, results: Results, kind: str, depth: int) -> list[float]:
        return [row["correlation"] for row in results.rows(kind=kind, depth=depth)]

    def claims(self, results: Results) -> list[Claim]:
        last = self.depths[-1]

        def whitens(words: str, table: str, kind: str) -> list[Compared]:
            falls = Column(results.rows("slopes", of=table, kind=kind), "slope", "network")
            deep, white = (Column(results.rows(table, **where), "correlation", "network")
                           for where in ({"kind": kind, "depth": last}, {"kind": "white noise"}))  # fmt: skip
            return [
                Compared(f"slope of the {words} over log2 of the depth", falls, below(0), null=0.0, control="no change: 0"),
                Compared(f"{words} at {last} layers - white noise", deep - white, near(0, 0.05, ours="the tolerance is ours"),
                         null=1.0, control="a smooth signal: 1"),
            ]  # fmt: skip

        metric = f"autocorrelation of df/dx, mean of the lags 1 to {self.lags}"
        shatters = whitens(metric, "table", "plain")
        for kind in METHODS:
            shatters += whitens(f"correlation of neighbouring pixels of the map by {kind}", "maps", kind)
        residual, plain = (
            Column(results.rows(kind=k, depth=last), "correlation", "network") for k in ("residual", "plain")
        )
        skip = Compared(f"{metric}, {last} layers, residual - plain", residual - plain, POSITIVE, null=0.0,
                        control="no difference: 0")  # fmt: skip
        ours = Claim("residual_networks_resist", [skip], source="Balduzzi et al. 2017",
                     sentence="the gradients in architectures with skip-connections are far more resistant to "
                     "shattering")  # fmt: skip
        differences = departures(results.config.experiment, PAPER)
        return [*replicated([Claim("A-7-c", shatters)], [*differences, "random weights"]), ours]

    def summaries(self, results: Results) -> dict[str, Rows]:
        rows: Rows = []
        for kind, depth in dict.fromkeys((row["kind"], row["depth"]) for row in results.rows()):
            values = self._values(results, kind, depth)
            low, high = interval(values)
            rows.append({"kind": kind, "layers": depth or None, "mean": mean(values), "low": low, "high": high})
        slopes = []
        for table, kinds in (("table", ["plain"]), ("maps", list(METHODS))):
            for kind in kinds:
                for number in range(self.networks):
                    found = results.rows(table, kind=kind, network=number)
                    values = [row["correlation"] for row in found]
                    row = {"of": table, "kind": kind, "network": number}
                    slopes.append(row | {"slope": slope([each["depth"] for each in found], values)})
        return {"summary": rows, "slopes": slopes}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        first, last = self.depths[0], self.depths[-1]
        shown = {
            f"Plain, {first} layers": f"plain/{first}",
            f"Plain, {last} layers": f"plain/{last}",
            f"Residual, {last} layers": f"residual/{last}",
            "White noise": "white noise/0",
            "Brown noise": "brown noise/0",
        }
        about = f"{self.width} ReLUs a layer, random weights, {self.points} points; residual: batch norm, beta = {self.beta:g}"
        signals, axes = plot(
            PAGE_WIDTH, 1.5, ["df/dx of random networks of one input x, one network each", about], len(shown)
        )
        x = np.linspace(-2, 2, self.points)
        with styled():
            for axis, (title, key) in zip(axes, shown.items(), strict=True):
                axis.plot(x, results.arrays[key], linewidth=0.6, color="C7" if "noise" in key else "C0")
                axis.set(title=title, xlabel="x", yticks=[])
        caption = [
            f"Autocorrelation of df/dx: mean of {self.networks} random networks, plain (solid) and residual (dashed); "
            "dotted: white noise (below) and brown noise",
            f"Middle: its mean over the lags 1 to {self.lags}, with the 95 % interval over networks",
            f"Right: correlation of neighbouring pixels of maps of random CNNs, {self.channels} channels, of a smooth random "
            "image; dotted: white noise (below) and the image",
            about,
        ]
        figure, (curves, falls, maps) = plot(PAGE_WIDTH, 2.9, caption, columns=3)
        with styled():
            for j, depth in enumerate(self.depths):
                for kind, line in (("plain", "-"), ("residual", "--")):
                    curve = np.mean([r["autocorrelation"] for r in results.rows(kind=kind, depth=depth)], axis=0)
                    curves.plot(curve, line, color=f"C{j}", label="" if kind == "residual" else str(depth), linewidth=1)
            for kind, shade in (("white noise", "0.6"), ("brown noise", "0.3")):
                curve = np.mean([r["autocorrelation"] for r in results.rows(kind=kind)], axis=0)
                curves.plot(curve, ":", color=shade, linewidth=1)
                falls.axhline(curve[1:].mean(), color=shade, linestyle=":", linewidth=1)
            curves.set(xlabel="lag", ylabel="autocorrelation")
            curves.legend(title="hidden layers", ncols=len(self.depths), loc="lower center", bbox_to_anchor=(0.5, 1))
            for axis, table, kinds in ((falls, "table", ("plain", "residual")), (maps, "maps", tuple(METHODS))):
                for j, kind in enumerate(kinds):
                    values = [[r["correlation"] for r in results.rows(table, kind=kind, depth=d)] for d in self.depths]
                    ends = [interval(v) if len(v) > 1 else (v[0], v[0]) for v in values]
                    middle = [mean(v) for v in values]
                    bars = [[m - low for m, (low, _) in zip(middle, ends, strict=True)],
                            [high - m for m, (_, high) in zip(middle, ends, strict=True)]]  # fmt: skip
                    axis.errorbar(self.depths, middle, bars, fmt="o-", color=f"C{j}", capsize=2, label=kind)
                axis.legend(ncols=1, loc="lower center", bbox_to_anchor=(0.5, 1))
            for kind, shade in (("white noise", "0.6"), ("image", "0.3")):
                maps.axhline(
                    mean([r["correlation"] for r in results.rows("maps", kind=kind)]), color=shade, linestyle=":"
                )
            falls.set(xlabel="hidden layers", ylabel="mean autocorrelation")
            maps.set(xlabel="convolutions", ylabel="correlation of neighbours")
        return {"figure": figure, "gradients": signals}
