"""nie2018, supplement Figure 12: three methods in a random ResNet-50, and where its grid comes from (finding 9).

"we do observe some additional grid-like textures here and we conjecture that this deterioration of visual quality is due
to the skip connections". Without skip connections the grid stays. With a first convolution of stride 1, and 4x4 pooling in
place of the 3x3 max-pooling with stride 2, most of it goes: a convolution that moves by more than one pixel covers some
pixels more often than others, and overlapping pooling windows choose some more often; rectified gradients add this up.

g4 is the strength of the period of 4 pixels, that of the stem: see `vis.metrics.grid4`.
"""

from functools import partial
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.nie2018.three_layer import LABELS, WEIGHTS, ThreeLayer, column, images, random_networks, targets
from vis import metrics
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.models import torchvision_classifier
from vis.oldclaims import Claim, Criterion, above, below, departures, increasing, mean_and_spread, near_zero
from vis.store.run_folder import Results

NODE = {"input_size": 224, **WEIGHTS}
TITLES = {
    "resnet": "ResNet-50",
    "no_skips": "no skips",
    "stem": "stride 1, max 4x4",
    "average": "stride 1, mean 4x4",
    "vgg": "VGG-16",
}
SIMILAR = "In general, the results are very similar to those in the VGG-16 net (random ResNet-50)"
GRID = "we do observe some additional grid-like textures here"
SKIPS = "we conjecture that this deterioration of visual quality is due to the skip connections"
STEM = "Finding 9: the grid does not come from the skip connections but from the stem, whose stride is 4."


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
    def numbers(self, map_: Tensor, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
        return super().numbers(map_, x, weight) | {"g4": metrics.grid4(map_)}

    def claims(self, results: Results) -> list[Claim]:
        target = targets(results)[0]
        reason = departures(results.config.experiment, {"models": dict.fromkeys(TITLES, NODE)})

        def of(name: str, network: str, method: str = "gbp", target: str = target) -> list[float]:
            return column(results, name, network=network, method=method, target=target)

        claim = partial(Claim, source="Supplement H", reason=reason)

        fine, grid = "HP: correlation of the high-passed map and input", "g4: strength of a period of 4 pixels, GBP"
        two = {TITLES[n]: of("g4", n) for n in ("average", "stem", "resnet")}
        skips = {TITLES[n]: of("g4", n) for n in ("no_skips", "resnet")}
        return [
            claim("gbp", SIMILAR, metric=fine, criterion=above(0.3), values=of("HP", "resnet")),
            claim("deconvnet", SIMILAR, metric=fine, criterion=above(0.15), values=of("HP", "resnet", "deconvnet")),
            claim("saliency", SIMILAR, metric=fine, criterion=near_zero(0.04), values=of("HP", "resnet", "saliency")),
            claim(
                "saliency_random",
                f"{SIMILAR}, a random logit",
                metric=fine,
                criterion=near_zero(0.04),
                values=of("HP", "resnet", "saliency", "random"),
            ),
            claim("grid", GRID, metric=grid, criterion=above(10), values=of("g4", "resnet")),
            claim("grid_vgg", GRID, metric=f"{grid}, in VGG-16", criterion=below(3), values=of("g4", "vgg")),
            claim(
                "skips",
                SKIPS,
                metric=grid,
                criterion=Criterion("without skips less than half", lambda v: v[0] < v[1] / 2),
                values=skips,
            ),
            claim(
                "finding9_no_skips",
                STEM,
                metric=f"{grid}, without skips",
                criterion=above(10),
                values=of("g4", "no_skips"),
                origin="project",
            ),
            claim("finding9_stem", STEM, metric=grid, criterion=increasing(), values=two, origin="project"),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        image, target = images(results)[0], targets(results)[0]
        networks = list(results.config.experiment.models)
        rows: list[PanelRow] = []
        for method in (m for m in LABELS if m in results.config.methods):
            panels = []
            for network in networks:
                where = {"image": image, "network": network, "target": target, "method": method}
                g4, fine = (mean_and_spread(column(results, name, **where)) for name in ("g4", "HP"))
                map_ = results.arrays[f"{image}/{network}/{target}/{method}"]
                title = "" if rows else TITLES.get(network, network)
                panels.append(Panel(display.minmax(map_), title, f"g4 {g4}\nhigh-passed {fine}"))
            rows.append(PanelRow(panels, LABELS[method]))
        caption = [
            f"Random ResNet-50, the same without skip connections, and with a first convolution of stride 1 and 4x4 "
            f"pooling, and VGG-16; input {image}",
            *random_networks(results),
            "Under each map: g4, the power at periods of 4 pixels over that beside it, and the correlation with the input "
            "after a high-pass",
        ]
        return {"figure": panel_grid(rows, caption)}
