"""zhou2018, Section 3: the propagation of expectation "incurs an approximation error for each layer", which accumulates.

By layer: |E h(a) - h(E a)| over the standard deviation of h(a), for the values a that draws of a window leave at the layer's
input; 0 for linear layers. Accumulated: |mean probability over draws - probability for their conditional mean|, summed over
images, over the effect |P(c|x) - mean probability|, so that confident networks do not look exact.

The paper compares VGG-16 on ImageNet with six layers on MNIST, and only states what it expects. Here networks of both depths
are trained on one task, several times each; they differ in width as well.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import Tensor, nn

from experiments.zhou2018.evidence import chosen_class, training_images
from vis.claims import Claim, Column, Compared, above, at_small_sizes, mean_and_spread, on_digits, replicated
from vis.config.instantiate import construct
from vis.data import preprocessing
from vis.figures.layout import plot, styled
from vis.graph.modes import evaluating
from vis.models import Model
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows
from vis.training.images import load_images, splits
from vis.training.loop import Training
from vis.training.standin import STANDIN_RECIPES

LINEAR, OTHER = (nn.Conv2d, nn.Linear), (nn.ReLU, nn.MaxPool2d)


class Depth(Experiment):
    """Measure the error by layer and by depth; each seed is a training.

    models: {name: config node}, the shallowest first, or a single one, whose units are images; samples: draws of the window in
    the middle. own_images: see EvidenceMaps.
    """

    def __init__(self, models: Mapping[str, Any], samples: int, own_images: bool = True) -> None:
        self.models, self.samples, self.own_images = models, samples, own_images

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"network": name, "seed": seed} for name in self.models for seed in run.seeds]

    def compute(self, run: Run, task: Task) -> Output:
        model = self._trained(run, task["network"], task["seed"])
        (key,), default = run.methods, training_images(run) if self.own_images else None
        method = construct(dict(run.config.methods[key]), f"methods.{key}")
        method.prepare(run.explainer.subject(model, run.batch(model, [0]).x, [], default))
        output = Output(tables={"table": [], "layers": []})
        for i in range(len(run.dataset)):
            batch = run.batch(model, [i])
            c, logits = chosen_class(run, model, batch)
            x, k, where = batch.x, method.window, task | {"image": batch.names[0]}
            top, left = (n // 2 - k // 2 for n in x.shape[2:])
            at, images = torch.tensor([[top, left]]), x.repeat(self.samples + 1, 1, 1, 1)
            images[0, :, top : top + k, left : left + k] = method.learnt.means(x[0], at, k)[0]
            images[1:, :, top : top + k, left : left + k] = method.learnt.samples(x[0], at, k, self.samples, i)[0]
            p, errors = by_layer(model.net, images, c)
            mean, clean = float(p[1:].mean()), float(logits.softmax(0)[c])
            row = where | {"error": abs(mean - float(p[0])), "effect": abs(clean - mean), "weights": model.weights}
            output.tables["table"].append(row)
            output.tables["layers"] += [where | each for each in errors]
        return output

    def _trained(self, run: Run, name: str, seed: int) -> Model:
        """Return a network, trained with this seed on the run's dataset if its weights are a stand-in's."""
        node: Any = self.models[name]
        if node.get("weights") != "standin":
            return run.model(node, seed=seed)
        model = run.model(node, seed=seed, weights=None, init="kaiming_normal")
        data: Any = OmegaConf.to_container(run.config.dataset, resolve=True)
        train, val = splits(data | {"limit": None})
        recipe = STANDIN_RECIPES["digits" if train.read(0).size == (8, 8) else "mnist"]
        images, held_out = (load_images(each, model.input_size, model.channels) for each in (train, val))
        with tempfile.TemporaryDirectory() as other:
            folder = (run.folder or Path(other)) / "trainings" / f"{name}_{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            preprocess = preprocessing(model.preprocess)
            *_, last = Training(model.net.float(), images, held_out, recipe, preprocess, seed, run.device, folder)
        model.net.to(run.dtype).eval().requires_grad_(False)
        model.weights = f"trained here on {train.origin} (top-1 {100 * last['val_top1']:.1f} %)"
        return model

    # --- from what is stored ------------------------------------------------------------------------------------------

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the accumulated error of each training, and the extremes over the layers of a kind."""
        rows: Rows = []
        photographs: Rows = []
        keys = list(dict.fromkeys((r["network"], r["seed"]) for r in results.rows()))
        for network, seed in keys:
            of = results.rows(network=network, seed=seed)
            row = {"network": network, "seed": seed, "weights": of[0]["weights"]}
            row["relative"] = sum(r["error"] for r in of) / max(sum(r["effect"] for r in of), 1e-30)
            layers = results.rows("layers", network=network, seed=seed)
            row |= extremes(layers)
            for image in dict.fromkeys(r["image"] for r in layers):
                where = {"network": network, "image": image}
                photographs.append(where | extremes([r for r in layers if r["image"] == image]))
            rows.append(row)
        for row in rows:
            own = [r["relative"] for r in rows if r["network"] == row["network"]]
            row["relative of the next"] = own[(own.index(row["relative"]) + 1) % len(own)]
        return {"summary": rows, "images": photographs}

    def claims(self, results: Results) -> list[Claim]:
        several = len(self.models) > 1
        unit, table = ("seed", "summary") if several else ("image", "images")

        def column(network: str, name: str) -> Column:
            return Column(results.rows(table, network=network), name, unit)

        shallow, *_ = self.models
        *_, deep = self.models
        layers = [
            Compared(
                f"least error of a non-linear layer - largest of a linear layer, in standard deviations, {n}",
                column(n, "least other") - column(n, "most linear"), above(0),
                null=column(n, "least linear") - column(n, "most linear"), control="linear layers",
            )
            for n in dict.fromkeys((shallow, deep))
        ]  # fmt: skip
        if not several:
            first = results.rows()[0]
            other = f"{shallow}, {first['weights']}, on photographs instead of VGG-16 on ImageNet"
            return replicated([Claim("Z-3-s", layers)], [other], on_digits(results.config))
        deeper = Compared(
            f"error over effect, {deep} - {shallow}", column(deep, "relative") - column(shallow, "relative"), above(0),
            null=column(shallow, "relative of the next") - column(shallow, "relative"), control=f"another training of {shallow}",
        )  # fmt: skip
        weights = results.rows("summary", network=deep)[0]["weights"]
        differences = [f"{deep} and {shallow}, {weights}, instead of VGG-16 on ImageNet and six layers on MNIST"]
        claims = [Claim("Z-3-s", layers), Claim("Z-3-t", [deeper])]
        return replicated(claims, differences, at_small_sizes(results.config))

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        names = list(self.models)
        relative = {n: [r["relative"] for r in results.rows("summary", network=n)] for n in names}
        caption = [
            f"Window in the middle of {len({r['image'] for r in results.rows()})} images, {self.samples} draws. "
            "Left: |mean probability over draws − probability for their conditional mean| over the effect of the window, a "
            "point for each training. Right: |E h(a) − h(E a)| over the standard deviation of h(a), by non-linear layer",
            "; ".join(f"{n}: {results.rows(network=n)[0]['weights']}, {mean_and_spread(relative[n])}" for n in names),
        ]
        figure, (left, right) = plot(6.9, 2.4, caption, columns=2)
        with styled():
            for i, name in enumerate(names):
                left.plot([i] * len(relative[name]), relative[name], ".", color=f"C{i}")
                layers = [r for r in results.rows("layers", network=name) if r["kind"] == "other"]
                order = list(dict.fromkeys(r["layer"] for r in layers))
                means = [np.mean([r["error"] for r in layers if r["layer"] == layer]) for layer in order]
                right.plot(np.linspace(0, 1, len(order)), means, ".-", color=f"C{i}", label=name.replace("_", " "))
            left.set_xticks(range(len(names)), [n.replace("_", " ") for n in names])
            left.set(ylabel="error / effect", xlim=(-0.5, len(names) - 0.5))
            right.set(xlabel="place of the layer, from pixels (0) to logits (1)", ylabel="error of the layer / std")
            right.legend()
        return {"figure": figure}


def extremes(layers: Rows) -> dict[str, float]:
    """Return the least and the largest mean error over the layers of a kind."""
    means = {
        kind: [
            float(np.mean([r["error"] for r in layers if r["layer"] == name]))
            for name in dict.fromkeys(r["layer"] for r in layers if r["kind"] == kind)
        ]
        for kind in ("linear", "other")
    }
    found = {"least other": min(means["other"]), "most linear": max(means["linear"])}
    return found | {"least linear": min(means["linear"])}


def by_layer(net: nn.Module, images: Tensor, c: int) -> tuple[Tensor, Rows]:
    """Return P(c) of the images [S + 1, ...], and the error of each layer over all of them but the first."""
    rows: Rows = []

    def measure(name: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            a, h = inputs[0][1:], output[1:]
            if (spread := float(h.std(0).mean())) > 0:
                error = float((h.mean(0) - layer.forward(a.mean(0, keepdim=True))[0]).abs().mean()) / spread
                kind = "linear" if isinstance(layer, LINEAR) else "other"
                rows.append({"layer": name, "kind": kind, "error": error})

        return layer.register_forward_hook(hook)

    for layer in net.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # which would overwrite the input that is measured
    hooks = [measure(name, layer) for name, layer in net.named_modules() if isinstance(layer, LINEAR + OTHER)]
    with evaluating(net), torch.no_grad():
        p = net(images).double().softmax(1)[:, c]
    for hook in hooks:
        hook.remove()
    return p, rows
