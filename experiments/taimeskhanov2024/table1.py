"""taimeskhanov2024, Table 1 and Figures 7 to 9: the activity of CAMs where the masked VGG provably cannot see.

"We observe that every CAM-based methods, except HiResCAM, highlights unseen parts of an image to some extent. Moreover,
the observation are consistent over both datasets." A constant map has mu x 100 = 49, less than EigenCAM's 51.7.

The paper's numbers come from its published weights and images (`model.weights=params_vgg16_masked.pt
experiment.unwalled.weights=params_vgg16_baseline.pt experiment.datasets.mix.path=... experiment.datasets.gen.path=...`), and the
weights are known by their accuracy on ImageNet (`experiment.imagenet=FOLDER`). On other networks and images the paper's sentences
are replicated; its numbers are not expected there.

The replication composes its images from photographs: below the wall lie the photograph's own middle rows (`same`), another
photograph (`different`), or gray. mu is above 0 with gray too, since maps are upsampled and their receptive fields reach into the
live rows. A method sees through the wall if its mu on `same` lies above that with gray.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy import stats

from experiments.taimeskhanov2024.masked_vgg import other_network
from experiments.wall_check import HIGHLIGHTED, IMAGE, WallCheck, datasets
from vis.claims import (
    Claim,
    Column,
    Compared,
    Rule,
    above,
    below,
    departures,
    exactly,
    interval,
    mean,
    near,
    on_digits,
    replicated,
    spread,
)
from vis.runner.experiment import Run, Task, method_title
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows, numbers

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
IDS = {
    "gradcam": "T-T1-gc", "gradcam_pp": "T-T1-gpp", "xgradcam": "T-T1-x", "scorecam": "T-T1-sc", "opticam": "T-T1-oc",
    "ablationcam": "T-T1-ac", "eigencam": "T-T1-ec",
}  # fmt: skip
CLASSES = {
    "gradcam": "GradCAM", "gradcam_pp": "GradCAMPlusPlus", "xgradcam": "XGradCAM", "scorecam": "ScoreCAM", "opticam": "OptiCAM",
    "ablationcam": "AblationCAM", "eigencam": "EigenCAM", "hirescam": "HiResCAM",
}  # fmt: skip
SETTINGS = {
    name: {"_target_": f"vis.methods.{class_}", "layer": None, "reshape": None, "convention": "table1"}
    | ({"iterations": 50, "lr": 0.1, "baseline": "black"} if name == "opticam" else {})
    | ({"sign": 1} if name == "eigencam" else {})
    for name, class_ in CLASSES.items()
}
NAMES, IMAGES = {"mix": "STACK-MIX", "gen": "STACK-GEN"}, 100
STACKS = {"same": "its own middle rows below", "different": "another photograph below", "gray": "gray below"}
THROUGH = 30  # photographs, the least for a method to be judged against gray; as the rule, fixed before the measurement
RATIO = "mu over that of a constant map"


class Table1(WallCheck):
    """Measure mu of CAMs.

    samples: images of each dataset whose maps are kept; datasets: {name: config node}, mix and gen; imagenet: the folder of
    ImageNet, on whose validation set the network's accuracy is measured.
    """

    not_drawn = ("eigencam_flipped", "opticam_start")
    rings = "Rings: the paper's values, of the masked VGG on STACK-MIX and STACK-GEN"

    def __init__(self, imagenet: str | None = None, **wall_check: Any) -> None:
        super().__init__(**wall_check)
        self.imagenet = imagenet

    def _validation(self, run: Run) -> Run:
        node = {"_target_": "vis.data.imagenet", "path": self.imagenet, "split": "val", "preprocess": "model"}
        return run.on({**node, "resize": None, "limit": None})

    def tasks(self, run: Run) -> Sequence[Task]:
        run.require_model()
        found = list(super().tasks(run))
        if self.imagenet:
            found += [{"validate": images} for images in run.batches(len(self._validation(run).dataset), 64)]
        return found

    def load(self, run: Run, task: Task) -> Any:
        return None if "validate" in task else super().load(run, task)

    def compute(self, run: Run, task: Task) -> Output:
        if "validate" not in task:
            return super().compute(run, task)
        model, _ = self._pair(run, run.seeds[0])
        batch = self._validation(run).batch(model, task["validate"])
        with torch.no_grad():
            right = (model.net(batch.x).argmax(1).cpu() == torch.tensor(batch.labels)).sum().item()
        return Output(tables={"validation": [{"images": len(batch.names), "correct": right}]})

    def paper(self, method: str, dataset: str) -> tuple[float, float] | None:
        return PAPER.get(method, {}).get("mix" if dataset == "same" else dataset)

    def summaries(self, results: Results) -> dict[str, Rows]:
        z: Rows = []
        printed: Rows = []
        found = datasets(results)
        means = [
            {"method": str(m), "dataset": d, "mu": mean(values)}
            for m in results.config.methods
            for d in found
            if (values := numbers(results.rows(method=m, dataset=d), self.mu))
        ]
        for method in PAPER:
            row: dict[str, Any] = {"method": method_title(results.config, method)}
            by_data = {d: numbers(results.rows(method=method, dataset=d), self.mu) for d in found}
            for name in dict.fromkeys([*found, *NAMES]):
                ours = [100 * v for v in by_data.get(name, [])]
                text = f"{mean(ours):.1f} ± {spread(ours):.1f}" if len(ours) > 1 else "-"
                value = self.paper(method, name)
                row[NAMES.get(name, "these images")] = f"{text} | {value[0]} ± {value[1]}" if value else text
            printed.append(row)
            mix, gen = (by_data.get(d, []) for d in NAMES)
            if len(mix) > 1 and len(gen) > 1:
                error = (spread(mix) ** 2 / len(mix) + spread(gen) ** 2 / len(gen)) ** 0.5
                z.append(
                    {
                        "method": method,
                        "difference": (mean(mix) - mean(gen)) / (error or 1),
                        "mix": mean(mix),
                        "gen": mean(gen),
                    }
                )
        correlation = (
            stats.spearmanr([r["mix"] for r in z], [r["gen"] for r in z]).statistic if len(z) == len(PAPER) else None
        )
        rank = [{"datasets": "mix, gen", "rank correlation": float(correlation)}] if correlation is not None else []
        if "gray" in found:
            printed = [self._row(results, str(m)) for m in results.config.methods if m != "opticam_start"]
        return super().summaries(results) | {"table1": printed, "means": means, "consistency": z, "ranks": rank}

    def _row(self, results: Results, method: str) -> dict[str, Any]:
        """Return a method's row of Table 1 for composed photographs: mu x 100 with the wall and its controls."""
        constant = 100 * results.rows("network")[0]["constant"]
        row: dict[str, Any] = {"method": method_title(results.config, method)}
        for dataset, words in STACKS.items():
            over, control = (self._column(results, method, f"{key}over constant", dataset) for key in ("", "unwalled "))
            row[words] = _printed(over, constant)
            if dataset == "same":
                row["images"] = len(over.values)
                row["without the wall"] = _printed(control, constant)
                row["with minus without"] = _printed(over - control, constant)
        value = self.paper(method, "mix")
        return row | {
            "constant map": f"{constant:.1f}",
            "paper, STACK-MIX": f"{value[0]} ± {value[1]}" if value else "-",
        }

    def claims(self, results: Results) -> list[Claim]:
        network, config = results.rows("network")[0], results.config
        validated = results.rows("validation")
        top1 = sum(r["correct"] for r in validated) / sum(r["images"] for r in validated) if validated else None
        other = other_network(config.model, network, top1)
        methods = departures(config.methods, SETTINGS)
        convention = [each for each in methods if each.endswith("convention = paper instead of table1")]
        if len(convention) == len(PAPER):
            methods = ["maps by the paper's definitions instead of the code behind its numbers"] + [
                each for each in methods if each not in convention
            ]
        exact = self._about_hirescam(results)
        trained = [*self._see_through(results), *self._datasets(results), *self._opticam(results)]
        values = [self._value(results, m, other) for m in IDS]
        return [
            *replicated(exact, [*other, *other_images(results), *methods]),
            *replicated(trained, [*other, *other_images(results), *methods], on_digits(config)),
            *replicated(values, [*other, *other_images(results)]),
            *self._own(results),
            *self._against_gray(results),
        ]

    def _column(self, results: Results, method: str, name: str, dataset: str | None = None) -> Column:
        """Return a column by image, of one dataset or of those that the paper's sentences are judged on."""
        of = [dataset] if dataset else ["same"] if "same" in datasets(results) else datasets(results)
        return Column([row for row in results.rows(method=method) if row["dataset"] in of], name, IMAGE)

    def _signs(self, method: str) -> list[str]:
        return [method, f"{method}_flipped"] if method == "eigencam" else [method]

    def _through(self, results: Results, method: str) -> list[Compared]:
        """Compare mu with its interval with gray below the wall; for both signs of EigenCAM, which have to agree."""
        title, found = method_title(results.config, method) if method in results.config.methods else method, []
        for name in self._signs(method):
            gray = self._column(results, name, "over constant", "gray")
            low, high = interval(gray.values) if len(gray.values) > 1 else (0.0, 0.0)
            rule = above(max(0.0, high), fails=low, least=THROUGH, ours="bounds: the 95 % interval with gray below")
            words = f"{title}{', other sign' * (name != method)}: {RATIO}"
            found.append(
                Compared(words, self._column(results, name, "over constant"), rule, null=gray, control="gray below")
            )
        return _agreeing(found)

    def _against_gray(self, results: Results) -> list[Claim]:
        """Judge each method by the photographs with gray below, and the maps of the same network without its wall."""
        network = results.rows("network")[0]
        if "gray" not in datasets(results):
            return []
        found = []
        for method in (m for m in IDS if m in results.config.methods):
            title = method_title(results.config, method)
            sentence = f"{title} sees through the wall: its mu is above that with gray in the unseen rows."
            compared = self._through(results, method)
            found.append(Claim(f"through_{method}", compared, sentence=sentence, source="The project"))
        if network["pooled"]:
            column = self._column(results, "gradcam", "r with unwalled")
            same = Compared("GradCAM: correlation of the maps with and without the wall", column, exactly(1, 1e-6),
                            null=self._column(results, "xgradcam", "r with unwalled"), control="XGradCAM")  # fmt: skip
            sentence = (
                "A wall behind a 1x1 convolution and a global pooling does not change GradCAM's map: it only changes a factor, "
                "the number of positions where the class map is positive."
            )
            found.append(Claim("gradcam_same", [same], sentence=sentence, source="The project"))
        return found

    def _see_through(self, results: Results) -> list[Claim]:
        """Judge that methods highlight what the network cannot see, HiResCAM excepted, and that they find it important."""
        title = {m: method_title(results.config, m) for m in PAPER}
        hirescam = {n: self._column(results, "hirescam", n) for n in ("highlighted", "over constant")}
        share = above(0.5, of="share", least=10, ours=f"highlighted: above {HIGHLIGHTED:g} of a constant map, ours")
        seen = [each for m in IDS for each in self._through(results, m)] if "gray" in datasets(results) else []
        highlights = seen or [
            Compared(f"{title[m]}: share of images where {RATIO} is above {HIGHLIGHTED:g}",
                     self._column(results, m, "highlighted"), share, null=hirescam["highlighted"], control="HiResCAM")
            for m in PAPER if m != "hirescam"
        ]  # fmt: skip
        twin = self._column(results, "hirescam", "unwalled over constant")
        nothing = Compared(
            f"HiResCAM: {RATIO}", hirescam["over constant"], exactly(0), null=twin, control="without the wall"
        )
        important = [
            Compared(f"{title[m]}: {RATIO}", self._column(results, m, "over constant"), above(0.25, ours="a quarter is ours"),
                     null=hirescam["over constant"] if m != "hirescam" else 0.0, control="HiResCAM")
            for m in PAPER
        ]  # fmt: skip
        return [Claim("T-3.3-a", [*highlights, nothing]), Claim("T-0-a", important, needs=5)]

    def _about_hirescam(self, results: Results) -> list[Claim]:
        """Judge that HiResCAM is 0 in the dead rows, and that its coefficients are the cause."""
        zero = self._column(results, "hirescam", "over constant")
        twin = self._column(results, "hirescam", "unwalled over constant")
        averaged = Compared(f"{RATIO}, gradients averaged over positions (GradCAM) minus HiResCAM's",
                            self._column(results, "gradcam", "over constant") - zero, above(0), null=0.0,
                            control="no difference")  # fmt: skip
        could = Compared(f"HiResCAM without the wall: {RATIO}", twin, above(0), null=zero, control="with the wall")
        none = Compared(
            "mu", zero, exactly(0), null=self._column(results, "gradcam", "over constant"), control="GradCAM"
        )
        return [Claim("T-T1-hc", [none], paper="0.0 ± 0.0"), Claim("T-3.3-c", [averaged, could])]

    def _datasets(self, results: Results) -> list[Claim]:
        """Judge that both datasets give the same picture, and that the upper subject decides the class."""
        ranks = Column(results.rows("ranks"), "rank correlation", "datasets")
        z = Column(results.rows("consistency"), "difference", "method")
        consistent = [
            Compared(
                "rank correlation of the methods' means", ranks, exactly(1, 0.2), null=0.0, control="shuffled methods"
            ),
            Compared(
                "difference of the means in standard errors", z, exactly(0, 3), null=10.0, control="other datasets"
            ),
        ]
        wall = results.rows("wall", dataset="same") or results.rows("wall")
        live, dead = (Column(wall, f"blank_{part}_changes_class", IMAGE) for part in ("live", "dead"))
        main = Compared("share of images whose class changes when the seen part is blanked", live,
                        above(0.5, of="share", least=10), null=dead, control="the unseen part is blanked")  # fmt: skip
        lacks = "" if ranks.values else "it needs STACK-MIX and STACK-GEN: experiment.datasets.mix.path= and .gen.path="
        return [Claim("T-3.3-b", consistent, reason=lacks), Claim("T-3.2-b", [main])]

    def _opticam(self, results: Results) -> list[Claim]:
        """Judge that Opti-CAM has the lowest average drop."""
        others = ["opticam_start", *(m for m in PAPER if m != "opticam")]
        drops = [
            Compared(f"average drop, Opti-CAM's minus {method_title(results.config, m) if m in PAPER else 'after one step'}",
                     self._column(results, "opticam", "drop") - self._column(results, m, "drop"), below(0), null=0.0,
                     control="no difference")
            for m in others
        ]  # fmt: skip
        return [Claim("T-3.3-g", drops)]

    def _value(self, results: Results, method: str, other: Sequence[str]) -> Claim:
        """Compare the paper's means with those of the paper's network."""
        values, tolerance = PAPER[method], 1.5 if method in ("scorecam", "opticam") else 0.3
        node, settings = results.config.methods.get(method), {method: SETTINGS[method]}
        same = not other and not other_images(results)

        def rule(value: float, deviation: float) -> Rule:
            if same:  # deterministic: only rounding and versions differ
                return exactly(value / 100, tolerance / 100)
            return near(value / 100, 0.03, fails=0.03 + 1.98 * deviation / 100 / IMAGES**0.5, ours="0.03 is ours")

        def compared(name: str, dataset: str, value: float, deviation: float) -> Compared:
            where = {"method": name}
            if of := [d for d in (dataset, "same") if d in datasets(results)]:
                where["dataset"] = of[0]
            table, column, per = ("means", "mu", "dataset") if same else ("table", self.mu, "image")
            constant = results.rows("network")[0]["constant"]
            return Compared(f"mu of {name}, {NAMES[dataset]}", Column(results.rows(table, **where), column, per),
                            rule(value, deviation), null=constant, control="a constant map")  # fmt: skip

        signs = [m for m in results.config.methods if m == method or m == f"{method}_flipped"] or [method]
        each = [compared(name, d, *value) for name in signs for d, value in values.items()]
        network = results.rows("network")[0]
        reason = ""
        if not network["trained"] or network["standin"] or results.config.model["_target_"] != "vis.models.MaskedVGG16":
            reason = "a number of the masked VGG with the authors' weights: model.weights=FILE"
        elif node is None or node["_target_"] != SETTINGS[method]["_target_"]:
            reason = f"methods.{method} is not {CLASSES[method]}"
        paper = "; ".join(f"{NAMES[d]} {value} ± {deviation}" for d, (value, deviation) in values.items())
        changed = departures(results.config.methods, settings) if node is not None else []
        return Claim(IDS[method], each, needs=2, paper=paper, differences=changed, reason=reason)

    def _own(self, results: Results) -> list[Claim]:
        """Judge what the project adds: LayerCAM, and EigenCAM against a constant map."""
        layer = Compared(RATIO, self._column(results, "layercam", "over constant"), exactly(0),
                         null=self._column(results, "gradcam", "over constant"), control="GradCAM")  # fmt: skip
        eigen = _agreeing([
            Compared(f"{RATIO}{', other sign' * (m != 'eigencam')}", self._column(results, m, "over constant"), above(1),
                     null=1.0, control="a constant map")
            for m in self._signs("eigencam")[: 2 if "gray" in datasets(results) else 1]
        ])  # fmt: skip
        return [
            Claim("layercam", [layer], source="The project",
                  sentence="LayerCAM, whose weights are of each position as HiResCAM's are, avoids the unseen part too."),
            Claim("eigencam_constant", eigen, source="The project",
                  sentence="EigenCAM's maps are more active in the unseen part than a constant map."),
        ]  # fmt: skip


class Gallery(Table1):
    """Draw Figures 7 to 9: the maps of a few images side by side, with the dead zone hatched. Table 1 judges them."""

    def tasks(self, run: Run) -> Sequence[Task]:
        """Return the first images of each dataset, twice as many as the figure shows if not all of them count."""
        found = []
        for task in super().tasks(run):
            kept = [i for i in task["images"] if i < self.samples * (2 if self.least else 1)]
            found += [{**task, "images": kept}] if kept else []
        return found

    def claims(self, results: Results) -> list[Claim]:
        return []

    def summaries(self, results: Results) -> dict[str, Rows]:
        return WallCheck.summaries(self, results)

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        return self.galleries(results, "figure")


def _agreeing(compared: list[Compared]) -> list[Compared]:
    """Return comparisons without a range to fail in if their verdicts differ: they are then undecided."""
    if len({each.verdict() for each in compared}) == 1:
        return compared
    return [replace(each, rule=replace(each.rule, fails=())) for each in compared]


def _printed(column: Column, factor: float) -> str:
    """Return mean and standard deviation of a column times a factor, with the 95 % interval of the mean."""
    values = [factor * v for v in column.values]
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "-"
    low, high = interval(values)
    return f"{mean(values):.1f} ± {spread(values):.1f} [{low:.1f}, {high:.1f}]"


def other_images(results: Results) -> list[str]:
    """Return how a run's images differ from the authors' 100 of each dataset, in words."""
    found = []
    if "gray" in datasets(results):
        return [f"{len(results.rows('wall', dataset='same'))} composed photographs instead of STACK-MIX and STACK-GEN"]
    for row in results.rows("network"):
        name, node = row["dataset"], results.config.experiment.datasets.get(row["dataset"]) or results.config.dataset
        if name not in NAMES or node["_target_"] != "vis.data.folder":
            found.append(
                f"{row['images']} images of {row['data']} instead of {NAMES.get(name, 'STACK-MIX and STACK-GEN')}"
            )
        elif row["images"] != IMAGES:
            found.append(f"{row['images']} images of {NAMES[name]} instead of {IMAGES}")
    return list(dict.fromkeys(found))
