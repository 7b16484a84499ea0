"""A claim of a paper, what was measured, and the verdict.

A claim that fails is a result, not a crash; its rule is fixed before it is measured. On stand-in weights or data, and
where something is missing, it is not measured, with the reason.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Rule:
    """When a claim holds: a sentence for people, a predicate for the numbers (one for each seed, image or setting).

    least: how many numbers it takes; two for an interval or an order.
    """

    text: str
    holds: Callable[[Sequence[float]], bool]
    least: int = 1


def mean(values: Sequence[float]) -> float:
    """The mean; NaN where a value is not finite."""
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def spread(values: Sequence[float]) -> float:
    """The sample's standard deviation; NaN where a value is not finite."""
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """(lower, upper) end of the confidence interval of the mean, by Student's t; infinite for a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return -math.inf, math.inf
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * spread(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """`0.763 ± 0.016`: mean and standard deviation to the decimal place where the larger has `digits` digits."""
    average = mean(values)
    deviation = spread(values) if len(values) > 1 else 0.0
    size = max(abs(average), deviation)
    if not math.isfinite(size):
        texts = [str(average), str(deviation)]
    elif size >= 1e5 or 0 < size < 1e-3:
        texts = [f"{v:.{digits - 1}e}" for v in (average, deviation)]
    else:
        decimals = min(3, max(0, digits - 1 - math.floor(math.log10(size)))) if size else 0
        texts = [f"{v:z.{decimals}f}" for v in (average, deviation)]
    return " ± ".join(texts) if len(values) > 1 else texts[0]


def above(bound: float, each: bool = False) -> Rule:
    """The mean (or each value) is greater than the bound."""
    if each:
        return Rule(f"each > {bound:g}", lambda values: min(values) > bound)
    return Rule(f"mean > {bound:g}", lambda values: mean(values) > bound)


def below(bound: float, each: bool = False) -> Rule:
    """The mean (or each value) is less than the bound."""
    if each:
        return Rule(f"each < {bound:g}", lambda values: max(values) < bound)
    return Rule(f"mean < {bound:g}", lambda values: mean(values) < bound)


def interval_above(bound: float) -> Rule:
    """The 95 % interval of the mean lies above the bound."""
    return Rule(f"95% interval of the mean above {bound:g}", lambda values: interval(values)[0] > bound, least=2)


def interval_below(bound: float) -> Rule:
    """The 95 % interval of the mean lies below the bound."""
    return Rule(f"95% interval of the mean below {bound:g}", lambda values: interval(values)[1] < bound, least=2)


POSITIVE = interval_above(0)


def near_zero(bound: float, each: bool = False) -> Rule:
    """The mean (or each value) lies within the bound of 0."""
    if each:
        return Rule(f"each |value| < {bound:g}", lambda values: max(map(abs, values)) < bound)
    return Rule(f"|mean| < {bound:g}", lambda values: abs(mean(values)) < bound)


def within(target: float, fraction: float) -> Rule:
    """Each value is within a fraction of the target."""
    return Rule(
        f"each within {fraction:.0%} of {target:g}",
        lambda values: all(abs(value - target) <= fraction * abs(target) for value in values),
    )


def increasing() -> Rule:
    """The values, in the order given, grow from each to the next."""
    return Rule("each above the one before", lambda values: all(b > a for a, b in pairwise(values)), least=2)


@dataclass(frozen=True)
class Claim:
    """One claim.

    name: short and unique in the experiment; sentence: the paper's, or a finding's; source: where it stands;
    metric: what the numbers are; paper: the paper's own value, if it gives one.
    values: one for each seed or image; or, for a claim over settings, {setting: values}, where the rule judges the
    settings' means in the order given.
    reason: why there is no verdict. Values that are given all the same are shown beside it.
    """

    name: str
    sentence: str
    source: str
    metric: str
    rule: Rule
    values: Sequence[float] | Mapping[str, Sequence[float]] = field(default=())
    paper: float | str | None = None
    reason: str = ""

    @property
    def _settings(self) -> Mapping[str, Sequence[float]]:
        return self.values if isinstance(self.values, Mapping) else {"": self.values}

    @property
    def _complete(self) -> bool:
        return all(len(values) for values in self._settings.values()) and bool(self._settings)

    @property
    def _judged(self) -> Sequence[float]:
        return [mean(v) for v in self.values.values()] if isinstance(self.values, Mapping) else self.values

    @property
    def _why_not(self) -> str:
        """Why there is no verdict; nothing where there is one."""
        if self.reason or not self._complete:
            return self.reason or "no values"
        least = self.rule.least
        return "" if len(self._judged) >= least else f"the rule takes {least} values or more"

    @property
    def verdict(self) -> str:
        """`holds`, `fails` or `not measured`. A value that is not finite fails."""
        if self._why_not:
            return "not measured"
        if not all(math.isfinite(value) for values in self._settings.values() for value in values):
            return "fails"
        return "holds" if self.rule.holds(self._judged) else "fails"

    @property
    def measured(self) -> str:
        """mean ± standard deviation (n), for each setting; the reason where there is no verdict."""
        why_not = self._why_not
        if not self._complete:
            return why_not
        texts = [
            f"{name}: {mean_and_spread(values)}" if name else mean_and_spread(values)
            for name, values in self._settings.items()
        ]
        counts = sorted({len(values) for values in self._settings.values()})
        text = ", ".join(texts) + (f" (n = {'/'.join(map(str, counts))})" if counts != [1] else "")
        return f"{why_not}; here {text}" if why_not else text

    def record(self) -> dict[str, Any]:
        """What claims.json holds; `values`, `mean` and `std` by setting for a claim over settings."""
        values = {name: [float(value) for value in each] for name, each in self._settings.items()}
        means = {name: mean(each) if each else None for name, each in values.items()}
        stds = {name: spread(each) if len(each) > 1 else None for name, each in values.items()}
        single = not isinstance(self.values, Mapping)
        return {
            "name": self.name,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "source": self.source,
            "metric": self.metric,
            "rule": self.rule.text,
            "paper": self.paper,
            "measured": self.measured,
            "values": values[""] if single else values,
            "mean": means[""] if single else means,
            "std": stds[""] if single else stds,
        }


def departures(config: Mapping[str, Any], paper: Mapping[str, Any]) -> str:
    """Where a config leaves the paper's settings: `models.cnn.stride is 1 (paper: 2)`, or nothing.

    A claim of the paper is judged at the paper's settings only: this is its reason not to be, elsewhere.
    """
    return ", ".join(_departures(config, paper, ""))


def _departures(config: Mapping[str, Any], paper: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in paper.items():
        given = config.get(key)
        if isinstance(value, Mapping):
            yield from _departures(given or {}, value, f"{prefix}{key}.")
        elif (list(given) if isinstance(value, list) and given is not None else given) != value:
            yield f"{prefix}{key} is {given} (paper: {value})"


def other_network(node: Mapping[str, Any], paper: Mapping[str, Any]) -> str:
    """Why a model's config node is not the trained network of which a paper speaks; nothing where it is."""
    if node.get("weights") == "standin":
        return "stand-in weights, not ImageNet's"
    return departures(node, paper) if node.get("weights") else "random weights"


def paper_and_here(source: str, measured: Sequence[tuple[Any, ...]], reason: str) -> list[Claim]:
    """The paper's claims, not measured for a reason, and then the same of what is here; without a reason the first alone.

    measured: (name, sentence, metric, rule, values), and why there are no values. A sentence that begins with "Beyond the
    paper" is ours: it is there once, and no reason of the paper keeps it from a verdict.
    """
    found = []
    for prefix, here, why in (("", "", reason), ("here_", "Here: ", "")) if reason else (("", "", ""),):
        for name, sentence, metric, rule, values, *lacks in measured:
            ours = sentence.startswith("Beyond the paper")
            if ours and why:
                continue
            missing, mark = why or "".join(lacks), ("", "") if ours else (prefix, here)
            found.append(Claim(mark[0] + name, mark[1] + sentence, source, metric, rule, values, reason=missing))
    return found
