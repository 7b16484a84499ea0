"""The default experiment: draw the maps of one model, by method, target and image, and write a table of metrics."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from omegaconf import DictConfig

from vis import metrics
from vis.claims import Claim
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, wrapped
from vis.runner.experiment import Experiment, Load, Run, Task, method_scaling, method_title, method_words
from vis.runner.remarks import remarks, sentences
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

BATCH = 4  # the batch size if batch_size is auto


class Visualize(Experiment):
    """Explain images by one model and draw the maps.

    scaling: a name in `vis.figures.display.SCALINGS`, or "method" for the default of each method.
    clip: the percentile of a map's magnitudes at which its colours saturate; 100 shows the full range.
    rows: the largest number of rows of the figure.
    maps: the number of images whose pixels and maps are stored (None: all); the tables have all images.
    """

    metrics = ("pearson_input", "high_pass_pearson_input")
    series = "method"
    drawn = ("scaling", "clip", "rows")

    def __init__(
        self, scaling: str = "method", clip: float = display.CLIP, rows: int = 12, maps: int | None = None
    ) -> None:
        if maps is not None and maps < 1:
            raise UserError(f"experiment.maps={maps}: give the number of images whose maps are stored, or null for all")
        self.scaling = scaling
        self.clip = clip
        self.rows = rows
        self.maps = maps
        display.scaling("minmax" if scaling == "method" else scaling, clip)

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed, "images": batch} for seed in run.seeds for batch in run.batches(len(run.dataset), BATCH)]

    def _kept(self, task: Task) -> int:
        """Return the number of a task's images whose maps are stored."""
        return sum(self.maps is None or i < self.maps for i in task["images"])

    def load(self, run: Run, task: Task) -> Load:
        images, maps = len(task["images"]), len(run.methods) * len(run.targets)
        return Load(
            run.config.model, task["seed"], images, run.passes * len(run.targets), self._kept(task) * (1 + maps)
        )

    def compute(self, run: Run, task: Task) -> Output:
        seed = task["seed"]
        model = run.model(seed=seed)
        batch = run.batch(model, task["images"])
        units = [run.units_of(model, target, batch.names) for target in run.targets]
        maps, logits = run.explain(model, batch.x, units)
        run.explainer.warn_of_silent_maps(model, batch)
        logits = logits.double()
        probabilities = logits.softmax(1)
        output = Output()
        table = output.tables["table"] = []
        predictions = output.tables["predictions"] = []
        kept = self._kept(task)
        for i, name in enumerate(batch.names):
            if i < kept:
                output.arrays[f"{seed}/{name}/pixels"] = batch.pixels[i].numpy()
            for rank, index in enumerate(logits[i].argsort(descending=True)[:5].tolist(), start=1):
                predictions.append(
                    {
                        "seed": seed,
                        "image": name,
                        "label": batch.labels[i],
                        "rank": rank,
                        "class": model.class_name(index),
                        "logit": logits[i, index].item(),
                        "probability": probabilities[i, index].item(),
                    }
                )
        x = batch.x.cpu()
        for target, given, by_method in zip(run.targets, units, maps, strict=True):
            indices = given or logits.argmax(1).tolist()
            notes = remarks(run.methods, by_method, model.net, batch.x, run.config)
            for method, values in by_method.items():
                correlation = metrics.pearson(values.expand_as(x), x)
                fine = metrics.high_pass_pearson(values, x)
                own = run.methods[method]
                errors = own.axiom_error(model.net, batch.x, given, values, run.preprocess(model))
                layers = ", ".join(own.layers(model.net, batch.x))
                for i, name in enumerate(batch.names):
                    if i < kept:
                        output.arrays[f"{seed}/{name}/{target}/{method}"] = values[i].numpy()
                    table.append(
                        {
                            "seed": seed,
                            "image": name,
                            "target": str(target),
                            "class": model.class_name(indices[i]),
                            "method": method,
                            "layer": layers,
                            "logit": logits[i, indices[i]].item(),
                            "probability": probabilities[i, indices[i]].item(),
                            "pearson_input": correlation[i].item(),
                            "high_pass_pearson_input": fine[i].item(),
                            "axiom": own.axiom,
                            "axiom_error": None if errors is None else errors[i].item(),
                            "min": values[i].min().item(),
                            "max": values[i].max().item(),
                            "l2": values[i].norm().item(),
                            "note": notes[method][i],
                            "weights": model.weights,
                        }
                    )
        return output

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, seed = results.config, results.config.seed
        scalings = {name: self._scaling(name, config) for name in config.methods}
        table = results.rows(seed=seed)
        images = {image: number for number, image in enumerate(dict.fromkeys(row["image"] for row in table))}
        stored = len(images) if self.maps is None else self.maps
        every = dict.fromkeys((row["image"], row["target"], row["class"]) for row in table)
        keys = sorted((key for key in every if images[key[0]] < stored), key=lambda key: images[key[0]])
        rows = []
        for number, (image, target, class_) in enumerate(keys[: self.rows]):
            titles = number == 0  # the columns are the same in all rows
            pixels = results.arrays[f"{seed}/{image}/pixels"]
            panels = [Panel(display.picture(pixels), "Input" if titles else "", image)]
            for cell in results.rows(seed=seed, image=image, target=target):
                show, _ = display.scaling(scalings[cell["method"]], self.clip)
                map_ = results.arrays[f"{seed}/{image}/{target}/{cell['method']}"]
                title = method_title(config, cell["method"]) if titles else ""
                panels.append(Panel(show(map_, pixels), title, f"r = {cell['pearson_input']:z.2f}"))
            rows.append(PanelRow(panels, f"{target}: {class_}" if target in ("max", "random") else class_))
        best = results.rows("predictions", seed=seed, rank=1)[:4]
        caption = [
            f"{config.model.name}, {table[0]['weights']}",
            *(f"{p['image']}: prediction {p['class']}, probability {p['probability']:.2g}" for p in best),
            *self._words(config, scalings),
            *method_words(config),
            *_layers(table, config),
            "r: correlation of the map with the input",
            *sentences(table, config),
        ]
        if len(every) > min(self.rows, len(keys)):
            whose = "all maps are" if stored >= len(images) else f"the maps of the first {stored} images are"
            caption.append(f"First {min(self.rows, len(keys))} of {len(every)} rows; {whose} in maps.npz")
        return {"figure": panel_grid(wrapped(rows), caption)}

    def _words(self, config: DictConfig, scalings: dict[str, str]) -> list[str]:
        """Return a caption's sentences on the scalings of maps and on the images that methods learnt from."""
        learnt = [m for m in config.methods if "gaussian" in config.methods[m]]
        sources = {m: config.methods[m].gaussian or "other images" for m in learnt}
        return [
            *display.sentences({method_title(config, m): scaling for m, scaling in scalings.items()}, self.clip),
            *(
                f"{method_title(config, m)} learnt the content of windows from {source}"
                for m, source in sources.items()
            ),
        ]

    def _scaling(self, method: str, config: DictConfig) -> str:
        return self.scaling if self.scaling != "method" else method_scaling(config, method)


def _layers(rows: Rows, config: DictConfig) -> list[str]:
    """Return a sentence for each layer whose feature maps methods use."""
    methods: dict[str, dict[str, None]] = {}
    for row in rows:
        methods.setdefault(row.get("layer") or "", {})[method_title(config, row["method"])] = None
    return [f"{', '.join(titles)}: feature maps of {layer}" for layer, titles in methods.items() if layer]
