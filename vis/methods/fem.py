"""FEM, the feature-based explanation method (Fuad et al. 2020; ayyar2021, section 5.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vis.methods.forward import Forward
from vis.methods.layers import OnFeatureMaps, Reshape
from vis.methods.target import Targets


def fem(A: Tensor, K: float = 1.0) -> Tensor:
    """Sum mu_k B_k, B_k = 1[A_k >= mu_k + K sigma_k], over feature maps [B, V, ...] of any dimension: [B, ...] (Eq. 26)."""
    positions = tuple(range(2, A.ndim))
    mu = A.mean(positions, keepdim=True)
    sigma = A.std(positions, correction=0, keepdim=True)
    slack = 8 * torch.finfo(A.dtype).eps * mu.abs()  # keeps a constant map, whatever the rounding of its mean
    return (mu * (mu + K * sigma - slack <= A)).sum(1)


class FEM(OnFeatureMaps):
    """FEM (Fuad et al. 2020; ayyar2021, section 5.3): the rare, strong values of feature maps, weighted by each map's mean.

        R = sum_k mu_k B_k        B_k = 1[A_k >= mu_k + K sigma_k]        ayyar2021, Eq. 26

    FEM uses no gradient and no class. Maps are [B, 1, H, W], of images in 3D [B, 1, T, H, W], in units of the features; behind a
    ReLU they are not negative. The paper scales the map to [0, 1]; here the display does.
    K: the threshold, in standard deviations above the mean.
    Raises NotApplicable where the layer gives no feature maps [B, V, h, w].
    Costs a shared forward pass.
    """

    title = "FEM"
    video = True

    def __init__(self, K: float = 1.0, layer: str | None = None, reshape: Reshape | None = None) -> None:
        super().__init__(layer, reshape)
        self.K = K

    def explain(self, forward: Forward, targets: Targets) -> Tensor:
        forward.scores(targets)  # raises for a unit that is not there, as for every method
        (layer,) = self.layers(forward.model, forward.images)
        maps = fem(self.maps(forward, layer), self.K)[:, None]
        return F.interpolate(maps, forward.images.shape[2:], mode="bilinear" if maps.ndim == 4 else "trilinear")
