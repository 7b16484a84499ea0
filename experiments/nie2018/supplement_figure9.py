"""nie2018, supplement, Figure 9: GBP beside a linear edge detector, each pixel minus its left neighbour.

Columns of the table, a row for each network (trained, and random as the control), seed, photograph and map (edge, or a method):

    local        correlation of the energies of 8x8 blocks of the map and of the detector; other: of the next photograph's
    edges        share of the map's energy in the fifth of the pixels with the most detector energy, over that fifth
    patches      share of patches that survive, see `trained`
    background   share of the energy in the textured background, outside the object and where the local energy of the gray
                 high-passed image is above its median: on a flat background, a difference is 0 anyway
"""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from experiments.nie2018.trained import (
    LABELS,
    batches_of_both,
    difference,
    energy_of,
    images_of,
    judged,
    network_of,
    objects_of,
    outside,
    share,
    surviving_patches,
    wanted,
    weights_words,
)
from vis import metrics
from vis.claims import Claim, Column, Compared, above, below, mean_and_spread
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results


def left_difference(images: Tensor) -> Tensor:
    """Subtract from each pixel its left neighbour; the first column is 0."""
    return images - pad(images, (1, 0, 0, 0), mode="replicate")[..., :-1]


def textured(x: Tensor, window: int) -> Tensor:
    """Return a mask [B, 1, H, W]: 1 where the mean energy of the gray high-passed image in a window is above its median."""
    energy = avg_pool2d(metrics.high_pass(x).square(), window, stride=1, padding=window // 2, count_include_pad=False)
    return (energy > energy.flatten(1).median(1).values.view(-1, 1, 1, 1)).double()


class SupplementFigure9(Experiment):
    """Compare GBP, and the saliency map as its control, with the edge detector. paper: its images."""

    metrics = ("local", "edges", "background")
    series = "map"

    def __init__(self, paper: Sequence[str]) -> None:
        self.paper = paper

    def tasks(self, run: Run) -> Sequence[Task]:
        return batches_of_both(run)

    def load(self, run: Run, task: Task) -> Load:
        images, maps = len(task["images"]), len(run.methods)
        return Load(run.config.model, task["seed"], images, maps, images * (2 + maps) * (task["network"] == "trained"))

    def compute(self, run: Run, task: Task) -> Output:
        model = network_of(run, task)
        batch = run.batch(model, task["images"])
        others = run.batch(model, [(i + 1) % len(run.dataset) for i in task["images"]]).x.cpu()
        maps = run.explain(model, batch.x, [run.units_of(model, run.targets[0], batch.names)]).maps[0]
        x = batch.x.cpu()
        detector = energy_of(left_difference(x))
        most = metrics.largest(detector, 0.2)
        where = textured(x, 2 * (x.shape[2] // 32) + 1)
        objects = objects_of(run, model, task["images"])
        output = Output(tables={"table": []})
        for name, each in {**maps, "edge": left_difference(x)}.items():
            energy = energy_of(each)
            numbers = {
                "local": _local(energy, detector).tolist(),
                "other": _local(energy, energy_of(left_difference(others))).tolist(),
                "edges": (share(energy, most) / 0.2).tolist(),
                "patches": surviving_patches(energy).tolist(),
                **objects.backgrounds(energy, batch.names, where),
            }
            for i, image in enumerate(batch.names):
                row = {
                    "network": task["network"],
                    "seed": task["seed"],
                    "image": image,
                    "map": name,
                    "object": objects.what,
                }
                values = {column: each[i] for column, each in numbers.items()}
                output.tables["table"].append({**row, **values, "weights": model.weights})
                if task["network"] == "trained" and task["images"][0] + i < 6:
                    output.arrays[f"{image}/{name}"] = each[i].numpy()
                    output.arrays[f"{image}/pixels"] = batch.pixels[i].numpy()
        return output

    def claims(self, results: Results) -> list[Claim]:
        def of(name: str, map_: str = "gbp", network: str = "trained") -> Column:
            return Column(results.rows(map=map_, network=network), name, "image")

        random, where = "the same with random weights", f"{outside(results.rows())} and in texture"
        found = [
            Claim("N-F-a", [
                Compared("correlation of the local energies of GBP and of the edge detector", of("local"),
                         above(0.6, fails=0.3, ours="the bounds are ours"), null=of("other"),
                         control="the detector on another photograph"),
            ]),
            Claim("N-F-b", [
                difference("energy at the edges over their area, GBP minus saliency map", of("edges"),
                           of("edges", "saliency"), above(0)),
            ]),
            Claim("N-F-c", [
                Compared(f"{where}, GBP minus {what}", of("background") - of("background", map_, network), below(0),
                         null=of("background_other") - of("background_other", map_, network),
                         control="outside the object of another photograph")
                for what, map_, network in (("edge detector", "edge", "trained"), (random, "gbp", "random"))
            ]),
        ]  # fmt: skip
        return judged(found, results, self.paper) if {"gbp", "saliency"} <= set(results.config.methods) else []

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows: list[PanelRow] = []
        for image in [name for name in images_of(results) if f"{name}/pixels" in results.arrays]:
            panels = [Panel(display.picture(results.arrays[f"{image}/pixels"]), "" if rows else "Input", image)]
            for name in dict.fromkeys(row["map"] for row in results.rows()):
                cells = results.rows(image=image, map=name, network="trained")
                local = mean_and_spread([cell["local"] for cell in cells], 2) if name != "edge" else ""
                title = LABELS.get(name, name) if name != "edge" else "pixel - left neighbour"
                map_ = display.midgray(results.arrays[f"{image}/{name}"], display.CLIP)
                panels.append(Panel(map_, "" if rows else title, local and f"like the edges {local}"))
            rows.append(PanelRow(panels))
        caption = [
            weights_words(results),
            "Under the maps: correlation of the energies of 8x8 blocks of map and edge detector",
            f"Maps: {display.scaling('midgray')[1]}",
            wanted(results, self.paper),
        ]
        return {"figure": panel_grid(rows, caption)}


def _local(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlation of the energies of 8x8 blocks, [B]."""
    return metrics.pearson(*(avg_pool2d(energy, 8) for energy in (a, b)))
