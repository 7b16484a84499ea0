"""nie2018, Figure 2 and the galleries of the supplement: three methods (rows) for three logits (columns) of one image.

"GBP and DeconvNet are more visually compelling but less class-sensitive than saliency map." (supplement, section E)

The number measured is the correlation of a method's maps of two logits; for saliency maps it should be far below the others'.
"""

from collections.abc import Sequence
from itertools import combinations

from matplotlib.figure import Figure

from experiments.nie2018.trained import LABELS, batches_of_the_model, images_of, not_the_papers, wanted, weights_words
from vis import metrics
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.oldclaims import Claim, above, increasing, mean, mean_and_spread
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results

SENSITIVE = "GBP and DeconvNet are more visually compelling but less class-sensitive than saliency map."
STAND_IN = "Of the stand-in network: GBP and DeconvNet are less class-sensitive than the saliency map."


class Gallery(Experiment):
    """Draw and correlate maps of several logits.

    paper: the image that the paper shows; random: whether the paper's weights are random; source: the paper's figure.
    """

    metrics = ("correlation",)
    series = "method"

    def __init__(self, paper: str, random: bool, source: str) -> None:
        self.paper, self.random, self.source = paper, random, source

    def tasks(self, run: Run) -> Sequence[Task]:
        return batches_of_the_model(run)

    def load(self, run: Run, task: Task) -> Load:
        images, maps = len(task["images"]), len(run.methods) * len(run.targets)
        return Load(run.config.model, task["seed"], images, maps, images * (1 + maps))

    def compute(self, run: Run, task: Task) -> Output:
        seed = task["seed"]
        model = run.model(seed=seed)
        batch = run.batch(model, task["images"])
        maps, logits = run.explain(model, batch.x, [run.units_of(model, target, batch.names) for target in run.targets])
        meant = [run.units_of(model, target, batch.names) or logits.argmax(1).tolist() for target in run.targets]
        output = Output(tables={"logits": [], "table": []})
        for i, image in enumerate(batch.names):
            output.tables["logits"] += [
                {"seed": seed, "image": image, "target": str(target), "class": model.class_name(each[i])}
                for target, each in zip(run.targets, meant, strict=True)
            ]
            if seed == run.seeds[0]:
                output.arrays[f"{image}/pixels"] = batch.pixels[i].numpy()
                for target, each in zip(run.targets, maps, strict=True):
                    output.arrays |= {f"{image}/{target}/{method}": each[method][i].numpy() for method in each}
        for a, b in combinations(range(len(run.targets)), 2):
            for method in run.methods:
                correlation = metrics.pearson(maps[a][method], maps[b][method])
                for i, image in enumerate(batch.names):
                    if meant[a][i] == meant[b][i]:  # the largest logit may be one of the others
                        continue
                    row = {
                        "seed": seed,
                        "image": image,
                        "method": method,
                        "logits": f"{run.targets[a]}, {run.targets[b]}",
                    }
                    output.tables["table"].append(
                        {**row, "correlation": correlation[i].item(), "weights": model.weights}
                    )
        return output

    def claims(self, results: Results) -> list[Claim]:
        """Judge one number for each image and seed: the mean over the pairs of logits."""
        by_method: dict[str, list[float]] = {}
        for method in results.config.methods:
            pairs: dict[tuple[str, int], list[float]] = {}
            for row in results.rows(method=method):
                pairs.setdefault((row["image"], row["seed"]), []).append(row["correlation"])
            by_method[method] = [mean(each) for each in pairs.values()]
        if not set(LABELS) <= set(by_method):
            return []
        reason = not_the_papers(results, random=self.random)
        sal, dec, gbp = (by_method[method] for method in LABELS)
        margin = [min(d, g) - s for s, d, g in zip(sal, dec, gbp, strict=True)]
        metric = "correlation of the maps of two logits"
        less = f"{metric}: the smaller of GBP's and DeconvNet's minus saliency's"
        found = [
            Claim(
                "class_sensitive",
                SENSITIVE,
                source=self.source,
                metric=less,
                criterion=above(0.5),
                values=margin,
                reason=reason,
            )
        ]
        if reason:
            for method in ("deconvnet", "gbp"):
                values = {"saliency": sal, LABELS[method]: by_method[method]}
                found.append(
                    Claim(
                        f"here_{method}",
                        STAND_IN,
                        source=self.source,
                        metric=metric,
                        criterion=increasing(),
                        values=values,
                        origin="project",
                    )
                )
        return found

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        figures: dict[str, Figure] = {}
        for image in images_of(results)[:6]:
            targets = results.rows("logits", image=image, seed=results.config.seed)
            rows: list[PanelRow] = []
            for method in results.config.methods:
                pixels = None if rows else display.picture(results.arrays[f"{image}/pixels"])
                values = mean_and_spread([r["correlation"] for r in results.rows(method=method, image=image)])
                panels = [Panel(pixels, "" if rows else f"Input: {image}")]
                for each in targets:
                    title = f"max: {each['class']}" if each["target"] == "max" else each["class"]
                    map_ = display.minmax(results.arrays[f"{image}/{each['target']}/{method}"])
                    panels.append(Panel(map_, "" if rows else title))
                panels[2 if len(panels) > 2 else 1].note = f"correlation over logits {values}"
                rows.append(PanelRow(panels, LABELS.get(method, method)))
            seeds = len({row["seed"] for row in results.rows()})
            caption = [
                weights_words(results) + f"; maps: {display.scaling('minmax')[1]}",
                "Under each row: correlation of the maps of two logits, mean ± standard deviation over the pairs"
                + (f" and {seeds} seeds" if seeds > 1 else ""),
                wanted(results, [self.paper]),
            ]
            figures["figure" if not figures else f"figure_{image}".replace("/", "_")] = panel_grid(rows, caption)
        return figures
