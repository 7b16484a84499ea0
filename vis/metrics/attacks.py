"""Adversarial perturbations (FGSM, DeepFool, one pixel), and noise as their control.

Images are pixels [B, C, H, W] in [0, 1], before and after. `logits` maps pixels to logits, [B, C, H, W] -> [B, K]:
preprocessing and a network in eval mode (`vis.graph.modes.evaluating`). Images of a batch do not affect each other.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Logits = Callable[[Tensor], Tensor]


def fgsm(logits: Logits, pixels: Tensor, classes: Tensor, eps: float = 4 / 255) -> Tensor:
    """Return x + eps sign(dL/dx), where L is the cross-entropy of the classes [B] (Goodfellow et al. 2015)."""
    x = pixels.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits(x), classes, reduction="sum"), x)
    return (pixels + eps * gradient.sign()).clamp(0, 1)


def deepfool(logits: Logits, pixels: Tensor, steps: int = 50, overshoot: float = 0.02, candidates: int = 10) -> Tensor:
    """Step to the nearest decision boundary of the linearised network, repeatedly, until the class changes.

    Algorithm 2 of Moosavi-Dezfooli et al. 2016; as there, it considers the `candidates` classes with the largest logits.
    """
    return torch.cat([_deepfool(logits, x[None], steps, overshoot, candidates) for x in pixels.detach()])


def _deepfool(logits: Logits, x0: Tensor, steps: int, overshoot: float, candidates: int) -> Tensor:
    with torch.no_grad():
        first = logits(x0)[0]
    k = first.topk(min(candidates, len(first))).indices  # k[0] is the class to leave
    x, r = x0, torch.zeros_like(x0)
    for _ in range(steps):
        each = x.repeat(len(k), 1, 1, 1).requires_grad_(True)
        f = logits(each)
        if f[0].argmax() != k[0]:
            break
        (gradients,) = torch.autograd.grad(f.gather(1, k[:, None]).sum(), each)
        w, gap = gradients[1:] - gradients[:1], (f[0, k[0]] - f[0, k[1:]]).detach()
        norm = w.flatten(1).norm(dim=1)
        if not norm.any():  # a dead network has no boundary
            break
        nearest = (gap / norm).where(norm > 0, torch.inf).argmin()
        step = gap[nearest] / norm[nearest] + 1e-4  # + 1e-4 as in the authors' code, to step past rounding errors
        r = r + step / norm[nearest] * w[nearest]
        x = (x0 + (1 + overshoot) * r).clamp(0, 1)
    return x


def one_pixel(
    logits: Logits, pixels: Tensor, classes: Tensor, population: int = 100, generations: int = 30, seed: int = 0
) -> Tensor:
    """Change the one pixel that most reduces the margin of the class over the next one (Su et al. 2019).

    SciPy's differential evolution, with their settings (F = 0.5, no crossover), searches its position and colour until
    the class changes.
    """
    return torch.cat(
        [
            _one_pixel(logits, x, int(c), population, generations, seed)
            for x, c in zip(pixels.detach(), classes, strict=True)
        ]
    )


@torch.no_grad()
def _one_pixel(logits: Logits, x: Tensor, c: int, population: int, generations: int, seed: int) -> Tensor:
    from scipy.optimize import differential_evolution

    channels, height, width = x.shape

    def changed(candidates: np.ndarray) -> Tensor:  # [2 + C, n]: row, column, colour
        images = x.repeat(candidates.shape[1], 1, 1, 1)
        row, column = (np.minimum(candidates[:2].T, (height - 1, width - 1))).astype(int).T
        images[np.arange(len(images)), :, row, column] = torch.from_numpy(candidates[2:].T).to(x)
        return images

    def margin(candidates: np.ndarray) -> np.ndarray:
        f = logits(changed(candidates.reshape(2 + channels, -1)))
        others = f.clone()
        others[:, c] = -torch.inf
        return (f[:, c] - others.amax(1)).double().cpu().numpy()

    found = differential_evolution(
        margin,
        [(0, height), (0, width), *[(0.0, 1.0)] * channels],
        strategy="rand1bin",
        mutation=0.5,
        recombination=1.0,
        popsize=max(1, population // (2 + channels)),
        maxiter=generations,
        tol=0,
        polish=False,
        vectorized=True,
        updating="deferred",
        seed=seed,
        callback=lambda best, convergence: bool(margin(best)[0] < 0),
    )
    return changed(found.x[:, None])


def equal_noise(pixels: Tensor, perturbed: Tensor, seed: int = 0) -> Tensor:
    """Add Gaussian noise with the l2 norm of each image's perturbation, as a control.

    The pattern depends only on the seed. Bisection finds its standard deviation, since pixels are clipped to [0, 1]. At
    most, all pixels become black or white by the pattern's signs; if the perturbation is longer, the noise is shorter.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(pixels.shape[1:], dtype=torch.float64, generator=generator).to(pixels)

    def noisy(sigma: Tensor) -> Tensor:
        return (pixels + sigma.view(-1, 1, 1, 1) * noise).clamp(0, 1)

    def length(x: Tensor) -> Tensor:
        return (x - pixels).double().flatten(1).norm(dim=1)

    wanted = length(perturbed)
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, 1e3)
    for _ in range(60):
        middle = (low + high) / 2
        short = length(noisy(middle)) < wanted
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return noisy(low).to(pixels.dtype)
