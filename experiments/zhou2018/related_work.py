"""zhou2018, Figures 3, 4 and 6, Eqs. (5), (7) and (8): what the introduction says of other methods.

Figure 3: patterns of DeconvNet are similar within a class; they are shifted so that the centre of their energy is in the
middle. Figure 4: a saliency map shows the contour, measured by its correlation with the image's Sobel edges. Eq. (5):
relevance sums to the output. Figure 6: Grad-CAM differs between classes. "The last convolutional layer preserves both
semantic and spatial information": spatial is what the probability loses when the pixels are deleted that Grad-CAM marks,
beyond a map that is shifted by half the image; semantic is how little the maps of two classes correlate.

Eq. (8) as printed multiplies by df/dx, so it has the size of the input; yet "L_CAM is of the same size as the last feature
map".
"""

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.zhou2018.evidence import chosen_class
from experiments.zhou2018.setting import another_network
from vis import metrics
from vis.claims import Claim, Column, Compared, above, below, exactly, on_digits, replicated
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.methods import LRP, DeconvNet, GradCAM, GradCAMGradient, Saliency
from vis.methods.forward import Forward
from vis.metrics.deletion import curves
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

NOISE = 0.1  # standard deviation, in standard deviations of the image, that a map of the same class has to bear


class RelatedWork(Experiment):
    """Measure what the introduction says of other methods. rows: images of the figure."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._models: list[Any] = []  # the run's model, and its network with random weights

    def tasks(self, run: Run) -> list[Task]:
        run.require_model()
        return [{"images": [i]} for i in range(len(run.dataset))]

    def compute(self, run: Run, task: Task) -> Output:
        if not self._models:
            self._models = [run.model(), run.model(weights=None, init="kaiming_normal").net]
        model, random = self._models
        net, (i,), count = model.net, task["images"], len(run.dataset)
        batch, others = run.batch(model, [i]), run.batch(model, [(i + 1) % count, (i + 2) % count])
        x, image = batch.x, batch.names[0]
        c, logits = chosen_class(run, model, batch)
        second = int(logits.scatter(0, torch.tensor(c), -torch.inf).argmax())
        row = {
            "image": image,
            "label": batch.labels[0],
            "class": model.class_name(c),
            "second": model.class_name(second),
        }
        row |= (
            {"p": float(logits.softmax(0)[c]), "weights": model.weights} | relevance(net, x, c) | cam_and_eq8(net, x, c)
        )
        arrays = {"pixels": batch.pixels[0], "eq8": GradCAMGradient()(net, x, [c])[0]}
        edges = [sobel(each) for each in (batch.pixels, *others.pixels.split(1))]
        for name, network, unit in (("", net, c), ("random_", random, None)):
            saliency = Saliency()(network, x, [unit]).abs().sum(1, keepdim=True).cpu()
            own, *other = (float(metrics.pearson(saliency, each)) for each in edges)
            row |= {f"{name}contour": own - other[0], f"{name}contour_other": other[1] - other[0]}
            pattern = DeconvNet()(network, x, [unit])[0].sum(0).cpu()
            arrays |= {f"{name}deconvnet": centred(pattern), f"{name}saliency": saliency[0]}
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(i)).to(x)
        cams = [GradCAM()(net, y, [k]) for y, k in ((x, c), (x, second), (x + NOISE * x.std() * noise, c))]
        row |= {"flip": correlation(*cams[:2]), "flip_noise": correlation(cams[0], cams[2])}
        arrays |= {"first": cams[0][0], "second": cams[1][0]}
        layers: Rows = []
        for layer in [None, *poolings(net, x)]:
            of: Rows = [information(network, x, c, second, layer) for network in (net, random)]
            values = of[0] | {f"random_{name}": value for name, value in of[1].items()}
            layers.append({"image": image, "layer": layer or "last"} | values)
        tables = {"table": [row], "layers": layers}
        return Output({f"{image}/{name}": each.cpu().numpy() for name, each in arrays.items()}, tables)

    # --- from what is stored ------------------------------------------------------------------------------------------

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return what claims compare: how alike patterns of a class are, and what Grad-CAM gains by the last layer.

        classes: the correlation of DeconvNet's patterns for two images of a class, minus that for images of two classes.
        gains: by image, earlier layer and kind of information, the last layer's minus the earlier one's; of random weights too.
        """
        labels = np.array([-1 if row["label"] is None else row["label"] for row in results.rows()])
        rows: Rows = [{"class": int(k)} for k in np.unique(labels) if k >= 0 and (labels == k).sum() > 1]
        for name in ("deconvnet", "random_deconvnet"):
            maps = [results.arrays[f"{row['image']}/{name}"].ravel() for row in results.rows()]
            alike = np.nan_to_num(np.corrcoef(maps)) if len(maps) > 1 else np.ones((1, 1))
            for row in rows:
                own = np.flatnonzero(labels == row["class"])
                within = alike[np.ix_(own, own)][np.triu_indices(len(own), 1)]
                row[name] = float(within.mean() - alike[np.ix_(own, np.flatnonzero(labels != row["class"]))].mean())
        found = {(row["image"], row["layer"]): row for row in results.rows("layers")}
        gains: Rows = [
            {"image": image, "layer": layer, "what": what}
            | {f"{kind}gain": found[image, "last"][kind + what] - row[kind + what] for kind in ("", "random_")}
            for (image, layer), row in found.items()
            if layer != "last"
            for what in ("spatial", "semantic")
            if None not in [r[k + what] for r in (row, found[image, "last"]) for k in ("", "random_")]  # a constant map
        ]
        return {"classes": rows, "gains": gains}

    def claims(self, results: Results) -> list[Claim]:
        rows = results.rows()

        def column(name: str, of: Rows = rows) -> Column:
            return Column(of, name, "image")

        classes = [Column(results.rows("classes"), name, "class") for name in ("deconvnet", "random_deconvnet")]
        patterns = Compared(
            "correlation of DeconvNet's centred patterns, two images of a class - of two classes", classes[0], above(0),
            null=0.0, control="labels without meaning",
        )  # fmt: skip
        learnt = Compared(
            "the same, trained - random weights", classes[0] - classes[1], above(0), null=0.0, control="random weights"
        )
        contour = [
            Compared(
                "correlation of |saliency| with the image's Sobel edges - with another image's", column("contour"), above(0),
                null=column("contour_other"), control="a third image's edges",
            ),
            Compared(
                "the same, trained - random weights", column("contour") - column("random_contour"), above(0),
                null=0.0, control="random weights",
            ),
        ]  # fmt: skip
        conserved = Compared(
            "|sum of relevance / logit - 1|, LRP-0 with biases", column("conservation"),
            below(0.1, ours="a tenth is ours"), null=column("shuffled_conservation"), control="relevance of random signs",
        )  # fmt: skip
        cam = Compared(
            "largest |Grad-CAM - CAM / pixels|, before the ReLU, over the largest, random network with average pooling",
            column("cam"), exactly(0, within=1e-6), null=column("cam_other"), control="the CAM of another class",
        )  # fmt: skip
        size = Compared(
            "side of L_CAM by Eq. 8 over the side of the last feature map", column("eq8"), exactly(1),
            null=1.0, control="without the factor df/dx: equal",
        )  # fmt: skip
        flip = Compared(
            "correlation of Grad-CAM for the two most probable classes", column("flip"),
            below(0.5, 0.9, ours="the bounds are ours"), null=column("flip_noise"), control="one class, noise in the image",
        )  # fmt: skip
        claims = [
            Claim(
                "Z-1-g",
                [patterns, learnt],
                reason="" if classes[0].rows else "no two images have one label: dataset=mnist",
            ),
            Claim("Z-1-h", contour),
            Claim("Z-1-j", [conserved]),
            Claim("Z-1-m", self._last_layer(results)),
            Claim("Z-1-o", [flip]),
        ]
        of = another_network(results, "VGG-16", rows[0]["weights"])
        any_network = replicated([Claim("Z-1-l", [cam]), Claim("Z-1-n", [size])], of)
        return [*replicated(claims, of, on_digits(results.config)), *any_network]

    def _last_layer(self, results: Results) -> list[Compared]:
        """Compare the last layer's information with that of the poolings before it."""
        found = []
        for layer, what in dict.fromkeys((row["layer"], row["what"]) for row in results.rows("gains")):
            rows = results.rows("gains", layer=layer, what=what)
            gain, random = Column(rows, "gain", "image"), Column(rows, "random_gain", "image")
            text = f"{what} information of Grad-CAM, last layer - {layer}"
            found.append(Compared(text, gain, above(0), null=0.0, control="equal layers: 0"))
            less = f"{text}, less that with random weights"
            found.append(Compared(less, gain - random, above(0), null=0.0, control="the same with random weights"))
        return found

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows: list[PanelRow] = []
        for row in results.rows()[: self.rows]:
            pixels = results.arrays[f"{row['image']}/pixels"]
            notes = {"second": row["second"], "first": row["class"], "saliency": f"contour {row['contour']:.2f}"}
            panels = [Panel(display.picture(pixels), "" if rows else "input", f"P = {row['p']:.3f}")]
            for name, title in SHOWN.items():
                map_ = results.arrays[f"{row['image']}/{name}"]
                show = display.overlay(map_, pixels) if name in ("first", "second") else display.absolute(map_)
                panels.append(Panel(show, "" if rows else title, notes.get(name, "")))
            rows.append(PanelRow(panels))
        first = results.rows()[0]
        caption = [
            f"Figures 3, 4, 6 and Eq. 8: {results.config.model.name}, {first['weights']}; {len(results.rows())} images measured",
            "DeconvNet's patterns are shifted so that the centre of their energy is in the middle; contour: correlation of the "
            "saliency map with the image's edges, minus that with another image's",
            'Eq. 8 multiplies Grad-CAM by df/dx and has the size of the image, but the paper goes on "L_CAM is of the same size '
            'as the last feature map"',
        ]
        return {"figure": panel_grid(rows, caption)}


SHOWN = {
    "deconvnet": "DeconvNet", "saliency": "saliency", "random_saliency": "saliency,\nrandom weights",
    "first": "Grad-CAM", "second": "Grad-CAM,\nsecond class", "eq8": "Eq. 8",
}  # fmt: skip


def sobel(pixels: Tensor) -> Tensor:
    """Return the size of the Sobel gradient of images [B, C, H, W] in gray: [B, 1, H, W]."""
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=torch.float64)
    gray = F.pad(metrics.luma(pixels).double(), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(gray, torch.stack([kernel, kernel.T])[:, None]).norm(dim=1, keepdim=True)


def centred(map_: Tensor) -> Tensor:
    """Shift a map [H, W] so that the centre of its energy is in the middle: [1, H, W]."""
    energy = map_.double().square()
    if not energy.sum() > 0:
        return map_[None]
    where = [(energy.sum(1 - d) @ torch.arange(float(n)).double()) / energy.sum() for d, n in enumerate(map_.shape)]
    return map_.roll([round((n - 1) / 2 - float(at)) for at, n in zip(where, map_.shape, strict=True)], (0, 1))[None]


def correlation(a: Tensor, b: Tensor) -> float | None:
    """Return the correlation of two maps [1, C, H, W]; None if one is constant."""
    return float(metrics.pearson(a, b)) if a.std() > 0 and b.std() > 0 else None


def relevance(net: nn.Module, x: Tensor, c: int) -> dict[str, float]:
    """Return |sum of relevance / logit - 1| of LRP-0, with the network's biases, without them, and with random signs."""
    bare = copy.deepcopy(net)
    for name, values in bare.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(values)
    found = {}
    with torch.no_grad():
        logits = {"": float(net(x)[0, c]), "bare_": float(bare(x)[0, c])}
    maps = {"": LRP("zero")(net, x, [c]), "bare_": LRP("zero")(bare, x, [c])}
    signs = torch.randint(2, x.shape, generator=torch.Generator().manual_seed(0)).to(x) * 2 - 1
    for name, map_ in (*maps.items(), ("shuffled_", maps[""] * signs)):
        found[f"{name}conservation"] = abs(float(map_.double().sum()) / logits.get(name, logits[""]) - 1)
    return found


def cam_and_eq8(net: nn.Module, x: Tensor, c: int) -> dict[str, float]:
    """Return the difference of Grad-CAM from CAM in a random network with average pooling, and Eq. (8)'s size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = nn.Linear(6, 4)
        layers = nn.Conv2d(x.shape[1], 6, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense
    pooled = nn.Sequential(*layers).double().to(x.device)
    with Forward(pooled, x.double(), ["1"]) as forward:
        gradcam = GradCAM().sum(forward, [0], "1")
        maps = forward.layers["1"].detach()
    cams = [torch.einsum("k,bkhw->bhw", dense.weight[k].detach(), maps) / maps[0, 0].numel() for k in (0, 1)]
    errors = [float((gradcam - cam).abs().max() / cam.abs().max()) for cam in cams]
    (layer,) = GradCAM().layers(net, x)
    with Forward(net, x, [layer]) as forward:
        side = forward.layers[layer].shape[-1]
    return {"cam": errors[0], "cam_other": errors[1], "eq8": GradCAMGradient()(net, x, [c]).shape[-1] / side}


def poolings(net: nn.Module, x: Tensor) -> list[str]:
    """Return the max-poolings whose maps are larger than the last feature map, or the layers in front of them that are."""
    (last,) = GradCAM().layers(net, x)
    leaves = [(name, module) for name, module in net.named_modules() if not list(module.children())]
    pairs = [(name, before) for (before, _), (name, module) in pairwise(leaves) if isinstance(module, nn.MaxPool2d)]
    with Forward(net, x, list({last, *(name for pair in pairs for name in pair)})) as forward:
        larger = {name for name, values in forward.layers.items() if values.shape[-1] > forward.layers[last].shape[-1]}
    return [next(name for name in pair if name in larger) for pair in pairs if larger & set(pair)]


def information(net: nn.Module, x: Tensor, c: int, second: int, layer: str | None) -> dict[str, float | None]:
    """Return how much Grad-CAM at a layer knows about place and, before its ReLU, about the class; None if it is constant."""
    cam = GradCAM(layer)
    (name,) = cam.layers(net, x)
    with Forward(net, x, [name]) as forward:
        signed = [cam.sum(forward, [k], name)[:, None] for k in (c, second)]
    map_, gray = cam(net, x, [c]), x.mean((2, 3), keepdim=True)
    shifted = map_.roll([n // 2 for n in map_.shape[2:]], (2, 3))
    lost = [curves(net, x, each, [c], gray, steps=16).deletion_auc for each in (shifted, map_)]
    alike = correlation(*signed)
    return {"spatial": float(lost[0] - lost[1]), "semantic": None if alike is None else 1 - alike}
