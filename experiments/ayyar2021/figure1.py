"""ayyar2021, Figure 1: occlusion, a gray window that slides over an image, and the map of the score that is lost.

The sentence on objects is judged on mosaics of four photographs, where the place of each object is known.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.ayyar2021.mosaic import MOSAIC, mosaic
from experiments.ayyar2021.verdicts import POSITIVE, on_trained
from vis.claims import Claim, Column, Compared, replicated
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.methods import Occlusion
from vis.methods.perturbation import accumulate
from vis.methods.target import Target
from vis.runner.experiment import Experiment, Run, Task, method_words
from vis.store.run_folder import Output, Results


class Figure1(Experiment):
    """Draw the sliding window and its map, and compare the loss on the object's cell of a mosaic with that on others.

    places: pictures of the window, spread evenly over its path; one more shows where the score loses most. rows: the most
    images in the figure.
    """

    def __init__(self, places: int, rows: int) -> None:
        self.places, self.rows = places, rows

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"images": [i]} for i in range(len(run.dataset))]

    def compute(self, run: Run, task: Task) -> Output:
        model, method = run.model(), next(iter(run.methods.values()))
        if not isinstance(method, Occlusion):
            raise UserError("Figure 1 needs the method with a sliding gray window: method=occlusion")
        batch, preprocess = run.batch(model, task["images"]), run.preprocess(model)
        (image,), x, k = batch.names, batch.x[0], method.window
        with torch.no_grad():
            logits = model.net(batch.x)[0]
        c = (run.units_of(model, run.targets[0], batch.names) or [int(logits.argmax())])[0]
        windows = method.windows(x)
        loss = method.evidence(model.net, x, Target(c), windows, preprocess)
        map_ = accumulate(loss, windows, k, x.shape[1:]).cpu().double()
        output = Output(tables={"windows": []})
        row = {"image": image, "class": model.class_name(c), "score": logits[c].item(), "weights": model.weights}
        if len(run.dataset) >= 4:
            pixels, classes, cells = mosaic(run, task["images"][0])
            lost = method(model.net, pixels, [classes[0]], preprocess).cpu().double()[0]
            own, *others = (lost[cell].mean().item() for cell in cells)
            row |= {"own_cell": own, "other_cells": sum(others) / 3, "next_cell": others[0]}
            row |= {"beside_next": (own + others[1] + others[2]) / 3}
        output.tables["table"] = [row]
        if task["images"][0] < self.rows:
            places = [*np.linspace(0, len(windows) - 1, self.places).astype(int).tolist(), int(loss[:, 0].argmax())]
            covered, fill = x.repeat(len(places), 1, 1, 1), method.covered(x, preprocess)
            for each, i in zip(covered, places, strict=True):
                top, left = windows[i].tolist()
                each[:, top : top + k, left : left + k] = fill[:, top : top + k, left : left + k]
                output.tables["windows"].append({"image": image, "top": top, "left": left, "loss": loss[i, 0].item()})
            covered = preprocess.inverse(covered.cpu(), preprocess.norm(batch.pixels))
            output.arrays = {f"{image}/pixels": batch.pixels[0].numpy(), f"{image}/map": map_.numpy()}
            output.arrays[f"{image}/covered"] = covered.numpy()
        return output

    def claims(self, results: Results) -> list[Claim]:
        own, others, following, beside = (
            Column(results.rows(), name, "image") for name in ("own_cell", "other_cells", "next_cell", "beside_next")
        )
        metric = "mean loss of a class's score on its photograph in a mosaic - on the three other photographs"
        higher = Compared(metric, own - others, POSITIVE, null=following - beside, control="the photograph beside it")
        return replicated(on_trained(results, [Claim("A-2.1-d", [higher])]), [MOSAIC])

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows: list[PanelRow] = []
        for fact in results.rows()[: self.rows]:
            image = fact["image"]
            arrays = {name: results.arrays[f"{image}/{name}"] for name in ("pixels", "covered", "map")}
            panels = [Panel(display.picture(arrays["pixels"]), "", f"{fact['class']}: {fact['score']:.2f}")]
            for row, picture in zip(results.rows("windows", image=image), arrays["covered"], strict=True):
                panels.append(Panel(display.picture(picture), "", f"{fact['score'] - row['loss']:.2f}"))
            panels[-1].title = "" if rows else "Largest loss"
            loss = Panel(display.overlay(arrays["map"], arrays["pixels"]), "" if rows else "Loss of the score")
            rows.append(PanelRow([*panels, loss]))
        caption = [
            "A window slides over the image; under each picture the score of the class. Right: what the score loses, "
            "the mean over the windows that hold a pixel; " + display.scaling("overlay")[1],
            *method_words(results.config),
            f"{results.config.model.name}, {results.rows()[0]['weights']}",
        ]
        return {"figure": panel_grid(rows, caption)}
