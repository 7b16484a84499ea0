"""Guided integrated gradients (Kapishnikov et al. 2021): a way to the image around large gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vis.methods.baseline import Baseline
from vis.methods.forward import Forward
from vis.methods.gradients import PathMethod
from vis.methods.target import Target


class GuidedIG(PathMethod):
    """Guided IG (Kapishnikov et al. 2021, Algorithm 1): integrated gradients on a way that leaves large gradients for last.

        R = sum_t (x_t - x_(t-1)) * dS_c(x_(t-1)) / dx        x_0 the baseline, ||x - x_t||_1 = (1 - t / T) ||x - x_0||_1

    A step moves the values whose gradient is smallest towards the image, each at most to the point max_dist ahead of the
    straight line, and no value stays more than max_dist behind. Maps are signed, [B, C, H, W], in units of the target.
    steps: T. fraction: of the values, which a step moves first. max_dist: 0 is the straight line, 1 leaves the way free.
    baseline: one or a list, whose maps are averaged (`vis.methods.baseline`). seed: of noise. NotApplicable for black without
    `preprocess`.

    Axiom: completeness, a map sums to S_c(x) - S_c(x_0), up to the error of the sum.
    Costs `steps` forward and backward passes for each baseline, one after the other, beside the shared forward pass.
    """

    title = "Guided IG"
    mixed_error = 0.48  # each step depends on the order of gradients

    def __init__(
        self,
        steps: int = 200,
        fraction: float = 0.25,
        max_dist: float = 0.02,
        baseline: Baseline | Sequence[Baseline] = "black",
        seed: int = 0,
    ) -> None:
        super().__init__(steps, baseline, seed)
        if not 0 < fraction <= 1 or not 0 <= max_dist <= 1:
            raise ValueError("fraction is above 0 and at most 1, max_dist from 0 to 1")
        self.fraction, self.max_dist = fraction, max_dist

    def from_baseline(self, forward: Forward, chosen: list[Target], x0: Tensor, k: int) -> Tensor:
        x = forward.images.detach().cpu().double()  # the way is found in float64, which not every device has
        x0 = x0.expand_as(forward.images).cpu().double()
        at, R = x0, torch.zeros_like(x)
        for step in range(self.steps):
            with Forward(forward.model, at.to(forward.images), list(forward.layers), forward.preprocess) as here:
                G = here.gradient(chosen).cpu().double()
            alpha = (step + 1) / self.steps
            after = torch.stack([self._moved(*each, alpha) for each in zip(at, G.abs(), x, x0, strict=True)])
            R += (after - at) * G
            at = after
        return R.to(forward.images)

    def _moved(self, at: Tensor, size: Tensor, x: Tensor, x0: Tensor, alpha: float) -> Tensor:
        """The next point, at (1 - alpha) of the distance from x0 to x: all [C, H, W], size the gradient's magnitude."""
        low, high = (torch.lerp(x0, x, min(max(alpha + d, 0.0), 1.0)) for d in (-self.max_dist, self.max_dist))
        at = torch.where((at - x0).abs() < (low - x0).abs(), low, at)
        total = (x - x0).abs().sum()
        while True:
            missing = (x - at).abs().sum() - (1 - alpha) * total
            free = at != high
            if missing <= 1e-9 * total or not free.any():
                return at
            size = size.where(free, torch.inf)
            chosen = free & (size <= size.flatten().kthvalue(1 + int(self.fraction * (size.numel() - 1))).values)
            gamma = missing / (high - at).abs()[chosen].sum()
            if gamma <= 1:
                return torch.where(chosen, torch.lerp(at, high, gamma), at)
            at = torch.where(chosen, high, at)
