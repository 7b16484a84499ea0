"""nie2018, Figure 8: an image and its FGSM adversary, and the maps of both.

"the saliency map visualization changes significantly whereas the GBP and DeconvNet visualizations remain almost unchanged
after replacing "panda" by its adversary "busby"."

Beside it, so that two causes can be told apart: the adversary's map of the label of the image (kept), and the image's map of the
label of the adversary (relabelled).

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

from experiments.nie2018.trained import (
    LABELS,
    batches_of_the_model,
    difference,
    images_of,
    judged,
    network_of,
    predicted,
    wanted,
    weights_words,
)
from vis import metrics
from vis.claims import Claim, Column, Compared, above, below, mean_and_spread, on_digits
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.methods.forward import Forward
from vis.methods.target import Target
from vis.runner.experiment import Batch, Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

BEYOND_NOISE = "The adversary changes each map more than random signs of the same size do."
KEPT = "Most of what an adversary changes in the saliency map, it also changes in the map of the image's own label."


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
        maps = 2 * len(run.methods) + 1
        return Load(run.config.model, task["seed"], 3 * images, maps, images * (1 + len(run.methods)))

    def compute(self, run: Run, task: Task) -> Output:
        seed = task["seed"]
        model = network_of(run, task)
        batch, preprocess = run.batch(model, task["images"]), run.preprocess(model)
        shifts = {
            "input": torch.zeros_like(batch.pixels),
            "adversary": ascent(model.net, batch.x, self.loss).cpu().sign().float(),
            "control": random_signs(seed, batch),
        }
        before = predicted(model, batch.x)
        output = Output(tables={"table": [], "attacks": []})
        maps: dict[str, dict[str, Tensor]] = {}
        for version, sign in shifts.items():
            pixels = (batch.pixels + self.eps * sign).clamp(0, 1)
            x = preprocess(pixels.to(batch.x.dtype)).to(batch.x.device, memory_format=model.memory_format)
            best = predicted(model, x)
            (maps[version],) = run.explain(model, x, [best]).maps
            states = relu_states(model.net, x)
            if version == "input":
                active, clean = states, x
            if version == "adversary":
                if model.trained:  # a label of random weights means nothing
                    (maps["kept"],) = run.explain(model, x, [before]).maps
                    (maps["relabelled"],) = run.explain(model, clean, [best]).maps
                flipped = [float(a != b) for a, b in zip(best, before, strict=True)]
            changed = torch.cat([(a != b).flatten(1) for a, b in zip(active, states, strict=True)], dim=1)
            share = changed.double().mean(1)
            for i, image in enumerate(batch.names):
                output.tables["attacks"].append(
                    {
                        "seed": seed,
                        "image": image,
                        "version": version,
                        "class": model.class_name(best[i]),
                        "flipped": float(best[i] != before[i]),
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
            found = {
                version: metrics.pearson(maps["input"][method], each[method])
                for version, each in maps.items()
                if version != "input"
            }
            for i, image in enumerate(batch.names):
                values = {version: each[i].item() for version, each in found.items()} | {"flipped": flipped[i]}
                output.tables["table"].append(
                    {"seed": seed, "image": image, "method": method, **values, "weights": model.weights}
                )
        return output

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return how much more correlation the adversary costs than random signs, of images whose label it changes."""
        rows: dict[tuple[int, str], dict[str, Any]] = {}
        for row in results.rows(flipped=1.0):
            of = rows.setdefault((row["seed"], row["image"]), {"seed": row["seed"], "image": row["image"]})
            of[row["method"]] = row["control"] - row["adversary"]
            if "kept" in row:
                of[f"{row['method']}_kept"] = row["control"] - row["kept"]
        halves: Rows = [
            {"image": row["image"], "kept": row["saliency_kept"], "half": row["saliency"] / 2}
            for row in rows.values()
            if "saliency_kept" in row
        ]
        return {"drops": list(rows.values()), "halves": halves}

    def claims(self, results: Results) -> list[Claim]:
        def of(name: str, method: str) -> Column:
            return Column(results.rows(method=method, flipped=1.0), name, "image")

        def drop(name: str) -> Column:
            return Column(results.rows("drops"), name, "image")

        def of_all(name: str, method: str) -> Column:
            return Column(results.rows(method=method), name, "image")

        def attack(name: str, version: str = "adversary") -> Column:
            return Column(results.rows("attacks", version=version), name, "image")

        digits = on_digits(results.config) if results.config.model.weights else ""
        metric, ours = "correlation of the maps of image and adversary", "the bounds are ours"
        less = "minus that of image and random signs"
        states = "share of ReLU states that change, adversary minus random signs"
        found = [
            Claim("N-4.4-a", [
                Compared("share of photographs whose label changes", attack("flipped"), above(0.5, of="share"),
                         null=attack("flipped", "control"), control="random signs of the same size"),
                difference(states, attack("relu_states_flipped"), attack("relu_states_flipped", "control"), above(0),
                           control="as many as by random signs: 0"),
            ]),
            Claim("N-4.4-c", [
                Compared(f"saliency map: {metric}", of("adversary", "saliency"), below(0.5, fails=0.7, ours=ours),
                         null=of("adversary", "gbp"), control="GBP"),
                difference(f"saliency map: {metric} {less}", of("adversary", "saliency"), of("control", "saliency"),
                           below(0), control="as much change as by random signs: 0"),
                *(difference(f"drop of the correlation by the adversary instead of random signs, saliency map minus {LABELS[m]}",
                             drop("saliency"), drop(m), above(0), control="as large a drop: 0") for m in ("deconvnet", "gbp")),
            ]),
            Claim("N-4.4-d", [
                Compared(f"{LABELS[m]}: {metric}", of("adversary", m), above(0.9, fails=0.8, ours=ours),
                         null=of("adversary", "saliency"), control="the saliency map")
                for m in ("deconvnet", "gbp")
            ]),
            Claim("attack_beyond_noise", [
                difference(f"{LABELS[m]}: {metric} {less}", of_all("adversary", m), of_all("control", m), below(0),
                           control="as much change as by random signs: 0")
                for m in LABELS
            ], sentence=BEYOND_NOISE, source="beside Figure 8", reason=digits),
            Claim("label_kept", [
                difference("drop of the saliency map's correlation with the label kept, minus half of the whole drop",
                           Column(results.rows("halves"), "kept", "image"), Column(results.rows("halves"), "half", "image"),
                           above(0), control="half of the drop is a matter of class: 0"),
            ], sentence=KEPT, source="against Section 4.4, Figure 8", reason=digits),
        ]  # fmt: skip
        return judged(found, results, [self.paper]) if set(LABELS) <= set(results.config.methods) else []

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        image, config = images_of(results)[0], results.config
        rows: list[PanelRow] = []
        for version, label in (("input", "image"), ("adversary", "adversary"), ("control", "random signs")):
            (cell,) = results.rows("attacks", image=image, version=version, seed=config.seed)
            pixels = display.picture(results.arrays[f"{image}/{version}/pixels"])
            panels = [Panel(pixels, "" if rows else image, cell["class"])]
            for method in config.methods:
                title = "" if rows else LABELS.get(method, method)
                panel = Panel(display.midgray(results.arrays[f"{image}/{version}/{method}"], display.CLIP), title)
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
            f"Maps: {display.scaling('midgray')[1]}",
            *self._kept(results),
            f"Of {len(flips)} images and seeds {sum(r['flipped'] for r in flips):.0f} change their label; of the ReLU states "
            f"{100 * np.mean(share['adversary']):.1f} % change (control {100 * np.mean(share['control']):.1f} %)",
            wanted(results, [self.paper]),
        ]
        return {"figure": panel_grid(rows, caption)}

    def _kept(self, results: Results) -> list[str]:
        """Describe the maps of the label of the image, for the caption."""
        words = []
        for method in results.config.methods:
            rows = [row for row in results.rows(method=method, flipped=1.0) if "kept" in row]
            if rows:
                names = ("adversary", "kept", "relabelled")
                of_new, kept, clean = (np.mean([row[name] for row in rows]) for name in names)
                words.append(f"{LABELS.get(method, method)} {of_new:.2f}, {kept:.2f}, {clean:.2f}")
        if not words:
            return []
        return [
            "Mean correlation with the image's map, of the images whose label changes, for the adversary's label, for the "
            "adversary with the image's label, and for the image with the adversary's label: " + "; ".join(words)
        ]


def random_signs(seed: int, batch: Batch) -> Tensor:
    """Draw -1 or 1 for each value of the pixels [B, C, H, W]; they depend on the seed and the image's name alone."""

    def of(image: str) -> np.ndarray:
        random = np.random.default_rng([seed, zlib.crc32(image.encode()), 8])
        return random.choice(np.array([-1, 1], dtype=np.float32), batch.pixels.shape[1:])

    return torch.from_numpy(np.stack([of(image) for image in batch.names]))
