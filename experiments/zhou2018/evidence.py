"""zhou2018, Figures 13 to 15, 17 and 19: maps of the evidence for and against a class, and the paper's remarks on them.

A task is a range of an image's windows, so that a map that takes hours can be killed and resumed. The run stores the evidence
of each window; a map's pixel is the mean over the windows that contain it.

"The results from [19] is much noisier; the evidence captured by it spreads over the whole image space." Noise is measured by the
total variation of a map, focus on the object by the share of its energy in the object's box, agreement of two algorithms by
the correlation of their maps and by SIM. The paper's weights are VGG-16's. On others its claims have no verdict; the project's
own claims (`here_...`) judge what is measured there.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import Tensor

from vis import metrics
from vis.config.instantiate import construct
from vis.data import Dataset
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.methods.perturbation import PDAGradient, accumulate, log2_odds, windows_of
from vis.methods.target import Target
from vis.models import Model, skeleton
from vis.oldclaims import Claim, above, below, departures, increasing, other_network, paper_and_here
from vis.runner.experiment import Batch, Experiment, Load, Run, Task, method_title, method_words
from vis.store.run_folder import Output, Results
from vis.windows.plan import relative_work

VGG16 = {"_target_": "vis.models.VGG16", "num_classes": 1000, "pool": "max", "input_size": 224}
SETTINGS = {"window": 10, "patch": 18, "stride": 1}
NOISE = "the results from [19] is much noisier"
OBJECT = "our evidence visualisations are less noisy and the evidence captured focuses more on the objects"
AGREE = (
    "an alternative formulation [...] to avoid these bottlenecks while producing visualisations with similar quality"
)
SHAPE = "the difference in heatmap's shape is mainly caused by the former's sampling behaviour"
INTENSITY = "the difference in heatmap's intensity is mainly caused by the latter's approximation error"
CAPTURES = "the simplified version is capable of capturing some important input features"
TOO_NOISY = "but the results are too noisy and lack interpretability"


@lru_cache(maxsize=1)  # each task asks for them
def training_images(run: Run) -> Dataset:
    """Return all training images of the run's dataset, or all its images if it has no training part."""
    node = OmegaConf.to_container(run.config.dataset, resolve=True)
    assert isinstance(node, dict)
    own = {str(k): v for k, v in node.items() if k not in ("preprocess", "resize", "limit")}
    data: Dataset = construct(own | ({"train": True} if "train" in own else {}), "dataset")
    return data


def learn(run: Run, model: Model, own_images: bool) -> None:
    """Prepare the run's methods for a model: fit them to the images that `gaussian=` names, by default bundled photographs.

    own_images: the default is the training images of the run's dataset.
    """
    default, images = training_images(run) if own_images else None, run.batch(model, [0]).x
    for name in run.methods:
        run.explainer.prepare(name, model, images, [], default)


def learnt_from(run: Run, own_images: bool) -> str:
    """Name the images from which the methods learnt."""
    sources = [method.gaussian for method in run.methods.values() if hasattr(method, "gaussian")]
    if not sources:
        return "no images"
    if own_images and sources[0] is None:
        return training_images(run).origin
    return str(sources[0] or "photographs bundled with scikit-image")


def chosen_class(run: Run, model: Model, batch: Batch) -> tuple[int, Tensor]:
    """Return the class to explain for the only image of a batch, and its logits [K] in float64."""
    with torch.no_grad():
        logits = model.net(batch.x)[0].cpu().double()
    units = run.units_of(model, run.targets[0], batch.names)
    return units[0] if units else int(logits.argmax()), logits


def not_the_papers(results: Results, network: Mapping[str, Any] = VGG16) -> str:
    """Say how a run's network and windows differ from the paper's; "" if they do not."""
    node = results.config.model
    reason = other_network(node, network)
    if not node.weights or node.weights == "standin":
        return reason
    methods = [departures(m, SETTINGS) for m in results.config.methods.values() if "patch" in m]
    return ", ".join(filter(None, [reason, *dict.fromkeys(methods)]))


class OnePicture(Experiment):
    """An experiment whose task is a picture, explained by the run's first method. own_images: see EvidenceMaps."""

    own_images: bool

    def tasks(self, run: Run) -> Sequence[Task]:
        run.require_model()
        return [{"images": [i]} for i in range(len(run.dataset))]

    def begin(self, run: Run, task: Task) -> tuple[Model, Batch, Any]:
        """Return the model, the picture, and the fitted method."""
        model = run.model()
        batch = run.batch(model, task["images"])
        learn(run, model, self.own_images)
        return model, batch, next(iter(run.methods.values()))


class EvidenceMaps(Experiment):
    """Compute and compare maps of evidence.

    own_images: learn patches from the training images of the run's dataset, not from photographs. windows: windows of a task.
    object: {image: box of the object (top, left, bottom, right), as shares of the sides}. source: the paper's figure.
    """

    def __init__(
        self, source: str, own_images: bool = False, windows: int = 4096, object: Mapping[str, Sequence[float]] = {}
    ) -> None:
        self.source, self.own_images, self.windows, self.object = source, own_images, windows, object
        self._shares: dict[str, float] = {}  # {method: cost of a window as a share of a full pass}

    def views(self) -> list[str]:
        """Return the names of the views that are explained of each image; "" is the image itself."""
        return [""]

    def view(self, pixels: Tensor, name: str) -> Tensor:
        """Return a view of an image: [1, C, H, W] in [0, 1]."""
        return pixels

    def pictures(self, run: Run) -> list[int]:
        """Return the indices of the images."""
        return list(range(len(run.dataset)))

    def tasks(self, run: Run) -> Sequence[Task]:
        run.require_model()
        _, _, size = skeleton(run.config.model)
        found: list[Task] = []
        for i in self.pictures(run):
            for view in self.views():
                for name, method in run.methods.items():
                    each: Any = method
                    if not hasattr(each, "windows"):
                        raise UserError(
                            f"{self.source} needs a method that explains by windows, which {name} does not: method=pda_fast"
                        )
                    count = len(windows_of(size, each.window, each.stride))
                    step = count if isinstance(each, PDAGradient) else self.windows
                    for first in range(0, count, step):
                        found.append(
                            {"images": [i], "view": view, "method": name, "first": first, "last": first + step}
                        )
        return found

    def load(self, run: Run, task: Task) -> Load:
        each: Any = run.methods[task["method"]]
        if isinstance(each, PDAGradient):
            return Load(run.config.model, run.config.seed, 1, 1, 1)
        if task["method"] not in self._shares:
            net, channels, size = skeleton(run.config.model)
            every = windows_of(size, each.window, each.stride)
            self._shares[task["method"]] = relative_work(net, channels, size, every, each.window)
        passes = (task["last"] - task["first"]) * max(1, getattr(each, "samples", 1)) * self._shares[task["method"]]
        return Load(run.config.model, run.config.seed, 1, passes, 1)

    def compute(self, run: Run, task: Task) -> Output:
        model, name, first = run.model(), task["method"], task["first"]
        batch = run.batch(model, task["images"])
        c, logits = chosen_class(run, model, batch)  # the class of the image itself, for all its views
        if task["view"]:
            batch.pixels = self.view(batch.pixels, task["view"])
            batch.x = run.preprocess(model)(batch.pixels.to(run.dtype)).to(batch.x)
            logits = chosen_class(run, model, batch)[1]
        image = f"{batch.names[0]} {task['view']}".strip()
        learn(run, model, self.own_images)
        method: Any = run.methods[name]
        row = {"image": image, "method": name, "window": method.window, "stride": method.stride, "first": first}
        output = Output(tables={"table": [row]})
        if isinstance(method, PDAGradient):
            output.arrays[f"{image}/{name}"] = method(model.net, batch.x, [c], run.preprocess(model))[0].cpu().numpy()
        else:
            windows = method.windows(batch.x)[first : task["last"]]
            evidence = method.evidence(model.net, batch.x[0], Target(c), windows, run.preprocess(model))
            output.arrays[f"{image}/{name}/{first}"] = evidence.cpu().numpy()
        if first == 0 and name == next(iter(run.methods)):
            output.arrays[f"{image}/pixels"] = batch.pixels[0].numpy()
            p = logits.softmax(0)
            lost = torch.logit(p[c]) / math.log(2) - log2_odds(p[c], len(p), method.laplace)
            fact = {"image": image, "class": model.class_name(c), "unit": c, "label": batch.labels[0], "p": float(p[c])}
            fact |= {"laplace_bits": float(lost), "weights": model.weights, "standin": model.standin}
            output.tables["images"] = [fact | {"learnt_from": learnt_from(run, self.own_images)}]
        return output

    # --- from what is stored ------------------------------------------------------------------------------------------

    def claims(self, results: Results) -> list[Claim]:
        return paper_and_here(self.measured(results), self.not_the_papers(results))

    def not_the_papers(self, results: Results) -> str:
        """Return the reason for withholding the paper's verdicts, or ""."""
        return not_the_papers(results)

    def measured(self, results: Results) -> list[Claim]:
        """Return the claims about the methods that the run has computed."""
        images = images_of(results)
        maps = {m: [torch.from_numpy(map_of(results, i, m))[None] for i in images] for m in results.config.methods}
        rough = {m: [float(metrics.total_variation(a)) for a in each] for m, each in maps.items()}
        norms = {m: [float(a.double().norm()) for a in each] for m, each in maps.items()}

        def both(metric: Any, a: str, b: str) -> list[float]:
            return [float(metric(p, q)) for p, q in zip(maps[a], maps[b], strict=True)]

        def ratio(of: Mapping[str, list[float]], a: str, b: str) -> list[float]:
            return [p / q if q else math.nan for p, q in zip(of[a], of[b], strict=True)]

        claim = partial(Claim, source=self.source)
        found: list[Claim] = []
        if {"pda", "pda_fast"} <= maps.keys():
            gain = {
                i: in_box(maps["pda_fast"][k], self.object[i]) - in_box(maps["pda"][k], self.object[i])
                for k, i in enumerate(images)
                if i in self.object
            }
            missing = "" if gain else "no image has a box in experiment.object"
            variation = "total variation of the efficient map over PDA's"
            found += [
                claim(
                    "less_noisy", NOISE, metric=variation, criterion=below(1), values=ratio(rough, "pda_fast", "pda")
                ),
                claim(
                    "on_object",
                    OBJECT,
                    metric="energy in the object's box, efficient - PDA",
                    criterion=above(0),
                    values=list(gain.values()),
                    reason=missing,
                ),
                claim(
                    "agree",
                    AGREE,
                    metric="correlation of the two maps",
                    criterion=above(0.5),
                    values=both(metrics.pearson, "pda", "pda_fast"),
                ),
                claim(
                    "sim",
                    AGREE,
                    metric="SIM of the two maps",
                    criterion=above(0.5),
                    values=both(metrics.sim, "pda", "pda_fast"),
                ),
            ]
        if {"pda", "pda_fast", "pda_fast_sampled"} <= maps.keys():
            shape = {
                "conditional mean": both(metrics.pearson, "pda", "pda_fast"),
                "mean of draws": both(metrics.pearson, "pda", "pda_fast_sampled"),
            }
            size = {
                "mean of draws / conditional mean": octaves(ratio(norms, "pda_fast_sampled", "pda_fast")),
                "PDA / mean of draws": octaves(ratio(norms, "pda", "pda_fast_sampled")),
            }
            found += [
                claim(
                    "shape",
                    SHAPE,
                    metric="correlation of the efficient map with PDA's",
                    criterion=increasing(),
                    values=shape,
                ),
                claim(
                    "intensity",
                    INTENSITY,
                    metric="|log2| of the ratio of the maps' norms",
                    criterion=increasing(),
                    values=size,
                ),
            ]
        if {"pda_fast", "pda_gradient"} <= maps.keys():
            noise = "total variation of the simplified map over the efficient one's"
            alike = "correlation of the simplified and the efficient map"
            found += [
                claim(
                    "captures",
                    CAPTURES,
                    metric=alike,
                    criterion=above(0),
                    values=both(metrics.pearson, "pda_gradient", "pda_fast"),
                ),
                claim(
                    "simplified_noisy",
                    TOO_NOISY,
                    metric=noise,
                    criterion=above(1),
                    values=ratio(rough, "pda_gradient", "pda_fast"),
                ),
            ]
        return found

    def summaries(self, results: Results) -> dict[str, Any]:
        """Return the agreement of each pair of methods, by image."""
        rows, methods = [], list(results.config.methods)
        for image in images_of(results):
            maps = {m: torch.from_numpy(map_of(results, image, m))[None] for m in methods}
            for i, a in enumerate(methods):
                row = {"image": image, "method": a, "total_variation": float(metrics.total_variation(maps[a]))}
                if image in self.object:
                    row["energy_in_box"] = in_box(maps[a], self.object[image])
                for b in methods[:i]:
                    row |= {f"pearson_{b}": float(metrics.pearson(maps[a], maps[b]))}
                    row |= {f"sim_{b}": float(metrics.sim(maps[a], maps[b]))}
                rows.append(row)
        return {"summary": rows}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        """Draw a row for each image: the image, and for each method its map and the map over the image."""
        rows: list[PanelRow] = []
        for fact in results.rows("images"):
            pixels = results.arrays[f"{fact['image']}/pixels"]
            note = f"{fact['class']}, P = {fact['p']:.3f}"
            panels = [Panel(display.picture(pixels), "" if rows else "input", note)]
            for name in results.config.methods:
                map_ = map_of(results, fact["image"], name)
                title = "" if rows else method_title(results.config, name)
                bound = f"up to {np.abs(map_).max():.2g}"
                panels += [Panel(display.diverging(map_), title, bound), Panel(display.evidence(map_, pixels))]
            rows.append(PanelRow(panels, fact["image"] if len(fact["image"]) < 25 else ""))
        return {"figure": panel_grid(rows, self.caption(results))}

    def caption(self, results: Results) -> list[str]:
        facts, config = results.rows("images"), results.config
        windows = {f"{row['window']}x{row['window']}" for row in results.rows()}
        lost = sum(fact["laplace_bits"] > 1 for fact in facts)
        return [
            f"{self.source}: evidence for (red) and against (blue) the class, of {' and '.join(sorted(windows))} windows, each "
            "map to its own maximum (under it); second of each pair: over the gray image",
            *method_words(config),
            f"{config.model.name}, {facts[0]['weights']}; windows learnt from {facts[0]['learnt_from']}",
            f"In {lost} of {len(facts)} images the Laplace correction takes more than 1 bit from the evidence"
            if lost
            else "",
        ]


def images_of(results: Results) -> list[str]:
    """Return the names of the images (and their views)."""
    return [row["image"] for row in results.rows("images")]


def map_of(results: Results, image: str, method: str) -> np.ndarray:
    """Return the map [1, H, W] from the stored evidence of an image's windows."""
    if f"{image}/{method}" in results.arrays:
        map_: np.ndarray = results.arrays[f"{image}/{method}"]
        return map_
    rows = results.rows(image=image, method=method)
    evidence = [torch.from_numpy(results.arrays[f"{image}/{method}/{row['first']}"]) for row in rows]
    size = results.arrays[f"{image}/pixels"].shape[1:]
    windows = windows_of(size, rows[0]["window"], rows[0]["stride"])
    return accumulate(torch.cat(evidence), windows, rows[0]["window"], size).numpy()


def in_box(map_: Tensor, box: Sequence[float]) -> float:
    """Return the share of a map's energy [1, C, H, W] in a box (top, left, bottom, right), as shares of the sides."""
    height, width = map_.shape[2:]
    top, left, bottom, right = (round(v * n) for v, n in zip(box, (height, width, height, width), strict=True))
    energy = map_.double().square()
    return float(energy[:, :, top:bottom, left:right].sum() / energy.sum())


def octaves(ratios: Sequence[float]) -> list[float]:
    """Return |log2| of ratios."""
    return [abs(math.log2(r)) if r > 0 else math.nan for r in ratios]
