"""Compare the speed of other libraries, and check in the same run that the results agree.

python scripts/bench.py [--device cuda] [--quick]

Peer and project compute the same maps of the same network and images, alternately, in one process. Times are medians; the
error is the largest ||ours - peer|| / ||peer|| over the maps (float32; an l2 error, since single ReLUs near 0 flip between
two correct implementations). Each library gets the network as its users would: the peer as the constructor returns it, this
project as `vis-run` does, in channels_last and with freed memory kept (`vis.system.allocator`). Weights are random.

To benchmark another paper, write a function that yields rows, and add it to BENCHMARKS.
"""

import argparse
import copy
import io
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import captum
import pytorch_grad_cam
import torch
from captum import attr
from captum.attr import Deconvolution, Saliency
from captum.attr import GuidedBackprop as CaptumGuidedBackprop
from torch import Tensor, nn
from torch.profiler import profile

from vis import methods
from vis.data import preprocessing, samples
from vis.graph.modes import evaluating
from vis.methods.cam import finish, weigh
from vis.methods.from_layer import run_rest
from vis.methods.perturbation import accumulate, windows_of
from vis.metrics.deletion import curves
from vis.models import VGG16, torchvision_classifier
from vis.models.initialise import initialise
from vis.system.allocator import keep_freed_memory
from vis.system.device import is_native, set_precision
from vis.training.fit import NetworkInputs
from vis.windows.engine import Incremental
from vis.windows.gaussian import PatchGaussian

GRAD_CAM = f"grad-cam {version('grad-cam')}"


@dataclass
class Row:
    """One line of the table; times in seconds."""

    work: str
    peer: str
    peer_time: float
    our_time: float
    error: float

    def __str__(self) -> str:
        ratio = self.peer_time / self.our_time
        return f"| {self.work} | {self.peer} | {self.peer_time:.3f} | {self.our_time:.3f} | {ratio:.2f} | {self.error:.1e} |"


def compare(
    work: str, peer: str, theirs: Callable[[], list[Tensor]], ours: Callable[[], list[Tensor]], repeats: int
) -> Row:
    """Run both once to compare results (and to warm up), then alternately for the median times."""
    pairs = zip(timed(ours)[1], timed(theirs)[1], strict=True)
    error = torch.stack([(a - b).norm() / b.norm() for a, b in pairs]).max().item()  # NaN if any is
    seconds = {work: timed(work)[0] for work in (ours, theirs)}

    def turn(work: Callable[[], list[Tensor]]) -> float:
        """Time calls for about a second; a first call that is short would mostly wait for memory that the other gave back."""
        if seconds[work] < 2:
            work()
        calls = max(1, round(1 / seconds[work]))
        return timed(lambda: [work() for _ in range(calls)][-1])[0] / calls

    def in_turn() -> tuple[float, float]:
        keep_freed_memory(False)
        peer_time = turn(theirs)
        keep_freed_memory()
        return peer_time, turn(ours)

    times = [in_turn() for _ in range(repeats)]
    return Row(work, peer, median(t for t, _ in times), median(t for _, t in times), error)


def timed(work: Callable[[], list[Tensor]]) -> tuple[float, list[Tensor]]:
    _synchronise()
    start = time.perf_counter()
    results = work()
    _synchronise()
    return time.perf_counter() - start, results


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def bfloat16_on_cpu(device: str) -> bool:
    """Return True if the device is a CPU with bfloat16 products; otherwise name the rows that are left out."""
    there = device == "cpu" and is_native(torch.bfloat16, torch.device(device))
    if not there:
        print("(rows of precision=mixed need a CPU with avx512_bf16 or amx_bf16)", flush=True)
    return there


def backpropagation(device: str, quick: bool) -> Iterator[Row]:
    """nie2018: saliency, DeconvNet and guided backpropagation of two logits, against captum.

    precision=mixed needs a CPU with bfloat16 products (avx512_bf16 or amx_bf16), or a GPU with TF32.
    """
    networks, repeats = {"vgg16": VGG16(), "resnet50": torchvision_classifier("resnet50")}, 3 if quick else 11
    low = device.startswith("cuda") or bfloat16_on_cpu(device)
    for name, net in networks.items():
        for precision in ("float32", "mixed") if low else ("float32",):
            yield _backpropagation(name, net, 1, device, repeats, precision)
    if not quick:
        yield _backpropagation("vgg16", networks["vgg16"], 8, device, 5)


def _backpropagation(
    name: str, net: nn.Module, batch: int, device: str, repeats: int, precision: str = "float32"
) -> Row:
    logits = (482, 560)
    torch.manual_seed(0)
    images = torch.randn(batch, 3, 224, 224).to(device)
    initialise(net, "truncated_normal", 0.1, seed=0)
    net = net.eval().to(device)
    our_net = copy.deepcopy(net).to(memory_format=torch.channels_last)
    our_methods = {"saliency": methods.Saliency(), "deconvnet": methods.DeconvNet(), "gbp": methods.GuidedBackprop()}

    def ours() -> list[Tensor]:
        set_precision(precision)
        maps = methods.explain_all(our_methods, our_net, images, logits)[0]
        set_precision("float32")
        return [m for each in maps for m in each.values()]

    def theirs() -> list[Tensor]:
        maps = []
        for logit in logits:
            maps.append(Saliency(net).attribute(images, target=logit, abs=False))
            maps += [peer(net).attribute(images, target=logit) for peer in (Deconvolution, CaptumGuidedBackprop)]
        return [each.detach() for each in maps]

    work = f"{name}, 3 methods x 2 logits, batch {batch}" + f", {precision}" * (precision != "float32")
    return compare(work, f"captum {captum.__version__}", theirs, ours, repeats)


def class_activation_maps(device: str, quick: bool) -> Iterator[Row]:
    """taimeskhanov2024: CAMs of one image in the convention of its Table 1, against grad-cam.

    precision=mixed needs a CPU with bfloat16 products (avx512_bf16 or amx_bf16). grad-cam sends a batch through the whole network
    for each feature map: its AblationCAM and ScoreCAM run once. AblationCAM of a layer in the middle is also compared with the
    network behind the layer, run with each feature map set to 0.
    """
    gradients = ["GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "LayerCAM"]
    vgg16, repeats = VGG16(), 3 if quick else 7
    precisions = ["float32", "mixed"] if bfloat16_on_cpu(device) else ["float32"]
    yield _cams("vgg16, GradCAM", vgg16, "features.29", gradients[:1], device, repeats)
    yield _cams("vgg16, five gradient CAMs", vgg16, "features.29", gradients, device, repeats)
    for precision in precisions:
        yield _cams("vgg16, EigenCAM", vgg16, "features.29", ["EigenCAM"], device, repeats, precision)
    if not quick:
        resnet18 = torchvision_classifier("resnet18")
        yield from _cams_once("vgg16, AblationCAM", vgg16, "features.29", "AblationCAM", device, ["float32"])
        yield from _cams_once("vgg16, ScoreCAM", vgg16, "features.29", "ScoreCAM", device, precisions)
        yield from _cams_once("resnet18, AblationCAM of layer3", resnet18, "layer3", "AblationCAM", device, ["float32"])
        for precision in precisions:
            yield _ablation("resnet18, AblationCAM of layer3", resnet18, "layer3", device, 3, precision)
            yield _ablation("vgg16, AblationCAM of conv4_3", vgg16, "features.22", device, 1, precision)


def _subject(net: nn.Module, device: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """Return a network with random weights for the peer, the same in channels_last, and an image."""
    torch.manual_seed(0)
    images = torch.randn(1, 3, 224, 224).to(device)
    initialise(net, "kaiming_normal", 0.1, seed=0)
    net = net.eval().to(device)
    return net, copy.deepcopy(net).to(memory_format=torch.channels_last), images


def _cams(
    work: str, net: nn.Module, layer: str, names: list[str], device: str, repeats: int, precision: str = "float32"
) -> Row:
    net, our_net, images = _subject(net, device)
    our_methods = {name: getattr(methods, name)(layer=layer, convention="table1") for name in names}
    if "EigenCAM" in names:  # its sign is arbitrary: use the peer's
        (peer_map,) = _peer_maps(net, layer, names, images)
        ours_map = our_methods["EigenCAM"](net, images)[:, 0]
        our_methods["EigenCAM"].sign = 1 if (ours_map - peer_map).norm() < 0.1 * peer_map.norm() else -1

    def ours() -> list[Tensor]:
        if len(names) == 1:
            return [_ours(our_methods[names[0]], our_net, images, precision)]
        return [maps[:, 0] for maps in methods.explain_all(our_methods, our_net, images, [None])[0][0].values()]

    work += f", {precision}" * (precision != "float32")
    return compare(work, GRAD_CAM, lambda: _peer_maps(net, layer, names, images), ours, repeats)


def _ours(method: methods.Method, net: nn.Module, images: Tensor, precision: str) -> Tensor:
    set_precision(precision)
    maps = method(net, images)[:, 0]
    set_precision("float32")
    return maps


def _cams_once(work: str, net: nn.Module, layer: str, name: str, device: str, precisions: list[str]) -> Iterator[Row]:
    """Compare with one run of a slow peer."""
    net, our_net, images = _subject(net, device)
    method = getattr(methods, name)(layer=layer, convention="table1")
    keep_freed_memory(False)
    peer_time, (peer_map,) = timed(lambda: _peer_maps(net, layer, [name], images))
    keep_freed_memory()
    for precision in precisions:
        our_time, (our_map,) = timed(lambda: [_ours(method, our_net, images, precision)])  # noqa: B023  # called within this round of the loop
        error = ((our_map - peer_map).norm() / peer_map.norm()).item()
        suffix = f", {precision}" * (precision != "float32")
        yield Row(f"{work}{suffix}", f"{GRAD_CAM}, once", peer_time, our_time, error)


@torch.no_grad()
def _ablation(work: str, net: nn.Module, layer: str, device: str, repeats: int, precision: str) -> Row:
    _, net, images = _subject(net, device)
    method = methods.AblationCAM(layer=layer)
    with methods.Forward(net, images, [layer]) as forward:
        B, unit = forward.layers[layer].detach(), int(forward.logits.argmax())

    def theirs() -> list[Tensor]:
        y = []
        with evaluating(net), torch.no_grad():
            for some in torch.arange(-1, B.shape[1]).split(max(1, (1 << 22) // B.numel())):  # -1: nothing is set to 0
                kept = torch.arange(B.shape[1]) != some[:, None]
                y.append(run_rest(net, images, layer, B * kept[:, :, None, None].to(B))[:, unit])
        y, y_v = torch.cat(y).split([1, B.shape[1]])
        return [finish(weigh(((y - y_v) / y)[None], B), images.shape[2:], "paper")]

    work += f", {precision}" * (precision != "float32")
    return compare(
        work, "the rest with each map at 0", theirs, lambda: [_ours(method, net, images, precision)], repeats
    )


def _peer_maps(net: nn.Module, layer: str, names: list[str], images: Tensor) -> list[Tensor]:
    maps = []
    for name in names:
        with redirect_stderr(io.StringIO()):  # hides its progress bars
            cam = getattr(pytorch_grad_cam, name)(net, [net.get_submodule(layer)])
            maps.append(torch.from_numpy(cam(images, None)).to(images.device))
            cam.activations_and_grads.release()
    return maps


def windows(device: str, quick: bool) -> Iterator[Row]:
    """zhou2018: evenly spaced 10x10 windows of the 46,225 in 224x224, against full passes in batches.

    The error is that of a window's change in the logits, not of the logits. Arithmetic is the share of convolutions and
    dense layers in this project's time.
    """
    counts = {"alexnet": 2048, "vgg16": 256, "googlenet": 512, "resnet50": 256}
    native = is_native(torch.bfloat16, torch.device(device))
    for name, count in {"alexnet": 256}.items() if quick else counts.items():
        for low in (None, torch.bfloat16) if native else (None,):
            yield _windows(name, count, device, 1 if quick else 3, low)
    if device != "cpu":
        yield _whole_image(device)
    yield from _means(device)


def random_network(name: str, device: str) -> nn.Module:
    net = VGG16() if name == "vgg16" else torchvision_classifier(name)
    initialise(net, "kaiming_normal", 0.1, seed=0)
    return net.eval().to(device).to(memory_format=torch.channels_last)


def evenly(everywhere: Tensor, count: int) -> Tensor:
    return everywhere[torch.linspace(0, len(everywhere) - 1, count).round().long()]


def _whole_image(device: str) -> Row:
    """Fast PDA of all windows of an image: the engine in bfloat16 against the engine in float32."""
    net, seen = random_network("vgg16", device), photographs()
    image = seen[0][None].to(device)
    peer, ours = (methods.PDAFast(precision=precision, memory_gb=16) for precision in ("float32", "bfloat16"))
    peer.fit(seen)
    ours.learnt = peer.learnt
    work = "vgg16, pda_fast of 46,225 windows, bfloat16"
    return compare(work, "float32", lambda: [peer(net, image)], lambda: [ours(net, image)], 3)


def _windows(name: str, count: int, device: str, repeats: int, low: torch.dtype | None) -> Row:
    net = random_network(name, device)
    torch.manual_seed(0)
    image = torch.randn(1, 3, 224, 224).to(device)
    at = evenly(windows_of((224, 224), 10), count)
    patches = torch.randn(count, 3, 10, 10).to(device)

    with evaluating(net), torch.no_grad():
        engine = Incremental(net, image, low=low)

        def theirs() -> list[Tensor]:
            return [torch.cat([net(images) - engine.base for images in with_windows(image, at, patches)])]

        def ours() -> list[Tensor]:
            return [engine.logits(at, patches) - engine.base]

        with profile() as profiled:
            ours()
        times = {
            event.key: event.self_device_time_total or event.self_cpu_time_total for event in profiled.key_averages()
        }
        arithmetic = sum(
            times.get(f"aten::{key}", 0) for key in ("mkldnn_convolution", "cudnn_convolution", "addmm", "mm")
        )
        macs, full = (each / count / 1e9 for each in engine.work(at, 10, 10))
        row = compare("", f"full passes, {full:.2f} GMAC", theirs, ours, repeats)
    row.work = (
        f"{name}, {count} windows, {macs:.2f} GMAC each, {100 * arithmetic / sum(times.values()):.0f} % arithmetic"
    )
    row.work += ", bfloat16" if low else ""
    return row


def photographs() -> NetworkInputs:
    return NetworkInputs(samples("all"), preprocessing("imagenet"), (224, 224), 3)


def with_windows(image: Tensor, at: Tensor, patches: Tensor) -> Iterator[Tensor]:
    """Yield copies of an image [1, C, H, W] with one of the windows at [n, 2] replaced in each, 16 at a time."""
    for some, contents in zip(at.split(16), patches.split(16), strict=True):
        images = image.repeat(len(some), 1, 1, 1)
        for each, (top, left), content in zip(images, some, contents, strict=True):
            each[:, top : top + content.shape[1], left : left + content.shape[2]] = content
        yield images.contiguous(memory_format=torch.channels_last)


def _means(device: str) -> Iterator[Row]:
    """Conditional means of all windows of an image, against a loop over a sample of them; their accumulation, against a loop."""
    image = torch.nn.functional.avg_pool2d(torch.randn(4, 3, 228, 228), 5, 1).to(device)
    gaussian, everywhere = PatchGaussian.fit(image[1:]), windows_of((224, 224), 10)
    means = gaussian.means(image[0], everywhere, 10)  # also computes the cached matrices
    sample = torch.arange(0, len(everywhere), 46)

    def one_by_one() -> list[Tensor]:
        return [torch.cat([gaussian.means(image[0], everywhere[i : i + 1], 10) for i in sample.tolist()])]

    row = compare(
        "", "a loop, 1 of 46 windows", one_by_one, lambda: [gaussian.means(image[0], everywhere, 10)[sample]], 3
    )
    row.work = "conditional means of 46,225 windows"
    yield row
    evidence = means.mean((1, 2, 3))[:, None]

    def loop() -> list[Tensor]:
        total, counts = torch.zeros(224, 224, device=device), torch.zeros(224, 224, device=device)
        for (top, left), value in zip(everywhere.tolist(), evidence, strict=True):
            total[top : top + 10, left : left + 10] += value
            counts[top : top + 10, left : left + 10] += 1
        return [total / counts]

    yield compare(
        "their accumulation", "a loop", loop, lambda: [accumulate(evidence, everywhere, 10, (224, 224))[0]], 3
    )


def attribution(device: str, quick: bool) -> Iterator[Row]:
    """ayyar2021: integrated gradients, SmoothGrad, LRP and DeepLIFT of one image, against captum at its best batch size.

    precision=mixed needs a CPU with bfloat16 products (avx512_bf16 or amx_bf16). captum's DeepLift is wrong on vgg16, and its
    noise is another: these two rows have the error against our own maps, in float64 and in float32.
    zennit is not a dependency: its row appears if it is installed.
    """
    torch.manual_seed(0)
    images, repeats, steps = torch.randn(1, 3, 224, 224).to(device), 1 if quick else 5, 8 if quick else 50
    net = VGG16()
    initialise(net, "kaiming_normal", 0.1, seed=0)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.05)
    net = net.eval().to(device)
    our_net = copy.deepcopy(net).to(memory_format=torch.channels_last)
    precisions = ["float32", "mixed"] if bfloat16_on_cpu(device) else ["float32"]

    def ours(method: methods.Method, precision: str) -> list[Tensor]:
        set_precision(precision)
        maps = method(our_net, images, 1)
        set_precision("float32")
        return [maps]

    def rows(
        work: str, peer: str, theirs: Callable[[], Tensor], method: methods.Method, wanted: Tensor | None = None
    ) -> Iterator[Row]:
        for precision in precisions:
            words = f"vgg16, {work}" + f", {precision}" * (precision != "float32")
            row = compare(words, peer, lambda: [theirs().detach()], partial(ours, method, precision), repeats)
            if wanted is not None:
                row.error = ((ours(method, precision)[0] - wanted).norm() / wanted.norm()).item()
            yield row

    def integrated(batch: int) -> Tensor:
        return attr.IntegratedGradients(net).attribute(images, target=1, n_steps=steps, internal_batch_size=batch)

    def smoothed(batch: int) -> Tensor:
        torch.manual_seed(0)
        sigma = 0.15 * (images.max() - images.min()).item()
        tunnel = attr.NoiseTunnel(Saliency(net))
        return tunnel.attribute(
            images, nt_samples=steps, nt_samples_batch_size=batch, stdevs=sigma, target=1, abs=False
        )

    name = f"captum {captum.__version__}"
    deeplift = methods.DeepLIFT(baseline="zero")
    yield from rows(
        "LRP-epsilon", name, lambda: attr.LRP(net).attribute(images, target=1), methods.LRP("epsilon", epsilon=1e-9)
    )
    yield from rows(
        "DeepLIFT",
        f"{name}, wrong",
        lambda: attr.DeepLift(net).attribute(images, target=1),
        deeplift,
        deeplift(copy.deepcopy(our_net).double(), images.double(), 1).float(),
    )
    smoothgrad = methods.SmoothGrad(samples=steps)
    for work, theirs, method, wanted in (
        ("integrated gradients", integrated, methods.IntegratedGradients(steps, baseline="zero"), None),
        ("SmoothGrad", smoothed, smoothgrad, ours(smoothgrad, "float32")[0]),
    ):
        best = min((1, 4, 8, 16), key=lambda batch: timed(lambda: [theirs(batch)])[0])  # noqa: B023  # called within this round of the loop
        yield from rows(f"{work}, {steps} passes", f"{name}, batch {best}", partial(theirs, best), method, wanted)
    if find_spec("zennit"):
        from zennit.attribution import Gradient
        from zennit.composites import EpsilonPlus

        def zennits() -> Tensor:
            with Gradient(net, EpsilonPlus()) as attributor:
                return attributor(images, lambda out: nn.functional.one_hot(images.new_tensor([1]).long(), 1000) * out)[
                    1
                ]

        composite = methods.LRP(composite="epsilon_plus")
        precisions = ["float32"]
        yield from rows("LRP, epsilon and alpha1beta0", f"zennit {version('zennit')}", zennits, composite)


def perturbation(device: str, quick: bool) -> Iterator[Row]:
    """Occlusion against captum at its best batch size; deletion and insertion against one pass per step."""
    torch.manual_seed(0)
    image, net = torch.randn(1, 3, 224, 224).to(device), random_network("alexnet", device)
    side, stride, repeats = 16, 8, 1 if quick else 3

    def occluded(batch: int) -> list[Tensor]:
        return [
            attr.Occlusion(net).attribute(
                image, (3, side, side), (3, stride, stride), 0.0, target=1, perturbations_per_eval=batch
            )[:, :1]
        ]

    best = min((1, 8, 32), key=lambda batch: timed(lambda: occluded(batch))[0])
    ours = methods.Occlusion(side, "zero", stride)
    peer = f"captum {captum.__version__}, batch {best}"
    yield compare(
        "alexnet, occlusion, 729 windows", peer, lambda: occluded(best), lambda: [ours(net, image, 1)], repeats
    )

    steps, small = 64, image[..., :64, :64].contiguous()
    net = torchvision_classifier("resnet18", num_classes=200).eval().to(device)
    map_, zeros = methods.Saliency()(net, small, 1), torch.zeros_like(small)
    order = map_.sum(1).flatten().argsort(descending=True, stable=True)

    @torch.no_grad()
    def one_by_one() -> list[Tensor]:
        areas = []
        for first, second in ((small, zeros), (zeros, small)):
            x, curve = first.clone(), []
            for step in range(steps + 1):
                gone = order[: step * len(order) // steps]
                x.view(3, -1)[:, gone] = second.view(3, -1)[:, gone]
                curve.append(net(x).softmax(1)[0, 1])
            areas.append(torch.stack(curve))
        return areas

    def together() -> list[Tensor]:
        both = curves(net, small, map_, 1, zeros, steps)
        return [both.deletion[0], both.insertion[0]]

    yield compare(
        "resnet18, deletion and insertion, 64 steps of 64x64", "a pass for each step", one_by_one, together, 5
    )


BENCHMARKS = (backpropagation, class_activation_maps, windows, attribution, perturbation)


def hardware(device: str) -> str:
    """Return the name of the processor."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="fewer networks and repetitions")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda"):
        torch.cuda.set_device(arguments.device)  # the device that `timed` synchronises
    torch.backends.cudnn.allow_tf32 = False  # as in a run with precision=float32
    warnings.filterwarnings("ignore", module="captum")
    print(f"{hardware(arguments.device)}; Python {platform.python_version()}, torch {torch.__version__}; float32\n")
    print("| work | peer | peer [s] | ours [s] | ratio | max relative l2 error |")
    print("|---|---|---:|---:|---:|---:|")
    for benchmark in BENCHMARKS:
        for row in benchmark(arguments.device, arguments.quick):
            print(row, flush=True)


if __name__ == "__main__":
    main()
