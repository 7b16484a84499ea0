"""ayyar2021, section 7: which gradient-based method gives the maps most similar to FEM's, and how sparse maps of LRP are.

Maps are reduced to the largest absolute value over the channels (Eq. 6) and compared by Pearson's correlation and SIM. FEM and
the CAMs are coarse and the other maps are not, which alone makes FEM more similar to a CAM; so the claims compare means over the
cells of the feature map.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from experiments.ayyar2021.by_method import ByMethod
from experiments.ayyar2021.figure9 import drawn
from experiments.ayyar2021.gallery import strength
from experiments.ayyar2021.verdicts import lead, on_trained
from vis import metrics
from vis.claims import Claim, below
from vis.errors import UserError
from vis.methods.forward import Forward
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output, Results

GRADIENTS = ("saliency", "deconvnet", "gbp", "integrated_gradients", "smoothgrad", "guided_gradcam")
NOISE = "white noise"


def area(maps: Tensor) -> Tensor:
    """Return the share of pixels that hold 80 % of the strength of maps [B, C, H, W], the largest first: [B]."""
    ranked = strength(maps).flatten(1).sort(descending=True).values.cumsum(1)
    return (ranked < 0.8 * ranked[:, -1:]).double().mean(1)


class Similarity(ByMethod):
    """Compare the maps of all methods with FEM's."""

    axes: ClassVar = {
        "CC with FEM, means of cells": {"": "coarse"},
        "SIM with FEM, means of cells": {"": "coarse_sim"},
        "CC with FEM, pixels": {"": "pearson"},
    }
    ranges: ClassVar = dict(zip(axes, ((-1, 1), (0, 1), (-1, 1)), strict=True))
    sentence = "How like FEM's map each method's is, by means over the cells of the feature map, and by pixels"

    def tasks(self, run: Run) -> Sequence[Task]:
        run.require_methods("fem")
        if len(run.methods) == 1:
            raise UserError("no method to compare with FEM: method=[fem,gradcam,saliency]")
        return super().tasks(run)

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        batch = run.batch(model, task["images"])
        (maps,), _ = run.explain(model, batch.x, [run.units_of(model, run.targets[0], batch.names)])
        found = {method: strength(each) for method, each in maps.items()}
        fem = found.pop("fem")
        (layer,) = run.methods["fem"].layers(model.net, batch.x)
        with Forward(model.net, batch.x, [layer]) as forward:
            height, width = forward.layers[layer].shape[2:]
        own = adaptive_avg_pool2d(fem, (height, width))
        numbers = {}
        for method, map_ in found.items():
            coarse = adaptive_avg_pool2d(map_, (height, width))
            numbers[method] = {
                "pearson": metrics.pearson(map_, fem),
                "coarse": metrics.pearson(coarse, own),
                "coarse_sim": metrics.sim(coarse, own),
                "area": area(map_),
            }
        channels = (3, *batch.x.shape[2:])
        numbers[NOISE] = {"area": area(torch.stack([drawn(image, channels) for image in batch.names]))}
        rows = [
            {"image": image, "method": method, "weights": model.weights} | {key: v[i].item() for key, v in each.items()}
            for method, each in numbers.items()
            for i, image in enumerate(batch.names)
        ]
        return Output(tables={"table": rows})

    def claims(self, results: Results) -> list[Claim]:
        cells = {"coarse": "CC with FEM of means of cells", "coarse_sim": "SIM with FEM of means of cells"}
        sparse = "share of pixels with 80 % of the map"
        most = [
            lead(results, name, "gradcam", method, metric=metric)
            for method in GRADIENTS
            if method in results.config.methods
            for name, metric in cells.items()
        ]
        pairs = [("lrp", NOISE), ("lrp_alpha1_beta0", NOISE), ("lrp_alpha1_beta0", "input_x_gradient")]
        few = [lead(results, "area", *pair, metric=sparse, rule=below(0)) for pair in pairs]
        closer = [lead(results, name, "gradcam_pp", "gradcam", metric=metric) for name, metric in cells.items()]
        ours = Claim("gradcam_pp_is_closer", closer, source="The project, section 7",
                     sentence="GradCAM++, which the survey does not compare, is closer to FEM than Grad-CAM.")  # fmt: skip
        return [
            *on_trained(results, [Claim("A-7-b", most)]),
            *on_trained(results, [Claim("A-7-h", few)], "vgg16", "magnetic resonance images and the tiger of Figure 9"),
            ours,
        ]
