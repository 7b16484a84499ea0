"""ayyar2021, section 7: do maps change under adversarial perturbations (Galli et al. 2021)?

Maps of the clean image's class, before and after FGSM, DeepFool and the one-pixel attack, are compared by the Dice coefficient
of their largest values (Eq. 6). Since any change of an image changes its maps, the control is random noise of the same l2 norm:
a method is sensitive if an attack changes its maps more than this noise does. The claims cover the attacks that the survey
names, FGSM and DeepFool; the one-pixel attack is shown beside them (its noise, spread over all pixels, is less comparable).
"""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.ayyar2021.by_method import ByMethod
from experiments.ayyar2021.gallery import strength
from vis import metrics
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, wrapped
from vis.graph.modes import evaluating
from vis.metrics.attacks import deepfool, equal_noise, fgsm, one_pixel
from vis.oldclaims import Claim, interval_above, interval_below
from vis.runner.experiment import Load, Run, Task, map_words, method_class
from vis.store.run_folder import Output, Results

ATTACKS = {"fgsm": "FGSM", "deepfool": "DeepFool", "one_pixel": "One pixel"}
CLAIMED = ("fgsm", "deepfool")
CHANGED = "perturbations in the image strongly affected the saliency maps [of Guided Grad-CAM]"
INSENSITIVE = "LRP, DeepLIFT and FEM are not sensitive to this problem"
PIXEL = "Beyond the paper: a single pixel changes the maps of Guided Grad-CAM more than its noise over all pixels"
STRONGLY, NOT_SENSITIVE = interval_above(0.05), interval_below(0.05)  # of Dice: no method can be both


class Attacks(ByMethod):
    """Compare maps before and after attacks, and after noise of the same size.

    eps: step of FGSM for pixels in [0, 1]; share: share of the pixels, those with the largest values, that is compared;
    population, generations: size of the search for the one pixel.
    """

    axes: ClassVar = {f"Dice, {title}": {"attack": a, "noise": f"{a}_noise"} for a, title in ATTACKS.items()}
    ranges: ClassVar = dict.fromkeys(axes, (0, 1))

    def __init__(self, source: str, rows: int, eps: float, share: float, population: int, generations: int) -> None:
        super().__init__(source, rows)
        self.eps, self.share, self.population, self.generations = eps, share, population, generations
        self.sentence = (
            f"Dice coefficient of the {share:.0%} of pixels with the largest values, in the maps of an image before and after "
            "an attack, and after random noise of the same l2 norm"
        )

    def load(self, run: Run, task: Task) -> Load:
        load = super().load(run, task)
        passes = load.passes * (1 + 2 * len(ATTACKS)) + self.population * self.generations
        return Load(load.model, load.seed, load.images, passes, load.stored)

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        batch, preprocess = run.batch(model, task["images"]), run.preprocess(model)
        pixels = batch.pixels.to(batch.x)
        (clean,), before = run.explain(model, batch.x, [run.units_of(model, run.targets[0], batch.names)])
        classes = before.argmax(1)
        targets = run.units_of(model, run.targets[0], batch.names) or classes.tolist()

        def logits(images: Tensor) -> Tensor:
            return model.net(preprocess(images))

        with evaluating(model.net):
            perturbed = {
                "fgsm": fgsm(logits, pixels, classes.to(pixels.device), self.eps),
                "deepfool": deepfool(logits, pixels),
                "one_pixel": one_pixel(logits, pixels, classes, self.population, self.generations, run.config.seed),
            }
        cells = {m: [{"image": i, "method": m, "weights": model.weights} for i in batch.names] for m in clean}
        output = Output(tables={"table": [row for rows in cells.values() for row in rows], "attacks": []})
        shown = [i for i in range(len(batch.names)) if task["images"][i] < self.rows]
        for i in shown:
            output.arrays |= {f"{batch.names[i]}/{m}": each[i].numpy() for m, each in clean.items()}
            output.arrays[f"{batch.names[i]}/pixels"] = batch.pixels[i].numpy()
        for attack, images in perturbed.items():
            wanted = (images - pixels).cpu().flatten(1).norm(dim=1)
            for name, x in ((attack, images), (f"{attack}_noise", equal_noise(pixels, images, run.config.seed))):
                (maps,), after = run.explain(model, preprocess(x), [targets])
                moved = (x - pixels).cpu().flatten(1)
                for i, image in enumerate(batch.names):
                    fact = {"image": image, "attack": name, "flipped": int(after[i].argmax() != classes[i])}
                    fact |= {
                        "l2": moved[i].norm().item(),
                        "attack_l2": wanted[i].item(),
                        "largest": moved[i].abs().max().item(),
                    }
                    fact |= {
                        "class": model.class_name(int(classes[i])),
                        "then": model.class_name(int(after[i].argmax())),
                    }
                    output.tables["attacks"].append(fact)
                for method, each in maps.items():
                    largest = [metrics.largest(strength(m), self.share) for m in (clean[method], each)]
                    for row, value in zip(cells[method], metrics.dice(*largest).tolist(), strict=True):
                        row[name] = value
                for i in shown if name == attack else ():
                    output.arrays |= {f"{batch.names[i]}/{attack}/{m}": each[i].numpy() for m, each in maps.items()}
                    output.arrays[f"{batch.names[i]}/{attack}/pixels"] = x[i].cpu().numpy()
        return output

    def measured(self, values: Mapping[str, Mapping[str, Tensor]]) -> list[Claim]:
        def fall(method: str) -> Tensor:
            """Return how much more FGSM and DeepFool change a map than their noise does, the mean of the two."""
            return torch.stack([values[f"{a}_noise"][method] - values[a][method] for a in CLAIMED]).mean(0)

        def less(method: str) -> Tensor:
            return fall("guided_gradcam") - fall(method)

        def pixel() -> Tensor:
            return values["one_pixel_noise"]["guided_gradcam"] - values["one_pixel"]["guided_gradcam"]

        metric = "Dice after noise - Dice after FGSM and DeepFool"
        found = [
            self.claim(
                "changed",
                CHANGED,
                metric=f"{metric}, Guided Grad-CAM",
                values=partial(fall, "guided_gradcam"),
                criterion=STRONGLY,
            ),
            self.claim(
                "changed_one_pixel",
                PIXEL,
                metric="Dice after noise - Dice after the one pixel, Guided Grad-CAM",
                values=pixel,
                origin="project",
            ),
        ]
        for method in ("lrp", "deeplift", "fem"):
            title = {"lrp": "LRP", "deeplift": "DeepLIFT", "fem": "FEM"}[method]
            found += [
                self.claim(
                    f"insensitive_{method}",
                    INSENSITIVE,
                    metric=f"{metric}, {title}",
                    values=partial(fall, method),
                    criterion=NOT_SENSITIVE,
                ),
                self.claim(
                    f"less_{method}",
                    INSENSITIVE,
                    metric=f"({metric}), Guided Grad-CAM - {title}",
                    values=partial(less, method),
                ),
            ]
        return found

    def flipped(self, results: Results, attack: str) -> str:
        """Count the images whose class an attack, or its noise, changes: `3 of 8`."""
        rows = results.rows("attacks", attack=attack)
        return f"{sum(row['flipped'] for row in rows)} of {len(rows)}"

    def remarks(self, results: Results) -> list[str]:
        counts = [
            f"{t} {self.flipped(results, a)} (noise {self.flipped(results, a + '_noise')})" for a, t in ATTACKS.items()
        ]
        return [f"The class changed: {', '.join(counts)}"]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, rows = results.config, list[PanelRow]()
        for image in list(dict.fromkeys(row["image"] for row in results.rows()))[: self.rows]:
            cells = {row["method"]: row for row in results.rows(image=image)}
            for prefix, title in {"": "clean", **ATTACKS}.items():
                stem = f"{image}/{prefix}/" if prefix else f"{image}/"
                fact = next(iter(results.rows("attacks", image=image, attack=prefix or "fgsm")))
                pixels = results.arrays[f"{stem}pixels"]
                panels = [Panel(display.picture(pixels), "" if rows else "Image", fact["then" if prefix else "class"])]
                for m in config.methods:
                    picture = display.scaling(method_class(config, m).display)[0](results.arrays[stem + m], pixels)
                    heading = "" if rows else self.title(config, m)
                    panels.append(Panel(picture, heading, f"Dice {cells[m][prefix]:.2f}" if prefix else ""))
                rows.append(PanelRow(panels, title))
        caption = [
            "Maps of the class that the clean image has; Dice: of their largest values, with the clean image's",
            *map_words(config, self.title),
            f"{config.model.name}, {results.rows()[0]['weights']}",
        ]
        return super().draw(results, claims) | {"maps": panel_grid(wrapped(rows, 7), caption)}
