"""Train a classifier. A killed training resumes and ends with the same losses and weights.

No random generator has a state that could be lost: the order of an epoch, the crops and flips of an image and the dropout
of a step are drawn from (seed, epoch), (seed, epoch, image) and (seed, epoch, step, process). The learning rate is a
function of the step. A checkpoint contains the network, the optimiser, the gradient scaler of float16, the step in the
epoch and the sums so far. On a CPU a resumed training is bit-identical; on a GPU, up to nondeterministic kernels.

    training = Training(net, train, val, Recipe(epochs=10), preprocess, seed=0, device="cpu", folder=Path("here"))
    for row in training: ...        # one row per epoch; after a kill, run this again to resume

Processes started by torchrun train together: each takes its share of every batch, and the gradients are those of the
whole batch. A step equals that of a single process up to the order of sums, except for dropout, which each process draws
for its own images, and batch norm, which sees a process's share. A training can resume with another number of processes.
"""

import hashlib
import io
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vis.errors import UserError
from vis.store.tables import csv_text
from vis.system import shards
from vis.system.console import progress
from vis.system.files import write_bytes, write_text
from vis.training.images import Files, Source, draws_of, order
from vis.training.recipe import AMP, Recipe

log = logging.getLogger(__name__)

Row = dict[str, Any]
_SHARE_OF_SAVING = 0.02  # largest fraction of time spent on checkpoints (2 GB for the masked VGG)


class Training:
    """Train `net` in place, with checkpoints in `folder`; iteration trains, and yields one row per epoch.

    Training resumes from the checkpoint in the folder, from the previous one if that is damaged, or from the beginning if
    both are. Raises UserError if the checkpoint belongs to another training. A network's wall (`apply_wall`) is applied
    after each step.
    save_seconds: time between checkpoints, more if writing is slow; 0 saves after each step. Each epoch ends with one.
    tensorboard: a folder for the scalars of each epoch. Raises UserError if the package is not installed.
    """

    def __init__(
        self,
        net: nn.Module,
        train: Source,
        val: Source,
        recipe: Recipe,
        preprocess: Callable[[Tensor], Tensor],
        seed: int,
        device: torch.device | str,
        folder: Path,
        save_seconds: float = 30.0,
        tensorboard: Path | None = None,
    ) -> None:
        self.device = torch.device(device)
        if recipe.amp == "fp16" and self.device.type != "cuda":
            raise UserError(f"amp=fp16 needs an NVIDIA GPU, not {self.device}: use bf16 or null")
        if isinstance(train, Files) != (recipe.area is not None):
            raise ValueError("a recipe with `area` needs Files, any other recipe needs Images")
        self.net: Any = net.to(self.device).requires_grad_(True)
        last = any(p.ndim == 4 and not p.is_contiguous() for p in net.parameters())
        self._format = torch.channels_last if last else torch.contiguous_format  # of the network, and so of the images
        self.dtype = next(net.parameters()).dtype
        self.train, self.val = train.to(self.device), val.to(self.device)
        self.recipe, self.preprocess, self.seed = recipe, preprocess, seed
        self.folder, self.save_seconds = folder, save_seconds
        self.rows: list[Row] = []
        self._step, self._seconds, self._saved, self._pause = 0, 0.0, time.perf_counter(), save_seconds
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
        self._tensorboard = _writer(tensorboard, len(self.rows)) if tensorboard and shards.rank() == 0 else None
        # `_one` runs in this process alone; `_all` averages the gradients of all processes in its backward pass.
        self._one: Any = net
        self._all = shards.data_parallel(net, self.device)
        if recipe.compile:
            self._one, self._all = torch.compile(self._one), torch.compile(self._all)

    def __iter__(self) -> Iterator[Row]:
        """Yield the row of each epoch, training as needed."""
        for epoch in range(self.recipe.epochs):
            yield self.row(epoch)

    def row(self, epoch: int) -> Row:
        """Return the row of an epoch (0, 1, ...), training up to it if necessary: losses, top-1 and top-5, seconds."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            while len(self.rows) <= epoch:
                self._epoch()
        return self.rows[epoch]

    def _epoch(self) -> None:
        epoch, count, size = len(self.rows), len(self.train), self.recipe.batch_size
        chosen = order(self.seed, epoch, count).split(size)
        mine = [shards.mine(indices) for indices in chosen[self._step :]]
        began = time.perf_counter() - self._seconds
        title = f"epoch {epoch + 1}/{self.recipe.epochs}"
        with _bar(count, title, done=min(self._step * size, count)) as bar:
            for pixels, labels in self.train.batches(mine, self.recipe, self.seed, epoch):
                self._learn(pixels, labels, epoch, self._step, len(chosen))
                bar.update(len(chosen[self._step]))
                self._step += 1
                if time.perf_counter() - self._saved >= self._pause:
                    self._seconds = time.perf_counter() - began
                    self.save()
        loss, *train = (self._sums / count).tolist()
        if not math.isfinite(loss):
            raise UserError(
                f"the training diverged in epoch {epoch + 1} (loss {loss}): give a smaller lr than {self.recipe.lr}"
            )
        val = self.evaluate()
        seconds = time.perf_counter() - began
        names = ("train_loss", "train_top1", "train_top5", "val_loss", "val_top1", "val_top5")
        row = {"epoch": epoch + 1, "lr": self.recipe.rate(epoch + 1)} | dict(
            zip(names, (loss, *train, *val), strict=True)
        )
        self.rows.append({**row, "seconds": seconds, "images_per_second": count / seconds})
        self._step, self._seconds, self._sums = 0, 0.0, self._zeros()
        if self._tensorboard:  # before the checkpoint: TensorBoard keeps one of two equal scalars
            for name, value in self.rows[-1].items():
                self._tensorboard.add_scalar(name, value, epoch + 1)
            self._tensorboard.flush()
        self.save()
        if shards.rank() == 0:
            write_text(self.folder / "log.csv", csv_text(self.rows))
            left = seconds * (self.recipe.epochs - epoch - 1)
            log.info(
                "%s: loss %.4f, validation loss %.4f, top-1 %.2f %%, top-5 %.2f %%  (%.0f s, %.0f images/s%s)",
                title, loss, row["val_loss"], 100 * row["val_top1"], 100 * row["val_top5"], seconds, count / seconds,
                f", {timedelta(seconds=round(left))} left" if left else "",
            )  # fmt: skip

    def _learn(self, pixels: Tensor, labels: Tensor, epoch: int, step: int, steps: int) -> None:
        """Take one optimiser step on this process's share of a batch."""
        torch.manual_seed(int(draws_of(self.seed, epoch, 2, step, shards.rank()).integers(2**63)))  # of dropout
        self.net.train()
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate(epoch + (step + 1) / steps)
        logits, loss = self._forward(self._all, pixels, labels)
        size = min(self.recipe.batch_size, len(self.train) - step * self.recipe.batch_size)
        self.optimiser.zero_grad()
        self.scaler.scale(loss * (shards.world() / size)).backward()  # the processes' gradients are averaged
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if hasattr(self.net, "apply_wall"):
            self.net.apply_wall()
        self._sums += shards.all_reduce(_measure(logits.detach(), loss.detach(), labels, self._sums.dtype))

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """Return the mean loss, top-1 and top-5 on the validation images."""
        self.net.eval()
        for buffer in self.net.buffers():  # of batch norm
            shards.broadcast(buffer)
        sums = self._zeros()
        chosen = torch.arange(len(self.val)).split(4 * self.recipe.batch_size)
        with _bar(len(self.val), "validation") as bar:
            for indices, (pixels, labels) in zip(chosen, self.val.batches(list(map(shards.mine, chosen))), strict=True):
                sums += _measure(*self._forward(self._one, pixels, labels), labels, sums.dtype)
                bar.update(len(indices))
        return (shards.all_reduce(sums) / len(self.val)).tolist()

    def _forward(self, net: nn.Module, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and the summed loss."""
        x = self.preprocess(pixels.to(self.dtype) / 255).contiguous(memory_format=self._format)
        with torch.autocast(self.device.type, AMP.get(str(self.recipe.amp)), enabled=self.recipe.amp is not None):
            logits = net(x)
            return logits, F.cross_entropy(logits, labels, reduction="sum")

    def _zeros(self) -> Tensor:
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.zeros(3, dtype=kind, device=self.device)

    def save(self) -> None:
        """Write a checkpoint atomically and keep the previous one. Only rank 0 writes."""
        if shards.rank() > 0:
            return
        began = time.perf_counter()
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
        if self.save_seconds:
            self._pause = max(self.save_seconds, (self._saved - began) / _SHARE_OF_SAVING)

    def _files(self) -> tuple[Path, Path]:
        return self.folder / "checkpoint", self.folder / "checkpoint_before"

    def _load(self) -> None:
        for path in filter(Path.is_file, self._files()):
            data = path.read_bytes()
            if hashlib.sha256(data[32:]).digest() != data[:32]:
                log.warning("%s is damaged: resuming from the previous checkpoint, or from the beginning", path)
                continue
            state = torch.load(io.BytesIO(data[32:]), map_location="cpu", weights_only=True)
            if state["identity"] != self._identity:
                raise UserError(f"{path} is the checkpoint of another training (recipe, seed, network or data differ)")
            self.net.load_state_dict(state["net"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.scaler.load_state_dict(state["scaler"])
            self.rows, self._step, self._seconds = state["rows"], state["step"], state["seconds"]
            self._sums = state["sums"].to(self.device)
            log.info("resuming in epoch %d at batch %d", len(self.rows) + 1, self._step)
            return


def _measure(logits: Tensor, loss: Tensor, labels: Tensor, kind: torch.dtype) -> Tensor:
    """Sum loss, top-1 and top-5 hits over a batch: [3], kept on the device to avoid synchronisation."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([loss.to(kind), best[:, 0].sum(), best.sum()])


def _bar(count: int, title: str, done: int = 0) -> Any:
    return progress((), count, "images", done=done, desc=title, leave=False, disable=shards.rank() > 0)


def _writer(folder: Path, done: int) -> Any:
    """Open a TensorBoard writer that discards the scalars of epochs after the first `done`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("experiment.tensorboard=true needs the package tensorboard: pip install tensorboard") from error
    return SummaryWriter(folder, purge_step=done + 1)


def save_weights(net: nn.Module, path: Path) -> None:
    """Write the state dict of a network atomically, as a file for `model.weights=`."""
    data = io.BytesIO()
    torch.save({key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}, data)
    write_bytes(path, data.getvalue())
