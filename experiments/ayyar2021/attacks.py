"""ayyar2021, sections 6 and 7: do adversarial perturbations change classes and maps (Galli et al. 2021; Su et al. 2019)?

Maps of the clean image's class, before and after FGSM, DeepFool and the one-pixel attack, are compared by Pearson's correlation.
Any change of an image changes its maps, so the control is noise of the same l2 norm: random signs for FGSM, whose steps have one
size, Gaussian noise for the others. A method is sensitive if an attack changes its maps more than this noise does. The claims
about maps compare FGSM with its noise, on the images whose class FGSM changes. The control of the one pixel's class is the same
colour at a random pixel.

    fall           correlation after noise - correlation after FGSM, where FGSM changes the class (table `falls`)
    new_class      correlation of the clean image's map with the map of the class that the network sees after FGSM
    seen           SSIM of the displayed maps before and after FGSM; seen_other: of two images
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
from experiments.ayyar2021.gallery import cutoff
from experiments.ayyar2021.verdicts import POSITIVE, lead, on_trained
from vis import metrics
from vis.claims import Claim, Column, Compared, Rule, above, at_small_sizes, below
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, wrapped
from vis.graph.modes import evaluating
from vis.methods import Occlusion
from vis.metrics import clipped
from vis.metrics.attacks import deepfool, equal_noise, fgsm, one_pixel
from vis.models import Model
from vis.runner.experiment import Batch, Load, Run, Task, map_words, method_scaling
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

ATTACKS = {"fgsm": "FGSM", "deepfool": "DeepFool", "one_pixel": "One pixel"}
SENSITIVE = 0.05  # of a correlation: a smaller fall is "not sensitive"


class Attacks(ByMethod):
    """Compare classes and maps before and after attacks, and after noise of the same size.

    attacks: some of fgsm (which the claims need), deepfool, one_pixel. eps: step of FGSM for pixels in [0, 1]; population,
    generations: size of the search for the one pixel; window: side of the gray window whose loss the perturbation is compared
    with.
    """

    axes: ClassVar = {
        f"correlation, {title}": {"attack": a, "noise": f"{a}_noise"} for a, title in ATTACKS.items()
    }  # fmt: skip
    ranges: ClassVar = dict.fromkeys(axes, (-1, 1))

    def __init__(
        self, source: str, rows: int, attacks: Sequence[str], eps: float, population: int, generations: int, window: int
    ) -> None:
        super().__init__(source, rows)
        if "fgsm" not in attacks or not set(attacks) <= set(ATTACKS):
            raise UserError(f"experiment.attacks={list(attacks)}: give fgsm, and any of deepfool and one_pixel")
        self.attacks = {name: title for name, title in ATTACKS.items() if name in attacks}
        self.eps, self.population, self.generations, self.window = eps, population, generations, window
        self.sentence = (
            "Correlation of the maps of an image before and after an attack, and after noise of the same l2 norm; FGSM by "
            f"{255 * eps:.3g} gray levels"
        )

    def load(self, run: Run, task: Task) -> Load:
        load = super().load(run, task)
        passes = load.passes * (2 + 2 * len(self.attacks)) + self.population * self.generations * (
            "one_pixel" in self.attacks
        )
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
        tried, then = dict(perturbed), dict[str, list[int]]()
        if "one_pixel" in perturbed:
            seeds = [run.config.seed + i for i in task["images"]]
            tried["one_pixel_elsewhere"] = moved(pixels, perturbed["one_pixel"], seeds)
        output = Output(tables={"attacks": []})
        for name, x in tried.items():
            with evaluating(model.net), torch.no_grad():
                after = then[name] = model.net(preprocess(x)).argmax(1).tolist()
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
        maps["new_class"] = run.explain(model, preprocess(perturbed["fgsm"]), [then["fgsm"]]).maps[0]
        output.tables["table"] = self.compared(run, batch, clean, maps, model.weights)
        flipped = {image for image, own, new in zip(names, classes.tolist(), then["fgsm"], strict=True) if own != new}
        output.tables["falls"] = [
            {"image": row["image"], "method": row["method"], "fall": row["fgsm_noise"] - row["fgsm"]}
            for row in output.tables["table"]
            if row["image"] in flipped
        ]
        if "deepfool" in perturbed:
            output.tables["focus"] = self.focus(run, model, batch, targets, perturbed)
        for i, image in enumerate(names):
            if task["images"][i] < self.rows:
                for stem, x, shown in [("", pixels, clean), *((f"/{a}", perturbed[a], maps[a]) for a in self.attacks)]:
                    output.arrays[f"{image}{stem}/pixels"] = x[i].cpu().numpy()
                    output.arrays |= {f"{image}{stem}/{method}": each[i].numpy() for method, each in shown.items()}
        return output

    def perturbed(self, run: Run, model: Model, pixels: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Return the images after each attack, and after its noise."""

        def logits(images: Tensor) -> Tensor:
            return model.net(run.preprocess(model)(images))

        tries = {
            "fgsm": lambda: fgsm(logits, pixels, classes.to(pixels.device), self.eps),
            "deepfool": lambda: deepfool(logits, pixels),
            "one_pixel": lambda: one_pixel(logits, pixels, classes, self.population, self.generations, run.config.seed),
        }
        found = {}
        with evaluating(model.net):
            for attack in self.attacks:
                found[attack] = tries[attack]()
                noise = random_signs if attack == "fgsm" else equal_noise
                found[f"{attack}_noise"] = noise(pixels, found[attack], run.config.seed)
        return found

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
            found: dict[str, Tensor] = {name: metrics.pearson(each, after[method]) for name, after in maps.items()}
            found["decorrelation"] = 1 - found.pop("small_noise")
            found["cutoff"] = cutoff(clipped(each))
            if method == "guided_gradcam":
                show = display.scaling(method_scaling(run.config, method))[0]
                shown, after = (
                    torch.stack(
                        [torch.from_numpy(show(m.numpy(), p.numpy())) for m, p in zip(of, batch.pixels, strict=True)]
                    ).movedim(3, 1)
                    for of in (each, maps["fgsm"][method])
                )
                found["seen"] = metrics.ssim(shown, after)
                if len(shown) > 1:
                    found["seen_other"] = metrics.ssim(shown, shown.roll(1, 0))
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

        def falls(method: str) -> Column:
            return Column(results.rows("falls", method=method), "fall", "image")

        def fall(method: str, rule: Rule, null: Column | float, control: str) -> Compared:
            words = f"correlation after random signs - after FGSM, {method}"
            return Compared(words, falls(method), rule, null=null, control=control)

        own, noise, other = (Column(results.rows("focus"), f"deepfool{of}", "image") for of in ("", "_noise", "_other"))
        focus = "correlation of |perturbation| by DeepFool with the loss by occlusion"
        strongly = fall("guided_gradcam", above(SENSITIVE, ours="the bound is ours"), 0.0, "noise of the same norm: 0")
        insensitive = [
            fall(method, below(SENSITIVE, ours="the bound is ours"), falls("guided_gradcam"), "Guided Grad-CAM")
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
        left_out = "experiment.attacks leaves out {}"
        attacks: list[Claim] = [
            Claim("A-6-a", [pixel], reason=at_small_sizes(results.config) if "one_pixel" in self.attacks
                  else left_out.format("one_pixel")),
            Claim("A-6-b", [Compared(f"{focus} - {words}", own - null, POSITIVE, null=0.0, control=f"{words}: 0")
                            for null, words in ((noise, "its noise"), (other, "another image's perturbation"))],
                  reason="" if "deepfool" in self.attacks else left_out.format("deepfool")),
        ]  # fmt: skip
        maps = [Claim("A-7-d", high), Claim("A-7-e", [strongly]), Claim("A-7-f", [seen]), Claim("A-7-g", insensitive)]
        return on_trained(results, [*attacks, *maps])

    def flipped(self, results: Results, attack: str) -> str:
        """Count the images whose class an attack, or its noise, changes: `3 of 8`."""
        rows = results.rows("attacks", attack=attack)
        return f"{sum(row['flipped'] for row in rows)} of {len(rows)}"

    def remarks(self, results: Results) -> list[str]:
        counts = [
            f"{t} {self.flipped(results, a)} (noise {self.flipped(results, a + '_noise')})"
            for a, t in self.attacks.items()
        ]
        return [f"The class changed: {', '.join(counts)}"]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, rows = results.config, list[PanelRow]()
        for image in list(dict.fromkeys(row["image"] for row in results.rows()))[: self.rows]:
            cells = {row["method"]: row for row in results.rows(image=image)}
            for prefix, title in {"": "clean", **self.attacks}.items():
                stem = f"{image}/{prefix}/" if prefix else f"{image}/"
                fact = next(iter(results.rows("attacks", image=image, attack=prefix or "fgsm")))
                pixels = results.arrays[f"{stem}pixels"]
                panels = [Panel(display.picture(pixels), "" if rows else "Image", fact["then" if prefix else "class"])]
                for m in config.methods:
                    picture = display.scaling(method_scaling(config, m))[0](results.arrays[stem + m], pixels)
                    heading = "" if rows else self.title(config, m)
                    panels.append(Panel(picture, heading, f"r = {cells[m][prefix]:.2f}" if prefix else ""))
                rows.append(PanelRow(panels, title))
        caption = [
            "Maps of the class that the clean image has; r: correlation with the clean image's map",
            *map_words(config, self.title),
            f"{config.model.name}, {results.rows()[0]['weights']}",
        ]
        return super().draw(results, claims) | {"maps": panel_grid(wrapped(rows, 7), caption)}


def random_signs(pixels: Tensor, perturbed: Tensor, seed: int) -> Tensor:
    """Return images with FGSM's largest step in a random direction at each value: nearly its norm, but for the cut at 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, pixels.shape[1:], generator=generator).to(pixels) * 2 - 1
    return (pixels + (perturbed - pixels).abs().amax((1, 2, 3), keepdim=True) * signs).clamp(0, 1)


def moved(pixels: Tensor, attacked: Tensor, seeds: Sequence[int]) -> Tensor:
    """Return images with the colour of the attacked pixel at a random place instead."""
    found = pixels.clone()
    for image, x, after, seed in zip(found, pixels, attacked, seeds, strict=True):
        changed = (after != x).any(0).nonzero()
        if len(changed):
            (i, j), (k, m) = changed[0].tolist(), np.random.default_rng(seed).integers(x.shape[1:]).tolist()
            image[:, k, m] = after[:, i, j]
    return found
