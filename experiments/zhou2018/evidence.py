"""zhou2018, Figures 13 to 19: maps of the evidence for and against a class, and the tables that their claims compare.

A task is a range of an image's windows, so that a map that takes hours can be killed and resumed. The run stores the evidence
of each window; a map's pixel is the mean over the windows that contain it.

Noise is how many pixels hold the evidence, not how rough a map is, since a map of few blobs is smooth wherever they lie. What
the paper says of the husky's ears or the bee eater's tail is judged in photographs whose boxes the config gives.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import Tensor

from experiments.zhou2018.measures import boxes_mask, of_map, of_pair, of_part
from experiments.zhou2018.setting import another_network
from vis.claims import Claim, Column, Compared, Rule, above, below, departures
from vis.config.instantiate import construct
from vis.data import Dataset
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.graph.modes import evaluating
from vis.methods.perturbation import PDAGradient, accumulate, log2_odds, windows_of
from vis.methods.target import Target
from vis.models import Model, skeleton
from vis.runner.experiment import Batch, Experiment, Load, Run, Task, method_title, method_words
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows
from vis.windows.engine import Incremental
from vis.windows.plan import relative_work

SETTINGS = {"window": 10, "patch": 18, "stride": 1}
BOXES = 8  # photographs with boxes that a verdict needs
LARGEST = 0.75  # share of the image that an object's box may take: evidence in a box of all says nothing
ILSVRC = 50_000  # images to which the paper fits its Gaussians
HIGH, LOW = (
    above(0.9, 0.5, least=BOXES, ours="the bounds are ours"),
    below(0.1, 0.5, least=BOXES, ours="the bounds are ours"),
)  # ranks of evidence


@lru_cache(maxsize=1)  # each task asks for them
def training_images(run: Run) -> Dataset:
    """Return all training images of the run's dataset, or all its images if it has no training part."""
    node = OmegaConf.to_container(run.config.dataset, resolve=True)
    assert isinstance(node, dict)
    own = {str(k): v for k, v in node.items() if k not in ("preprocess", "resize", "limit")}
    data: Dataset = construct(own | ({"train": True} if "train" in own else {}), "dataset")
    return data


def learn(run: Run, model: Model, own_images: bool) -> None:
    """Prepare the run's methods for a model: fit them to the images that `gaussian=` names, by default other ones.

    own_images: the default is the training images of the run's dataset.
    """
    default, images = training_images(run) if own_images else None, run.batch(model, [0]).x
    for name in run.methods:
        run.explainer.prepare(name, model, images, [], default)


def learnt(run: Run, model: Model, own_images: bool) -> dict[str, Any]:
    """Return the columns that say from which images, and how many, the methods learnt; None if the number is unknown."""
    method: Any = next((m for m in run.methods.values() if hasattr(m, "learnt")), None)
    if method is None:
        return {"learnt_from": "no images", "learnt_images": None}
    given = method.gaussian
    if given is not None and not Path(given).expanduser().is_dir():  # a file with what was learnt
        return {"learnt_from": given, "learnt_images": getattr(method.learnt, "provenance", {}).get("images")}
    default = training_images(run) if own_images else None
    data = run.explainer.subject(model, run.batch(model, [0]).x, [], default).pictures(given).data
    return {"learnt_from": data.origin, "learnt_images": len(data)}


def chosen_class(run: Run, model: Model, batch: Batch) -> tuple[int, Tensor]:
    """Return the class to explain for the only image of a batch, and its logits [K] in float64."""
    with torch.no_grad():
        logits = model.net(batch.x)[0].cpu().double()
    units = run.units_of(model, run.targets[0], batch.names)
    return units[0] if units else int(logits.argmax()), logits


def window_logits(model: Model, x: Tensor, method: Any, at: Tensor, contents: Tensor) -> Tensor:
    """Return the logits [n, K] of an image [C, H, W] with each of `contents` [n, C, k, k] at (top, left) [1, 2], in float64."""
    with evaluating(model.net):
        engine = Incremental(model.net, x[None], method.memory_gb)
        return engine.logits(at.repeat(len(contents), 1), contents).double().cpu()


def middle(size: Sequence[int], k: int, at: Sequence[int] | None) -> Tensor:
    """Return the window's (top, left) [1, 2]: `at`, or the middle of the image."""
    return torch.tensor([list(at) if at else [(n - k) // 2 for n in size]])


def differences(results: Results, network: str, first: Mapping[str, Any]) -> list[str]:
    """Say how a run's network and windows differ from the paper's. first: a row with `weights` and the columns of `learnt`."""
    return [*another_network(results, network, first["weights"]), *windows(results, first)]


def windows(results: Results, first: Mapping[str, Any]) -> list[str]:
    """Say how a run's windows differ from the paper's. first: a row with the columns of `learnt`."""
    found: list[str] = []
    for method in results.config.methods.values():
        if "patch" in method:
            found += departures(method, SETTINGS | ({"samples": 10} if method.get("samples") else {}))
    if first["learnt_images"] != ILSVRC:
        learnt_from = str(first["learnt_from"]).partition(" of folder ")[0]  # whose path says nothing
        found.append(f"windows learnt from {learnt_from} instead of the {ILSVRC} validation images of ILSVRC")
    return list(dict.fromkeys(found))


def images_of(run: Run) -> str:
    """Name the run's images without the list of where each comes from."""
    return run.dataset.origin.partition(":")[0]


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
    """Compute maps of evidence.

    source: the paper's figure. own_images: learn patches from the training images of the run's dataset; otherwise from its
    other images or, if they are few, from bundled ones. windows: of a task. parts: {image: {part: boxes}}, boxes (top, left,
    bottom, right) in shares of the sides; of other images those of `Run.drawn`, which has the objects too. In images of one
    channel, the digit is the object.
    """

    def __init__(
        self,
        source: str,
        own_images: bool = False,
        windows: int = 4096,
        parts: Mapping[str, Mapping[str, Sequence[Sequence[float]]]] = {},
    ) -> None:
        self.source, self.own_images, self.windows, self.parts = source, own_images, windows, parts
        self._shares: dict[str, float] = {}  # {method: cost of a window as a share of a full pass}

    def views(self, image: str) -> list[str]:
        """Return the names of the views of an image that are explained; "" is the image itself."""
        return [""]

    def view(self, pixels: Tensor, image: str, name: str) -> Tensor:
        """Return a view of an image: [1, C, H, W] in [0, 1]."""
        return pixels

    def part(self, boxes: Sequence[Sequence[float]], view: str, size: Sequence[int]) -> Tensor:
        """Return the mask [H, W] of boxes of an image in one of its views."""
        return boxes_mask(boxes, size)

    def boxes(self, run: Run, model: Model, i: int) -> Rows:
        """Return the boxes of an image, a row for each; part: "" for its object."""
        image = run.dataset.names[i]
        drawn = run.drawn(model, [i]).get(image)
        own = {part: [box] for part, box in drawn.parts.items()} if drawn else {}
        every = {**({"": [drawn.box]} if drawn else {}), **(self.parts.get(image) or own)}
        return [{"image": image, "part": part, "box": list(box)} for part, boxes in every.items() for box in boxes]

    def pictures(self, run: Run) -> list[int]:
        """Return the indices of the images."""
        return list(range(len(run.dataset)))

    def tasks(self, run: Run) -> Sequence[Task]:
        run.require_model()
        _, _, size = skeleton(run.config.model)
        found: list[Task] = []
        for i in self.pictures(run):
            for view in self.views(run.dataset.names[i]):
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
        model, name, first, view = run.model(), task["method"], task["first"], task["view"]
        batch = run.batch(model, task["images"])
        image = batch.names[0]
        c, logits = chosen_class(run, model, batch)  # the class of the image itself, for all its views
        if view:
            batch.pixels = self.view(batch.pixels, image, view)
            batch.x = run.preprocess(model)(batch.pixels.to(run.dtype)).to(batch.x)
            logits = chosen_class(run, model, batch)[1]
        key = f"{image} {view}".strip()
        learn(run, model, self.own_images)
        method: Any = run.methods[name]
        row = {"key": key, "method": name, "window": method.window, "stride": method.stride, "first": first}
        output = Output(tables={"table": [row]})
        if isinstance(method, PDAGradient):
            output.arrays[f"{key}/{name}"] = method(model.net, batch.x, [c], run.preprocess(model))[0].cpu().numpy()
        else:
            windows = method.windows(batch.x)[first : task["last"]]
            evidence = method.evidence(model.net, batch.x[0], Target(c), windows, run.preprocess(model))
            output.arrays[f"{key}/{name}/{first}"] = evidence.cpu().numpy()
        if first == 0 and name == next(iter(run.methods)):
            output.arrays[f"{key}/pixels"] = batch.pixels[0].numpy()
            p = logits.softmax(0)
            odds = log2_odds(p[c], len(p), method.laplace)
            fact = {"key": key, "image": image, "view": view, "class": model.class_name(c), "unit": c, "p": float(p[c])}
            fact |= {"label": batch.labels[0], "log2_odds": float(odds)}
            fact |= {"laplace_bits": float(torch.logit(p[c]) / math.log(2) - odds), "weights": model.weights}
            output.tables["images"] = [fact | learnt(run, model, self.own_images)]
            if not view:
                output.tables["boxes"] = self.boxes(run, model, task["images"][0])
        return output

    # --- from what is stored ------------------------------------------------------------------------------------------

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return what `measures` finds of each map, each pair of methods, and each part of an image."""
        facts, methods = results.rows("images"), list(results.config.methods)
        maps = {
            (f["key"], m): torch.from_numpy(map_of(results, f["key"], m))[0].double() for f in facts for m in methods
        }
        tables: dict[str, Rows] = {"maps": [], "pairs": [], "parts": []}
        for fact in facts:
            own, key = {"image": fact["image"], "view": fact["view"]}, fact["key"]
            pixels = results.arrays[f"{key}/pixels"]
            size, alike = pixels.shape[1:], [f["key"] for f in facts if f["view"] == fact["view"]]
            at = alike.index(key)
            others = [*alike[at + 1 :], *alike[:at]]
            other = {m: maps[others[0], m] if others else None for m in methods}
            parts: dict[str, list[Sequence[float]]] = {}
            for row in results.rows("boxes", image=fact["image"]):
                parts.setdefault(row["part"], []).append(row["box"])
            object_ = self.object_mask(parts.pop("", []), fact["view"], pixels)
            for i, a in enumerate(methods):
                map_ = maps[key, a]
                tables["maps"].append(own | {"method": a} | of_map(map_, object_, [maps[each, a] for each in others]))
                for b in methods[i + 1 :]:
                    found = of_pair(map_, maps[key, b], other[b], object_)
                    if fact["laplace_bits"] > 1:  # saturated: the size of its evidence says nothing
                        found["log2_norms"] = None
                    tables["pairs"].append(own | {"a": a, "b": b, "wall": "wall" in parts} | found)
                for part, boxes in parts.items():
                    mask = self.part(boxes, fact["view"], size)
                    if mask.any():  # a view can cut it off
                        tables["parts"].append(own | {"part": part, "method": a} | of_part(map_, mask, other[a]))
        return tables

    def object_mask(self, boxes: Sequence[Sequence[float]], view: str, pixels: np.ndarray) -> Tensor | None:
        """Return the mask of an image's object; None without a box, with one of almost all of it, and for other views."""
        if len(pixels) == 1:
            return torch.from_numpy(pixels[0] > 0.5)
        mask = boxes_mask([] if view else boxes, pixels.shape[1:])
        return mask if 0 < mask.double().mean() <= LARGEST else None

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        """Draw a row for each image: the image, and for each method its map and the map over the image."""
        rows: list[PanelRow] = []
        for fact in results.rows("images"):
            pixels = results.arrays[f"{fact['key']}/pixels"]
            note = f"{fact['class']}, P = {fact['p']:.3f}"
            panels = [Panel(display.picture(pixels), "" if rows else "input", note)]
            for name in results.config.methods:
                map_ = map_of(results, fact["key"], name)
                title = "" if rows else method_title(results.config, name)
                bound = f"up to {np.abs(map_).max():.2g}"
                panels += [Panel(display.diverging(map_), title, bound), Panel(display.evidence(map_, pixels))]
            rows.append(PanelRow(panels, fact["key"] if len(fact["key"]) < 25 else ""))
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


def map_of(results: Results, key: str, method: str) -> np.ndarray:
    """Return the map [1, H, W] of an image, or of a view of it, from the stored evidence of its windows."""
    if f"{key}/{method}" in results.arrays:
        map_: np.ndarray = results.arrays[f"{key}/{method}"]
        return map_
    rows = results.rows(key=key, method=method)
    evidence = [torch.from_numpy(results.arrays[f"{key}/{method}/{row['first']}"]) for row in rows]
    size = results.arrays[f"{key}/pixels"].shape[1:]
    windows = windows_of(size, rows[0]["window"], rows[0]["stride"])
    return accumulate(torch.cat(evidence), windows, rows[0]["window"], size).numpy()


# --- for claims -------------------------------------------------------------------------------------------------------


def column(results: Results, table: str, name: str, **where: Any) -> Column:
    """Return a column of the rows with these values, one number for each image."""
    return Column(results.rows(table, **where), name, "image")


def ranks(results: Results, method: str, part: str, rule: Rule, view: str = "") -> Compared:
    """Compare the rank of the evidence in a part, among all pixels of a map, with that of another image's map there."""
    where = {"method": method, "part": part, "view": view}
    metric = f"mean rank of the evidence in the {part}{f' of the view {view!r}' if view else ''}, {method}"
    null, control = column(results, "parts", "rank_other", **where), "the map of another image in the same place"
    return Compared(metric, column(results, "parts", "rank", **where), rule, null=null, control=control)


def of_parts(results: Results, id_: str, parts: Sequence[str], compared: Sequence[Compared]) -> Claim:
    """Make a claim about parts of an image; without a photograph that has boxes of them, say how to give these."""
    if all(results.rows("parts", part=part) for part in parts):
        return Claim(id_, compared)
    boxes = ", ".join(f"{part}: [[TOP, LEFT, BOTTOM, RIGHT]]" for part in parts)
    why = f"no image has boxes of {', '.join(parts)}: image=[FILE,...] '+experiment.parts={{NAME: {{{boxes}}}}}'"
    return Claim(id_, [], reason=why)


def on_objects(results: Results) -> str:
    """Return the reason for no verdict on where evidence lies; "" if an image has a box of its object."""
    known = any(row["object"] for row in results.rows("maps"))
    return "" if known else "no image has a box of its object: '+boxes={NAME: [TOP, LEFT, BOTTOM, RIGHT]}'"


def photographs(results: Results) -> list[str]:
    """Say how a run with photographs differs from those of the paper's VGG-16."""
    first = results.rows("images")
    images = f"{len({f['image'] for f in first})} other images instead of the paper's photographs"
    return [*differences(results, "VGG-16", first[0]), images]
