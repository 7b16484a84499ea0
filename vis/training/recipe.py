"""Hyperparameters of a training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a training with cross-entropy. Raises ValueError for values out of range.

    optimiser: sgd (with momentum) or adamw. schedule: of the learning rate, after a linear warm-up over `warmup` epochs:
    cosine (to 0 at the end) or step (times `gamma` every `step_epochs`).
    crop: pad images by this many black pixels and crop them at random. flip: mirror half of them.
    area: smallest and largest fraction of a picture covered by a random crop with a width / height within `aspect`, which
    is resized to the network's input. These crops are taken from the files, which are read again in each epoch.
    amp: null, bf16, or fp16 with scaled gradients (NVIDIA GPUs). compile: use torch.compile.
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
    area: Sequence[float] | None = None
    aspect: Sequence[float] = (3 / 4, 4 / 3)
    amp: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str | None, ...]] = {
            "optimiser": ("sgd", "adamw"),
            "schedule": ("cosine", "step"),
            "amp": (None, *AMP),
        }
        for key, known in choices.items():
            if getattr(self, key) not in known:
                raise ValueError(
                    f"{key}={getattr(self, key)}: give one of {', '.join(str(k or 'null') for k in known)}"
                )
        if min(self.epochs, self.batch_size, self.step_epochs) < 1 or self.lr <= 0 or min(self.crop, self.warmup) < 0:
            raise ValueError(
                "epochs, batch_size and step_epochs must be 1 or more, lr above 0, crop and warmup 0 or more"
            )
        if self.area is not None and not (len(self.area) == 2 and 0 < self.area[0] <= self.area[1] <= 1):
            raise ValueError(
                f"area={list(self.area)}: give the smallest and the largest fraction, above 0 and up to 1, or null"
            )
        if not (len(self.aspect) == 2 and 0 < self.aspect[0] <= self.aspect[1]):
            raise ValueError(f"aspect={list(self.aspect)}: give the smallest and the largest width / height, above 0")
        if self.area is not None and self.crop:
            raise ValueError("crop and area are two ways of cropping: give crop=0 or area=null")

    def rate(self, epoch: float) -> float:
        """Return the learning rate of the step that ends after `epoch` epochs, which may be fractional."""
        if epoch < self.warmup:
            return self.lr * epoch / self.warmup
        if self.schedule == "step":
            return self.lr * self.gamma ** ((math.ceil(epoch) - 1) // self.step_epochs)
        done = (epoch - self.warmup) / max(self.epochs - self.warmup, 1e-9)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
