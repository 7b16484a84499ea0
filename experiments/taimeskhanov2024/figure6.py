"""taimeskhanov2024, Figure 6: samples of STACK-MIX and STACK-GEN, two subjects one above the other.

"one in the bottom part of the image which is the dead zone for [VGG], and the second subject at the top of the image." Any
dataset can be shown. For images that the project composes, manifest.csv lists their parts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from vis.data import folder, to_pixels
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.models import dead_rows, skeleton
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results


class Figure6(Experiment):
    """Draw samples of both datasets.

    models.masked: the network whose dead zone is drawn; count: samples; stack_gen: the folder of STACK-GEN, or None.
    """

    def __init__(self, models: Mapping[str, Mapping[str, Any]], count: int, stack_gen: str | None = None) -> None:
        self.masked, self.count, self.stack_gen = models["masked"], count, stack_gen

    def compute(self, run: Run, task: Task) -> Output:
        _, channels, size = skeleton(self.masked)
        first, last = dead_rows(self.masked) or (None, None)
        sets = [(run.dataset, run.config.dataset.get("resize"))]
        sets += [(folder(self.stack_gen), 256)] if self.stack_gen else []
        output = Output(tables={"table": []})
        for row, (data, resize) in enumerate(sets):
            for place, i in enumerate(_spread(len(data), self.count)):
                output.arrays[f"{row}/{place}"] = to_pixels(data.read(i), size, channels, resize).numpy()
                label, classes = data.labels[i], data.classes or ()
                name = classes[label] if label is not None and label < len(classes) else data.names[i]
                where = {"row": row, "place": place, "dataset": data.origin, "first": first, "last": last}
                output.tables["table"].append({**where, "image": data.names[i], "name": name})
        return output

    def draw(self, results: Results, claims: list[Any]) -> dict[str, Figure]:
        rows = results.rows()
        dead = None if rows[0]["first"] is None else (rows[0]["first"], rows[0]["last"])
        grid = []
        for number in dict.fromkeys(row["row"] for row in rows):
            pictures = [(row["name"], results.arrays[f"{number}/{row['place']}"]) for row in results.rows(row=number)]
            grid.append(PanelRow([Panel(display.picture(p), note=name, dead_rows=dead) for name, p in pictures]))
        caption = [
            "Two subjects of one class, one above the other: "
            + "; ".join(dict.fromkeys(row["dataset"] for row in rows)),
            f"Red: rows {dead[0]} to {dead[1]}, which {self.masked['name']} does not see" if dead else "",
        ]
        return {"figure": panel_grid(grid, caption, panel=1.3)}


def _spread(total: int, count: int) -> Sequence[int]:
    """Return `count` indices, evenly spread over 0 .. total - 1 because folders are sorted by class."""
    count = min(count, total)
    return [i * total // count for i in range(count)]
