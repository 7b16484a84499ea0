"""taimeskhanov2024, Figure 3: GradCAM of a masked one-layer CNN at initialisation, on a digit whose lower half it cannot see.

"Even though our network does not see the red part of the image, GradCAM does highlight some pixels in this area, as
predicted by Theorem 1." Weights from N(0, 1); GradCAM of the predicted class behind the ReLU. That the network is blind is
checked twice: blanking the unseen rows leaves the logits as they are, and their gradient is exactly 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from experiments.taimeskhanov2024.theorem1 import digit
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.methods import GradCAM
from vis.models.wall import gradient_by_row
from vis.oldclaims import Claim, Criterion, above, mean
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.system.device import local_convolutions

LAYER = "features.1"  # the ReLU; the pooling comes behind it
BLIND = "our network does not see the red part of the image"
HIGHLIGHTS = "GradCAM does highlight some pixels in this area"
SHOWN = 6  # networks in the figure


class Figure3(Experiment):
    """Measure GradCAM in the unseen half. models.cnn: the network's config node. A task is an image, for all seeds."""

    def __init__(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        self.cnn = models["cnn"]

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed} for seed in run.seeds]

    def load(self, run: Run, task: Task) -> Load:
        return Load(self.cnn, task["seed"], len(run.dataset), 1, len(run.dataset))

    @local_convolutions()
    def compute(self, run: Run, task: Task) -> Output:
        seed = task["seed"]
        model = run.model(self.cnn, seed)
        if model.dead_rows is None:
            raise UserError(f"{model.name} has no wall and so no unseen rows: give a model with wall.rows")
        first, last = model.dead_rows
        names = list(run.dataset.names)
        pixels = torch.stack([digit(run, i) for i in range(len(names))])
        x = pixels.to(run.device, run.dtype)
        blank = x.clone()
        blank[:, :, first:] = 0
        with torch.no_grad():
            changed = (model.net(x) - model.net(blank)).abs().amax(1)
        maps = GradCAM(layer=LAYER)(model.net, x).cpu()
        slope = gradient_by_row(model.net, x)
        output = Output(tables={"table": []})
        for i, image in enumerate(names):
            unseen, whole = maps[i, 0, first:].norm().item(), maps[i].norm().item()
            output.tables["table"].append(
                {"seed": seed, "image": image, "first": first, "last": last, "mu": unseen / whole if whole else None}
                | {"unseen": unseen, "logits": changed[i].item(), "gradient": slope[first:].max().item()}
            )
            output.arrays |= {f"{image}/pixels": pixels[i].numpy()} if seed == run.seeds[0] else {}
            output.arrays[f"{image}/{seed}"] = maps[i].numpy()
        return output

    def claims(self, results: Results) -> list[Claim]:
        rows = results.rows()
        positive = [mean([float(r["unseen"] > 0) for r in rows if r["seed"] == s]) for s in _seeds(results)]
        zero, source = Criterion("each is 0", lambda values: not any(values)), "Figure 3"
        blank, slope = "largest change of a logit, unseen rows blanked", "largest gradient of the logits there"
        share = "share of the maps that are positive somewhere in the unseen rows, for each network"
        return [
            Claim(
                "blind_logits",
                BLIND,
                source=source,
                metric=blank,
                criterion=zero,
                values=[r["logits"] for r in rows],
                paper=0.0,
            ),
            Claim(
                "blind_gradient",
                BLIND,
                source=source,
                metric=slope,
                criterion=zero,
                values=[r["gradient"] for r in rows],
                paper=0.0,
            ),
            Claim("gradcam_unseen", HIGHLIGHTS, source=source, metric=share, criterion=above(0.5), values=positive),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, rows = results.config, results.rows()
        images, seeds = list(dict.fromkeys(r["image"] for r in rows))[:4], _seeds(results)[:SHOWN]
        dead = (rows[0]["first"], rows[0]["last"])
        grid: list[PanelRow] = []
        for image in images:
            pixels = results.arrays[f"{image}/pixels"]
            panels = [Panel(display.picture(pixels), "" if grid else "input", image, dead_rows=dead)]
            for seed in seeds:
                (row,) = results.rows(image=image, seed=seed)
                note = "map is 0" if row["mu"] is None else f"μ = {100 * row['mu']:.0f} %"
                overlaid = display.overlay(results.arrays[f"{image}/{seed}"], pixels)
                panels.append(Panel(overlaid, "" if grid else f"seed {seed}", note, dead_rows=dead))
            grid.append(PanelRow(panels))
        source = str(config.dataset._target_).rpartition(".")[2]
        digits = {"mnist": "MNIST digits", "digits": "scikit-learn's digits, enlarged from 8x8 to 28x28"}.get(
            source, source
        )
        share = mean([float(r["unseen"] > 0) for r in rows])
        caption = [
            f"Illustration of Theorem 1 on {digits}: a CNN with one layer of 256 filters, weights from N(0, 1), that cannot see "
            f"the red rows (its wall stands at y = {dead[0] - 0.5:g}), and GradCAMs of its predicted class, several seeds",
            f"Maps: {display.scaling('overlay')[1]}; μ: their norm in the unseen rows over that of the whole map",
            f"{share:.0%} of {len(rows)} maps are positive somewhere in the unseen rows; blanking those changes the logits by "
            f"{max(row['logits'] for row in rows):g}",
        ]
        return {"figure": panel_grid(grid, caption)}


def _seeds(results: Results) -> list[int]:
    return list(dict.fromkeys(row["seed"] for row in results.rows()))
