"""zhou2018, Eqs. (37) and (38): the first-order Taylor expansion of the probability, against the true difference.

    P(c|x) - P(c|x')  =  g^T (x - x')  +  second order,      g = dP(c|x)/dx                        (38)

x' is the image with a window replaced by its conditional mean. Along the way x + s (x' - x) the remainder falls with the
square of s, in float64, where P is differentiable. On a clean digit P is not: in the flat background a max-pooling has many
equal inputs, of which autograd takes one, so the remainder is of first order. A little noise breaks the ties. At s = 1, where
Algorithm 3 uses the expansion, its accuracy is measured over the windows of an image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.zhou2018.evidence import chosen_class, learn, learnt
from experiments.zhou2018.setting import another_network
from vis.claims import Claim, Column, Compared, Rule, above, at_small_sizes, below, near, replicated
from vis.figures.layout import plot, styled
from vis.methods.forward import Forward
from vis.methods.perturbation import cut
from vis.methods.target import Target
from vis.runner.experiment import Experiment, Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

ROUNDING = 1e-14  # of differences of probabilities, in float64
FLAT = "P has no gradient at a digit with a flat background; max-pooling is not differentiable at equal inputs."


class Taylor(Experiment):
    """Measure the remainder.

    steps: the s; windows: windows of an image, evenly spread; noise: standard deviations of the noise added to an image.

    own_images: see EvidenceMaps.
    """

    def __init__(self, steps: Sequence[float], windows: int, noise: Sequence[float], own_images: bool) -> None:
        self.steps, self.windows, self.noise, self.own_images = steps, windows, noise, own_images

    def tasks(self, run: Run) -> Sequence[Task]:
        run.require_model()
        return [{"images": [i], "noise": noise} for i in range(len(run.dataset)) for noise in self.noise]

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        batch = run.batch(model, task["images"])
        random = torch.Generator().manual_seed(run.config.seed)
        batch.x = batch.x + task["noise"] * torch.randn(batch.x.shape, generator=random).to(batch.x)
        learn(run, model, self.own_images)
        method: Any
        (method,) = run.methods.values()  # a method that explains by windows
        c, logits = chosen_class(run, model, batch)
        with Forward(model.net, batch.x) as forward:
            g = forward.gradient(Target(c, output="prob"))[0].cpu()
        x, k = batch.x[0].cpu(), method.window
        windows = method.windows(x)
        some = windows[np.linspace(0, len(windows) - 1, min(self.windows, len(windows))).astype(int)]
        means = method.learnt.means(x, some, k)
        output = Output(tables={"table": []})
        for (top, left), mean, old, slopes in zip(some.tolist(), means, cut(x, some, k), cut(g, some, k), strict=True):
            images = x.repeat(len(self.steps), 1, 1, 1)
            for image, s in zip(images, self.steps, strict=True):
                image[:, top : top + k, left : left + k] = old + s * (mean - old)
            with torch.no_grad():
                p = model.net(images.to(batch.x)).double().softmax(1)[:, c].cpu()
            linear = float((slopes.double() * (old - mean)).sum())
            for s, q in zip(self.steps, p.tolist(), strict=True):
                row = {"image": batch.names[0], "noise": task["noise"], "top": top, "left": left, "step": s}
                output.tables["table"].append(row | {"true": float(logits.softmax(0)[c]) - q, "linear": s * linear})
        output.tables["images"] = [
            {"image": batch.names[0], "class": model.class_name(c), "p": float(logits.softmax(0)[c])}
            | {"weights": model.weights, **learnt(run, model, self.own_images)}
        ]
        return output

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the power of the step in the remainder of each image, and how well the linear term predicts over windows."""
        rows: Rows = []
        for image in dict.fromkeys(r["image"] for r in results.rows()):
            powers = {f"power {n:g}": power(results, image, n, *sorted(self.steps)[:2]) for n in self.noise}
            whole = results.rows(image=image, noise=self.noise[0], step=1.0)
            true, linear = (np.array([r[name] for r in whole]) for name in ("true", "linear"))
            other = np.random.default_rng(0).permutation(linear)
            fits = {
                name: value for which, z in (("", linear), ("other ", other)) for name, value in fit(true, z, which)
            }
            rows.append({"image": image} | powers | fits)
        return {"summary": rows}

    def claims(self, results: Results) -> list[Claim]:
        def column(name: str) -> Column:
            return Column(results.rows("summary"), name, "image")

        flat, noisy = (column(f"power {n:g}") for n in (min(self.noise), max(self.noise)))
        metric = "power of the step in the remainder, median over the windows of an image"
        second = Compared(
            f"{metric}, noise of {max(self.noise):g}", noisy, near(2, 0.2, ours="0.2 is ours"),
            null=1.0, control="a kink, a remainder of first order",
        )  # fmt: skip
        first = Compared(
            f"{metric}, no noise", flat, near(1, 0.2), null=noisy, control="noise parts equal inputs of a max-pooling"
        )
        explained = "R² of the linear term for the true change over the windows of an image"
        control = "the linear terms of other windows"
        accurate = Compared(
            explained,
            column("R²"),
            above(0.9, 0.5, ours="the bounds are ours"),
            null=column("other R²"),
            control=control,
        )
        slope = Compared(
            "slope of the true change on the linear term", column("slope"), Rule(((0.9, 1.1),), ours="0.1 is ours"),
            null=column("other slope"), control=control,
        )  # fmt: skip
        inaccurate = Compared(
            explained, column("R²"), below(0.5, 0.9, ours="the bounds are ours"), null=1.0, control="a linear network"
        )
        of = another_network(results, "VGG-16", results.rows("images")[0]["weights"])
        small = at_small_sizes(results.config)
        flat_claim = Claim("flat", [first], sentence=FLAT, source="Eq. 37") if 0 in self.noise else None
        claims = [
            Claim("Z-F19-a", [second]),
            Claim("Z-F19-b", [accurate, slope], reason=small),
            Claim("Z-1-i", [inaccurate], reason=small),
        ]
        return [*replicated(claims, of), *filter(None, [flat_claim])]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        fact = results.rows("images")[0]
        images = list(dict.fromkeys(r["image"] for r in results.rows()))
        caption = [
            f"Eqs. 37 and 38 on {plural(len(images), 'image')} in {results.config.precision}. Left: the true difference "
            "of the probability against the linear one, a point for each window. Right: what remains between them (median over "
            "an image's windows) when a share s of the way is gone, without noise (red, first order) and with noise that parts "
            "equal inputs of a max-pooling (blue, second order); dashed: s and s²",
            f"{results.config.model.name}, {fact['weights']}; windows learnt from {fact['learnt_from']}",
        ]
        figure, (left, right) = plot(6.9, 2.6, caption, columns=2)
        with styled():
            for image in images:
                whole = results.rows(image=image, noise=self.noise[0], step=1.0)
                left.plot([r["linear"] for r in whole], [r["true"] for r in whole], ".", alpha=0.4)
                for noise, color in zip(self.noise, ("tab:red", "tab:blue"), strict=False):
                    rest = [remainder(results, image, noise, s) for s in self.steps]
                    right.plot(self.steps, rest, ".-", linewidth=0.8, color=color)
            top = max(remainder(results, image, noise, 1.0) for image in images for noise in self.noise)
            for order in (1, 2):
                right.plot(self.steps, [top * s**order for s in self.steps], "k--", linewidth=0.8)
            left.axline((0, 0), slope=1, color="0.7", linewidth=0.8)
            left.set(xlabel="gᵀ(x − x')", ylabel="P(c|x) − P(c|x')")
            right.set(xscale="log", yscale="log", xlabel="s", ylabel="remainder")
            left.locator_params(axis="x", nbins=4)
        return {"figure": figure}


def fit(true: np.ndarray, linear: np.ndarray, name: str) -> list[tuple[str, float | None]]:
    """Return R² and slope of the line through (linear, true); None where one of them is constant."""
    varies = true.std() > 0 and linear.std() > 0
    r = float(np.corrcoef(true, linear)[0, 1]) if varies else None
    slope = None if r is None else r * float(true.std() / linear.std())
    return [(f"{name}R²", None if r is None else r * r), (f"{name}slope", slope)]


def remainder(results: Results, image: str, noise: float, step: float) -> float:
    """Return the remainder of the expansion, the median over an image's windows."""
    return float(np.median(remainders(results, image, noise, step)))


def remainders(results: Results, image: str, noise: float, step: float) -> np.ndarray:
    """Return the remainder of each window."""
    return np.array([abs(r["true"] - r["linear"]) for r in results.rows(image=image, noise=noise, step=step)])


def power(results: Results, image: str, noise: float, small: float, large: float) -> float | None:
    """Return the power of the step with which the remainder grows between two steps, the median over windows.

    Windows whose remainder is below ROUNDING are left out; None if all are. The median ignores windows that cross a kink
    and grow faster.
    """
    p, q = (remainders(results, image, noise, step) for step in (small, large))
    above_rounding = p > ROUNDING
    if not above_rounding.any():
        return None
    return float(np.median(np.log(q[above_rounding] / p[above_rounding])) / np.log(large / small))
