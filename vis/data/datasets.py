"""Datasets: images with names and, where known, labels.

A dataset is a sequence of pictures. What size they get and what preprocessing they go through is the model's choice
(`vis.data.preprocess`), unless the config says otherwise.
"""

import contextlib
import hashlib
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vis.data.images import SUFFIXES, read_image
from vis.errors import Lacking, UserError, did_you_mean

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """Named pictures: `read(i)` is the i-th as a PIL image, `names[i]` its unique name, `labels[i]` its class or None.

    classes: names of the labels, where known. origin: in words, for provenance. sources: the names of the pictures that
    each is composed of, where it is.
    """

    origin: str
    names: Sequence[str]
    labels: Sequence[int | None]
    read: Callable[[int], Image.Image]
    classes: Sequence[str] | None = None
    sources: Sequence[tuple[str, ...]] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def first(self, limit: int | None) -> "Dataset":
        """The first `limit` pictures; all for None."""
        if limit is None or limit >= len(self):
            return self
        if limit < 1:
            raise UserError(f"dataset.limit={limit} leaves no image: give 1 or more")
        return self.part(range(limit))

    def part(self, kept: Sequence[int]) -> "Dataset":
        """The pictures with these indices."""
        return replace(
            self,
            names=[self.names[i] for i in kept],
            labels=[self.labels[i] for i in kept],
            read=lambda i: self.read(kept[i]),
            sources=self.sources and [self.sources[i] for i in kept],
        )

    def manifest(self) -> list[dict[str, Any]]:
        """What each picture is composed of: rows of image, label, source_1, source_2."""
        return [
            {"image": name, "label": label} | {f"source_{k}": source for k, source in enumerate(sources, 1)}
            for name, label, sources in zip(self.names, self.labels, self.sources or (), strict=True)
        ]

    def fingerprint(self) -> str:
        """sha256 over names, labels and up to 64 pictures spread evenly: enough to notice other data."""
        digest = hashlib.sha256(repr((list(self.names), list(self.labels))).encode())
        for i in np.unique(np.linspace(0, len(self) - 1, min(64, len(self))).round().astype(int)):
            picture = self.read(int(i))
            digest.update(repr(picture.size).encode() + picture.tobytes())
        return digest.hexdigest()


# The photographs that scikit-image ships, all CC0 or public domain. Their files are read without importing it.
_SAMPLES = {
    "tabby": "chelsea.png",
    "astronaut": "astronaut.png",
    "coffee": "coffee.png",
    "rocket": "rocket.jpg",
    "cameraman": "camera.png",
}


def samples(names: Sequence[str] | str = ("tabby",)) -> Dataset:
    """The bundled photographs, by name: tabby (scikit-image's cat Chelsea), astronaut, coffee, rocket, cameraman."""
    names = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    if names == ["all"]:
        names = list(_SAMPLES)
    if not names:
        raise UserError(f"dataset.names is empty: there is {', '.join(_SAMPLES)}, or all")
    for name in names:
        if name not in _SAMPLES:
            raise UserError(f"there is no sample image {name!r}.{did_you_mean(name, _SAMPLES)}")
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise UserError("the bundled images come with scikit-image, which is not installed: pip install scikit-image")
    home = Path(spec.origin).parent / "data"
    return Dataset(
        "photographs bundled with scikit-image",
        names,
        [None] * len(names),
        lambda i: read_image(home / _SAMPLES[names[i]]),
    )


def _from_files(origin: str, files: list[Path], root: Path, labels: list[int | None], classes: Any = None) -> Dataset:
    names = [file.relative_to(root).as_posix() for file in files]
    return Dataset(origin, names, labels, lambda i: read_image(files[i]), classes)


def _image_files(root: Path) -> list[Path]:
    """The image files under a folder in the order of their paths; nothing that is hidden or lies in a hidden folder."""
    found = [f for f in root.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file()]
    return sorted(f for f in found if not any(part.startswith(".") for part in f.relative_to(root).parts))


def _class_folders(root: Path) -> tuple[list[str], list[Path]]:
    """The names of the folders in `root` that hold images, and those images. UserError where there are none."""
    found = [f for f in _image_files(root) if f.parent != root]
    if not found:
        raise UserError(f"{root} holds no class folders with images: <class>/<image>.jpg")
    return sorted({f.relative_to(root).parts[0] for f in found}), found


def files(paths: Sequence[str] | str) -> Dataset:
    """Single pictures (`image=cat.jpg`); names are the files' names. Raises UserError for a missing file."""
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    found = [Path(path).expanduser() for path in paths]
    for path in found:
        if path.is_dir():
            raise UserError(f"{path} is a folder: use dataset=folder dataset.path={path}")
        if not path.is_file():
            raise UserError(f"no image file {path}")
    stems = [path.stem for path in found]
    names = stems if len(set(stems)) == len(stems) else [str(path) for path in found]
    return Dataset("image files", names, [None] * len(found), lambda i: read_image(found[i]))


def folder(path: str) -> Dataset:
    """All images of a folder and the folders in it, in the order of their names; no labels."""
    root = _existing(path)
    found = _image_files(root)
    if not found:
        raise UserError(f"dataset.path={path} holds no image ({', '.join(SUFFIXES)})")
    return _from_files(f"folder {root}", found, root, [None] * len(found))


def imagenet(path: str, split: str = "val") -> Dataset:
    """ImageNet in torchvision's layout, `path/val/<wnid>/*.JPEG`; the label is the rank of the wnid among 1000.

    A folder with fewer classes has no labels, since their ranks would be wrong.
    """
    root = _existing(path)
    root = root / split if (root / split).is_dir() else root
    wnids, found = _class_folders(root)
    rank = {wnid: i for i, wnid in enumerate(wnids)} if len(wnids) == 1000 else {}
    return _from_files(
        f"ImageNet {split}, {root}", found, root, [rank.get(f.relative_to(root).parts[0]) for f in found]
    )


def _from_torchvision(name: str, path: str, train: bool) -> Dataset:
    import torchvision

    root = Path(path).expanduser()
    made = [root / name / "raw", root / name] + [root] * (not root.exists())
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it downloads; stdout is for the run's path
            data = getattr(torchvision.datasets, name)(root, train=train, download=True)
    except Exception as error:  # no network, nowhere to write; on damaged files it raises almost anything
        for folder in made:  # which it makes before it finds that it cannot download; only empty ones go
            with contextlib.suppress(OSError):  # not empty, or never made
                folder.rmdir()
        reason = str(getattr(error, "reason", error)).split("\n")[0].rstrip(":") or "damaged files"
        raise Lacking(
            f"{name} can neither be read from dataset.path={path} nor be downloaded to it ({reason}): put torchvision's "
            "files there, or give another dataset.path"
        ) from error
    split = "train" if train else "test"
    labels = [int(label) for label in data.targets]
    names = [f"{split}_{i:05d}" for i in range(len(labels))]
    return Dataset(f"{name} {split}", names, labels, lambda i: data[i][0], [str(c) for c in data.classes])


def mnist(path: str = "data", train: bool = False, fallback: bool = False) -> Dataset:
    """MNIST through torchvision, downloaded into `path` on first use.

    fallback: scikit-learn's digits where MNIST can neither be read nor downloaded; every fifth is a test image.
    """
    try:
        return _from_torchvision("MNIST", path, train)
    except UserError as error:
        if not fallback:
            raise
        log.info("%s. Here scikit-learn's digits take its place", error)
        whole = digits()
        return whole.part([i for i in range(len(whole)) if (i % 5 != 0) == train])


def cifar10(path: str = "data", train: bool = False) -> Dataset:
    """CIFAR-10: an image folder `path/<train|test>/<class>/*`, or else torchvision's files, downloaded on first use."""
    root = Path(path).expanduser() / ("train" if train else "test")
    if not root.is_dir():
        return _from_torchvision("CIFAR10", path, train)
    classes, found = _class_folders(root)
    return _from_files(
        f"CIFAR-10, {root}", found, root, [classes.index(f.relative_to(root).parts[0]) for f in found], classes
    )


def digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8, offline."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pictures = (data.images / 16 * 255).round().astype(np.uint8)
    names = [f"digit_{i:04d}" for i in range(len(pictures))]
    labels = [int(label) for label in data.target]
    return Dataset(
        "scikit-learn's digits", names, labels, lambda i: Image.fromarray(pictures[i]), [str(i) for i in range(10)]
    )


def _existing(path: str) -> Path:
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"dataset.path={path} is no folder")
    return root
