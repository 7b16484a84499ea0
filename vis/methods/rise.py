"""RISE (Petsiuk et al. 2018): the mean of random masks, each weighted by the score of the masked image."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vis.methods.base import Method
from vis.methods.forward import Forward, in_passes, output_targets
from vis.methods.target import Target, Targets, score


class RISE(Method):
    """RISE (Petsiuk, Das & Saenko 2018, Eq. 6): the expectation of f over the masks that keep a pixel.

        R = 1 / (p N) sum_i f(x * M_i) M_i

    A mask M_i is a grid of cells x cells, each cell 1 with probability p, enlarged by bilinear interpolation to a little more
    than the image and cut at random. It multiplies the network's input, as in the authors' code: a masked pixel is
    the network's zero. Maps are [B, 1, H, W], in units of f. Masks depend on the seed alone: all images have the same.
    samples: N, 4000 to 8000 in the paper. keep: p. output: f is the probability (prob), as in the paper, or the logit.
    Raises NotApplicable for a unit of another layer.
    Costs `samples` forward passes for each image.
    """

    title = "RISE"
    display = "overlay"

    def __init__(
        self, samples: int = 4000, cells: int = 7, keep: float = 0.5, output: str = "prob", seed: int = 0
    ) -> None:
        if samples < 1 or cells < 2 or not 0 < keep < 1 or output not in ("prob", "logit"):
            raise ValueError("samples is 1 or more, cells 2 or more, keep between 0 and 1, output prob or logit")
        self.samples, self.cells, self.keep, self.output, self.seed = samples, cells, keep, output, seed

    def passes(self, model: nn.Module, image: Tensor) -> float:
        return self.samples

    @torch.no_grad()
    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        images = forward.images.detach()
        chosen = [Target(t.unit, None, self.output) for t in output_targets(forward, targets, self.title)]  # type: ignore[arg-type]  # checked above
        grids, shifts = self._draws(images)
        total = torch.zeros_like(images[:, :1])
        for some in in_passes(torch.arange(self.samples), images[0].numel()):
            masks = self._masks(grids[some], shifts[some], images)
            for i, target in enumerate(chosen):
                f = score(forward.model(images[i] * masks), [target] * len(masks))
                total[i] += torch.einsum("n,nchw->chw", f, masks)
        return total / (self.keep * self.samples)

    def _draws(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Draw grids [N, 1, cells, cells] of 0 and 1, and the shifts [N, 2] of their masks, in [0, 1) of a cell."""
        rng = np.random.default_rng(self.seed)
        grids = rng.random((self.samples, 1, self.cells, self.cells)) < self.keep
        return torch.from_numpy(grids).to(images), torch.from_numpy(rng.random((self.samples, 2)))

    def _masks(self, grids: Tensor, shifts: Tensor, images: Tensor) -> Tensor:
        """Enlarge and cut grids to masks [n, 1, H, W] in [0, 1]."""
        H, W = images.shape[2:]
        sides = [-(-side // self.cells) for side in (H, W)]  # of a cell, rounded up
        up = F.interpolate(grids, [(self.cells + 1) * side for side in sides], mode="bilinear")
        corners = (shifts * torch.tensor(sides)).long().tolist()
        return torch.stack([m[:, y : y + H, x : x + W] for m, (y, x) in zip(up, corners, strict=True)])
