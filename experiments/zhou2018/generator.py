"""zhou2018, Eq. (4), introduction: a generator G from codes to natural images, after Nguyen et al. 2016.

    x* = G(z*),  z* = argmax a_i(G(z); theta) - lambda ||z||_2^2                                                    (4)

G reconstructs images from a network's features, the inputs of its last dense layer, and is trained in the run, in two minutes.
The paper's G, of photographs, was trained against a critic too.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vis.data import Preprocess
from vis.graph.modes import evaluating
from vis.system.console import progress


class Generator(nn.Module):
    """G of Eq. (4): codes [B, D, 1, 1] in [0, 1] to images as the network sees them. rms: the root mean square of real codes."""

    def __init__(self, codes: int, shape: Sequence[int], preprocess: Preprocess, rms: float) -> None:
        super().__init__()
        self.codes, self.shape, self.preprocess, self.rms = codes, shape, preprocess, rms
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(codes, 512), nn.ReLU(), nn.Linear(512, math.prod(shape)), nn.Sigmoid()
        )

    def pixels(self, codes: Tensor) -> Tensor:
        """Decode to pixels [B, C, H, W] in [0, 1]."""
        return self.layers(codes).view(-1, *self.shape)

    def forward(self, codes: Tensor) -> Tensor:
        return self.preprocess(self.pixels(codes))


def features(net: nn.Module, pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Return the inputs of a network's last dense layer, at least 0, for pixels [N, C, H, W]: [N, D]."""
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    found: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].clamp(min=0)))
    with evaluating(net), torch.no_grad():
        for part in pixels.split(256):
            net(preprocess(part))
    hook.remove()
    return torch.cat(found)


def trained(net: nn.Module, pixels: Tensor, preprocess: Preprocess, steps: int, seed: int) -> Generator:
    """Train a generator to reconstruct pixels [N, C, H, W] from the network's features, by the mean square error.

    A code is a feature over three of its standard deviations, at most 1, the bound of Nguyen et al.
    """
    z = features(net, pixels, preprocess)
    z = (z / (3 * z.std(0)).clamp(min=1e-12)).clamp(max=1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        G = Generator(z.shape[1], pixels.shape[1:], preprocess, z.square().mean().sqrt().item()).to(z)
        optimiser = torch.optim.Adam(G.parameters(), lr=1e-3)
        for _ in progress(range(steps), steps, "steps of the generator", leave=False):
            i = torch.randint(len(z), (64,))
            optimiser.zero_grad()
            F.mse_loss(G.pixels(z[i]), pixels[i]).backward()
            optimiser.step()
    return G.requires_grad_(False)
