"""zhou2018, Table 1: seconds of a forward pass, and the layers of the networks."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.zhou2018 import counts
from experiments.zhou2018.speed import PAPER_BATCH, PAPER_MS, PAPER_WINDOWS, SAMPLES, Speed, mean_of, networks, timed
from vis.claims import Claim, Column, Compared, above, at_small_sizes, exactly, mean_and_spread, near, replicated
from vis.figures.layout import plot, styled
from vis.models import Model
from vis.runner.experiment import Run
from vis.store.run_folder import Results
from vis.store.tables import Rows


class Table1(Speed):
    """Time the forward passes of networks."""

    def measured(self, run: Run, model: Model, x: Tensor) -> dict[str, Any]:
        """Measure the seconds of an image in a batch."""
        size = self.batch if run.config.batch_size == "auto" else min(self.batch, run.config.batch_size)
        images = x.repeat(size, 1, 1, 1).contiguous(memory_format=model.memory_format)
        passes = -(-self.batch // size)
        with torch.no_grad():
            seconds, _ = timed(x, lambda: [model.net(images) for _ in range(passes)], lambda: model.net(images[:2]))
        return {"forward": seconds / (size * passes), "batch": size * passes}

    def counted(self, run: Run, model: Model, x: Tensor) -> dict[str, Any]:
        return counts.of_network(model.net, x)

    # --- from what is stored ------------------------------------------------------------------------------------------

    def claims(self, results: Results) -> list[Claim]:
        timed_claims = replicated(_of_passes(results), self.differences(results), at_small_sizes(results.config))
        return [*timed_claims, *_of_layers(results)]

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return ours beside the paper's, ratios by round, and what the paper's number of passes would take."""
        summary: Rows = []
        for n in networks(results):
            rows = results.rows(network=n)
            ms = [1000 * PAPER_BATCH * r["forward"] for r in rows]
            row = {"network": n, "input size": f"{rows[0]['side']}x{rows[0]['side']}", "device": rows[0]["device"]}
            row |= {f"ms of {PAPER_BATCH} images": mean_and_spread(ms), "paper (K80), ms": PAPER_MS.get(n)}
            row |= {"measured with a batch of": rows[0]["batch"]}
            minutes = [PAPER_WINDOWS * SAMPLES * r["forward"] / 60 for r in rows]
            row |= {"minutes of 501,760 passes": mean_and_spread(minutes)}
            row |= {"paper (K80), min": 172 if n == "vgg16" else None}
            summary.append(row)
        rounds: Rows = []
        for i in dict.fromkeys(r["round"] for r in results.rows()):
            of = {r["network"]: r["forward"] for r in results.rows(round=i)}
            if set(PAPER_MS) <= of.keys():
                row = {"round": i} | {f"{n} / alexnet": of[n] / of["alexnet"] for n in ("vgg16", "googlenet")}
                rounds.append(row | {"vgg16 / next": of["vgg16"] / max(of["alexnet"], of["googlenet"])})
        batches = {"minutes": PAPER_WINDOWS * SAMPLES, "of 46,225 windows": 46_225 * SAMPLES}
        seconds = PAPER_MS["vgg16"] / 1000 / PAPER_BATCH
        inference = {"network": "vgg16"} | {name: passes * seconds / 60 for name, passes in batches.items()}
        return {"summary": summary, "rounds": rounds, "inference": [inference]}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        names, first, where = networks(results), results.rows()[0], self.where(results)
        sentence = (
            f"{self.source}: forward pass of {PAPER_BATCH} images, measured with a batch of {first['batch']}; {where}"
        )
        misprints = (
            "Rings: the paper's Tesla K80. Its 501,760 passes count 224 x 224 windows, its own loop has 215 x 215; its "
            "VGG-16 has 4 max-poolings, the network 5"
        )
        figure, (axes,) = plot(3.4, 2.2, [sentence, misprints])
        with styled():
            axes.bar(names, [1000 * PAPER_BATCH * mean_of(results, n, "forward") for n in names], color="tab:blue")
            axes.plot(names, [PAPER_MS.get(n, np.nan) for n in names], "o", mfc="none", color="black")
            axes.set(yscale="log", ylabel="milliseconds")
        return {"figure": figure}


def _of_passes(results: Results) -> list[Claim]:
    names = networks(results)
    if set(PAPER_MS) - set(names):
        return [Claim(id_, [], reason=f"it compares {', '.join(PAPER_MS)}") for id_ in ("Z-2-e", "Z-2-f")]
    counts = {r["network"]: r["operations"] for r in results.rows("counts")}
    ratios = []
    for name in ("vgg16", "googlenet"):
        paper = PAPER_MS[name] / PAPER_MS["alexnet"]
        ratios.append(
            Compared(
                f"seconds of {name} over AlexNet's (paper {paper:.2f})",
                Column(results.rows("rounds"), f"{name} / alexnet", "round"),
                near(paper, 0.25 * paper, ours="a quarter of the paper's ratio is ours"),
                null=counts[name] / counts["alexnet"],
                control="the ratio of their operations",
            )
        )
    expensive = Compared(
        "seconds of VGG-16 over the next slowest", Column(results.rows("rounds"), "vgg16 / next", "round"),
        above(2, ours="twice is ours"), null=1.0, control="networks that take equally long",
    )  # fmt: skip
    return [
        Claim("Z-2-e", ratios, paper=" / ".join(f"{PAPER_MS[n]} ms" for n in ("alexnet", "vgg16", "googlenet"))),
        Claim("Z-2-f", [expensive], paper=round(3301 / 634, 1)),
    ]


def _of_layers(results: Results) -> list[Claim]:
    inference = Compared(
        "minutes of 501,760 passes at the paper's 3.301 s for 160 (its number of samples is judged apart)",
        Column(results.rows("inference"), "minutes", "network"), exactly(172, within=1.72),
        null=Column(results.rows("inference"), "of 46,225 windows", "network"), control="10 samples of 46,225 windows",
    )  # fmt: skip
    layers = [
        Compared(
            f"{name.replace('_', '-')} of VGG-16", Column(results.rows("counts", network="vgg16"), name, "network"),
            exactly(count), null=Column(results.rows("counts", network="alexnet"), name, "network"), control="AlexNet",
        )
        for name, count in (("weight_layers", 16), ("max_poolings", 4))
    ]  # fmt: skip
    return [Claim("Z-2-c", [inference], paper=172), Claim("Z-3-r", layers)]
