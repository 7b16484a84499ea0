"""Stack two images (taimeskhanov2024, section 3.2): the lower one lies in the dead zone of a network with a wall.

STACK-MIX, Eq. (6): for two 224x224 images of one class, rows 1 to 170 of the first above rows 171 to 224 of the second.
Photographs without labels are stacked in the same way; the small datasets stack two whole images.
"""

import logging

import numpy as np
from PIL import Image

from vis.data.datasets import Dataset, cifar10, digits, folder, imagenet, mnist, samples
from vis.data.images import fitted
from vis.errors import UserError

log = logging.getLogger(__name__)

SIDE, UPPER = 224, 170  # of Eq. (6), in pixels
MEAN = (124, 116, 104)  # of ImageNet's pixels


def stack_mix(path: str, split: str = "val", classes: int = 398, count: int = 100, seed: int = 0) -> Dataset:
    """Build STACK-MIX from images in torchvision's layout, `path/<split>/<wnid>/*`: 224x224, one image per class.

    Draws `count` of the first `classes` classes in the order of their names (ImageNet's animals), and two images of each;
    they are resized to a shorter side of 224 and cropped at the centre. A folder with fewer classes gives fewer images.
    `sources` are the files. Raises UserError if no class has two images.
    """
    whole = imagenet(path, split)
    members: dict[str, list[int]] = {}
    for i, name in enumerate(whole.names):
        members.setdefault(name.split("/")[0], []).append(i)
    pairable = [wnid for wnid in sorted(members)[:classes] if len(members[wnid]) > 1]
    if not pairable:
        raise UserError(f"dataset.path={path} has no class with two images: STACK-MIX needs two images per class")
    if len(pairable) < count:
        log.warning(
            "STACK-MIX has only %d classes, one image each: no other in %s has two images (requested: %d of the first %d)",
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


def stack_photographs(
    photographs: Dataset | str | None = None, below: str = "same", upper: int = 167, seed: int = 0
) -> Dataset:
    """Compose 224x224 images as Eq. (6) does: the first `upper` rows of a photograph, and below them other rows.

    photographs: a dataset, or its folder; None: the bundled ones. Their shorter side becomes 256, their centre is cropped.
    below: `same`, the middle rows of the same photograph, mirrored left to right; `different`, the lower rows of another
    photograph; `gray`, the mean colour of ImageNet. upper: by default the rows that squeezenet_masked sees.
    Raises ValueError for other words, UserError if `different` has a single photograph.
    """
    words = {
        "same": "their own middle rows, mirrored",
        "different": "the lower rows of others",
        "gray": "the mean colour",
    }
    if below not in words or not 0 < upper < SIDE:
        raise ValueError(f"below={below}, upper={upper}: below is {', '.join(words)}, upper is 1 to {SIDE - 1}")
    if photographs is None or isinstance(photographs, str):
        photographs = samples("known") if photographs is None else folder(photographs)
    data, rows = photographs, SIDE - upper
    if below == "different" and len(data) == 1:
        raise UserError(f"{data.origin} is a single photograph: dataset.below=different needs two or more")
    order = np.random.default_rng(seed).permutation(len(data))
    others = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))  # one cycle: no photograph is its own

    def whole(i: int) -> Image.Image:
        return fitted(data.read(i).convert("RGB"), (SIDE, SIDE), 256)

    def read(i: int) -> Image.Image:
        image = whole(i)
        if below == "gray":
            image.paste(MEAN, (0, upper, SIDE, SIDE))
        elif below == "same":
            middle = image.crop((0, (SIDE - rows) // 2, SIDE, (SIDE - rows) // 2 + rows))
            image.paste(middle.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (0, upper))
        else:
            image.paste(whole(others[i]).crop((0, upper, SIDE, SIDE)), (0, upper))
        return image

    lower = {"same": lambda i: data.names[i], "different": lambda i: data.names[others[i]], "gray": lambda i: "gray"}
    sources = [(name, lower[below](i)) for i, name in enumerate(data.names)]
    return Dataset(
        f"photographs above {words[below]}: {data.origin}", data.names, data.labels, read, data.classes, sources
    )


def stacked(data: Dataset, seed: int, side: int) -> Dataset:
    """Stack each image of a dataset on another of its class, so that each appears once on top and once below.

    side: of the square images, to which each is resized before stacking. Raises UserError if a class has one image.
    """
    random = np.random.default_rng(seed)
    below = np.arange(len(data))
    labels = np.array(data.labels)
    for label in np.unique(labels):
        order = random.permutation(np.flatnonzero(labels == label))
        below[order] = np.roll(order, 1)  # one cycle: no image is stacked on itself
    if (below == np.arange(len(data))).any():
        raise UserError(f"{data.origin} has a class with a single image: stacking needs two per class")

    def read(i: int) -> Image.Image:
        upper, lower = (fitted(data.read(j), (side, side)) for j in (i, int(below[i])))
        both = Image.new(upper.mode, (side, 2 * side))
        both.paste(upper, (0, 0))
        both.paste(lower, (0, side))
        return both

    sources = [(name, data.names[j]) for name, j in zip(data.names, below.tolist(), strict=True)]
    return Dataset(f"stacked {data.origin}, seed {seed}", data.names, data.labels, read, data.classes, sources)


def stacked_mnist(path: str = "data", train: bool = False, seed: int = 0, fallback: bool = False) -> Dataset:
    """Stack two MNIST digits of one class, 1x56x28; named after the upper one.

    fallback: use scikit-learn's digits if MNIST can neither be read nor downloaded.
    """
    try:
        return stacked(mnist(path, train), seed, 28)
    except UserError as error:
        if not fallback:
            raise
        log.info("%s. Using scikit-learn's digits instead", error)
        return stacked_digits(train, seed)


def stacked_cifar10(path: str = "data", train: bool = False, seed: int = 0) -> Dataset:
    """Stack two CIFAR-10 images of one class, 3x64x32; named after the upper one."""
    return stacked(cifar10(path, train), seed, 32)


def stacked_digits(train: bool = False, seed: int = 0) -> Dataset:
    """Stack scikit-learn's digits at the size of MNIST, which needs no download. Every fifth is a test image."""
    whole = digits()
    return stacked(whole.part([i for i in range(len(whole)) if (i % 5 != 0) == train]), seed, 28)
