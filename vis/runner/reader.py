"""The images of a run."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vis.config.instantiate import construct
from vis.data import Dataset, Preprocess, files, preprocessing, to_pixels
from vis.data.boxes import Drawn, in_view
from vis.errors import UserError, named
from vis.models import Model


@dataclass
class Batch:
    """A batch of images, ready for a model.

    x [B, C, H, W]: preprocessed, on the run's device. pixels: the same in [0, 1] on the CPU, for display.
    """

    x: Tensor
    pixels: Tensor
    names: list[str]
    labels: list[int | None]


class Reader:
    """Reads the images of a run's dataset and prepares them for a model.

    upcoming: indices of the images of the next tasks, which threads read ahead.
    """

    def __init__(self, config: DictConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        self.upcoming: list[int] = []
        self._ahead: dict[Any, Future[Tensor]] = {}

    @cached_property
    def dataset(self) -> Dataset:
        """The images of `image=` if it is given, of `dataset=` otherwise."""
        return self.whole if self.config.image is not None else self.whole.first(self.config.dataset.get("limit"))

    @cached_property
    def whole(self) -> Dataset:
        """The same images without the limit of `dataset.limit=`."""
        image = self.config.image
        if image is not None:
            return files(image if isinstance(image, str) else list(image))
        node = self.config.get("dataset")
        if node is None:
            raise UserError("this experiment needs images: dataset=samples, image=FILE, ...")
        values = OmegaConf.to_container(node, resolve=True)
        assert isinstance(values, dict)
        own = {str(k): v for k, v in values.items() if k not in ("preprocess", "resize", "limit")}
        data = construct(own, "dataset")
        if not isinstance(data, Dataset):
            raise UserError(f"dataset._target_ made a {type(data).__name__}, not a vis.data.Dataset")
        if not len(data):
            raise UserError(f"the dataset holds no image: {data.origin}")
        return data

    def preprocess(self, model: Model) -> Preprocess:
        """Return the dataset's preprocessing, or the model's if the dataset says `model`."""
        name = (self.config.get("dataset") or {}).get("preprocess", "model")
        try:
            return preprocessing(model.preprocess if name == "model" else name)
        except ValueError as error:
            raise UserError(str(error)) from error

    def batch(self, model: Model, indices: Sequence[int]) -> Batch:
        """Return images of the dataset, resized and preprocessed for a model, on the run's device."""
        data = self.dataset
        pixels = torch.stack(self._read(indices, model.input_size, model.channels, self._resize))
        x = self.preprocess(model)(pixels.to(self.dtype)).to(self.device, memory_format=model.memory_format)
        return Batch(x, pixels, [data.names[i] for i in indices], [data.labels[i] for i in indices])

    @property
    def _resize(self) -> int | None:
        return None if self.config.image is not None else self.config.dataset.get("resize")

    def drawn(self, model: Model, indices: Sequence[int]) -> dict[str, Drawn]:
        """Return what is drawn on images, by name, as shares of the sides of what the model sees; `boxes=` wins.

        Leaves out images without a box or with one that lies outside the crop, and parts that lie outside it.
        """
        found = {}
        for i in indices:
            if (whole := self.dataset.drawn(i)) is None:
                continue
            size = self.dataset.read(i).size
            box, *parts = (
                in_view(each, size, model.input_size, self._resize) for each in (whole.box, *whole.parts.values())
            )
            if box is not None:
                kept = {name: part for name, part in zip(whole.parts, parts, strict=True) if part is not None}
                found[self.dataset.names[i]] = Drawn(box, kept)
        own = {name: box and Drawn(tuple(box), {}) for name, box in (self.config.boxes or {}).items()}
        return {name: each for name, each in (found | own).items() if each is not None}

    def gaze(self, model: Model, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return fixation maps [H, W] in [0, 1], by image, cropped like what the model sees; without images that have none."""
        read = self.dataset.gaze
        if read is None:
            return {}
        maps = {self.dataset.names[i]: to_pixels(read(i), model.input_size, 1, self._resize)[0] for i in indices}
        return {name: map_ for name, map_ in maps.items() if map_.any()}

    def _read(self, indices: Sequence[int], *how: Any) -> list[Tensor]:
        """Decode images to pixels in threads, which then go on with `upcoming` at the same size and channels."""

        def read(i: int) -> Tensor:
            with named(f"image {self.dataset.names[i]} of the dataset"):
                return to_pixels(self.dataset.read(i), *how)

        def begin(i: int) -> Future[Tensor]:
            return self._ahead.get((i, how)) or self._readers.submit(read, i)

        futures = [begin(i) for i in indices]
        self._ahead = {(i, how): begin(i) for i in self.upcoming}
        return [future.result() for future in futures]

    @cached_property
    def _readers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(16, os.cpu_count() or 1))
