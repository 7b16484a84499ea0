"""zhou2018, Table 1 and Figure 12: what their experiments of time have in common.

A round measures each network once, so that other load on the machine affects all alike. (The paper counts 224 x 224 = 50,176
windows for the passes of Table 1, its own loop (H - k + 1)(W - k + 1) = 46,225.)
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vis.graph.modes import evaluating
from vis.models import Model
from vis.runner.experiment import Experiment, Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.system.device import hardware, synchronise

PAPER_MS = {"alexnet": 342, "vgg16": 3301, "googlenet": 634}  # Table 1: a batch of 160 on a Tesla K80
PAPER_BATCH, PAPER_WINDOWS, SAMPLES = 160, 224 * 224, 10


class Speed(Experiment):
    """Time networks. models: {name: config node, or null for none}. source: the paper's item. batch: images of a pass."""

    def __init__(self, models: Mapping[str, Mapping[str, Any] | None], source: str, batch: int, rounds: int) -> None:
        self.models = {name: node for name, node in models.items() if node is not None}
        self.source, self.batch, self.rounds = source, batch, rounds
        self._built: dict[str, Model] = {}

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"round": i} for i in range(self.rounds)]

    def measured(self, run: Run, model: Model, x: Tensor) -> dict[str, Any]:
        """Return the seconds of a round for a network and an image x [1, C, H, W]."""
        raise NotImplementedError

    def counted(self, run: Run, model: Model, x: Tensor) -> dict[str, Any]:
        """Return the counts of a network, see `experiments.zhou2018.counts`."""
        raise NotImplementedError

    def compute(self, run: Run, task: Task) -> Output:
        output = Output(tables={"table": [], "counts": []})
        for name, node in self.models.items():
            if name not in self._built:
                self._built[name] = run.model(node)
            model, where = self._built[name], {"network": name, "round": task["round"]}
            with evaluating(model.net):
                x = run.batch(model, [0]).x
                row = where | {"side": model.input_size[0], "device": hardware(run.device)}
                row["threads"] = torch.get_num_threads()
                output.tables["table"].append(row | self.measured(run, model, x))
                if task["round"] == 0:
                    output.tables["counts"].append({"network": name} | self.counted(run, model, x))
        return output

    def differences(self, results: Results) -> list[str]:
        """Say how the hardware and the batch differ from the paper's."""
        first = results.rows()[0]
        batch = [f"batches of {first['batch']} instead of {PAPER_BATCH}"] * (first["batch"] != PAPER_BATCH)
        return [f"{first['device']} with PyTorch instead of a Tesla K80 with Caffe", *batch]

    def where(self, results: Results) -> str:
        """Say where and how often the seconds were measured."""
        first = results.rows()[0]
        threads, rounds = plural(first["threads"], "thread"), plural(self.rounds, "round")
        return f"{first['device']}, {threads}, {results.config.precision}, mean of {rounds}"


def timed(x: Tensor, work: Callable[[], Any], warm: Callable[[], Any] | None = None) -> tuple[float, Any]:
    """Return the seconds of `work` on the device of x, and what it returns; `warm`, by default `work`, runs before."""
    (warm or work)()
    synchronise(x.device)
    began = time.perf_counter()
    value = work()
    synchronise(x.device)
    return time.perf_counter() - began, value


def networks(results: Results) -> list[str]:
    """Return the names of the networks."""
    return list(dict.fromkeys(r["network"] for r in results.rows()))


def mean_of(results: Results, network: str, column: str) -> float:
    """Return the mean of a column over the rounds of a network."""
    return float(np.mean([r[column] for r in results.rows(network=network)]))
