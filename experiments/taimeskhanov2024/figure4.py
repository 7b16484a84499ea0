"""taimeskhanov2024, Figure 4: the masked VGG, and which rows of each layer no logit can see.

"We can trace back the zeroed activations in B to the preceding activation map C": 9 of 14 rows of the last feature map are
cut off; each layer before it has fewer unseen rows, by its receptive field, and the image has 54 (24 %), the dead zone. All
numbers are measured: a row is unseen if the gradient of all logits is exactly 0, and noise in it changes no logit.

Section 3.3: HiResCAM's upscaled map "will be zero out in a larger area than the deadzone": from row 88 on (the paper counts
from 1: 89:224), 61 % of the image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from experiments.taimeskhanov2024.masked_vgg import DEAD, facts, other_architecture, other_network
from experiments.wall_check import walled
from vis.claims import Claim, Column, Compared, each_above, exactly, replicated
from vis.figures.layout import PAGE_WIDTH, plot, styled, typeset
from vis.methods import HiResCAM
from vis.methods.forward import Forward
from vis.methods.from_layer import run_rest
from vis.models import VGG16, Model, dead_rows
from vis.runner.experiment import Batch, Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows
from vis.system.device import local_convolutions


class Figure4(Experiment):
    """Find the unseen rows of each layer. A task is a network; the rows do not depend on the image."""

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed} for seed in run.seeds]

    def load(self, run: Run, task: Task) -> Load:
        return Load(run.config.model, task["seed"], len(run.dataset), 30, 0)

    @local_convolutions()
    def compute(self, run: Run, task: Task) -> Output:
        seed = task["seed"]
        model = walled(run, seed)
        batch = run.batch(model, range(len(run.dataset)))
        gradients, outputs = _gradients(model, batch)
        labels = _labels(model, batch)
        rows: list[dict[str, Any]] = []
        for (name, label), gradient, values in zip(labels.items(), gradients, outputs, strict=True):
            seen = _seen(gradient)
            row = {"seed": seed, "layer": label, "channels": gradient.shape[1], "rows": gradient.shape[2], "seen": seen}
            row |= {"unseen share": 1 - seen / gradient.shape[2]}
            row["growth"] = row["unseen share"] - rows[-1]["unseen share"] if rows else None
            changes = _changes(model, batch.x, name, values, (seen, seen - 1), seed)
            row |= dict(zip(("noise below", "noise one row above"), changes, strict=True))
            row["gradient below"] = gradient[:, :, seen:].abs().max().item()
            row["gradient above"] = gradient[:, :, seen - 1].abs().max().item()
            rows.append(row)
        network = {"seed": seed, "first": rows[0]["seen"]} | facts(model) | _architecture(model.net)
        network["receptive field"] = network["rows"][0]
        live = rows[-1]["seen"]
        other = dead_rows({**model.node, "wall": {"rows": live + 1}}) if live + 1 < rows[-1]["rows"] else None
        network["first of another wall"] = other[0] if other else None
        return Output(tables={"table": rows, "hirescam": _hirescam(model, batch, seed), "network": [network]})

    def claims(self, results: Results) -> list[Claim]:
        network, node = results.rows("network"), results.config.model
        same = other_architecture(node, network[0]["rows"])
        free = replicated([*self._architecture(network), *self._dead_zone(results)], same)
        columns = (Column(network, name, "seed") for name in ("first", "receptive field"))
        derived = _exact(
            "first row by gradient minus first row by receptive field",
            next(columns) - next(columns),
            0,
            1.0,
            "a row off",
        )
        own = "The receptive field gives the same dead zone as the gradient."
        return [
            *free,
            *replicated(self._unused(results), other_network(node, network[0])),
            Claim("derived", [derived], sentence=own, source="The project"),
        ]

    def _architecture(self, network: Rows) -> list[Claim]:
        """Compare sizes with those that the paper names, VGG-16's beside them."""
        sizes = {
            "inputs of the first dense layer": (256 * 14 * 14, 512 * 7 * 7), "its outputs": (4096, 0),
            "rows that it reads": (5, 14), "max poolings": (4, 5), "convolutions with other channels than VGG-16's": (0, 1),
        }  # fmt: skip
        *named, others = (
            _exact(
                name,
                Column(network, name, "seed"),
                value,
                null,
                "VGG-16" if "than" not in name else "another convolution",
            )
            for name, (value, null) in sizes.items()
        )
        return [Claim("T-3.1-a", named), Claim("T-3.1-b", [others])]

    def _dead_zone(self, results: Results) -> list[Claim]:
        """Judge the numbers of rows that the network does not see, and in which HiResCAM is 0."""
        per = ("seed", "image")
        first, other = (Column(results.rows("network"), name, "seed") for name in ("first", "first of another wall"))
        zero, aligned, share = (
            Column(results.rows("hirescam"), name, per) for name in ("first zero row", "corners aligned", "zero share")
        )
        growth = Column([r for r in results.rows() if not r["layer"].startswith("B")], "growth", ("seed", "layer"))
        words = "unseen share of a layer's rows minus that of the layer before"
        shrinks = Compared(words, growth, each_above(0), null=0.0, control="1x1 convolutions")
        dead = _exact(
            "first row of the image with a gradient of exactly 0", first, DEAD[0], other, "a wall with one row more"
        )
        hirescam = [
            _exact("first row from which the upsampled map is 0", zero, 88, aligned, "upsampled with aligned corners"),
            Compared("share of the image", share, exactly(0.61, 0.005), null=54 / 224, control="the dead zone"),
        ]
        return [
            Claim("T-3.1-c", [dead], paper=DEAD[0]),
            Claim("T-3.1-d", [shrinks]),
            Claim("T-3.3-f", hirescam, paper="89:224, counted from 1; 61 %"),
        ]

    def _unused(self, results: Results) -> list[Claim]:
        """Judge that unseen rows do not influence the logits, and that the rows above them do."""

        def blind(rows: Rows, metric: str, below: str, above: str) -> list[Compared]:
            unseen, seen = (Column(rows, name, ("seed", "layer")) for name in (below, above))
            return [
                _exact(f"{metric}, unseen rows", unseen, 0, seen, "the row above"),
                Compared(f"{metric}, last seen row", seen, each_above(0), null=unseen, control="the unseen rows"),
            ]

        noise = ("change of the logits by noise", "noise below", "noise one row above")
        slope = ("largest gradient of the logits", "gradient below", "gradient above")
        image, last = results.rows(layer="image"), [r for r in results.rows() if r["layer"].startswith("B")]
        return [
            Claim("T-3-a", [*blind(image, *slope), *blind(image, *noise)]),
            Claim("T-F4-a", blind(results.rows(), *noise)),
            Claim("T-3.3-d", blind(last, *slope)),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        network = results.rows("network")[0]
        rows, (first, last) = results.rows(seed=network["seed"]), network["rows"]
        caption = [
            f"{results.config.model.name}: the layers from the image to the last feature map B, and the first dense layer W. "
            "Hatched, and under each: the rows that no logit sees, since W has weights 0 for the lower rows of B",
            f"In the image these are the rows {first}..{last}, {(last - first + 1) / network['height']:.0%} of it",
        ]
        figure, (axes,) = plot(PAGE_WIDTH, 2.6, caption)
        with styled():
            B = rows[-1]
            boxes = [(row["rows"], row["seen"], f"{row['channels']}x\n{row['rows']}") for row in rows]
            boxes += [(B["rows"], B["seen"], f"{network['its outputs']}x{B['channels']}x\n{B['rows']}")]
            for x, (height, seen, words) in enumerate(boxes):
                relative = np.log2(height / B["rows"] + 1) / np.log2(rows[0]["rows"] / B["rows"] + 1)
                _block(axes, x, 0.35 + 0.65 * relative, seen, height, words, "#9ecae1" if x < len(rows) else "#fdd0a2")
            axes.set_xlim(-0.6, len(rows) + 0.6)
            axes.set_ylim(-0.62, 0.68)
            labels = [*(row["layer"].partition(" ")[0] for row in rows), "dense W"]
            axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
        return {"figure": figure}


def _exact(metric: str, column: Column, value: float, null: Column | float, control: str) -> Compared:
    return Compared(metric, column, exactly(value), null=null, control=control)


def _block(axes: Any, x: float, height: float, seen: int, rows: int, words: str, color: str) -> None:
    """Draw a layer as a box at x with its unseen rows hatched, its size above and their number below."""
    top, live = height / 2, height * seen / rows
    box: dict[str, Any] = {"linewidth": 0.7, "edgecolor": "0.3"}
    axes.add_patch(Rectangle((x - 0.36, top - live), 0.72, live, facecolor=color, **box))
    unseen: dict[str, Any] = {"facecolor": (1, 0, 0, 0.1), "hatch": "////", "linewidth": 0.7, "edgecolor": "red"}
    axes.add_patch(Rectangle((x - 0.36, -top), 0.72, height - live, **unseen))
    axes.text(x, top + 0.02, typeset(words), ha="center", va="bottom", fontsize=6)
    axes.text(x, -top - 0.03, f"{rows - seen}", ha="center", va="top", fontsize=6.5, color="red")


def _labels(model: Model, batch: Batch) -> dict[str, str]:
    """Return {module: label} of the image (""), the convolutions and the last feature map."""
    names = {module: name for name, module in getattr(model.net, "layer_names", {}).items()}
    convolutions = [name for name, module in model.net.named_modules() if isinstance(module, nn.Conv2d)]
    (last,) = HiResCAM().layers(model.net, batch.x)
    return {"": "image"} | {name: names.get(name, name) for name in convolutions} | {last: f"B ({last})"}


def _gradients(model: Model, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of a random mix of all logits at the image and each layer, and the values there."""
    layers = [name for name in _labels(model, batch) if name]
    with Forward(model.net, batch.x, layers) as forward:
        outputs = [forward.images, *(forward.layers[name] for name in layers)]
        mix = torch.randn(forward.logits.shape, generator=torch.Generator().manual_seed(0), dtype=forward.logits.dtype)
        gradients = torch.autograd.grad((forward.logits * mix.to(forward.logits.device)).sum(), outputs)
    return list(gradients), [each.detach() for each in outputs]


@torch.no_grad()
def _changes(model: Model, x: Tensor, layer: str, values: Tensor, firsts: Sequence[int], seed: int) -> list[float]:
    """Return the largest change of a logit of the first image when the rows from each of `firsts` on of a layer become noise."""
    random, x = torch.Generator().manual_seed(seed), x[:1]

    def logits(values: Tensor) -> Tensor:
        return run_rest(model.net, x, layer, values) if layer else model.net(values)

    before, found = logits(values[:1]), []
    for first in firsts:
        noise = values[:1].clone()
        noise[:, :, first:] = values.std() * torch.randn(noise[:, :, first:].shape, generator=random).to(noise)
        found.append((before - logits(noise)).abs().max().item())
    return found


def _hirescam(model: Model, batch: Batch, seed: int) -> list[dict[str, Any]]:
    """Find the first row of each image's HiResCAM from which the map is 0, with other upsamplings as controls."""
    method = HiResCAM()
    (layer,) = method.layers(model.net, batch.x)
    with Forward(model.net, batch.x, [layer]) as forward:
        raw, maps = method.sum(forward, None, layer).relu()[:, None].detach(), method.explain(forward, None).detach()
    size = maps.shape[-2:]
    ways = {"first zero row": maps, "nearest": F.interpolate(raw, size, mode="nearest")}
    ways["corners aligned"] = F.interpolate(raw, size, mode="bilinear", align_corners=True)
    rows: Rows = [
        {"seed": seed, "image": image} | {k: _seen(v[i : i + 1]) for k, v in ways.items()}
        for i, image in enumerate(batch.names)
    ]
    return [row | {"zero share": 1 - row["first zero row"] / size[0]} for row in rows]


def _architecture(net: nn.Module) -> dict[str, Any]:
    """Return the sizes that the paper names, and how many convolutions differ from VGG-16's."""
    convolutions, reference = (
        [m.weight.shape for m in each.modules() if isinstance(m, nn.Conv2d)] for each in (net, _vgg16())
    )
    dense = next((m for m in net.modules() if isinstance(m, nn.Linear)), None)
    wall: Any = getattr(net, "apply_wall", None)
    return {
        "inputs of the first dense layer": dense.in_features if dense else 0,
        "its outputs": dense.out_features if dense else 0,
        "rows that it reads": wall.rows if wall else 0,
        "max poolings": sum(isinstance(m, nn.MaxPool2d) for m in net.modules()),
        "convolutions with other channels than VGG-16's": sum(
            a != b for a, b in zip(convolutions, reference, strict=False)
        ),
    }


def _vgg16() -> nn.Module:
    with torch.device("meta"):
        return VGG16()


def _seen(values: Tensor) -> int:
    """Return one more than the last row of [B, C, H, W] with a nonzero value."""
    live = values.abs().amax((0, 1, 3)).nonzero()
    return int(live.max()) + 1 if len(live) else 0
