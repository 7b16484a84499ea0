"""Methods that learn from images first, fitted once for a kind of network input and kept in a folder."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vis.data import Dataset, Preprocess, folder, samples, to_pixels
from vis.errors import UserError
from vis.methods.generators import AdversarialGenerators, Generators
from vis.methods.perturbation import Learnt
from vis.models import Model
from vis.training.images import splits
from vis.training.standin import architecture
from vis.windows.gaussian import PatchGaussian

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """A dataset as a network sees it: image i is [C, H, W]."""

    data: Dataset
    preprocess: Preprocess
    size: tuple[int, int]
    channels: int

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Tensor:
        return self.preprocess(to_pixels(self.data.read(i), self.size, self.channels)[None])[0]


def fit(method: Learnt, preprocess: Preprocess, size: tuple[int, int], channels: int, cache: Path) -> None:
    """Fit a method on the folder of images that `gaussian` names, or on the bundled photographs; a file is used as it is.

    A Gaussian is kept in `cache` and used again. Raises UserError for a file that was fitted to other network inputs.
    """
    source = None if method.gaussian is None else Path(method.gaussian).expanduser()
    if source is not None and not source.is_dir() and method.conditional:
        gaussian = PatchGaussian.load(source)
        theirs = gaussian.provenance.get("preprocess", preprocess.name)
        if theirs != preprocess.name:
            raise UserError(f"the Gaussian in {source} is of images preprocessed by {theirs}, not by {preprocess.name}")
        method.learnt = gaussian
        return
    data = samples("all") if source is None else folder(str(source))
    seen = Seen(data, preprocess, size, channels)
    facts = {"data": data.origin, "fingerprint": data.fingerprint(), "preprocess": preprocess.name, "size": list(size)}
    key = hashlib.sha256(repr((facts, channels, method.patch, method.joint)).encode()).hexdigest()[:16]
    file = cache / f"{key}.pt"
    if method.conditional and file.is_file():
        method.learnt = PatchGaussian.load(file)
        return
    log.info(
        "%s learns what windows hold from %s (%d images); others: gaussian=FOLDER", method.title, data.origin, len(data)
    )
    method.fit(seen, **facts)
    if isinstance(method.learnt, PatchGaussian):
        method.learnt.save(file)


def fit_generators(
    method: AdversarialGenerators, model: Model, preprocess: Preprocess, dataset: Mapping[str, Any], cache: Path
) -> None:
    """Train generators for a model on the training images of a dataset's config node that show one of the two classes.

    They are kept in `cache` and used again for the same network, images and parameters; a training that was stopped goes
    on. Raises UserError without such images.
    """
    data = splits({**dataset, "limit": None})[0]
    kept = [i for i, label in enumerate(data.labels) if label in method.classes]
    if {data.labels[i] for i in kept} != set(method.classes):
        raise UserError(
            f"{method.title} learn from labelled images of the classes {method.classes[0]} and {method.classes[1]}, and "
            f"{data.origin} lacks them: dataset=mnist, or other classes"
        )
    data = data.part(kept)
    network = hashlib.sha256()
    for name, value in model.net.state_dict().items():
        network.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    facts: dict[str, Any] = {"data": data.origin, "fingerprint": data.fingerprint(), "preprocess": preprocess.name}
    facts |= {"network": network.hexdigest(), "weights": model.weights, "size": list(model.input_size)}
    facts["architecture"] = repr(sorted(architecture(model.node).items()))
    facts |= {key: value for key, value in vars(method).items() if key != "learnt"}
    file = cache / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.pt"
    if file.is_file():
        method.learnt = Generators.load(file)
        return
    log.info("%s learn from %d images of %s, once, in %s", method.title, len(data), data.origin, file)
    state = file.with_suffix(".training")
    method.fit(model.net, Seen(data, preprocess, model.input_size, model.channels), state, **facts)
    assert method.learnt is not None
    method.learnt.save(file)
    state.unlink(missing_ok=True)
