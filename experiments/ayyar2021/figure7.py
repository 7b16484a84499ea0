"""ayyar2021, Figure 7: the path of integrated gradients from a baseline to an image, and its integral converging.

    R = (x - x0) * integral of dS_c/dx at x0 + alpha (x - x0), alpha from 0 to 1                     (7)

The map sums to S_c(x) - S_c(x0) (completeness). The integration error that remains with n gradients is measured for growing n,
with the paper's Riemann sum and with Gauss-Legendre quadrature. Its order in n is a slope in double logarithms, per image.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.ayyar2021.verdicts import other_weights
from vis.claims import Claim, Column, Compared, below, mean, replicated
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, plot, styled
from vis.methods import IntegratedGradients
from vis.methods.baseline import baseline_images, several
from vis.runner.experiment import Experiment, Load, Run, Task, method_words
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

RULES = {"riemann": "Riemann sum", "gauss_legendre": "Gauss-Legendre"}


class Figure7(Experiment):
    """Draw the path and measure the completeness error.

    alphas: images of the path in the figure; steps: numbers of gradients, rising; rows: the most images in the figure.
    """

    def __init__(self, alphas: int, steps: Sequence[int], rows: int) -> None:
        if alphas < 2 or len(steps) < 2 or sorted(set(steps)) != list(steps):
            raise UserError("experiment.alphas must be 2 or more, and experiment.steps two or more rising numbers")
        self.alphas, self.steps, self.rows = np.linspace(0, 1, alphas), list(steps), rows

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"images": [i]} for i in range(len(run.dataset))]

    def load(self, run: Run, task: Task) -> Load:
        return Load(run.config.model, run.config.seed, 1, len(RULES) * sum(self.steps), len(self.alphas))

    def compute(self, run: Run, task: Task) -> Output:
        model, own = run.model(), next(iter(run.methods.values()))
        if not isinstance(own, IntegratedGradients) or len(several(own.baseline)) > 1:
            raise UserError("Figure 7 needs integrated gradients from one baseline: method=integrated_gradients")
        batch, preprocess = run.batch(model, task["images"]), run.preprocess(model)
        (image,), x = batch.names, batch.x
        (x0,) = baseline_images(x, own.baseline, preprocess, own.seed)
        path = torch.cat([x0 + alpha * (x - x0) for alpha in self.alphas.tolist()])
        with torch.no_grad():
            logits = model.net(path)
        units = run.units_of(model, run.targets[0], batch.names) or [int(logits[-1].argmax())]
        pixels = preprocess.inverse(path.cpu(), preprocess.norm(batch.pixels))
        output = Output(tables={"table": [], "path": []})
        scores = logits[:, units[0]].tolist()
        fact = {"image": image, "class": model.class_name(units[0]), "weights": model.weights}
        output.tables["path"] = [
            fact | {"alpha": a, "score": s} for a, s in zip(self.alphas.tolist(), scores, strict=True)
        ]
        if task["images"][0] < self.rows:
            output.arrays[image] = pixels.numpy()
        for rule in RULES:
            for n in self.steps:
                method = copy.copy(own)
                method.rule, method.steps = rule, n
                maps = method(model.net, x, units, preprocess)
                error = method.axiom_error(model.net, x, units, maps, preprocess)
                assert error is not None
                output.tables["table"].append({"image": image, "rule": rule, "steps": n, "error": error.item()})
        return output

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the slope of log |error| in log n for each image and rule."""
        rows: Rows = []
        for image in dict.fromkeys(row["image"] for row in results.rows()):
            for rule in RULES:
                errors = [r["error"] for r in results.rows(image=image, rule=rule)]
                if min(errors) > 0:
                    slope = np.polyfit(np.log(self.steps), np.log(errors), 1)[0]
                    rows.append({"image": image, "rule": rule, "slope": float(slope)})
        return {"order": rows}

    def claims(self, results: Results) -> list[Claim]:
        slope = Column(results.rows("order", rule="riemann"), "slope", "image")
        metric = "slope of log |sum of the map - (S(x) - S(x0))| in log n, Riemann sum"
        falls = Compared(metric, slope, below(0), null=0.0, control="an error that n does not change: 0")
        return replicated([Claim("A-4.4-a", [falls])], other_weights(results, results.rows("path")[0]["weights"]))

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows: list[PanelRow] = []
        for image in list(dict.fromkeys(row["image"] for row in results.rows("path")))[: self.rows]:
            path = results.rows("path", image=image)
            panels = [
                Panel(display.picture(p), "" if rows else f"$\\alpha$ = {row['alpha']:.2f}", f"S = {row['score']:.2f}")
                for p, row in zip(results.arrays[image], path, strict=True)
            ]
            rows.append(PanelRow(panels))
        config, path = results.config, results.rows("path")
        network = f"{config.model.name}, {path[0]['weights']}"
        caption = [
            f"{method_words(config)[0]} to the image, in {len(self.alphas)} steps; S: the score of the class that is explained",
            network,
        ]
        count = len({row["image"] for row in results.rows()})
        figure, (axes,) = plot(
            caption=[
                "Completeness error of the map of integrated gradients, relative to S(x) - S(x0): mean over "
                f"{plural(count, 'image')}",
                *method_words(config)[:1],
                network,
            ]
        )
        with styled():
            for rule, title in RULES.items():
                errors = [mean([r["error"] for r in results.rows(rule=rule, steps=n)]) for n in self.steps]
                axes.plot(self.steps, errors, "o-", label=title)
            axes.set(xscale="log", yscale="log", xlabel="gradients on the path", ylabel="error of completeness")
            axes.legend()
        return {"figure": panel_grid(rows, caption), "convergence": figure}
