"""Methods that learn from images first, fitted once for a kind of network input and kept in a folder."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vis.data import Dataset, Preprocess, folder, samples, to_pixels
from vis.errors import UserError
from vis.gaussian import PatchGaussian
from vis.methods.perturbation import Learnt

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
