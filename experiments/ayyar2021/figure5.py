"""ayyar2021, Figure 5: a ReLU in the forward pass, in backpropagation, in DeconvNet and in guided backpropagation, in numbers."""

from typing import ClassVar

import numpy as np

from experiments.relu_rules import ReluRules
from vis.claims import Claim, Column, Compared, exactly
from vis.store.run_folder import Results
from vis.store.tables import Rows


class Figure5(ReluRules):
    titles: ClassVar = {
        "y": "input $Y_n$",
        "o": "(a) forward\nReLU($Y_n$)",
        "R": "gradient R\narrives",
        "saliency": "(b) backpropagation\nR · 1[$Y_n$ > 0]",
        "deconvnet": "(c) DeconvNet\nReLU(R)",
        "gbp": "(d) guided\nReLU(R) · 1[$Y_n$ > 0]",
    }

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return for each method the largest difference from each rule that the survey writes."""
        y, o, R = (results.arrays[name] for name in ("y", "o", "R"))
        rules = {"input": R * (y > 0), "output": R * (o > 0), "maps": R.clip(0), "both": R.clip(0) * (y > 0)}
        maps = {method: results.arrays[method] for method in results.config.methods}
        return {
            "differences": [
                {"method": method} | {rule: float(np.abs(T - expected).max()) for rule, expected in rules.items()}
                for method, T in maps.items()
            ]
        }

    def claims(self, results: Results) -> list[Claim]:
        def equal(method: str, rule: str, words: str, null: str) -> Compared:
            rows = results.rows("differences", method=method)
            own, other = (Column(rows, name, "method") for name in (rule, null))
            return Compared(f"largest |T - {words}", own, exactly(0, 1e-15), null=other, control="another rule")

        deconvnet = [
            equal("deconvnet", "maps", "R · 1[R > 0]|, on the maps", "input"),
            equal("deconvnet", "output", "R · 1[Y_{n+1} > 0]|, on the output", "input"),
        ]
        return [
            Claim("A-4.2-a", [equal("saliency", "input", "R · 1[Y_n > 0]|", "maps")]),
            Claim("A-4.2-b", deconvnet),
            Claim("A-4.3-a", [equal("gbp", "both", "R · 1[R > 0] · 1[Y_n > 0]|", "maps")]),
        ]
