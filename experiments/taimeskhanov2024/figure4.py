"""taimeskhanov2024, Figure 4: the masked VGG, and which rows of each layer no logit can see.

"We can trace back the zeroed activations in B to the input": 9 of 14 rows of the last feature map are cut off; each layer
before it has fewer unseen rows, by its receptive field, and the image has 54 (24 %), the dead zone. All numbers are measured: a
row is unseen if the gradient of all logits is exactly 0. For the image, the receptive field predicts the same.

Section 3.3: "the upscaled HiResCAM's saliency map will be zero out in a larger area than the deadzone": from row 88 on
(the paper counts from 1: 89:224), 61 % of the image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from vis.errors import UserError
from vis.figures.layout import PAGE_WIDTH, plot, styled
from vis.methods import HiResCAM
from vis.methods.forward import Forward
from vis.oldclaims import Claim, Criterion, departures
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.system.device import local_convolutions

PAPER = {"_target_": "vis.models.MaskedVGG16", "input_size": 224}
DEAD = "the dead zone is the lower 54 rows of the image, 24 % of it (rows 170..223, counted from 0)"
HIRES = "HiResCAM's upscaled map is zero from row 88 on, 61 % of the image"


class Figure4(Experiment):
    """Find the unseen rows of each layer, on the first image only: they do not depend on the image."""

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"images": [0]}]

    def load(self, run: Run, task: Task) -> Load:
        return Load(run.config.model, run.config.seed, 1, 2, 0)

    @local_convolutions()
    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        if model.dead_rows is None:
            raise UserError(f"{model.name} has no wall: take model=vgg16_masked, or add model.wall.rows=...")
        batch = run.batch(model, task["images"])
        convolutions = [name for name, module in model.net.named_modules() if isinstance(module, nn.Conv2d)]
        names = {module: name for name, module in getattr(model.net, "layer_names", {}).items()}
        method = HiResCAM()
        last = method.layers(model.net, batch.x)
        with Forward(model.net, batch.x, [*convolutions, *last]) as forward:
            outputs = [forward.images, *(forward.layers[name] for name in (*convolutions, *last))]
            mix = torch.randn(forward.logits.shape, generator=torch.Generator().manual_seed(0), dtype=run.dtype)
            gradients = torch.autograd.grad((forward.logits * mix.to(run.device)).sum(), outputs, retain_graph=True)
            map_ = method.explain(forward, None)
        rows = []
        labels = ["image", *(names.get(name, name) for name in convolutions), f"B ({last[0]})"]
        for label, gradient in zip(labels, gradients, strict=True):
            rows.append(
                {"layer": label, "channels": gradient.shape[1], "rows": gradient.shape[2], "seen": _seen(gradient)}
            )
        found = {
            "derived": list(model.dead_rows),
            "hirescam": _seen(map_),
            "height": map_.shape[2],
            "weights": model.weights,
        }
        return Output(tables={"table": rows, "network": [found]})

    def claims(self, results: Results) -> list[Claim]:
        image, (network,) = results.rows(layer="image")[0], results.rows("network")
        reason = departures(results.config.model, PAPER)
        if results.config.model.wall.rows not in (None, 5):
            reason = reason or f"wall.rows is {results.config.model.wall.rows} (paper: 5)"
        derived = Criterion("equal to the receptive field's", lambda v: v[0] == network["derived"][0])
        return [
            Claim(
                "dead_zone",
                DEAD,
                source="Figure 4, section 3.1",
                metric="first row of the image with a gradient of exactly 0",
                criterion=Criterion("170", lambda v: v == [170]),
                values=[image["seen"]],
                paper=170,
                reason=reason,
            ),
            Claim(
                "derived",
                "The receptive field gives the same dead zone as the gradient",
                source="Figure 4",
                metric="first row of the image with a gradient of exactly 0",
                criterion=derived,
                values=[image["seen"]],
            ),
            Claim(
                "hirescam",
                HIRES,
                source="Section 3.3",
                metric="first row from which the map is exactly 0",
                criterion=Criterion("88", lambda v: v == [88]),
                values=[network["hirescam"]],
                paper="88 (89 counted from 1)",
                reason=reason,
            ),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows, (network,) = results.rows(), results.rows("network")
        first, last = network["derived"]
        caption = [
            f"{results.config.model.name}: the layers from the image to the last feature map B. Hatched, and under each: the "
            "rows that no logit sees, since the first dense layer does not read the lower rows of B",
            f"In the image these are the rows {first}..{last}, {(last - first + 1) / network['height']:.0%} of it",
        ]
        figure, (axes,) = plot(PAGE_WIDTH, 2.6, caption)
        with styled():
            for x, row in enumerate(rows):
                height = 0.35 + 0.65 * np.log2(row["rows"] / rows[-1]["rows"] + 1) / np.log2(
                    rows[0]["rows"] / rows[-1]["rows"] + 1
                )
                live = height * row["seen"] / row["rows"]
                top = height / 2
                box: dict[str, Any] = {"linewidth": 0.7, "edgecolor": "0.3"}
                axes.add_patch(Rectangle((x - 0.36, top - live), 0.72, live, facecolor="#9ecae1", **box))
                axes.add_patch(Rectangle((x - 0.36, -top), 0.72, height - live, facecolor=(1, 0, 0, 0.1), hatch="////",
                                         **(box | {"edgecolor": "red"})))  # fmt: skip
                axes.text(x, top + 0.02, f"{row['channels']}x\n{row['rows']}", ha="center", va="bottom", fontsize=6)
                axes.text(
                    x, -top - 0.03, f"{row['rows'] - row['seen']}", ha="center", va="top", fontsize=6.5, color="red"
                )
            axes.set_xlim(-0.6, len(rows) - 0.4)
            axes.set_ylim(-0.62, 0.68)
            axes.set_xticks(range(len(rows)), [row["layer"].partition(" ")[0] for row in rows], rotation=45, ha="right")
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
        return {"figure": figure}


def _seen(values: torch.Tensor) -> int:
    """Return one more than the last row of [1, C, H, W] with a nonzero value."""
    return int(values.abs().amax((0, 1, 3)).nonzero().max()) + 1
