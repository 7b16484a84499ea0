"""`--dry-run`: list what a run would compute and estimate its cost on this machine, to about a factor of two.

Operations are counted on a network without weights (torch's meta device). The speed of this machine, for operations and
for random weights, is measured in a fraction of a second.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.overrides import TorchFunctionMode

from vis.config.check import check
from vis.config.compose import compose_config
from vis.config.presets import replicated, with_a_way_out
from vis.errors import Lacking, UserError
from vis.models import skeleton
from vis.models.random_weight import RandomWeight, parallel
from vis.models.streamed import StreamedLinear
from vis.runner.execute import build_experiment, prepare, tasks_of
from vis.runner.experiment import Load, Run
from vis.runner.remarks import plural
from vis.system.console import duration
from vis.system.device import synchronise

BASE_GB = 0.7  # Python with torch, before any network


@dataclass(frozen=True)
class Cost:
    """The cost of one network and one image.

    flops: operations of a forward pass. weight_bytes, activation_bytes, image_bytes: memory. streamed_forward,
    streamed_backward: random numbers that streamed layers generate in the forward pass and in each backward pass.
    """

    name: str
    flops: float
    weight_bytes: float
    activation_bytes: float
    image_bytes: float
    streamed_forward: float
    streamed_backward: float


def dry_run(config: DictConfig) -> str:
    """Return the plan and its estimated cost as text. Raises UserError for mistakes that are found without running."""
    run, tasks, loads = _planned(config)
    lines = [f"experiment {config.experiment.name}: {plural(len(tasks), 'task')} on {run.device}"]
    if config.get("methods"):
        lines.append(f"methods    {', '.join(config.methods)}")
    if loads is None:
        return "\n".join([*lines, "cost       not estimated for this experiment"]) + "\n"
    costs = costs_of(loads)
    for cost in costs.values():
        streamed = f", {cost.streamed_forward / 1e9:.2f} G more streamed" if cost.streamed_forward else ""
        lines.append(
            f"model      {cost.name}: {cost.weight_bytes / 4e6:.1f} M weights{streamed}, {cost.flops / 1e9:.2f} GFLOP forward"
        )
    seconds, memory, disk = total(loads, costs, run.device)
    lines.append(f"estimate   {duration(seconds)}, {memory:.1f} GB of memory, {disk / 1e6:.0f} MB on disk")
    return "\n".join(lines) + "\n"


def estimated_seconds(config: DictConfig) -> float | None:
    """Return the estimated seconds of a run; None if its experiment does not estimate its cost. Raises UserError."""
    run, _, loads = _planned(config)
    return None if loads is None else total(loads, costs_of(loads), run.device)[0]


def _planned(config: DictConfig) -> tuple[Run, list[dict[str, Any]], list[Load] | None]:
    prepare(config)
    experiment, run = build_experiment(config), Run(config)
    tasks = tasks_of(experiment, run)
    loads = [load for task in tasks if (load := experiment.load(run, task))]
    return run, tasks, loads if len(loads) == len(tasks) else None


def plans(jobs: list[list[str]], config_dirs: list[Path]) -> Iterator[str]:
    """Yield the plan of each job. Raises UserError.

    A single job with missing weights or data is an error; among several, its message stands in place of its plan.
    """
    for job in jobs:
        try:
            config = compose_config(job, config_dirs)
            replica = replicated(config, job)
            try:
                check(config)
                yield dry_run(config)
            except Lacking as error:
                if replica is None:
                    raise with_a_way_out(error, config) from error
                yield f"{error.reason.rstrip('.')}. The run is then a replication:\n{dry_run(replica)}"
        except Lacking as error:
            if len(jobs) == 1:
                raise
            yield f"{job[0]}: {error}\n"


def estimates(jobs: list[list[str]], config_dirs: list[Path]) -> tuple[list[float | None], list[bool]]:
    """The estimated seconds of each job, None where its experiment estimates none, and whether it has to run alone.

    Raises UserError for a mistake in one of them.
    """
    seconds: list[float | None] = []
    alone = []
    for job in jobs:
        config: Any = {}
        try:
            config = compose_config(job, config_dirs)
            try:
                check(config)
            except Lacking:
                config = replicated(config, job) or config
            seconds.append(estimated_seconds(config))
        except Lacking:  # such an item fails, and the others run
            seconds.append(0.0)
        except UserError:
            raise
        except Exception:  # in the user's own code; the run of this item will say so
            seconds.append(None)
        alone.append(bool(config and config.experiment.get("alone")))
    return seconds, alone


def costs_of(loads: Iterable[Load]) -> dict[str, Cost]:
    """Return the cost of each model of the loads."""
    return {model: count(load) for model, load in {str(load.model): load for load in loads}.items()}


class _Operations(TorchFunctionMode):
    """Counts the operations of convolutions and matrix products, two for each multiply-add; does not compute the large ones.

    torch's FlopCounterMode and its meta device would import for seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0.0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        out = self._shaped(name, args) if not kwargs else None
        if out is None:
            out = function(*args, **(kwargs or {}))
        if name.startswith("conv_transpose"):
            self.count += 2.0 * args[0].numel() * args[1][0].numel()
        elif name.startswith("conv"):
            self.count += 2.0 * out.numel() * args[1][0].numel()
        elif name in ("linear", "matmul", "__matmul__", "bmm", "mm", "addmm"):
            self.count += 2.0 * out.numel() * args[-1 if name == "addmm" else 0].shape[-1]
        elif "multi_head_attention" in name:  # four projections, and products of all pairs of tokens
            width = args[0].shape[-1]
            self.count += args[0].numel() * (8.0 * width + 4.0 * args[0].numel() / width)
        elif name == "scaled_dot_product_attention":
            self.count += 4.0 * out.numel() * args[1].shape[-2]
        return out

    @staticmethod
    def _shaped(name: str, args: Any) -> torch.Tensor | None:
        """Return zeros of the output's shape for a convolution with numbers as its padding, or a dense layer."""
        if name == "linear":
            return torch.zeros(*args[0].shape[:-1], len(args[1]))
        if name == "conv2d" and len(args) == 7 and not isinstance(args[4], str):
            x, weight, _, stride, padding, dilation, _ = args
            sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
            return torch.zeros(
                len(x), len(weight), *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
            )
        return None


def count(load: Load) -> Cost:
    """Count the cost of one image from the shapes in the network."""
    net, channels, (height, width) = skeleton(load.model)
    streamed = [m for m in net.modules() if isinstance(m, StreamedLinear)]
    forward = sum(m.in_features * m.out_features for m in streamed)
    # The gradient of one logit needs one row of the last layer, but all rows of earlier layers.
    backward = sum(
        m.in_features * m.out_features for m in streamed[: -1 if streamed and _is_last(net, streamed[-1]) else None]
    )
    activations = 0.0

    def add(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal activations
        if isinstance(output, torch.Tensor) and not list(module.children()):
            activations += 4.0 * output.numel()

    for name, module in list(net.named_modules()):
        if isinstance(module, StreamedLinear):
            net.set_submodule(name, nn.Linear(module.in_features, module.out_features, bias=False, device="meta"))
    for module in net.modules():
        module.register_forward_hook(add)
    weights = 4.0 * (sum(p.numel() for p in net.parameters()) - forward)  # streamed layers became dense ones above
    net._apply(lambda t: torch.zeros((), dtype=t.dtype).expand(t.shape))
    with _Operations() as operations, torch.no_grad():
        net(torch.zeros(1, channels, height, width))
    name = str(load.model.get("name") or load.model.get("_target_"))
    return Cost(name, operations.count, weights, activations, 4.0 * channels * height * width, forward, backward)


def _is_last(net: nn.Module, layer: nn.Module) -> bool:
    return [m for m in net.modules() if hasattr(m, "out_features")][-1] is layer


def total(loads: Iterable[Load], costs: dict[str, Cost], device: torch.device) -> tuple[float, float, float]:
    """Estimate (seconds, GB of memory, bytes on disk) of all tasks."""
    rate, draw = _flops_per_second(device), _seconds_per_random_number()
    seconds, memory, disk = 3.0, 0.0, 1e6
    built = None
    for load in loads:
        cost = costs[str(load.model)]
        seconds += load.images * cost.flops * (1 + load.passes) / rate
        seconds += draw * (cost.streamed_forward + load.passes * cost.streamed_backward)
        if built != (load.model, load.seed):
            seconds, built = seconds + draw * cost.weight_bytes / 4, (load.model, load.seed)
        memory = max(memory, cost.weight_bytes + load.images * cost.activation_bytes * 1.5)
        disk += load.stored * cost.image_bytes
    return seconds, BASE_GB + memory / 1e9, disk


@cache
def _flops_per_second(device: torch.device) -> float:
    conv = nn.Conv2d(128, 128, 3, padding=1).to(device).to(memory_format=torch.channels_last)
    images = torch.zeros(1, 128, 56, 56, device=device).to(memory_format=torch.channels_last)

    def work() -> None:
        with torch.no_grad():
            conv(images)
        synchronise(device)

    return 2 * 9 * 128 * 128 * 56 * 56 / _fastest(work)


@cache
def _seconds_per_random_number() -> float:
    weight = RandomWeight("truncated_normal", 0.1, 0, "estimate", 64, 1 << 14, 64)
    tiles = [(r, c) for r in weight.row_tiles() for c in weight.column_tiles()] * (os.cpu_count() or 1)
    return _fastest(lambda: parallel(lambda tile: weight.block(*tile), tiles)) / (len(tiles) * (1 << 18))


def _fastest(work: Callable[[], Any]) -> float:
    """Run the work four times and return the seconds of the fastest run."""
    times = []
    for _ in range(4):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
