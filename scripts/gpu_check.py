"""Check in eight minutes that a GPU agrees with the CPU, how fast it is, and how much of its memory items take.

python scripts/gpu_check.py [--device cuda] [--seconds 470] [--folder docs/gpu]
python scripts/gpu_check.py --store FOLDER      (FOLDER: of `vis-run experiment=reproduce preset=small device=cpu`, finished)

The page has five parts, each with a share of the time (what one leaves, the others get); it lists what there was no time for.

1. Methods, the engine, streamed layers: the error of a row on the device against the CPU in this process.
2. At the same time in other processes, all items of the papers at preset=small, against the CPU's stored numbers in
   docs/gpu/cpu.json (`scripts/gpu_items.py`, written by --store): verdicts equal, maps within the tolerance. Items on networks
   that the project trains are compared by eye: each device trains its own.
3. `scripts/bench.py` on the device.
4. Peak memory of the items at the papers' size: of the task of each that takes most, the largest items first.
5. Figure 7 of nie2018 on 2,000 images, extrapolated to 10,000 and 50,000.

Nothing is downloaded. Weights are those in torch's cache: the CPU's file has SqueezeNet's. Without these, and with others, items
are not compared.

The error of a row is ||device - CPU|| / ||CPU|| of a map of the same image, network and target; for the engine, that of the
changes windows make in the logits, against full passes on the device. Exit code 0: all rows that ran are within tolerance;
1: some are not, or a part failed; 2: the device does not exist.

The tolerances were derived before any measurement, each about three times the expected error:
- The devices sum in different orders, with a relative error of e = 3e-7 in a layer. TF32 rounds factors to 11 bits: e = 3e-4.
  After l layers it is e sqrt(l). The networks have about L = 17.
- gradient: a ReLU whose input is within this error of 0 can switch between the devices, and its share of the gradient appears
  or vanishes. This affects 0.4 e sqrt(l) of a layer, half of which is active: sqrt(sum_l 0.8 e sqrt(l)) = sqrt(0.53 e L^1.5),
  3e-3 and 0.11. In mixed precision the ReLUs' signs are float32's, and the backward pass adds TF32's e sqrt(L) = 1e-3, several
  times that where contributions cancel.
- features: those of the last layer, e sqrt(L) = 1e-6 and 1e-3, and a gradient through at most two ReLUs after it:
  sqrt(2 * 0.8 e sqrt(L)) = 1.4e-3 and 0.044.
- windows: differences of logits are about 100 times smaller than the logits: 100 e sqrt(L) = 1e-4 and 0.12.
- optimised: Adam's first steps follow the signs of the gradient. A fraction of 0.8 times its error is so near 0 that signs
  differ: sqrt(0.8 * 3e-3) = 0.05. In TF32 this is 0.3, and three times that would check nothing.
- engine: as windows, 1e-3. In bfloat16 both factors of each of L layers err by 2^-9 / sqrt(3): 0.007; an eighth in float16.
- The CPU generates weights and computes streamed products: equal. Against a dense layer of n = 40,000 inputs with these
  weights: 6e-8 sqrt(n) / 2 = 6e-6. For an item of a paper, no verdict may differ.
"""

import argparse
import gc
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import gpu_items
import torch
from bench import evenly, hardware, with_windows
from soak import make_images
from torch import Tensor, nn
from torch.utils import collect_env

import vis.system.device
from vis.config.compose import compose_config, register
from vis.config.options import options, slug
from vis.errors import UserError
from vis.graph.modes import evaluating
from vis.methods import NotApplicable
from vis.methods.perturbation import windows_of
from vis.models import Model
from vis.models.initialise import initialise
from vis.models.streamed import StreamedLinear
from vis.runner.execute import described, prepare
from vis.runner.experiment import Run, method_class
from vis.store.run_folder import RunFolder
from vis.system.files import write_text
from vis.windows.engine import Incremental

ROOT = Path(__file__).resolve().parent.parent

RANDOM = ("model.weights=null", "model.init=default")
NETWORKS = {
    "vgg16": ("model=vgg16_random", "model.init=kaiming_normal", "model.preprocess=imagenet"),
    "resnet18": ("model=torchvision", "model.arch=resnet18", *RANDOM),
    "squeezenet1_1": ("model=torchvision", "model.arch=squeezenet1_1", *RANDOM),
    "cnn_mnist": ("model=cnn_mnist", *RANDOM, "dataset=digits"),  # for adversarial_generators, which needs labels
}
TARGETS = {"cnn_mnist": 3}  # one of the two classes it is fitted to; for other networks, the CPU's largest logit
METHODS = list(options("method"))
SMALLER = {  # parameters that shorten slow methods
    "adversarial_generators": ("steps=5",),
    "expected_gradients": ("samples=2",),
    "guided_ig": ("steps=8",),
    "integrated_gradients": ("steps=8",),
    "kernel_shap": ("samples=64",),
    "lime": ("samples=32",),
    "meaningful_perturbation": ("iterations=10", "l1=0"),  # with l1, the mask does not change on random weights
    "occlusion": ("stride=10",),
    "opticam": ("iterations=5",),
    "pda": ("stride=10", "samples=2"),
    "pda_fast": ("stride=10",),
    "rise": ("samples=32",),
    "smoothgrad": ("samples=8",),
}
SIDES = {  # side of the image crop that slow methods get
    **dict.fromkeys(("kernel_shap", "lime", "occlusion", "pda", "pda_fast", "rise"), 96),
    "scorecam": 64,
}
TOLERANCES: dict[str, dict[str, float]] = {
    "gradient": {"float32": 1e-2, "mixed": 2e-2, "tf32": 0.3},
    "features": {"float32": 4e-3, "mixed": 2e-2, "tf32": 0.15},
    "windows": {"float32": 1e-3, "mixed": 1e-3, "tf32": 0.4},
    "optimised": {"float32": 0.15, "mixed": 0.15},
}
KINDS = {  # kinds of methods, by name or else by module
    **dict.fromkeys(
        ("backprop", "gradients", "guided_ig", "relevance", "deeplift", "fullgrad", "pda_gradient"), "gradient"
    ),
    **dict.fromkeys(("cam", "fem"), "features"),
    **dict.fromkeys(("perturbation", "superpixels", "rise"), "windows"),
    **dict.fromkeys(("opticam", "meaningful_perturbation", "generators"), "optimised"),
}
ENGINE = {None: 1e-3, torch.bfloat16: 2e-2, torch.float16: 2.5e-3}

ITEMS = ("experiment=reproduce", "preset=small")  # what --store was given, but for the device
CPU = ROOT / "docs" / "gpu" / "cpu.json"
OPTIMISED = ("ayyar2021/attacks", "ayyar2021/adversarial", "zhou2018/activation_maximisation", "zhou2018/generator")
BENCH = (str(ROOT / "scripts" / "bench.py"),)
FIGURE7 = ("experiment=nie2018/figure7", "seeds=1", "batch_size=32")
PHOTOGRAPHS = 2000
SHARES = {
    "items": 0.55,
    "bench": 0.24,
    "memory": 0.11,
    "figure7": 0.1,
}  # of the time; methods and engine have that of items
TASK_SECONDS = 8.0  # at most, of a task at the papers' size

Result = TypeVar("Result")


class Meter:
    """Measure seconds and peak memory of a row on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.megabytes = device, math.nan, math.nan

    def __call__(self, work: Callable[[], Result]) -> Result:
        vis.system.device.reset_peak_memory(self.device)
        vis.system.device.synchronise(self.device)
        start = time.perf_counter()
        try:
            result = work()
            vis.system.device.synchronise(self.device)
        finally:
            self.seconds = time.perf_counter() - start
            self.megabytes = 1000 * vis.system.device.peak_memory_gb(self.device)
        return result


@dataclass
class Row:
    """One line: what is measured, the tolerance, and a function that returns the error, or words if there is none."""

    what: str
    tolerance: float
    measure: Callable[[Meter], float | str]


def error(found: Tensor, wanted: Tensor) -> float:
    """Return ||found - wanted|| / ||wanted||; 0 if they are equal, even if both are 0."""
    found, wanted = found.detach().cpu().double(), wanted.detach().cpu().double()
    if found.shape != wanted.shape:
        raise ValueError(f"{list(found.shape)} on the device, {list(wanted.shape)} on the CPU")
    return 0.0 if torch.equal(found, wanted) else ((found - wanted).norm() / wanted.norm()).item()


class Check:
    """The rows of a device. folder: for temporary outputs."""

    def __init__(self, device: str, folder: Path) -> None:
        self.name, self.folder = device, folder
        self.device = self.run_of(next(iter(NETWORKS)), device).device
        self.wanted = cache(partial(self.map, device="cpu", precision="float32"))

    @cache  # noqa: B019  # one instance per process
    def run_of(self, network: str, device: str) -> Run:
        small = [f"methods.{name}.{word}" for name in METHODS for word in SMALLER.get(name, ())]
        words = [f"method=[{','.join(METHODS)}]", f"device={device}", f"outputs={self.folder / slug(device)}", *small]
        return Run(compose_config([*NETWORKS[network], *words]))

    def subject(self, network: str, device: str, precision: str = "float32") -> tuple[Run, Model, Tensor]:
        """Return a run, its model on a device in a precision, and one image."""
        run = self.run_of(network, device)
        run.config.precision = precision
        prepare(run.config)
        return run, run.model(), run.batch(run.model(), [0]).x

    @cache  # noqa: B019
    def target(self, network: str) -> int:
        _, model, x = self.subject(network, "cpu")
        with torch.no_grad():
            return TARGETS.get(network, int(model.net(x).argmax()))

    def rows(self) -> Iterator[Row]:
        """Yield all rows, the most important first."""
        first, *others = NETWORKS
        for network in NETWORKS:
            yield Row(f"weights, {network}", 0.0, partial(self.weights, network))
        yield from self.methods(first, "float32")
        yield from self.engine(first)
        yield Row("streamed layer and its gradient", 0.0, self.streamed)
        yield Row("streamed layer, against a dense one on the device", 2e-5, self.streamed_as_dense)
        for network in others:
            yield from self.methods(network, "float32")
            yield from self.engine(network)
        for precision in ("tf32", "mixed"):
            for network in NETWORKS:
                yield from self.methods(network, precision)

    def methods(self, network: str, precision: str) -> Iterator[Row]:
        for name in METHODS:
            module = method_class(self.run_of(network, "cpu").config, name).__module__.rpartition(".")[2]
            if tolerance := TOLERANCES[KINDS.get(name) or KINDS[module]].get(precision):
                yield Row(f"{name}, {network}, {precision}", tolerance, partial(self.compare, network, name, precision))

    def map(self, network: str, name: str, device: str, precision: str, meter: Meter | None = None) -> Tensor | str:
        """Return a method's map, or the reason why it does not support the network."""
        target = self.target(network)
        run, model, x = self.subject(network, device, precision)
        x = x[..., : SIDES.get(name), : SIDES.get(name)]

        def work() -> Tensor:
            run.explainer.prepare(name, model, x, [target])
            return run.methods[name](model.net, x, target, preprocess=run.preprocess(model))

        try:
            return meter(work) if meter else work()
        except (NotApplicable, UserError) as refusal:
            return str(refusal)

    def compare(self, network: str, name: str, precision: str, meter: Meter) -> float | str:
        wanted, found = self.wanted(network, name), self.map(network, name, self.name, precision, meter)
        if isinstance(found, Tensor) and isinstance(wanted, Tensor):
            return error(found, wanted) if wanted.any() or found.any() else "both maps are 0"
        if isinstance(found, str) and isinstance(wanted, str):
            return f"refused by both: {wanted}"
        raise RuntimeError(f"refused by one: {found if isinstance(found, str) else wanted}")

    def weights(self, network: str, meter: Meter) -> float:
        there = meter(lambda: self.subject(network, self.name)[1].net.state_dict())
        here = self.subject(network, "cpu")[1].net.state_dict()
        return max(error(there[key], here[key]) for key in here)

    def engine(self, network: str) -> Iterator[Row]:
        for low, tolerance in ENGINE.items():
            words = str(low or torch.float32).removeprefix("torch.")
            yield Row(f"engine, {network}, {words}", tolerance, partial(self.windows, network, low))

    def windows(self, network: str, low: torch.dtype | None, meter: Meter) -> float:
        _, model, x = self.subject(network, self.name)
        at = evenly(windows_of(x.shape[2:], 10), 32)
        patches = torch.randn(len(at), x.shape[1], 10, 10, generator=torch.Generator().manual_seed(0)).to(x.device)
        with evaluating(model.net), torch.no_grad():
            full = torch.cat([model.net(images) for images in with_windows(x, at, patches)])

            def change() -> Tensor:
                engine = Incremental(model.net, x, low=low)
                logits = engine.logits(at, patches)
                if engine.network is None:
                    raise RuntimeError("the engine fell back to full passes")
                return logits - engine.base

            return error(meter(change), full - model.net(x))

    def _dense(self, layer: type[nn.Module], device: torch.device | str) -> Callable[[], Tensor]:
        """Return a function that computes a layer of 40,000 inputs and the gradient of an output."""
        net = nn.Sequential(layer(40_000, 64))
        initialise(net, "truncated_normal", 0.1, seed=0)
        net = net.to(device)
        x = torch.randn(2, 40_000, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()

        def work() -> Tensor:
            y = net(x)
            (gradient,) = torch.autograd.grad(y[:, 3].sum(), x)
            return torch.cat([y, gradient], 1)

        return work

    def streamed(self, meter: Meter) -> float:
        return error(meter(self._dense(StreamedLinear, self.device)), self._dense(StreamedLinear, "cpu")())

    def streamed_as_dense(self, meter: Meter) -> float:
        return error(meter(self._dense(StreamedLinear, self.device)), self._dense(nn.Linear, self.device)())


def judge(row: Row, device: torch.device) -> tuple[str, str]:
    """Measure a row: (ok, alike, wrong or failed; the line of the table)."""
    meter = Meter(device)
    try:
        found = row.measure(meter)
        verdict = "alike" if isinstance(found, str) else "ok" if found <= row.tolerance else "wrong"  # NaN is wrong
        words = f"{found:.1e}" if isinstance(found, float) else found
    except Exception as failure:  # fails this row only
        verdict, words = "failed", f"{type(failure).__name__}: {failure}"
    cells = [row.what, verdict, " ".join(words.split()).replace("|", "/")[:200], f"{row.tolerance:g}"]
    return verdict, f"| {' | '.join(cells)} | {meter.seconds:.3f} | {meter.megabytes:.0f} |"


class Clock:
    """Divide the time among the parts by their shares; a part that ends early leaves its rest to those behind it."""

    def __init__(self, seconds: float) -> None:
        self.end, self.left = time.monotonic() + seconds, dict(SHARES)

    def deadline(self, part: str) -> float:
        """Return the end of a part that begins now, on the clock of `time.monotonic`."""
        now, share = time.monotonic(), self.left[part] / sum(self.left.values())
        del self.left[part]
        return now + share * (self.end - now)


@dataclass
class Part:
    """A section of the page: what the summary says of it, its table and notes, and whether it is as expected."""

    title: str
    summary: str
    lines: list[str]
    right: bool = True

    def __str__(self) -> str:
        return "\n\n".join([f"## {self.title}", f"**{self.summary}**", "\n".join(self.lines)]).rstrip()


class Command:
    """A command in a process group of its own, in `folder`, where its output goes to a file."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / "output.txt"
        offline = os.environ | {"PIP_NO_INDEX": "1"}  # pip would try to reach an index for weights, again and again
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *words], cwd=folder, env=offline, stdout=output, stderr=output, start_new_session=True
            )

    def finish(self, deadline: float) -> int | None:
        """Wait for the command, and return its exit code; None if it had to be stopped at the deadline."""
        try:
            return self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # its workers too
            self.process.wait()
            return None

    def tail(self) -> str:
        return " ".join(self.output.read_text(encoding="utf-8", errors="replace").split())[-300:]


def methods_part(check: Check, deadline: float) -> Part:
    lines, verdicts = [], Counter[str]()
    for row in check.rows():
        verdict, line = "not run", f"| {row.what} | not run (time) | | {row.tolerance:g} | | |"
        if time.monotonic() < deadline:
            verdict, line = judge(row, check.device)
        verdicts[verdict] += 1
        lines.append(line)
        print(line, flush=True)
    measured = verdicts["ok"] + verdicts["wrong"] + verdicts["failed"]
    summary = f"{verdicts['ok']} of {measured} rows within tolerance; alike without a number (both refuse, or both maps are 0): "
    summary += f"{verdicts['alike']}; not run (time): {verdicts['not run']}."
    head = ["| what | result | error | tolerance | seconds | peak MB |", "|---|---|---:|---:|---:|---:|"]
    return Part("Methods, engine, streamed layers", summary, [*head, *lines], verdicts["ok"] == measured)


def processes(device: torch.device) -> int:
    """Return how many processes run the items: one for two cores and for 6 GB of the GPU, at most 8."""
    count = min(8, max(1, len(os.sched_getaffinity(0)) // 2))
    if device.type == "cuda":
        count = min(count, max(1, int(torch.cuda.get_device_properties(device).total_memory / 6e9)))
    return count


def start_items(check: Check, folder: Path) -> Command:
    launcher = ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={processes(check.device)}")
    words = ["-m", "vis.run", *ITEMS, f"device={check.name}", f"outputs={folder / 'outputs'}", *launcher]
    return Command(words, folder)


def items_part(command: Command, folder: Path, deadline: float) -> Part:
    """Wait for the items, and compare them with the CPU's numbers."""
    began = time.monotonic()
    code = command.finish(deadline)
    cpu = json.loads(CPU.read_text(encoding="utf-8"))
    whole = next((folder / "outputs").glob("*/*/sweep.json"), None)
    ran = dict(gpu_items.runs(whole.parent)) if whole else {}
    lines, results, equal, claims = [], Counter[str](), 0, 0
    for name in dict.fromkeys([*ran, *cpu]):
        path, tolerance = ran.get(name), TOLERANCES["optimised" if name in OPTIMISED else "gradient"]["float32"]
        try:
            found = gpu_items.compare(path, cpu.get(name), tolerance)
        except Exception as failure:  # fails this row only
            found = gpu_items.Compared("failed", f"{type(failure).__name__}: {failure}")
        results[found.result] += 1
        equal, claims = equal + found.equal, claims + found.claims
        seconds = RunFolder(path).status.get("seconds", 0) if path else 0
        cells = [name, found.result, " ".join(found.words.split()).replace("|", "/")[:200]]
        cells += ["" if math.isnan(found.error) else f"{found.error:.1e}", f"{tolerance:g}", f"{seconds:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    compared = results["ok"] + results["wrong"] + results["failed"]
    summary = f"{results['ok']} of {compared} items agree with the CPU ({equal} of {claims} verdicts equal); "
    summary += f"not compared: {results['other']}; not run (time): {results['not run']}."
    if code is None:
        lines.append(f"\nStopped at the time limit, {time.monotonic() - began:.0f} s after the methods.")
    elif not ran:
        lines.append(f"\nThe items did not start: {command.tail()}")
    head = ["| item | result | verdicts | error of the maps | tolerance | seconds |", "|---|---|---|---:|---:|---:|"]
    right = (code is None or bool(ran)) and not results["wrong"] and not results["failed"]
    return Part("Items of the papers, preset=small", summary, [*head, *lines], right)


def bench_part(device: torch.device, folder: Path, deadline: float) -> Part:
    title = "Speed against other libraries (scripts/bench.py)"
    if time.monotonic() >= deadline:
        return Part(title, "Not run (time).", [])
    command = Command([*BENCH, "--device", str(device)], folder)
    code = command.finish(deadline)
    lines = [
        line for line in command.output.read_text(encoding="utf-8", errors="replace").splitlines() if line[:1] == "|"
    ]
    summary = f"{max(0, len(lines) - 2)} rows."
    if code is None:
        summary += " Stopped at the time limit: the rows behind them are missing."
    elif code:
        summary += f" Failed: {command.tail()}"
    return Part(title, summary, lines, not code)


def memory_part(name: str, device: torch.device, folder: Path, deadline: float) -> Part:
    """Measure the peak memory of the largest task of each item at the papers' size."""
    lines, left = [], []
    sizes = {
        name: record.get("memory_gb") or 0.0 for name, record in json.loads(CPU.read_text(encoding="utf-8")).items()
    }
    for item in sorted(sizes, key=lambda item: -sizes[item]):
        if time.monotonic() > deadline:
            left.append(item)
            continue
        words = [f"experiment={item}", f"device={name}", f"outputs={folder}"]
        megabytes, what = peak_of(words, device, min(TASK_SECONDS, deadline - time.monotonic()))
        lines.append(f"| {item} | {'' if math.isnan(megabytes) else f'{megabytes:.0f}'} | {what} |")
        print(lines[-1], flush=True)
    if left:
        lines.append(f"\nNot run (time): {', '.join(left)}.")
    head = ["| item | peak MB | task |", "|---|---:|---|"]
    return Part("Peak memory at the papers' size", f"{len(sizes) - len(left)} of {len(sizes)} items.", [*head, *lines])


def peak_of(words: list[str], device: torch.device, seconds: float) -> tuple[float, str]:
    """Return the peak memory in MB of an item's largest task beyond what was in use, and the task in words."""
    meter, before, what = Meter(device), in_use(device), ""
    vis.system.device.reset_peak_memory(device)
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, seconds), 5)  # again, since methods go on after some errors
    try:
        plan = gpu_items.planned(words)
        task = plan.tasks[max(range(len(plan.tasks)), key=plan.gigabytes.__getitem__)]
        what = described(task) or "the only one"
        meter(partial(plan.experiment.compute, plan.run, task))
    except TimeoutError:
        what += f"; at least: stopped after {seconds:.0f} s"
        meter.megabytes = 1000 * vis.system.device.peak_memory_gb(device)
    except Exception as failure:  # an item that cannot run here
        what = f"{type(failure).__name__}: {' '.join(str(failure).split())[:150]}".replace("|", "/")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return meter.megabytes - before, what


def in_use(device: torch.device) -> float:
    """Return the MB of the device's memory that tensors of this process hold; 0 if the device is no GPU."""
    gc.collect()
    return torch.cuda.memory_allocated(device) / 1e6 if device.type == "cuda" else 0.0


def _out_of_time(*_: object) -> None:
    raise TimeoutError


def figure7_part(name: str, folder: Path, deadline: float) -> Part:
    """Run Figure 7 on many images; return the rate of each network, extrapolated."""
    title = "Figure 7 of nie2018 on many images"
    if time.monotonic() >= deadline:
        return Part(title, "Not run (time).", [])
    make_images(folder / "photographs", PHOTOGRAPHS, side=256)
    words = [*FIGURE7, "dataset=folder", f"dataset.path={folder / 'photographs'}", f"device={name}"]
    command = Command(["-m", "vis.run", *words, f"outputs={folder / 'outputs'}"], folder)
    code = command.finish(deadline)
    path = next((folder / "outputs").glob("*/*/timings.csv"), None)
    if code or path is None:
        return Part(title, f"No task finished: {command.tail()}", [], right=code is None)
    config = RunFolder(path.parent).config()
    networks = [name for name in config.experiment.models if name not in config.experiment.missing]
    size: int = config.batch_size
    batches = -(-PHOTOGRAPHS // size)
    seconds: dict[str, list[float]] = {}
    for line in path.read_text(encoding="ascii").splitlines():
        number, took = line.split(",")
        seconds.setdefault(networks[int(number) // batches], []).append(float(took))
    lines = [f"| network | images | images/s | hours for 10,000 | hours for {50_000:,} |", "|---|---:|---:|---:|---:|"]
    for network, times in seconds.items():
        rate = size / median(times)
        model = config.experiment.models[network].name
        done = min(PHOTOGRAPHS, size * len(times))
        lines.append(
            f"| {network}: {model} | {done} | {rate:.1f} | {10_000 / rate / 3600:.2f} | {50_000 / rate / 3600:.2f} |"
        )
    summary = f"{sum(map(len, seconds.values()))} of {batches * len(networks)} batches of {size} images"
    summary += "." if code == 0 else "; stopped at the time limit."
    if peak := RunFolder(path.parent).status.get("peak_memory_gb"):
        lines += ["", f"Peak memory: {1000 * peak:.0f} MB."]
    return Part(title, summary, lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, mps")
    parser.add_argument("--seconds", type=float, default=470, help="time limit")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "gpu", help="folder of the page")
    parser.add_argument(
        "--store", type=Path, metavar="FOLDER", help="write the CPU's numbers from this finished run of all items"
    )
    arguments = parser.parse_args(argv)
    register()
    if arguments.store:
        count = gpu_items.store(arguments.store, CPU)
        print(f"{count} items in {CPU}")
        return 0 if count else 1
    start, clock = time.monotonic(), Clock(arguments.seconds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            check = Check(arguments.device, folder)
        except UserError as error:
            print(f"gpu-check: {error}", file=sys.stderr)
            return 2
        device, items, deadline = check.device, start_items(check, folder / "items"), clock.deadline("items")
        try:
            parts = [methods_part(check, deadline), items_part(items, folder / "items", deadline)]
        finally:
            items.finish(0)
        del check
        Check.run_of.cache_clear()  # frees its networks
        Check.target.cache_clear()
        parts.append(bench_part(device, folder / "bench", clock.deadline("bench")))
        parts.append(memory_part(arguments.device, device, folder / "memory", clock.deadline("memory")))
        parts.append(figure7_part(arguments.device, folder / "figure7", clock.deadline("figure7")))
    page = write_page(parts, device, arguments.folder, time.monotonic() - start)
    for part in parts:
        print(f"{part.title}: {part.summary}")
    print(page)
    return int(not all(part.right for part in parts))


def write_page(parts: Sequence[Part], device: torch.device, folder: Path, seconds: float) -> Path:
    name = vis.system.device.hardware(device)
    driver = collect_env.get_nvidia_driver_version(collect_env.run) or "none"
    facts = f"{time.strftime('%Y-%m-%d')}; driver {driver}, CUDA {torch.version.cuda}, torch {torch.__version__}; "
    facts += f"Python {platform.python_version()}; against {hardware('cpu')}; {seconds:.0f} s in all."
    note = "Written by `make gpu-check`; `scripts/gpu_check.py` says what the errors are and derives the tolerances."
    page = folder / f"{slug(name)}.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, "\n\n".join([f"# {name}", facts, note, *map(str, parts)]) + "\n")
    return page


if __name__ == "__main__":
    sys.exit(main())
