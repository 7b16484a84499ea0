"""taimeskhanov2024, Figure 1: GradCAM on a network that cannot see the lower part of its image.

"Left: original image; Middle: GradCAM explanation before up-sampling; Right: original image with Grad-CAM explanation
overlayed as a heatmap." The red part is what the network does not have access to.
"""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from experiments.taimeskhanov2024.masked_vgg import facts, other_network
from experiments.wall_check import unwalled, walled
from vis import metrics
from vis.claims import Claim, Column, Compared, each_above, exactly, on_digits, replicated
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.methods.cam import ActivationMap
from vis.methods.forward import Forward
from vis.models import Model
from vis.models.wall import gradient_by_row
from vis.runner.experiment import Batch, Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.system.device import local_convolutions


class Figure1(Experiment):
    """Draw one CAM of one image."""

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"images": [0]}]

    def load(self, run: Run, task: Task) -> Load:
        return Load(run.config.model, run.config.seed, 1, 4, 2)

    @local_convolutions()
    def compute(self, run: Run, task: Task) -> Output:
        model = walled(run)
        assert model.dead_rows is not None
        first, last = model.dead_rows
        batch = run.batch(model, task["images"])
        class_, before, map_ = self._map(run, model, batch, None)
        slope = gradient_by_row(model.net, batch.x)
        row: dict[str, Any] = facts(model) | {"image": batch.names[0], "class": model.class_name(class_)}
        row["data"] = run.dataset.origin
        with torch.no_grad():
            row["p"] = model.net(batch.x).softmax(1)[0, class_].item()
        row |= {"gradient": slope[first : last + 1].max().item(), "gradient above": slope[first - 1].item()}
        twin = unwalled(run, model, batch.x)
        *_, control = self._map(run, twin, batch, class_)
        for name, each in (("mu", map_), ("mu_unwalled", control), ("constant", torch.ones_like(map_))):
            row[name] = (
                metrics.unseen_activity(each, (first, last)).nan_to_num(0).item()
            )  # a map of zeros highlights nothing
        row["share positive"] = (map_[:, :, first : last + 1] > 0).double().mean().item()
        arrays = {"pixels": batch.pixels[0], "before": before[0], "map": map_[0]}
        return Output({key: value.detach().cpu().numpy() for key, value in arrays.items()}, {"table": [row]})

    def _map(self, run: Run, model: Model, batch: Batch, class_: int | None) -> tuple[int, torch.Tensor, torch.Tensor]:
        """Return the class that is explained, and the map of the run's CAM before and after the upsampling."""
        ((name, method), *_) = run.methods.items()
        if not isinstance(method, ActivationMap):
            raise UserError(f"{name} is not a class activation map: method=gradcam, ...")
        layers = method.layers(model.net, batch.x)
        with Forward(model.net, batch.x, layers, run.preprocess(model)) as forward:
            class_ = int(forward.logits.argmax()) if class_ is None else class_
            return (
                class_,
                method.sum(forward, class_, layers[0]).relu()[:, None].detach(),
                method.explain(forward, class_).detach(),
            )

    def claims(self, results: Results) -> list[Claim]:
        rows = results.rows()

        def column(name: str) -> Column:
            return Column(rows, name, "image")

        compared = [
            Compared("mu", column("mu"), each_above(0), null=0.0, control="a map of zeros"),
            Compared("largest gradient of the logits in the unseen rows", column("gradient"), exactly(0),
                     null=column("gradient above"), control="the row above"),
        ]  # fmt: skip
        other = [
            *other_network(results.config.model, rows[0]),
            f"one image, {rows[0]['image']}, instead of the paper's",
        ]
        return replicated([Claim("T-F1", compared)], other, on_digits(results.config))

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        (row,) = results.rows()
        pixels, before, map_ = (results.arrays[key] for key in ("pixels", "before", "map"))
        dead = tuple(row["rows"])
        height, width = before.shape[1:]
        panels = [
            Panel(display.picture(pixels), "Image", row["image"]),
            Panel(display.heat(before), f"GradCAM, {height}x{width}", "before upsampling"),
            Panel(display.overlay(map_, pixels), "GradCAM over the image", f"mu x 100 = {100 * row['mu']:.1f}", dead),
        ]
        caption = [
            f"{results.config.model.name}, {row['weights']}; class explained: {row['class']}, p = {row['p']:.2f}",
            f"Image: {row['data']}",
            f"Hatched: the rows {dead[0]}..{dead[1]}, which the network cannot see; mu: the share of the map's norm there. A "
            f"constant map has {100 * row['constant']:.1f}, the map without the wall {100 * row['mu_unwalled']:.1f}",
        ]
        return {"figure": panel_grid([PanelRow(panels)], caption, panel=2.0)}
