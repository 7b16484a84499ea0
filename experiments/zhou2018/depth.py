"""zhou2018, Section 3: "we can expect the accumulated error for VGG16 to be larger than the 6-layer model".

The approximation's error (see figure11) at one window, on the same images, in networks that the project trains itself. The
paper compares VGG-16 on ImageNet with six layers on MNIST and states an expectation, which is not measured; the project's claim
compares the deepest network with the shallowest on one task. They differ not only in depth but also in width and in confidence.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.zhou2018.evidence import training_images
from experiments.zhou2018.figure11 import approximation
from vis.config.instantiate import construct
from vis.figures.layout import plot, styled
from vis.oldclaims import POSITIVE, Claim, paper_and_here
from vis.runner.experiment import Experiment, Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results

DEEPER = "we can expect the accumulated error for VGG16 to be larger than the 6-layer model in previous section"


class Depth(Experiment):
    """Measure the error by depth.

    models: {name: config node}, the shallowest first; samples: draws of the window; at: its (top, left).
    """

    def __init__(self, models: Mapping[str, Any], samples: int, at: Sequence[int] | None) -> None:
        self.models, self.samples, self.at = models, samples, at
        self._learnt: dict[str, Any] = {}

    def tasks(self, run: Run) -> Sequence[Task]:
        return [
            {"network": name, "images": images} for name in self.models for images in run.batches(len(run.dataset), 8)
        ]

    def compute(self, run: Run, task: Task) -> Output:
        name = task["network"]
        model = run.model(self.models[name])
        if name not in self._learnt:
            (key,) = run.methods
            self._learnt[name] = construct(dict(run.config.methods[key]), f"methods.{key}")
            images = run.batch(model, [0]).x
            self._learnt[name].prepare(run.explainer.subject(model, images, [], training_images(run)))
        rows = []
        for i in task["images"]:
            batch = run.batch(model, [i])
            rows.append(
                {"network": name, "data": run.dataset.origin}
                | approximation(run, model, batch, self._learnt[name], self.samples, self.at)
            )
        return Output(tables={"table": rows})

    def errors(self, results: Results, network: str) -> list[float]:
        """Return |mean over draws of P - P for the mean content| of each image."""
        return [abs(r["arithmetic"] - r["efficient"]) for r in results.rows(network=network)]

    def claims(self, results: Results) -> list[Claim]:
        first, *_, last = self.models
        more = [b - a for a, b in zip(self.errors(results, first), self.errors(results, last), strict=True)]
        metric = f"error of {last} - error of {first}, in probability, of each image"
        reason = f"networks trained here on {results.rows()[0]['data']}, not ImageNet's VGG-16"
        claim = Claim("deeper", DEEPER, source="Section 3", metric=metric, criterion=POSITIVE, values=more)
        return paper_and_here([claim], reason)

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        names = list(self.models)
        caption = [
            f"Size of the approximation's error at the window at row {results.rows()[0]['top']}, column "
            f"{results.rows()[0]['left']}, {plural(len(results.rows(network=names[0])), 'image')}: mean probability over "
            f"{self.samples} draws of it against the probability for its mean content; line: median, cross: mean",
            "; ".join(f"{n}: {results.rows(network=n)[0]['weights']}" for n in names),
        ]
        figure, (axes,) = plot(4.4, 2.4, caption)
        with styled():
            for i, name in enumerate(names):
                errors = self.errors(results, name)
                jitter = np.random.default_rng(i).uniform(-0.25, 0.25, len(errors))
                axes.plot(i + jitter, np.maximum(errors, 1e-9), ".", color="tab:blue", alpha=0.3)
                axes.plot([i - 0.3, i + 0.3], [np.median(errors)] * 2, color="black")
                axes.plot([i], [np.mean(errors)], "x", color="tab:red")
            axes.set_xticks(range(len(names)), [n.replace("_", " ") for n in names])
            axes.set(yscale="log", ylabel="difference of the probability")
        return {"figure": figure}
