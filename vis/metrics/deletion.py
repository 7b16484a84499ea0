"""Does the network use the pixels that a map marks? Deletion and insertion in the order of the map (Petsiuk et al. 2018)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vis.graph.modes import evaluating
from vis.methods.target import Target, Targets, as_targets, score


@dataclass(frozen=True)
class Curves:
    """Probabilities [B, steps + 1] as pixels are deleted or inserted, and the areas under these curves, [B]."""

    deletion: Tensor
    insertion: Tensor

    @property
    def deletion_auc(self) -> Tensor:
        """Lower is better: deleting the highest-ranked pixels first removes the evidence for the class."""
        return _area(self.deletion)

    @property
    def insertion_auc(self) -> Tensor:
        """Higher is better."""
        return _area(self.insertion)


def curves(
    model: nn.Module, images: Tensor, maps: Tensor, targets: Targets, baseline: Tensor, steps: int = 64, batch: int = 64
) -> Curves:
    """Delete pixels from images [B, C, H, W], and insert them into the baseline, by the maps' values, largest first.

    maps [B, C, H, W] are summed over channels; ties keep the pixels' order. baseline: has the shape of the images, or is
    broadcast to it (black, the mean, a blurred copy). targets: the classes whose probability is recorded; the network's
    top class if None. steps: of equal size. batch: images per forward pass.
    """
    order = maps.sum(1).flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    rank = rank.view(len(maps), 1, *maps.shape[2:])
    counts = torch.linspace(0, order.shape[1], steps + 1, device=images.device).round().view(-1, 1, 1, 1)
    baseline = baseline.to(images).expand_as(images)
    chosen = [Target(t.unit, t.layer, "prob") for t in as_targets(targets, len(images))]
    results: list[list[Tensor]] = [[], []]
    with evaluating(model), torch.no_grad():
        for i, target in enumerate(chosen):
            if target.unit is None:
                target = Target(int(model(images[i : i + 1]).argmax()), None, "prob")
            gone = rank[i] < counts  # [steps + 1, 1, H, W]
            for which, mask in enumerate((gone, ~gone)):
                mixed = [torch.where(part, baseline[i], images[i]) for part in mask.split(batch)]
                outputs = [score(model(x), [target] * len(x)) for x in mixed]
                results[which].append(torch.cat(outputs))
    deletion, insertion = (torch.stack(each) for each in results)
    return Curves(deletion, insertion)


def patch_flipping(
    model: nn.Module, images: Tensor, maps: Tensor, targets: Targets, baseline: Tensor, first: int = 64, steps: int = 16
) -> Tensor:
    """Return the mean drop of the class probability [B] as patches are deleted, by the sum of the map in them, largest first.

    The image is cut into 14 x 14 patches (Samek et al. 2017, with patches of 16 pixels at 224); ties keep their order. The
    drop is averaged over `steps` equal steps up to the `first` patches. The other parameters are those of `curves`.
    """
    patches = F.adaptive_avg_pool2d(maps.double().sum(1, keepdim=True), 14).flatten(1)
    rank = patches.argsort(dim=1, descending=True, stable=True).argsort(dim=1).view(-1, 1, 14, 14)
    rank = F.interpolate(rank.to(images), images.shape[2:])
    counts = torch.linspace(0, first, steps + 1, device=images.device).round().view(-1, 1, 1, 1)
    drops = []
    with evaluating(model), torch.no_grad():
        for i, target in enumerate(as_targets(targets, len(images))):
            x = torch.where(rank[i] < counts, baseline.to(images), images[i])
            p = score(model(x), [Target(target.unit, target.layer, "prob")] * len(x))
            drops.append((p[0] - p[1:]).mean())
    return torch.stack(drops)


def _area(values: Tensor) -> Tensor:
    return torch.trapezoid(values.double(), dim=1) / (values.shape[1] - 1)
