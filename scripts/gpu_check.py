"""Check in five minutes that a GPU agrees with the CPU, on all methods, the engine, streamed layers and items of the papers.

python scripts/gpu_check.py [--device cuda] [--seconds 270] [--folder docs/gpu]

The error of a row is ||device - CPU|| / ||CPU|| of a map of the same image, network and target; for the engine, that of the
changes windows make in the logits, against full passes on the device. Exit code 0: all rows that ran are within tolerance;
1: some are not; 2: the device does not exist.

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
import io
import math
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import torch
from bench import evenly, hardware, with_windows
from torch import Tensor, nn
from torch.utils import collect_env

import vis.run
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
from vis.runner.execute import prepare
from vis.runner.experiment import Run, method_class
from vis.store.stored import stored
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
ITEMS = ("nie2018/lemma1", "taimeskhanov2024/theorem1", "zhou2018/figure8", "ayyar2021/sparsity")

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
        for item in ITEMS:
            yield Row(f"{item}, preset=tiny", 0.0, partial(self.item, item))
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

    def item(self, name: str, meter: Meter) -> float:
        """Count the verdicts that differ. The device runs first; the CPU reuses the networks trained there."""
        there, here = meter(partial(self.verdicts, name, self.name)), self.verdicts(name, "cpu")
        return float(sum(there.get(claim) != here.get(claim) for claim in there | here))

    def verdicts(self, name: str, device: str) -> dict[str, str]:
        words = [f"experiment={name}", "preset=tiny", f"device={device}", f"outputs={self.folder / 'items'}"]
        with redirect_stdout(io.StringIO()) as out:
            code = vis.run.main(words)
        if code:
            raise RuntimeError(f"vis-run {' '.join(words)}: exit code {code}")
        return {claim.id: claim.verdict for claim in stored(Path(out.getvalue().split()[-1])).claims}


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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, mps")
    parser.add_argument("--seconds", type=float, default=270, help="time limit for starting rows")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "gpu", help="folder of the page")
    arguments = parser.parse_args(argv)
    start = time.perf_counter()
    register()
    lines, verdicts = [], Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        try:
            check = Check(arguments.device, Path(folder))
        except UserError as error:
            print(f"gpu-check: {error}", file=sys.stderr)
            return 2
        for row in check.rows():
            verdict, line = "not run", f"| {row.what} | not run (time) | | {row.tolerance:g} | | |"
            if time.perf_counter() - start < arguments.seconds:
                verdict, line = judge(row, check.device)
            verdicts[verdict] += 1
            lines.append(line)
            print(line, flush=True)
    measured = verdicts["ok"] + verdicts["wrong"] + verdicts["failed"]
    summary = f"{verdicts['ok']} of {measured} rows within tolerance; alike without a number (both refuse, or both maps are 0): "
    summary += f"{verdicts['alike']}; not run (time): {verdicts['not run']}"
    name, seconds = vis.system.device.hardware(check.device), time.perf_counter() - start
    driver = collect_env.get_nvidia_driver_version(collect_env.run) or "none"
    facts = f"{time.strftime('%Y-%m-%d')}; driver {driver}, CUDA {torch.version.cuda}, torch {torch.__version__}; "
    facts += f"Python {platform.python_version()}; against {hardware('cpu')}; {seconds:.0f} s in all."
    head = "| what | result | error | tolerance | seconds | peak MB |\n|---|---|---:|---:|---:|---:|"
    note = "Written by `make gpu-check`; `scripts/gpu_check.py` says what the errors are and derives the tolerances."
    page = arguments.folder / f"{slug(name)}.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, "\n\n".join([f"# {name}", facts, f"**{summary}.**", note, "\n".join([head, *lines])]) + "\n")
    print(f"{summary}\n{page}")
    return int(verdicts["wrong"] + verdicts["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
