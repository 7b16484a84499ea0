"""Run 10,000 small images through `visualize` and Figure 7 of nie2018: is memory flat, and does a run survive being killed?

python scripts/soak.py [--images 10000] [--kills 20] [--folder soak]

The images are random crops of the bundled photographs, 32x32 PNGs; the networks are small. Each experiment runs twice:

- uninterrupted, while its resident memory (VmRSS) is sampled. On each of its networks, it may grow by at most 5 % between the
  first 1,000 images (a tenth of fewer) and the last one; another network takes memory of its own;
- killed (SIGKILL) at random times and resumed each time. Its tables, claims and maps must equal the uninterrupted run's.

Exit code 0: both hold for both experiments; 1: one does not. The runs stay in FOLDER; FOLDER/soak.json has the numbers.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from vis.data import samples
from vis.system.files import write_json

SIDE, BATCH = 32, 20
GROWTH = 0.05
WRITTEN = ("maps.npz", "tables.json", "table.csv", "claims.json", "figure.png")  # in this order, after the last task
RANDOM = "experiment.models.random"  # of Figure 7: a small network in place of VGG-16
COMMANDS = {
    "visualize": ("model=vgg_small", "method=[saliency,gbp,gradcam]", "+experiment.maps=100"),
    "figure7": (
        "experiment=nie2018/figure7", "preset=tiny", "seeds=1", f"{RANDOM}._target_=vis.models.VGGSmall", f"~{RANDOM}.pool",
        f"{RANDOM}.input_size={SIDE}", f"{RANDOM}.num_classes=10",
    ),
}  # fmt: skip


def make_images(folder: Path, count: int, side: int = SIDE) -> None:
    """Write `count` random square crops of the bundled photographs, resized to `side`; the same ones each time."""
    folder.mkdir(parents=True, exist_ok=True)
    data, rng = samples("all"), np.random.default_rng(0)
    photographs = [data.read(i).convert("RGB") for i in range(len(data))]

    def save(place: tuple[int, int, int, int]) -> None:
        i, left, top, size = place
        crop = photographs[i % len(photographs)].crop((left, top, left + size, top + size))
        crop.resize((side, side), Image.Resampling.BILINEAR).save(folder / f"{i:06d}.png", compress_level=1)

    places = []
    for i in range(count):
        width, height = photographs[i % len(photographs)].size
        size = int(rng.integers(SIDE, min(width, height) + 1))
        places.append((i, int(rng.integers(0, width - size + 1)), int(rng.integers(0, height - size + 1)), size))
    with ThreadPoolExecutor() as pool:
        list(pool.map(save, places))


def start(words: Sequence[str], log: Path) -> subprocess.Popen[str]:
    one_thread = {"OMP_NUM_THREADS": "1"} | os.environ
    with log.open("a", encoding="utf-8") as errors:
        command = [sys.executable, "-m", "vis.run", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=one_thread)


def ended(process: subprocess.Popen[str], log: Path) -> None:
    """Raise RuntimeError if the process failed; one that was killed did not."""
    if process.wait() not in (0, -signal.SIGKILL):
        raise RuntimeError(f"exit code {process.returncode}: {log.read_text(encoding='utf-8')[-1000:]}")


def run_in(root: Path) -> Path | None:
    return next((path.parent for path in root.glob("*/*/config.yaml")), None)


def done(root: Path) -> int:
    """Return the number of tasks in the journal of the run in `root`."""
    folder = run_in(root)
    return len(list((folder / "parts").glob("*.npz"))) if folder else 0


def uninterrupted(words: Sequence[str], root: Path, log: Path) -> list[tuple[float, int, float]]:
    """Run a command; return samples of (seconds, tasks done, MB of resident memory)."""
    began, curve = time.perf_counter(), []
    process = start([*words, f"outputs={root}"], log)
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
        kilobytes = next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), None)
        if kilobytes:  # a process that has just ended has none
            curve.append((time.perf_counter() - began, done(root), kilobytes / 1000))
        time.sleep(0.1)
    ended(process, log)
    return curve


def written(root: Path, name: str, since: float) -> bool:
    """Return True if the run in `root` has written a file since a time."""
    folder = run_in(root)
    return folder is not None and (file := folder / name).exists() and file.stat().st_mtime > since


def killed(words: Sequence[str], root: Path, log: Path, kills: int, tasks: int) -> list[int]:
    """Run a command in processes that are killed at random moments; return the number of tasks done at each kill.

    All but the last three die after a random number of tasks, or before their first one; those three after the last task,
    when the run has merged its journal and writes one of its results.
    """
    rng, command = random.Random(0), [*words, f"outputs={root}"]
    at: list[int] = []
    while True:
        since, process = time.time(), start(command, log)
        if len(at) < kills - 3:
            until = min(done(root) + rng.randint(0, 2 * tasks // (kills + 1)), tasks - 1)
            while process.poll() is None and done(root) < until:
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.5))
        elif len(at) < kills:
            name = rng.choice(WRITTEN)
            while process.poll() is None and not written(root, name, since):
                time.sleep(0.02)
        if len(at) < kills:
            process.send_signal(signal.SIGKILL)
        ended(process, log)
        if process.returncode == 0:
            return at
        at.append(done(root))
        folder = run_in(root)
        command = ["--resume", str(folder)] if folder else command


def compared(one: Path, other: Path) -> list[str]:
    """Return the names of the results that differ between two runs, byte by byte."""
    names = ("tables.json", "table.csv", "claims.json", "maps.npz")
    return [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()]


def soak(name: str, images: int, kills: int, folder: Path) -> dict[str, Any]:
    """Run an experiment both ways, and return what was measured."""
    whole, pieces, log = folder / name / "whole", folder / name / "killed", folder / f"{name}.log"
    words = [
        *COMMANDS[name],
        "dataset=folder",
        f"dataset.path={folder / 'images'}",
        f"batch_size={BATCH}",
        "device=cpu",
    ]
    first_image = folder / name / "first"
    uninterrupted([*words, "dataset.limit=1"], first_image, log)  # trains the stand-in, which takes memory of its own
    for root in (whole, pieces):
        shutil.copytree(first_image / "standins", root / "standins")
    curve = uninterrupted(words, whole, log)
    one = run_in(whole)
    assert one is not None
    tasks = json.loads((one / "status.json").read_text(encoding="utf-8"))["tasks"]
    each = -(-images // BATCH)  # tasks on a network
    warm = min(1000, images // 10) // BATCH
    computing = list(takewhile(lambda sample: sample[1] < tasks, curve))  # then the run merges and removes its journal
    memory = [[m for _, n, m in computing if k * each + warm <= n < (k + 1) * each] for k in range(tasks // each)]
    print(f"{name}: {tasks} tasks in {curve[-1][0]:.0f} s", file=sys.stderr)
    at = killed(words, pieces, log, kills, tasks)
    other = run_in(pieces)
    assert other is not None
    size = sum(file.stat().st_size for file in one.iterdir() if file.is_file())
    return {
        "images": images,
        "tasks": tasks,
        "seconds": curve[-1][0],
        "MB resident at 1,000 images of each network": [median(values[:3]) for values in memory],
        "smallest and largest later": [[min(values), max(values)] for values in memory],
        "growth": max(max(values) / median(values[:3]) for values in memory) - 1,
        "largest afterwards, when the run merges and draws": max(m for _, _, m in curve[len(computing) :]),
        "MB resident by share of the tasks": {f"{10 * k} %": _at(curve, tasks * k // 10) for k in range(1, 10)},
        "bytes stored per image": size / images,
        "kills": len(at),
        "tasks done at each kill": at,
        "files that differ": compared(one, other),
    }


def _at(curve: list[tuple[float, int, float]], tasks: int) -> float:
    return min(curve, key=lambda sample: abs(sample[1] - tasks))[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("soak"), help="a new folder for the images and runs")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if any((folder / name).exists() for name in COMMANDS):
        parser.error(f"{folder} has the runs of another soak test: give another --folder")
    make_images(folder / "images", arguments.images)
    results, bad = {}, 0
    for name in COMMANDS:
        result = results[name] = soak(name, arguments.images, arguments.kills, folder)
        bad += result["growth"] > GROWTH or bool(result["files that differ"]) or result["kills"] < arguments.kills
        write_json(folder / "soak.json", results)
    print(json.dumps(results, indent=2))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
