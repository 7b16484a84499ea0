"""ayyar2021, section 7: do maps agree with people? Against fixation maps (AUC, NSS, KL divergence) or boxes around the object.

The reference is a density p over the pixels and a mask. A fixation map is the density, and its pixels above half of the maximum
are the mask; boxes are the mask, and the density is uniform in them. Maps are reduced by Eq. (6) and compared by:

    AUC     area under the ROC curve of the map as a classifier of the mask (Judd et al. 2009), 1/2 by chance
    NSS     mean of the standardised map in the mask, 0 by chance
    KL      sum p log(p / map), 0 where they are equal
    IoU     of the mask and as many pixels with the largest values as it has
    hit     pointing game: the largest value lies in the mask
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from experiments.ayyar2021.by_method import ByMethod
from experiments.ayyar2021.gallery import box_mask, strength
from experiments.ayyar2021.verdicts import POSITIVE, on_trained
from vis import metrics
from vis.claims import Claim, Column, Compared, Rule, below, mean
from vis.data import read_image, to_pixels
from vis.data.images import SUFFIXES
from vis.errors import UserError
from vis.models import Model
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output, Results


def box_image(path: Path) -> Image.Image:
    """Draw the boxes of an ImageNet XML file (Pascal VOC) in white on black, at the image's size.

    Raises UserError for another kind of file.
    """
    try:
        root = ElementTree.parse(path).getroot()
        size = [int(root.findtext(f"size/{side}", "")) for side in ("width", "height")]
        image = Image.new("L", (size[0], size[1]))
        boxes = list(root.iter("bndbox"))
        for box in boxes:
            left, top, right, bottom = (int(float(box.findtext(k, ""))) for k in ("xmin", "ymin", "xmax", "ymax"))
            ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=255)
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is not an ImageNet annotation with size and bndbox: {error}") from error
    return image


def by_stem(folder: str, key: str, suffixes: Sequence[str]) -> dict[str, Path]:
    """Map names without suffix to the files in a folder and its subfolders.

    Raises UserError if there is no file, or if two have the same name.
    """
    root, found = Path(folder).expanduser(), dict[str, Path]()
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in suffixes and found.setdefault(path.stem, path) != path:
            raise UserError(
                f"experiment.{key}: {found[path.stem]} and {path} have the same name; give one file for each image"
            )
    if not found:
        raise UserError(
            f"experiment.{key}={folder} holds no {' or '.join(suffixes)} file: it needs one for each image, with the image's name"
        )
    return found


class People(ByMethod):
    """Compare maps with fixations or boxes. Images that have neither are left out.

    fixations: a folder of fixation maps (pictures, bright where people look). boxes: a folder of ImageNet's XML files. Both use
    the images' names and aspect ratios. object: {image: box, as shares of the sides}, used if neither folder is given.
    """

    axes: ClassVar = {"AUC": {"": "auc"}, "NSS": {"": "nss"}, "KL": {"": "kl"}, "IoU": {"": "iou"}, "hit": {"": "hit"}}
    ranges: ClassVar = {"AUC": (0, 1), "KL": (0, math.inf), "IoU": (0, 1), "hit": (0, 1)}

    def __init__(
        self,
        source: str,
        object: Mapping[str, Sequence[float]] = {},
        boxes: str | None = None,
        fixations: str | None = None,
    ) -> None:
        if boxes and fixations:
            raise UserError("experiment.boxes and experiment.fixations exclude each other: give one of them")
        super().__init__(source)
        self.object = object
        self.files = by_stem(fixations, "fixations", SUFFIXES) if fixations else {}
        self.files |= by_stem(boxes, "boxes", (".xml",)) if boxes else {}
        self.given = "fixations" if fixations else "boxes" if boxes else "object"
        what = "what people look at" if fixations else "the object's box"
        self.sentence = (
            f"Maps against {what}: area under the ROC curve (chance: 0.5), normalised scanpath saliency (chance: 0), "
            "KL divergence, intersection over union, pointing game"
        )

    def tasks(self, run: Run) -> Sequence[Task]:
        names, known = run.dataset.names, [path.name for path in self.files.values()] or list(self.object)
        if not any((Path(name).stem in self.files) if self.files else name in self.object for name in names):
            raise UserError(
                f"experiment.{self.given} has no entry for any image: the first image is {names[0]}, "
                f"the first entry {(known or ['missing'])[0]}"
            )
        return super().tasks(run)

    def density(self, run: Run, model: Model, image: str) -> Tensor | None:
        """Return the density [1, H, W], cropped like the image; None if it is unknown or lies outside the crop."""
        if not self.files:
            return box_mask(self.object[image], model.input_size) if image in self.object else None
        path = self.files.get(Path(image).stem)
        if path is None:
            return None
        picture = box_image(path) if path.suffix.lower() == ".xml" else read_image(path)
        resize = None if run.config.image is not None else run.config.dataset.get("resize")
        found = to_pixels(picture, model.input_size, 1, resize)
        return found if found.any() else None

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        batch = run.batch(model, task["images"])
        known = {i: d for i, name in enumerate(batch.names) if (d := self.density(run, model, name)) is not None}
        output = Output(tables={"table": []})
        if not known:
            return output
        kept = list(known)
        names, p = [batch.names[i] for i in kept], torch.stack(list(known.values())).double()
        mask = p > p.amax((1, 2, 3), keepdim=True) / 2
        rows, columns = (torch.linspace(-1, 1, n) for n in p.shape[2:])
        centre = metrics.auc_judd(
            -(rows[:, None] ** 2 + columns**2).expand_as(p), mask
        )  # people look at the middle anyway
        (maps,), _ = run.explain(model, batch.x[kept], [run.units_of(model, run.targets[0], names)])
        for method, each in maps.items():
            map_ = strength(each)
            same = [
                metrics.largest(m[None], share.item())
                for m, share in zip(map_, mask.double().mean((1, 2, 3)), strict=True)
            ]
            numbers = {
                "auc": metrics.auc_judd(map_, mask),
                "nss": metrics.nss(map_, mask),
                "kl": metrics.kl(p, map_),
                "iou": metrics.iou(torch.cat(same), mask),
                "hit": metrics.pointing_game(map_, mask),
            }
            output.tables["table"] += [
                {"image": image, "method": method, "area": mask[i].double().mean().item(),
                 "centre": centre[i].item(), "weights": model.weights}
                | {name: values[i].item() for name, values in numbers.items()}
                for i, image in enumerate(names)
            ]  # fmt: skip
        return output

    def claims(self, results: Results) -> list[Claim]:
        if not results.rows():
            raise UserError(
                f"experiment.{self.given} marks nothing inside the crop that the network sees: give other images or files"
            )
        marked = {"fixations": "places where people look", "boxes": "boxes", "object": "boxes"}[self.given]

        def gain(method: str, rule: Rule) -> Compared:
            auc, centre = (Column(results.rows(method=method), name, "image") for name in ("auc", "centre"))
            metric = f"AUC of {method} for {marked} - AUC of nearness to the image's centre"
            return Compared(metric, auc - centre, rule, null=0.0, control="as good as the centre: 0")

        some = Claim("A-7-k", [gain(method, below(0)) for method in results.config.methods], needs=1)
        return on_trained(results, [Claim("A-5.3-c", [gain("fem", POSITIVE)]), some])

    def remarks(self, results: Results) -> list[str]:
        facts = {row["image"]: row for row in results.rows()}.values()
        area, centre = (mean([row[key] for row in facts]) for key in ("area", "centre"))
        return [f"The mask is {area:.0%} of an image; nearness to the image's centre alone has an AUC of {centre:.2f}"]
