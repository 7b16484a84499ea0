"""ayyar2021, section 5.3: what FEM supposes of feature maps and filters, and what it leaves out.

share      of positions with a value of at least mu + sigma, mean over an image's maps that are not constant; a Gaussian: .159
skewness   of these maps; a Gaussian: 0. Control: exponential numbers in maps of the same size
change     |difference| / |map| of maps of the network and of one whose classification part has its weights shuffled, and of
           maps of two classes
pyramid    |difference| / |image| of Gaussian filters with a kind of pooling from the third level of a Gaussian pyramid
low        |sum w| / sum |w| of the 3x3 kernels of the last layer that has such, mean over a filter's inputs: 0 for a high-pass
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy import ndimage, stats
from torch import Tensor, nn

from experiments.ayyar2021.verdicts import on_trained, other_weights
from vis.claims import Claim, Column, Compared, Rule, below, exactly, mean, near, replicated
from vis.figures.layout import plot, styled
from vis.methods import FEM
from vis.methods.forward import Forward
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results

RARE = stats.norm.sf(1)  # .159, the share of a Gaussian above mu + sigma
BINOMIAL = np.array([1.0, 4, 6, 4, 1]) / 16
POOLINGS = ("subsampling", "average", "maximum")
BINS = np.linspace(-2, 6, 41)


class Fem(Experiment):
    """Measure the features, filters and classes that FEM rests on. The run needs the methods fem and gradcam."""

    metrics = ("share", "skewness")

    def tasks(self, run: Run) -> Sequence[Task]:
        run.require_methods("fem", "gradcam")
        return [{"images": images} for images in run.batches(len(run.dataset), 4)]

    def load(self, run: Run, task: Task) -> Load:
        return Load(run.config.model, run.config.seed, len(task["images"]), 3 * run.passes, 0)

    def compute(self, run: Run, task: Task) -> Output:
        model, first = run.model(), task["images"][0] == 0
        batch = run.batch(model, task["images"])
        (layer,) = run.methods["fem"].layers(model.net, batch.x)
        shuffled, features = without_classifier(model.net, batch.x, layer, run.config.seed)
        (own, other), logits = run.explain(model, batch.x, [None, run.model().net(batch.x).argsort(1)[:, -2].tolist()])
        targets = logits.argmax(1).tolist()
        found: dict[str, Tensor] = {}
        for name in ("fem", "gradcam"):
            after = run.methods[name](shuffled, batch.x, targets, run.preprocess(model)).cpu()
            found |= {f"{name}_shuffled": change(own[name], after), f"{name}_class": change(own[name], other[name])}
        rows = []
        for i, image in enumerate(batch.names):
            row: dict[str, Any] = {"image": image, "weights": model.weights}
            row |= {name: values[i].item() for name, values in found.items()}
            rows.append(row | of_features(features[i], run.config.seed) | pyramid(batch.pixels[i].mean(0).double()))
        output = Output(
            {f"{image}/histogram": histogram(f) for image, f in zip(batch.names, features, strict=True)},
            {"table": rows},
        )
        if first:
            output.tables["filters"] = filters(model.net, run.config.seed)
            output.tables["dimensions"] = [{"dimensions": n, "runs": runs(n)} for n in (2, 3)]
        return output

    # --- from what is stored ------------------------------------------------------------------------------------------

    def claims(self, results: Results) -> list[Claim]:
        def one(words: str, name: str, rule: Rule, null: str | float, control: str) -> Compared:
            own, other = (Column(results.rows(), str(key), "image") for key in (name, null))
            return Compared(words, own, rule, null=other if isinstance(null, str) else null, control=control)

        share, exponential = "share of a feature map's positions at or above μ + σ", "exponential numbers"
        gaussian = [
            one(share, "share", near(RARE, 0.01, ours="the tolerance is ours"), "share_exponential", exponential),
            one("skewness of the feature maps", "skewness", near(0, 0.5, ours="the tolerance is ours"), "skewness_exponential",
                exponential),
        ]  # fmt: skip
        unseen = [
            one(f"|change| / |map| of FEM, {words}", f"fem_{name}", exactly(0), f"gradcam_{name}", "Grad-CAM")
            for name, words in (("shuffled", "the classification part shuffled"), ("class", "another class"))
        ]
        same = [
            one(
                f"|difference from a Gaussian pyramid| / |it|, {pooling}",
                pooling,
                exactly(0, 1e-12),
                POOLINGS[-1],
                "max-pooling",
            )
            for pooling in POOLINGS
        ]
        kernels = results.rows("filters")
        low = Column(kernels, "low", "filter") - Column(kernels, "low_random", "filter")
        derivative = Compared("|Σw| / Σ|w| of each filter of the last 3x3 layer - of Gaussian weights", low, below(0), null=0.0,
                              control="Gaussian weights: 0")  # fmt: skip
        run = Column(results.rows("dimensions"), "runs", "dimensions")
        any_size = Compared("1 if FEM runs on a network for images in 2D, 3D and is not constant", run, exactly(1), null=0.0,
                            control="it does not run: 0")  # fmt: skip
        return [
            *on_trained(results, [
                Claim("A-5.3-a", gaussian),
                Claim("A-5.3-b", [one(share, "share", below(RARE), 0.5, "the most that is possible: 1/2")]),
                Claim("A-5.3-e", [derivative]),
            ]),
            *replicated([Claim("A-5.3-f", unseen)], other_weights(results, results.rows()[0]["weights"])),
            Claim("A-5.3-d", same), Claim("A-5.3-g", [any_size]),
        ]  # fmt: skip

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rows, config = results.rows(), results.config
        counts = np.sum([results.arrays[f"{row['image']}/histogram"] for row in rows], 0)
        caption = [
            f"Left: values of the feature maps that FEM uses, standardised map by map, {len(rows)} images; line: a Gaussian. "
            f"Above 1: {mean([row['share'] for row in rows]):.1%}, a Gaussian {RARE:.1%}",
            "Right: filters of the last 3x3 convolution; 0 is a high-pass, 1 has weights of one sign",
            f"{config.model.name}, {rows[0]['weights']}",
        ]
        figure, (values, kernels) = plot(6.0, 2.4, caption, columns=2)
        with styled():
            widths, middle = np.diff(BINS), (BINS[1:] + BINS[:-1]) / 2
            values.bar(middle, counts / counts.sum() / widths, widths, color="C0")
            values.plot(middle, stats.norm.pdf(middle), color="black", linewidth=1)
            values.axvline(1, color="C1", linewidth=1)
            values.set(xlabel=r"$(A - \mu_k)\,/\,\sigma_k$", ylabel="density", yscale="log", ylim=(1e-4, None))
            own, random = ([row[name] for row in results.rows("filters")] for name in ("low", "low_random"))
            bins = np.linspace(0, max([*own, *random, 0.01]), 30)
            kernels.hist([own, random], bins, histtype="step", label=["this network", "Gaussian weights"])
            kernels.set(xlabel=r"$|\Sigma w|\,/\,\Sigma |w|$", ylabel="filters")
            kernels.legend()
        return {"figure": figure}


# --- what is measured ---------------------------------------------------------------------------------------------------


def without_classifier(net: nn.Module, x: Tensor, layer: str, seed: int) -> tuple[nn.Module, Tensor]:
    """Return a copy of a network with the weights behind a layer shuffled, and the layer's output in float64 on the CPU.

    The last parameters are behind the layer, up to the first that changes its output.
    """
    other, generator = copy.deepcopy(net).requires_grad_(False), torch.Generator().manual_seed(seed)

    def features(images: Tensor) -> Tensor:
        with Forward(other, images, [layer]) as forward:
            return forward.layers[layer].detach()

    own = features(x)
    for parameter in reversed(list(other.parameters())):
        kept = parameter.data
        parameter.data = kept.flatten()[torch.randperm(kept.numel(), generator=generator).to(kept.device)].view_as(kept)
        if not torch.equal(features(x), own):
            parameter.data = kept
            break
    return other, own.cpu().double()


def change(a: Tensor, b: Tensor) -> Tensor:
    """Return |a - b| / |a| of maps [B, ...]; 0 for two maps of zeros."""
    a, b = (maps.double().flatten(1) for maps in (a, b))
    return (a - b).norm(dim=1) / a.norm(dim=1).clamp(min=torch.finfo(a.dtype).tiny)


def live(features: Tensor) -> np.ndarray:
    """Return the maps [V, h, w] that are not constant, flat: [V', h w]."""
    flat = features.flatten(1).numpy()
    return flat[flat.std(1) > 1e-9 * np.abs(flat).max()]


def of_features(features: Tensor, seed: int) -> dict[str, float]:
    """Return the share above mu + sigma and the skewness of feature maps, and of exponential numbers in their place."""
    maps, found = live(features), dict[str, float]()
    for name, values in (("", maps), ("_exponential", np.random.default_rng(seed).exponential(size=maps.shape))):
        above = values >= values.mean(1, keepdims=True) + values.std(1, keepdims=True)
        found |= {f"share{name}": float(above.mean()), f"skewness{name}": float(stats.skew(values, 1).mean())}
    return found


def histogram(features: Tensor) -> np.ndarray:
    """Count the standardised values of maps in BINS; what lies beyond counts in the outermost."""
    maps = live(features)
    standard = (maps - maps.mean(1, keepdims=True)) / maps.std(1, keepdims=True)
    return np.histogram(standard.clip(BINS[0], BINS[-1]), BINS)[0]


def pyramid(gray: Tensor, levels: int = 3) -> dict[str, float]:
    """Return how far a CNN of Gaussian filters, with each kind of pooling, is from the pyramid of Burt & Adelson, of [H, W]."""
    level = gray.numpy()
    for _ in range(levels):
        for axis in (0, 1):
            level = ndimage.convolve1d(level, BINOMIAL, axis, mode="mirror")
        level = level[::2, ::2]
    kernel = torch.from_numpy(np.outer(BINOMIAL, BINOMIAL))[None, None]
    found = {}
    for pooling in POOLINGS:
        maps = gray[None, None]
        for _ in range(levels):
            maps = F.conv2d(F.pad(maps, (2, 2, 2, 2), mode="reflect"), kernel)
            if pooling == "subsampling":
                maps = maps[..., ::2, ::2]
            else:
                pool = F.avg_pool2d if pooling == "average" else F.max_pool2d
                maps = pool(maps, 2, ceil_mode=True)
        found[pooling] = float(np.linalg.norm(maps[0, 0].numpy() - level) / np.linalg.norm(level))
    return found


def filters(net: nn.Module, seed: int) -> list[dict[str, float]]:
    """Return |sum w| / sum |w| of each filter of the last convolution with 3x3 kernels or larger, and of Gaussian weights."""
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d) and min(m.kernel_size) >= 3]
    if not layers:
        return []
    own = layers[-1].weight.detach().cpu().double()
    random = torch.randn(own.shape, generator=torch.Generator().manual_seed(seed), dtype=own.dtype)
    low, low_random = ((w.sum((2, 3)).abs() / w.abs().sum((2, 3))).nanmean(1).tolist() for w in (own, random))
    return [{"filter": i, "low": a, "low_random": b} for i, (a, b) in enumerate(zip(low, low_random, strict=True))]


def runs(dimensions: int) -> float:
    """Return 1 if FEM explains a small random network for images in 2D, or in 3D (video), by a map that is not constant."""
    Conv, Pool = (nn.Conv2d, nn.AdaptiveAvgPool2d) if dimensions == 2 else (nn.Conv3d, nn.AdaptiveAvgPool3d)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(Conv(1, 4, 3), nn.ReLU(), Conv(4, 4, 3), nn.ReLU(), Pool(1), nn.Flatten(), nn.Linear(4, 3))
        x = torch.rand(1, 1, *[12] * dimensions)
    try:
        map_ = FEM()(net, x, [0])
    except Exception:  # any failure is the answer
        return 0.0
    return float(map_.shape == x.shape and map_.std() > 0)
