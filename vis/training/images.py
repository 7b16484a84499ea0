"""Load training images, from memory or from files, in the order of an epoch, with its crops and flips.

All random numbers are drawn from (seed, epoch) and (seed, epoch, image); see `vis.training.loop`.
"""

import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vis.config.instantiate import construct, locate, parameters_of
from vis.data import Dataset, to_pixels
from vis.errors import UserError
from vis.system import shards
from vis.system.console import progress
from vis.training.recipe import Recipe

_AHEAD = 4  # batches decoded in advance


@dataclass
class Images:
    """A labelled dataset in memory: pixels [N, C, H, W] in 0..255 (uint8), labels [N]."""

    pixels: Tensor
    labels: Tensor
    origin: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Images":
        return Images(self.pixels.to(device), self.labels.to(device), self.origin, self.fingerprint)

    def batches(
        self, chosen: Sequence[Tensor], recipe: Recipe | None = None, seed: int = 0, epoch: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels [B, C, H, W] (uint8) and labels [B] for each batch of indices, on the device.

        recipe: defines the crops and flips of the epoch; without it the images are unchanged.
        """
        u = torch.empty(0)
        if recipe is not None:
            u = torch.from_numpy(draws_of(seed, epoch, 1).random((len(self), 3))).to(self.labels.device)
        for indices in chosen:
            indices = indices.to(self.labels.device)
            pixels = self.pixels[indices]
            if recipe is not None:
                pixels = augment(pixels, u[indices], recipe.crop, recipe.flip)
            yield pixels, self.labels[indices]


class Files:
    """A labelled dataset read during training: threads decode, crop and resize the images of the next batches.

    Pillow releases the GIL while it decodes and resizes, so threads are as fast as processes and need no copies.
    """

    def __init__(self, data: Dataset, size: tuple[int, int], channels: int, resize: int | None = None) -> None:
        self.data, self.size, self.channels, self.resize = data, size, channels, resize
        self.labels, self.origin, self.fingerprint = _labels(data), data.origin, data.fingerprint()

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Files":
        self.labels = self.labels.to(device)
        return self

    def batches(
        self, chosen: Sequence[Tensor], recipe: Recipe | None = None, seed: int = 0, epoch: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches as `Images.batches` does, with the crops of `recipe.area`. Raises UserError for an unreadable image."""
        device = self.labels.device

        def read(i: int) -> Tensor:
            picture = self.data.read(i)
            if recipe is None:
                return _bytes(to_pixels(picture, self.size, self.channels, self.resize)).permute(1, 2, 0)
            draws = draws_of(seed, epoch, 1, i)
            if recipe.area is not None:
                picture = picture.crop(random_box(picture.size, recipe.area, recipe.aspect, draws))
            picture = picture.resize(self.size[::-1], Image.Resampling.BILINEAR)
            if recipe.flip and draws.random() < 0.5:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            picture = picture.convert("RGB" if self.channels == 3 else "L")
            return torch.from_numpy(np.array(picture)).view(*self.size, self.channels)

        pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // shards.local_world()))
        begun = ([pool.submit(read, i) for i in indices.tolist()] for indices in chosen)
        ahead = deque(islice(begun, _AHEAD))
        try:
            for indices in chosen:
                futures = ahead.popleft()
                ahead.extend(islice(begun, 1))
                shape = len(futures), *self.size, self.channels
                pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
                for place, future in zip(pixels, futures, strict=True):
                    place.copy_(future.result())
                yield pixels.permute(0, 3, 1, 2).to(device, non_blocking=True), self.labels[indices.to(device)]
        finally:
            pool.shutdown(cancel_futures=True)


Source = Images | Files


def random_box(
    size: tuple[int, int], area: Sequence[float], aspect: Sequence[float], draws: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a crop (left, top, right, bottom) of a picture of (width, height), as torchvision's RandomResizedCrop does.

    Its share of the picture is uniform in `area`, log(width / height) is uniform between the logs of `aspect`, and its
    position is uniform among all that fit. If ten draws do not fit, return the largest centred crop within `aspect`.
    """
    width, height = size
    for _ in range(10):
        target = width * height * draws.uniform(area[0], area[1])
        ratio = math.exp(draws.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draws.integers(width - w + 1)), int(draws.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, max(1, round(height * aspect[1]))), min(height, max(1, round(width / aspect[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def load_images(data: Dataset, size: tuple[int, int], channels: int, resize: int | None = None) -> Images:
    """Read a dataset into memory, resized and cropped to (height, width). Raises UserError if labels or memory are missing."""
    labels = _labels(data)
    pixels = torch.empty(0, dtype=torch.uint8)
    try:
        pixels = torch.empty(len(data), channels, *size, dtype=torch.uint8)
    except RuntimeError as error:
        raise UserError(
            f"{data.origin}: {len(data)} images of {size[0]}x{size[1]} do not fit into memory; to read them during "
            "training, give random crops by area: experiment.recipe.area=[0.1,1]"
        ) from error
    for i in progress(range(len(data)), len(data), "images", desc=f"reading {data.origin}", leave=False):
        pixels[i] = _bytes(to_pixels(data.read(i), size, channels, resize))
    return Images(pixels, labels, data.origin, data.fingerprint())


def _labels(data: Dataset) -> Tensor:
    if any(label is None for label in data.labels):
        raise UserError(f"{data.origin} has no labels: give a dataset with a class for every image")
    return torch.tensor([int(label or 0) for label in data.labels])


def _bytes(pixels: Tensor) -> Tensor:
    return (pixels * 255).round_().to(torch.uint8)


def splits(node: Mapping[str, Any]) -> tuple[Dataset, Dataset]:
    """Return the training and the validation images of a dataset's config node, at most `limit` of each.

    A limit selects evenly spaced images, since the first images of a folder all belong to one class. If a dataset has no
    split of its own, every fifth image is for validation.
    """
    own = {key: value for key, value in node.items() if key not in ("preprocess", "resize", "limit")}
    parameters = parameters_of(locate(str(own.get("_target_")), "dataset._target_"))
    if "train" in parameters:
        train, val = (construct({**own, "train": part}, "dataset") for part in (True, False))
    elif "split" in parameters:
        train, val = (construct({**own, "split": part}, "dataset") for part in ("train", "val"))
    else:
        whole = construct(own, "dataset")
        validation = range(0, len(whole), 5)
        train, val = whole.part(sorted({*range(len(whole))} - {*validation})), whole.part(validation)
    limit = node.get("limit")
    return _thinned(train, limit), _thinned(val, limit)


def _thinned(data: Dataset, limit: int | None) -> Dataset:
    count = len(data.first(limit))
    return data if count == len(data) else data.part([i * len(data) // count for i in range(count)])


def draws_of(seed: int, *place: int) -> np.random.Generator:
    """Return the random generator for one position in a training, such as (epoch, image)."""
    return np.random.default_rng([seed % 2**64, *place])


def order(seed: int, epoch: int, count: int) -> Tensor:
    """Return the order of the images in an epoch: a permutation of 0 .. count - 1."""
    return torch.from_numpy(draws_of(seed, epoch, 0).permutation(count))


def augment(pixels: Tensor, u: Tensor, crop: int, flip: bool) -> Tensor:
    """Crop padded images at random and mirror half of them, keeping the shape [B, C, H, W].

    u [B, 3]: uniform numbers in [0, 1) for each image's vertical offset, horizontal offset and mirroring.
    """
    if not crop and not flip:
        return pixels
    height, width = pixels.shape[-2:]
    dy, dx = ((u[:, i] * (2 * crop + 1)).long()[:, None] for i in (0, 1))
    rows = dy + torch.arange(height, device=pixels.device)
    columns = torch.arange(width, device=pixels.device).expand(len(pixels), width)
    if flip:
        columns = torch.where(u[:, 2:] < 0.5, columns, width - 1 - columns)
    index = (rows[:, :, None] * (width + 2 * crop) + (columns + dx)[:, None]).flatten(1)
    padded = F.pad(pixels, (crop, crop, crop, crop)).flatten(2)
    return padded.gather(2, index[:, None].expand(-1, pixels.shape[1], -1)).view_as(pixels)
