"""taimeskhanov2024, Figure 6: samples of STACK-MIX and STACK-GEN, two subjects one above the other.

"one in the bottom part of the image which is the dead zone for [VGG], and the second subject at the top of the image." Any
dataset can be shown. For images that the project composes, manifest.csv lists their parts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vis.claims import Claim, Column, Compared, above, at_small_sizes, below, exactly
from vis.data import Dataset, folder, imagenet, to_pixels
from vis.data.stacked import SIDE, UPPER
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.models import dead_rows, skeleton
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results

ANIMALS = 398  # of ImageNet's labels, the first are animals: 397 is the puffer, 398 the abacus
MIX, GEN = "STACK-MIX", "STACK-GEN"


class Figure6(Experiment):
    """Draw samples of both datasets and compare their images with what the paper says of them.

    models.masked: the network whose dead zone is drawn; count: samples; stack_gen: the folder of STACK-GEN, or None.
    """

    def __init__(self, models: Mapping[str, Mapping[str, Any]], count: int, stack_gen: str | None = None) -> None:
        self.masked, self.count, self.stack_gen = models["masked"], count, stack_gen

    def compute(self, run: Run, task: Task) -> Output:
        _, channels, size = skeleton(self.masked)
        first, last = dead_rows(self.masked) or (None, None)
        sets = [(run.dataset, run.config.dataset.get("resize"), MIX)]
        sets += [(folder(self.stack_gen), 256, GEN)] if self.stack_gen else []
        parts, any_class = _parts(run), run.config.dataset["_target_"] == "vis.data.stack_photographs"
        output = Output(tables={"table": [], "images": []})
        for row, (data, resize, name) in enumerate(sets):
            chosen = list(_spread(len(data), self.count))
            for i in range(len(data)):
                pixels, label = to_pixels(data.read(i), size, channels, resize), data.labels[i]
                found: dict[str, Any] = {"set": name, "image": data.names[i], "label": label}
                found |= (
                    {"not an animal": float(label >= ANIMALS)}
                    if label is not None and len(data.classes or ()) != 10 and not any_class
                    else {}
                )
                found |= _seam(pixels, first) if first else {}
                found |= _against_parts(pixels, data, i, parts) if parts and name == MIX else {}
                output.tables["images"].append(found)
                if i in chosen:
                    place, classes = chosen.index(i), data.classes or ()
                    output.arrays[f"{row}/{place}"] = pixels.numpy()
                    where = {"row": row, "place": place, "dataset": data.origin, "first": first, "last": last}
                    shown = classes[label] if label is not None and label < len(classes) else data.names[i]
                    output.tables["table"].append({**where, "image": data.names[i], "name": shown})
        return output

    def summaries(self, results: Results) -> dict[str, Any]:
        labels = [row["label"] for row in results.rows("images", set=MIX) if row["label"] is not None]
        return {"classes": [{"dataset": MIX, "distinct": len(set(labels))}] if labels else []}

    def claims(self, results: Results) -> list[Claim]:
        def column(name: str, which: str = MIX) -> Column:
            return Column(results.rows("images", set=which), name, "image")

        config = results.config
        built = "dataset=stack_mix_imagenet dataset.path=FOLDER gives labels and parts"
        rebuilt = {
            "vis.data.stack_mix": "STACK-MIX rebuilt from ImageNet",
            "vis.data.stack_photographs": "composed photographs of any class instead of STACK-MIX",
        }
        other = [words for target, words in rebuilt.items() if config.dataset._target_ == target]
        wrong = Compared(
            "labels from 398 on", column("not an animal"), exactly(0), null=1.0, control="labels of objects"
        )
        distinct = Compared("distinct classes", Column(results.rows("classes"), "distinct", "dataset"), exactly(100),
                            null=1.0, control="one class")  # fmt: skip
        equal = [
            Compared(f"largest difference from the {part} source", column(part), exactly(0), null=column("a row off"),
                     control="the seam a row lower")
            for part in ("upper", "lower")
        ]  # fmt: skip
        seams = [
            Compared("gradient across the seam over that of the rows beside it, STACK-MIX", column("seam"),
                     above(1.2, fails=1.1, ours="1.2 is ours"), null=column("above the seam"), control="10 rows higher"),
            Compared("the same, STACK-GEN", column("seam", GEN), below(1.2, fails=1.3), null=column("seam"), control="STACK-MIX"),
        ]  # fmt: skip
        seams = seams if self.stack_gen else seams[:1]
        small = at_small_sizes(config)
        return [
            Claim("T-3.2-a", [wrong, distinct], differences=other, reason=small or ("" if wrong.column.values else built)),
            Claim("T-E6", equal, differences=other, reason=small or ("" if equal[0].column.values else built)),
            Claim("T-3.2-c", seams, differences=other,
                  reason=small or ("" if self.stack_gen else "it needs STACK-GEN: experiment.stack_gen=FOLDER")),
        ]  # fmt: skip

    def draw(self, results: Results, claims: list[Any]) -> dict[str, Figure]:
        rows = results.rows()
        dead = None if rows[0]["first"] is None else (rows[0]["first"], rows[0]["last"])
        grid = []
        for number in dict.fromkeys(row["row"] for row in rows):
            pictures = [(row["name"], results.arrays[f"{number}/{row['place']}"]) for row in results.rows(row=number)]
            grid.append(PanelRow([Panel(display.picture(p), note=name, dead_rows=dead) for name, p in pictures]))
        caption = [
            "Two subjects, one above the other: " + "; ".join(dict.fromkeys(row["dataset"] for row in rows)),
            f"Red: rows {dead[0]} to {dead[1]}, which {self.masked['name']} does not see" if dead else "",
        ]
        return {"figure": panel_grid(grid, caption, panel=1.3)}


def _parts(run: Run) -> Dataset | None:
    """Return the images that STACK-MIX is composed of, if the run builds it."""
    node = run.config.dataset
    return imagenet(node.path, node.split) if node["_target_"] == "vis.data.stack_mix" else None


def _against_parts(pixels: Tensor, data: Dataset, i: int, parts: Dataset) -> dict[str, float]:
    """Return the largest differences between a composed image and its sources above and below the seam, Eq. (6)."""
    assert data.sources is not None
    names = list(parts.names)
    first, second = (to_pixels(parts.read(names.index(name)), (SIDE, SIDE), 3) for name in data.sources[i])
    off = (pixels[:, : UPPER + 1] - first[:, : UPPER + 1]).abs().max().item()
    upper, lower = pixels[:, :UPPER] - first[:, :UPPER], pixels[:, UPPER:] - second[:, UPPER:]
    return {"upper": upper.abs().max().item(), "lower": lower.abs().max().item(), "a row off": off}


def _seam(pixels: Tensor, first: int) -> dict[str, float]:
    """Return the mean step across the first dead row over that of five rows on each side, there and ten rows higher."""
    steps = torch.cat([torch.zeros(1), (pixels[:, 1:] - pixels[:, :-1]).abs().mean((0, 2))])

    def ratio(row: int) -> float:
        beside = torch.cat([steps[row - 5 : row], steps[row + 1 : row + 6]]).mean().item()
        return steps[row].item() / beside if beside else 0.0

    return {"seam": ratio(first), "above the seam": ratio(first - 10)}


def _spread(total: int, count: int) -> Sequence[int]:
    """Return `count` indices, evenly spread over 0 .. total - 1 because folders are sorted by class."""
    count = min(count, total)
    return [i * total // count for i in range(count)]
