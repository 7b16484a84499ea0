"""ayyar2021, section 7: do maps agree with people? Against fixation maps, or boxes drawn around the object.

All maps are reduced by Eq. (6) and compared at one resolution, as means over the cells of a grid, since a fine map loses by its
resolution alone. The density p is the fixation map, and its mask the 30 % of the cells where people look most; or p is uniform
in the object's box, which is the mask.

    AUC     area under the ROC curve of the map as a classifier of the mask (Judd et al. 2009), 1/2 by chance
    NSS     mean of the standardised map in the mask, 0 by chance
    KL      sum p log(p / map), 0 where they are equal
    share   of the map in the mask
    own     share of the map in the mask - its mean share in the masks of the other photographs

Controls: nearness to the centre, where people look and objects lie in any photograph; the other photographs' masks; the image's
edges; FEM of a network of the same architecture with random weights.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from experiments.ayyar2021.by_method import ByMethod
from experiments.ayyar2021.verdicts import BOXES, IMAGES, POSITIVE, lead, on_trained
from vis import metrics
from vis.claims import Claim, Column, Compared, below, mean
from vis.errors import UserError
from vis.metrics import sobel, strength
from vis.models import Model
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output, Results

FIXATED = 0.3  # share of the cells that count as looked at
CENTRE, EDGES, RANDOM = "centre", "edges", "random_fem"


def box_mask(box: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Return a mask [H, W]: 1 in a box (top, left, bottom, right, as shares of the sides), else 0."""
    height, width = size
    top, left, bottom, right = (round(v * n) for v, n in zip(box, (height, width, height, width), strict=True))
    mask = torch.zeros(height, width)
    mask[top:bottom, left:right] = 1
    return mask


def auc(values: Tensor, masks: Tensor) -> Tensor:
    """Return the areas under the ROC curve [M] of values [n] as a classifier of each of the masks [M, n].

    NaN for a mask of all or nothing. Ties count half.
    """
    ranks, marked = torch.from_numpy(rankdata(values.numpy())), masks.double()
    count = marked.sum(1)
    return (marked @ ranks - count * (count + 1) / 2) / (count * (masks.shape[1] - count))


class People(ByMethod):
    """Compare maps with fixations or boxes. Images that have neither are left out. cells: side of the grid."""

    axes: ClassVar = {
        "AUC": {"": "auc"}, "own - other photographs": {"": "own"}, "NSS": {"": "nss"}, "KL": {"": "kl"}
    }  # fmt: skip
    ranges: ClassVar = {"AUC": (0, 1), "own - other photographs": (-1, 1), "KL": (0, math.inf)}
    controls: ClassVar = {
        CENTRE: "nearness to the centre", EDGES: "the image's edges", RANDOM: "FEM, random weights"
    }  # fmt: skip
    sentence = (
        "Maps against what people look at, or boxes around the object: area under the ROC curve (chance: 0.5); share of the map "
        "on it - on that of other photographs; normalised scanpath saliency (chance: 0); KL divergence"
    )

    def __init__(self, source: str, cells: int) -> None:
        super().__init__(source)
        self.cells = cells
        self._masks: dict[str, Tensor] = {}  # of all photographs of the run
        self._given = ""

    def tasks(self, run: Run) -> Sequence[Task]:
        run.require_model()
        return super().tasks(run)

    def references(self, run: Run, model: Model, images: Sequence[int]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the density and the mask [cells, cells] of photographs that have a fixation map or a box."""
        looks = run.reader.gaze(model, images) if run.dataset.gaze else {}
        boxes = (
            {}
            if run.dataset.gaze
            else {n: box_mask(d.box, model.input_size) for n, d in run.drawn(model, images).items()}
        )
        found = {}
        for name, full in (looks or boxes).items():
            p = adaptive_avg_pool2d(full[None, None].double(), self.cells)
            mask = metrics.largest(p, FIXATED) if looks else p > 0.5
            if 0 < mask.double().mean() < 1:
                found[name] = p[0, 0], mask[0, 0]
        return found

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        if not self._masks:
            all_ = self.references(run, model, range(len(run.dataset)))
            self._masks = {name: mask.flatten() for name, (_, mask) in all_.items()}
            if not self._masks:
                raise UserError(
                    "no image has a fixation map or a box: dataset=osie dataset.path=FOLDER, or boxes={NAME: [top, left, "
                    f"bottom, right]}} as shares of the sides, such as boxes={{{run.dataset.names[0]}: [0.1, 0.2, 0.9, 0.8]}}"
                )
        batch = run.batch(model, task["images"])
        own = self.references(run, model, task["images"])
        kept = [i for i, name in enumerate(batch.names) if name in own]
        output = Output(tables={"table": []})
        if not kept:
            return output
        x, names = batch.x[kept], [batch.names[i] for i in kept]
        (maps,), logits = run.explain(model, x, [run.units_of(model, run.targets[0], names)])
        rows, columns = (torch.linspace(-1, 1, self.cells, dtype=torch.float64) for _ in range(2))
        near = 2 - (rows[:, None] ** 2 + columns**2)
        found = maps | {
            CENTRE: near.expand(len(kept), 1, -1, -1),
            EDGES: sobel(batch.pixels[kept]),
        }
        if "fem" in run.methods and model.trained:
            other = run.model(weights=None, init="kaiming_normal")
            found |= {RANDOM: run.methods["fem"](other.net, x, logits.argmax(1).tolist(), run.preprocess(other)).cpu()}
        for method, each in found.items():
            coarse = adaptive_avg_pool2d(strength(each), self.cells)
            for name, map_ in zip(names, coarse, strict=True):
                p, mask = own[name]
                others = torch.stack([m for other, m in self._masks.items() if other != name] or [~mask.flatten()])
                v = map_.flatten()
                on = v[mask.flatten()].sum() / v.sum()
                row = {"image": name, "method": method, "weights": model.weights, "area": mask.double().mean().item()}
                row |= {"by": "gaze" if run.dataset.gaze else "boxes", "auc": auc(v, mask.flatten()[None]).item()}
                row |= {"auc_other": auc(v, others).mean().item(), "share": on.item()}
                row |= {"own": (on - (others.double() @ v / v.sum()).mean()).item()}
                row |= {"nss": metrics.nss(map_[None], mask[None, None]).item(), "kl": metrics.kl(p[None], map_).item()}
                output.tables["table"].append(row)
        return output

    def claims(self, results: Results) -> list[Claim]:
        gaze = results.rows()[0]["by"] == "gaze"
        marked = "where people look" if gaze else "the object's box"
        words = f"AUC for {marked}"
        methods = [str(method) for method in results.config.methods]
        own = Compared(f"share of FEM's map on {marked} - on that of the other photographs",
                       Column(results.rows(method="fem"), "own", "image"), POSITIVE,
                       null=Column(results.rows(method=RANDOM), "own", "image"), control="FEM, random weights")  # fmt: skip
        object_ = [
            lead(results, "auc", "fem", CENTRE, metric=words),
            own,
            lead(results, "auc", "fem", RANDOM, metric=words),
        ]
        some = [lead(results, "auc", method, CENTRE, metric=words, rule=below(0)) for method in methods]
        found = [Claim("A-5.3-c", object_), Claim("A-7-k", some, needs=1)]
        return on_trained(results, found, least=IMAGES if gaze else BOXES)

    def remarks(self, results: Results) -> list[str]:
        rows = results.rows(method=CENTRE)
        marked = "The part where people look most" if rows[0]["by"] == "gaze" else "The box"
        return [f"{marked} is {mean([row['area'] for row in rows]):.0%} of an image; {self.cells} x {self.cells} cells"]
