"""ayyar2021, Figures 4, 6, 8 and 9: maps of one network, an image in a row and a method in a column.

The survey's remarks on its pictures are measured over all images by numbers of each map that do not depend on its scale:

    spread     participation ratio: the share of pixels that hold the map's energy
    high       share of pixels whose strength, the largest absolute value over the channels (Eq. 6), is above half of the map's
               maximum; the maximum is the 99.5th percentile, so that single pixels do not decide
    variation  total variation of the map, larger for noisier and finer maps
    sharpness  correlation of the gradient magnitude (Sobel) of the strength with that of the image
    cutoff     frequency, in cycles a pixel, below which 99 % of the energy of the strength lies
    edges      correlation of the strength with the image's gradient magnitude
"""

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from experiments.ayyar2021.mosaic import MOSAIC, mosaic, share_on
from experiments.ayyar2021.verdicts import POSITIVE, lead, on_trained
from vis import metrics
from vis.claims import Claim, Column, Compared, above, exactly, replicated
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.metrics import clipped, sobel
from vis.runner.experiment import (
    Batch,
    Experiment,
    Load,
    Run,
    Task,
    map_words,
    method_scaling,
    method_title,
)
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

SHARPNESS = "correlation of the map's gradient magnitude with the image's"
MEXCULTURE = "buildings of MexCulture"


def cutoff(maps: Tensor) -> Tensor:
    """Return the frequency [B], in cycles a pixel, below which 99 % of the energy of maps [B, 1, H, W] lies, mean removed."""
    power = torch.fft.fft2(maps - maps.mean((2, 3), keepdim=True)).abs().square()[:, 0].flatten(1)
    height, width = (torch.fft.fftfreq(n, dtype=maps.dtype) for n in maps.shape[2:])
    frequency, order = (height[:, None].square() + width.square()).sqrt().flatten().sort()
    within = power[:, order].cumsum(1)
    return frequency[(within < 0.99 * within[:, -1:]).sum(1).clamp(max=len(order) - 1)]


def numbers_of(maps: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """Compute the numbers [B] of maps [B, 1 or C, H, W] of images [B, C, H, W]; `high` is NaN for a map of zeros."""
    v, contours = clipped(maps), sobel(pixels)
    return {
        "spread": metrics.participation_ratio(maps),
        "high": (v > 0.5).double().mean((1, 2, 3)).where(v.amax((1, 2, 3)) > 0, torch.nan),
        "variation": metrics.total_variation(maps),
        "sharpness": metrics.pearson(sobel(v), contours),
        "cutoff": cutoff(v),
        "edges": metrics.pearson(v, contours),
    }


class Gallery(Experiment):
    """Draw maps of several methods and measure the survey's remarks on them.

    source: the survey's figure. rows: the most images in the figure; the claims use all. note: the number under each map.
    scalings: {method: scaling}, for a method that is not shown in its own way.
    """

    metrics: ClassVar[Sequence[str]] = ("spread", "high", "variation", "sharpness", "cutoff", "edges")
    series = "method"
    note: ClassVar[tuple[str, str]] = ("", "")

    def __init__(self, source: str, rows: int = 4, scalings: Mapping[str, str] = {}) -> None:
        self.source, self.rows, self.scalings = source, rows, scalings

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"images": images} for images in run.batches(len(run.dataset), 4)]

    def load(self, run: Run, task: Task) -> Load:
        images, maps = len(task["images"]), len(run.methods)
        return Load(run.config.model, run.config.seed, images, run.passes, images * (1 + maps))

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        batch = run.batch(model, task["images"])
        units = run.units_of(model, run.targets[0], batch.names)
        (maps,), logits = run.explain(model, batch.x, [units])
        classes = units or logits.argmax(1).tolist()
        output = Output(tables={"table": []})
        for i, image in enumerate(batch.names):
            if task["images"][i] < self.rows:
                output.arrays[f"{image}/pixels"] = batch.pixels[i].numpy()
                output.arrays |= {f"{image}/{method}": each[i].numpy() for method, each in maps.items()}
        found = {method: numbers_of(each, batch.pixels) for method, each in maps.items()}
        for method, numbers in self.further(run, task["images"], batch, maps, classes).items():
            found.setdefault(method, {}).update(numbers)
        for method, numbers in found.items():
            for i, image in enumerate(batch.names):
                row: dict[str, Any] = {"image": image, "class": model.class_name(classes[i]), "method": method}
                row |= {name: None if values[i].isnan() else values[i].item() for name, values in numbers.items()}
                output.tables["table"].append(row | {"weights": model.weights})
        return output

    def further(
        self, run: Run, images: Sequence[int], batch: Batch, maps: Mapping[str, Tensor], classes: Sequence[int]
    ) -> dict[str, dict[str, Tensor]]:
        """Compute more numbers [B] of maps, or of controls: {method or control: {column: numbers}}."""
        return {}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config = results.config
        rows: list[PanelRow] = []
        shown = {m: self.scalings.get(m) or method_scaling(config, m) for m in config.methods}
        for image in list(dict.fromkeys(row["image"] for row in results.rows()))[: self.rows]:
            cells = {row["method"]: row for row in results.rows(image=image)}
            pixels = results.arrays[f"{image}/pixels"]
            label = str(next(iter(cells.values()))["class"])
            panels = [Panel(display.picture(pixels), "" if rows else "Sample image", label)]
            for method, how in shown.items():
                map_ = display.scaling(how)[0](results.arrays[f"{image}/{method}"], pixels)
                note = f"{self.note[1]} {cells[method][self.note[0]]:.3f}" if self.note[0] else ""
                panels.append(Panel(map_, "" if rows else self.title(config, method), note))
            rows.append(PanelRow(panels))
        caption = [
            f"{config.model.name}, {results.rows()[0]['weights']}",
            *map_words(config, self.title, self.scalings),
        ]
        return {"figure": panel_grid(rows, caption)}

    def title(self, config: Any, method: str) -> str:
        """Return the title of a method in the figure."""
        return method_title(config, method)


class Figure4(Gallery):
    """Draw overlays in the colours of `jet`, and compare these with the colours that the survey names."""

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the distances of jet and viridis from the hues named, in degrees, and from straight lines between them."""
        rows: Rows = []
        for name in ("jet", "viridis"):
            colours = colormaps[name](np.linspace(0, 1, 257))[:, :3]
            hue = [360 * colorsys.rgb_to_hsv(*colours[i])[0] for i in (0, 128, 256)]
            off = max(abs(hue[0] - 240), max(60 - hue[1], 0, hue[1] - 120), min(hue[2], 360 - hue[2]))
            t = np.linspace(0, 1, 129)[:, None]
            lines = np.concatenate([(1 - t) * colours[i] + t * colours[i + 128] for i in (0, 128)])
            found = np.concatenate([colours[:129], colours[128:]])
            rows.append({"map": name, "hue": off, "bend": float(np.abs(found - lines).max())})
        return {"colours": rows}

    def claims(self, results: Results) -> list[Claim]:
        def column(map_: str, name: str) -> Column:
            return Column(results.rows("colours", map=map_), name, "map")

        hues = "degrees of hue from red at the maximum, yellow-green in the middle, blue at the minimum"
        line = "largest distance of a colour's channel from the straight lines between these three colours"
        return [
            Claim("A-3.3-a", [
                Compared(hues, column("jet", "hue"), exactly(0, 1), null=column("viridis", "hue"), control="viridis"),
                Compared(line, column("jet", "bend"), exactly(0, 1 / 256), null=column("viridis", "bend"), control="viridis"),
            ])
        ]  # fmt: skip


class Figure6(Gallery):
    """Compare the gradient with guided backpropagation."""

    note = ("high", "high pixels")

    def claims(self, results: Results) -> list[Claim]:
        sharper = lead(results, "sharpness", "gbp", "saliency", metric=SHARPNESS)
        fewer = lead(results, "high", "saliency", "gbp", metric="share of pixels above half of the maximum")
        sharp = on_trained(results, [Claim("A-4.3-c", [sharper])])
        return [*sharp, *on_trained(results, [Claim("A-4.3-d", [fewer])], "resnet34", MEXCULTURE)]


class Figure8(Gallery):
    """Compare Grad-CAM with Guided Grad-CAM and other methods of the gradient, and explain mosaics of four photographs."""

    note = ("cutoff", "cutoff")

    def further(
        self, run: Run, images: Sequence[int], batch: Batch, maps: Mapping[str, Tensor], classes: Sequence[int]
    ) -> dict[str, dict[str, Tensor]]:
        if len(run.dataset) < 4 or "gradcam" not in run.methods:
            return {}
        model, found = run.model(), []
        for i in images:
            x, targets, cells = mosaic(run, i)
            own, other = (run.methods["gradcam"](model.net, x, [c]) for c in (targets[0], targets[1]))
            found.append([share_on(own, cells[0]), share_on(other, cells[0])])
        own, other = torch.tensor(found, dtype=torch.float64).T
        return {"gradcam": {"own_cell": own, "own_cell_of_another_class": other}}

    def claims(self, results: Results) -> list[Claim]:
        frequency = "frequency below which 99 % of the map's energy lies"
        others = [method for method in results.config.methods if method not in ("gradcam", "guided_gradcam")]
        finer = [lead(results, "cutoff", method, "gradcam", metric=frequency) for method in others]
        guided = [
            lead(results, name, "guided_gradcam", "gradcam", metric=metric)
            for name, metric in (("cutoff", frequency), ("sharpness", SHARPNESS))
        ]
        rows = results.rows(method="gradcam")
        own, other = (Column(rows, name, "image") for name in ("own_cell", "own_cell_of_another_class"))
        share = "share of Grad-CAM of a class on that class's photograph, in a mosaic of four"
        discriminative = [
            Compared(share, own, above(0.25), null=0.25, control="a constant map: 1/4"),
            Compared(f"{share}, - of another class in it", own - other, POSITIVE, null=0.0, control="no difference: 0"),
        ]
        return [
            *on_trained(results, [Claim("A-4.6-g", finer), Claim("A-4.6-h", guided)]),
            *replicated(on_trained(results, [Claim("A-4.6-a", discriminative)]), [MOSAIC]),
        ]
