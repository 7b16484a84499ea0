"""sixt2020: what a map keeps of the output, by another logit and by another last layer.

A map of the predicted class is compared with the map of another logit, drawn at random, and with its map in a network whose
last layer is drawn anew from N(0, .01^2). The control is the same method's map of another photograph: what the maps of all
images share. SSIM is taken as the authors' code does it: maps are reduced to the largest |.| over the channels (gradients) or
to the sum (relevance), clipped at the .5 and 99.5 percentiles and scaled; windows of 5 pixels; the larger of SSIM(a, b) and
SSIM(a, -b). Their `data_range` was 2 by oversight; here it is 1, and 2 beside it (`ssim_2`).

On the scale between the control and identity, s = (SSIM - other) / (1 - other), with the mean of the control. The bounds are
those of the project's specification of this paper, written before these runs:

    independent of the output     the interval of s lies above .95
    nearly independent            above .8
    not independent               below .8
    dependent                     below .5

A method whose control is above .7, as RectGrad's, whose maps are zeros for the most part, has no verdict by SSIM. Spearman's
correlation of the sums over the channels, with their signs, stands beside SSIM.

Four choices were made after a first run on few photographs, and then judged on others: that this exclusion counts for every
method, that the question on ReLU masks and switches is three claims, the bound .9 for maps without switches, and that six
images suffice for a verdict (the specification wanted 30).

Is the lack of class sensitivity due to missing ReLU masks or pooling switches? GBP and DeconvNet are measured again with average
pooling, which has no switches, in place of max-pooling (`averaged`); DeconvNet is GBP without the mask.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn

from experiments.convergence import Convergence, title, words
from vis import metrics
from vis.claims import Claim, Column, Compared, Rule, above, below, interval, mean, on_digits, replicated
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid, plot, styled
from vis.methods import explain_all
from vis.methods.flow import LOGITS
from vis.models import Model
from vis.runner.experiment import Experiment, Load, Run, Task, method_class
from vis.runner.explainer import applying
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

LOGIT, LAST, OTHER, AVERAGED = "random logit", "random last layer", "other image", "average pooling"
CONVERGING = ("gbp", "deconvnet", "deep_taylor", "lrp_alpha1_beta0", "lrp_alpha2_beta1", "lrp_alpha5_beta4")
NOT_CONVERGING = ("saliency", "lrp_z", "input_x_gradient", "integrated_gradients", "deeplift", "gradcam")
INDEPENDENT, NEARLY, DEPENDENT = 0.95, 0.8, 0.5
LEAST = 6  # images for a verdict
SAME = 0.7  # SSIM of two photographs' maps from which on SSIM says nothing
PICTURED = 9  # methods in the picture of maps, the first
REPORTED = "Reported of the paper (VGG-16 and ResNet-50)"
CONVERGENCE = "cosine similarity by position"


def reduced(maps: Tensor, display_: str, clip: tuple[float, float]) -> Tensor:
    """Return maps [B, C, H, W] as [B, 1, H, W]: the largest |.| or the sum over channels, clipped at percentiles.

    display_: of the method; gradients are shown by magnitude, and are reduced to it.
    """
    maps = maps.double()
    one = (
        maps.sum(1, keepdim=True)
        if display_ in ("diverging", "overlay", "evidence")
        else maps.abs().amax(1, keepdim=True)
    )
    low, high = (torch.quantile(one.flatten(1), q / 100, dim=1).view(-1, 1, 1, 1) for q in clip)
    return one.clamp(low, high)


def either_sign(a: Tensor, b: Tensor, data_range: float = 1.0) -> Tensor:
    """Return the larger SSIM of a with b and with -b: [B]."""
    found = metrics.ssim(a, b, window=5, data_range=data_range)
    if (b < 0).any() or (a < 0).any():
        found = torch.maximum(found, metrics.ssim(a, -b, window=5, data_range=data_range))
    return found


def averaging(net: nn.Module) -> nn.Module:
    """Return a copy of a network with average pooling in place of max-pooling. Raises UserError if it has none."""
    net = copy.deepcopy(net)
    pools = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.MaxPool2d)]
    if not pools:
        raise UserError(f"{type(net).__name__} has no max-pooling to replace: experiment.averaged=[]")
    for name, m in pools:
        parent, _, own = name.rpartition(".")
        pool = nn.AvgPool2d(m.kernel_size, m.stride, m.padding, m.ceil_mode, count_include_pad=False)
        setattr(net.get_submodule(parent), own, pool)
    return net


class RandomLogit(Experiment):
    """Compare maps of the predicted class with those of another logit and of another last layer.

    samples: images whose maps are stored. averaged: methods that are measured with average pooling too. convergence: measure
    cosine similarity convergence in the same run, and compare how both order the methods.
    """

    metrics = ("ssim", "spearman")
    series = "method"

    def __init__(self, samples: int, averaged: Sequence[str], convergence: bool) -> None:
        self.samples, self.averaged, self.convergence = samples, list(averaged), convergence

    def tasks(self, run: Run) -> Sequence[Task]:
        if len(run.dataset) < 2:
            raise UserError("the control compares the maps of two images: dataset.limit=2 or more")
        batches = run.batches(len(run.dataset), 4)
        if len(batches) > 1 and len(batches[-1]) == 1:  # the control is another image of the batch
            batches[-2:] = [batches[-2] + batches[-1]]
        return [{"images": images} for images in batches]

    def load(self, run: Run, task: Task) -> Load:
        return Load(run.config.model, run.config.seed, len(task["images"]), 3 * run.passes, 0)

    def compute(self, run: Run, task: Task) -> Output:
        model, output = run.model(), Output(tables={"table": [], "convergence": []})
        batch = run.batch(model, task["images"])
        if len(batch.names) < 2:
            raise UserError(f"batch_size={len(batch.names)}: the control needs two images of a batch, give 2 or more")
        with torch.no_grad():
            classes = [int(k) for k in model.net(batch.x).argmax(1)]
        drawn = run.units_of(model, "random", batch.names) or []
        others = [k if k != own else (k + 1) % (model.num_classes or 2) for k, own in zip(drawn, classes, strict=True)]
        (own, logit), _ = run.explain(model, batch.x, [classes, others])
        self._compare(run, output, batch.names, own, {LOGIT: logit}, "")
        if self.averaged:
            net = averaging(model.net)
            chosen = {name: run.methods[name] for name in self.averaged if name in run.methods}
            changed = dataclasses.replace(model, net=net)
            with applying(changed):
                (averaged, other), _ = explain_all(chosen, net, batch.x, [classes, others], run.preprocess(model))
            averaged, other = ({m: each.cpu() for m, each in maps.items()} for maps in (averaged, other))
            self._compare(run, output, batch.names, averaged, {LOGIT: other}, AVERAGED)
        if self.convergence:
            output.tables["convergence"] = self._convergence(run, model, batch)
        last = [n for n, m in model.net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1]
        output.tables["network"] = [{"weights": model.weights, "last": last, "classes": model.num_classes}]
        names = [model.class_name(k) for k in classes], [model.class_name(k) for k in others]
        model = run.model(trained_except=last, init="normal", std=0.01)
        (randomised,), _ = run.explain(model, batch.x, [classes])
        self._compare(run, output, batch.names, own, {LAST: randomised}, "", control=False)
        for i, image in enumerate(batch.names):
            if task["images"][i] < self.samples:
                output.arrays[f"{image}/pixels"] = batch.pixels[i].numpy()
                output.tables.setdefault("shown", []).append({"image": image, "own": names[0][i], "other": names[1][i]})
                for kind, maps in (("own", own), (LOGIT, logit), (LAST, randomised)):
                    output.arrays |= {f"{image}/{kind}/{m}": each[i].numpy() for m, each in maps.items()}
        return output

    def _compare(
        self, run: Run, output: Output, images: Sequence[str], own: Mapping[str, Tensor],
        tests: Mapping[str, Mapping[str, Tensor]], network: str, control: bool = True,
    ) -> None:  # fmt: skip
        """Add rows that compare maps of the predicted class with others, and with those of the next image."""
        for method, maps in own.items():
            shown = method_class(run.config, method).display
            clip = (0.0, 100.0) if method == "rectgrad" else (0.5, 99.5)
            pairs = {test: found[method] for test, found in tests.items()}
            if control:
                pairs[OTHER] = maps.roll(-1, 0)
            a = reduced(maps, shown, clip)
            for test, found in pairs.items():
                b = reduced(found, shown, clip)
                numbers = {"ssim": either_sign(a, b), "spearman": metrics.spearman(maps.sum(1), found.sum(1))}
                if test != LAST:
                    numbers["ssim_2"] = either_sign(a, b, data_range=2.0)
                output.tables["table"] += [
                    {"image": image, "method": method, "network": network, "test": test}
                    | {name: values[i].item() for name, values in numbers.items()}
                    for i, image in enumerate(images)
                ]

    def _convergence(self, run: Run, model: Model, batch: Any) -> Rows:
        """Return |cos| of random relevance at the image, for the methods with a backward pass between layers."""
        measure = Convergence([LOGITS], [], 2)
        backward = [m for m in run.methods if m in (*CONVERGING, *NOT_CONVERGING[:3], "deeplift", "rectgrad")]
        rows = measure.measured(run, model, batch, backward) if backward else []
        return [{key: row[key] for key in ("image", "method", "pos", "flat")} for row in rows]

    # --- from what is stored ------------------------------------------------------------------------------------------

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return s by image, its means by method, and by image how cosine similarity orders the methods as s does."""
        scale: Rows = []
        means: Rows = []
        for network in dict.fromkeys(row["network"] for row in results.rows()):
            for method in map(str, results.config.methods):
                control = [row["ssim"] for row in results.rows(method=method, network=network, test=OTHER)]
                if not control:
                    continue
                other = mean(control)
                for row in results.rows(method=method, network=network):
                    s = (row["ssim"] - other) / (1 - other) if other < 1 else 0.0
                    scale.append({key: row[key] for key in ("image", "method", "network", "test")} | {"s": s})
                summary: dict[str, Any] = {"method": title(results.config, method), "network": network}
                for test in (LOGIT, LAST, OTHER):
                    own = results.rows(method=method, network=network, test=test)
                    for name in ("ssim", "ssim_2", "spearman"):
                        if values := [row[name] for row in own if row.get(name) is not None]:
                            low, high = interval(values)
                            summary |= {
                                f"{test}: {name}": mean(values),
                                f"{test}: {name} 95 %": f"{low:.3f} to {high:.3f}",
                            }
                    values = [
                        r["s"] for r in scale if (r["method"], r["network"], r["test"]) == (method, network, test)
                    ]
                    if values and test != OTHER:
                        summary[f"{test}: s"] = mean(values)
                means.append(summary)
        agreement: Rows = []
        for image in dict.fromkeys(row["image"] for row in results.rows("convergence")):
            s = {r["method"]: r["s"] for r in scale if (r["image"], r["test"], r["network"]) == (image, LOGIT, "")}
            rows = [
                r
                for r in results.rows("convergence", image=image)
                if r["method"] != "rectgrad" and r["pos"] is not None
            ]
            if len(rows) > 2:
                by_method = [s[row["method"]] for row in rows]
                rho = {name: float(spearmanr([r[name] for r in rows], by_method).statistic) for name in ("pos", "flat")}
                agreement.append({"image": image} | rho)
        lifted = [
            {"image": row["image"], "method": row["method"], "lifted": row["ssim_2"] - row["ssim"]}
            for row in results.rows(network="", test=LOGIT)
        ]
        return {"scale": scale, "summary": means, "agreement": agreement, "lifted": lifted}

    def _s(self, results: Results, method: str, test: str, rule: Rule, network: str = "") -> Compared:
        own = results.rows("scale", method=method, network=network)
        column, control = (Column([r for r in own if r["test"] == each], "s", "image") for each in (test, OTHER))
        where = f", {network}" * bool(network)
        return Compared(f"s of SSIM, {test}, {title(results.config, method)}{where}", column, rule, null=control,
                        control="another photograph")  # fmt: skip

    def claims(self, results: Results) -> list[Claim]:
        config = results.config
        methods, reason = list(map(str, config.methods)), on_digits(config)
        found = []
        for method in (each for each in methods if each in CONVERGING):
            sentence = f"{title(config, method)}'s maps of two logits are almost identical."
            found.append(
                self._finding(f"S4_{method}", [self._s(results, method, LOGIT, self._above(INDEPENDENT))], sentence)
            )
        for method in (each for each in methods if each in NOT_CONVERGING):
            sentence = f"{title(config, method)}'s maps depend on the logit."
            below_it = self._s(results, method, LOGIT, self._below(NEARLY))
            below_it = dataclasses.replace(below_it, null=1.0, control="a map that ignores the logit")
            found.append(self._finding(f"S4_{method}", [below_it], sentence))
        found = [dataclasses.replace(c, reason=self._same(results, c.id.removeprefix("S4_"))) for c in found]
        if "deeplift" in methods:
            compared = [
                dataclasses.replace(self._s(results, "deeplift", test, self._below(DEPENDENT)), null=1.0,
                                    control="a map that ignores the output")
                for test in (LOGIT, LAST)
            ]  # fmt: skip
            found.append(self._finding("S7", compared, "DeepLIFT's maps depend on the logit and on the last layer."))
        found += self._switches(results, methods)
        if self.convergence:
            found += self._measures(results)
        found += self._alpha(results, methods)
        found.append(self._data_range(results, methods))
        arch = str(config.model.get("arch", config.model.name))
        differences = [f"{arch} instead of VGG-16 and ResNet-50"] * (arch not in ("vgg16", "resnet50"))
        papers = [Claim("S5", self._identical(results, ["gbp"], "gbp" in methods)), self._all(results, methods)]
        found = [dataclasses.replace(claim, reason=claim.reason or reason) for claim in found]
        return [*replicated(papers, differences, reason), *found]

    def _switches(self, results: Results, methods: Sequence[str]) -> list[Claim]:
        """Judge GBP without pooling switches and without its mask, DeconvNet; and DeconvNet without both."""
        found = []
        for method, network, what in (
            ("gbp", AVERAGED, "without pooling switches, GBP ignores"),
            ("deconvnet", AVERAGED, "without pooling switches, DeconvNet ignores"),
            ("deconvnet", "", "without its ReLU mask, which makes it DeconvNet, GBP ignores"),
        ):
            if method in (self.averaged if network else methods):
                sentence = f"Neither is the reason: {what} the logit as well."
                compared = self._s(results, method, LOGIT, self._above(NEARLY), network)
                id_ = f"S9_{method}" + "_average_pooling" * bool(network)
                found.append(Claim(id_, [compared], sentence=sentence, source=REPORTED,
                                   reason=self._same(results, method, network)))  # fmt: skip
        if "deconvnet" in self.averaged:
            logits, photographs, with_switches = (
                Column(results.rows(method="deconvnet", network=network, test=test), "ssim", "image")
                for network, test in ((AVERAGED, LOGIT), (AVERAGED, OTHER), ("", OTHER))
            )
            alike = [
                Compared(f"SSIM of two {what}' maps, average pooling", alone, above(0.9, least=LEAST, ours="ours"),
                         null=with_switches, control="two photographs, max-pooling")
                for what, alone in (("logits", logits), ("photographs", photographs))
            ]  # fmt: skip
            sentence = "Without pooling switches, DeconvNet's map depends on neither the logit nor the image."
            found.append(Claim("without_switches", alike, sentence=sentence, source="The project"))
        return found

    def _same(self, results: Results, method: str, network: str = "") -> str:
        """Return the reason for no verdict on a method whose maps of two photographs are alike; otherwise ""."""
        control = [row["ssim"] for row in results.rows(method=method, network=network, test=OTHER)]
        alike = bool(control) and mean(control) > SAME
        return f"the maps of two photographs have an SSIM of {mean(control):.2f}, so SSIM says nothing" if alike else ""

    def _finding(self, id_: str, compared: Sequence[Compared], sentence: str, source: str = REPORTED) -> Claim:
        return Claim(id_, compared, sentence=sentence, source=source)

    def _above(self, bound: float) -> Rule:
        return above(bound, least=LEAST)

    def _below(self, bound: float) -> Rule:
        return below(bound, least=LEAST)

    def _identical(self, results: Results, methods: Sequence[str], present: bool = True) -> list[Compared]:
        compared = []
        for method in methods if present else ():
            rows, control = (results.rows(method=method, network="", test=test) for test in (LAST, OTHER))
            compared += [
                self._s(results, method, LAST, self._above(INDEPENDENT)),
                Compared(f"Spearman, {LAST}, {title(results.config, method)}", Column(rows, "spearman", "image"),
                         self._above(INDEPENDENT), null=Column(control, "spearman", "image"), control="another photograph"),
            ]  # fmt: skip
        return compared

    def _all(self, results: Results, methods: Sequence[str]) -> Claim:
        """Judge that all but DeepLIFT are independent of the last layer: each interval has to lie above the bound."""
        compared = self._identical(results, [m for m in methods if m in CONVERGING])
        if "deeplift" in methods:
            below_it = self._s(results, "deeplift", LAST, self._below(INDEPENDENT))
            compared.append(dataclasses.replace(below_it, null=1.0, control="a map that ignores the last layer"))
        return Claim("S6", compared)

    def _measures(self, results: Results) -> list[Claim]:
        claims = []
        for name, what in (("pos", CONVERGENCE), ("flat", "cosine similarity of the whole maps")):
            column = Column(results.rows("agreement"), name, "image")
            compared = Compared(f"rank correlation of {what} and s over the methods", column, above(0.8, least=LEAST),
                                null=0.0, control="unrelated measures")  # fmt: skip
            sentence = f"The {what} orders the methods as their insensitivity to the logit does."
            claims.append(Claim(f"S10_{name}", [compared], sentence=sentence, source="The project"))
        return claims

    def _alpha(self, results: Results, methods: Sequence[str]) -> list[Claim]:
        pair = ("lrp_alpha2_beta1", "lrp_alpha1_beta0")
        if not set(pair) <= set(methods):
            return []
        more, less = (
            Column([r for r in results.rows("scale", method=m, network="") if r["test"] == LOGIT], "s", "image")
            for m in pair
        )
        compared = Compared("s of SSIM, random logit, alpha2beta1 - alpha1beta0", more - less, above(0, least=LEAST), null=0.0,
                            control="no difference")  # fmt: skip
        sentence = (
            "By the random logit, LRP-alpha2beta1 depends less on the output than alpha1beta0 does, against the order of their "
            "convergence."
        )
        return [Claim("S8_reversed", [compared], sentence=sentence, source="The project")]

    def _data_range(self, results: Results, methods: Sequence[str]) -> Claim:
        def gap(rows: Rows, name: str, more: Sequence[str], less: Sequence[str]) -> Column:
            high, low = (Column([r for r in rows if r["method"] in some], name, "image") for some in (more, less))
            return high - low

        lifted = gap(results.rows("lifted"), "lifted", NOT_CONVERGING, CONVERGING)
        there = gap(results.rows(network="", test=LOGIT), "ssim", CONVERGING, NOT_CONVERGING)
        compared = [
            Compared(metric, column, above(0, least=LEAST), null=0.0, control="no difference")
            for metric, column in (
                ("SSIM with data_range 2 minus 1, methods that do not converge minus others", lifted),
                ("SSIM of two logits' maps with data_range 1, methods that converge minus others", there),
            )
        ]
        sentence = "The authors' data_range of 2 narrows the gap between the methods; it does not make it."
        return Claim("data_range", compared, sentence=sentence, source="The project")

    # --- figures ------------------------------------------------------------------------------------------------------

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, network = results.config, results.rows("network")[0]
        methods = list(map(str, config.methods))
        images = len({row["image"] for row in results.rows()})

        def values(method: str, test: str, name: str = "") -> list[float]:
            return [r["s"] for r in results.rows("scale", method=method, network=name) if r["test"] == test]

        shown = [(m, "") for m in methods] + [(m, AVERAGED) for m in methods if values(m, LOGIT, AVERAGED)]
        alike = [each for each in shown if self._same(results, *each)]
        shown = sorted(
            (each for each in shown if each not in alike), key=lambda each: mean(values(each[0], LOGIT, each[1]))
        )
        left_out = ", ".join(title(config, m) + f" with {n}" * bool(n) for m, n in alike)
        caption = [
            f"How much of a map stays with another logit, and with another last layer ({network['last']}): s is 0 where the SSIM "
            f"is that of two photographs, 1 where the maps are identical. Mean and 95 % interval over {plural(images, 'image')}",
            f"Lines: {DEPENDENT}, {NEARLY}, {INDEPENDENT}, the bounds of the verdicts",
            f"Left out, since their maps of two photographs are alike (SSIM above {SAME}): {left_out}" if alike else "",
            *words(config),
            f"{config.model.name}, {network['weights']}",
        ]
        figure, (axes,) = plot(5.2, 0.7 + 0.2 * len(shown), caption)
        with styled():
            for y, (method, name) in enumerate(shown):
                for j, test in enumerate((LOGIT, LAST)):
                    if own := values(method, test, name):
                        low, high = interval(own) if len(own) > 1 else (mean(own), mean(own))
                        bars = [[mean(own) - low], [high - mean(own)]]
                        axes.errorbar(mean(own), y + 0.14 * (1 - 2 * j), xerr=bars, fmt="os"[j], color=f"C{j}", markersize=4,
                                      capsize=2, label=test if not y else "")  # fmt: skip
            for bound in (DEPENDENT, NEARLY, INDEPENDENT):
                axes.axvline(bound, color="0.6", linestyle=":", linewidth=0.8, zorder=0)
            axes.set_yticks(range(len(shown)), [title(config, m) + f", {n}" * bool(n) for m, n in shown])
            axes.set_xlim(max(-0.6, axes.get_xlim()[0]), 1.05)
            axes.set_xlabel("s: 0 as another photograph, 1 identical")
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
        return {"figure": figure, **self._maps(results)}

    def _maps(self, results: Results) -> dict[str, Figure]:
        config = results.config
        figures: dict[str, Figure] = {}
        methods = list(map(str, config.methods))[:PICTURED]
        for row in results.rows("shown"):
            image = row["image"]
            pixels = results.arrays[f"{image}/pixels"]
            rows: list[PanelRow] = []
            for kind, label in (("own", f"{row['own']}"), (LOGIT, f"{row['other']}"), (LAST, "random last layer")):
                panels = [Panel(display.picture(pixels), "" if rows else "Input", label)]
                for method in methods:
                    show, _ = display.scaling(method_class(config, method).display)
                    test = results.rows(image=image, method=method, network="", test=kind)
                    note = f"SSIM {test[0]['ssim']:.2f}" if test else ""
                    picture = show(results.arrays[f"{image}/{kind}/{method}"], pixels)
                    panels.append(Panel(picture, "" if rows else title(config, method), note))
                rows.append(PanelRow(panels))
            caption = [
                "Maps of the predicted class, of another logit, and of the predicted class after the last layer was drawn anew; "
                "below, the SSIM with the first row",
                *display.sentences({title(config, m): method_class(config, m).display for m in methods}),
                *words(config),
                f"{config.model.name}, {results.rows('network')[0]['weights']}",
            ]
            figures[f"maps_{len(figures)}" if figures else "maps"] = panel_grid(rows, caption)
        return figures
