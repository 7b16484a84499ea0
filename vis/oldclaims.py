"""Claims, the values measured for them, and verdicts.

A claim that fails is a result, not a crash; its criterion is fixed before the measurement. With stand-in weights or data, or
when something is missing, the verdict is `not measured`, with the reason.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from itertools import pairwise
from typing import Any, Literal

Origin = Literal["paper", "project"]


@dataclass(frozen=True)
class Criterion:
    """Decides from the measured values (one per seed, image or setting) whether a claim holds; `text` says it in words.

    least: the smallest number of values it accepts; 2 for an interval or an order.
    """

    text: str
    holds: Callable[[Sequence[float]], bool]
    least: int = 1


def mean(values: Sequence[float]) -> float:
    """Return the mean, or NaN if a value is not finite."""
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def spread(values: Sequence[float]) -> float:
    """Return the sample standard deviation, or NaN if a value is not finite."""
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the (lower, upper) confidence limits of the mean by Student's t; infinite for a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return -math.inf, math.inf
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * spread(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """Format mean and standard deviation as `0.763 ± 0.016`, rounded so that the larger shows `digits` digits."""
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


def above(bound: float, each: bool = False) -> Criterion:
    """Require the mean (or each value) to exceed the bound."""
    if each:
        return Criterion(f"each > {bound:g}", lambda values: min(values) > bound)
    return Criterion(f"mean > {bound:g}", lambda values: mean(values) > bound)


def below(bound: float, each: bool = False) -> Criterion:
    """Require the mean (or each value) to be less than the bound."""
    if each:
        return Criterion(f"each < {bound:g}", lambda values: max(values) < bound)
    return Criterion(f"mean < {bound:g}", lambda values: mean(values) < bound)


def interval_above(bound: float) -> Criterion:
    """Require the 95 % confidence interval of the mean to lie above the bound."""
    return Criterion(f"95% interval of the mean above {bound:g}", lambda values: interval(values)[0] > bound, least=2)


def interval_below(bound: float) -> Criterion:
    """Require the 95 % confidence interval of the mean to lie below the bound."""
    return Criterion(f"95% interval of the mean below {bound:g}", lambda values: interval(values)[1] < bound, least=2)


POSITIVE = interval_above(0)


def near_zero(bound: float, each: bool = False) -> Criterion:
    """Require the absolute value of the mean (or of each value) to be less than the bound."""
    if each:
        return Criterion(f"each |value| < {bound:g}", lambda values: max(map(abs, values)) < bound)
    return Criterion(f"|mean| < {bound:g}", lambda values: abs(mean(values)) < bound)


def within(target: float, fraction: float) -> Criterion:
    """Require each value to deviate from the target by at most this fraction of it."""
    return Criterion(
        f"each within {fraction:.0%} of {target:g}",
        lambda values: all(abs(value - target) <= fraction * abs(target) for value in values),
    )


def increasing() -> Criterion:
    """Require each value to exceed the one before."""
    return Criterion("each above the one before", lambda values: all(b > a for a, b in pairwise(values)), least=2)


@dataclass(frozen=True)
class Claim:
    """A claim, the values measured for it, and the criterion that judges them.

    name: short and unique in the experiment.
    source: the figure, section or equation that makes the claim.
    metric: the quantity that the values measure.
    values: one per seed or image; or {setting: values}, of which the criterion judges the means, in this order.
    paper: the value that the paper reports, if it does.
    reason: why there is no verdict; any values are shown beside it.
    origin: who makes the claim. A claim of the project holds for any weights and data.
    """

    name: str
    sentence: str
    _: KW_ONLY
    source: str
    metric: str
    criterion: Criterion
    values: Sequence[float] | Mapping[str, Sequence[float]] = ()
    paper: float | str | None = None
    reason: str = ""
    origin: Origin = "paper"

    id = property(lambda self: self.name)
    kind = property(lambda self: "finding" if self.origin == "project" else "reproduction")
    rule = property(lambda self: self.criterion.text)
    differences = ()

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
        """The reason for having no verdict, or "" if there is one."""
        if self.reason or not self._complete:
            return self.reason or "no values"
        least = self.criterion.least
        return "" if len(self._judged) >= least else f"the rule takes {least} values or more"

    @property
    def verdict(self) -> str:
        """`holds`, `fails` or `not measured`; a value that is not finite fails."""
        if self._why_not:
            return "not measured"
        if not all(math.isfinite(value) for values in self._settings.values() for value in values):
            return "fails"
        return "holds" if self.criterion.holds(self._judged) else "fails"

    @property
    def measured(self) -> str:
        """Mean ± standard deviation (n) for each setting, after the reason if there is no verdict."""
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
        """Return the entry of claims.json; for a claim over settings, `values`, `mean` and `std` are by setting."""
        values = {name: [float(value) for value in each] for name, each in self._settings.items()}
        means = {name: mean(each) if each else None for name, each in values.items()}
        stds = {name: spread(each) if len(each) > 1 else None for name, each in values.items()}
        single = not isinstance(self.values, Mapping)
        return {
            "id": self.name,
            "kind": self.kind,
            "differences": [],
            "control": "",
            "reason": self.reason,
            "verdict": self.verdict,
            "origin": self.origin,
            "sentence": self.sentence,
            "source": self.source,
            "metric": self.metric,
            "rule": self.criterion.text,
            "paper": self.paper,
            "measured": self.measured,
            "values": values[""] if single else values,
            "mean": means[""] if single else means,
            "std": stds[""] if single else stds,
        }


def departures(config: Mapping[str, Any], paper: Mapping[str, Any]) -> str:
    """List the options that differ from the paper's, such as `models.cnn.stride is 1 (paper: 2)`; "" if none does.

    A paper's claim is judged at the paper's settings only; elsewhere, this is the reason for giving no verdict.
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
    """Say how a model's config node differs from the paper's trained network; "" if it does not."""
    if node.get("weights") == "standin":
        return "stand-in weights, not ImageNet's"
    return departures(node, paper) if node.get("weights") else "random weights"


def paper_and_here(claims: Sequence[Claim], reason: str) -> list[Claim]:
    """Withhold the verdict of the paper's claims for a reason, and add to each a copy that judges what was measured here.

    The project's own claims stay as they are. Without a reason, so do all.
    """
    if not reason:
        return list(claims)
    judged = [
        replace(c, name=f"here_{c.name}", sentence=f"Here: {c.sentence}", origin="project")
        if c.origin == "paper"
        else c
        for c in claims
    ]
    return [replace(c, reason=reason) for c in claims if c.origin == "paper"] + judged
