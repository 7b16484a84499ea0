"""Does the network use what a map marks? Deletion and insertion of pixels in the order of a map (Petsiuk et al. 2018)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vis.graph.modes import evaluating
from vis.methods.target import Target, Targets, as_targets, score


@dataclass(frozen=True)
class Curves:
    """Probabilities [B, steps + 1] as pixels go or come, and the areas under them, [B]."""

    deletion: Tensor
    insertion: Tensor

    @property
    def deletion_auc(self) -> Tensor:
        """Low is good: what the map marks first carries the class."""
        return _area(self.deletion)

    @property
    def insertion_auc(self) -> Tensor:
        """High is good."""
        return _area(self.insertion)


def curves(
    model: nn.Module, images: Tensor, maps: Tensor, targets: Targets, baseline: Tensor, steps: int = 64, batch: int = 64
) -> Curves:
    """Delete from images [B, C, H, W], and insert into the baseline, the pixels in the order of the maps, largest first.

    maps [B, C, H, W] are summed over channels; equal values go in the order of their places. baseline: of the same shape as
    the images, or broadcast to it (black, the mean, a blurred copy). targets: classes; their probability is followed. In
    `steps` equal steps; `batch` images at a time go through the network.
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


def _area(values: Tensor) -> Tensor:
    return torch.trapezoid(values.double(), dim=1) / (values.shape[1] - 1)
