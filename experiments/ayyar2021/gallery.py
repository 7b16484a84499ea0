"""ayyar2021, Figures 4, 6, 8 and 9: maps of one network, an image in a row and a method in a column.

The survey's remarks on its pictures are measured over all images by numbers of each map that do not depend on its scale:

    spread     participation ratio: the share of pixels that hold the map's energy
    high       share of pixels whose largest absolute value over the channels (Eq. 6) is above half of the map's maximum
    variation  total variation, larger for finer maps
    edges      correlation of that largest absolute value with the image's gradient magnitude (Sobel)

The survey's networks are trained on ImageNet (or on MexCulture's buildings, whose weights are not public). On other networks its
claims have no verdict; the project's own claims (`here_...`) judge what is measured there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import conv2d, pad

from vis import metrics
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.oldclaims import POSITIVE, Claim, Criterion, Origin, other_network, paper_and_here
from vis.runner.experiment import Experiment, Load, Run, Task, map_words, method_class, method_title
from vis.store.run_folder import Output, Results


class NotAsked(Exception):
    """A claim compares methods, and the run has not computed one of them."""


class ByMethodName(dict[str, Tensor]):
    """{method: numbers of its maps}, which raises NotAsked for a method that the run has not computed."""

    def __missing__(self, method: str) -> Tensor:
        raise NotAsked(f"needs the method {method}")


def box_mask(box: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Return a mask [1, H, W]: 1 in a box (top, left, bottom, right, as shares of the sides), else 0."""
    height, width = size
    top, left, bottom, right = (round(v * n) for v, n in zip(box, (height, width, height, width), strict=True))
    mask = torch.zeros(1, height, width)
    mask[:, top:bottom, left:right] = 1
    return mask


def strength(maps: Tensor) -> Tensor:
    """Return the largest absolute value over the channels (Eq. 6): [B, 1, H, W] in float64."""
    return maps.double().abs().amax(1, keepdim=True)


def sobel(pixels: Tensor) -> Tensor:
    """Return the Sobel gradient magnitude [B, 1, H, W] of the gray versions of images [B, C, H, W]."""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)[None, None]
    gray = pad(metrics.luma(pixels.double()), (1, 1, 1, 1), mode="replicate")
    return conv2d(gray, torch.cat([kernel, kernel.mT])).norm(dim=1, keepdim=True)


def numbers_of(maps: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """Compute the four numbers [B] of maps [B, 1 or C, H, W] of images [B, C, H, W]; NaN for a map of zeros."""
    v = strength(maps)
    top = v.amax((1, 2, 3), keepdim=True)
    return {
        "spread": metrics.participation_ratio(maps),
        "high": (v > top / 2).double().mean((1, 2, 3)).where(top.flatten() > 0, torch.nan),
        "variation": metrics.total_variation(maps),
        "edges": metrics.pearson(v, sobel(pixels)),
    }


class Gallery(Experiment):
    """Draw maps of several methods and measure the survey's remarks on them.

    source: the survey's figure. rows: the most images in the figure; the claims use all. network: the config of the survey's
    network. note: the number under each map. scalings: {method: scaling}, for a method that is not shown in its own way.
    """

    metrics: ClassVar[Sequence[str]] = ("spread", "high", "variation", "edges")
    series = "method"
    network: ClassVar[Mapping[str, Any]] = {"arch": "resnet34", "input_size": 224}
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
        for method, each in maps.items():
            found = numbers_of(each, batch.pixels)
            errors = run.methods[method].axiom_error(model.net, batch.x, units, each, run.preprocess(model))
            for i, image in enumerate(batch.names):
                row: dict[str, Any] = {"image": image, "class": model.class_name(classes[i]), "method": method}
                row |= {name: values[i].item() for name, values in found.items()}
                row |= {"axiom_error": None if errors is None else errors[i].item(), "weights": model.weights}
                output.tables["table"].append(row)
        return output

    def measured(self, values: Mapping[str, Mapping[str, Tensor]]) -> list[Claim]:
        """Return the figure's claims (see `claim`) from values[number][method], a tensor over the images."""
        return []

    def claim(
        self,
        name: str,
        sentence: str,
        *,
        metric: str,
        values: Callable[[], Tensor],
        criterion: Criterion = POSITIVE,
        origin: Origin = "paper",
    ) -> Claim:
        """Make a claim of `values()`, without a verdict if they need a method that the run has not computed."""
        claim = Claim(name, sentence, source=self.source, metric=metric, criterion=criterion, origin=origin)
        try:
            return replace(claim, values=values().tolist())
        except NotAsked as error:
            return replace(claim, reason=str(error))

    def claims(self, results: Results) -> list[Claim]:
        values = {
            name: ByMethodName(
                (method, torch.tensor([row[name] for row in rows], dtype=torch.float64))
                for method in results.config.methods
                if (rows := results.rows(method=method))
            )
            for name in self.metrics
        }
        return paper_and_here(self.measured(values), other_network(results.config.model, self.network))

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config = results.config
        rows: list[PanelRow] = []
        shown = {m: self.scalings.get(m, method_class(config, m).display) for m in config.methods}
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


class Figure6(Gallery):
    """Compare the gradient with guided backpropagation."""

    note = ("high", "high pixels")

    def measured(self, values: Mapping[str, Mapping[str, Tensor]]) -> list[Claim]:
        high = values["high"]
        return [
            self.claim(
                "fewer_high",
                "the guidance steps result in reducing the number of pixels that have a higher importance score",
                metric="share of pixels above half of the maximum, gradient - guided backpropagation",
                values=lambda: high["saliency"] - high["gbp"],
            )
        ]


class Figure8(Gallery):
    """Compare Grad-CAM with Guided Grad-CAM."""

    note = ("variation", "total variation")

    def measured(self, values: Mapping[str, Mapping[str, Tensor]]) -> list[Claim]:
        fine = values["variation"]
        return [
            self.claim(
                "finer",
                "The heat maps produced by Grad-CAM are coarse [...] The heat map that is obtained by [Guided Grad-CAM] "
                "has been observed to have a higher resolution",
                metric="total variation, Guided Grad-CAM - Grad-CAM",
                values=lambda: fine["guided_gradcam"] - fine["gradcam"],
            )
        ]


class Figure9(Gallery):
    """Compare LRP-epsilon with and without biases, LRP-alpha1beta0 and FEM."""

    network: ClassVar = {"num_classes": 1000, "pool": "max", "input_size": 224, "_target_": "vis.models.VGG16"}
    note = ("spread", "spread")
    titles: ClassVar = {
        "lrp": "LRP-$\\epsilon$",
        "lrp_no_bias": "LRP-$\\epsilon$\nignore bias",
        "lrp_alpha1_beta0": "LRP-$\\alpha\\beta$\n$\\alpha = 1, \\beta = 0$",
    }

    def title(self, config: Any, method: str) -> str:
        return str(self.titles.get(method) or super().title(config, method))

    def measured(self, values: Mapping[str, Mapping[str, Tensor]]) -> list[Claim]:
        spread, edges = values["spread"], values["edges"]

        def contours() -> Tensor:
            return edges["lrp_alpha1_beta0"] - torch.stack([edges[m] for m in ("lrp", "lrp_no_bias", "fem")]).amax(0)

        return [
            self.claim(
                "most_pixels",
                "LRP-eps [...] most of the input pixels get assigned a higher relevance score",
                metric="participation ratio of LRP-eps - 1/2",
                values=lambda: spread["lrp"] - 0.5,
            ),
            self.claim(
                "smaller_region",
                "LRP-eps without bias results in a heat map that has the importance only in a smaller region",
                metric="participation ratio, LRP-eps - LRP-eps without bias",
                values=lambda: spread["lrp"] - spread["lrp_no_bias"],
            ),
            self.claim(
                "contours",
                "[alpha = 1, beta = 0] only highlights the contours with higher contrast in the image",
                metric="correlation with the image's edges, LRP-alpha1beta0 - the largest of the others",
                values=contours,
            ),
            self.claim(
                "holistic",
                "FEM [...] the heat map that is more holistic and highlights the important regions",
                metric="participation ratio, FEM - LRP-alpha1beta0",
                values=lambda: spread["fem"] - spread["lrp_alpha1_beta0"],
            ),
        ]
