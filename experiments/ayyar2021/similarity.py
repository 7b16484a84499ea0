"""ayyar2021, section 7: which gradient-based method gives the maps most similar to FEM's, and how sparse maps of LRP are.

Maps are reduced to the largest absolute value over the channels (Eq. 6) and compared by Pearson's correlation and SIM. FEM and
the CAMs are coarse and the other maps are not, which alone makes FEM more similar to a CAM; so the claims compare means over the
cells of the feature map. SIM hardly tells maps apart: white noise has nearly the value of Grad-CAM.

Controls: Grad-CAM of a random class, a Gaussian in the centre, FEM of another photograph, white noise, and Grad-CAM against FEM
in a network of the same architecture with random weights.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from experiments.ayyar2021.by_method import ByMethod
from experiments.ayyar2021.figure9 import drawn
from experiments.ayyar2021.verdicts import lead, on_trained
from vis import metrics
from vis.claims import Claim, below
from vis.errors import UserError
from vis.methods.forward import Forward
from vis.metrics import strength
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output, Results

GRADIENTS = ("saliency", "deconvnet", "gbp", "integrated_gradients", "smoothgrad", "guided_gradcam")
NOISE, CENTRE, OTHER, FEATURES = "white_noise", "centre", "other_photograph", "features"
CLASS, RANDOM = "gradcam_random_class", "gradcam_random_weights"


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
    controls: ClassVar = {
        NOISE: "white noise", CENTRE: "Gaussian in the centre", OTHER: "FEM of another photograph",
        FEATURES: "sum of the feature maps", CLASS: "GradCAM, random class", RANDOM: "GradCAM, random weights",
    }  # fmt: skip
    sentence = "How like FEM's map each method's is, by means over the cells of the feature map, and by pixels"

    def tasks(self, run: Run) -> Sequence[Task]:
        run.require_methods("fem")
        if len(run.methods) == 1:
            raise UserError("no method to compare with FEM: method=[fem,gradcam,saliency]")
        return super().tasks(run)

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        batch = run.batch(model, task["images"])
        preprocess, fem = run.preprocess(model), run.methods["fem"]
        (maps,), logits = run.explain(model, batch.x, [run.units_of(model, run.targets[0], batch.names)])
        classes = run.units_of(model, run.targets[0], batch.names) or logits.argmax(1).tolist()
        own = strength(maps.pop("fem"))
        (layer,) = fem.layers(model.net, batch.x)
        with torch.no_grad(), Forward(model.net, batch.x, [layer]) as forward:
            features = forward.layers[layer].abs().sum(1, keepdim=True).cpu()
        sides, cells = batch.x.shape[2:], (features.shape[2], features.shape[3])
        following = run.batch(model, [(i + 1) % len(run.dataset) for i in task["images"]])
        gaussian = torch.outer(*(torch.signal.windows.gaussian(n, std=n / 4, dtype=torch.float64) for n in sides))
        noise = torch.stack([drawn(image, (3, *sides)) for image in batch.names])
        found = maps | {NOISE: noise[:, :1], CENTRE: gaussian.expand(len(own), 1, -1, -1)}
        found[FEATURES] = interpolate(features, sides, mode="bilinear")
        found[OTHER] = fem(model.net, following.x, None, preprocess).cpu()
        pairs = {method: (strength(map_), own) for method, map_ in found.items()}
        if "gradcam" in run.methods:
            gradcam, anything = run.methods["gradcam"], run.units_of(model, "random", batch.names)
            pairs[CLASS] = strength(gradcam(model.net, batch.x, anything, preprocess).cpu()), own
            if model.trained:
                net = run.model(weights=None, init="kaiming_normal").net
                at_random, reference = (strength(m(net, batch.x, classes, preprocess).cpu()) for m in (gradcam, fem))
                pairs[RANDOM] = at_random, reference
        numbers = {}
        for method, (map_, reference) in pairs.items():
            coarse, fem_ = (adaptive_avg_pool2d(each, cells) for each in (map_, reference))
            numbers[method] = {
                "pearson": metrics.pearson(map_, reference),
                "coarse": metrics.pearson(coarse, fem_),
                "coarse_sim": metrics.sim(coarse, fem_),
                "area": area(noise if method == NOISE else map_),
            }
        rows = [
            {"image": image, "method": method, "weights": model.weights}
            | {key: None if v[i].isnan() else v[i].item() for key, v in each.items()}
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
        most += [lead(results, "coarse", "gradcam", other, metric=cells["coarse"]) for other in (CLASS, CENTRE)]
        pairs = [("lrp", NOISE), ("lrp_alpha1_beta0", NOISE), ("lrp_alpha1_beta0", "input_x_gradient")]
        few = [lead(results, "area", *pair, metric=sparse, rule=below(0)) for pair in pairs]
        closer = [lead(results, name, "gradcam_pp", "gradcam", metric=metric) for name, metric in cells.items()]
        ours = Claim("gradcam_pp_is_closer", closer, source="The project, section 7",
                     sentence="GradCAM++, which the survey does not compare, is closer to FEM than Grad-CAM.")  # fmt: skip
        return [
            *on_trained(results, [Claim("A-7-b", most), ours]),
            *on_trained(results, [Claim("A-7-h", few)], "vgg16", "magnetic resonance images and the tiger of Figure 9"),
        ]
