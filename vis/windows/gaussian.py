"""Distributions that replace a window of an image, learnt from images: a conditional Gaussian or the marginal.

In the conditional Gaussian (zhou2018, Section 2; Zintgraf et al. 2017) patches of side l have mean mu and covariance S.
The pixels 1 of a window of side k, given the pixels 2 around it in the patch, have

    mean        mu1 + S12 S22^-1 (x2 - mu2)
    covariance  S11 - S12 S22^-1 S21

The window is centred in its patch. At the border of the image the patch is shifted inside, so a window has (l - k + 1)^2
possible places in a patch; each needs one matrix for all images. All values are in the units of the fitted images, which
are the network's inputs.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vis.errors import UserError
from vis.system.files import write_bytes


class ImageSequence(Protocol):
    """N images [C, H, W]: a tensor [N, C, H, W], or an object that loads each on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Tensor: ...


def _generators(seed: int, windows: Tensor) -> Iterator[np.random.Generator]:
    """Yield a generator for each window [n, 2], so that a window's samples do not depend on the other windows."""
    for top, left in windows.tolist():
        yield np.random.Generator(np.random.Philox(key=[seed, top << 32 | left]))


@dataclass
class PatchGaussian:
    """A Gaussian over patches of side `side`, one per channel or one joint over all channels.

    mean [G, D] and covariance [G, D, D] are float64: per channel, G = C and D = l^2; jointly, G = 1 and D = C l^2.
    Samples are clipped to the range of the data, low to high [C]. ridge, in units of the mean variance, is added to the
    diagonal of S.
    """

    side: int
    mean: Tensor
    covariance: Tensor
    low: Tensor
    high: Tensor
    ridge: float
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._known: dict[tuple[int, int, int], tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def fit(
        cls,
        images: ImageSequence,
        side: int = 18,
        patches: int = 20_000,
        joint: bool = False,
        ridge: float = 1e-4,
        seed: int = 0,
        provenance: Mapping[str, Any] | None = None,
    ) -> "PatchGaussian":
        """Fit to `patches` patches at random places of random images; the covariance is divided by patches - 1.

        Only images that are drawn are loaded. Raises UserError for an image smaller than a patch.
        """
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(len(images), (patches,), generator=generator).sort()[0]
        found, low, high = [], [], []
        for i, count in zip(*(t.tolist() for t in which.unique(return_counts=True)), strict=True):
            image = images[i].detach().cpu()
            if min(image.shape[1:]) < side:
                size = "x".join(map(str, image.shape[1:]))
                raise UserError(f"patches of {side}x{side} do not fit into an image of {size}: use a smaller patch")
            top, left = (torch.randint(n - side + 1, (count,), generator=generator) for n in image.shape[1:])
            found.append(image.unfold(1, side, 1).unfold(2, side, 1)[:, top, left].transpose(0, 1).double())
            low.append(image.amin((1, 2)))
            high.append(image.amax((1, 2)))
        x = torch.cat(found)  # [patches, C, l, l]
        x = x.flatten(1)[None] if joint else x.flatten(2).transpose(0, 1)  # [G, patches, D]
        mean = x.mean(1)
        x = x - mean[:, None]
        lowest, highest = torch.stack(low).amin(0).double(), torch.stack(high).amax(0).double()
        facts = {"images": len(images), "patches": patches, "seed": seed, **(provenance or {})}
        return cls(side, mean, x.mT @ x / (patches - 1), lowest, highest, ridge, facts)

    @property
    def joint(self) -> bool:
        return self.mean.shape[1] != self.side**2

    def save(self, path: Path) -> None:
        """Save the Gaussian and its provenance to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save({each.name: getattr(self, each.name) for each in fields(self)}, buffer)
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "PatchGaussian":
        """Load a file written by `save`. Raises UserError if it is missing or invalid."""
        try:
            return cls(**torch.load(path, weights_only=True))
        except FileNotFoundError as error:
            raise UserError(f"no Gaussian in {path}: fit one, or omit gaussian=") from error
        except Exception as error:  # damaged files make torch raise almost anything
            raise UserError(f"{path} is not a Gaussian saved by this project: fit one, or omit gaussian=") from error

    def fingerprint(self) -> str:
        """Return the SHA-256 of mean and covariance."""
        return hashlib.sha256(self.mean.numpy().tobytes() + self.covariance.numpy().tobytes()).hexdigest()

    def means(self, image: Tensor, windows: Tensor, k: int) -> Tensor:
        """Return conditional means [n, C, k, k] of windows [n, 2] (top, left) of side k in an image [C, H, W].

        Raises UserError if the window does not fit into a patch, or the image has other channels or is too small.
        """
        out = image.new_empty(len(windows), len(image), k, k)
        for some, start, place in self._by_place(image, windows, k):
            A, b = (t.to(image) for t in self._conditional(k, *place)[:2])
            corner, last = start.amin(0), start.amax(0) + self.side
            part = image[:, corner[0] : last[0], corner[1] : last[1]]  # covers all patches
            row, column = (start - corner).unbind(1)
            for g, x in enumerate([part] if self.joint else part[:, None]):
                means = F.conv2d(x[None], A[g].view(-1, len(x), self.side, self.side), b[g])[0]  # A x + b of each patch
                found = means.flatten(1).T[row * means.shape[2] + column].view(len(some), -1, k, k)
                out[some, g * len(x) : (g + 1) * len(x)] = found
        return out

    def samples(self, image: Tensor, windows: Tensor, k: int, count: int, seed: int) -> Tensor:
        """Return `count` samples for each window, clipped to the range of the data: [n, count, C, k, k]."""
        out = self.means(image, windows, k)[:, None].repeat(1, count, 1, 1, 1)
        for some, _, place in self._by_place(image, windows, k):
            L = self._conditional(k, *place)[2].to(image)
            G, D = L.shape[:2]
            noise = [each.standard_normal((count, G, D)) for each in _generators(seed, windows.cpu()[some.cpu()])]
            z = torch.from_numpy(np.concatenate(noise)).to(image)
            drawn = (z.transpose(0, 1) @ L.mT).transpose(0, 1)
            out[some] += drawn.reshape(len(some), count, len(image), k, k)
        low, high = (limit.to(image).view(-1, 1, 1) for limit in (self.low, self.high))
        return out.clamp(low, high)

    def _by_place(self, image: Tensor, windows: Tensor, k: int) -> list[tuple[Tensor, Tensor, tuple[int, int]]]:
        """Group windows by their place in the patch: (their indices, the corners of their patches, the place)."""
        side, C = self.side, len(image)
        if not 0 < k < side:
            raise UserError(f"a window of side {k} needs a larger patch than side {side}: use patch > window")
        if len(self.low) != C or min(image.shape[1:]) < side:
            raise UserError(
                f"the Gaussian needs {len(self.low)} channels and at least {side}x{side} pixels, the image is {list(image.shape)}"
            )
        windows = windows.to(image.device)
        last = torch.tensor([image.shape[1] - side, image.shape[2] - side], device=image.device)
        start = (windows - (side - k) // 2).clamp(min=0).minimum(last)
        places, which = (windows - start).unique(dim=0, return_inverse=True)
        groups = [(which == i).nonzero()[:, 0] for i in range(len(places))]
        return [(g, start[g], (int(p[0]), int(p[1]))) for g, p in zip(groups, places.tolist(), strict=True)]

    @cached_property
    def precision(self) -> Tensor:
        """P = (S + ridge v I)^-1 with v the mean variance: [G, D, D]."""
        variance = self.covariance.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
        eye = torch.eye(self.covariance.shape[1], dtype=self.covariance.dtype)
        return torch.cholesky_inverse(
            torch.linalg.cholesky(self.covariance + self.ridge * variance[:, None, None] * eye)
        )

    def _conditional(self, k: int, row: int, column: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return A [G, k^2, D], b and L of a window at (row, column) of its patch: mean A x + b, covariance L L^T.

        They follow from the precision: mean mu1 - P11^-1 P12 (x2 - mu2), covariance P11^-1.
        """
        key = (k, row, column)
        if key not in self._known:
            self._known[key] = self._solve(*key)
        return self._known[key]

    def _solve(self, k: int, row: int, column: int) -> tuple[Tensor, Tensor, Tensor]:
        side, D = self.side, self.mean.shape[1]
        inside = torch.zeros(D // side**2, side, side, dtype=torch.bool)
        inside[:, row : row + k, column : column + k] = True
        one, two = inside.flatten().nonzero()[:, 0], (~inside).flatten().nonzero()[:, 0]
        R = torch.linalg.cholesky(self.precision[:, one][:, :, one])
        A = R.new_zeros(len(R), len(one), D)
        A[:, :, two] = -torch.cholesky_solve(self.precision[:, one][:, :, two], R)
        offset = self.mean[:, one] - (A @ self.mean[..., None])[..., 0]
        L = torch.linalg.solve_triangular(R.mT, torch.eye(len(one), dtype=R.dtype), upper=True)
        return A, offset, L


@dataclass
class Marginal:
    """The marginal distribution: a window's pixels in other images, whatever surrounds it (zhou2018, Section 3, MNIST).

    mean [C, H, W] is over all images; samples are drawn from images [M, C, H, W].
    """

    mean: Tensor
    images: Tensor

    @classmethod
    def fit(cls, images: ImageSequence, kept: int = 1000, seed: int = 0) -> "Marginal":
        """Average all images, which have one size, and keep `kept` random ones to draw from."""
        mean = torch.zeros_like(images[0], dtype=torch.float64)
        for i in range(len(images)):
            mean += images[i]
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:kept]
        return cls(mean / len(images), torch.stack([images[int(i)] for i in order]))

    def means(self, image: Tensor, windows: Tensor, k: int) -> Tensor:
        """Return the mean image at each window's place: [n, C, k, k]."""
        return self._at(self.mean[None].to(image), image, windows, k)[0]

    def samples(self, image: Tensor, windows: Tensor, k: int, count: int, seed: int) -> Tensor:
        """Return the pixels of `count` random images at each window's place: [n, count, C, k, k]."""
        images, drawn = self.images.to(image), _generators(seed, windows)
        which = [torch.from_numpy(each.integers(len(images), size=count)).to(image.device) for each in drawn]
        return torch.stack(
            [self._at(images[w], image, at[None], k)[:, 0] for w, at in zip(which, windows, strict=True)]
        )

    def _at(self, images: Tensor, image: Tensor, windows: Tensor, k: int) -> Tensor:
        if images.shape[1:] != image.shape:
            raise UserError(
                f"the marginal was fitted to images {list(images.shape[1:])}, this one is {list(image.shape)}"
            )
        top, left = windows.to(image.device).unbind(1)
        return images.unfold(2, k, 1).unfold(3, k, 1)[:, :, top, left].transpose(1, 2)
