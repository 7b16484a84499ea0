"""nie2018, Figure 1: how a gradient passes a ReLU under the three rules of Eq. (1)-(2), as a numeric example."""

from typing import ClassVar

import numpy as np

from experiments.relu_rules import ReluRules
from vis.claims import Claim, Column, Compared, exactly
from vis.store.run_folder import Results
from vis.store.tables import Rows


class Figure1(ReluRules):
    titles: ClassVar = {
        "y": "input y",
        "o": "output\no = ReLU(y)",
        "R": "gradient R\narrives",
        "saliency": "saliency map\nT = R · 1[y > 0]",
        "deconvnet": "DeconvNet\nT = ReLU(R)",
        "gbp": "GBP\nT = ReLU(R) · 1[y > 0]",
    }

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Largest difference of each method from its rule, and from the rules of the others (the smallest of these)."""
        y, R = results.arrays["y"], results.arrays["R"]
        rule = {"saliency": R * (y > 0), "deconvnet": R.clip(0), "gbp": R.clip(0) * (y > 0)}
        rows = []
        for method in (m for m in results.config.methods if m in rule):
            off = {name: float(np.abs(results.arrays[method] - T).max()) for name, T in rule.items()}
            rows.append({"method": method, "own": off.pop(method), "others": min(off.values())})
        return {"differences": rows}

    def claims(self, results: Results) -> list[Claim]:
        own, others = (Column(results.rows("differences"), name, "method") for name in ("own", "others"))
        metric = "largest difference from T = h(R) g'(y)"
        return [
            Claim("N-2.1-a", [Compared(metric, own, exactly(0, 1e-15), null=others, control="another method's rule")])
        ]
