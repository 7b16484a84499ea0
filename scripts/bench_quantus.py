"""Compare the speed and the values of Quantus: pixel flipping, max-sensitivity, and randomisation of the weights.

    python -m venv quantus && quantus/bin/pip install quantus captum torch torchvision "numpy<2.3"
    python scripts/bench_quantus.py quantus/bin/python [--images 100] [--block 20] [--size 192]

Quantus needs an environment of its own, since it does not work with numpy 2.4. Its half runs there, in a second process. Both
explain the same images of noise by the gradient of a class in the same SqueezeNet 1.1 with random weights, without its last
ReLU, and take turns after each block of images. Times are sums over the blocks, without the transfers between the processes. The
errors are relative l2.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torchvision

STEPS, SAMPLES, RADIUS, SEED = 24, 10, 0.2, 42
Arrays = dict[str, np.ndarray]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    net = torchvision.models.squeezenet1_1(weights=None).eval()
    net.classifier[2] = torch.nn.Identity()  # behind this ReLU, a random class map and its gradient may be 0
    return net


# --- Quantus's half ---------------------------------------------------------------------------------------------------


def peers() -> dict[str, Callable[[Arrays], np.ndarray]]:
    import quantus  # type: ignore[import-not-found]  # it is in the peer's environment
    from captum.attr import Saliency

    net = network()

    def gradients(model: torch.nn.Module, inputs: np.ndarray, targets: np.ndarray, **_: Any) -> np.ndarray:
        x, classes = torch.as_tensor(inputs, dtype=torch.float32), torch.as_tensor(targets)
        maps: torch.Tensor = Saliency(model).attribute(x, target=classes, abs=False)
        return maps.sum(1, keepdim=True).numpy()

    def call(metric: Any, given: Arrays, x: np.ndarray, **options: Any) -> Any:
        return metric(net, x, given["classes"], batch_size=len(x), device="cpu", **options)

    def flip(given: Arrays, x: np.ndarray, content: np.ndarray) -> np.ndarray:
        def replace(arr: np.ndarray, indices: np.ndarray, **_: Any) -> np.ndarray:
            rows = np.arange(len(arr))[:, None]
            arr = arr.copy()
            arr[rows, indices] = content.reshape(len(arr), -1)[rows, indices]
            return arr

        step = x[0].size // STEPS  # must divide H * W. The channels of a pixel are equal in the map, and leave together
        metric = quantus.PixelFlipping(step, normalise=False, perturb_func=replace, disable_warnings=True)
        return np.array(call(metric, given, x, a_batch=given["maps"]))

    def sensitivity(given: Arrays) -> np.ndarray:
        noise = iter(given["noise"])
        metric = quantus.MaxSensitivity(
            nr_samples=SAMPLES,
            perturb_func=lambda arr, indices, **_: (arr + next(noise).reshape(1, -1)).astype(arr.dtype),
            disable_warnings=True,
        )
        return np.array(call(metric, given, given["images"], a_batch=given["maps"], explain_func=gradients))

    def randomisation(given: Arrays) -> np.ndarray:
        metric = quantus.MPRT(seed=SEED, disable_warnings=True)
        scores = call(metric, given, given["images"], a_batch=given["maps"], explain_func=gradients)
        return np.array([value for name, value in scores.items() if name != "original"])

    return {
        "deletion": lambda given: flip(given, given["images"], np.zeros_like(given["images"])),
        "insertion": lambda given: flip(given, np.zeros_like(given["images"]), given["images"]),
        "max-sensitivity": sensitivity,
        "randomisation": randomisation,
    }


def serve() -> None:
    """Answer requests "work file" on stdin: read arrays from the file, write the results to it, print the seconds."""
    answers, out = peers(), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Quantus prints
    print(" ".join(f"{name} {module.__version__}" for name, module in modules()), file=out, flush=True)
    for line in sys.stdin:
        work, file = line.split()
        given = dict(np.load(file))
        start = time.perf_counter()
        result = answers[work](given)
        seconds = time.perf_counter() - start
        np.savez(file, result=result)
        print(seconds, file=out, flush=True)


def modules() -> list[tuple[str, Any]]:
    import captum
    import quantus

    return [("Quantus", quantus), ("captum", captum), ("numpy", np), ("torch", torch)]


# --- this project's half ----------------------------------------------------------------------------------------------


def ours(work: str, net: torch.nn.Module, x: torch.Tensor, classes: list[int]) -> np.ndarray:
    from vis.methods import Saliency
    from vis.metrics import spearman
    from vis.metrics.deletion import curves
    from vis.metrics.sensitivity import max_sensitivity

    def explain(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return Saliency()(net, x, list(classes)).sum(1, keepdim=True)

    maps = explain(net, x)
    if work == "max-sensitivity":
        return max_sensitivity(partial(explain, net), x, RADIUS, SAMPLES, SEED).numpy()
    if work == "randomisation":
        net, found = network().to(memory_format=torch.channels_last), []
        for module in [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)][::-1]:
            torch.manual_seed(SEED + 1)
            module.reset_parameters()
            found.append(spearman(maps.abs(), explain(net, x).abs()))
        return torch.stack(found).numpy()
    both = curves(net, x, maps, list(classes), torch.zeros_like(x), STEPS)
    return np.stack([both.deletion[:, 1:], both.insertion[:, 1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("python", help="the python of an environment with Quantus")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--block", type=int, default=20, help="images before the other's turn")
    parser.add_argument("--size", type=int, default=192, help="side of the images, a multiple of 12")
    arguments = parser.parse_args()
    from bench import hardware

    from vis.methods import Saliency
    from vis.system.allocator import keep_freed_memory

    keep_freed_memory()
    net = network().to(memory_format=torch.channels_last)
    peer = subprocess.Popen(
        [arguments.python, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert peer.stdin
    assert peer.stdout
    versions = peer.stdout.readline().strip()
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    errors: dict[str, float] = defaultdict(float)
    generator = torch.Generator().manual_seed(SEED)
    shape = (3, arguments.size, arguments.size)
    noise = [RADIUS * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) for _ in range(SAMPLES)]
    images = torch.randn(arguments.images, *shape, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "arrays.npz"

        def theirs(work: str, **given: Any) -> tuple[float, np.ndarray]:
            np.savez(file, **given)
            assert peer.stdin
            assert peer.stdout
            print(work, file, file=peer.stdin, flush=True)
            seconds = float(peer.stdout.readline())
            return seconds, np.load(file)["result"]

        for x in images.split(arguments.block):
            with torch.no_grad():
                classes = net(x).argmax(1)
            given = {
                "images": x.numpy(),
                "classes": classes.numpy(),
                "maps": Saliency()(net, x, classes.tolist()).sum(1, keepdim=True).numpy(),
                "noise": torch.stack(noise).float().numpy(),
            }
            for work in ("deletion and insertion", "max-sensitivity", "randomisation"):
                start = time.perf_counter()
                found = ours(work, net, x, classes.tolist())
                our_time = time.perf_counter() - start
                peers = [theirs(each, **given) for each in work.split(" and ")]
                wanted = np.stack([each for _, each in peers]) if len(peers) > 1 else peers[0][1]
                times[work].append((sum(seconds for seconds, _ in peers), our_time))
                errors[work] = max(errors[work], float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)))
                print(".", end="", file=sys.stderr, flush=True)
        peer.stdin.close()
        peer.wait()
    print(f"\n{hardware('cpu')}; Python {platform.python_version()}, torch {torch.__version__}; peer: {versions}")
    print(f"SqueezeNet 1.1, random weights, {arguments.images} images of {arguments.size}x{arguments.size}\n")
    print("| work | Quantus [s] | ours [s] | ratio | median ratio of the blocks | max relative l2 error |")
    print("|---|---:|---:|---:|---:|---:|")
    details = {
        "deletion and insertion": f", {STEPS} steps",
        "max-sensitivity": f", {SAMPLES} samples",
        "randomisation": ", 26 layers",
    }
    for work, pairs in times.items():
        peer_time, our_time = (sum(each) for each in zip(*pairs, strict=True))
        middle = median(a / b for a, b in pairs)
        print(
            f"| {work}{details[work]} | {peer_time:.1f} | {our_time:.1f} | {peer_time / our_time:.2f} | {middle:.2f} | "
            f"{errors[work]:.1e} |"
        )


if __name__ == "__main__":
    serve() if "--serve" in sys.argv else main()
