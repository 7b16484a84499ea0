"""A claim of a paper, what was measured, and the verdict.

A claim that fails is a result, not a crash; its rule is fixed before it is measured. On stand-in weights or data, and
where something is missing, it is not measured, with the reason.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Rule:
    """When a claim holds: a sentence for people, a predicate for the numbers (one for each seed or image)."""

    text: str
    holds: Callable[[Sequence[float]], bool]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def above(bound: float, each: bool = False) -> Rule:
    """The mean (or each value) is greater than the bound."""
    if each:
        return Rule(f"each > {bound:g}", lambda values: min(values) > bound)
    return Rule(f"mean > {bound:g}", lambda values: _mean(values) > bound)


def below(bound: float, each: bool = False) -> Rule:
    """The mean (or each value) is less than the bound."""
    if each:
        return Rule(f"each < {bound:g}", lambda values: max(values) < bound)
    return Rule(f"mean < {bound:g}", lambda values: _mean(values) < bound)


def near_zero(bound: float) -> Rule:
    """The mean lies within the bound of 0."""
    return Rule(f"|mean| < {bound:g}", lambda values: abs(_mean(values)) < bound)


def within(target: float, fraction: float) -> Rule:
    """Each value is within a fraction of the target."""
    return Rule(
        f"each within {fraction:.0%} of {target:g}",
        lambda values: all(abs(value - target) <= fraction * abs(target) for value in values),
    )


def increasing() -> Rule:
    """The values, in the order given, grow from each to the next."""
    return Rule("increasing", lambda values: all(b > a for a, b in pairwise(values)))


@dataclass(frozen=True)
class Claim:
    """One claim.

    name: short and unique in the experiment; sentence: the paper's, or a finding's; source: where it stands;
    metric: what the numbers are; values: one for each seed, image or setting; paper: the paper's own value, if it gives
    one; reason: why it could not be measured (then there are no values).
    """

    name: str
    sentence: str
    source: str
    metric: str
    rule: Rule
    values: Sequence[float] = field(default=())
    paper: float | str | None = None
    reason: str = ""

    @property
    def verdict(self) -> str:
        """`holds`, `fails` or `not measured`."""
        if self.reason or not len(self.values):
            return "not measured"
        if any(not math.isfinite(value) for value in self.values):
            return "fails"
        return "holds" if self.rule.holds(self.values) else "fails"

    @property
    def measured(self) -> str:
        """mean ± standard deviation (n), or the values where there are few and the rule is about their order."""
        if self.verdict == "not measured":
            return self.reason or "no values"
        if self.rule.text == "increasing":
            return ", ".join(f"{value:.3g}" for value in self.values)
        if len(self.values) == 1:
            return f"{self.values[0]:.4g}"
        return f"{_mean(self.values):.4g} ± {statistics.stdev(self.values):.2g} (n = {len(self.values)})"

    def record(self) -> dict[str, Any]:
        """What claims.json holds."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "source": self.source,
            "metric": self.metric,
            "rule": self.rule.text,
            "paper": self.paper,
            "measured": self.measured,
            "values": [float(value) for value in self.values],
            "mean": _mean(self.values) if len(self.values) else None,
            "std": statistics.stdev(self.values) if len(self.values) > 1 else None,
        }
