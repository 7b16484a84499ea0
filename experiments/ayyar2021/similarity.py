"""ayyar2021, section 7: which gradient-based method gives the maps most similar to FEM's (Fuad et al. 2020)?

Maps are reduced to the largest absolute value over the channels (Eq. 6) and compared by Pearson's correlation and SIM. FEM and
the CAMs are coarse and the other maps are not, which alone makes FEM more similar to a CAM; so maps are also compared as means
over the cells of the feature map.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from experiments.ayyar2021.by_method import ByMethod
from experiments.ayyar2021.gallery import NotAsked, strength
from vis import metrics
from vis.errors import UserError
from vis.methods import Forward
from vis.oldclaims import Claim
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output

SIMILAR = "the most similar explanations [to FEM's] in terms of [...] {} are given by Grad-CAM"
GRADIENTS = ("saliency", "deconvnet", "gbp", "integrated_gradients", "smoothgrad", "guided_gradcam")


class Similarity(ByMethod):
    """Compare the maps of all methods with FEM's."""

    axes: ClassVar = {
        "Pearson CC with FEM": {"": "pearson"},
        "SIM with FEM": {"": "sim"},
        "CC of cells' means": {"": "coarse"},
    }
    ranges: ClassVar = {"Pearson CC with FEM": (-1, 1), "SIM with FEM": (0, 1), "CC of cells' means": (-1, 1)}
    sentence = "How like FEM's map each method's is"

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
        cells = adaptive_avg_pool2d(fem, (height, width))
        output = Output(tables={"table": []})
        for method, map_ in found.items():
            numbers = {
                "pearson": metrics.pearson(map_, fem),
                "sim": metrics.sim(map_, fem),
                "coarse": metrics.pearson(adaptive_avg_pool2d(map_, (height, width)), cells),
            }
            output.tables["table"] += [
                {"image": image, "method": method, "weights": model.weights}
                | {name: values[i].item() for name, values in numbers.items()}
                for i, image in enumerate(batch.names)
            ]
        return output

    def measured(self, values: Mapping[str, Mapping[str, Tensor]]) -> list[Claim]:
        def lead(column: str) -> Tensor:
            others = [values[column][m] for m in GRADIENTS if m in values[column]]
            if not others:
                raise NotAsked(f"needs one method or more of {', '.join(GRADIENTS)}")
            return values[column]["gradcam"] - max(others, key=Tensor.mean)

        words = "FEM and Grad-CAM - FEM and the gradient-based method that is next in the mean"
        return [
            self.claim(
                "pearson",
                SIMILAR.format("Pearson Correlation Coefficient"),
                metric=f"CC of {words}",
                values=lambda: lead("pearson"),
            ),
            self.claim("sim", SIMILAR.format("L1-Similarity"), metric=f"SIM of {words}", values=lambda: lead("sim")),
            self.claim(
                "coarse",
                "Beyond the paper: also where all maps are as coarse",
                metric=f"CC of means over the feature map's cells, of {words}",
                values=lambda: lead("coarse"),
                origin="project",
            ),
        ]
