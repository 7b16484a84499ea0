"""nie2018, Figure 2: three methods for three logits of a trained network; numbers of all photographs.

One row of the table `photographs` for each network (trained, and random as the control), seed, photograph and method; its
columns beside those of `verdicts` and `trained`:

    logits      correlation of the maps of two logits, mean over the pairs of targets
    regions     the same of the maps' blurred magnitudes (sigma 8): do two logits mark the same places?
    as_is       `logits` behind SqueezeNet's last ReLU, over maps that are not 0; zeros: the share of maps that are 0 there
    noise       correlation of the maps of the largest logit of the photograph, and of it with ±2 gray levels added
    other       correlation with the next photograph's map: what a map shows of no photograph
    recovered   share of the map's variance that a regression on the input's channels and their high-pass explains
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import mean
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.nie2018.figure8 import random_signs
from experiments.nie2018.gallery import Gallery, logits_of
from experiments.nie2018.trained import (
    LABELS,
    Objects,
    batches_of_both,
    before_last_relu,
    difference,
    energy_of,
    images_of,
    judged,
    network_of,
    objects_of,
    outside,
    rectified,
    surviving_patches,
)
from experiments.nie2018.verdicts import against_others, noise, readable
from vis import metrics
from vis.claims import Claim, Column, Compared, above, below, mean_and_spread
from vis.runner.experiment import Batch, Load, Run, Task
from vis.store.run_folder import Output, Results


def recovered(maps: Tensor, x: Tensor) -> Tensor:
    """Return the share of each map's variance that a linear function of x and its high-pass, pixel by pixel, explains: [B]."""
    found = []
    for map_, image in zip(maps.double(), x.double(), strict=True):
        fine = metrics.high_pass(image[:, None]).squeeze(1)
        inputs = torch.cat([image, fine]).flatten(1).T
        y, inputs = map_.flatten(1).T, inputs - inputs.mean(0)
        y = y - y.mean(0)
        left = y - inputs @ torch.linalg.lstsq(inputs, y).solution
        found.append(1 - left.square().sum() / y.square().sum())
    return torch.stack(found)


def _blurred(maps: Tensor) -> Tensor:
    """Return the magnitudes of maps, summed over the channels and blurred: [B, 1, H, W]."""
    magnitude = maps.double().abs().sum(1, keepdim=True)
    return magnitude - metrics.high_pass(magnitude, sigma=8)


def _of_pairs(maps: Sequence[Tensor], meant: Sequence[list[int]]) -> list[float | None]:
    """Return the mean correlation of the maps of each two different logits, of maps that are not 0; [B].

    maps: [B, C, H, W] of each target. meant: the logits of each target.
    """
    found: list[list[float]] = [[] for _ in range(len(maps[0]))]
    for a, b in combinations(range(len(maps)), 2):
        for i, value in enumerate(metrics.pearson(maps[a], maps[b]).tolist()):
            if meant[a][i] != meant[b][i] and maps[a][i].any() and maps[b][i].any():
                found[i].append(value)
    return [mean(values) if values else None for values in found]


class Figure2(Gallery):
    """Draw the gallery of the trained network and measure its maps. paper: see Gallery."""

    def tasks(self, run: Run) -> Sequence[Task]:
        return batches_of_both(run)

    def load(self, run: Run, task: Task) -> Load:
        images, targets = len(task["images"]), len(run.targets) + 1 if task["network"] == "trained" else 1
        maps = len(run.methods) * targets * (1 + rectified(run.config.model))
        return Load(run.config.model, task["seed"], images + 1, maps, images * (1 + maps))

    def compute(self, run: Run, task: Task) -> Output:
        model, trained = network_of(run, task), task["network"] == "trained"
        several = len(run.dataset) > 1
        following = [(task["images"][-1] + 1) % len(run.dataset)] * several
        batch = run.batch(model, [*task["images"], *following])
        meant = logits_of(run, model, batch, run.targets if trained else run.targets[:1])
        with before_last_relu(model):
            maps = run.explain(model, batch.x, meant).maps
        count = len(task["images"])
        own = Batch(batch.x[:count], batch.pixels[:count], batch.names[:count], batch.labels[:count])
        output = self.compared(run, task, model, own, meant, maps) if trained else Output()
        columns = self._columns(own, maps[0], objects_of(run, model, task["images"]), several)
        if trained:
            noisy = (own.pixels + random_signs(task["seed"], own) * 2 / 255).clamp(0, 1)
            x = run.preprocess(model)(noisy.to(own.x.dtype)).to(own.x.device)
            with before_last_relu(model):
                (changed,) = run.explain(model, x, [meant[0][:count]]).maps
            behind = run.explain(model, own.x, [units[:count] for units in meant]).maps if rectified(model.node) else []
            for method in run.methods:
                columns[method]["noise"] = metrics.pearson(maps[0][method][:count], changed[method]).tolist()
                columns[method]["logits"] = [self._over_logits(output, image, method) for image in own.names]
                blurred = [_blurred(each[method][:count]) for each in maps]
                columns[method]["regions"] = _of_pairs(blurred, meant)
                if behind:
                    each = [m[method] for m in behind]
                    columns[method]["as_is"] = _of_pairs(each, meant)
                    zeros = torch.stack([(m == 0).flatten(1).all(1) for m in each])
                    columns[method]["zeros"] = zeros.double().mean(0).tolist()
        output.tables["photographs"] = [
            {"network": task["network"], "seed": task["seed"], "image": image, "method": method}
            | {name: values[i] for name, values in columns[method].items()}
            for method in run.methods
            for i, image in enumerate(own.names)
        ]
        return output

    def _columns(
        self, batch: Batch, maps: Mapping[str, Tensor], objects: Objects, several: bool
    ) -> dict[str, dict[str, list[Any]]]:
        """Return the columns of each method. maps: of the batch, and of the photograph behind it if there are several."""
        count, x = len(batch.names), batch.x.cpu()
        found: dict[str, dict[str, list[Any]]] = {}
        for method, all_ in maps.items():
            own = all_[:count]
            energy = energy_of(own)
            numbers = {
                **against_others(own, x, batch.names),
                "patches": surviving_patches(energy),
                "recovered": recovered(own, x),
                **({"other": metrics.pearson(own, all_[1:])} if several else {}),
            }
            found[method] = {name: values.tolist() for name, values in numbers.items()}
            found[method] |= objects.backgrounds(energy, batch.names)
            found[method]["object"] = [objects.what] * count
        return found

    @staticmethod
    def _over_logits(output: Output, image: str, method: str) -> float | None:
        rows = output.tables["table"]
        values = [row["correlation"] for row in rows if (row["image"], row["method"]) == (image, method)]
        return mean(values) if values else None

    def claims(self, results: Results) -> list[Claim]:
        def rows(method: str, network: str = "trained") -> list[dict[str, Any]]:
            return results.rows("photographs", network=network, method=method)

        def of(name: str, method: str = "gbp", network: str = "trained") -> Column:
            return Column(rows(method, network), name, "image")

        if not set(LABELS) <= set(results.config.methods):
            return []
        where = outside(results.rows("photographs"))
        found = [
            Claim("N-1-c", [
                difference(f"HP of GBP minus HP of {LABELS[m]}", of("HP"), of("HP", m), above(0))
                for m in ("saliency", "deconvnet")
            ]),
            Claim("N-2.2-a", [
                *noise("saliency map", rows("saliency"), "image", rows("gbp"), "GBP of the same photographs"),
                *(readable(LABELS[m], rows(m), "image") for m in ("deconvnet", "gbp")),
            ]),
            Claim("N-2.2-b", [
                difference("correlation of maps of different photographs, DeconvNet minus GBP",
                           of("other", "deconvnet"), of("other"), above(0)),
            ]),
            Claim("N-2.2-c", [
                difference(f"{metric} of GBP minus that {of_what}", of(name), of(name, method, network), below(0))
                for name, metric in (("patches", "share of patches that survive"), ("background", where))
                for of_what, method, network in (("of DeconvNet", "deconvnet", "trained"),
                                                 ("of GBP with random weights", "gbp", "random"))
            ]),
            Claim("N-2.2-d", _class_sensitive(of)),
            Claim("N-4.2-g", [
                difference(f"share of patches that survive in {LABELS[m]}, trained minus random weights",
                           of("patches", m), of("patches", m, "random"), below(0))
                for m in ("deconvnet", "gbp")
            ]),
            Claim("N-4.4-f", [
                Compared(f"share of the variance of {LABELS[m]} that the input and its high-pass explain",
                         of("recovered", m), above(0.9, fails=0.5, ours="a linear regression pixel by pixel is ours"),
                         null=of("recovered", "saliency"), control="the saliency map")
                for m in ("deconvnet", "gbp")
            ]),
        ]  # fmt: skip
        return judged(found, results, [self.paper], before_relu=True)

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        drawn = super().draw(results, claims)
        return drawn | {"as_printed": self.page(results, images_of(results)[0], "minmax")} if drawn else {}

    def notes(self, results: Results) -> list[str]:
        rows = results.rows("photographs", network="trained")
        if not any(row.get("as_is") is not None for row in rows):
            return []
        as_is = {
            m: [r["as_is"] for r in rows if r["method"] == m and r["as_is"] is not None] for m in results.config.methods
        }
        return [
            "That ReLU passes gradients only where the class map is positive. Behind it, the maps of two logits of all "
            f"{len({r['image'] for r in rows})} photographs correlate by "
            + ", ".join(f"{mean_and_spread(values)} ({LABELS.get(m, m)})" for m, values in as_is.items() if values)
            + f", and {mean(row['zeros'] for row in rows):.1%} of the maps are 0"
        ]


def _class_sensitive(of: Any) -> list[Compared]:
    """Compare maps of two logits with maps of one logit of a noisy photograph, and with maps of different photographs."""
    metric, bounds = "correlation of the maps of two logits", "the bounds are ours"
    saliency = of("logits", "saliency")
    return [
        Compared(f"saliency map: {metric}", saliency, below(0.5, fails=0.9, ours=bounds), null=1.0, control="one map: 1"),
        difference(f"saliency map: {metric} minus that of the maps with and without noise of 2 gray levels", saliency,
                   of("noise", "saliency"), below(0), control="as much change as by the noise: 0"),
        *(Compared(f"{LABELS[m]}: {metric}", of("logits", m), above(0.9, fails=0.7, ours=bounds), null=of("other", m),
                   control="maps of two photographs") for m in ("deconvnet", "gbp")),
    ]  # fmt: skip
