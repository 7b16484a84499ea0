"""nie2018, supplement, Figure 9: GBP beside a linear edge detector, each pixel minus its left neighbour.

"the linear vertical edge detector will highlight all the horizontal intensity changes, while GBP has the additional ability to
filter out some background image patches." In a flat background a difference is 0, so only the textured background counts, where
the local energy of the gray high-passed image is above its median. The number measured is the share of a map's energy there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from experiments.nie2018.figure9 import BOX, background
from experiments.nie2018.trained import batches_of_the_model, images_of, not_the_papers, wanted, weights_words
from vis import metrics
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.oldclaims import Claim, Criterion, mean_and_spread
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results

FILTER = "GBP has the additional ability to filter out some background image patches"
SOURCE = "Supplement, section F"


def left_difference(images: Tensor) -> Tensor:
    """Subtract from each pixel its left neighbour; the first column is 0."""
    return images - pad(images, (1, 0, 0, 0), mode="replicate")[..., :-1]


def textured(x: Tensor, window: int) -> Tensor:
    """Return a mask [B, 1, H, W]: 1 where the mean energy of the gray high-passed image in a window is above its median."""
    energy = avg_pool2d(metrics.high_pass(x).square(), window, stride=1, padding=window // 2, count_include_pad=False)
    return (energy > energy.flatten(1).median(1).values.view(-1, 1, 1, 1)).double()


class SupplementFigure9(Experiment):
    """Compare GBP with the edge detector. object: {image: box}, see Figure9; paper: the paper's images."""

    metrics = ("gbp", "edge")

    def __init__(self, object: Mapping[str, Sequence[float]], paper: Sequence[str]) -> None:
        self.object, self.paper = object, paper

    def tasks(self, run: Run) -> Sequence[Task]:
        return batches_of_the_model(run)

    def load(self, run: Run, task: Task) -> Load:
        return Load(run.config.model, task["seed"], len(task["images"]), 1, 3 * len(task["images"]))

    def compute(self, run: Run, task: Task) -> Output:
        seed, (method,) = task["seed"], list(run.methods)
        model = run.model(seed=seed)
        batch = run.batch(model, task["images"])
        gbp = run.explain(model, batch.x, [run.units_of(model, run.targets[0], batch.names)]).maps[0][method]
        x = batch.x.cpu()
        shape = (x.shape[2], x.shape[3])
        outside = torch.stack([background(shape, self.object.get(name, BOX)) for name in batch.names])[:, None]
        where = outside * textured(x, 2 * (shape[0] // 32) + 1)
        output = Output(tables={"table": []})
        shares = {}
        maps = {"gbp": gbp, "edge": left_difference(x)}
        for name, each in maps.items():
            energy = each.double().square().sum(1, keepdim=True)
            shares[name] = (energy * where).flatten(1).sum(1) / energy.flatten(1).sum(1)
        for i, image in enumerate(batch.names):
            row = {"seed": seed, "image": image, **{name: share[i].item() for name, share in shares.items()}}
            output.tables["table"].append({**row, "area": where[i].mean().item(), "weights": model.weights})
            if seed == run.seeds[0]:
                output.arrays |= {f"{image}/{name}": each[i].numpy() for name, each in maps.items()}
                output.arrays[f"{image}/pixels"] = batch.pixels[i].numpy()
        return output

    def claims(self, results: Results) -> list[Claim]:
        reason = not_the_papers(results)
        less = Criterion("below 0 for each image", lambda values: max(values) < 0)
        values = [row["gbp"] - row["edge"] for row in results.rows()]
        metric = "share of the energy in the textured background, GBP's minus the edge detector's"
        claim = Claim("filters", FILTER, source=SOURCE, metric=metric, criterion=less, values=values)
        here = replace(claim, name="here", sentence=f"Of this network: {FILTER}", origin="project")
        return [replace(claim, reason=reason), *[here] * bool(reason)]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows: list[PanelRow] = []
        for image in images_of(results)[:6]:
            cells = results.rows(image=image)
            panels = [Panel(display.picture(results.arrays[f"{image}/pixels"]), "" if rows else "Input", image)]
            for name, title in (("gbp", "GBP"), ("edge", "pixel - left neighbour")):
                map_ = display.minmax(results.arrays[f"{image}/{name}"])
                share = mean_and_spread([cell[name] for cell in cells])
                panels.append(Panel(map_, "" if rows else title, f"in the background {share}"))
            rows.append(PanelRow(panels))
        caption = [
            weights_words(results),
            "Under the maps: share of their energy in the textured background",
            display.scaling("minmax")[1],
            wanted(results, self.paper),
        ]
        return {"figure": panel_grid(rows, caption)}
