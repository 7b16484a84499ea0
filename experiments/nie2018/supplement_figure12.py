"""nie2018, supplement Figure 12: three methods in a random ResNet-50, and where its grid comes from.

"we do observe some additional grid-like textures here and we conjecture that this deterioration of visual quality is due
to the skip connections". So the same network without skip connections is explained, and two whose first convolution has
stride 1 and 4x4 pooling in place of the 3x3 max-pooling with stride 2: a convolution that moves by more than one pixel covers
some pixels more often than others, and overlapping pooling windows choose some more often; rectified gradients add this up.

`grid` is the strongest of the textures with periods of 2, 4, 8, 16 and 32 pixels, the strides in ResNet-50 and VGG-16: power
at the frequencies of the period over the median power beside them, 1 without a texture.
"""

from collections.abc import Iterator
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.nie2018.three_layer import LABELS, Shown, ThreeLayer, column, images, random_networks, targets
from experiments.nie2018.trained import RANDOM, difference
from vis import metrics
from vis.claims import (
    Claim,
    Column,
    Compared,
    above,
    at_small_sizes,
    below,
    departures,
    mean_and_spread,
    near,
    replicated,
)
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.models import torchvision_classifier
from vis.store.run_folder import Results
from vis.store.tables import Rows

TITLES = {
    "resnet": "ResNet-50",
    "no_skips": "no skips",
    "stem": "stride 1, max 4x4",
    "average": "stride 1, mean 4x4",
    "vgg": "VGG-16",
}
PERIODS = (2, 4, 8, 16, 32)
STEM = "The grid comes from the stem, whose stride is 4: with stride 1 and mean pooling, less than half of it is left."
OURS = "the bounds are ours"


def grid(maps: Tensor, period: int) -> Tensor:
    """Return the strength of a texture with a period in pixels, [B]; about 1 without such a texture.

    As `metrics.grid4`, for any period: at each nonzero frequency whose two components are multiples of 1/period, divide the
    power by the median power of its neighbours (up to 3 bins away); the strength is the median of these ratios.
    """
    gray = metrics.luma(maps)[:, 0]
    height, width = (side // period * period for side in gray.shape[1:])
    gray = gray[:, :height, :width]
    power = torch.fft.fft2(gray - gray.mean((1, 2), keepdim=True)).abs().square()
    reach = torch.arange(-3, 4)
    rows, columns = ((torch.arange(period) * side // period)[:, None] + reach for side in (height, width))
    near_ = power[:, (rows % height)[:, None, :, None], (columns % width)[None, :, None, :]].flatten(3)
    own, around = near_[..., 24], torch.cat([near_[..., :24], near_[..., 25:]], dim=3).median(3).values
    return (own / around).flatten(1)[:, 1:].median(1).values


def resnet(arch: str = "resnet50", num_classes: int = 1000, skips: bool = True, stem: str = "own") -> nn.Module:
    """A ResNet of 50 layers or more, without its skip connections, or with a first convolution of stride 1.

    stem: "own", or "max" or "average" for 4x4 pooling after the convolution with stride 1.
    """
    net: Any = torchvision_classifier(arch, num_classes)
    pools = {"max": nn.MaxPool2d(4), "average": nn.AvgPool2d(4)}
    if stem not in ("own", *pools):
        raise ValueError(f"stem is own, max or average, not {stem!r}")
    if stem in pools:
        net.conv1.stride = (1, 1)
        net.maxpool = pools[stem]
    if not skips:
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            for i, block in enumerate(layer):
                layer[i] = NoSkip(block)
    return net


class NoSkip(nn.Module):
    """A bottleneck block of ResNet-50 without its skip connection."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        names = ("conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3", "bn3", "relu")
        self.body = nn.Sequential(*(getattr(block, name) for name in names))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class ResNetGrid(ThreeLayer):
    """Measure the grid textures of the maps of several networks."""

    def numbers(self, shown: Shown, target: int, method: str) -> dict[str, Tensor]:
        map_ = shown.maps[target][method]
        strengths = torch.stack([grid(map_, period) for period in PERIODS if period < map_.shape[2] // 4])
        strongest, place = strengths.max(0)
        periods = torch.tensor(PERIODS)[place]
        return super().numbers(shown, target, method) | {"grid": strongest, "period": periods}

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the ratios of the grids of two networks."""
        return {"ratios": list(_ratios(results))}

    def claims(self, results: Results) -> list[Claim]:
        target = targets(results)[0]

        def ratio(network: str, over: str, method: str) -> Column:
            rows = results.rows("ratios", network=network, over=over, method=method, target=target)
            return Column(rows, "ratio", "seed")

        def fine(network: str, method: str) -> Column:
            return Column(results.rows(network=network, method=method, target=target), "HP", "seed")

        def compared(network: str, over: str, method: str, rule: Any) -> Compared:
            metric = f"{LABELS[method]}: grid in {TITLES[network]} over that in {TITLES[over]}"
            return Compared(metric, ratio(network, over, method), rule, null=1.0, control="the same grid: 1")

        rectified = ("gbp", "deconvnet")
        similar = Claim("N-H-a", [
            difference(f"{LABELS[m]}: HP in ResNet-50 minus HP in VGG-16", fine("resnet", m), fine("vgg", m),
                       near(0, 0.15, ours="the bound is ours"), null=0.5, control="a map that shows the input, and noise")
            for m in LABELS
        ], differences=["random ResNet-50 alone, without a trained one"])  # fmt: skip
        more, half = above(2, fails=1, ours=OURS), below(0.5, fails=0.8, ours=OURS)
        claims = [
            similar,
            Claim("N-H-b", [compared("resnet", "vgg", m, more) for m in rectified], needs=1),
            Claim("N-H-c", [compared("no_skips", "resnet", m, half) for m in rectified]),
            Claim("grid_from_the_stem", [compared("average", "resnet", m, half) for m in rectified], sentence=STEM,
                  source="against Supplement H"),
        ]  # fmt: skip
        models = {name: {"input_size": 224, **RANDOM} for name in results.config.experiment.models}
        away = departures(results.config.experiment, {"models": models})
        if images(results) != ["tabby"]:
            away.append(f"{', '.join(images(results))} instead of tabby")
        return replicated(claims, away, at_small_sizes(results.config))

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        image, target = images(results)[0], targets(results)[0]
        networks = list(results.config.experiment.models)
        rows: list[PanelRow] = []
        for method in (m for m in LABELS if m in results.config.methods):
            panels = []
            for network in networks:
                where = {"image": image, "network": network, "target": target, "method": method}
                texture, fine = (mean_and_spread(column(results, name, **where), 2) for name in ("grid", "HP"))
                period = max(column(results, "period", **where))
                map_ = results.arrays[f"{image}/{network}/{target}/{method}"]
                title = "" if rows else TITLES.get(network, network)
                panels.append(Panel(display.minmax(map_), title, f"grid {texture}\nperiod {period:g}\nHP {fine}"))
            rows.append(PanelRow(panels, LABELS[method]))
        caption = [
            f"Random ResNet-50, the same without skip connections, and with a first convolution of stride 1 and 4x4 "
            f"pooling, and VGG-16; input {image}",
            *random_networks(results),
            "Under each map: the strongest texture with a period of 2 to 32 pixels, its power over that beside it, and HP, the "
            "correlation with the input after a high-pass",
        ]
        return {"figure": panel_grid(rows, caption)}


def _ratios(results: Results) -> Iterator[dict[str, Any]]:
    pairs = (("resnet", "vgg"), ("no_skips", "resnet"), ("stem", "resnet"), ("average", "resnet"))
    keys = ("seed", "image", "target", "method")
    for network, over in pairs:
        below_ = {tuple(row[k] for k in keys): row["grid"] for row in results.rows(network=over)}
        for row in results.rows(network=network):
            of = tuple(row[k] for k in keys)
            if of in below_:
                yield {
                    "network": network,
                    "over": over,
                    **dict(zip(keys, of, strict=True)),
                    "ratio": row["grid"] / below_[of],
                }
