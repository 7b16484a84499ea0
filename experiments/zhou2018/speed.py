"""zhou2018, Table 1, Figure 12 and the sentences on cost: seconds and counts of forward passes, draws and conditional means.

A round measures each network once, so that other load on the machine affects all alike. PDA and its efficient form are timed
on the same windows, with full passes; the seconds of an image are those of a window times n = (H - k + 1)(W - k + 1):
46,225 at 224x224 and k = 10. (The paper counts 224 x 224 = 50,176 for the passes of Table 1, its own loop 46,225.) The
incremental engine computes only what a window changes; its windows are evenly spread, since those at the border are cheaper.

The paper states one speed-up in five ways, which exclude each other unless the ratio is exactly S = 10.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from experiments.zhou2018.evidence import learn
from vis.claims import Claim, Column, Compared, above, at_small_sizes, below, exactly, mean_and_spread, near, replicated
from vis.figures.layout import plot, styled
from vis.graph.modes import evaluating
from vis.methods import PDA, PDAGradient
from vis.methods.perturbation import windows_of
from vis.methods.target import Target
from vis.models import Model
from vis.runner.experiment import Experiment, Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows
from vis.system.device import hardware, synchronise
from vis.windows.engine import Incremental

PAPER_MS = {"alexnet": 342, "vgg16": 3301, "googlenet": 634}  # Table 1: a batch of 160 on a Tesla K80
PAPER_BATCH, PAPER_WINDOWS, SAMPLES = 160, 224 * 224, 10
SPEED_UPS = {  # of one and the same ratio
    "Abstract": "approximately 10", "Section 1": "up to 10", "Section 2.1": "at least S", "Section 3": "10",
    "Section 4": "at least 10",
}  # fmt: skip
ALGORITHMS = {
    "pda": "PDA",
    "efficient": "efficient",
    "pda_engine": "PDA, engine",
    "efficient_engine": "efficient, engine",
}


class Counted(TorchDispatchMode):
    """Count softmaxes, and convolutions forward and backward, while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax = self.forward = self.backward = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        self.softmax += found[..., 0].numel() if name == "_softmax" else 0
        self.forward += name == "convolution"
        self.backward += name == "convolution_backward"
        return found


class Speed(Experiment):
    """Measure seconds of passes and windows.

    models: {name: config node, or null for none}. batch: images of a forward pass. rounds: measurements of each. windows:
    windows of the engine in a round; 0 measures the forward pass alone. pairs: windows on which both algorithms are timed
    with full passes. source: the paper's item.
    """

    def __init__(
        self,
        models: Mapping[str, Mapping[str, Any] | None],
        source: str,
        batch: int,
        rounds: int,
        windows: int,
        pairs: int = 16,
    ) -> None:
        self.models = {name: node for name, node in models.items() if node is not None}
        self.source, self.batch, self.rounds = source, batch, rounds
        self.windows, self.pairs = windows, pairs
        self._built: dict[str, Model] = {}

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"round": i} for i in range(self.rounds)]

    def compute(self, run: Run, task: Task) -> Output:
        output = Output(tables={"table": [], "counts": []})
        for name, node in self.models.items():
            if name not in self._built:
                self._built[name] = run.model(node)
            model, where = self._built[name], {"network": name, "round": task["round"]}
            with evaluating(model.net):
                x = run.batch(model, [0]).x
                row = where | {"side": model.input_size[0], "device": hardware(run.device)}
                row["threads"] = torch.get_num_threads()
                if self.windows:
                    learn(run, model, False)
                    (method,) = run.methods.values()
                    row |= self._windows(run, model.net, x, method)
                else:
                    row |= self._forward(run, model, x)
                output.tables["table"].append(row)
                if task["round"] == 0:
                    counted = self._counts(model.net, x, run.methods if self.windows else {})
                    output.tables["counts"].append({"network": name} | counted)
        return output

    def _forward(self, run: Run, model: Model, x: Tensor) -> dict[str, Any]:
        """Measure the seconds of an image in a batch."""
        size = self.batch if run.config.batch_size == "auto" else min(self.batch, run.config.batch_size)
        images = x.repeat(size, 1, 1, 1).contiguous(memory_format=model.memory_format)
        passes = -(-self.batch // size)
        with torch.no_grad():
            seconds, _ = timed(x, lambda: [model.net(images) for _ in range(passes)], lambda: model.net(images[:2]))
        return {"forward": seconds / (size * passes), "batch": size * passes}

    def _windows(self, run: Run, net: nn.Module, x: Tensor, method: Any) -> dict[str, Any]:
        """Measure the seconds of a window by each algorithm, and of their parts; of an image for the simplified form."""
        every, k, S, learnt = method.windows(x), method.window, method.samples, method.learnt
        some, few = (every[np.linspace(0, len(every) - 1, n).astype(int)] for n in (self.windows, self.pairs))
        size = self.batch if run.config.batch_size == "auto" else run.config.batch_size
        passed: list[int] = []

        def full(windows: Tensor, contents: Tensor) -> Tensor:
            """Pass copies of the image with contents [n, S, C, k, k] in the windows [n, 2]."""
            images = x.repeat(contents.shape[0] * contents.shape[1], 1, 1, 1)
            at = windows.repeat_interleave(contents.shape[1], 0).tolist()
            for image, (top, left), content in zip(images, at, contents.flatten(0, 1), strict=True):
                image[:, top : top + k, left : left + k] = content
            return torch.cat([net(part) for part in images.split(size)])

        with torch.no_grad():
            draw, _ = timed(x, lambda: learnt.samples(x[0], some, k, S, run.config.seed))
            mean, contents = timed(x, lambda: learnt.means(x[0], some, k))
            drawn, means = learnt.samples(x[0], few, k, S, run.config.seed), learnt.means(x[0], few, k)
            hook = net.register_forward_hook(lambda _, inputs, output: passed.append(len(inputs[0])))
            of_draws, _ = timed(x, lambda: full(few, drawn), lambda: full(few[:2], means[:2, None]))
            of_means, _ = timed(x, lambda: full(few, means[:, None]), lambda: None)
            hook.remove()
            base, engine = timed(x, lambda: Incremental(net, x, method.memory_gb))
            rest, logits = timed(
                x, lambda: engine.logits(some, contents), lambda: engine.logits(some[:4], contents[:4])
            )
            tenth = slice(None, None, max(1, len(some) // 10))
            whole = full(some[tenth], contents[tenth, None])
            error = (logits[tenth] - whole).abs().max() / whole.abs().max()
            fit, _ = timed(x, lambda: replace(learnt).means(x[0], few[:1], k), lambda: None)
        simplified = PDAGradient(window=k, patch=method.patch)
        simplified.learnt = learnt
        gradient, _ = timed(x, lambda: simplified(net, x, [0]))
        n, engine_pass = len(every), rest / len(some)
        row = {"windows": n, "samples": S, "batch": size, "draw": draw / len(some), "mean": mean / len(some)}
        row |= {"forward": of_draws / (S * len(few)), "pda": row["draw"] + of_draws / len(few)}
        row |= {
            "efficient": row["mean"] + of_means / len(few),
            "engine": engine_pass,
            "fit": fit,
            "simplified": gradient,
        }
        row |= {"pda_engine": base / n + S * engine_pass + row["draw"], "error": float(error)}
        row |= {"efficient_engine": base / n + engine_pass + row["mean"]}
        row |= {"passes": sum(passed[1:-1]) / len(few), "passes_efficient": passed[-1] / len(few)}
        return row | derived(row)

    def _counts(self, net: nn.Module, x: Tensor, methods: Mapping[str, Any]) -> dict[str, Any]:
        """Count layers and operations of a network; and windows, softmaxes and passes of the algorithms."""
        leaves = [m for m in net.modules() if not list(m.children())]
        row: dict[str, Any] = {"weight_layers": sum(isinstance(m, nn.Conv2d | nn.Linear) for m in leaves)}
        row["max_poolings"] = sum(isinstance(m, nn.MaxPool2d) for m in leaves)
        with FlopCounterMode(display=False) as operations, Counted() as once, torch.no_grad():
            net(x)
        row["operations"], passed = operations.get_total_flops(), list[int]()
        for found in methods.values():
            method: Any = found
            size, S = (x.shape[2], x.shape[3]), method.samples
            logits = torch.randn(7, S, 10, generator=torch.Generator().manual_seed(0))
            for average in ("logit", "probability"):
                with Counted() as counted:
                    PDA(average=average)._measure(logits, Target(0))
                row[f"softmaxes_{average}"] = counted.softmax / len(logits)
            row["windows"] = len(windows_of(size, method.window))
            row |= {"samples_of_windows": S * row["windows"], "samples_of_pixels": S * size[0] * size[1]}
            simplified = PDAGradient(window=method.window, patch=method.patch)
            simplified.learnt = method.learnt
            hook = net.register_forward_hook(lambda _, inputs, output: passed.append(len(inputs[0])))
            with Counted() as counted:
                simplified(net, x, [0])
            hook.remove()
            row |= {"forward_passes": sum(passed), "backward_passes": counted.backward / once.forward}
        return row

    # --- from what is stored ------------------------------------------------------------------------------------------

    def claims(self, results: Results) -> list[Claim]:
        first = results.rows()[0]
        differences = [f"{first['device']} with PyTorch instead of a Tesla K80 with Caffe"]
        differences += [f"batches of {first['batch']} instead of {PAPER_BATCH}"] * (first["batch"] != PAPER_BATCH)
        timed_claims = self._of_windows(results) if self.windows else self._of_passes(results)
        return [
            *replicated(timed_claims, differences, at_small_sizes(results.config)),
            *(self._counted(results) if self.windows else self._of_table_1(results)),
        ]

    def _of_passes(self, results: Results) -> list[Claim]:
        names = networks(results)
        if set(PAPER_MS) - set(names):
            return [Claim(id_, [], reason=f"it compares {', '.join(PAPER_MS)}") for id_ in ("Z-2-e", "Z-2-f")]
        counts = {r["network"]: r["operations"] for r in results.rows("counts")}
        ratios = []
        for name in ("vgg16", "googlenet"):
            paper = PAPER_MS[name] / PAPER_MS["alexnet"]
            ratios.append(
                Compared(
                    f"seconds of {name} over AlexNet's (paper {paper:.2f})",
                    Column(results.rows("rounds"), f"{name} / alexnet", "round"),
                    near(paper, 0.25 * paper, ours="a quarter of the paper's ratio is ours"),
                    null=counts[name] / counts["alexnet"],
                    control="the ratio of their operations",
                )
            )
        expensive = Compared(
            "seconds of VGG-16 over the next slowest", Column(results.rows("rounds"), "vgg16 / next", "round"),
            above(2, ours="twice is ours"), null=1.0, control="networks that take equally long",
        )  # fmt: skip
        return [
            Claim("Z-2-e", ratios, paper=" / ".join(f"{PAPER_MS[n]} ms" for n in ("alexnet", "vgg16", "googlenet"))),
            Claim("Z-2-f", [expensive], paper=round(3301 / 634, 1)),
        ]

    def _of_table_1(self, results: Results) -> list[Claim]:
        inference = Compared(
            "minutes of 501,760 passes at the paper's 3.301 s for 160 (its number of samples is judged apart)",
            Column(results.rows("inference"), "minutes", "network"), exactly(172, within=1.72),
            null=Column(results.rows("inference"), "of 46,225 windows", "network"), control="10 samples of 46,225 windows",
        )  # fmt: skip
        layers = [
            Compared(
                f"{name.replace('_', '-')} of VGG-16", Column(results.rows("counts", network="vgg16"), name, "network"),
                exactly(count), null=Column(results.rows("counts", network="alexnet"), name, "network"), control="AlexNet",
            )
            for name, count in (("weight_layers", 16), ("max_poolings", 4))
        ]  # fmt: skip
        return [Claim("Z-2-c", [inference], paper=172), Claim("Z-3-r", layers)]

    def _counted(self, results: Results) -> list[Claim]:
        counts = results.rows("counts")

        def count(id_: str, metric: str, name: str, rule: Any, other: str, control: str) -> Claim:
            null = Column(counts, other, "network")
            return Claim(id_, [Compared(metric, Column(counts, name, "network"), rule, null=null, control=control)])

        passes = Compared(
            "forward passes of Algorithm 1 over those of Algorithm 2, without the one of the image itself",
            Column(results.rows(), "passes_ratio", ("network", "round")), exactly(results.rows()[0]["samples"]),
            null=1.0, control="Algorithm 1 against itself",
        )  # fmt: skip
        one = [
            Compared(
                f"{way} passes of Algorithm 3", Column(counts, f"{way}_passes", "network"), exactly(1),
                null=Column(counts, "windows", "network"), control="a pass for each window, Algorithm 2",
            )
            for way in ("forward", "backward")
        ]  # fmt: skip
        pixels = "one window for each pixel"
        return [
            count("Z-2-a", "windows of 10x10 in 224x224", "windows", exactly(215**2), "pixels", pixels),
            count(
                "Z-2-b", "S (n - k + 1)^2, the samples by the paper's own count of windows", "samples_of_windows",
                exactly(501_760), "samples_of_pixels", "224 x 224 x 10, one window for each pixel: equal",
            ),
            count(
                "Z-2.1-c", "softmaxes of a window where logits are averaged", "softmaxes_logit", exactly(1),
                "softmaxes_probability", "where probabilities are averaged",
            ),
            Claim("Z-2.1-v", [passes], paper=SAMPLES),
            Claim("Z-F19-c", one),
        ]  # fmt: skip

    def _of_windows(self, results: Results) -> list[Claim]:
        names = networks(results)

        def each(metric: str, name: str, rule: Any, null: str | float, control: str, of: Sequence[str] = names) -> Any:
            found = []
            for n in of:
                rows = results.rows(network=n)
                other = Column(rows, null, "round") if isinstance(null, str) else null
                text = f"{metric}, {n}"
                found.append(Compared(text, Column(rows, name, "round"), rule, null=other, control=control))
            return found

        ratio, one = "seconds of PDA over those of the efficient form on the same windows", "PDA with one sample"
        at_least = each(ratio, "ratio", above(SAMPLES), "ratio_1", one)
        most = Compared(
            f"{ratio}, the largest of {', '.join(names)}", Column(results.rows("rounds"), "largest", "round"),
            below(10.5, ours="10 and its rounding"), null=Column(results.rows("rounds"), "with the engine", "round"),
            control="the efficient form with the incremental engine",
        )  # fmt: skip
        vgg = [n for n in names if n == "vgg16"]
        engine = each("seconds of a full pass over the engine's", "engine_ratio", above(1), 1.0, "a second full pass")
        exact = Compared(
            "largest |logit of the engine - logit of a full pass|, over the largest logit",
            Column(results.rows(), "error", ("network", "round")), exactly(0, within=1e-4),
            null=1.0, control="logits of 0",
        )  # fmt: skip
        return [
            Claim("Z-1-v", [most], paper="up to 10"),
            Claim("Z-2.1-w", at_least, paper="at least S = 10"),
            Claim("Z-3-k", each(ratio, "ratio", near(10, 1, ours="1 is ours"), "ratio_1", one), paper=10),
            Claim("Z-4-a", at_least, paper="at least 10"),
            Claim(
                "Z-2-h", each("seconds of a conditional mean over those of a pass", "mean_share",
                below(0.05, 0.2, ours="the shares are ours"), "fit_share", "its matrices computed anew"),
            ),
            Claim(
                "Z-2-i", each("seconds of PDA with full passes over those with the engine, same draws and passes",
                "pda_engine_ratio", below(1.5, 2, ours="the bounds are ours"), "ratio", "the efficient form, which reduces both"),
            ),
            Claim(
                "Z-F16-c", each("seconds of an image by PDA with 300 samples and the engine", "seconds_300",
                above(3600, 600, ours="an hour and 10 minutes are ours"), "seconds_efficient", "the efficient form", vgg),
                reason="" if vgg else "it is about VGG-16",
            ),
            Claim(
                "Z-F19-f", each("seconds of the efficient form over the simplified one's", "simplified_ratio",
                above(2, 1, ours="twice is ours"), 1.0, "equal seconds"),
            ),
            Claim(
                "Z-4-b", each("share of the saved seconds that is due to draws", "draw_share",
                above(0.05, 0.01, ours="the shares are ours"), 0.0, "draws that cost nothing"),
            ),
            Claim(
                "engine", engine, sentence="The incremental engine passes a window faster than a full pass.", source=self.source
            ),
            Claim("exact", [exact], sentence="The engine's logits are those of full passes.", source=self.source),
        ]  # fmt: skip

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return ours beside the paper's: Table 1, or the seconds of an image and the speed-ups; and ratios by round."""
        return self._summary_of_windows(results) if self.windows else self._summary_of_passes(results)

    def _summary_of_passes(self, results: Results) -> dict[str, Rows]:
        summary: Rows = []
        for n in networks(results):
            rows = results.rows(network=n)
            ms = [1000 * PAPER_BATCH * r["forward"] for r in rows]
            row = {"network": n, "input size": f"{rows[0]['side']}x{rows[0]['side']}", "device": rows[0]["device"]}
            row |= {f"ms of {PAPER_BATCH} images": mean_and_spread(ms), "paper (K80), ms": PAPER_MS.get(n)}
            row |= {"measured with a batch of": rows[0]["batch"]}
            minutes = [PAPER_WINDOWS * SAMPLES * r["forward"] / 60 for r in rows]
            row |= {"minutes of 501,760 passes": mean_and_spread(minutes)}
            row |= {"paper (K80), min": 172 if n == "vgg16" else None}
            summary.append(row)
        rounds: Rows = []
        for i in dict.fromkeys(r["round"] for r in results.rows()):
            of = {r["network"]: r["forward"] for r in results.rows(round=i)}
            if set(PAPER_MS) <= of.keys():
                row = {"round": i} | {f"{n} / alexnet": of[n] / of["alexnet"] for n in ("vgg16", "googlenet")}
                rounds.append(row | {"vgg16 / next": of["vgg16"] / max(of["alexnet"], of["googlenet"])})
        batches = {"minutes": PAPER_WINDOWS * SAMPLES, "of 46,225 windows": 46_225 * SAMPLES}
        seconds = PAPER_MS["vgg16"] / 1000 / PAPER_BATCH
        inference = {"network": "vgg16"} | {name: passes * seconds / 60 for name, passes in batches.items()}
        return {"summary": summary, "rounds": rounds, "inference": [inference]}

    def _summary_of_windows(self, results: Results) -> dict[str, Rows]:
        summary, speed_ups, rounds = [], [], []
        for n in networks(results):
            rows = results.rows(network=n)
            count, device = rows[0]["windows"], {"network": n, "device": rows[0]["device"]}
            row: dict[str, Any] = dict(device)
            for name, title in ALGORITHMS.items():
                row[f"{title}, s ({count} windows)"] = mean_and_spread([count * r[name] for r in rows])
                row |= {f"paper (K80), {title}, s": paper_seconds(n, name)} if name in ("pda", "efficient") else {}
            row["draws of all windows, s"] = mean_and_spread([count * r["draw"] for r in rows])
            row |= {
                "paper (Core i5), 501,760 draws, s": 300,
                "simplified, s": mean_and_spread([r["simplified"] for r in rows]),
            }
            row["PDA of 300 samples, engine, s"] = mean_and_spread([r["seconds_300"] for r in rows])
            summary.append(row)
            speed_ups.append(device | {"PDA / efficient": mean_and_spread([r["ratio"] for r in rows])} | SPEED_UPS)
        for i in dict.fromkeys(r["round"] for r in results.rows()):
            of = results.rows(round=i)
            row = {"round": i, "largest": max(r["ratio"] for r in of)}
            rounds.append(row | {"with the engine": max(r["pda"] / r["efficient_engine"] for r in of)})
        return {"summary": summary, "speed_ups": speed_ups, "rounds": rounds}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        names, first = networks(results), results.rows()[0]
        rounds, threads = plural(self.rounds, "round"), plural(first["threads"], "thread")
        where = f"{first['device']}, {threads}, {results.config.precision}, mean of {rounds}"
        if not self.windows:
            sentence = f"{self.source}: forward pass of {PAPER_BATCH} images, measured with a batch of {first['batch']}; {where}"
            misprints = (
                "Rings: the paper's Tesla K80. Its 501,760 passes count 224 x 224 windows, its own loop has 215 x 215; its "
                "VGG-16 has 4 max-poolings, the network 5"
            )
            figure, (axes,) = plot(3.4, 2.2, [sentence, misprints])
            with styled():
                axes.bar(names, [1000 * PAPER_BATCH * _mean(results, n, "forward") for n in names], color="tab:blue")
                axes.plot(names, [PAPER_MS.get(n, np.nan) for n in names], "o", mfc="none", color="black")
                axes.set(yscale="log", ylabel="milliseconds")
            return {"figure": figure}
        counts = ", ".join(dict.fromkeys(f"{r['windows']:,}" for r in results.rows()))
        ratios = ", ".join(f"{n} {mean_and_spread([r['ratio'] for r in results.rows(network=n)])}" for n in names)
        caption = [
            f"{self.source}: seconds of an image's evidence, derived for {counts} windows, of which {self.pairs} were measured "
            f"with full passes and {self.windows} with the engine, {first['samples']} draws for PDA; {where}",
            "Engine: only what a window changes is computed, exactly. Rings: the paper's Tesla K80, derived from its Table 1 "
            "for 46,225 windows, without the drawing",
            f"PDA over the efficient form, full passes: {ratios}. The paper calls this ratio "
            + ", ".join(f"{text} ({place})" for place, text in SPEED_UPS.items()),
        ]
        figure, (axes,) = plot(5.6, 2.6, caption)
        with styled():
            for j, (name, title) in enumerate(ALGORITHMS.items()):
                seconds = [results.rows(network=n)[0]["windows"] * _mean(results, n, name) for n in names]
                places = [i + 0.2 * (j - 1.5) for i in range(len(names))]
                axes.bar(places, seconds, 0.18, label=title, color=f"C{j}")
                for place, value, n in zip(places, seconds, names, strict=True):
                    text = f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
                    axes.text(place, 1.1 * value, text, ha="center", fontsize=6)
                    if name in ("pda", "efficient") and n in PAPER_MS:
                        axes.plot(place, paper_seconds(n, name), "o", mfc="none", color="black")
            axes.set(yscale="log", ylabel="seconds for an image")
            axes.set_xticks(range(len(names)), names)
            axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
        return {"figure": figure}


def timed(x: Tensor, work: Callable[[], Any], warm: Callable[[], Any] | None = None) -> tuple[float, Any]:
    """Return the seconds of `work` on the device of x, and what it returns; `warm`, by default `work`, runs before."""
    (warm or work)()
    synchronise(x.device)
    began = time.perf_counter()
    value = work()
    synchronise(x.device)
    return time.perf_counter() - began, value


def derived(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the ratios and shares of a round that claims compare, from its seconds of a window."""
    S, n = row["samples"], row["windows"]
    return {
        "ratio": row["pda"] / row["efficient"],
        "ratio_1": (row["forward"] + row["draw"] / S) / row["efficient"],
        "passes_ratio": row["passes"] / row["passes_efficient"],
        "mean_share": row["mean"] / row["forward"],
        "fit_share": row["fit"] / row["forward"],
        "engine_ratio": row["forward"] / row["engine"],
        "pda_engine_ratio": row["pda"] / row["pda_engine"],
        "seconds_300": n * 300 * (row["engine"] + row["draw"] / S),
        "seconds_efficient": n * row["efficient_engine"],
        "simplified_ratio": n * row["efficient"] / row["simplified"],
        "draw_share": (row["draw"] - row["mean"]) / (row["pda"] - row["efficient"]),
    }


def paper_seconds(network: str, algorithm: str) -> float | None:
    """Return the seconds of an image that follow from the paper's Table 1 for 46,225 windows, without the drawing."""
    passes = 46_225 * (SAMPLES if algorithm == "pda" else 1)
    return passes / PAPER_BATCH * PAPER_MS[network] / 1000 if network in PAPER_MS else None


def networks(results: Results) -> list[str]:
    """Return the names of the networks."""
    return list(dict.fromkeys(r["network"] for r in results.rows()))


def _mean(results: Results, network: str, column: str) -> float:
    return float(np.mean([r[column] for r in results.rows(network=network)]))
