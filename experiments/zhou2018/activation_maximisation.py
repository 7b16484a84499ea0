"""zhou2018, Eqs. (1) to (3), introduction: the image that maximises a class of a network, with and without regularisers.

    x* = argmax a_i(x; theta)                          ||x|| = p                                                    (1)
    x* = argmax a_i(x; theta) - lambda ||x||_2^2                                                                    (2)
    x <- r_theta(x + eta da_i/dx)                                                                                   (3)

r is one of Yosinski et al. 2015: L2 decay (the step of Eq. 2), Gaussian blur, clipping of pixels with a small norm or a small
contribution |sum over channels of x da_i/dx| to 0; or all of them. Jitter (the image is shifted at random for each step) is
not in the paper, but commonly used with them today. a_i is the logit. A step has the size eta regardless of the gradient's
size. Pixels stay in [0, 1], so that the figure shows what the network saw; only the column of Eq. (1) also restores ||x|| = p
after each step, with the mean norm of real images for p.

Eq. (4) optimises the input of a generator instead (`experiments.zhou2018.generator`), where `generator` says so. Its codes keep
the norm of real images' codes, in place of Eq. (4)'s decay.

How interpretable an image is, is judged by a second network, trained apart: the probability that it gives to the class. How
natural, by the distance of its spectrum from the nearest real image's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.zhou2018.evidence import training_images
from experiments.zhou2018.generator import Generator, trained
from experiments.zhou2018.setting import another_network
from vis import metrics
from vis.claims import Claim, Column, Compared, above, below, on_digits, replicated
from vis.config.instantiate import construct
from vis.data import Preprocess, preprocessing, to_pixels
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.graph.modes import evaluating
from vis.models import Model
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.system.console import progress

NORM = "norm"  # the column of Eq. (1)
METRIC = "share of the energy in high frequencies"


@dataclass(frozen=True)
class Regulariser:
    """r_theta of Eq. (3).

    decay: share of x that a step removes. blur: standard deviation in pixels, every `blur_every` steps. norm, contribution:
    share of pixels, those with the smallest norm or contribution, that a step clips to 0. rms: the root mean square of x that
    a step restores (Eq. 1), in that of real images; 0 leaves it. jitter: in pixels. shuffled: gradients get random signs, a
    control.
    """

    decay: float = 0.0
    blur: float = 0.0
    blur_every: int = 4
    norm: float = 0.0
    contribution: float = 0.0
    rms: float = 0.0
    jitter: int = 0
    shuffled: bool = False

    def __post_init__(self) -> None:
        if not all(0 <= share < 1 for share in (self.decay, self.norm, self.contribution)):
            raise ValueError("decay, norm and contribution are shares: 0 or more, below 1")
        if min(self.blur, self.rms, self.jitter) < 0 or self.blur_every < 1:
            raise ValueError("blur, rms and jitter are 0 or more, blur_every is 1 or more")

    def __call__(self, x: Tensor, gradient: Tensor, step: int) -> Tensor:
        """Regularise an image [1, C, H, W] after step 0, 1, ..., given the gradient of that step."""
        x = (1 - self.decay) * x
        if self.blur and (step + 1) % self.blur_every == 0:
            x = blurred(x, self.blur)
        x = clipped(x, x.norm(dim=1, keepdim=True), self.norm)
        x = clipped(x, (x * gradient).sum(1, keepdim=True).abs(), self.contribution)
        return x * (self.rms / rms(x)) if self.rms else x


def rms(x: Tensor) -> Tensor:
    """Return the root mean square of all values."""
    return x.square().mean().sqrt()


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Convolve each channel of images [B, C, H, W] with a Gaussian, mirrored at the border."""
    radius = min(math.ceil(4 * sigma), min(x.shape[2:]) - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).to(x) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    rows = F.pad(x.flatten(0, 1)[:, None], (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(rows, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).view_as(x)


def clipped(x: Tensor, size: Tensor, share: float) -> Tensor:
    """Set x [1, C, H, W] to 0 at the given share of its pixels, those with the smallest `size` [1, 1, H, W]."""
    count = int(share * size.numel())
    return torch.where(size > size.flatten().kthvalue(count).values, x, 0.0) if count else x


def maximise(
    net: nn.Module,
    unit: int,
    x: Tensor,
    regulariser: Regulariser,
    preprocess: Preprocess,
    steps: int,
    eta: float,
    seed: int,
) -> Tensor:
    """Iterate Eq. (3) from an image x [1, C, H, W] as the network sees it; eta: root mean square of a step, in the units of x."""
    low, high = (preprocess(torch.full_like(x, limit)) for limit in (0.0, 1.0))
    random = torch.Generator().manual_seed(seed)
    shifts = torch.randint(-regulariser.jitter, regulariser.jitter + 1, (steps, 2), generator=random).tolist()
    with evaluating(net):
        for step, shift in enumerate(progress(shifts, steps, "steps", leave=False)):
            start = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(net(start.roll(shift, (2, 3)))[0, unit], start)
            if regulariser.shuffled:
                gradient = gradient * (2 * torch.randint(2, gradient.shape, generator=random).to(gradient) - 1)
            size = rms(gradient)
            if not size > 0:
                raise UserError(
                    f"class {unit} has no gradient at step {step}: another seed, or a smaller experiment.eta"
                )
            x = regulariser(x + eta * gradient / size, gradient, step).clamp(low, high)
    return x.detach()


def spectra(pixels: Tensor) -> Tensor:
    """Return the logarithm of the mean power of images [B, C, H, W] in rings of frequency, without the mean: [B, 16]."""
    power = torch.fft.fft2(metrics.luma(pixels)[:, 0].double()).abs().square()
    side = [torch.fft.fftfreq(n, dtype=torch.float64) for n in power.shape[1:]]
    ring = (torch.cartesian_prod(*side).norm(dim=1) / 0.5 * 16).clamp(max=15).long()
    sums = torch.zeros(len(power), 16, dtype=torch.float64).index_add_(1, ring[1:], power.flatten(1)[:, 1:])
    return (sums / ring[1:].bincount(minlength=16).clamp(min=1) + 1e-12).log()


def high_share(x: Tensor) -> float | None:
    """Return the share of the energy of an image [1, C, H, W], without its mean, in high frequencies; None if constant."""
    gray = metrics.luma(x)
    rest = (gray - gray.mean()).square().sum()
    return (metrics.high_pass(x).square().sum() / rest).item() if rest > 0 else None


class ActivationMaximisation(Experiment):
    """Maximise classes under several regularisers.

    columns: {name: parameters of a Regulariser}, the first without any. networks: the config node of the second network,
    `judge`. generator: {images, steps} of its training; null for none. The rows are the run's targets, at most `rows` drawn.
    """

    metrics = ("high", "variation", "p")
    series = "column"

    def __init__(
        self,
        columns: Mapping[str, Mapping[str, float]],
        networks: Mapping[str, Any],
        generator: Mapping[str, int] | None,
        steps: int,
        eta: float,
        rows: int,
    ) -> None:
        if len(columns) < 2 or eta <= 0:
            raise UserError("experiment.columns must be two or more, and experiment.eta above 0")
        self.columns: dict[str, Regulariser] = {
            name: construct({"_target_": f"{__name__}.Regulariser", **each}, f"experiment.columns.{name}")
            for name, each in columns.items()
        }
        self.judge, self.generator, self.steps, self.eta, self.rows = networks["judge"], generator, steps, eta, rows
        self._built: Any = None

    def tasks(self, run: Run) -> Sequence[Task]:
        run.require_model()
        if {"max", "random"} & set(map(str, run.targets)):
            raise UserError(
                "activation maximisation starts from no image, so target=max has no meaning: target=[0,1,2], or class names"
            )
        names = [*self.columns, *(["generator"] if self.generator else [])]
        return [{"target": t, "column": c, "seed": s} for t in run.targets for s in run.seeds for c in names]

    def load(self, run: Run, task: Task) -> Load:
        return Load(run.config.model, run.config.seed, self.steps, 1, 1)

    def compute(self, run: Run, task: Task) -> Output:
        if self._built is None:
            self._built = self._build(run)
        model, judge, real, G, held_out = self._built
        length = real["rms"].mean().item()
        (i,) = run.units_of(model, task["target"], [""]) or [0]
        preprocess, name = preprocessing(model.preprocess), task["column"]
        random = torch.Generator().manual_seed(task["seed"])
        noise = torch.rand(1, model.channels, *model.input_size, generator=random)
        start = preprocess((0.4 + 0.2 * noise).to(run.dtype)).to(run.device)  # "an image filled with random pixels"
        ascend = partial(maximise, unit=i, steps=self.steps, eta=self.eta, seed=task["seed"])
        if name == "generator":
            codes, unit = torch.rand(1, G.codes, 1, 1, generator=random).to(start), preprocessing("unit_range")
            x = G(ascend(nn.Sequential(G, model.net), x=codes, regulariser=Regulariser(rms=G.rms), preprocess=unit))
        else:
            own = self.columns[name]
            x = ascend(model.net, x=start, regulariser=replace(own, rms=own.rms * length), preprocess=preprocess)
        with torch.no_grad():
            logits, begun = model.net(torch.cat([x, start])).double()
        pixels, alike = preprocess.inverse(x).cpu(), real["class"] == i
        row = {**task, "class": model.class_name(i), "logit": logits[i].item(), "p": logits.softmax(0)[i].item()}
        row |= {"high": high_share(x), "variation": metrics.total_variation(x).item(), "weights": model.weights}
        row |= {"judge": judge.weights, "judge p": seen_by(judge, pixels)[0, i].item(), "classes": len(logits)}
        row["judge p of start"] = seen_by(judge, preprocess.inverse(start).cpu())[0, i].item()
        row["distance"] = (real["spectra"] - spectra(pixels)).norm(dim=1).min().item()
        row["distance of real"] = real["distances"].mean().item()
        row["nearest"] = None if held_out is None else (held_out - pixels).flatten(1).norm(dim=1).min().item()
        row["norm"] = rms(x).item() / length
        if alike.any():
            largest = real["logits"][alike, i].max()
            row |= {"exceeds": float(logits[i] > largest), "start exceeds": float(begun[i] > largest)}
            row |= {"judge p of real": real["judge"][alike, i].mean().item()}
            row["high / real"] = None if row["high"] is None else row["high"] / real["high"][alike].mean().item()
        drawn = task["seed"] == run.seeds[0]
        return Output({f"{task['target']}/{name}": pixels[0].numpy()} if drawn else {}, {"table": [row]})

    def _build(self, run: Run) -> tuple[Model, Model, dict[str, Tensor], Generator | None, Tensor | None]:
        """Return the network, the second one, what they say of real images, and the generator with images held out from it."""
        judge, model = run.model(self.judge), run.model()
        found: dict[str, list[Tensor]] = {name: [] for name in ("class", "logits", "judge", "spectra", "high", "rms")}
        for indices in run.batches(len(run.dataset), 50):
            batch = run.batch(model, indices)
            with torch.no_grad():
                logits = model.net(batch.x).double().cpu()
            labels = [
                guess if given is None else given for given, guess in zip(batch.labels, logits.argmax(1), strict=True)
            ]
            found["class"].append(torch.tensor([int(label) for label in labels]))
            found["logits"].append(logits)
            found["judge"].append(seen_by(judge, batch.pixels))
            found["spectra"].append(spectra(batch.pixels))
            found["rms"].append(torch.tensor([rms(x).item() for x in batch.x]))
            found["high"].append(torch.tensor([high_share(x[None]) or math.nan for x in batch.x]))
        real = {name: torch.cat(parts) for name, parts in found.items()}
        apart = torch.cdist(real["spectra"], real["spectra"])
        real["distances"] = apart.fill_diagonal_(math.inf).min(1)[0]
        if not self.generator:
            return model, judge, real, None, None
        data, size = training_images(run), (model.input_size[0], model.input_size[1])
        some = np.linspace(0, len(data) - 1, min(self.generator["images"], len(data))).astype(int)
        images = torch.stack([to_pixels(data.read(int(i)), size, model.channels) for i in some]).to(run.dtype)
        preprocess, steps = preprocessing(model.preprocess), self.generator["steps"]
        G = trained(model.net, images[::2].to(run.device), preprocess, steps, run.config.seed)
        return model, judge, real, G, images[1::2]

    # --- from what is stored ------------------------------------------------------------------------------------------

    def claims(self, results: Results) -> list[Claim]:
        rows = [r for r in results.rows() if r["column"] not in ("generator", "shuffled")]

        def column(name: str, of: str) -> Column:
            return Column(results.rows(column=of), name, "class")

        judged, start = "probability of the class by a second network", "the random pixels of the start"
        none, pixels = next(iter(self.columns)), "all regularisers, of pixels"
        high = Compared(
            "share of runs whose logit exceeds that of every real image of the class, by class",
            Column(rows, "exceeds", "class"), above(0.5, ours="half is ours"), null=Column(rows, "start exceeds", "class"),
            control=start,
        )  # fmt: skip
        fails = Compared(
            f"{judged}, {none}", column("judge p", none), below(0.5, ours="half is ours"),
            null=column("judge p of real", none), control="real images of the class",
        )  # fmt: skip
        knows = Compared(
            f"{judged}, real images", column("judge p of real", none), above(0.5, ours="half is ours"),
            null=1 / rows[0]["classes"], control="a network that knows no class",
        )  # fmt: skip
        decay = [
            Compared(
                f"{judged}, L2 - {other}",
                column("judge p", "L2") - column("judge p", other),
                above(0),
                null=0.0,
                control=control,
            )
            for other, control in ((none, "no decay"), ("shuffled", "the same decay with gradients of random signs"))
        ]
        natural = [
            Compared(
                f"distance from the nearest real image's spectrum, {name} - all",
                column("distance", name) - column("distance", "all"), above(0),
                null=column("distance of real", "all") - column("distance", "all"), control="real images in place of the other",
            )
            for name in self.columns if name not in (NORM, "all", "jitter", "shuffled")
        ]  # fmt: skip
        abstract = [
            Compared(
                f"{judged}, all", column("judge p", "all"), above(1 / results.rows()[0]["classes"]),
                null=column("judge p of start", "all"), control=start,
            ),
            Compared(f"{METRIC}, all over real images", column("high / real", "all"), above(1), null=1.0, control="real images"),
        ]  # fmt: skip
        prior = [
            Compared(
                "distance from the nearest real image, which the generator has not seen, all - through the generator",
                column("nearest", "all") - column("nearest", "generator"), above(0), null=0.0, control=pixels,
            ),
            Compared(
                f"{judged}, through the generator - all", column("judge p", "generator") - column("judge p", "all"),
                above(0), null=0.0, control=pixels,
            ),
            Compared(
                f"{judged}, through the generator", column("judge p", "generator"), above(0.5, ours="half is ours"),
                null=column("judge p of start", none), control=start,
            ),
        ]  # fmt: skip
        how = "experiment.generator={images: 20000, steps: 3000} dataset=mnist"
        lacking = "" if self.generator else f"no generator is trained for these images: {how}"
        seen = any("exceeds" in r for r in rows)
        unseen = "" if seen else "no image of the dataset shows these classes: dataset=imagenet dataset.path=FOLDER"
        claims = [
            Claim("Z-1-a", [high], reason=unseen),
            Claim("Z-1-b", [fails, knows]),
            Claim("Z-1-c", decay),
            Claim("Z-1-d", natural),
            Claim("Z-1-e", abstract, reason=unseen),
            Claim("Z-1-f", prior if self.generator else [], reason=lacking),
        ]
        of = another_network(results, "AlexNet", rows[0]["weights"])
        differences = [*of, f"a second network, {rows[0]['judge']}, instead of human observers"]
        noise = Compared(
            f"{METRIC}, {none} - all", column("high", none) - column("high", "all"), above(0),
            null=column("high", none) - column("high", "shuffled"), control="random signs",
        )  # fmt: skip
        sentence = "All regularisers together leave less noise than none."
        return [
            *replicated(claims, differences, on_digits(results.config)),
            Claim("regularised", [noise], sentence=sentence, source="Introduction, Eqs. 1 to 3"),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, seed = results.config, results.config.seed
        rows: list[PanelRow] = []
        for target in list(dict.fromkeys(r["target"] for r in results.rows()))[: self.rows]:
            panels = []
            for name in dict.fromkeys(r["column"] for r in results.rows()):
                (row,) = results.rows(target=target, column=name, seed=seed)
                note = f"P = {row['p']:.3f}\njudge {row['judge p']:.3f}"
                panels.append(Panel(display.picture(results.arrays[f"{target}/{name}"]), "" if rows else name, note))
            rows.append(PanelRow(panels, str(row["class"])))
        words = [f"{name}: {_words(each)}" for name, each in self.columns.items()]
        caption = [
            f"{config.model.name}, {results.rows()[0]['weights']}: images that maximise the logit of a class, after {self.steps} "
            f"steps of {self.eta} from random pixels",
            f"P: the class's probability; judge: by a second network, {results.rows()[0]['judge']}. Shuffled: a control, L2 with "
            "gradients of random signs; generator: Eq. 4",
            "The paper prints that without a regulariser images are interpretable, and means the opposite",
            "; ".join(words[1:]),
        ]
        return {"figure": panel_grid(rows, caption)} | (
            {"generator": self._compared(results)} if self.generator else {}
        )

    def _compared(self, results: Results) -> Figure:
        """Draw the paper's Figure 1 over its Figure 2: each class by regularised pixels, and through the generator."""
        targets = list(dict.fromkeys(r["target"] for r in results.rows()))
        rows: list[PanelRow] = []
        for name in (next(iter(self.columns)), "all", "generator"):
            panels = []
            for target in targets:
                (row,) = results.rows(target=target, column=name, seed=results.config.seed)
                title = "" if rows else str(target)
                panels.append(
                    Panel(display.picture(results.arrays[f"{target}/{name}"]), title, f"{row['judge p']:.2f}")
                )
            rows.append(PanelRow(panels, name))
        caption = [
            f"{results.config.model.name}: images that maximise the logit of a class, by Eq. 3 without and with all "
            "regularisers, as in the paper's Figure 1, and by Eq. 4 through a generator trained here, as in its Figure 2",
            "Under each: the probability that a second network, trained apart, gives to the class",
        ]
        return panel_grid(rows, caption)


def _words(regulariser: Regulariser) -> str:
    """Name the parameters that differ from no regulariser."""
    values = {key: value for key, value in vars(regulariser).items() if value and key != "blur_every"}
    if "blur" in values:
        values["blur"] = f"{regulariser.blur} every {regulariser.blur_every} steps"
    return ", ".join(f"{key} {value}" for key, value in values.items())


def seen_by(judge: Model, pixels: Tensor) -> Tensor:
    """Return the probabilities [B, K] that another network gives to pixels [B, C, H, W] in [0, 1], at its own size."""
    own = next(judge.net.parameters())
    x = F.interpolate(pixels.to(own), judge.input_size, mode="bilinear", antialias=True).clamp(0, 1)
    x = metrics.luma(x) if judge.channels < x.shape[1] else x.expand(-1, judge.channels, -1, -1)
    with evaluating(judge.net), torch.no_grad():
        return judge.net(preprocessing(judge.preprocess)(x)).softmax(1).double().cpu()
