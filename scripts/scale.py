"""Measure what the maps of 50,000 images (ImageNet's validation set) cost: hours, memory and disk, by method and network.

python scripts/scale.py [--device cuda]

On a CPU the clock is the processor time of one thread, which another load on the machine changes little; n processes of one
thread (torchrun, a Slurm array) take an n-th of the hours. On a GPU it is the wall clock. Each method explains a batch of one
image and, if that is quick, one of eight; the faster one counts. Weights are random: they do not change the cost. Decoding the
images and the statistics of a run are not included. Disk: a float32 map of each image; a row of tables takes about 2 kB.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from bench import hardware
from torch import Tensor

from vis.config.compose import compose_config, register
from vis.runner.execute import prepare
from vis.runner.experiment import Run
from vis.system.device import peak_memory_gb, reset_peak_memory, synchronise

IMAGES = 50_000
RANDOM = ("model.weights=null", "model.init=kaiming_normal")
NETWORKS = {
    "squeezenet": ("model=squeezenet", *RANDOM),
    "resnet50": ("model=resnet50", *RANDOM),
    "vgg16": ("model=vgg16", *RANDOM),
}
METHODS = (
    "saliency", "gbp", "deconvnet", "gradcam", "eigencam", "fem", "lrp", "deeplift", "smoothgrad", "integrated_gradients",
    "ablationcam",
)  # fmt: skip
QUICK = 0.6  # seconds: slower ones are timed once, with one image


def rows(network: str, device: str, outputs: str) -> Iterator[str]:
    words = [*NETWORKS[network], f"method=[{','.join(METHODS)}]", f"device={device}", f"outputs={outputs}"]
    run = Run(compose_config(words))
    prepare(run.config)
    model = run.model()
    images = torch.randn(8, 3, *model.input_size, generator=torch.Generator().manual_seed(0))
    images = images.to(run.device, memory_format=model.memory_format)

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.as_tensor(model.net(x))

    def explain(name: str, x: Tensor) -> Tensor:
        return run.methods[name](model.net, x, 0, preprocess=run.preprocess(model))

    yield row(network, "forward pass", forward, images, run.device)
    for name in METHODS:
        try:
            yield row(network, name, partial(explain, name), images, run.device)
        except Exception as error:  # a method that the network does not suit
            yield f"| {network} | {name} | {' '.join(str(error).split())[:80]} | | | | |"


def row(network: str, what: str, work: Callable[[Tensor], Tensor], images: Tensor, device: torch.device) -> str:
    gc.collect()
    reset_peak_memory(device)
    (seconds, out), batch = timed(work, images[:1], device), 1
    if seconds < QUICK:
        seconds = min(timed(work, images[:1], device)[0] for _ in range(2))
        eight = timed(work, images, device)[0] / len(images)
        seconds, batch = min((seconds, 1), (eight, len(images)))
    stored = 4 * out[0].numel() if out.dim() == 4 else 0
    hours, gigabytes = seconds * IMAGES / 3600, stored * IMAGES / 1e9
    disk = f"{stored / 1000:.0f} | {gigabytes:.0f}" if stored else " | "
    return f"| {network} | {what} | {batch} | {seconds:.3f} | {hours:.1f} | {peak_memory_gb(device):.1f} | {disk} |"


def timed(work: Callable[[Tensor], Tensor], images: Tensor, device: torch.device) -> tuple[float, Tensor]:
    """Return the seconds of a call, processor time on a CPU, and its result."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    synchronise(device)
    start = clock()
    out = work(images)
    synchronise(device)
    return clock() - start, out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    device = parser.parse_args().device
    if device == "cpu":
        torch.set_num_threads(1)
    register()
    print(f"{hardware(device)}; torch {torch.__version__}; float32\n")
    print(f"| network | method | batch | s/image | hours for {IMAGES:,} | peak GB | kB a map | GB of all maps |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as outputs:
        for network in NETWORKS:
            for line in rows(network, device, outputs):
                print(line, flush=True)


if __name__ == "__main__":
    main()
