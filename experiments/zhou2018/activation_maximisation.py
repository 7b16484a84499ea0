"""zhou2018, Eqs. (1) to (3), introduction: the image that maximises a class of a network, with and without regularisers.

    x* = argmax a_i(x; theta)                          ||x|| = p                                                    (1)
    x* = argmax a_i(x; theta) - lambda ||x||_2^2                                                                    (2)
    x <- r_theta(x + eta da_i/dx)                                                                                   (3)

r is one of Yosinski et al. 2015: L2 decay (the step of Eq. 2), Gaussian blur, clipping of pixels with a small norm or a small
contribution |sum over channels of x da_i/dx| to 0; or all of them. Jitter (the image is shifted at random for each step) is
not in the paper, but commonly used with them today. a_i is the logit. A step has the size eta regardless of the gradient's
size, and pixels stay in [0, 1], which bounds x instead of ||x|| = p, so that the figure shows what the network saw.

Eq. (4), which optimises the input of a generator of natural images (Nguyen et al. 2016), is not implemented: it needs that
generator's trained weights.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from vis import metrics
from vis.config.instantiate import construct
from vis.data import Preprocess, preprocessing
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.graph.modes import evaluating
from vis.oldclaims import POSITIVE, Claim, above, other_network, paper_and_here
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.system.console import progress

PAPER = {"arch": "alexnet", "input_size": 224}  # "an 8-layer CNN"
INTERPRETABLE = "With this small change [L2 regularisation], gradient ascent generates more interpretable images"
NATURAL = "a combination of these regularizers has shown to produce the most natural images"
MAXIMISED = "The aim is to maximize the activation of a neuron"
METRIC = "share of the energy in high frequencies"


@dataclass(frozen=True)
class Regulariser:
    """r_theta of Eq. (3).

    decay: share of x that a step removes. blur: standard deviation in pixels, every `blur_every` steps. norm, contribution:
    share of pixels, those with the smallest norm or contribution, that a step clips to 0. jitter: in pixels.
    """

    decay: float = 0.0
    blur: float = 0.0
    blur_every: int = 4
    norm: float = 0.0
    contribution: float = 0.0
    jitter: int = 0

    def __post_init__(self) -> None:
        if not all(0 <= share < 1 for share in (self.decay, self.norm, self.contribution)):
            raise ValueError("decay, norm and contribution are shares: 0 or more, below 1")
        if min(self.blur, self.jitter) < 0 or self.blur_every < 1:
            raise ValueError("blur and jitter are 0 or more, blur_every is 1 or more")

    def __call__(self, x: Tensor, gradient: Tensor, step: int) -> Tensor:
        """Regularise an image [1, C, H, W] after step 0, 1, ..., given the gradient of that step."""
        x = (1 - self.decay) * x
        if self.blur and (step + 1) % self.blur_every == 0:
            x = blurred(x, self.blur)
        x = clipped(x, x.norm(dim=1, keepdim=True), self.norm)
        return clipped(x, (x * gradient).sum(1, keepdim=True).abs(), self.contribution)


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
    shifts = torch.randint(
        -regulariser.jitter, regulariser.jitter + 1, (steps, 2), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    with evaluating(net):
        for step, shift in enumerate(progress(shifts, steps, "steps", leave=False)):
            start = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(net(start.roll(shift, (2, 3)))[0, unit], start)
            rms = gradient.square().mean().sqrt()
            if not rms > 0:
                raise UserError(
                    f"class {unit} has no gradient at step {step}: another seed, or a smaller experiment.eta"
                )
            x = regulariser(x + eta * gradient / rms, gradient, step).clamp(low, high)
    return x.detach()


class ActivationMaximisation(Experiment):
    """Maximise classes under several regularisers.

    columns: {name: parameters of a Regulariser}, the first without any. The rows are the run's targets, at most `rows` drawn.
    """

    metrics = ("high", "variation", "p")
    series = "column"

    def __init__(self, columns: Mapping[str, Mapping[str, float]], steps: int, eta: float, rows: int) -> None:
        if len(columns) < 2 or eta <= 0:
            raise UserError("experiment.columns must be two or more, and experiment.eta above 0")
        self.columns: dict[str, Regulariser] = {
            name: construct({"_target_": f"{__name__}.Regulariser", **each}, f"experiment.columns.{name}")
            for name, each in columns.items()
        }
        self.steps, self.eta, self.rows = steps, eta, rows

    def tasks(self, run: Run) -> Sequence[Task]:
        run.require_model()
        if {"max", "random"} & set(map(str, run.targets)):
            raise UserError(
                "activation maximisation starts from no image, so target=max has no meaning: target=[0,1,2], or class names"
            )
        return [{"target": t, "column": c, "seed": s} for t in run.targets for s in run.seeds for c in self.columns]

    def load(self, run: Run, task: Task) -> Load:
        return Load(run.config.model, run.config.seed, self.steps, 1, 1)

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        (i,) = run.units_of(model, task["target"], [""]) or [0]
        preprocess = preprocessing(model.preprocess)
        noise = torch.rand(1, model.channels, *model.input_size, generator=torch.Generator().manual_seed(task["seed"]))
        x = preprocess((0.4 + 0.2 * noise).to(run.dtype)).to(run.device)  # "an image filled with random pixels"
        x = maximise(model.net, i, x, self.columns[task["column"]], preprocess, self.steps, self.eta, task["seed"])
        with torch.no_grad():
            logits = model.net(x)[0].double()
        gray = metrics.luma(x)
        rest = (gray - gray.mean()).square().sum()
        row = {**task, "class": model.class_name(i), "logit": logits[i].item(), "p": logits.softmax(0)[i].item()}
        row |= {"high": (metrics.high_pass(x).square().sum() / rest).item() if rest > 0 else math.nan}
        row |= {"variation": metrics.total_variation(x).item(), "weights": model.weights}
        pixels = preprocess.inverse(x).cpu()[0]
        drawn = task["seed"] == run.seeds[0] and task["target"] in run.targets[: self.rows]
        return Output({f"{task['target']}/{task['column']}": pixels.numpy()} if drawn else {}, {"table": [row]})

    # --- from what is stored ------------------------------------------------------------------------------------------

    def claims(self, results: Results) -> list[Claim]:
        high = {name: [r["high"] for r in results.rows(column=name)] for name in self.columns}
        first = next(iter(self.columns))

        def less(a: str, b: str) -> list[float]:
            return [p - q for p, q in zip(high[a], high[b], strict=True)]

        claim = partial(Claim, source="Introduction, Eqs. 1 to 3", criterion=POSITIVE)
        measured: list[Claim] = []
        if "L2" in high:
            measured.append(claim("l2", INTERPRETABLE, metric=f"{METRIC}, {first} - L2", values=less(first, "L2")))
        if "all" in high:
            best = [min(each) for each in zip(*(high[name] for name in high if name != "all"), strict=True)]
            measured += [
                claim(
                    "combination",
                    NATURAL,
                    metric=f"{METRIC}, the smallest of the other columns - all",
                    values=[a - b for a, b in zip(best, high["all"], strict=True)],
                ),
                claim(
                    "regularised",
                    "Beyond the paper: all regularisers together leave less noise than none",
                    metric=f"{METRIC}, {first} - all",
                    values=less(first, "all"),
                    origin="project",
                ),
            ]
        for name in self.columns:
            p = [r["p"] for r in results.rows(column=name)]
            metric = f"the class's probability, {name}"
            measured.append(claim(f"maximised_{name}", MAXIMISED, metric=metric, criterion=above(0.9), values=p))
        return paper_and_here(measured, other_network(results.config.model, PAPER))

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, seed = results.config, results.config.seed
        rows: list[PanelRow] = []
        for target in list(dict.fromkeys(r["target"] for r in results.rows()))[: self.rows]:
            panels = []
            for name in self.columns:
                (row,) = results.rows(target=target, column=name, seed=seed)
                note = f"P = {row['p']:.3f}\nhigh {row['high']:.3f}"
                panels.append(Panel(display.picture(results.arrays[f"{target}/{name}"]), "" if rows else name, note))
            rows.append(PanelRow(panels, str(row["class"])))
        words = [f"{name}: {_words(each)}" for name, each in self.columns.items()]
        caption = [
            f"{config.model.name}, {results.rows()[0]['weights']}: images that maximise the logit of a class, after {self.steps} "
            f"steps of {self.eta} from random pixels",
            f"High: {METRIC}; P: the class's probability",
            "; ".join(words[1:]),
        ]
        return {"figure": panel_grid(rows, caption)}


def _words(regulariser: Regulariser) -> str:
    """Name the parameters that differ from no regulariser."""
    values = {key: value for key, value in vars(regulariser).items() if value and key != "blur_every"}
    if "blur" in values:
        values["blur"] = f"{regulariser.blur} every {regulariser.blur_every} steps"
    return ", ".join(f"{key} {value}" for key, value in values.items())
