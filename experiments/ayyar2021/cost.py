"""ayyar2021, section 7: "gradient-based methods including Grad-CAM have longer computation times and FEM was faster".

Seconds per image, forward pass included. Each round measures every method once (a slow one only in the first round), in an order
that rotates from round to round. Beside the seconds stands a method's work: its convolutions and matrix products, counted by
torch, in units of a forward pass; a backward pass to the image is about one.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from experiments.ayyar2021.similarity import GRADIENTS
from experiments.ayyar2021.verdicts import POSITIVE
from vis.claims import Claim, Column, Compared, spread
from vis.figures.layout import plot, styled
from vis.methods import Method, explain_all
from vis.methods.forward import NotApplicable
from vis.runner.experiment import Experiment, Load, Run, Task, method_title
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows
from vis.system.device import hardware, synchronise

LONG = 50  # passes: a slower method is measured in one round only, without a separate run for the counter


class Cost(Experiment):
    """Measure the seconds and the work of each method. rounds: measurements of a method, each on the next image."""

    metrics = ("seconds",)
    series = "method"

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self._passes: dict[str, float] = {}  # of the methods this process has called; a first call includes setup

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"round": i, "images": [i % len(run.dataset)]} for i in range(self.rounds)]

    def load(self, run: Run, task: Task) -> Load:
        passes = sum(each for each in run.explainer.passes_of.values() if each <= LONG or not task["round"])
        return Load(run.config.model, run.config.seed, 1, passes, 0)

    def compute(self, run: Run, task: Task) -> Output:
        model, number = run.model(), task["round"]
        batch = run.batch(model, task["images"])
        targets = run.units_of(model, run.targets[0], batch.names)
        output = Output(tables={"table": []})
        names = list(run.methods)

        def timed(method: Method) -> float:
            began = time.perf_counter()
            explain_all({"": method}, model.net, batch.x, [targets], run.preprocess(model))
            synchronise(run.device)
            return time.perf_counter() - began

        with torch.no_grad(), FlopCounterMode(display=False) as one_pass:
            model.net(batch.x)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            method = run.methods[name]
            long = run.explainer.passes_of.get(name, 1) > LONG
            if long and number:
                continue
            row: dict[str, Any] = {"method": name, "round": number, "image": batch.names[0]}
            try:
                run.explainer.prepare(name, model, batch.x, [targets])  # not part of an image's time
                method.layers(model.net, batch.x)  # nor is the search for the layer, once for each network
                if name not in self._passes:  # counts the passes; warms up fast methods
                    with FlopCounterMode(display=False) as counter:
                        row["seconds"] = timed(method)
                    self._passes[name] = counter.get_total_flops() / one_pass.get_total_flops()
                if not long:
                    row["seconds"] = timed(method)
            except NotApplicable as error:  # the table and the caption say so
                output.tables.setdefault("left_out", []).append({"method": name, "why": str(error)})
                continue
            row |= {"passes": self._passes[name], "device": hardware(run.device), "threads": torch.get_num_threads()}
            row["weights"] = model.weights
            output.tables["table"].append(row)
        return output

    def _seconds(self, results: Results, method: str) -> dict[int, float]:
        """Return {round: seconds} for the rounds in which the method was measured."""
        return {row["round"]: row["seconds"] for row in results.rows(method=method)}

    def claims(self, results: Results) -> list[Claim]:
        rows = results.rows("lead")
        fastest = rows[0]["method"] if rows else "none"
        words = f"log2 of the seconds of the fastest gradient-based method, {fastest}, over FEM's, in each round"
        lead = Compared(words, Column(rows, "lead", "round"), POSITIVE, null=0.0, control="FEM against itself: 0")
        return [Claim("A-7-i", [lead])]

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return a row for each method, the fastest first, and FEM's lead over the fastest gradient-based method by round."""
        rows: Rows = []
        seconds = {
            method: self._seconds(results, method) for method in dict.fromkeys(r["method"] for r in results.rows())
        }
        for method, of in seconds.items():
            row: dict[str, Any] = {
                "method": method_title(results.config, method),
                "seconds": float(np.median([*of.values()])),
            }
            row |= {"std": spread([*of.values()]) if len(of) > 1 else None, "rounds": len(of)}
            rows.append(row | {"passes": results.rows(method=method)[0]["passes"]})
        others = {m: float(np.median([*seconds[m].values()])) for m in (*GRADIENTS, "gradcam") if m in seconds}
        fastest = min(others, key=others.__getitem__, default="")
        lead = [{"round": number, "method": fastest, "lead": math.log2(seconds[fastest][number] / each)}
                for number, each in seconds.get("fem", {}).items() if fastest]  # fmt: skip
        return {"summary": sorted(rows, key=lambda row: row["seconds"]), "lead": lead}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, first = results.config, results.rows()[0]
        rows = self.summaries(results)["summary"]
        changed = {
            m: config.methods[m].get("stride") for m in config.methods if config.methods[m].get("stride", 1) != 1
        }
        out = {row["method"]: row["why"] for row in results.rows("left_out")}
        caption = [
            f"Seconds of one image, median of {self.rounds} round{'s' * (self.rounds > 1)} (one for a method of more than {LONG} "
            "passes), dots: rounds; x: work in forward passes, a backward pass is about one",
            f"Windows not at every pixel: {', '.join(f'{m} every {s}' for m, s in changed.items())}" if changed else "",
            *(f"{method} is left out: {why}" for method, why in out.items()),
            f"{first['device']}, {first['threads']} thread{'s' * (first['threads'] > 1)}, {config.precision}; "
            f"{config.model.name}, {first['weights']}",
        ]
        figure, (axes,) = plot(5.6, 0.6 + 0.17 * len(rows), caption)
        titles = {method_title(config, method): method for method in config.methods}
        with styled():
            for y, row in enumerate(reversed(rows)):
                method = titles[row["method"]]
                axes.barh(y, row["seconds"], 0.7, color="C1" if method == "fem" else "C0")
                seconds = [*self._seconds(results, method).values()]
                axes.plot(seconds, [y] * len(seconds), ".", color="black", alpha=0.4, markersize=2)
                passes = f"{row['passes']:,.0f}" if row["passes"] >= 100 else f"{row['passes']:.3g}"
                text = f"  {row['seconds']:.3g} s, {passes}x"
                axes.text(max(seconds), y, text, va="center", fontsize=6)
            axes.set_yticks(range(len(rows)), [row["method"] for row in reversed(rows)])
            axes.set(xscale="log", xlabel="seconds for an image", ylim=(-0.6, len(rows) - 0.4))
            low, high = axes.get_xlim()
            axes.set_xlim(low, high * (high / low) ** 0.2)
        return {"figure": figure}
