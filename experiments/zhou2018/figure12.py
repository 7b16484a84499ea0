"""zhou2018, Figure 12 and the sentences on cost: seconds of an image's evidence by Algorithms 1, 2 and 3.

PDA and its efficient form are timed on the same windows, with full passes; the seconds of an image are those of a window times
n = (H - k + 1)(W - k + 1): 46,225 at 224x224 and k = 10. The simplified form is timed whole. The incremental engine computes
only what a window changes; its windows are evenly spread, since those at the border are cheaper.

The paper states one speed-up in five ways, which exclude each other unless the ratio is exactly S = 10.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.zhou2018 import counts
from experiments.zhou2018.evidence import learn
from experiments.zhou2018.speed import PAPER_BATCH, PAPER_MS, SAMPLES, Speed, mean_of, networks, timed
from vis.claims import Claim, Column, Compared, above, at_small_sizes, below, exactly, mean_and_spread, near, replicated
from vis.figures.layout import plot, styled
from vis.methods import PDAGradient
from vis.models import Model
from vis.runner.experiment import Run
from vis.store.run_folder import Results
from vis.store.tables import Rows
from vis.windows.engine import Incremental

SPEED_UPS = {  # of one and the same ratio
    "Abstract": "approximately 10", "Section 1": "up to 10", "Section 2.1": "at least S", "Section 3": "10",
    "Section 4": "at least 10",
}  # fmt: skip
ALGORITHMS = {
    "pda": "PDA",
    "efficient": "efficient",
    "pda_engine": "PDA, engine",
    "efficient_engine": "efficient, engine",
    "simplified_window": "simplified",
}


class Figure12(Speed):
    """Time windows. windows: of the engine in a round. pairs: windows on which both algorithms are timed with full passes."""

    def __init__(self, windows: int, pairs: int, **common: Any) -> None:
        super().__init__(**common)
        self.windows, self.pairs = windows, pairs

    def counted(self, run: Run, model: Model, x: Tensor) -> dict[str, Any]:
        return counts.of_network(model.net, x) | counts.of_algorithms(model.net, x, next(iter(run.methods.values())))

    def measured(self, run: Run, model: Model, x: Tensor) -> dict[str, Any]:
        """Measure the seconds of a window by each algorithm, and of their parts; of an image for the simplified form."""
        learn(run, model, False)
        method: Any = next(iter(run.methods.values()))
        net = model.net
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
            "simplified_window": gradient / n,
        }
        row |= {"pda_engine": base / n + S * engine_pass + row["draw"], "error": float(error)}
        row |= {"efficient_engine": base / n + engine_pass + row["mean"]}
        row |= {"passes": sum(passed[1:-1]) / len(few), "passes_efficient": passed[-1] / len(few)}
        return row | derived(row)

    # --- from what is stored ------------------------------------------------------------------------------------------

    def claims(self, results: Results) -> list[Claim]:
        seconds = replicated(self._of_windows(results), self.differences(results), at_small_sizes(results.config))
        return [*seconds, *counts.claims(results)]

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
        """Return the seconds of an image beside the paper's, the speed-ups beside its sentences, and ratios by round."""
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
        names, first, where = networks(results), results.rows()[0], self.where(results)
        counts = ", ".join(dict.fromkeys(f"{r['windows']:,}" for r in results.rows()))
        ratios = ", ".join(f"{n} {mean_and_spread([r['ratio'] for r in results.rows(network=n)])}" for n in names)
        caption = [
            f"{self.source}: seconds of an image's evidence, derived for {counts} windows from {self.pairs} with full passes "
            f"and {self.windows} with the engine, {first['samples']} draws for PDA; {where}. PDA, efficient, "
            "simplified: Algorithms 1, 2 and 3, of which the last was measured whole",
            "Engine: only what a window changes is computed, exactly. Rings: the paper's Tesla K80, derived from its Table 1 "
            "for 46,225 windows, without the drawing",
            f"PDA over the efficient form, full passes: {ratios}. The paper calls this ratio "
            + ", ".join(f"{text} ({place})" for place, text in SPEED_UPS.items()),
        ]
        figure, (axes,) = plot(5.6, 2.6, caption)
        with styled():
            for j, (name, title) in enumerate(ALGORITHMS.items()):
                seconds = [results.rows(network=n)[0]["windows"] * mean_of(results, n, name) for n in names]
                places = [i + 0.17 * (j - 2) for i in range(len(names))]
                axes.bar(places, seconds, 0.15, label=title, color=f"C{j}")
                for place, value, n in zip(places, seconds, names, strict=True):
                    text = f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
                    axes.text(place, 1.1 * value, text, ha="center", fontsize=6)
                    if name in ("pda", "efficient") and n in PAPER_MS:
                        axes.plot(place, paper_seconds(n, name), "o", mfc="none", color="black")
            axes.set(yscale="log", ylabel="seconds for an image")
            axes.set_xticks(range(len(names)), names)
            axes.legend(ncols=5, columnspacing=1, loc="lower center", bbox_to_anchor=(0.5, 1))
        return {"figure": figure}


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
