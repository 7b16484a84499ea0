"""nie2018, section 3.2.3: what the first convolution of a trained network lets through, beside random weights.

"the trained weights will only lie in a small subspace of the whole image patch space which will create some "dead zones"
... the trained weights in the first convolutional layer are Gabor-like filters to detect the image patches containing edges
... image patches without edges will probably be filtered out by the first convolutional layer."

Tables: `networks`, the effective rank of the filters (the exponential of the entropy of their squared singular values) over the
largest possible; `filters`, the share R2 of a gray filter's energy that the best Gabor function of a grid explains;
`photographs`, of the patches of one photograph: dead, the share of patches that activate no filter; edgeless, the response of
the tenth of the patches with the least contrast over that of the tenth with the most.
"""

import math
from collections.abc import Sequence
from itertools import product
from statistics import mean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import conv2d, unfold

from experiments.nie2018.trained import RandomAndTrained, difference, judged, network_label
from vis.claims import Claim, Column, Compared, above, below
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.runner.experiment import Load, Run, Task
from vis.store.run_folder import Output, Results

OURS = "the bounds are ours"


def effective_rank(filters: Tensor) -> float:
    """Return the effective rank of filters [N, p] over min(N, p): 1 if they spread evenly over all directions."""
    energy = torch.linalg.svdvals(filters.double()).square()
    share = energy / energy.sum()
    return math.exp(-torch.special.xlogy(share, share).sum().item()) / min(filters.shape)


def gabor_fit(filters: Tensor) -> Tensor:
    """Return the share of the energy of gray filters [N, k, k] that the best Gabor function of a grid explains, [N].

    The grid has 12 directions, 6 wavelengths, 4 widths and 9 centres; phase and height are fitted.
    """
    k = filters.shape[-1]
    axis = torch.arange(k, dtype=torch.float64) - (k - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    flat = filters.double().flatten(1)
    best = torch.zeros(len(flat), dtype=torch.float64)
    grid = product(np.arange(12) * np.pi / 12, k / np.geomspace(0.5, k / 2, 6), k * np.array([0.15, 0.25, 0.4, 0.7]),
                   (-k / 5, 0, k / 5), (-k / 5, 0, k / 5))  # fmt: skip
    for angle, wavelength, width, cy, cx in grid:
        envelope = torch.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
        phase = 2 * math.pi / wavelength * ((x - cx) * math.cos(angle) + (y - cy) * math.sin(angle))
        waves = torch.stack([envelope * phase.cos(), envelope * phase.sin()]).flatten(1).T
        basis, size, _ = torch.linalg.svd(waves, full_matrices=False)
        best = torch.maximum(best, (flat @ basis[:, size > 1e-9 * size[0]]).square().sum(1))
    return best / flat.square().sum(1)


class Filters(RandomAndTrained):
    """Measure the first convolution of each network."""

    metrics = ("dead", "edgeless")
    series = "network"

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"network": network, "seed": seed} for network in self.networks() for seed in self.seeds(run, network)]

    def load(self, run: Run, task: Task) -> Load:
        return Load(self.models[task["network"]], task["seed"], 0, 0, 0)

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model(self.models[task["network"]], task["seed"])
        conv: Any = next(module for module in model.net.modules() if isinstance(module, nn.Conv2d))
        weight = conv.weight.detach().double().cpu()
        bias = None if conv.bias is None else conv.bias.detach().double().cpu()
        rank = effective_rank(weight.flatten(1))
        output = Output(tables={"networks": [{**task, "rank": rank, "weights": model.weights}], "photographs": []})
        fits = gabor_fit(weight.mean(1)).tolist()
        output.tables["filters"] = [{**task, "filter": i, "R2": fit} for i, fit in enumerate(fits)]
        if task["seed"] == run.seeds[0]:
            output.arrays[f"{task['network']}/filters"] = weight[:32].numpy()
        for i in range(len(run.dataset)):
            batch = run.batch(model, [i])
            x = batch.x.double().cpu()
            y = conv2d(x, weight, bias, conv.stride).relu().flatten(2)[0]  # no padding: patches of the photograph alone
            contrast = unfold(x, conv.kernel_size, stride=conv.stride)[0].std(0)
            least, most = (contrast.argsort(descending=d)[: len(contrast) // 10] for d in (False, True))
            dead = (y == 0).all(0).double().mean().item()
            edgeless = (y[:, least].norm(dim=0).mean() / y[:, most].norm(dim=0).mean()).item()
            output.tables["photographs"].append({**task, "image": batch.names[0], "dead": dead, "edgeless": edgeless})
        output.tables["table"] = output.tables["photographs"]
        return output

    def summaries(self, results: Results) -> dict[str, list[dict[str, Any]]]:
        """Return the trained filters' rank over that of each random network."""
        ranks = [row["rank"] for row in results.rows("networks", network="trained")]
        return {"ranks": [{"seed": row["seed"], "ratio": rank / row["rank"]}
                          for row in results.rows("networks", network="random") for rank in ranks]}  # fmt: skip

    def claims(self, results: Results) -> list[Claim]:
        def of(name: str, network: str = "trained") -> Column:
            return Column(results.rows("photographs", network=network), name, "image")

        random = [row["R2"] for row in results.rows("filters", network="random")]
        gabor = Column(results.rows("filters", network="trained"), "R2", "filter")
        found = [
            Claim("N-3.2.3-b", [
                Compared("effective rank of the filters over that of random filters",
                         Column(results.rows("ranks"), "ratio", "seed"), below(0.5, fails=0.8, ours=OURS), null=1.0,
                         control="random filters: 1"),
            ]),
            Claim("N-3.2.3-c", [
                Compared("share of patches that activate no filter", of("dead"), above(0.01, fails=0.001, ours=OURS),
                         null=of("dead", "random"), control="random filters"),
                difference("share of patches that activate no filter, trained minus random", of("dead"),
                           of("dead", "random"), above(0), control="as many as in random filters: 0"),
            ]),
            Claim("N-3.2.3-e", [
                difference("R2 of a Gabor function, trained minus the mean of random filters", gabor, mean(random),
                           above(0.3, fails=0.1, ours=OURS), control="as well as in random filters: 0"),
            ]),
            Claim("N-3.2.3-f", [
                difference("response to patches without edges over that to patches with edges, trained minus random",
                           of("edgeless"), of("edgeless", "random"), below(0), control="as in random filters: 0"),
                Compared("response to patches without edges over that to patches with edges", of("edgeless"),
                         below(0.25, fails=0.75, ours=OURS), null=of("edgeless", "random"), control="random filters"),
            ]),
        ]  # fmt: skip
        return judged(found, results, "", ["trained"])

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        networks = list(dict.fromkeys(row["network"] for row in results.rows("networks")))
        rows, caption = [], ["The first 16 filters of the first convolution, min-max over each RGB filter"]
        for network in networks:
            filters = results.arrays[f"{network}/filters"][:16]
            label = network_label(results, network)
            rows += [PanelRow([Panel(display.minmax(f)) for f in filters[i : i + 8]], label if i == 0 else "")
                     for i in range(0, len(filters), 8)]  # fmt: skip
            cells, fits = results.rows("photographs", network=network), results.rows("filters", network=network)
            caption.append(
                f"{label}: {mean(c['dead'] for c in cells):.1%} of the patches activate no filter; patches without edges get "
                f"{mean(c['edgeless'] for c in cells):.2f} of the response of patches with edges; a Gabor function explains "
                f"{mean(f['R2'] for f in fits):.2f} of a filter's energy"
            )
        caption += [f"{n}: not measured, {why}" for n, why in results.config.experiment.missing.items()]
        return {"figure": panel_grid(rows, caption, panel=0.7)}
