"""zhou2018, Figure 13: MNIST, one digit of each class, the evidence by PDA and by the efficient algorithm.

"Both algorithms use a window size of 4x4 [...]. Also, marginal sampling is used instead of conditional sampling." The
network has two convolutional, two max-pooling and two dense layers; the project trains it itself, as the paper's authors
did theirs. Other window sizes are explained for the claim that 4x4 is the best; only their measures are stored.
"""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.zhou2018.evidence import EvidenceMaps, chosen_class, column, learn
from experiments.zhou2018.measures import share_in
from vis.claims import Claim, Column, Compared, above, at_small_sizes, below, departures, exactly, replicated
from vis.figures import display
from vis.metrics import total_variation
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows
from vis.training.images import load_images, splits
from vis.training.loop import Training
from vis.training.standin import STANDIN_RECIPES

PAPER = {"methods": {name: {"window": 4, "conditional": False} for name in ("pda", "pda_fast")}}
BEST = 4  # the paper's window
SHADE = 1 / 127  # a step of the colour table
SIDE = 28  # of MNIST's images; those of the digits in its place have 8
ACCURACY = 0.992
LEAST = 0.9902  # lower 95 % limit of .992, by Clopper and Pearson for 10,000 test images


class Figure13(EvidenceMaps):
    """Compute maps of the first image of each class, measures of maps with other windows, and accuracies.

    sizes: of the windows; epochs: of a training, one for each seed.
    """

    def __init__(self, sizes: Sequence[int], epochs: int, **maps: Any) -> None:
        super().__init__(**maps)
        self.sizes, self.epochs = sizes, epochs

    def pictures(self, run: Run) -> list[int]:
        labels = list(run.dataset.labels)
        return [labels.index(label) for label in sorted({v for v in labels if v is not None})] or super().pictures(run)

    def tasks(self, run: Run) -> Sequence[Task]:
        sizes = [{"images": [i], "size": size} for i in self.pictures(run) for size in self.sizes]
        return [*super().tasks(run), *sizes, *({"training": seed} for seed in run.seeds)]

    def load(self, run: Run, task: Task) -> Any:
        return super().load(run, task) if "method" in task else None

    def compute(self, run: Run, task: Task) -> Output:
        if "training" in task:
            return Output(tables={"trainings": [self._training(run, task["training"])]})
        return self._measures(run, task) if "size" in task else super().compute(run, task)

    def _training(self, run: Run, seed: int) -> dict[str, Any]:
        """Train a network on the training images of the dataset: its accuracy on the test images, and the side of all."""
        model, parts = run.model(seed=seed, weights=None, init="kaiming_normal"), splits(run.config.dataset)
        train, test = (load_images(part, model.input_size, model.channels) for part in parts)
        recipe = replace(STANDIN_RECIPES["mnist"], epochs=self.epochs)
        with tempfile.TemporaryDirectory() as state:
            training = Training(model.net, train, test, recipe, run.preprocess(model), seed, run.device, Path(state))
            accuracy = float(list(training)[-1]["val_top1"])
        return {"seed": seed, "accuracy": accuracy, "side": parts[0].read(0).width}

    def _measures(self, run: Run, task: Task) -> Output:
        model = run.model()
        batch = run.batch(model, task["images"])
        c, _ = chosen_class(run, model, batch)
        learn(run, model, self.own_images)
        rows = []
        for name, method in run.methods.items():
            other: Any = copy.copy(method)
            other.window = task["size"]
            map_ = other(model.net, batch.x, [c], run.preprocess(model)).cpu().double()
            row = {
                "image": batch.names[0],
                "method": name,
                "size": task["size"],
                "roughness": float(total_variation(map_)),
            }
            rows.append(row | {"on_stroke": share_in(map_[0, 0], batch.pixels[0, 0] > 0.5)})
        return Output(tables={"sizes": rows})

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the tables of maps, and by how much the colours of the figure deviate from being proportional to evidence."""
        values = np.linspace(-1, 1, 21)
        colours = display.diverging(values[None, None])[0]
        # in a map from blue by white to red, the weakest channel falls from white as the evidence grows
        rows = [
            {"value": float(v), "deviation": abs(1 - float(c.min()) - abs(v))}
            for v, c in zip(values, colours, strict=True)
        ]
        return super().summaries(results) | {"colours": rows}

    def claims(self, results: Results) -> list[Claim]:
        first = results.rows("images")[0]
        mnist = all(row["side"] == SIDE for row in results.rows("trainings"))
        data = [] if mnist else [f"{first['learnt_from']} instead of MNIST"]
        others, small = [*departures(results.config, PAPER), *data], at_small_sizes(results.config)
        linear = Compared(
            "deviation of the colour's distance from white from the share of the largest evidence",
            Column(results.rows("colours"), "deviation", "value"),
            exactly(0, SHADE),
            null=1.0,
            control="colours in random order",
        )
        accuracy = Compared(
            "accuracy on the test images, one training each",
            Column(results.rows("trainings"), "accuracy", "seed"),
            above(LEAST, ours=f"{LEAST} is the lower 95 % limit of {ACCURACY} for 10,000 images"),
            null=0.1,
            control="a guess",
        )
        return [
            *replicated(
                [Claim("Z-3-n", [accuracy], paper=ACCURACY), Claim("Z-3-o", self._best(results))], others, small
            ),
            *replicated([Claim("Z-3-q", [linear])], others),
        ]

    def _best(self, results: Results) -> list[Compared]:
        """The paper's window against each other one: smoother, and with more evidence on the stroke."""
        rules = {
            "roughness": ("total variation over the sum of |evidence|", below(0)),
            "on_stroke": ("share of |evidence| on the stroke", above(0)),
        }
        return [
            Compared(
                f"{metric}, {BEST}x{BEST} - {size}x{size}",
                column(results, "sizes", name, size=BEST) - column(results, "sizes", name, size=size),
                rule,
                null=0.0,
                control="windows that are as good",
            )
            for name, (metric, rule) in rules.items()
            for size in self.sizes
            if size != BEST
        ]
