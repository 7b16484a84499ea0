"""Give methods that must be fitted their images and provenance (`vis.methods.base.Method.prepare`)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vis.data import Dataset, Preprocess, folder, samples, to_pixels
from vis.methods.target import Targets
from vis.models import Model
from vis.training.images import splits
from vis.training.standin import architecture


@dataclass(frozen=True)
class NetworkInputs:
    """A dataset as inputs of a network: input i is [C, H, W]."""

    data: Dataset
    preprocess: Preprocess
    size: tuple[int, int]
    channels: int

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Tensor:
        return self.preprocess(to_pixels(self.data.read(i), self.size, self.channels)[None])[0]

    @property
    def labels(self) -> Sequence[int | None]:
        return self.data.labels

    @property
    def facts(self) -> dict[str, Any]:
        """Return the origin and fingerprint of the data, and the name of the preprocessing."""
        return {
            "data": self.data.origin,
            "fingerprint": self.data.fingerprint(),
            "preprocess": self.preprocess.name,
        }

    def part(self, indices: Sequence[int]) -> "NetworkInputs":
        """Return the images with these indices."""
        return replace(self, data=self.data.part(indices))


@dataclass(frozen=True)
class ModelOfRun:
    """A run's model as the `vis.methods.base.Subject` of its methods.

    dataset: the config node of the run's dataset. outputs: the folder of the caches.
    default: the images of `pictures()`; the bundled photographs if None.
    """

    described: Model
    preprocess: Preprocess
    images: Tensor
    targets: Sequence[Targets]
    dataset: Mapping[str, Any]
    outputs: Path
    default: Dataset | None = None

    @property
    def model(self) -> nn.Module:
        return self.described.net

    @property
    def size(self) -> tuple[int, int]:
        return self.described.input_size

    @property
    def channels(self) -> int:
        return self.described.channels

    def network(self) -> dict[str, Any]:
        """Return a hash of parameters and buffers, the description of the weights, the input size and the architecture."""
        digest = hashlib.sha256()
        for name, value in self.model.state_dict().items():
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        own = repr(sorted(architecture(self.described.node).items()))
        weights = self.described.weights
        return {"network": digest.hexdigest(), "weights": weights, "size": list(self.size), "architecture": own}

    def training_images(self) -> NetworkInputs:
        """Return all training images of the run's dataset, ignoring its `limit`."""
        return self._seen(splits({**self.dataset, "limit": None})[0])

    def pictures(self, source: str | None = None) -> NetworkInputs:
        """Return the images of a folder; without a folder, `default` or the bundled photographs."""
        return self._seen(folder(source) if source is not None else self.default or samples("all"))

    def cache(self, kind: str, key: object) -> Path:
        """Return the cache file outputs/<kind>/<hash of the key>.pt, and create its folder."""
        place = self.outputs / kind
        place.mkdir(parents=True, exist_ok=True)
        return place / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.pt"

    def _seen(self, data: Dataset) -> NetworkInputs:
        return NetworkInputs(data, self.preprocess, self.size, self.channels)
