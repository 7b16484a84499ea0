"""sixt2020: cosine similarity convergence through the layers of a network, with the sentences on it.

The rules are those of the project's specification of this paper, written before these runs:

    converges          |cos| of the channels at a position of the image has its interval above .99
    does not           it is below .99 at `layer`, a feature map near the image: at the image itself, three colours are too few
                       (the gradient of a trained network has .83 there, Gaussian vectors .5)
    as rank 1          |cos| of the whole maps is above .99 as well
    order of rules     1 - |cos| at `layer` rises from alpha1beta0 to alpha2beta1, alpha5beta4 and LRP-z
    the measure        over the methods, |cos| by position and as a whole have a rank correlation above .8 in each image

DeepLIFT and LRP-z divide relevance by differences of activations, some of which are near 0. A start from N(0, 1) is then
dominated by a few positions, so they also start from random multiples of the activation (`scaled`).

Three choices were made after a first run on few photographs: the order of rules compares log10(1 - |cos|), since differences of
1e-12 decide nothing; |cos| of whole maps from a convolution counts as "not rank 1" below .5; six images suffice for a verdict.
"""

import itertools
import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn

from experiments.convergence import CONVERGED, FLOOR, Convergence, title
from vis.claims import Claim, Column, Compared, above, below, near, on_digits
from vis.errors import UserError
from vis.methods.flow import IMAGE, LOGITS
from vis.models import resolve_layer
from vis.runner.experiment import Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

CONVERGING = (
    "gbp", "deconvnet", "rectgrad", "deep_taylor", "lrp_alpha1_beta0", "lrp_alpha2_beta1", "lrp_alpha5_beta4",
)  # fmt: skip
OTHERS = ("saliency", "lrp_z", "deeplift")
SLOWER = ("lrp_alpha1_beta0", "lrp_alpha2_beta1", "lrp_alpha5_beta4", "lrp_z")
SCALED = "multiples of the logits"
REPORTED = "Reported of the paper (VGG-16 and ResNet-50)"


class OfNetwork(Convergence):
    """Judge convergence in one network.

    layer: the feature map near the image. scaled: methods that also start from random multiples of the logits.
    """

    def __init__(
        self, starts: Sequence[str], layers: Sequence[str] | None, vectors: int, layer: str, scaled: Sequence[str] = ()
    ) -> None:
        super().__init__(starts, layers, vectors)
        self.layer, self.scaled = layer, list(scaled)
        if LOGITS not in self.starts:
            raise UserError(f"experiment.starts={list(starts)}: the sentences need {LOGITS} among them")

    def layers_of(self, net: nn.Module, image: Tensor) -> list[str]:
        return list(dict.fromkeys([*super().layers_of(net, image), resolve_layer(net, self.layer)]))

    def compute(self, run: Run, task: Task) -> Output:
        output = super().compute(run, task)
        if scaled := [method for method in self.scaled if method in run.methods]:
            model = run.model(seed=task["seed"])
            batch = run.batch(model, task["images"])
            rows = self.measured(run, model, batch, scaled, times_activation=True)
            output.tables["table"] += [
                {"seed": task["seed"], **r, "start": SCALED} for r in rows if r["start"] == LOGITS
            ]
        return output

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return beside the similarities at the image their rank correlation over the methods, and the distances at `layer`."""
        found: Rows = []
        for start in self.starts:
            rows = results.rows(start=start, layer=IMAGE)
            for seed, image in dict.fromkeys((row["seed"], row["image"]) for row in rows):
                own = [row for row in rows if (row["seed"], row["image"]) == (seed, image) and row["pos"] is not None]
                if len(own) > 2:
                    rho = float(spearmanr([row["pos"] for row in own], [row["flat"] for row in own]).statistic)
                    found.append({"seed": seed, "image": image, "start": start, "rank_correlation": rho})
        distances = [
            {
                "seed": r["seed"],
                "image": r["image"],
                "method": r["method"],
                "log10": math.log10(max(FLOOR, 1 - r["pos"])),
            }
            for r in results.rows(start=LOGITS, layer=self.layer)
            if r["pos"] is not None
        ]
        return super().summaries(results) | {"agreement": found, "distances": distances}

    def claims(self, results: Results) -> list[Claim]:
        methods = list(map(str, results.config.methods))
        model = results.config.model
        reason = on_digits(results.config) if model.get("weights") else ""
        network = f"{model.name}, {'trained' if model.get('weights') else 'random weights'}"
        found = [
            *self._convergence(results, methods),
            *self._rank_one(results, methods),
            *self._gradient(results, methods),
            *self._deeplift(results, methods),
            *self._order(results, methods),
            *self._measure(results),
        ]
        return [
            Claim(c.id, c.compared, sentence=f"{c.sentence} ({network})", source=c.source, reason=reason) for c in found
        ]

    def _convergence(self, results: Results, methods: list[str]) -> list[Claim]:
        claims = []
        for method in methods:
            name = title(results.config, method)
            if method in CONVERGING:
                sentence = f"The relevance of {name} converges: the cosine similarity at the image is above .99."
                compared = self.compared(results, "pos", method, above(CONVERGED))
            elif method in OTHERS:
                sentence = f"The relevance of {name} does not converge."
                compared = self.compared(results, "pos", method, below(CONVERGED), layer=self.layer)
                compared = Compared(compared.metric, compared.column, compared.rule, null=1.0, control="rank 1")
            else:
                continue
            claims.append(Claim(f"S2_{method}", [compared], sentence=sentence, source=REPORTED))
        return claims

    def _rank_one(self, results: Results, methods: list[str]) -> list[Claim]:
        if "lrp_alpha1_beta0" not in methods:
            return []
        whole = self.compared(results, "flat", "lrp_alpha1_beta0", above(CONVERGED))
        sentence = (
            "The product of the z+ rule's matrices, from the logits to the image, has rank 1: all maps are alike."
        )
        claims = [Claim("S1b", [whole], sentence=sentence, source="Reported of the abstract")]
        for start in (each for each in self.starts if each != LOGITS):
            by_position, whole = (
                self.compared(results, name, "lrp_alpha1_beta0", rule, start)
                for name, rule in (("pos", above(CONVERGED)), ("flat", below(0.5, ours="ours")))
            )
            one = Compared(whole.metric, whole.column, whole.rule, null=1.0, control="rank 1")
            sentence = (
                f"From {start} the z+ rule gives each position one direction of channels, with a strength that depends on the "
                "relevance: the map does not have rank 1."
            )
            claims.append(Claim(f"S1b_{start}", [by_position, one], sentence=sentence, source="The project"))
        return claims

    def _gradient(self, results: Results, methods: list[str]) -> list[Claim]:
        if "saliency" not in methods:
            return []
        rules = (("pos", near(0.5, 0.03)), ("flat", below(0.1)))
        compared = [self.compared(results, name, "saliency", rule) for name, rule in rules]
        compared = [Compared(c.metric, c.column, c.rule, null=1.0, control="rank 1") for c in compared]
        return [Claim("S3", compared, sentence="The gradient does not converge: its maps are as unlike as Gaussian vectors.",
                      source=REPORTED)]  # fmt: skip

    def _deeplift(self, results: Results, methods: list[str]) -> list[Claim]:
        claims = []
        for method in (each for each in self.scaled if each in methods):
            compared = [
                Compared(c.metric, c.column, c.rule, null=1.0, control="rank 1")
                for c in (self.compared(results, "flat", method, below(CONVERGED), start) for start in (LOGITS, SCALED))
            ]
            sentence = (
                f"{title(results.config, method)}'s maps do not converge, whether they start from N(0, 1) or from random "
                "multiples of the logits."
            )
            claims.append(Claim(f"S7_{method}", compared, sentence=sentence, source=REPORTED))
        return claims

    def _order(self, results: Results, methods: list[str]) -> list[Claim]:
        shown = [method for method in SLOWER if method in methods]
        logs = {
            method: Column(results.rows("distances", method=method), "log10", self.column(results, "pos", method).per)
            for method in shown
        }
        compared = [
            Compared(f"log10 of 1 - |cos| of the channels at {self.layer}, {title(results.config, more)} - "
                     f"{title(results.config, less)}", logs[more] - logs[less], above(0), null=0.0, control="no difference")
            for less, more in itertools.pairwise(shown)
        ]  # fmt: skip
        sentence = "More negative relevance slows the convergence: alpha1beta0, alpha2beta1, alpha5beta4, LRP-z, in this order."
        return [Claim("S8", compared, sentence=sentence, source=REPORTED)] * bool(compared)

    def _measure(self, results: Results) -> list[Claim]:
        claims = []
        for start in self.starts:
            rows = results.rows("agreement", start=start)
            unit = "seed" if len({row["seed"] for row in rows}) > 1 else "image"
            compared = Compared(f"rank correlation over the methods, from {start}", Column(rows, "rank_correlation", unit),
                                above(0.8), null=0.0, control="unrelated measures")  # fmt: skip
            sentence = f"From {start}, cosine similarity by position ranks the methods as that of the whole maps does."
            claims.append(Claim(f"S10_{start}", [compared], sentence=sentence, source="The project"))
        return claims

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        figures = super().draw(results, claims)
        return figures | ({"scaled": self._curves(results, SCALED)} if results.rows(start=SCALED) else {})
