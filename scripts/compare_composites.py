"""Compare composites to choose LRP's default, by the protocol fixed beforehand in docs/lrp.md; print the tables.

python scripts/compare_composites.py FOLDER [--photographs 128] [--steps 16]

FOLDER contains weights/squeezenet1_1_imagenet.pt, photographs in data/images/imagenet, and OSIE's photographs and fixation
maps in data/gaze/osie.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vis.claims import interval, mean
from vis.data import preprocessing
from vis.methods import LRP, Method, explain_all
from vis.methods.baseline import baseline_image
from vis.metrics.deletion import curves
from vis.models import torchvision_classifier

CANDIDATES = (
    "epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1", "epsilon_alpha2_beta1_flat",
)  # fmt: skip
CONTROLS: dict[str, Method] = {"epsilon, no composite": LRP("epsilon")}
METHODS: dict[str, Method] = {name: LRP(composite=name) for name in CANDIDATES} | CONTROLS
METRICS = {"deletion": -1, "insertion": 1, "own - other gaze": 1}  # the sign of an improvement
SHORTER, CROP, FIXATED = 256, 224, 0.3


def opened(path: Path, mode: str = "RGB") -> Tensor:
    """Read an image as [1, channels, 224, 224] in [0, 1]: shorter side 256, centre crop."""
    image = Image.open(path).convert(mode)
    scale = SHORTER / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - CROP) // 2, (image.height - CROP) // 2
    pixels = np.asarray(image.crop((left, top, left + CROP, top + CROP)), dtype=np.float32) / 255
    return torch.from_numpy(pixels).view(1, CROP, CROP, -1).movedim(-1, 1).contiguous()


def shuffled(paths: list[Path], count: int) -> list[Path]:
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
    return [paths[i] for i in order[:count].tolist()]


def explained(net: nn.Module, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the network's input, and the maps of its largest logit, [1, 1, H, W]."""
    preprocess = preprocessing("imagenet")
    x = preprocess(pixels)
    (maps,), _ = explain_all(METHODS, net, x, [None], preprocess)
    return x, {name: each.sum(1, keepdim=True) for name, each in maps.items()} | {
        "noise": torch.randn(x[:, :1].shape, generator=torch.Generator().manual_seed(0))
    }


def fixated(path: Path) -> Tensor:
    """Return a mask of the most fixated 30 % of the crop, [1, 1, H, W]."""
    density = opened(path, "L").flatten()
    area = torch.zeros_like(density)
    area[density.argsort(descending=True, stable=True)[: round(FIXATED * density.numel())]] = 1
    return area.view(1, 1, CROP, CROP)


def deletion_and_insertion(net: nn.Module, paths: list[Path], steps: int) -> dict[str, dict[str, list[float]]]:
    """Return {metric: {method: one value per photograph}}."""
    found: dict[str, dict[str, list[float]]] = {"deletion": {}, "insertion": {}}
    for path in paths:
        x, maps = explained(net, opened(path))
        for name, each in maps.items():
            areas = curves(net, x, each, None, baseline_image(x, "blur", None), steps, batch=4)
            found["deletion"].setdefault(name, []).append(areas.deletion_auc.item())
            found["insertion"].setdefault(name, []).append(areas.insertion_auc.item())
    return found


def gaze(net: nn.Module, paths: list[Path], fixations: list[Path]) -> dict[str, dict[str, list[float]]]:
    """Return, in the same form, a map's share in its own fixated area, and that minus its share in the next image's."""
    found: dict[str, dict[str, list[float]]] = {"fixated share": {}, "own - other gaze": {}}
    areas = [fixated(path) for path in fixations]
    for i, path in enumerate(paths):
        for name, each in explained(net, opened(path))[1].items():
            share = each.abs() / each.abs().sum()
            own, other = ((share * areas[k % len(areas)]).sum().item() for k in (i, i + 1))
            found["fixated share"].setdefault(name, []).append(own)
            found["own - other gaze"].setdefault(name, []).append(own - other)
    return found


def chosen(found: dict[str, dict[str, list[float]]]) -> Iterator[str]:
    """Yield the table of the tie rule, which compares the best candidate with its runner-up, and the resulting default."""
    winners = []
    yield "| metric | best | runner-up | best - runner-up | decided |"
    yield "|---|---|---|---|---|"
    for metric, sign in METRICS.items():
        values = found[metric]
        best, second = sorted(CANDIDATES, key=lambda name: -sign * mean(values[name]))[:2]
        low, high = interval(differences := [a - b for a, b in zip(values[best], values[second], strict=True)])
        decided = low > 0 or high < 0
        winners.append(best if decided else "")
        yield f"| {metric} | {best} | {second} | {words(differences)} | {'yes' if decided else 'no'} |"
    yield ""
    same = len(set(winners)) == 1 and winners[0]
    yield f"Default: {winners[0] if same else 'epsilon_plus'} ({'decided' if same else 'undecided'})."


def words(values: list[float]) -> str:
    low, high = interval(values)
    return f"{mean(values):.3f} [{low:.3f}, {high:.3f}]"


def table(found: dict[str, dict[str, list[float]]]) -> Iterator[str]:
    yield f"| | {' | '.join(found)} |"
    yield f"|---|{'---|' * len(found)}"
    for name in next(iter(found.values())):
        yield f"| {name} | {' | '.join(words(values[name]) for values in found.values())} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--photographs", type=int, default=128, help="number of each kind; one half chooses the default"
    )
    parser.add_argument("--steps", type=int, default=16, help="steps of deletion and insertion")
    arguments = parser.parse_args()
    net = torchvision_classifier("squeezenet1_1").eval().to(memory_format=torch.channels_last)
    net.load_state_dict(torch.load(arguments.folder / "weights" / "squeezenet1_1_imagenet.pt"))
    osie = arguments.folder / "data" / "gaze" / "osie"
    pictures = shuffled(sorted((arguments.folder / "data/images/imagenet").glob("*.JPEG")), arguments.photographs)
    scenes = shuffled(sorted((osie / "images").glob("*.jpg")), arguments.photographs)
    for title, start in (("The half that chooses", 0), ("The other half", 1)):
        half, watched = pictures[start::2], scenes[start::2]
        found = deletion_and_insertion(net, half, arguments.steps)
        found |= gaze(net, watched, [osie / "fixation_maps" / f"{path.stem}.png" for path in watched])
        print(f"\n### {title}: {len(half)} photographs, {len(watched)} scenes\n")
        print(*table(found), "", *chosen(found), sep="\n", flush=True)


if __name__ == "__main__":
    main()
