"""Meaningful perturbation (Fong & Vedaldi 2017): the smallest smooth region whose blurring lowers a class most."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vis.methods.base import Method
from vis.methods.baseline import baseline_image
from vis.methods.forward import Forward, output_targets
from vis.methods.target import Target, Targets, score


class MeaningfulPerturbation(Method):
    """Meaningful perturbation (Fong & Vedaldi 2017; ayyar2021, section 2.1): 1 - m for the mask m in [0, 1] that minimises

        E_tau p(c | m x + (1 - m) blur(x), shifted by tau) + l1 mean(1 - m) + tv mean(|dm|^beta)      (their Eq. 5)

    by Adam, where m is upsampled from `cells` x `cells`, dm are the differences of neighbours, and tau is up to `jitter`
    pixels. l1, tv and beta are those of the authors' examples, with means instead of sums, so that the size does not matter.
    An image stops when its loss has not fallen by a thousandth over `patience` steps, independently of the rest of the batch;
    its best mask counts. Maps are [B, 1, H, W], from 0 to 1. Raises NotApplicable for a unit of another layer.
    Costs up to `iterations` forward and backward passes for each image.
    """

    title = "Meaningful perturbation"
    display = "overlay"

    def __init__(
        self,
        cells: int = 28,
        iterations: int = 300,
        lr: float = 0.1,
        l1: float = 0.01,
        tv: float = 0.2,
        beta: float = 3.0,
        jitter: int = 4,
        patience: int = 30,
        seed: int = 0,
    ) -> None:
        if min(cells, iterations, patience) < 1 or lr <= 0 or min(l1, tv, jitter) < 0 or beta < 1:
            raise ValueError(
                "cells, iterations and patience are 1 or more, lr above 0, l1, tv and jitter 0 or more, beta 1 or more"
            )
        self.cells, self.iterations, self.lr, self.l1, self.tv, self.beta = cells, iterations, lr, l1, tv, beta
        self.jitter, self.patience, self.seed = jitter, patience, seed

    def passes(self, model: nn.Module, image: Tensor) -> float:
        return 2 * self.iterations

    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        images = forward.images.detach()
        chosen = [Target(t.unit, None, "prob") for t in output_targets(forward, targets, self.title)]
        blurred = baseline_image(images, "blur", None)
        mask = torch.ones(len(images), 1, self.cells, self.cells).to(images).requires_grad_()
        adam = torch.optim.Adam([mask], self.lr)
        best, least = mask.detach().clone(), images.new_full((len(images),), torch.inf)
        record, since = least.clone(), torch.zeros(len(images), dtype=torch.long, device=images.device)
        shifts = torch.randint(
            -self.jitter, self.jitter + 1, (self.iterations, 2), generator=torch.Generator().manual_seed(self.seed)
        ).tolist()
        for shift in shifts:
            going = (since < self.patience).nonzero()[:, 0]
            if len(going) == 0:
                break
            m = self._up(mask[going], images)
            mixed = m * images[going] + (1 - m) * blurred[going]
            p = score(forward.model(mixed.roll(shift, (2, 3))), [chosen[i] for i in going.tolist()])
            loss = p + self.l1 * (1 - mask[going]).mean((1, 2, 3)) + self.tv * self._roughness(mask[going])
            (gradient,) = torch.autograd.grad(loss.sum(), mask)
            with torch.no_grad():
                now = loss.detach()
                better = going[now < least[going]]
                best[better], least[going] = mask[better].detach(), torch.minimum(least[going], now)
                fallen = going[least[going] < 0.999 * record[going]]
                since[going] += 1
                since[fallen], record[fallen] = 0, least[fallen]
                mask.grad = gradient
                before = mask.detach().clone()
                adam.step()
                stopped = torch.ones(len(images), dtype=torch.bool, device=images.device)
                stopped[going] = False
                mask[stopped] = before[stopped]
                mask.clamp_(0, 1)
        return 1 - self._up(best, images)

    def _up(self, mask: Tensor, images: Tensor) -> Tensor:
        return F.interpolate(mask, images.shape[2:], mode="bilinear")

    def _roughness(self, mask: Tensor) -> Tensor:
        """mean(|dm|^beta) over the differences of neighbours: [B]."""
        parts = [mask.diff(dim=dim).abs().pow(self.beta).flatten(1).mean(1) for dim in (2, 3) if mask.shape[dim] > 1]
        return torch.stack(parts).sum(0) if parts else mask.new_zeros(len(mask))
