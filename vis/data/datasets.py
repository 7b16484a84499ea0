"""Datasets: named images with optional labels.

A dataset is a sequence of images. The model sets their size and preprocessing (`vis.data.preprocess`), unless the
config overrides them.
"""

import contextlib
import fcntl
import hashlib
import io
import logging
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vis.data.boxes import Drawn, drawn
from vis.data.images import SUFFIXES, read_image
from vis.errors import Lacking, UserError, did_you_mean

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """Named images: `read(i)` loads the i-th as a PIL image, `names[i]` is its unique name, `labels[i]` its class or None.

    classes: class names, if known. origin: a description for the provenance. sources: for composed images, the names of
    the originals of each. files: the images' files, if each has one. gaze: reads the i-th image's fixation map, a picture
    with the sides' ratio of the image, bright where people look.
    """

    origin: str
    names: Sequence[str]
    labels: Sequence[int | None]
    read: Callable[[int], Image.Image]
    classes: Sequence[str] | None = None
    sources: Sequence[tuple[str, ...]] | None = None
    files: Sequence[Path] | None = None
    gaze: Callable[[int], Image.Image] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def first(self, limit: int | None) -> "Dataset":
        """Return the first `limit` images; all if None."""
        if limit is None or limit >= len(self):
            return self
        if limit < 1:
            raise UserError(f"dataset.limit={limit} leaves no images: give 1 or more")
        return self.part(range(limit))

    def part(self, kept: Sequence[int]) -> "Dataset":
        """Return the images with these indices."""
        gaze = self.gaze
        return replace(
            self,
            names=[self.names[i] for i in kept],
            labels=[self.labels[i] for i in kept],
            read=lambda i: self.read(kept[i]),
            sources=self.sources and [self.sources[i] for i in kept],
            files=self.files and [self.files[i] for i in kept],
            gaze=gaze and (lambda i: gaze(kept[i])),
        )

    def drawn(self, i: int) -> Drawn | None:
        """Return what is drawn on the i-th image (`vis.data.boxes`), None if nothing is."""
        return drawn(self.files[i]) if self.files else None

    def manifest(self) -> list[dict[str, Any]]:
        """List the sources of each image: rows of image, label, source_1, source_2."""
        return [
            {"image": name, "label": label} | {f"source_{k}": source for k, source in enumerate(sources, 1)}
            for name, label, sources in zip(self.names, self.labels, self.sources or (), strict=True)
        ]

    def fingerprint(self) -> str:
        """Return the sha256 of names and labels and of up to 64 evenly spaced images and fixation maps, to detect other data."""
        digest = hashlib.sha256(repr((list(self.names), list(self.labels))).encode())
        for i in np.unique(np.linspace(0, len(self) - 1, min(64, len(self))).round().astype(int)):
            for picture in (self.read(int(i)), *([self.gaze(int(i))] if self.gaze else [])):
                digest.update(repr(picture.size).encode() + picture.tobytes())
        return digest.hexdigest()


# Photographs that come with the project's dependencies, by name: package, file, ImageNet's class of its object (None: it has
# none). The files are read without importing the packages. KNOWN are those whose class is among the five
# to which SqueezeNet 1.1, trained on ImageNet, gives the largest probabilities.
_SAMPLES = {
    "tabby": ("skimage", "data/chelsea.png", 281),
    "astronaut": ("skimage", "data/astronaut.png", None),
    "coffee": ("skimage", "data/coffee.png", 967),
    "rocket": ("skimage", "data/rocket.jpg", 657),
    "cameraman": ("skimage", "data/camera.png", 872),
    "motorcycle": ("skimage", "data/motorcycle_left.png", 665),
    "palace": ("sklearn", "datasets/images/china.jpg", 698),
    "officer": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", 652),
}
KNOWN = ("tabby", "coffee", "cameraman", "motorcycle", "palace", "officer", "rocket")


def samples(names: Sequence[str] | str = ("tabby",)) -> Dataset:
    """Load photographs that come with the project's dependencies, by name; `known`: those that an ImageNet network knows.

    From scikit-image: tabby (Chelsea, by Stéfan van der Walt), coffee (Rachel Michetti), rocket (SpaceX), cameraman (Lav
    Varshney), motorcycle (Middlebury Stereo 2014), all CC0, and astronaut (Eileen Collins, NASA, public domain). From
    scikit-learn: palace (danielbuechele, CC BY 2.0). From Matplotlib: officer (Grace Hopper, US Navy, public domain).
    `all` are all of them. Raises UserError for another name.
    """
    groups: dict[str, Iterable[str]] = {"all": _SAMPLES, "known": KNOWN}
    given = [names] if isinstance(names, str) else names
    names = list(dict.fromkeys(name for each in given for name in groups.get(each, [each])))
    if not names:
        raise UserError(f"dataset.names is empty: give some of {', '.join(_SAMPLES)}, or all")
    for name in names:
        if name not in _SAMPLES:
            raise UserError(f"there is no sample image {name!r}.{did_you_mean(name, (*_SAMPLES, 'known', 'all'))}")
    found = [_SAMPLES[name] for name in names]
    paths = [_home(package) / file for package, file, *_ in found]
    return Dataset(
        "bundled photographs",
        names,
        [label for *_, label in found],
        lambda i: read_image(paths[i]),
        files=paths,
    )


# More that come with the dependencies, to learn patches from: a flower, coins, textures
_BACKGROUNDS = {
    "flower": ("sklearn", "datasets/images/flower.jpg"), "coins": ("skimage", "data/coins.png"),
    "brick": ("skimage", "data/brick.png"), "grass": ("skimage", "data/grass.png"), "gravel": ("skimage", "data/gravel.png"),
}  # fmt: skip


def backgrounds() -> Dataset:
    """Load all photographs and textures that come with the project's dependencies, to learn patches from."""
    files = {n: (package, file) for n, (package, file, *_) in _SAMPLES.items()} | _BACKGROUNDS
    paths = [_home(package) / file for package, file in files.values()]
    origin = "bundled photographs and textures"
    return Dataset(origin, list(files), [None] * len(files), lambda i: read_image(paths[i]), files=paths)


def _home(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"a bundled photograph comes with {package}, which is not installed")
    return Path(spec.origin).parent


def _from_files(origin: str, files: list[Path], root: Path, labels: list[int | None], classes: Any = None) -> Dataset:
    names = [_readable(file.relative_to(root).as_posix()) for file in files]
    return Dataset(origin, names, labels, lambda i: read_image(files[i]), classes, files=files)


def _readable(name: str) -> str:
    """Replace the bytes of a file's name that are not UTF-8, which tables and archives refuse."""
    return name.encode(errors="backslashreplace").decode()


def _image_files(root: Path) -> list[Path]:
    """List the image files under a folder and the folders that it links to, sorted by path.

    Leaves out hidden ones, and the figures of runs below the folder.
    """

    def below(folder: Path, above: Sequence[Path]) -> list[Path]:
        found, here = [], folder.resolve()
        with contextlib.suppress(PermissionError):  # lost+found
            for path in folder.iterdir() if here not in above else ():  # a link may lead in a circle
                if path.name.startswith("."):
                    continue
                if path.suffix.lower() in SUFFIXES and path.is_file():
                    found.append(path)
                elif path.is_dir() and not any((path / name).is_file() for name in ("status.json", "sweep.json")):
                    found += below(path, [*above, here])
        return found

    return sorted(below(root, []))


def _class_folders(root: Path) -> tuple[list[str], list[Path]]:
    """Return the names of the class folders in `root`, and their images. Raises UserError if there are none."""
    found = [f for f in _image_files(root) if f.parent != root]
    if not found:
        raise UserError(f"{root} contains no class folders with images (<class>/<image>.jpg)")
    return sorted({f.relative_to(root).parts[0] for f in found}), found


def files(paths: Sequence[str] | str) -> Dataset:
    """Load single image files (`image=cat.jpg`), named after the files. Raises UserError for a missing file."""
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    found = [Path(path).expanduser() for path in paths]
    for path in found:
        if path.is_dir():
            raise UserError(f"{path} is a folder: use dataset=folder dataset.path={path}")
        if not path.is_file():
            raise UserError(f"no image file {path}")
    stems = [path.stem for path in found]
    names = stems if len(set(stems)) == len(stems) else [str(path) for path in found]
    if len(set(names)) < len(names):
        raise UserError(f"image= names {next(name for name in names if names.count(name) > 1)} twice")
    names = [_readable(name) for name in names]
    return Dataset("image files", names, [None] * len(found), lambda i: read_image(found[i]), files=found)


def folder(path: str) -> Dataset:
    """Load all images of a folder and its subfolders, sorted by path, without labels."""
    root = _existing(path)
    found = _image_files(root)
    if not found:
        raise UserError(f"dataset.path={path} contains no images ({', '.join(SUFFIXES)})")
    return _from_files(f"folder {root}", found, root, [None] * len(found))


def imagenet(path: str, split: str = "val") -> Dataset:
    """Load ImageNet in torchvision's layout, `path/val/<wnid>/*.JPEG`; the label is the rank of the wnid among 1000.

    With fewer class folders the ranks would be wrong, so there are no labels.
    """
    root = _existing(path)
    root = root / split if (root / split).is_dir() else root
    wnids, found = _class_folders(root)
    rank = {wnid: i for i, wnid in enumerate(wnids)} if len(wnids) == 1000 else {}
    return _from_files(
        f"ImageNet {split}, {root}", found, root, [rank.get(f.relative_to(root).parts[0]) for f in found]
    )


# Places of Imagenette's classes among ImageNet's 1000, tench to parachute
_IMAGENETTE = {
    "n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03028079": 497, "n03394916": 566,
    "n03417042": 569, "n03425413": 571, "n03445777": 574, "n03888257": 701,
}  # fmt: skip


def imagenette(path: str = "data", split: str = "val") -> Dataset:
    """Load Imagenette (ten classes of ImageNet, 320 pixels) through torchvision, which downloads it into `path` on first use.

    Labels are those of ImageNet's 1000 classes.
    """
    data = _torchvision("Imagenette", path, split=split, size="320px")
    root = Path(data.root) / "imagenette2-320" / split
    _, found = _class_folders(root)
    labels: list[int | None] = [_IMAGENETTE[f.relative_to(root).parts[0]] for f in found]
    return _from_files(f"Imagenette {split}, {root}", found, root, labels)


def _torchvision(name: str, path: str, **options: Any) -> Any:
    """Open a dataset of torchvision, downloading it on first use. Raises Lacking if it can neither be read nor downloaded."""
    import torchvision

    root = Path(path).expanduser()
    made = [root / name / "raw", root / name] + [root] * (not root.exists())
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root), contextlib.redirect_stdout(sys.stderr):  # it reports downloads on stdout, for the run's path
            return getattr(torchvision.datasets, name)(root, download=True, **options)
    except Exception as error:  # no network, a read-only folder; damaged files can raise almost anything
        for folder in made:  # it creates them before a download that fails; remove the empty ones
            with contextlib.suppress(OSError):  # not empty, or never created
                folder.rmdir()
        reason = str(getattr(error, "reason", error)).split("\n")[0].rstrip(":") or "damaged files"
        raise Lacking(
            f"{name} can neither be read from dataset.path={path} nor downloaded to it ({reason}): put torchvision's "
            "files there, or give another dataset.path"
        ) from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time download to a folder: another would read what is only half there."""
    number = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks, or none on folders
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def _from_torchvision(name: str, path: str, train: bool) -> Dataset:
    data, split = _torchvision(name, path, train=train), "train" if train else "test"
    labels = [int(label) for label in data.targets]
    names = [f"{split}_{i:05d}" for i in range(len(labels))]
    return Dataset(f"{name} {split}", names, labels, lambda i: data[i][0], [str(c) for c in data.classes])


def mnist(path: str = "data", train: bool = False, fallback: bool = False) -> Dataset:
    """Load MNIST through torchvision, which downloads it into `path` on first use.

    fallback: use scikit-learn's digits if MNIST can neither be read nor downloaded; every fifth is a test image.
    """
    try:
        return _from_torchvision("MNIST", path, train)
    except UserError as error:
        if not fallback:
            raise
        log.info("%s. Using scikit-learn's digits instead", error)
        whole = digits()
        return whole.part([i for i in range(len(whole)) if (i % 5 != 0) == train])


_CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar10(path: str = "data", train: bool = False) -> Dataset:
    """Load CIFAR-10 from a folder or a zip `path/<train|test>/<class>/*`, else from torchvision's files, downloaded on first use.

    path: also an .npz with `images` [N, 32, 32, 3] (uint8) and `labels`, which has no split.
    """
    root, split = Path(path).expanduser(), "train" if train else "test"
    if root.suffix == ".npz" and root.is_file():
        try:
            with np.load(root) as stored:
                pictures, labels = stored["images"], [int(label) for label in stored["labels"]]
        except (OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
            raise UserError(f"dataset.path={path} is damaged, or no .npz with `images` and `labels`") from error
        names = [f"{i:05d}" for i in range(len(labels))]
        return Dataset(f"CIFAR-10, {root}", names, labels, lambda i: Image.fromarray(pictures[i]), _CIFAR10)
    if root.suffix == ".zip" and root.is_file():
        return _from_zip(f"CIFAR-10 {split}, {root}", root, split)
    root /= split
    if not root.is_dir():
        return _from_torchvision("CIFAR10", path, train)
    classes, found = _class_folders(root)
    return _from_files(
        f"CIFAR-10, {root}", found, root, [classes.index(f.relative_to(root).parts[0]) for f in found], classes
    )


def _from_zip(origin: str, path: Path, split: str) -> Dataset:
    """Load the images `<split>/<class>/<image>` of a zip. Raises UserError if it has none."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"dataset.path={path} is damaged or not a zip file") from error
    names = sorted(
        name.removeprefix(f"{split}/")
        for name in archive.namelist()
        if re.fullmatch(f"{split}/[^/]+/[^/]+", name) and Path(name).suffix.lower() in SUFFIXES
    )
    if not names:
        raise UserError(f"dataset.path={path} contains no images {split}/<class>/<image>")
    classes = sorted({name.partition("/")[0] for name in names})
    labels = [classes.index(name.partition("/")[0]) for name in names]

    def read(i: int) -> Image.Image:
        try:
            data = io.BytesIO(archive.read(f"{split}/{names[i]}"))
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UserError(f"{path} is damaged: it cannot unpack {split}/{names[i]}") from error
        data.name = f"{path}/{split}/{names[i]}"
        return read_image(data)

    return Dataset(origin, names, labels, read, classes)


def digits() -> Dataset:
    """Load scikit-learn's 1,797 handwritten digits, 8x8, which need no download."""
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
        raise UserError(f"dataset.path={path} is not a folder")
    return root
