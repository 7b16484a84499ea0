"""ayyar2021, section 7: gradient shattering, in the set-up of Balduzzi et al. 2017 (Figures 1 and 2), and of maps of CNNs.

The gradient df/dx of random networks with one input and one output, at evenly spaced x, and its autocorrelation:

    plain      x_l = W_l ReLU(x_{l-1} - mean)                                    mean-centred
    residual   x_l = x_{l-1} + beta W_l ReLU(BN(x_{l-1}))                        their Eq. (2), alpha = 1

W is drawn by He's normal initialisation. Means and deviations are taken of each neuron over all x and are constants for the
gradient, so that f is a function of one x. White noise and brown noise (its running sum) are the two extremes.

Maps by the methods that the survey names: the correlation of neighbouring pixels. White noise has 0, an image nearly 1.

    random CNNs        3x3 convolutions and a global average, of a smooth random image
    CIFAR's ResNets    of depth 20, 32 and 56 (He et al. 2016), of photographs: with random weights; the same layers without
                       shortcuts ("plain"); and trained, for a network whose weights are given. Batch norm's statistics of random
                       weights are those of the photograph
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from experiments.ayyar2021.sparsity import neighbours
from experiments.ayyar2021.verdicts import POSITIVE
from vis.claims import Claim, Column, Compared, below, departures, interval, mean, near, replicated
from vis.errors import UserError
from vis.figures.layout import PAGE_WIDTH, plot, styled
from vis.methods import DeconvNet, GuidedBackprop, Saliency
from vis.models.cifar_resnet import CifarResNet
from vis.runner.experiment import Experiment, Run, Task
from vis.runner.remarks import plural
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


def plain(net: CifarResNet, generator: torch.Generator) -> nn.Sequential:
    """Return the layers of a ResNet without its shortcuts, with weights of their own by He's normal initialisation."""
    layers: list[nn.Module] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            conv = copy.deepcopy(module)
            scale = (2 / conv.weight[0].numel()) ** 0.5
            conv.weight.data = scale * torch.randn(conv.weight.shape, generator=generator)
            layers += [conv, nn.BatchNorm2d(module.out_channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), copy.deepcopy(net.linear)).requires_grad_(
        False
    )


def normalised(net: nn.Module, x: Tensor) -> nn.Module:
    """Return a network with random weights in eval mode, with the statistics of images x for its batch norm."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(x)
    return net.eval()


def slope(depths: Sequence[int], values: Sequence[float]) -> float:
    """Return the slope of values over log2 of the depth."""
    return float(np.polyfit(np.log2(depths), values, 1)[0])


class Shattering(Experiment):
    """Measure the autocorrelation of gradients of random networks.

    depths: numbers of hidden layers, rising; networks: number of each kind and depth; points: number of x in [-2, 2];
    lags: number of lags of the autocorrelation; channels: of the CNNs, size: side of their images; models: CIFAR's ResNets.
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
        models: Mapping[str, Mapping[str, Any]],
    ) -> None:
        if len(depths) < 2 or sorted(set(depths)) != list(depths) or depths[0] < 1:
            raise UserError("experiment.depths must be two or more rising numbers, from 1")
        if not 0 < lags < points:
            raise UserError("experiment.lags must lie between 1 and experiment.points - 1")
        self.depths, self.networks, self.width, self.beta = list(depths), networks, width, beta
        self.points, self.lags, self.channels, self.size = points, lags, channels, size
        self.models = models

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
        output.tables["resnets"] = self.of_resnets(run, number) if number < len(run.dataset) else []
        return output

    def of_resnets(self, run: Run, number: int) -> Rows:
        """Return the correlation of neighbouring pixels of the maps of a photograph by CIFAR's ResNets of each depth."""
        rows: Rows = []
        for node in self.models.values():
            seed = run.config.seed + number
            model = run.model(node, seed=seed, weights=None)
            batch = run.batch(model, [number])
            assert isinstance(model.net, CifarResNet)
            nets: dict[str, nn.Module] = {
                "plain": normalised(plain(model.net.cpu(), torch.Generator().manual_seed(seed)).to(batch.x), batch.x),
                "residual": normalised(copy.deepcopy(model.net).to(batch.x), batch.x),
            }  # fmt: skip
            if node["weights"] is not None:
                nets["trained"] = run.model(node).net
            rows += [
                {"kind": kind, "depth": node["depth"], "method": name, "image": batch.names[0],
                 "correlation": neighbours(method()(net, batch.x, None)).item()}
                for kind, net in nets.items()
                for name, method in METHODS.items()
            ]  # fmt: skip
        return rows

    def of_maps(self, generator: torch.Generator) -> Rows:
        """Return the correlation of neighbouring pixels of the maps of CNNs of each depth, of white noise and of the image."""
        noise = torch.randn(1, 3, self.size, self.size, dtype=torch.float64, generator=generator)
        image = avg_pool2d(noise, 5, 1, 2)
        rows: Rows = [
            {"kind": kind, "depth": 0, "correlation": neighbours(map_).item()}
            for kind, map_ in (("white noise", noise), ("image", image))
        ]
        for depth in self.depths:
            net = cnn(depth, self.channels, generator)
            rows += [
                {"kind": kind, "depth": depth, "correlation": neighbours(method()(net, image, [0])).item()}
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
        return [
            *replicated([Claim("A-7-c", shatters)], [*differences, "random weights"]),
            ours,
            *self.of_depth(results),
        ]

    def of_depth(self, results: Results) -> list[Claim]:
        """Judge the gradients of CIFAR's ResNets, image by image."""
        first, *_, last = sorted({row["depth"] for row in results.rows("resnets")})
        words = "correlation of neighbouring pixels of the gradient"

        def of(kind: str, depth: int) -> Column:
            rows = results.rows("resnets", kind=kind, method="backpropagation", depth=depth)
            return Column(rows, "correlation", "image")

        resist = Compared(f"{words}, depth {last}, residual - plain", of("residual", last) - of("plain", last), POSITIVE,
                          null=0.0, control="no difference: 0")  # fmt: skip
        trained = Compared(f"{words}, trained, depth {last} - {first}", of("trained", last) - of("trained", first), below(0),
                           null=0.0, control="no change: 0")  # fmt: skip
        source = "Beside Section 7"
        claims = [
            Claim("cifar_resnets_resist", [resist], source=source,
                  sentence="The gradient of a random ResNet for CIFAR shatters less than that of its layers without shortcuts.")
        ]  # fmt: skip
        if trained.column.values:
            claims.append(Claim("trained_resnets_shatter", [trained], source=source,
                                sentence="The gradient of CIFAR's trained ResNets shatters more in a deeper one."))  # fmt: skip
        return claims

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
        return {"figure": figure, "gradients": signals, "resnets": self._resnets(results)}

    def _resnets(self, results: Results) -> Figure:
        rows = results.rows("resnets")
        kinds = list(dict.fromkeys(row["kind"] for row in rows))
        caption = [
            f"Correlation of neighbouring pixels of maps of {plural(len({r['image'] for r in rows}), 'photograph')} by CIFAR's "
            "ResNets with random weights (residual), by their layers without shortcuts (plain)"
            + (", and by trained ones" if "trained" in kinds else ""),
            "Mean and 95 % interval over photographs; dotted: white noise",
        ]
        figure, axes = plot(PAGE_WIDTH, 2.2, caption, columns=len(METHODS))
        with styled():
            for axis, method in zip(axes, METHODS, strict=True):
                for kind in kinds:
                    of: dict[int, list[float]] = {}
                    for row in results.rows("resnets", kind=kind, method=method):
                        of.setdefault(row["depth"], []).append(row["correlation"])
                    half = [interval(v)[1] - mean(v) if len(v) > 1 else 0 for v in of.values()]
                    axis.errorbar(list(of), [mean(v) for v in of.values()], half, fmt="o-", capsize=2, label=kind)
                axis.axhline(0, color="0.6", linestyle=":")
                axis.set(title=method, xlabel="depth", xticks=sorted({row["depth"] for row in rows}))
            axes[0].set_ylabel("correlation of neighbours")
            axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
        return figure
