"""Give methods that must be fitted their images and provenance (`vis.methods.base.Method.prepare`)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from vis.data import Dataset, Preprocess, backgrounds, folder, to_pixels
from vis.errors import UserError
from vis.methods.target import Targets
from vis.models import Model
from vis.training.images import splits
from vis.training.standin import architecture

FEW, MANY = 20, 1000  # images of a dataset that are too few to learn from; and enough
NOTHING = Dataset("no images", [], [], lambda i: Image.new("L", (1, 1)))


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
    explained, whole: the images that the run explains, and those of its dataset without `dataset.limit`.
    default: the images of `pictures()`; None: other images of the dataset or, if they are few, the bundled ones.
    """

    described: Model
    preprocess: Preprocess
    images: Tensor
    targets: Sequence[Targets]
    dataset: Mapping[str, Any]
    outputs: Path
    explained: Dataset
    whole: Dataset
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
        """Return the images of a folder or, without one, those that `default` names; none that the run explains.

        Raises UserError if the run explains all of them.
        """
        chosen = folder(source) if source is not None else self.default
        if chosen is None:
            rest = without(self.whole, self.explained)
            chosen = backgrounds() if len(rest) < FEW else rest.part(range(0, len(rest), -(-len(rest) // MANY)))
        found = without(chosen, self.explained)
        if not len(found):
            raise UserError(
                f"the run explains every image of {chosen.origin}: give gaussian=FOLDER with others to learn from"
            )
        return self._seen(found)

    def cache(self, kind: str, key: object) -> Path:
        """Return the cache file outputs/<kind>/<hash of the key>.pt, and create its folder."""
        place = self.outputs / kind
        place.mkdir(parents=True, exist_ok=True)
        return place / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.pt"

    def _seen(self, data: Dataset) -> NetworkInputs:
        return NetworkInputs(data, self.preprocess, self.size, self.channels)


def without(data: Dataset, explained: Dataset) -> Dataset:
    """Return the images that are not among the explained ones: files by their content, others of one origin by their names."""
    if data.files and explained.files:
        sizes = {file.stat().st_size for file in explained.files}
        known = {_sha256(file) for file in explained.files}
        kept = [
            i for i, file in enumerate(data.files) if file.stat().st_size not in sizes or _sha256(file) not in known
        ]
    else:
        names = set(explained.names) if data.origin == explained.origin else set()
        kept = [i for i, name in enumerate(data.names) if name not in names]
    if len(kept) == len(data):
        return data
    return replace(data.part(kept), origin=f"{len(kept)} other images of {data.origin}")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
