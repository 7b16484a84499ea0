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
        return data.first(self.config.dataset.get("limit"))

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
        resize = None if self.config.image is not None else self.config.dataset.get("resize")
        pixels = torch.stack(self._read(indices, model.input_size, model.channels, resize))
        x = self.preprocess(model)(pixels.to(self.dtype)).to(self.device, memory_format=model.memory_format)
        return Batch(x, pixels, [data.names[i] for i in indices], [data.labels[i] for i in indices])

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
