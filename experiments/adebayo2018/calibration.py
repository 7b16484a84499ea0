"""adebayo2018: the scale of the similarities: what they are for maps that have nothing, or only the image, in common.

Rows of the table: the similarities (experiments/randomisation.py) of two maps of an image, one row for each pair:

    white noise       the network's map and white noise
    blurred noise     the network's map and blurred noise
    x u, x v          the image times white noise u, and times white noise v: what an input factor does
    |x|, |x u|        the image, and the image times white noise
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.adebayo2018.trial import ADEBAYO, judged
from experiments.randomisation import MEASURES, noise, similarities, views
from vis.claims import Claim, Column, Compared, above, interval, mean, mean_and_spread, near
from vis.figures.layout import plot, styled
from vis.runner.experiment import Experiment, Load, Run, Task, method_title
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows, numbers

PAIRS = {
    "white noise": "map, white noise", "blurred noise": "map, blurred noise", "product": "x u, x v",
    "image": "x, x u",
}  # fmt: skip


class Calibration(Experiment):
    """Compare maps with noise, and the image times noise with the image times other noise."""

    metrics = tuple(MEASURES)
    series = "pair"

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"images": images} for images in run.batches(len(run.dataset), 16)]

    def load(self, run: Run, task: Task) -> Load:
        return Load(run.config.model, run.config.seed, len(task["images"]), run.passes, 0)

    def compute(self, run: Run, task: Task) -> Output:
        model = run.model()
        batch = run.batch(model, task["images"])
        (maps,), _ = run.explain(model, batch.x, [None])
        x, rows = batch.x.cpu().double(), []
        for i, image in enumerate(batch.names):
            u, v, white = (noise(f"{run.config.seed}/{which}/{image}", batch.pixels) for which in "uvw")
            blurred = noise(f"{run.config.seed}/{image}", batch.pixels, blurred=True)
            own = x[i : i + 1].sum(1, keepdim=True)
            pairs = {"product": (own * u, own * v), "image": (own, own * u)}
            for method, values in maps.items():
                for name, other in (("white noise", white), ("blurred noise", blurred)):
                    pairs[name] = values[i : i + 1], other
                for pair, (a, b) in pairs.items():
                    numbers_ = {n: s.item() for n, s in similarities(views(a), views(b)).items() if not s.isnan().any()}
                    rows.append({"image": image, "method": method, "pair": pair, **numbers_})
        return Output(tables={"table": rows, "network": [{"weights": model.weights}]})

    def claims(self, results: Results) -> list[Claim]:
        def column(pair: str, name: str) -> Column:
            return Column(results.rows(pair=pair), name, "image")

        product = [
            Compared("rank correlation of |x u| and |x v|", column("product", "rank"), above(0.3),
                     null=column("white noise", "rank"), control="the map and white noise"),
            Compared("rank correlation of x u and x v", column("product", "signed"), near(0, 0.02),
                     null=1.0, control="two equal maps: 1"),
        ]  # fmt: skip
        scores = [
            Compared(f"{words} with white noise", column("white noise", name), near(0, 0.005),
                     null=column("product", "rank"), control="|x u| and |x v|")
            for name, words in MEASURES.items()
        ]  # fmt: skip
        return judged(results, [
            Claim("A5", product, source=ADEBAYO,
                  sentence="The image times noise stays similar when the noise is drawn anew, by absolute values alone."),
            Claim("A6", scores[1:], source=ADEBAYO,
                  sentence="A random mask has a rank correlation below .005 in absolute value with a map."),
            Claim("A6b", scores[:1], source=ADEBAYO,
                  sentence="A random mask has an SSIM below .005 in absolute value with a map."),
        ])  # fmt: skip

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return mean and spread of each similarity, a row for each pair of maps."""
        rows: Rows = []
        for pair, words in PAIRS.items():
            found = {name: numbers(results.rows(pair=pair), name) for name in MEASURES}
            rows.append({"maps": words} | {n: mean_and_spread(v, 4) for n, v in found.items() if v})
        return {"calibration": rows}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, images = results.config, len({row["image"] for row in results.rows()})
        caption = [
            f"Similarity of two maps of an image: mean and 95 % interval over {images} images",
            "x: the image, as the network takes it; u and v: white noise",
            f"Map: {', '.join(method_title(config, m) for m in config.methods)}, {config.model.name}, "
            f"{results.rows('network')[0]['weights']}",
        ]
        figure, (axis,) = plot(4.6, 2.0, caption)
        with styled():
            for j, (name, words) in enumerate(MEASURES.items()):
                for y, pair in enumerate(reversed(PAIRS)):
                    values = numbers(results.rows(pair=pair), name)
                    if not values:
                        continue
                    half = abs(mean(values) - interval(values)[0]) if len(values) > 1 else 0.0
                    axis.errorbar(mean(values), y + 0.2 * (1 - j), xerr=half, fmt="os^"[j], color=f"C{j}", markersize=4,
                                  capsize=2, label="" if y else words)  # fmt: skip
            axis.axvline(0, color="0.85", linewidth=0.8, zorder=0)
            axis.set_yticks(range(len(PAIRS)), list(reversed(PAIRS.values())))
            axis.set_xlabel("similarity")
            axis.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=3, columnspacing=0.8)
        return {"figure": figure}
