"""nie2018, Figure 8: an image and its FGSM adversary, and the maps of both.

"the saliency map visualization changes significantly whereas the GBP and DeconvNet visualizations remain almost unchanged
after replacing "panda" by its adversary "busby"."

The adversary is x + eps sign(dJ/dx), clipped to the range of pixels; the paper gives no eps. J is the cross entropy of the
predicted class or, where the softmax of a random network saturates (its gradient is 0), minus the margin of the two largest
logits. The control is a perturbation by random signs of the same size: a change that it also causes is no effect of the attack.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.nie2018.trained import LABELS, batches_of_the_model, images_of, not_the_papers, wanted, weights_words
from vis import metrics
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.methods.forward import Forward
from vis.methods.target import Target
from vis.oldclaims import Claim, Criterion, above, increasing, mean_and_spread
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results

SIGNIFICANT = "the saliency map visualization changes significantly whereas the GBP and DeconvNet visualizations remain"
UNCHANGED = "the GBP and DeconvNet visualizations remain almost unchanged after replacing the image by its adversary"
FLIPPED = "both the predicted class label and ReLU states of intermediate layers have changed"
TINY = "only a tiny adversarial perturbation is added into the input image"
HERE = "Of this network: the adversary changes the saliency map most."
CONTROL = "Finding: random signs of the same size change a map less than the adversary does."


def ascent(net: nn.Module, x: Tensor, loss: str) -> Tensor:
    """Return a positive multiple of dJ/dx [B, C, H, W] for each image."""
    with Forward(net, x) as forward:
        first, second = forward.logits.topk(2, dim=1).indices.T.tolist()
        if loss == "margin":
            return forward.gradient(second) - forward.gradient(first)
        return -forward.gradient([Target(label, output="prob") for label in first])  # J = -log p


def relu_states(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Return where each ReLU module, in the order of the forward pass, is active."""
    states: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda module, inputs, output: states.append(output > 0))
        for module in net.modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        with torch.no_grad():
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    return states


class Figure8(Experiment):
    """Compare maps of images and adversaries.

    eps: in gray levels (of 255); loss: cross_entropy or margin; paper: the image that the paper shows.
    """

    metrics = ("adversary", "control")
    series = "method"

    def __init__(self, eps: float, loss: str, paper: str) -> None:
        if loss not in ("cross_entropy", "margin"):
            raise UserError(f"experiment.loss={loss} is cross_entropy or margin")
        self.eps, self.loss, self.paper = eps / 255, loss, paper

    def tasks(self, run: Run) -> Sequence[Task]:
        return batches_of_the_model(run)

    def load(self, run: Run, task: Task) -> Load:
        images = len(task["images"])
        return Load(run.config.model, task["seed"], 3 * images, len(run.methods) + 1, images * (1 + len(run.methods)))

    def compute(self, run: Run, task: Task) -> Output:
        seed = task["seed"]
        model = run.model(seed=seed)
        batch, preprocess = run.batch(model, task["images"]), run.preprocess(model)
        signs = np.stack([_signs(seed, name, tuple(batch.pixels.shape[1:])) for name in batch.names])
        shifts = {
            "input": torch.zeros_like(batch.pixels),
            "adversary": ascent(model.net, batch.x, self.loss).cpu().sign().float(),
            "control": torch.from_numpy(signs),
        }
        output = Output(tables={"table": [], "attacks": []})
        maps: dict[str, dict[str, Tensor]] = {}
        for version, sign in shifts.items():
            pixels = (batch.pixels + self.eps * sign).clamp(0, 1)
            x = preprocess(pixels.to(batch.x.dtype)).to(batch.x.device, memory_format=model.memory_format)
            (maps[version],), logits = run.explain(model, x, [None])
            states = relu_states(model.net, x)
            if version == "input":
                before, active = logits.argmax(1), states
            changed = torch.cat([(a != b).flatten(1) for a, b in zip(active, states, strict=True)], dim=1)
            share = changed.double().mean(1)
            best = logits.argmax(1)
            for i, image in enumerate(batch.names):
                output.tables["attacks"].append(
                    {
                        "seed": seed,
                        "image": image,
                        "version": version,
                        "class": model.class_name(int(best[i])),
                        "flipped": bool(best[i] != before[i]),
                        "linf_gray_levels": 255 * (pixels[i] - batch.pixels[i]).abs().max().item(),
                        "relu_states_flipped": float(share[i]),
                        "weights": model.weights,
                    }
                )
                if seed == run.seeds[0]:
                    output.arrays[f"{image}/{version}/pixels"] = pixels[i].numpy()
                    output.arrays |= {
                        f"{image}/{version}/{method}": each[i].numpy() for method, each in maps[version].items()
                    }
        for method in run.methods:
            found = {v: metrics.pearson(maps["input"][method], maps[v][method]) for v in ("adversary", "control")}
            for i, image in enumerate(batch.names):
                values = {version: each[i].item() for version, each in found.items()}
                output.tables["table"].append(
                    {"seed": seed, "image": image, "method": method, **values, "weights": model.weights}
                )
        return output

    def claims(self, results: Results) -> list[Claim]:
        reason = not_the_papers(results)
        found: list[Claim] = []

        def of(method: str, version: str = "adversary") -> list[float]:
            return [row[version] for row in results.rows(method=method)]

        def claim(name: str, sentence: str, metric: str, criterion: Criterion, values: Any, **options: Any) -> None:
            options = {"source": "Figure 8, section 4.4", "reason": reason} | options
            found.append(Claim(name, sentence, metric=metric, criterion=criterion, values=values, **options))

        attacks = results.rows("attacks", version="adversary")
        metric = "correlation of the maps of image and adversary"
        bound = results.config.experiment.eps
        size = Criterion(f"each <= {bound:g}", lambda values: all(v <= bound * (1 + 1e-5) for v in values))
        largest, flipped = [a["linf_gray_levels"] for a in attacks], [float(a["flipped"]) for a in attacks]
        claim("linf", TINY, "largest change of a pixel in gray levels", size, largest, reason="")
        claim("flips", FLIPPED, "share of images whose label changes", above(0.5), flipped)
        states = [a["relu_states_flipped"] for a in attacks]
        claim("relu_states", FLIPPED, "share of ReLU states that change", above(0), states)
        for method in LABELS:
            if method not in results.config.methods:
                continue
            if method != "saliency":
                claim(f"{method}_unchanged", UNCHANGED, metric, above(0.9), of(method))
                order = {"saliency": of("saliency"), LABELS[method]: of(method)}
                claim(f"saliency_below_{method}", SIGNIFICANT, metric, increasing(), order)
                if reason:
                    claim(f"here_{method}", HERE, metric, increasing(), order, reason="", origin="project")
            versions = {"adversary": of(method), "random signs": of(method, "control")}
            like = "correlation with the map of the image"
            claim(f"control_{method}", CONTROL, like, increasing(), versions, reason="", origin="project")
        return found

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        image, config = images_of(results)[0], results.config
        rows: list[PanelRow] = []
        for version, label in (("input", "image"), ("adversary", "adversary"), ("control", "random signs")):
            (cell,) = results.rows("attacks", image=image, version=version, seed=config.seed)
            pixels = display.picture(results.arrays[f"{image}/{version}/pixels"])
            panels = [Panel(pixels, "" if rows else image, cell["class"])]
            for method in config.methods:
                title = "" if rows else LABELS.get(method, method)
                panel = Panel(display.minmax(results.arrays[f"{image}/{version}/{method}"]), title)
                if version != "input":
                    values = [row[version] for row in results.rows(method=method, image=image)]
                    panel.note = f"correlation {mean_and_spread(values)}"
                panels.append(panel)
            rows.append(PanelRow(panels, label))
        share = {
            v: [r["relu_states_flipped"] for r in results.rows("attacks", version=v)] for v in ("adversary", "control")
        }
        flips = results.rows("attacks", version="adversary")
        caption = [
            f"{weights_words(results)}. FGSM with eps = {config.experiment.eps:g} gray levels, "
            f"{config.experiment.loss.replace('_', ' ')}; control: random signs of the same size",
            "Under the pictures: the predicted class; under the maps: correlation with the map of the image",
            display.scaling("minmax")[1],
            f"Of {len(flips)} images and seeds {sum(r['flipped'] for r in flips)} change their label; of the ReLU states "
            f"{100 * np.mean(share['adversary']):.1f} % change (control {100 * np.mean(share['control']):.1f} %)",
            wanted(results, [self.paper]),
        ]
        return {"figure": panel_grid(rows, caption)}


def _signs(seed: int, image: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw the random signs of an image."""
    random = np.random.default_rng([seed, zlib.crc32(image.encode()), 8])
    return random.choice(np.array([-1, 1], dtype=np.float32), shape)
