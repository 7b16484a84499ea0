"""ayyar2021, sections 6 and 7: do adversarial perturbations change classes and maps (Galli et al. 2021; Su et al. 2019)?

Maps of the clean image's class, before and after FGSM, DeepFool and the one-pixel attack, are compared by the Dice coefficient
of their largest values (Eq. 6). Since any change of an image changes its maps, the control is random noise of the same l2 norm:
a method is sensitive if an attack changes its maps more than this noise does. The claims cover the attacks that the survey
names, FGSM and DeepFool; the one-pixel attack is shown beside them (its noise, spread over all pixels, is less comparable). The
control of its class is the same colour at a random pixel.

    fall           Dice after noise - Dice after the attack, mean of FGSM and DeepFool
    seen           SSIM of the displayed maps before and after them, mean of the two; seen_other: of two images
    decorrelation  1 - correlation of the maps before and after Gaussian noise of 1 % of the image's range
    cutoff         frequency below which 99 % of the clean map's energy lies
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from experiments.ayyar2021.by_method import ByMethod
from experiments.ayyar2021.figure9 import drawn
from experiments.ayyar2021.gallery import clipped, cutoff, strength
from experiments.ayyar2021.verdicts import POSITIVE, lead, on_trained
from vis import metrics
from vis.claims import Claim, Column, Compared, Rule, above, below
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, wrapped
from vis.graph.modes import evaluating
from vis.methods import Occlusion
from vis.metrics.attacks import deepfool, equal_noise, fgsm, one_pixel
from vis.models import Model
from vis.runner.experiment import Batch, Load, Run, Task, map_words, method_class
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

ATTACKS = {"fgsm": "FGSM", "deepfool": "DeepFool", "one_pixel": "One pixel"}
CLAIMED = ("fgsm", "deepfool")


class Attacks(ByMethod):
    """Compare classes and maps before and after attacks, and after noise of the same size.

    eps: step of FGSM for pixels in [0, 1]; share: share of the pixels, those with the largest values, that is compared;
    population, generations: size of the search for the one pixel; window: side of the gray window whose loss the perturbation
    is compared with.
    """

    axes: ClassVar = {f"Dice, {title}": {"attack": a, "noise": f"{a}_noise"} for a, title in ATTACKS.items()}
    ranges: ClassVar = dict.fromkeys(axes, (0, 1))

    def __init__(
        self, source: str, rows: int, eps: float, share: float, population: int, generations: int, window: int
    ) -> None:
        super().__init__(source, rows)
        self.eps, self.share, self.population, self.generations = eps, share, population, generations
        self.window = window
        self.sentence = (
            f"Dice coefficient of the {share:.0%} of pixels with the largest values, in the maps of an image before and after "
            "an attack, and after random noise of the same l2 norm"
        )

    def load(self, run: Run, task: Task) -> Load:
        load = super().load(run, task)
        passes = load.passes * (2 + 2 * len(ATTACKS)) + self.population * self.generations
        return Load(load.model, load.seed, load.images, passes, load.stored)

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        batch, preprocess = run.batch(model, task["images"]), run.preprocess(model)
        pixels, names = batch.pixels.to(batch.x), batch.names
        (clean,), before = run.explain(model, batch.x, [run.units_of(model, run.targets[0], names)])
        classes = before.argmax(1)
        targets = run.units_of(model, run.targets[0], names) or classes.tolist()
        perturbed = self.perturbed(run, model, pixels, classes)
        noise = torch.stack([drawn(image, pixels.shape[1:]) for image in names]).to(pixels)
        perturbed["small_noise"] = pixels + 0.01 * noise
        elsewhere = moved(pixels, perturbed["one_pixel"], [run.config.seed + i for i in task["images"]])
        output = Output(tables={"attacks": []})
        for name, x in {**perturbed, "one_pixel_elsewhere": elsewhere}.items():
            with evaluating(model.net), torch.no_grad():
                after = model.net(preprocess(x)).argmax(1).tolist()
            attack = x if name == "small_noise" else perturbed.get(name.partition("_noise")[0], x)
            for i, image in enumerate(names):
                change, own = ((each[i] - pixels[i]).cpu() for each in (x, attack))
                fact = {"image": image, "attack": name, "flipped": int(after[i] != classes[i])}
                fact |= {
                    "l2": change.norm().item(),
                    "attack_l2": own.norm().item(),
                    "largest": change.abs().max().item(),
                }
                fact |= {"class": model.class_name(int(classes[i])), "then": model.class_name(after[i])}
                output.tables["attacks"].append(fact)
        maps = {name: run.explain(model, preprocess(x), [targets]).maps[0] for name, x in perturbed.items()}
        output.tables["table"] = self.compared(run, batch, clean, maps, model.weights)
        output.tables["focus"] = self.focus(run, model, batch, targets, perturbed)
        for i, image in enumerate(names):
            if task["images"][i] < self.rows:
                for stem, x, shown in [("", pixels, clean), *((f"/{a}", perturbed[a], maps[a]) for a in ATTACKS)]:
                    output.arrays[f"{image}{stem}/pixels"] = x[i].cpu().numpy()
                    output.arrays |= {f"{image}{stem}/{method}": each[i].numpy() for method, each in shown.items()}
        return output

    def perturbed(self, run: Run, model: Model, pixels: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Return the images after each attack, and after its noise."""

        def logits(images: Tensor) -> Tensor:
            return model.net(run.preprocess(model)(images))

        with evaluating(model.net):
            attacked = {
                "fgsm": fgsm(logits, pixels, classes.to(pixels.device), self.eps),
                "deepfool": deepfool(logits, pixels),
                "one_pixel": one_pixel(logits, pixels, classes, self.population, self.generations, run.config.seed),
            }
        noisy = {f"{attack}_noise": equal_noise(pixels, x, run.config.seed) for attack, x in attacked.items()}
        return {key: (attacked | noisy)[key] for attack in attacked for key in (attack, f"{attack}_noise")}

    def compared(
        self,
        run: Run,
        batch: Batch,
        clean: Mapping[str, Tensor],
        maps: Mapping[str, Mapping[str, Tensor]],
        weights: str,
    ) -> Rows:
        """Return a row for each method and image, which compares its maps."""
        rows: Rows = []
        for method, each in clean.items():
            largest = metrics.largest(strength(each), self.share)
            found = {
                name: metrics.dice(largest, metrics.largest(strength(after[method]), self.share))
                for name, after in maps.items()
                if name != "small_noise"
            }
            found["fall"] = torch.stack([found[f"{a}_noise"] - found[a] for a in CLAIMED]).mean(0)
            found["decorrelation"] = 1 - metrics.pearson(each, maps["small_noise"][method])
            found["cutoff"] = cutoff(clipped(each))
            if method == "guided_gradcam":
                show = display.scaling(method_class(run.config, method).display)[0]
                shown, *after = (
                    torch.stack(
                        [torch.from_numpy(show(m.numpy(), p.numpy())) for m, p in zip(of, batch.pixels, strict=True)]
                    )
                    for of in (each, *(maps[a][method] for a in CLAIMED))
                )
                found["seen"] = torch.stack([metrics.ssim(shown.movedim(3, 1), a.movedim(3, 1)) for a in after]).mean(0)
                if len(shown) > 1:
                    found["seen_other"] = metrics.ssim(shown.movedim(3, 1), shown.roll(1, 0).movedim(3, 1))
            for i, image in enumerate(batch.names):
                row = {"image": image, "method": method, "weights": weights}
                rows.append(row | {name: values[i].item() for name, values in found.items()})
        return rows

    def focus(self, run: Run, model: Model, batch: Batch, targets: list[int], perturbed: Mapping[str, Tensor]) -> Rows:
        """Return the correlation with the loss by occlusion of DeepFool's perturbation, its noise and another image's."""
        window, stride = self.window, max(1, self.window // 2)
        loss = Occlusion(window, stride=stride)(model.net, batch.x, targets, run.preprocess(model)).cpu()
        pixels = batch.pixels.to(batch.x)
        sizes = {
            name: (perturbed[name] - pixels).abs().amax(1, keepdim=True).cpu()
            for name in ("deepfool", "deepfool_noise")
        }
        if len(batch.names) > 1:
            sizes["deepfool_other"] = sizes["deepfool"].roll(1, 0)
        height, width = (max(1, side // window) for side in loss.shape[2:])
        found = {
            name: metrics.pearson(*(F.adaptive_avg_pool2d(each.double(), (height, width)) for each in (loss, size)))
            for name, size in sizes.items()
        }
        return [
            {"image": image} | {name: values[i].item() for name, values in found.items()}
            for i, image in enumerate(batch.names)
        ]

    # --- from what is stored ------------------------------------------------------------------------------------------

    def claims(self, results: Results) -> list[Claim]:
        def of(method: str, name: str) -> Column:
            return Column(results.rows(method=method), name, "image")

        def flipped(attack: str) -> Column:
            return Column(results.rows("attacks", attack=attack), "flipped", "image")

        def fall(method: str, rule: Rule, null: Column | float, control: str) -> Compared:
            words = f"Dice after noise - Dice after FGSM and DeepFool, {method}"
            return Compared(words, of(method, "fall"), rule, null=null, control=control)

        own, noise, other = (Column(results.rows("focus"), f"deepfool{of}", "image") for of in ("", "_noise", "_other"))
        focus = "correlation of |perturbation| by DeepFool with the loss by occlusion"
        strongly = fall("guided_gradcam", above(0.05, ours="the bound is ours"), 0.0, "noise of the same norm: 0")
        insensitive = [
            fall(method, below(0.05, ours="the bound is ours"), of("guided_gradcam", "fall"), "Guided Grad-CAM")
            for method in ("lrp", "deeplift", "fem")
        ]
        seen = Compared("SSIM of the displayed maps of Guided Grad-CAM, clean and attacked (a proxy of a viewer)",
                        of("guided_gradcam", "seen"), above(0.95, 0.8, ours="the bounds are ours"),
                        null=of("guided_gradcam", "seen_other"), control="the displayed maps of two images")  # fmt: skip
        pixel = Compared("share of images whose class one pixel changes - the same colour at a random place",
                         flipped("one_pixel") - flipped("one_pixel_elsewhere"), POSITIVE, null=0.0,
                         control="the same colour at a random place: 0")  # fmt: skip
        high = [
            lead(results, name, method, smooth, metric=metric)
            for name, metric in (("decorrelation", "1 - correlation of the maps at 1 % noise"),
                                 ("cutoff", "frequency below which 99 % of the map's energy lies"))
            for method in ("saliency", "gbp", "deconvnet") for smooth in ("gradcam", "lrp_alpha1_beta0")
        ]  # fmt: skip
        return on_trained(results, [
            Claim("A-6-a", [pixel]),
            Claim("A-6-b", [Compared(f"{focus} - {words}", own - null, POSITIVE, null=0.0, control=f"{words}: 0")
                            for null, words in ((noise, "its noise"), (other, "another image's perturbation"))]),
            Claim("A-7-d", high), Claim("A-7-e", [strongly]), Claim("A-7-f", [seen]), Claim("A-7-g", insensitive),
        ])  # fmt: skip

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


def moved(pixels: Tensor, attacked: Tensor, seeds: Sequence[int]) -> Tensor:
    """Return images with the colour of the attacked pixel at a random place instead."""
    found = pixels.clone()
    for image, x, after, seed in zip(found, pixels, attacked, seeds, strict=True):
        changed = (after != x).any(0).nonzero()
        if len(changed):
            (i, j), (k, m) = changed[0].tolist(), np.random.default_rng(seed).integers(x.shape[1:]).tolist()
            image[:, k, m] = after[:, i, j]
    return found
