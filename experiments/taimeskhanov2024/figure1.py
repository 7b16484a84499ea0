"""taimeskhanov2024, Figure 1: GradCAM on a network that cannot see the lower part of its image.

"Left: original image; Middle: GradCAM explanation before up-sampling; Right: original image with Grad-CAM explanation
overlayed as a heatmap. Red shading: the lower part of the image is unseen by the network."
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure

from vis import metrics
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.methods.cam import ActivationMap
from vis.methods.forward import Forward
from vis.oldclaims import Claim, above
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results

SENTENCE = "GradCAM highlights a part of the image that the network does not see"


class Figure1(Experiment):
    """Draw one CAM of one image."""

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"images": [0]}]

    def load(self, run: Run, task: Task) -> Load:
        return Load(run.config.model, run.config.seed, 1, 1, 2)

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        if model.dead_rows is None:
            raise UserError(f"{model.name} has no wall: take model=vgg16_masked, or add model.wall.rows=...")
        ((name, method), *_) = run.methods.items()
        if not isinstance(method, ActivationMap):
            raise UserError(f"{name} is not a class activation map: method=gradcam, ...")
        batch = run.batch(model, task["images"])
        layers = method.layers(model.net, batch.x)
        with Forward(model.net, batch.x, layers, run.preprocess(model)) as forward, torch.no_grad():
            (class_,) = forward.logits.argmax(1).tolist()
            with torch.enable_grad():
                before = method.sum(forward, None, layers[0]).relu()[:, None]
                map_ = method.explain(forward, None)
        mu = metrics.unseen_activity(map_, model.dead_rows).nan_to_num(0).item()  # a map of zeros highlights nothing
        arrays = {"pixels": batch.pixels[0], "before": before[0], "map": map_[0]}
        row: dict[str, Any] = {"image": batch.names[0], "method": name, "class": model.class_name(class_), "mu": mu}
        row |= {"weights": model.weights, "own": model.standin or not model.trained, "rows": list(model.dead_rows)}
        return Output({key: value.detach().cpu().numpy() for key, value in arrays.items()}, {"table": [row]})

    def claims(self, results: Results) -> list[Claim]:
        (row,) = results.rows()
        reason = "not the paper's weights" if row["own"] else ""
        claim = Claim("unseen", SENTENCE, source="Figure 1", metric="mu", criterion=above(0.1), values=[row["mu"]])
        here = replace(claim, name="here", sentence=f"Here: {SENTENCE}", origin="project")
        return [replace(claim, reason=reason), here]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        (row,) = results.rows()
        pixels, before, map_ = (results.arrays[key] for key in ("pixels", "before", "map"))
        dead = tuple(row["rows"])
        height, width = before.shape[1:]
        panels = [
            Panel(display.picture(pixels), "Original image", row["image"]),
            Panel(display.heat(before), f"GradCAM, {height}x{width}", "before upsampling"),
            Panel(display.overlay(map_, pixels), "GradCAM over the image", f"mu x 100 = {100 * row['mu']:.1f}", dead),
        ]
        caption = [
            f"{results.config.model.name}, {row['weights']}; class explained: {row['class']}",
            f"Hatched: the rows {dead[0]}..{dead[1]}, which the network cannot see; mu: the share of the map's norm there",
        ]
        return {"figure": panel_grid([PanelRow(panels)], caption, panel=2.0)}
