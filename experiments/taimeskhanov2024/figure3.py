"""taimeskhanov2024, Figure 3: GradCAM of a masked one-layer CNN at initialisation, on a digit whose lower half it cannot see.

"Even though our network does not see the red part of the image, GradCAM does highlight some pixels in this area, as
predicted by Theorem 1." Weights from N(0, 1); GradCAM behind the ReLU. Theorem 1 speaks of one output: GradCAM explains the same
class for all networks and not the predicted one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from experiments.taimeskhanov2024.theorem1 import bound, digit
from vis import metrics
from vis.claims import Claim, Column, Compared, above, departures, each_above, exactly, mean, replicated
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.methods import GradCAM
from vis.methods.forward import Forward
from vis.models.wall import gradient_by_row
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.system.device import local_convolutions

LAYER = "features.1"  # the ReLU; the pooling comes behind it
CLASS = 0
SHOWN = 6  # networks in the figure
ROWS = 14  # of the last feature map
PAPER = {
    "_target_": "vis.models.MaskedCNN",
    "variant": "one_layer",
    "init": "normal",
    "std": 1.0,
    "wall": {"rows": None},
}


class Figure3(Experiment):
    """Measure GradCAM in the unseen half. models.cnn: the network's config node. A task is a network."""

    def __init__(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        self.cnn = models["cnn"]

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed} for seed in run.seeds]

    def load(self, run: Run, task: Task) -> Load:
        return Load(self.cnn, task["seed"], len(run.dataset), 1, len(run.dataset))

    @local_convolutions()
    def compute(self, run: Run, task: Task) -> Output:
        seed = task["seed"]
        twin = run.model(self.cnn, seed, wall={"rows": ROWS}).net
        model = run.model(self.cnn, seed)
        if model.dead_rows is None:
            raise UserError(f"{model.name} has no wall and so no unseen rows: give a model with wall.rows")
        first, last = model.dead_rows
        names = list(run.dataset.names)
        pixels = torch.stack([digit(run, i) for i in range(len(names))])
        x = pixels.to(run.device, run.dtype)
        noise = x.clone()
        noise[:, :, first:] = torch.rand(noise[:, :, first:].shape, generator=torch.Generator().manual_seed(seed)).to(x)
        method = GradCAM(layer=LAYER)
        with Forward(model.net, x, [LAYER]) as forward:
            raw = method.sum(forward, CLASS, LAYER).relu().detach().cpu()
            maps = method.explain(forward, CLASS).detach().cpu()
        control = method(twin, x, CLASS).detach().cpu()
        with torch.no_grad():
            changed = (model.net(x) - model.net(noise)).abs().amax(1)
        seen, unwalled = (gradient_by_row(net, x) for net in (model.net, twin))
        wall = {"gradient": seen[first:].max().item(), "gradient above": seen[first - 1].item()}
        wall["gradient without wall"] = unwalled[first:].max().item()
        constant = math.sqrt((last - first + 1) / x.shape[2])
        output = Output(tables={"table": []})
        for i, image in enumerate(names):
            mu, mu_unwalled = (
                metrics.unseen_activity(m[i : i + 1], (first, last)).nan_to_num(0).item() for m in (maps, control)
            )
            row = {
                "seed": seed,
                "image": image,
                "first": first,
                "last": last,
                "mu": mu,
                "mu over constant": mu / constant,
            }
            row["mu unwalled"] = mu_unwalled  # of a map of zeros, which highlights nothing: 0
            row |= _against_theorem(raw[i], pixels[i]) | {"logits": changed[i].item()} | wall
            output.tables["table"].append(row)
            output.arrays |= {f"{image}/pixels": pixels[i].numpy()} if seed == run.seeds[0] else {}
            output.arrays |= {f"{image}/{seed}": maps[i].numpy()} if seed in run.seeds[:SHOWN] else {}
        return output

    def claims(self, results: Results) -> list[Claim]:
        def column(name: str) -> Column:
            return Column(results.rows(), name, "seed")

        network = departures(self.cnn, PAPER)
        data = str(results.config.dataset._target_).rpartition(".")[2]
        other = [] if data == "mnist" else ["scikit-learn's digits, enlarged from 8x8, instead of MNIST's"]
        unseen = [
            Compared("largest gradient of the logits in the unseen rows", column("gradient"), exactly(0),
                     null=column("gradient without wall"), control="the same network without its wall"),
            Compared("largest change of a logit when they become noise", column("logits"), exactly(0), null=1.0,
                     control="a network that sees them"),
            Compared("gradient in the row above", column("gradient above"), each_above(0), null=column("gradient"),
                     control="the unseen rows"),
        ]  # fmt: skip
        all_parts = Compared(
            "share of the active unseen positions where GradCAM is above 0", column("positive"), above(0.95, fails=0.9),
            null=0.5, control="1/2, the mean by Eq. (11)",
        )  # fmt: skip
        zeros: dict[str, Any] = {"null": 0.0, "control": "a map of zeros"}
        highlights = [
            Compared("GradCAM over the bound of Theorem 1, mean of the active unseen positions", column("over bound"),
                     above(1), **zeros),
            Compared("mu over that of a constant map", column("mu over constant"),
                     above(0.1, ours="a tenth is ours"), **zeros),
        ]  # fmt: skip
        found = [Claim("T-2.3-a", unseen), Claim("T-2.3-c", [all_parts]), Claim("T-F3", highlights, differences=other)]
        return replicated(found, network)

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, rows = results.config, results.rows()
        images, seeds = list(dict.fromkeys(r["image"] for r in rows))[:4], list(dict.fromkeys(r["seed"] for r in rows))
        dead = (rows[0]["first"], rows[0]["last"])
        grid: list[PanelRow] = []
        for image in images:
            pixels = results.arrays[f"{image}/pixels"]
            panels = [Panel(display.picture(pixels), "" if grid else "input", image, dead_rows=dead)]
            for seed in seeds[:SHOWN]:
                (row,) = results.rows(image=image, seed=seed)
                note = f"μ = {100 * row['mu']:.0f} %" if row["mu"] else "no activity"
                overlaid = display.overlay(results.arrays[f"{image}/{seed}"], pixels)
                panels.append(Panel(overlaid, "" if grid else f"network {seed}", note, dead_rows=dead))
            grid.append(PanelRow(panels))
        source = str(config.dataset._target_).rpartition(".")[2]
        digits = {"mnist": "MNIST digits", "digits": "scikit-learn's digits, enlarged from 8x8 to 28x28"}.get(
            source, source
        )
        share = mean([float(r["positive"] > 0.5) for r in rows])
        caption = [
            f"Illustration of Theorem 1 on {digits}: a CNN with one layer of 256 filters, weights from N(0, 1), that cannot see "
            f"the red rows (its wall stands at y = {dead[0] - 0.5:g}), and GradCAMs of class {CLASS} for several random networks",
            f"Maps: {display.scaling('overlay')[1]}; μ: their norm in the unseen rows over that of the whole map, on average "
            f"{mean([r['mu'] for r in rows]):.0%}, without the wall {mean([r['mu unwalled'] for r in rows]):.0%}",
            f"In {share:.0%} of the maps of {len(seeds)} networks, most unseen positions with active pixels are above 0; noise "
            f"in the unseen rows changes the logits by {max(row['logits'] for row in rows):g}",
        ]
        return {"figure": panel_grid(grid, caption)}


def _against_theorem(map_: Tensor, pixels: Tensor) -> dict[str, float]:
    """Return the share of positive values of GradCAM [28, 28] at active unseen positions, and their mean over the bound."""
    norms = F.unfold(pixels[None].double(), 2)[0].norm(dim=0).view(map_.shape)
    unseen = torch.arange(len(map_)) >= len(map_) // 2
    active = (norms > 0) & unseen[:, None]
    over = map_[active] / (norms[active] * bound(256, 1.0, 1.0))
    return {"positive": (over > 0).double().mean().item(), "over bound": over.mean().item()}
