"""Two pictures of one class, one above the other (taimeskhanov2024, section 3.2): the lower one lies in the dead zone.

STACK-MIX, Eq. (6): of two 224x224 images of one class, rows 1 to 170 of the first over rows 171 to 224 of the second.
The small datasets put two whole pictures one above the other.
"""

import logging

import numpy as np
from PIL import Image

from vis.data.datasets import Dataset, cifar10, digits, imagenet, mnist
from vis.data.images import fitted
from vis.errors import UserError

log = logging.getLogger(__name__)

SIDE, UPPER = 224, 170  # of Eq. (6), in pixels


def stack_mix(path: str, split: str = "val", classes: int = 398, count: int = 100, seed: int = 0) -> Dataset:
    """STACK-MIX built from images in torchvision's layout, `path/<split>/<wnid>/*`: 224x224, one image of each class.

    `count` classes are drawn of the first `classes` in the order of their names (animals, of ImageNet), and two images of
    each; they are resized to a shorter side of 224 and cut at their centre. A folder with fewer classes gives fewer
    images. `sources` are the files. Raises UserError where no class has two images.
    """
    whole = imagenet(path, split)
    members: dict[str, list[int]] = {}
    for i, name in enumerate(whole.names):
        members.setdefault(name.split("/")[0], []).append(i)
    pairable = [wnid for wnid in sorted(members)[:classes] if len(members[wnid]) > 1]
    if not pairable:
        raise UserError(f"dataset.path={path} has no class with two images: STACK-MIX needs two of each class")
    if len(pairable) < count:
        log.warning(
            "STACK-MIX of %d classes, one image each: %s has no more with two images (asked for: %d of the first %d)",
            len(pairable), path, count, classes,
        )  # fmt: skip
    random = np.random.default_rng(seed)
    chosen = sorted(random.choice(pairable, min(count, len(pairable)), replace=False).tolist())
    pairs = [random.choice(members[wnid], 2, replace=False).tolist() for wnid in chosen]

    def read(i: int) -> Image.Image:
        first, second = (fitted(whole.read(j).convert("RGB"), (SIDE, SIDE)) for j in pairs[i])
        first.paste(second.crop((0, UPPER, SIDE, SIDE)), (0, UPPER))
        return first

    return Dataset(
        f"STACK-MIX of {len(chosen)} classes, seed {seed}, from {whole.origin}",
        chosen,
        [whole.labels[first] for first, _ in pairs],
        read,
        sources=[(whole.names[first], whole.names[second]) for first, second in pairs],
    )


def stacked(data: Dataset, seed: int, side: int) -> Dataset:
    """Each picture of a dataset over another of its class: each is once the upper and once the lower one.

    side: of the square pictures; where the dataset's are others, they are resized before they are put together.
    """
    random = np.random.default_rng(seed)
    below = np.arange(len(data))
    labels = np.array(data.labels)
    for label in np.unique(labels):
        order = random.permutation(np.flatnonzero(labels == label))
        below[order] = np.roll(order, 1)  # one cycle: no picture lies over itself
    if (below == np.arange(len(data))).any():
        raise UserError(f"{data.origin} has a class of one picture: stacking takes two of each class")

    def read(i: int) -> Image.Image:
        upper, lower = (fitted(data.read(j), (side, side)) for j in (i, int(below[i])))
        both = Image.new(upper.mode, (side, 2 * side))
        both.paste(upper, (0, 0))
        both.paste(lower, (0, side))
        return both

    sources = [(name, data.names[j]) for name, j in zip(data.names, below.tolist(), strict=True)]
    return Dataset(f"stacked {data.origin}, seed {seed}", data.names, data.labels, read, data.classes, sources)


def stacked_mnist(path: str = "data", train: bool = False, seed: int = 0, fallback: bool = False) -> Dataset:
    """MNIST, two digits of one class one above the other, 1x56x28; named after the upper one.

    fallback: scikit-learn's digits where MNIST can neither be read nor downloaded.
    """
    try:
        return stacked(mnist(path, train), seed, 28)
    except UserError as error:
        if not fallback:
            raise
        log.info("%s. Here scikit-learn's digits take its place", error)
        return stacked_digits(train, seed)


def stacked_cifar10(path: str = "data", train: bool = False, seed: int = 0) -> Dataset:
    """CIFAR-10, two images of one class one above the other, 3x64x32; named after the upper one."""
    return stacked(cifar10(path, train), seed, 32)


def stacked_digits(train: bool = False, seed: int = 0) -> Dataset:
    """scikit-learn's digits in the size of MNIST, stacked alike, offline. Every fifth is a test image."""
    whole = digits()
    return stacked(whole.part([i for i in range(len(whole)) if (i % 5 != 0) == train]), seed, 28)
