"""ayyar2021, sections 4 to 4.6: what the score does where maps say that it changes, in a trained network.

Images are changed where a map is positive, negative, high or zero, and the score of the explained class is followed. `loss` is
the score of the image minus that of the changed one. Steps are small parts of the image: of its range or of its norm.
"""

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.ayyar2021.by_method import ByMethod
from experiments.ayyar2021.verdicts import POSITIVE, lead, on_trained
from vis import metrics
from vis.claims import Claim, Column, Compared, above, below, mean
from vis.figures.layout import plot, styled
from vis.metrics import strength
from vis.models import skeleton
from vis.runner.experiment import Batch, Load, Run, Task
from vis.store.run_folder import Results
from vis.store.tables import Rows

RANKED = ("saliency", "integrated_gradients", "lrp", "random")


class Influence(ByMethod):
    """Change images where maps say that the score depends on them.

    cells: side of the squares that are covered with the mean colour. step: of the highest hundredth of the pixels, in parts of
    the image's range. radii: of balls around the image, in parts of its norm. directions: random ones in each ball.
    """

    axes = {"change of the score, in parts of it": {"": "change"}}  # noqa: RUF012  # as in ByMethod
    sentence = "How much the score changes by a small step on the highest hundredth of a map's pixels"

    def __init__(self, source: str, cells: int, step: float, radii: Sequence[float], directions: int) -> None:
        super().__init__(source)
        self.cells, self.step, self.radii, self.directions = cells, step, list(radii), directions

    def load(self, run: Run, task: Task) -> Load:
        load = super().load(run, task)
        passes = (max(skeleton(run.config.model)[2]) // self.cells) ** 2 + self.directions * len(self.radii)
        return Load(load.model, load.seed, load.images, load.passes + passes, 0)

    def further(
        self, run: Run, images: Sequence[int], batch: Batch, maps: Mapping[str, Tensor], classes: Sequence[int]
    ) -> dict[str, dict[str, Tensor]]:
        run.require_methods("saliency", "integrated_gradients", "lrp", "deconvnet", "gradcam")
        found: dict[str, dict[str, list[float]]] = {}
        net, gradcam = run.model().net, run.methods["gradcam"]
        for i, c in enumerate(classes):
            generator = torch.Generator().manual_seed(images[i])
            with torch.no_grad():
                likely = net(batch.x[i : i + 1])[0].argsort(descending=True)[:5].tolist()
            own = {method: each[i] for method, each in maps.items()}
            own["gradcam"] = gradcam(net, batch.x[i : i + 1].expand(len(likely), -1, -1, -1), likely).cpu()
            for method, numbers in self.of_image(net, batch.x[i].cpu(), [c, *likely], own, generator).items():
                for name, value in numbers.items():
                    found.setdefault(method, {}).setdefault(name, []).append(value)
        return {
            m: {name: torch.tensor(v, dtype=torch.float64) for name, v in each.items()} for m, each in found.items()
        }

    def of_image(
        self, net: nn.Module, x: Tensor, classes: Sequence[int], maps: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, dict[str, float]]:
        """Compute the numbers of one image x [C, H, W], by method.

        classes: the one that is explained, then those of the maps [K, 1, H, W] of gradcam.
        """
        device, explained = next(net.parameters()).device, classes[0]

        @torch.no_grad()
        def score(changed: Tensor, c: int = explained) -> Tensor:
            return torch.cat([net(part.to(device))[:, c].cpu().double() for part in changed.split(32)])

        (S,), gradient, extent = score(x[None]).tolist(), maps["saliency"].to(x), (x.amax() - x.amin()).item()
        found: dict[str, dict[str, float]] = {method: {} for method in RANKED}
        for method in RANKED:
            drawn = torch.rand(1, 1, *x.shape[1:], generator=generator)
            highest = metrics.largest(drawn if method == "random" else strength(maps[method][None]), 0.01)[0]
            moved = x + self.step * extent * gradient.sign() * highest
            found[method]["change"] = abs(score(moved[None]).item() / S - 1)
        along = (
            0.01
            * x.norm()
            * torch.stack([part / part.norm() for part in (gradient.clamp(max=0).abs(), gradient.relu())])
        )
        negative, positive = (score(x + along) - S).tolist()
        found["saliency"] |= {"along_negative": negative, "along_positive": positive}
        for radius in self.radii:
            random = torch.randn(self.directions, *x.shape, generator=generator)
            steps = radius * x.norm() * random / random.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            change = score(x + steps) - S
            linear, other = ((steps * w).double().sum((1, 2, 3)) for w in (gradient, gradient.flip(2)))
            found["saliency"] |= {f"R2 {radius:g}": r2(change, linear), f"R2 {radius:g}, mirrored": r2(change, other)}
        covered, sums = self.covered(x, maps["deconvnet"])
        lowers, kept = (score(covered) < S).double(), sums > 0
        found["deconvnet"] = {"kept": lowers[kept].mean().item(), "all": lowers.mean().item()}
        lost = []
        for c, map_ in zip(classes[1:], maps["gradcam"], strict=True):
            zero = (map_ <= 0).to(x)
            if 0 < zero.mean() < 1:
                lost.append(score(x[None], c) - score(torch.stack([x * (1 - zero), x * zero]), c))
        both = torch.stack(lost).mean(0).tolist() if lost else [nan, nan]
        found["gradcam"] = dict(zip(("loss_zeroed", "loss_kept"), both, strict=True))
        return found

    def covered(self, x: Tensor, map_: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of x with one cell covered by the image's mean colour each, and the map's sum in each cell."""
        k, mean_colour = self.cells, x.mean((1, 2), keepdim=True)
        sums = F.avg_pool2d(map_.double().sum(0)[None, None], k)[0, 0].flatten()
        columns = x.shape[2] // k
        copies = x.repeat(len(sums), 1, 1, 1)
        for i, copy in enumerate(copies):
            top, left = k * (i // columns), k * (i % columns)
            copy[:, top : top + k, left : left + k] = mean_colour
        return copies, sums

    def claims(self, results: Results) -> list[Claim]:
        def of(method: str, name: str) -> Column:
            return Column(results.rows(method=method), name, "image")

        kept = "share of the cells with a positive DeconvNet map whose covering lowers the score"
        smallest = f"R2 {min(self.radii):g}"
        change = "relative change of the score by a step on the highest hundredth of the pixels"
        linear = Compared(f"R² of the linear model in a ball of radius {min(self.radii):g} |x|", of("saliency", smallest),
                          above(0.9, 0.5, ours="the bounds are ours"), null=of("saliency", f"{smallest}, mirrored"),
                          control="the mirrored gradient as weights")  # fmt: skip
        positive = [
            Compared(kept, of("deconvnet", "kept"), above(0.5), null=0.5, control="chance: 1/2"),
            Compared(f"{kept}, - of all cells", of("deconvnet", "kept") - of("deconvnet", "all"), POSITIVE, null=0.0,
                     control="all cells: 0"),
        ]  # fmt: skip
        decrease = Compared("change of the score along the negative gradients' magnitudes", of("saliency", "along_negative"),
                            below(0), null=of("saliency", "along_positive"), control="along the positive ones")  # fmt: skip
        zeroed = Compared("loss of the score by covering the zeros of Grad-CAM", of("gradcam", "loss_zeroed"), below(0),
                          null=of("gradcam", "loss_kept"), control="covering what it keeps")  # fmt: skip
        most = [lead(results, "change", "saliency", other, metric=change) for other in RANKED[1:]]
        return on_trained(
            results,
            [Claim("A-4-a", [linear]), Claim("A-4.1-c", positive), Claim("A-4.2-e", most), Claim("A-4.3-b", [decrease]),
             Claim("A-4.6-d", [zeroed])],
        )  # fmt: skip

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the mean R² of the linear model by radius."""
        rows = results.rows(method="saliency")
        linear = [{"radius": r, "R2": mean([row[f"R2 {r:g}"] for row in rows])} for r in self.radii]
        return {"linear": linear}

    def draw(self, results: Results, claims: list[Any]) -> dict[str, Figure]:
        linear, config = results.rows("linear"), results.config
        caption = [
            f"R² of the linear model w = dS/dx around an image, by the radius of the ball: mean over "
            f"{len(results.rows(method='saliency'))} images, {self.directions} random directions each",
            f"{config.model.name}, {results.rows()[0]['weights']}",
        ]
        figure, (axes,) = plot(caption=caption)
        with styled():
            axes.plot([row["radius"] for row in linear], [row["R2"] for row in linear], "o-")
            axes.axhline(0.5, color="0.6", linewidth=0.8)
            axes.set(xscale="log", xlabel="radius, in parts of the image's norm", ylabel="R²", ylim=(-0.5, 1.05))
        return super().draw(results, claims) | {"linear": figure}


def r2(values: Tensor, predicted: Tensor) -> float:
    """Return the share of the variance of values that a prediction explains; the mean explains 0."""
    return float(1 - (values - predicted).square().sum() / (values - values.mean()).square().sum())
