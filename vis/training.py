"""Training a classifier: resumable at any kill, with the losses and weights of a training that nobody stopped.

Nothing random has a state that could be lost: the order of an epoch, the crops and flips of an image and the dropout of
a step are drawn from (seed, epoch), (seed, epoch, image) and (seed, epoch, step). The learning rate is a function of the
step. So a checkpoint holds the network, the optimiser, the scaler of float16 gradients, the place in the epoch and the
sums so far; on the CPU a resumed training ends with the same bits, on a GPU as near as its kernels repeat themselves.

    training = Training(net, train, val, Recipe(epochs=10), preprocess, seed=0, device="cpu", folder=Path("here"))
    for row in training: ...        # an epoch each; run it again after a kill, and it goes on
"""

import hashlib
import io
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vis.console import progress
from vis.data import Dataset, to_pixels
from vis.errors import UserError
from vis.instantiate import construct, locate, parameters_of
from vis.record import csv_text, write_bytes, write_text

log = logging.getLogger(__name__)

Row = dict[str, Any]
_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, with cross entropy. Raises ValueError for what is no recipe.

    optimiser: sgd (with momentum) or adamw. schedule: of the learning rate, after a linear warm-up over `warmup` epochs:
    cosine (to 0 at the end) or step (times `gamma` every `step_epochs`).
    crop: images are padded by so many black pixels and cut at random. flip: half of them are mirrored.
    amp: null, bf16, or fp16 with scaled gradients (NVIDIA GPUs).
    """

    epochs: int = 10
    batch_size: int = 128
    optimiser: str = "sgd"
    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    step_epochs: int = 30
    gamma: float = 0.1
    warmup: float = 1.0
    crop: int = 0
    flip: bool = False
    amp: str | None = None

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str | None, ...]] = {
            "optimiser": ("sgd", "adamw"),
            "schedule": ("cosine", "step"),
            "amp": (None, *_AMP),
        }
        for key, known in choices.items():
            if getattr(self, key) not in known:
                raise ValueError(f"{key}={getattr(self, key)} is one of {', '.join(str(k or 'null') for k in known)}")
        if min(self.epochs, self.batch_size, self.step_epochs) < 1 or self.lr <= 0 or min(self.crop, self.warmup) < 0:
            raise ValueError(
                "epochs, batch_size and step_epochs are 1 or more, lr is above 0, crop and warmup 0 or more"
            )

    def rate(self, epoch: float) -> float:
        """The learning rate after so many epochs, a fraction of one counted too."""
        if epoch < self.warmup:
            return self.lr * epoch / self.warmup
        if self.schedule == "step":
            return self.lr * self.gamma ** (int(epoch) // self.step_epochs)
        done = (epoch - self.warmup) / max(self.epochs - self.warmup, 1e-9)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


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


def load_images(data: Dataset, size: tuple[int, int], channels: int, resize: int | None = None) -> Images:
    """A dataset read, resized and cut to (height, width). Raises UserError where labels or memory are lacking."""
    if any(label is None for label in data.labels):
        raise UserError(f"{data.origin} has no labels: training needs a class for every image")
    pixels = torch.empty(0, dtype=torch.uint8)
    try:
        pixels = torch.empty(len(data), channels, *size, dtype=torch.uint8)
    except RuntimeError as error:
        raise UserError(f"{data.origin}: {len(data)} images of {size[0]}x{size[1]} do not fit into memory") from error
    for i in progress(range(len(data)), len(data), "images", desc=f"reading {data.origin}", leave=False):
        pixels[i] = (to_pixels(data.read(i), size, channels, resize) * 255).round_().to(torch.uint8)
    return Images(pixels, torch.tensor([int(label or 0) for label in data.labels]), data.origin, data.fingerprint())


def splits(node: Mapping[str, Any]) -> tuple[Dataset, Dataset]:
    """The images of a dataset's config node to train on, and those to validate on, `limit` of each where it has one.

    These are spread evenly, since a folder is sorted by classes: its first images are all of one.
    A dataset without a split of its own gives every fifth image to validation.
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
        train, val = _part(whole, sorted({*range(len(whole))} - {*validation})), _part(whole, validation)
    limit = node.get("limit")
    return _thinned(train, limit), _thinned(val, limit)


def _thinned(data: Dataset, limit: int | None) -> Dataset:
    count = len(data.first(limit))
    return data if count == len(data) else _part(data, [i * len(data) // count for i in range(count)])


def _part(data: Dataset, kept: Sequence[int]) -> Dataset:
    names, labels = [data.names[i] for i in kept], [data.labels[i] for i in kept]
    return Dataset(data.origin, names, labels, lambda i: data.read(kept[i]), data.classes)


def _draws(seed: int, *place: int) -> np.random.Generator:
    """The random numbers that belong to one place of a training."""
    return np.random.default_rng([seed % 2**64, *place])


def order(seed: int, epoch: int, count: int) -> Tensor:
    """The order of the images in an epoch: a permutation of 0 .. count - 1."""
    return torch.from_numpy(_draws(seed, epoch, 0).permutation(count))


def augment(pixels: Tensor, u: Tensor, crop: int, flip: bool) -> Tensor:
    """Random crops of padded images, mirrored or not: [B, C, H, W] -> the same.

    u [B, 3]: uniform in [0, 1), an image's own numbers for its vertical and horizontal place and its mirroring.
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


class Training:
    """The training of `net`, in place, with its state in `folder`; an iterator over the rows of its epochs.

    If the folder holds a checkpoint, the training goes on there: made by another training, it is a UserError; damaged,
    the one before it serves, or the beginning. A network with a wall (`apply_wall`) gets it back after each step.
    save_seconds: between checkpoints; there is one at the end of each epoch besides.
    """

    def __init__(
        self,
        net: nn.Module,
        train: Images,
        val: Images,
        recipe: Recipe,
        preprocess: Callable[[Tensor], Tensor],
        seed: int,
        device: torch.device | str,
        folder: Path,
        save_seconds: float = 30.0,
    ) -> None:
        self.device = torch.device(device)
        if recipe.amp == "fp16" and self.device.type != "cuda":
            raise UserError(f"amp=fp16 needs an NVIDIA GPU, not {self.device}: use bf16 or null")
        self.net: Any = net.to(self.device).requires_grad_(True)
        last = any(p.ndim == 4 and not p.is_contiguous() for p in net.parameters())
        self._format = torch.channels_last if last else torch.contiguous_format  # the network's, so the images' too
        self.dtype = next(net.parameters()).dtype
        self.train, self.val = train.to(self.device), val.to(self.device)
        self.recipe, self.preprocess, self.seed = recipe, preprocess, seed
        self.folder, self.save_seconds = folder, save_seconds
        self.rows: list[Row] = []
        self._step, self._seconds, self._saved = 0, 0.0, time.perf_counter()
        self._sums = self._zeros()
        if recipe.optimiser == "sgd":
            self.optimiser: torch.optim.Optimizer = torch.optim.SGD(
                net.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
            )
        else:
            self.optimiser = torch.optim.AdamW(net.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp == "fp16")
        shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
        self._identity = repr((asdict(recipe), seed, shapes, train.fingerprint, val.fingerprint))
        self._load()

    def __iter__(self) -> Iterator[Row]:
        """The rows of all epochs: those that are done at once, the others as they are trained."""
        for epoch in range(self.recipe.epochs):
            yield self.row(epoch)

    def row(self, epoch: int) -> Row:
        """What an epoch (0, 1, ...) gave, trained up to there if it is not yet: losses, top-1 and top-5, seconds."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            while len(self.rows) <= epoch:
                self._epoch()
        return self.rows[epoch]

    def _epoch(self) -> None:
        epoch, size = len(self.rows), self.recipe.batch_size
        images = order(self.seed, epoch, len(self.train)).to(self.device)
        u = torch.from_numpy(_draws(self.seed, epoch, 1).random((len(images), 3))).to(self.device)
        steps = -(-len(images) // size)
        began = time.perf_counter() - self._seconds
        title = f"epoch {epoch + 1}/{self.recipe.epochs}"
        with progress((), len(images), "images", done=self._step * size, desc=title, leave=False) as bar:
            for step in range(self._step, steps):
                chosen = images[step * size : (step + 1) * size]
                self._learn(chosen, u[chosen], epoch, step, steps)
                bar.update(len(chosen))
                self._step = step + 1
                if time.perf_counter() - self._saved >= self.save_seconds:
                    self._seconds = time.perf_counter() - began
                    self.save()
        loss, *train = (self._sums / len(images)).tolist()
        if not math.isfinite(loss):
            raise UserError(
                f"the training diverged in epoch {epoch + 1} (loss {loss}): use a smaller lr than {self.recipe.lr}"
            )
        val = self.evaluate()
        seconds = time.perf_counter() - began
        names = ("train_loss", "train_top1", "train_top5", "val_loss", "val_top1", "val_top5")
        row = {"epoch": epoch + 1, "lr": self.recipe.rate(epoch + 1)} | dict(
            zip(names, (loss, *train, *val), strict=True)
        )
        self.rows.append({**row, "seconds": seconds, "images_per_second": len(images) / seconds})
        self._step, self._seconds, self._sums = 0, 0.0, self._zeros()
        self.save()
        write_text(self.folder / "log.csv", csv_text(self.rows))
        log.info(
            "%s: loss %.4f, validation loss %.4f, top-1 %.2f %%, top-5 %.2f %%  (%.0f s, %.0f images/s)",
            title, loss, row["val_loss"], 100 * row["val_top1"], 100 * row["val_top5"], seconds, len(images) / seconds,
        )  # fmt: skip

    def _learn(self, chosen: Tensor, u: Tensor, epoch: int, step: int, steps: int) -> None:
        """One step of the optimiser on the images `chosen`."""
        torch.manual_seed(int(_draws(self.seed, epoch, 2, step).integers(2**63)))  # of dropout
        self.net.train()
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate(epoch + (step + 1) / steps)
        pixels = augment(self.train.pixels[chosen], u, self.recipe.crop, self.recipe.flip)
        labels = self.train.labels[chosen]
        logits, loss = self._forward(pixels, labels)
        self.optimiser.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if hasattr(self.net, "apply_wall"):
            self.net.apply_wall()
        self._sums += self._measure(logits.detach(), loss.detach(), labels)

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """Mean loss, top-1 and top-5 on the validation images."""
        self.net.eval()
        sums, size = self._zeros(), 4 * self.recipe.batch_size
        for pixels, labels in zip(self.val.pixels.split(size), self.val.labels.split(size), strict=True):
            sums += self._measure(*self._forward(pixels, labels), labels)
        return (sums / len(self.val)).tolist()

    def _forward(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.preprocess(pixels.to(self.dtype) / 255).contiguous(memory_format=self._format)
        with torch.autocast(self.device.type, _AMP.get(str(self.recipe.amp)), enabled=self.recipe.amp is not None):
            logits = self.net(x)
            return logits, F.cross_entropy(logits, labels)

    def _zeros(self) -> Tensor:
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.zeros(3, dtype=kind, device=self.device)

    def _measure(self, logits: Tensor, loss: Tensor, labels: Tensor) -> Tensor:
        """Sums over a batch of loss, top-1 and top-5 hits. They stay on the device: nothing waits for them."""
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        return torch.stack([loss.to(self._sums.dtype) * len(labels), best[:, 0].sum(), best.sum()])

    def save(self) -> None:
        """Write the checkpoint, whole or not at all; the one before it stays beside it."""
        state = {
            "identity": self._identity,
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rows": self.rows,
            "step": self._step,
            "seconds": self._seconds,
            "sums": self._sums,
        }
        data = io.BytesIO()
        torch.save(state, data)
        payload = data.getvalue()
        self.folder.mkdir(parents=True, exist_ok=True)
        path, before = self._files()
        if path.exists():
            path.replace(before)
        write_bytes(path, hashlib.sha256(payload).digest() + payload)
        self._saved = time.perf_counter()

    def _files(self) -> tuple[Path, Path]:
        return self.folder / "checkpoint", self.folder / "checkpoint_before"

    def _load(self) -> None:
        for path in filter(Path.is_file, self._files()):
            data = path.read_bytes()
            if hashlib.sha256(data[32:]).digest() != data[:32]:
                log.warning("%s is damaged: going back to the checkpoint before it, or to the beginning", path)
                continue
            state = torch.load(io.BytesIO(data[32:]), map_location="cpu", weights_only=True)
            if state["identity"] != self._identity:
                raise UserError(f"{path} is the checkpoint of another training (recipe, seed, network or data differ)")
            self.net.load_state_dict(state["net"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.scaler.load_state_dict(state["scaler"])
            self.rows, self._step, self._seconds = state["rows"], state["step"], state["seconds"]
            self._sums = state["sums"].to(self.device)
            log.info("going on in epoch %d at batch %d", len(self.rows) + 1, self._step)
            return


def save_weights(net: nn.Module, path: Path) -> None:
    """The state dict of a network as a file for `model.weights=`, whole or not at all."""
    data = io.BytesIO()
    torch.save({key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}, data)
    write_bytes(path, data.getvalue())
