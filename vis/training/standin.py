"""Train small networks, once each, as stand-ins for published weights that are not available."""

import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vis.data import Dataset, preprocessing
from vis.errors import UserError, did_you_mean
from vis.models import build_model
from vis.system.files import write_json
from vis.system.locks import lock
from vis.training.images import load_images, splits
from vis.training.loop import Training, save_weights
from vis.training.recipe import Recipe

log = logging.getLogger(__name__)

STANDIN_RECIPES = {
    "digits": Recipe(epochs=16, batch_size=64, optimiser="adamw", lr=2e-3, weight_decay=1e-2, crop=2),
    "mnist": Recipe(epochs=2, batch_size=64, optimiser="adamw", lr=1e-3, weight_decay=1e-2, crop=2),
    "stacked_digits": Recipe(epochs=16, batch_size=64, optimiser="adamw", lr=2e-3, weight_decay=1e-2),
    "stacked_mnist": Recipe(epochs=2, batch_size=64, optimiser="adamw", lr=1e-3, weight_decay=1e-2),
    "cifar10": Recipe(epochs=8, batch_size=64, optimiser="adamw", lr=1e-3, weight_decay=1e-2, crop=4, flip=True),
}
_SEED = 0  # one network whatever the run's seed, as with published weights


@dataclass(frozen=True)
class StandIn:
    """Weights that the project trained: their file, and a description for captions."""

    path: Path
    words: str


def standin(node: Mapping[str, Any], root: Path, device: torch.device | str, data: str = "data") -> StandIn:
    """Return the stand-in for a model's config node with `trained_on`; train it if the folder `root` does not have it.

    trained_on: cifar10, mnist or stacked_mnist, in the folder `data` or as `cifar10:FOLDER`; digits or stacked_digits
    (scikit-learn's, no download), which also replace a dataset that is missing from `data`. An interrupted training
    resumes; if two processes need the same stand-in, one trains it and the other waits.
    """
    name, path = _trained_on(str(node.get("trained_on") or "digits"), data)
    recipe = STANDIN_RECIPES[name]
    own = architecture(node)
    parts = (sorted(own.items(), key=str), _fingerprint(name, path), asdict(recipe), _SEED)
    folder = root / hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if not (folder / "standin.json").is_file():
            train, val = _splits_of(name, path)
            start = {**own, "name": node.get("name"), "init": "kaiming_normal", "weights": None}
            model = build_model(start, _SEED, device)
            if model.num_classes is not None and model.num_classes < len(train.classes or ()):
                raise UserError(
                    f"model.num_classes={model.num_classes}: {train.origin} has {len(train.classes or ())} classes"
                )
            log.info("training a stand-in for the weights of %s on %s, once, in %s", model.name, train.origin, folder)
            images, held_out = (load_images(each, model.input_size, model.channels) for each in (train, val))
            preprocess, state = preprocessing(model.preprocess), folder / "training"
            training = Training(model.net, images, held_out, recipe, preprocess, _SEED, device, state)
            with torch.enable_grad():  # an experiment may need it where it computes no gradients
                rows = list(training)
            save_weights(training.net, folder / "weights.pt")
            facts = {"trained_on": train.origin, "images": len(train), "recipe": asdict(recipe), "seed": _SEED}
            facts |= {"network": own, "epochs": rows, "val_top1": rows[-1]["val_top1"]}
            write_json(folder / "standin.json", facts)
            shutil.rmtree(state)
    facts = json.loads((folder / "standin.json").read_text(encoding="utf-8"))
    words = f"a stand-in trained by the project on {facts['trained_on']} (top-1 {100 * facts['val_top1']:.1f} %)"
    return StandIn(folder / "weights.pt", words)


def _splits_of(name: str, path: str) -> tuple[Dataset, Dataset]:
    return splits({"_target_": f"vis.data.{name}"} | ({"path": path} if path else {}))


@cache
def _fingerprint(name: str, path: str) -> str:
    """Return the fingerprint of a stand-in's data; cached, since many networks of a figure need it."""
    return " ".join(part.fingerprint() for part in _splits_of(name, path))


def architecture(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a model's config node that a stand-in depends on; the rest says how its weights are used."""
    other = ("name", "init", "std", "weights", "trained_on", "trained_up_to", "trained_except")
    return {key: value for key, value in node.items() if key not in other}


def _trained_on(text: str, data: str) -> tuple[str, str]:
    """Return the (dataset, folder) to train on. Raises UserError for an unknown dataset or a missing FOLDER."""
    name, _, given = text.partition(":")
    if name not in STANDIN_RECIPES:
        raise UserError(f"model.trained_on={text}: there is no recipe for it.{did_you_mean(name, STANDIN_RECIPES)}")
    offline = "stacked_digits" if name.startswith("stacked_") else "digits"
    if name == offline:
        return name, ""
    path = Path(given or data).expanduser()
    # A file of MNIST, not the folder: torchvision creates the folder before a download that fails.
    places = ("train", "cifar-10-batches-py") if name == "cifar10" else ("MNIST/raw/train-images-idx3-ubyte",)
    if any((path / place).exists() for place in places):
        return name, str(path)
    if given:
        raise UserError(f"model.trained_on={text}: {path} does not contain {' or '.join(places)}")
    log.info(
        "there is no %s in %s (give model.trained_on=%s:FOLDER): training on scikit-learn's digits", name, path, name
    )
    return offline, ""


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock the folder, after waiting for any other process that holds the lock."""
    with (folder / ".lock").open("w") as file:
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # held by another process
            log.info("another process is training this stand-in: waiting for it")
            lock(file, fcntl.LOCK_EX)
        yield
