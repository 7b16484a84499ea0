"""zhou2018, Table 1 and Figure 12: the time of a forward pass, and of an image's evidence by each algorithm.

A round measures each network once, so that other load on the machine affects all alike; figures show medians over rounds.
An image's time is derived, for all n = (H - k + 1)(W - k + 1) windows: 46,225 at 224x224 and k = 10. (The paper counts
224 x 224 = 50,176, its own loop 46,225.) With t for one pass, and t_draw and t_mean for one window's draws and its mean:

    PDA  n (S t + t_draw)        efficient  n (t + t_mean)        with the incremental engine  t_engine in place of t

The engine computes only what a window changes. Windows are measured evenly spread: those at the border are cheaper.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.zhou2018.evidence import learn
from vis.figures.layout import plot, styled
from vis.graph.modes import evaluating
from vis.models import Model
from vis.oldclaims import Claim, above, below, increasing
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows
from vis.system.device import hardware, synchronise
from vis.windows.engine import Incremental

PAPER_MS = {"alexnet": 342, "vgg16": 3301, "googlenet": 634}  # Table 1: a batch of 160 on a Tesla K80
PAPER_BATCH = 160
EXPENSIVE = "VGG-16 is especially computationally expensive in inference"
TEN = "our proposed modification results in a 10x speed-up"
AT_LEAST = (
    "Algorithm 2 has S times fewer forward passes to run [...]. Thus it is expected to be at least S times faster"
)
ENGINE = "Beyond the paper: the incremental engine passes a window faster than a full pass."
EXACT = "Beyond the paper: the engine's logits are those of full passes."
ALGORITHMS = {
    "PDA": lambda row: row["windows"] * (row["samples"] * row["forward"] + row["draw"]),
    "efficient": lambda row: row["windows"] * (row["forward"] + row["mean"]),
    "PDA, engine": lambda row: row["base"] + row["windows"] * (row["samples"] * row["engine"] + row["draw"]),
    "efficient, engine": lambda row: row["base"] + row["windows"] * (row["engine"] + row["mean"]),
}


class Speed(Experiment):
    """Measure seconds of passes and windows.

    models: {name: config node}. batch: images of a forward pass. rounds: measurements of each. windows: windows in a round; 0
    measures the forward pass alone. source: the paper's item.
    """

    def __init__(
        self, models: Mapping[str, Mapping[str, Any]], source: str, batch: int, rounds: int, windows: int
    ) -> None:
        self.models, self.source, self.batch, self.rounds, self.windows = models, source, batch, rounds, windows
        self._built: dict[str, Model] = {}

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"round": i} for i in range(self.rounds)]

    def compute(self, run: Run, task: Task) -> Output:
        rows: Rows = []
        for name, node in self.models.items():
            if name not in self._built:
                self._built[name] = run.model(node)
            rows.append({"network": name, "round": task["round"], **self._measure(run, self._built[name])})
        return Output(tables={"table": rows})

    def _measure(self, run: Run, model: Model) -> dict[str, Any]:
        """Measure seconds: `forward` of an image in a batch, `engine`, `draw` and `mean` of a window, `base` of the engine."""
        x = run.batch(model, [0]).x
        size = self.batch if run.config.batch_size == "auto" else min(self.batch, run.config.batch_size)
        images = x.repeat(size, 1, 1, 1).contiguous(memory_format=model.memory_format)
        passes = -(-self.batch // size)

        def timed(work: Callable[[], Any], warm: Callable[[], Any] | None = None) -> tuple[float, Any]:
            (warm or work)()
            synchronise(run.device)
            began = time.perf_counter()
            value = work()
            synchronise(run.device)
            return time.perf_counter() - began, value

        row: dict[str, Any] = {"side": model.input_size[0], "batch": size * passes, "device": hardware(run.device)}
        row["threads"] = torch.get_num_threads()
        with evaluating(model.net), torch.no_grad():
            seconds, _ = timed(lambda: [model.net(images) for _ in range(passes)], lambda: model.net(images[:2]))
            row["forward"] = seconds / (size * passes)
            if not self.windows:
                return row
            learn(run, model, False)
            (method,) = run.methods.values()
            found: Any = method
            every = found.windows(x)
            some = every[np.linspace(0, len(every) - 1, min(self.windows, len(every))).astype(int)]
            k, S, seed = found.window, found.samples, run.config.seed
            row["base"], engine = timed(lambda: Incremental(model.net, x, found.memory_gb))
            mean, contents = timed(lambda: found.learnt.means(x[0], some, k))
            draw, _ = timed(lambda: found.learnt.samples(x[0], some, k, S, seed))
            passed, logits = timed(lambda: engine.logits(some, contents), lambda: engine.logits(some[:4], contents[:4]))
            row |= {"windows": len(every), "samples": S, "mean": mean / len(some)}
            row |= {"draw": draw / len(some), "engine": passed / len(some)}
            row["error"] = self._error(model, x, some[::10], contents[::10], logits[::10])
        return row

    def _error(
        self, model: Model, x: torch.Tensor, at: torch.Tensor, contents: torch.Tensor, logits: torch.Tensor
    ) -> float:
        """Return the largest difference of the engine's logits from full passes, over the largest logit."""
        worst = 0.0
        for (top, left), content, found in zip(at.tolist(), contents, logits, strict=True):
            image, (h, w) = x.clone(), content.shape[1:]
            image[0, :, top : top + h, left : left + w] = content
            full = model.net(image)[0]
            worst = max(worst, float((full - found).abs().max() / full.abs().max()))
        return worst

    def claims(self, results: Results) -> list[Claim]:
        names = list(dict.fromkeys(r["network"] for r in results.rows()))
        forward = {
            n: [r["forward"] for r in results.rows(network=n)] for n in ("alexnet", "googlenet", "vgg16") if n in names
        }
        metric = "seconds of an image"
        found = [
            Claim(
                "expensive",
                EXPENSIVE,
                source="Table 1",
                metric=metric,
                criterion=increasing(),
                values=forward if len(forward) == 3 else {},
            )
        ]
        if not self.windows:
            return found
        speed = [_image(results, n, "PDA") / _image(results, n, "efficient") for n in names]
        least = min(r["samples"] for r in results.rows()) * (1 - 1e-9)
        engine = [_median(results, n, "forward") / _median(results, n, "engine") for n in names]
        whole = [_image(results, n, "PDA") / _image(results, n, "efficient, engine") for n in names]
        derived = "both derived from the seconds of a pass, a draw and a mean, one value a network"
        times = f"seconds of PDA over those of the efficient algorithm, {derived}"
        both = f"seconds of PDA over those of the efficient algorithm with the engine, {derived}"
        return [
            *found,
            Claim("ten", TEN, source=self.source, metric=times, criterion=above(9, each=True), values=speed, paper=10),
            Claim(
                "at_least",
                AT_LEAST,
                source="Section 2.1",
                metric=times,
                criterion=above(least, each=True),
                values=speed,
                paper=10,
            ),
            Claim(
                "engine",
                ENGINE,
                source=self.source,
                metric="seconds of a full pass over the engine's",
                criterion=above(1, each=True),
                values=engine,
                origin="project",
            ),
            Claim(
                "both",
                "Beyond the paper: both together.",
                source=self.source,
                metric=both,
                criterion=above(least, each=True),
                values=whole,
                origin="project",
            ),
            Claim(
                "exact",
                EXACT,
                source=self.source,
                metric="largest difference over the largest logit",
                criterion=below(1e-4, each=True),
                values=[r["error"] for r in results.rows()],
                origin="project",
            ),
        ]

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return Table 1 in the paper's layout, and the derived seconds of an image."""
        rows: Rows = []
        for name in dict.fromkeys(r["network"] for r in results.rows()):
            first = results.rows(network=name)[0]
            forward = _median(results, name, "forward")
            row = {"network": name, "input size": f"{first['side']}x{first['side']}", "device": first["device"]}
            row |= {
                f"forward of {PAPER_BATCH} images, ms": 1000 * PAPER_BATCH * forward,
                "measured with a batch of": first["batch"],
            }
            row |= {"paper (K80), ms": PAPER_MS.get(name)}
            row |= {"501,760 passes (50,176 windows), min": 501_760 * forward / 60}
            if self.windows:
                row |= {
                    f"{algorithm}, s ({first['windows']} windows)": _image(results, name, algorithm)
                    for algorithm in ALGORITHMS
                }
                row |= {"draws of all windows, s": first["windows"] * _median(results, name, "draw")}
                row |= {"means of all windows, s": first["windows"] * _median(results, name, "mean")}
            rows.append(row)
        return {"summary": rows}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        names = list(dict.fromkeys(r["network"] for r in results.rows()))
        first = results.rows()[0]
        where = (
            f"{first['device']}, {first['threads']} threads, {results.config.precision}, median of {self.rounds} rounds"
        )
        if not self.windows:
            sentence = f"{self.source}: forward pass of {PAPER_BATCH} images, measured with a batch of {first['batch']}; {where}"
            figure, (axes,) = plot(3.4, 2.2, [sentence, "Rings: the paper's Tesla K80"])
            with styled():
                axes.bar(names, [1000 * PAPER_BATCH * _median(results, n, "forward") for n in names], color="tab:blue")
                axes.plot(names, [PAPER_MS.get(n, np.nan) for n in names], "o", mfc="none", color="black")
                axes.set(yscale="log", ylabel="milliseconds")
            return {"figure": figure}
        counts = ", ".join(dict.fromkeys(f"{r['windows']:,}" for r in results.rows()))
        caption = [
            f"{self.source}: seconds of an image's evidence, derived for {counts} windows of which {self.windows} were measured, "
            f"{first['samples']} draws for PDA; {where}",
            "Engine: only what a window changes is computed, exactly. Rings: the paper's Tesla K80, derived from its Table 1 "
            "for 46,225 windows, without the drawing",
        ]
        figure, (axes,) = plot(5.6, 2.6, caption)
        with styled():
            for j, algorithm in enumerate(ALGORITHMS):
                seconds = [_image(results, n, algorithm) for n in names]
                places = [i + 0.2 * (j - 1.5) for i in range(len(names))]
                axes.bar(places, seconds, 0.18, label=algorithm, color=f"C{j}")
                for place, value, n in zip(places, seconds, names, strict=True):
                    axes.text(
                        place, 1.1 * value, f"{value:,.0f}" if value >= 10 else f"{value:.2g}", ha="center", fontsize=6
                    )
                    if j < 2 and n in PAPER_MS:
                        passes = 46_225 * (10 if algorithm == "PDA" else 1)
                        axes.plot(place, passes / PAPER_BATCH * PAPER_MS[n] / 1000, "o", mfc="none", color="black")
            axes.set(yscale="log", ylabel="seconds for an image")
            axes.set_xticks(range(len(names)), names)
            axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
        return {"figure": figure}


def _median(results: Results, network: str, column: str) -> float:
    return float(np.median([r[column] for r in results.rows(network=network)]))


def _image(results: Results, network: str, algorithm: str) -> float:
    """Return the seconds of an image by the algorithm's formula, from the medians of its parts."""
    rows = results.rows(network=network)
    parts = {
        c: _median(results, network, c) for c in ("forward", "base", "mean", "draw", "engine", "windows", "samples")
    }
    return float(ALGORITHMS[algorithm](parts)) if rows else float("nan")
