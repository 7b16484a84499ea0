"""Measure how much of a map lies where the network provably cannot see: in disconnected cells, and below a wall.

Disconnected cells are DiFull of Rao et al. 2022 (arXiv 2205.10435): a grid of n x n images, of which one cell alone decides the
logit, while the layers run on every cell. The wall is that of Taimeskhanov et al. 2024: the head reads the upper rows of the last
feature map, and no logit sees the lower rows of the image. A wall is the case of one image whose lower part is
disconnected; there the layers see across the border, here they do not.

    outside = 1 - sum of the positive part of the map in the cell / sum of the positive part
    mu = ||map[dead rows]||_2 / ||map||_2          taimeskhanov2024, Eq. 7

Any methods, any network and any images: a cell has the network's own size. Methods that take a `layer` find there the outputs
of all cells side by side, at the network's last feature maps unless `experiment.layer` names others. For each image the
other cells hold the images that follow it in the dataset, and the last one a mirrored copy, so that its class is repeated. It is
proven on each grid: no gradient reaches the other cells, and blanking them changes no logit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import Tensor, nn

from vis import metrics
from vis.claims import Claim, Column, Compared, below, each_above, exactly, interval, mean
from vis.config.instantiate import locate, parameters_of
from vis.errors import NotApplicable, UserError
from vis.figures import display
from vis.figures.layout import PAGE_WIDTH, Panel, PanelRow, panel_grid, plot, styled, wrapped
from vis.methods import GradCAM
from vis.methods.grid import FromImage, OneCell, joined, place
from vis.methods.layers import feature_layer
from vis.models import Model
from vis.runner.experiment import Experiment, Load, Run, Task, map_words, method_class, method_title, method_words
from vis.runner.explainer import Explainer, build_method
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows, numbers
from vis.system.device import local_convolutions

BLIND = "{}: its maps stay out of what the network cannot see."
CELL = (0, 0)


class Disconnected(Experiment):
    """Measure maps outside the cell that decides, and below a wall.

    n: cells on a side. layer: of methods that take one; None finds the last feature maps. wall: changes to the model's config
    that give it a wall; "auto" looks for the highest wall that hides a fifth of the image, None leaves it out. samples: number of
    images whose maps are drawn.
    """

    metrics = ("outside", "mu")
    series = "method"

    def __init__(
        self, samples: int, n: int = 2, layer: str | None = None, wall: str | Mapping[str, Any] | None = "auto"
    ) -> None:
        if n < 2:
            raise UserError(f"experiment.n={n}: give 2 or more")
        if isinstance(wall, str) and wall != "auto":
            raise UserError(f"experiment.wall={wall}: give auto, null or {{rows: NUMBER}}")
        self.samples, self.n, self.layer, self.wall = samples, n, layer, wall
        self._explainers: dict[tuple[str, ...], Explainer] = {}
        self._walled: Model | None = None
        self._looked = False

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"images": images} for images in run.batches(len(run.dataset), 1)]

    def load(self, run: Run, task: Task) -> Load:
        passes = 2 * (run.passes * self.n**2 + len(run.methods))
        return Load(run.config.model, run.config.seed, len(task["images"]), passes, len(run.methods) * self.samples)

    @local_convolutions()
    def compute(self, run: Run, task: Task) -> Output:
        model, output = run.model(), Output(tables={"table": [], "proof": [], "network": []})
        layer = (
            feature_layer(model.net, run.batch(model, task["images"][:1]).x, self.layer)
            if self._with_layer(run)
            else None
        )
        walled = self._wall(run, model)
        size = [self.n * side for side in model.input_size]
        if task["images"][0] == 0:
            network: dict[str, Any] = {
                "weights": model.weights,
                "trained": model.trained,
                "layer": layer,
                "data": run.dataset.origin,
            }
            network |= {"images": len(run.dataset), "outside": 1 - 1 / self.n**2}
            network |= {"rows": None, "constant": None}
            if walled:
                (constant,) = metrics.unseen_activity(torch.ones(1, 1, *model.input_size), _dead(walled)).tolist()
                network |= {"rows": list(_dead(walled)), "constant": constant}
            output.tables["network"].append(network)
        for i in task["images"]:
            picture = self._grid(run, model, i)
            x = run.preprocess(model)(picture.to(run.dtype)).to(run.device, memory_format=model.memory_format)
            batch = run.batch(model, [i])
            name = batch.names[0]
            with torch.no_grad():
                logits = model.net(batch.x)
            unit = (run.units_of(model, run.targets[0], batch.names) or logits.argmax(1).tolist())[0]
            one = OneCell(model.net, "difull", CELL, self.n, x).eval()
            output.tables["proof"].append({"image": name} | self._proof(one, x))
            maps = self._maps(run, model, one, x, layer, unit)
            below_wall = self._below(run, walled, batch.x, unit)
            for method, map_ in maps.items():
                inside = metrics.localisation(map_, *place(CELL, self.n, *size)).item()
                row: dict[str, Any] = {"image": name, "method": method, "class": model.class_name(unit)}
                row |= {"outside": None if np.isnan(inside) else 1 - inside, "mu": None, "mu over constant": None}
                row |= {"unseen": self._elsewhere(map_)}
                if method in below_wall and walled:
                    mu = metrics.unseen_activity(below_wall[method], _dead(walled)).item()
                    constant = metrics.unseen_activity(torch.ones(1, 1, *model.input_size), _dead(walled)).item()
                    row |= {
                        "mu": None if np.isnan(mu) else mu,
                        "mu over constant": 0.0 if np.isnan(mu) else mu / constant,
                    }
                output.tables["table"].append(row)
                if i < self.samples:
                    output.arrays[f"{name}/{method}"] = map_[0].numpy()
                    output.arrays[f"{name}/pixels"] = picture[0].numpy()
        return output

    def _grid(self, run: Run, model: Model, i: int) -> Tensor:
        """Return the pixels of a grid: the i-th image, those that follow it, and at last the same one mirrored."""
        count = len(run.dataset)
        indices = [(i + k) % count for k in range(self.n**2 - 1)]
        pixels = [run.batch(model, [j]).pixels[0] for j in indices]
        return joined(torch.stack([*pixels, pixels[0].flip(-1)]), self.n)

    def _proof(self, one: OneCell, x: Tensor) -> dict[str, float]:
        """Return the largest gradients outside and inside the cell, and the change of the logits if all else is blanked."""
        rows, columns = place(CELL, self.n, *x.shape[-2:])
        probe = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            logits = one(probe)
            weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=logits.dtype).to(
                logits
            )
            (gradient,) = torch.autograd.grad((logits * weights).sum(), probe)
        inside = gradient[:, :, rows, columns].abs().max().item()
        gradient[:, :, rows, columns] = 0
        blank = torch.zeros_like(x)
        blank[:, :, rows, columns] = x[:, :, rows, columns]
        with torch.no_grad():
            change = (one(blank) - logits.detach()).abs().max().item()
        return {"gradient outside": gradient.abs().max().item(), "gradient inside": inside, "blanking": change}

    def _elsewhere(self, map_: Tensor) -> float | None:
        """Return the share of a map's l2 norm outside the cell: mu of disconnected cells. None for a map of zeros."""
        rows, columns = place(CELL, self.n, *map_.shape[-2:])
        whole = map_.double().norm().item()
        rest = map_.double().clone()
        rest[:, :, rows, columns] = 0
        return rest.norm().item() / whole if whole else None

    def _with_layer(self, run: Run) -> list[str]:
        return [
            str(m)
            for m, node in run.config.methods.items()
            if "layer" in parameters_of(locate(str(node._target_), f"methods.{m}"))
        ]

    def _maps(self, run: Run, model: Model, one: OneCell, x: Tensor, layer: str | None, unit: int) -> dict[str, Tensor]:
        """Return the maps [1, C, n H, n W] of the cell's class."""
        layered = self._with_layer(run)
        found: dict[str, Tensor] = {}
        for names, at in (([str(m) for m in run.methods if m not in layered], None), (layered, FromImage.AT)):
            if names:
                net: nn.Module = (
                    one if at is None else FromImage(model.net, "difull", CELL, self.n, x, str(layer)).eval()
                )
                explainer = self._explainer(run, names, at)
                (maps,), _ = explainer.explain(replace(model, net=net), x, [[unit]])
                found |= maps
        return {str(name): found[str(name)] for name in run.methods}

    def _explainer(self, run: Run, names: Sequence[str], at: str | None) -> Explainer:
        if tuple(names) not in self._explainers:
            config = OmegaConf.create({"methods": OmegaConf.to_container(run.config.methods, resolve=True)})
            for name in names if at else ():
                config.methods[name].layer = at
            explainer = self._explainers[tuple(names)] = Explainer(run.config, run.reader)
            explainer.methods = {name: build_method(config, name) for name in names}
        return self._explainers[tuple(names)]

    # --- the wall -------------------------------------------------------------------------------------------------------

    def _wall(self, run: Run, model: Model) -> Model | None:
        """Return the network with a wall; None if there is none to be built, or none is wanted."""
        if not self._looked:
            self._looked = True
            self._walled = model if model.dead_rows is not None else self._built(run, model)
        return self._walled

    def _built(self, run: Run, model: Model) -> Model | None:
        if self.wall is None:
            return None
        if self.wall != "auto":
            return run.model(wall=self.wall)
        for rows in range(self._height(run, model) - 1, 0, -1):
            try:
                walled = run.model(wall={"rows": rows})
            except UserError:  # this wall hides nothing, or the head takes none
                continue
            first, last = _dead(walled)
            if last + 1 - first >= 0.2 * model.input_size[0]:
                return walled
        return None

    def _height(self, run: Run, model: Model) -> int:
        x = torch.zeros(1, model.channels, *model.input_size, device=run.device, dtype=run.dtype)
        try:
            (layer,) = GradCAM().layers(model.net, x)
        except NotApplicable:
            return 0
        from vis.methods.grid import output_of

        with torch.no_grad():
            return int(output_of(model.net, x, layer).shape[2])

    def _below(self, run: Run, walled: Model | None, x: Tensor, unit: int) -> dict[str, Tensor]:
        return run.explain(walled, x, [[unit]]).maps[0] if walled else {}

    # --- from what is stored ------------------------------------------------------------------------------------------

    def claims(self, results: Results) -> list[Claim]:
        config, network = results.config, results.rows("network")[0]
        rows = results.rows("proof")
        inside = Column(rows, "gradient inside", "image")
        proof = [
            Compared(
                "largest gradient of the logits in the other cells",
                Column(rows, "gradient outside", "image"),
                exactly(0),
                null=inside,
                control="the cell that decides",
            ),
            Compared(
                "change of the logits when the other cells are blanked",
                Column(rows, "blanking", "image"),
                exactly(0, within=1e-4),
                null=1.0,
                control="a network that sees them",
            ),
            Compared("largest gradient in the cell", inside, each_above(0), null=0.0, control="the other cells"),
        ]
        sentence = "No logit depends on the other cells of the grid; the cell that decides matters."
        found = [Claim("disconnected", proof, sentence=sentence, source="The project")]
        for method in map(str, config.methods):
            of = results.rows(method=method)
            compared = [
                Compared(
                    "share of positive attribution outside the cell",
                    Column(of, "outside", "image"),
                    below(0.05, ours=".05 is ours"),
                    null=network["outside"],
                    control="a constant map",
                )
            ]
            if network["rows"]:
                compared.append(
                    Compared(
                        "mu below the wall, over that of a constant map",
                        Column(of, "mu over constant", "image"),
                        below(0.1, ours="a tenth is ours"),
                        null=1.0,
                        control="a constant map",
                    )
                )
            found.append(
                Claim(method, compared, sentence=BLIND.format(method_title(config, method)), source="The project")
            )
        return found

    def summaries(self, results: Results) -> dict[str, Rows]:
        rows: Rows = []
        for method in map(str, results.config.methods):
            of = results.rows(method=method)
            row: dict[str, Any] = {"method": method_title(results.config, method), "images": len(of)}
            for column in ("outside", "unseen", "mu", "mu over constant"):
                values = numbers(of, column)
                row |= {column: mean(values) if values else None}
                row |= (
                    dict(zip((f"{column}, low", f"{column}, high"), interval(values), strict=True))
                    if len(values) > 1
                    else {}
                )
            rows.append(row | {"without positive part": sum(each["outside"] is None for each in of)})
        return {"summary": rows}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        return {"figure": self._bars(results)} | ({"maps": self._gallery(results)} if results.arrays else {})

    def _bars(self, results: Results) -> Figure:
        """Draw what lies outside the cell, and mu below the wall, as bars of each method, side by side."""
        config, network = results.config, results.rows("network")[0]
        names = [str(m) for m in config.methods]
        sides = [("outside", 100 * network["outside"], "Disconnected cells", "% of the positive attribution")]
        if network["rows"]:
            sides.append(("mu", 100 * network["constant"], "Below the wall", "mu x 100"))
        count = len({row["image"] for row in results.rows()})
        wall = (
            f", mu: share of a map's norm in the rows {network['rows'][0]}..{network['rows'][1]}"
            if network["rows"]
            else ""
        )
        caption = [
            f"What maps show where the network provably cannot see: mean over {plural(count, 'image')} and its 95 % interval"
            f". Cells: share of the positive attribution outside the one cell of {self.n} x {self.n} that decides{wall}",
            "Dashed: a constant map",
            "" if network["rows"] else "No wall: none can be built into this network, or none was asked for",
            *method_words(config),
            f"{config.model.name}, {network['weights']}; {network['data']}",
        ]
        figure, axes = plot(PAGE_WIDTH, 0.7 + 0.19 * len(names), caption, columns=len(sides))
        with styled():
            for axis, (column, constant, words, label) in zip(axes, sides, strict=True):
                for i, method in enumerate(names):
                    values = [100 * v for v in numbers(results.rows(method=method), column)]
                    if not values:
                        axis.text(
                            1, i, "no positive part" if column == "outside" else "zero maps", va="center", fontsize=6
                        )
                        continue
                    low, high = interval(values) if len(values) > 1 else (mean(values), mean(values))
                    error = [[mean(values) - low], [high - mean(values)]]
                    axis.barh(
                        i,
                        mean(values),
                        0.7,
                        xerr=error,
                        color="C0" if column == "outside" else "C1",
                        ecolor="0.4",
                        capsize=2,
                        error_kw={"linewidth": 0.8},
                    )
                    axis.text(max(high, mean(values)) + 1.5, i, f"{mean(values):.1f}", va="center", fontsize=6)
                axis.axvline(constant, color="0.4", linewidth=0.8, linestyle="--", zorder=0)
                axis.set_xlim(0, 108)
                axis.set_ylim(len(names) - 0.4, -0.6)
                axis.set_yticks(
                    range(len(names)),
                    [method_title(config, m) for m in names] if axis is axes[0] else [""] * len(names),
                )
                axis.set_xlabel(label)
                axis.set_title(words)
        return figure

    def _gallery(self, results: Results) -> Figure:
        config, network = results.config, results.rows("network")[0]
        images = [key.removesuffix("/pixels") for key in results.arrays if key.endswith("/pixels")]
        rows: list[PanelRow] = []
        for image in images:
            pixels = results.arrays[f"{image}/pixels"]
            cells = {row["method"]: row for row in results.rows(image=image)}
            panels = [
                Panel(
                    framed(display.picture(pixels), self.n), "" if rows else "Input", cells[next(iter(cells))]["class"]
                )
            ]
            for method in map(str, config.methods):
                show, _ = display.scaling(method_class(config, method).display)
                outside = cells[method]["outside"]
                note = "no positive part" if outside is None else f"{100 * outside:.1f} %"
                map_ = results.arrays[f"{image}/{method}"]
                panels.append(
                    Panel(framed(show(map_, pixels), self.n), "" if rows else method_title(config, method), note)
                )
            rows.append(PanelRow(panels))
        caption = [
            "The framed cell alone decides; the last one holds the same image mirrored. Under each map: the share of its "
            f"positive attribution outside the frame; a constant map has {100 * network['outside']:.0f} %",
            *map_words(config),
            f"{config.model.name}, {network['weights']}",
        ]
        return panel_grid(wrapped(rows), caption)


def _dead(model: Model) -> tuple[int, int]:
    assert model.dead_rows is not None
    return model.dead_rows


def framed(picture: display.Picture, n: int) -> display.Picture:
    """Draw the borders of an n x n grid in gray, and a frame around the first cell in orange."""
    picture = picture.copy()
    h, w = picture.shape[0] // n, picture.shape[1] // n
    t = max(1, h // 40)
    for i in range(1, n):
        picture[i * h - t // 2 : i * h + t - t // 2, :], picture[:, i * w - t // 2 : i * w + t - t // 2] = 0.75, 0.75
    colour = (0.9, 0.35, 0.0)
    picture[:t, :w], picture[h - t : h, :w], picture[:h, :t], picture[:h, w - t : w] = colour, colour, colour, colour
    return picture
