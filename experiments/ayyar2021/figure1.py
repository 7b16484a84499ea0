"""ayyar2021, Figure 1: occlusion, a gray window that slides over an image, and the map of the score that is lost.

"the regions where the objects are present should have a higher contribution to the prediction."
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.ayyar2021.gallery import box_mask
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.methods import Occlusion
from vis.methods.perturbation import accumulate
from vis.methods.target import Target
from vis.oldclaims import POSITIVE, Claim, other_network, paper_and_here
from vis.runner.experiment import Experiment, Run, Task, method_words
from vis.store.run_folder import Output, Results

OBJECT = "regions where the objects are present should have a higher contribution to the prediction"
NETWORK = {"_target_": "vis.models.VGG16", "num_classes": 1000, "pool": "max", "input_size": 224}


class Figure1(Experiment):
    """Draw the sliding window and its map, and compare the loss inside and outside the object.

    places: pictures of the window, spread evenly over its path; one more shows where the score loses most. rows: the most
    images in the figure. object: {image: box of the object (top, left, bottom, right), as shares of the sides}.
    """

    def __init__(self, places: int, rows: int, object: Mapping[str, Sequence[float]] = {}) -> None:
        self.places, self.rows, self.object = places, rows, object

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
        if image in self.object:
            inside = box_mask(self.object[image], model.input_size).bool()
            row |= {"inside": map_[inside].mean().item(), "outside": map_[~inside].mean().item()}
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
        gains = [r["inside"] - r["outside"] for r in results.rows() if r.get("inside") is not None]
        metric = "mean loss of the score, inside - outside the object's box"
        claim = Claim("object", OBJECT, source="Section 2.1", metric=metric, criterion=POSITIVE, values=gains)
        return paper_and_here([claim], other_network(results.config.model, NETWORK))

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
