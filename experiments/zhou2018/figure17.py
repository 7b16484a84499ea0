"""zhou2018, Figure 17: other images of a class. "What we would show instead is that our method can capture invariant features."

Two measures: the ranks of parts of two huskies (of images with boxes), and for any classes with two images or more, the features
of the network's last convolution where a map finds evidence. Those of a class are alike wherever one looks; so the control
looks where the map of another image finds evidence.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.zhou2018.evidence import HIGH, EvidenceMaps, column, map_of, of_parts, photographs
from vis.claims import Claim, Column, Compared, above, below, on_digits, replicated
from vis.methods.forward import Forward
from vis.methods.layers import feature_layer
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

PARTS = ("ears", "nose", "eyes", "chest")


class Figure17(EvidenceMaps):
    """Compare the evidence in images of a class."""

    def compute(self, run: Run, task: Task) -> Output:
        output, model = super().compute(run, task), run.model()
        if "images" in output.tables:
            batch = run.batch(model, task["images"])
            layer = feature_layer(model.net, batch.x)
            with Forward(model.net, batch.x, [layer]) as forward:
                output.arrays[f"{batch.names[0]}/features"] = forward.layers[layer][0].detach().cpu().numpy()
        return output

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the tables of maps; correlations of huskies' profiles of parts; and how alike the features of a class are.

        own: the mean correlation with images of the same class minus that with others; misplaced: by another image's map.
        """
        tables, method = super().summaries(results), next(iter(results.config.methods))
        of: dict[str, dict[str, float]] = {}
        for row in tables["parts"]:
            if row["method"] == method:
                of.setdefault(row["image"], {})[row["part"]] = row["rank"]
        profiles = {image: [found[part] for part in PARTS] for image, found in of.items() if found.keys() >= {*PARTS}}
        pairs = [
            {"pair": f"{a}, {b}", "pearson": float(np.corrcoef(profiles[a], profiles[b])[0, 1])}
            for a, b in combinations(profiles, 2)
        ]
        facts = results.rows("images")
        maps = [torch.from_numpy(map_of(results, fact["key"], method)) for fact in facts]
        features = [torch.from_numpy(results.arrays[f"{fact['image']}/features"]) for fact in facts]
        own = alike([signature(f, m) for f, m in zip(features, maps, strict=True)], facts)
        misplaced = alike([signature(f, m) for f, m in zip(features, [*maps[1:], maps[0]], strict=True)], facts)
        rows = [{"image": f["image"], "own": a, "misplaced": b} for f, a, b in zip(facts, own, misplaced, strict=True)]
        return tables | {"profiles": pairs, "classes": [row for row in rows if row["own"] is not None]}

    def claims(self, results: Results) -> list[Claim]:
        method, classes = next(iter(results.config.methods)), results.rows("classes")
        eyes = {
            name: column(results, "parts", name, method=method, part="eyes")
            for name in ("hit", "area", "rank", "rank_other")
        }
        ours, elsewhere = "the bounds are ours", "the map of another image"
        strongest = [
            Compared(
                "images whose strongest evidence is in the eyes",
                eyes["hit"],
                above(0.5, of="share"),
                null=eyes["area"],
                control="any pixel",
            ),
            Compared(
                "mean rank of the evidence in the eyes", eyes["rank"], HIGH, null=eyes["rank_other"], control=elsewhere
            ),
        ]
        agree = Compared(
            "correlation of the ranks of ears, nose, eyes and chest in two photographs",
            Column(results.rows("profiles"), "pearson", "pair"),
            below(0.5, 0.8, ours=ours),
            null=1.0,
            control="the same photograph",
        )
        invariant = Compared(
            "correlation of features where there is evidence, same class - other classes; minus where another map has evidence",
            Column(classes, "own", "image") - Column(classes, "misplaced", "image"),
            above(0),
            null=0.0,
            control=elsewhere,
        )
        few = (
            ""
            if classes
            else "it takes two images or more of each of several classes: dataset=imagenet dataset.path=FOLDER"
        )
        found = [
            of_parts(results, "Z-F17-a", ["eyes"], strongest),
            of_parts(results, "Z-F17-b", PARTS, [agree]),
            Claim("Z-F17-c", [invariant], reason=few),
        ]
        return replicated(found, photographs(results), on_digits(results.config))


def signature(features: Tensor, map_: Tensor) -> Tensor:
    """Return the mean of features [C, h, w] over places, weighted by the evidence for the class of a map [1, H, W]."""
    weight = F.adaptive_avg_pool2d(map_.relu(), (features.shape[1], features.shape[2])).to(features)
    return (features * weight).sum((1, 2)) / weight.sum().clamp(min=1e-30)


def alike(signatures: list[Tensor], facts: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Return for each image the mean correlation of signatures with its class minus that with others; None without both."""
    table, units = torch.corrcoef(torch.stack(signatures)), torch.tensor([fact["unit"] for fact in facts])
    found: list[float | None] = []
    for i, unit in enumerate(units):
        same = units == unit
        same[i] = False
        others = units != unit
        found.append(float(table[i, same].mean() - table[i, others].mean()) if same.any() and others.any() else None)
    return found
