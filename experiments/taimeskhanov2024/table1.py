"""taimeskhanov2024, Table 1 and Figures 7 to 9: the activity of CAMs where the masked VGG provably cannot see.

"We observe that every CAM-based methods, except HiResCAM, highlights unseen parts of an image to some extent. Moreover,
the observation are consistent over both datasets." A constant map has mu x 100 = 49, less than EigenCAM's 51.7.

The paper's numbers come from its published weights and images (`model.weights=params_vgg16_masked.pt
experiment.datasets.mix.path=... experiment.datasets.gen.path=...`). With `preset=small` the masked CNN that the project
trains itself on stacked digits takes their place, and the claims are its own.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from experiments.wall_check import WallCheck, activity, datasets
from vis.oldclaims import Claim, Criterion, Origin, above, mean, spread
from vis.runner.experiment import Run, Task, method_title
from vis.store.run_folder import Results

PAPER = {  # Table 1: method -> dataset -> (mean, standard deviation) of mu x 100
    "gradcam": {"mix": (22.7, 13.4), "gen": (21.6, 11.6)},
    "gradcam_pp": {"mix": (28.8, 8.1), "gen": (28.5, 7.9)},
    "xgradcam": {"mix": (23.8, 9.0), "gen": (22.8, 9.0)},
    "scorecam": {"mix": (19.9, 10.3), "gen": (18.5, 10.6)},
    "opticam": {"mix": (32.7, 7.9), "gen": (32.0, 7.8)},
    "ablationcam": {"mix": (21.0, 9.9), "gen": (20.8, 9.6)},
    "eigencam": {"mix": (51.7, 19.7), "gen": (55.8, 21.6)},
    "hirescam": {"mix": (0.0, 0.0), "gen": (0.0, 0.0)},
}
IMAGES = 100
SEES = "every CAM-based methods, except HiResCAM, highlights unseen parts of an image to some extent ({})"
AVOIDS = "HiResCAM avoids this problem"
VALUE = "{}: mu x 100 = {} ± {} on {}"
NAMES = {"mix": "STACK-MIX", "gen": "STACK-GEN"}
SOURCE, METRIC = "Table 1, section 3.3", "mu of min-max scaled maps"
ZERO = Criterion("each exactly 0", lambda values: all(v == 0 for v in values))
LAYER = "Beyond the paper: LayerCAM, whose weights are of each position as HiResCAM's are, avoids it too."
WORSE = "Beyond the paper: EigenCAM's maps are no better than a constant one."


class Table1(WallCheck):
    """Measure mu of CAMs. samples: images of each dataset whose maps are kept; datasets: {name: config node}, mix and gen."""

    def tasks(self, run: Run) -> Sequence[Task]:
        run.require_model()
        return super().tasks(run)

    def paper(self, method: str, dataset: str) -> tuple[float, float] | None:
        return PAPER.get(method, {}).get(dataset)

    def claims(self, results: Results) -> list[Claim]:
        network = results.rows("network")[0]
        own = [r for r in results.rows("network") if r["dataset"] not in NAMES]
        reason = "" if network["trained"] else "random weights"
        if network["standin"] or own:
            reason = "stand-in weights, not the paper's" if network["standin"] else "not the paper's images"
        found = self.wall_claims(results)
        constant = math.sqrt((network["rows"][1] - network["rows"][0] + 1) / network["height"])

        def claim(name: str, sentence: str, criterion: Criterion, method: str, origin: Origin = "project") -> Claim:
            mu, zeros = activity(results, method, "mu_minmax")
            why = (reason if origin == "paper" else "") or ("" if mu else f"all {zeros} maps are 0")
            why = why if method in results.config.methods else f"{method} is not among this run's methods"
            claim = Claim(name, sentence, source=SOURCE, metric=METRIC, criterion=criterion, origin=origin)
            return replace(claim, values=mu, reason=why)

        sees = {m: (SEES.format(method_title(results.config, m)), above(0.1)) for m in PAPER}
        sees |= {"hirescam": (AVOIDS, ZERO)}
        found += [claim(m, sentence, criterion, m, "paper") for m, (sentence, criterion) in sees.items()]
        for method, (sentence, criterion) in sees.items() if reason else ():
            found.append(claim(f"here_{method}", f"Here: {sentence}", criterion, method))
        found += [
            claim("layercam", LAYER, ZERO, "layercam"),
            claim("eigencam_constant", WORSE, above(constant), "eigencam"),
        ]
        found += [self._value(results, m, d, reason) for d in datasets(results) for m in PAPER if d in PAPER[m]]
        return found

    def _value(self, results: Results, method: str, dataset: str, reason: str) -> Claim:
        """Compare the paper's mean with the measured one, by the standard errors of both."""
        value, deviation = PAPER[method][dataset]
        mu = [100 * v for v in activity(results, method, "mu_minmax", dataset)[0]]

        def agrees(values: Sequence[float]) -> bool:
            ours = spread(values) ** 2 / len(values) if len(values) > 1 else 0.0
            return abs(mean(values) - value) <= 3 * math.sqrt(ours + deviation**2 / IMAGES) + 0.05

        reason = reason if method in results.config.methods else f"{method} is not among this run's methods"
        sentence = VALUE.format(method_title(results.config, method), value, deviation, NAMES[dataset])
        criterion = Criterion("within 3 standard errors of the paper's mean", agrees)
        return Claim(
            f"{method}_{dataset}",
            sentence,
            source="Table 1",
            metric="mu x 100, min-max",
            criterion=criterion,
            values=mu,
            paper=f"{value} ± {deviation}",
            reason=reason,
        )


class Gallery(Table1):
    """Draw Figures 7 to 9: the maps of a few images side by side, with the dead zone hatched."""

    def tasks(self, run: Run) -> Sequence[Task]:
        """Return only the images of each dataset that the figure shows."""
        found = []
        for task in super().tasks(run):
            kept = [i for i in task["images"] if i < self.samples]
            found += [{**task, "images": kept}] if kept else []
        return found

    def claims(self, results: Results) -> list[Claim]:
        return [c for c in super().claims(results) if not c.name.endswith(("_mix", "_gen"))]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        figures: dict[str, Any] = {
            f"figure_{name}" if len(datasets(results)) > 1 else "figure": self.gallery(results, name)
            for name in datasets(results)
        }
        return figures
