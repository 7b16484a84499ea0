"""Claims, the numbers that they compare, and verdicts.

A claim judges one sentence: a row of a paper's ledger (`experiments/<paper>/ledger.yaml`), or a finding of the project. It
compares columns of the run's tables, one number for each network or image, with a rule that was fixed before the
measurement. Where the interval of these numbers lies decides; if it crosses the line, the claim is undecided.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal, TypeVar

import yaml

from vis.config.home import HOME

Verdict = Literal["holds", "fails", "undecided", "not measured"]
Kind = Literal["reproduction", "replication", "finding"]
VERDICTS: tuple[Verdict, ...] = ("holds", "fails", "undecided", "not measured")
KINDS: tuple[Kind, ...] = ("reproduction", "replication", "finding")
Range = tuple[float, float]
Unit = TypeVar("Unit")


# -- What is compared --------------------------------------------------------------------------------------------------


class Column:
    """One number for each network or image: the mean of a table's column over its rows.

    rows: rows of a table that have the column. per: the key, or keys, that tell independent units apart: `seed` for random
    networks, `image` for a trained one. A difference of two columns, or of a column and a number, is paired by unit.
    """

    def __init__(
        self, rows: Sequence[dict[str, Any]], name: str, per: str | tuple[str, ...], minus: "Column | float" = 0.0
    ) -> None:
        self.rows, self.name, self.minus = [row for row in rows if row.get(name) is not None], name, minus
        self.per = (per,) if isinstance(per, str) else per

    def __sub__(self, other: "Column | float") -> "Column":
        if self.minus != 0.0:
            raise ValueError("a difference of differences: put the first difference into a table of its own")
        return Column(self.rows, self.name, self.per, other)

    def unit(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """The network or image that a row belongs to."""
        return tuple(row[key] for key in self.per)

    def subtracted(self, unit: tuple[Any, ...]) -> float | None:
        """The number that is subtracted from a unit's mean; None if the other column has none."""
        return self.minus.by_unit.get(unit) if isinstance(self.minus, Column) else self.minus

    @cached_property
    def by_unit(self) -> dict[tuple[Any, ...], float]:
        """The number of each unit."""
        found: dict[tuple[Any, ...], list[float]] = {}
        for row in self.rows:
            found.setdefault(self.unit(row), []).append(row[self.name])
        subtracted = {unit: self.subtracted(unit) for unit in found}
        return {u: mean(values) - less for u, values in found.items() if (less := subtracted[u]) is not None}

    @property
    def values(self) -> list[float]:
        """The numbers, in the order of the rows."""
        return list(self.by_unit.values())


def mean(values: Sequence[float]) -> float:
    """Return the mean, or NaN if a value is not finite."""
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def spread(values: Sequence[float]) -> float:
    """Return the sample standard deviation, or NaN if a value is not finite."""
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def interval(values: Sequence[float], confidence: float = 0.95) -> Range:
    """Return the (lower, upper) confidence limits of the mean by Student's t; infinite for a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return -math.inf, math.inf
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * spread(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def share_interval(values: Sequence[float], confidence: float = 0.95) -> Range:
    """Return the confidence limits of a share by Clopper and Pearson; values: 1 for each unit that counts, otherwise 0."""
    from scipy.stats import beta

    n, k, tail = len(values), sum(values), (1 - confidence) / 2
    low = float(beta.ppf(tail, k, n - k + 1)) if k else 0.0
    return low, float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0


def jackknife(units: Sequence[Unit], statistic: Callable[[Sequence[Unit]], float]) -> list[float]:
    """Return a pseudo-value n s - (n - 1) s' for each unit, where s' is the statistic s without it (Tukey 1958).

    Their interval is the one of a statistic that is no mean, such as a ratio. Empty for fewer than three units.
    """
    n = len(units)
    if n < 3:
        return []
    whole = statistic(units)
    return [n * whole - (n - 1) * statistic([*units[:i], *units[i + 1 :]]) for i in range(n)]


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


# -- How it is judged --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """Where an interval has to lie for a sentence to hold, and where for it to fail; anywhere else it is undecided.

    holds, fails: ranges; the whole interval lies in one of them. of: the interval's quantity, the `mean` by Student's t or
    the `share` of units with value 1 by Clopper and Pearson; `each` takes no interval: each value lies in `holds`, or the
    sentence fails (theorems, counts). least: the number of values that the rule needs. ours: what is our choice in it.
    """

    holds: tuple[Range, ...]
    fails: tuple[Range, ...] = ()
    of: Literal["mean", "share", "each"] = "mean"
    least: int = 4
    ours: str = ""

    def interval(self, values: Sequence[float], confidence: float = 0.95) -> Range:
        """The interval that decides; of `each`, the smallest and the largest value."""
        if self.of == "each":
            return min(values), max(values)
        return share_interval(values, confidence) if self.of == "share" else interval(values, confidence)

    def verdict(self, values: Sequence[float], confidence: float = 0.95) -> Verdict:
        """The verdict on values, one for each unit. Values that are not finite decide nothing, but fail a rule for `each`."""
        if not values:
            return "not measured"
        if self.of == "each":
            return "holds" if all(any(a <= v <= b for a, b in self.holds) for v in values) else "fails"
        if len(values) < self.least or not all(map(math.isfinite, values)):
            return "undecided"
        low, high = self.interval(values, confidence)
        sides: tuple[tuple[Verdict, tuple[Range, ...]], ...] = (("holds", self.holds), ("fails", self.fails))
        return next((v for v, ranges in sides if any(a < low and high < b for a, b in ranges)), "undecided")

    @property
    def text(self) -> str:
        """The rule in words."""
        if self.of == "each":
            return "holds if each value is " + " or ".join(map(_range, self.holds))
        what = f"the interval of the {self.of}"
        text = f"holds if {what} is {' or '.join(map(_range, self.holds))}"
        if self.fails:
            text += f", fails if it is {' or '.join(map(_range, self.fails))}"
        return f"{text}; {self.least} values or more" + (f"; {self.ours}" if self.ours else "")


def _range(limits: Range) -> str:
    low, high = limits
    if low == high:
        return f"{low:.6g}"
    if math.isinf(high):
        return f"above {low:.6g}"
    return f"below {high:.6g}" if math.isinf(low) else f"from {low:.6g} to {high:.6g}"


def above(holds: float, fails: float | None = None, **options: Any) -> Rule:
    """Hold above one bound, fail below the other; by default, both are the same."""
    return Rule(((holds, math.inf),), ((-math.inf, holds if fails is None else fails),), **options)


def below(holds: float, fails: float | None = None, **options: Any) -> Rule:
    """Hold below one bound, fail above the other; by default, both are the same."""
    return Rule(((-math.inf, holds),), ((holds if fails is None else fails, math.inf),), **options)


def near(target: float, holds: float, fails: float | None = None, **options: Any) -> Rule:
    """Hold within `holds` of a target, fail farther from it than `fails`; by default, both are the same."""
    far = holds if fails is None else fails
    outside = ((-math.inf, target - far), (target + far, math.inf))
    return Rule(((target - holds, target + holds),), outside, **options)


def exactly(target: float, within: float = 0.0) -> Rule:
    """Hold if each value is the target up to `within` (rounding), otherwise fail."""
    return Rule(((target - within, target + within),), of="each", least=1)


def each_above(bound: float) -> Rule:
    """Hold if each value exceeds the bound, otherwise fail; for statements without exception."""
    return Rule(((math.nextafter(bound, math.inf), math.inf),), of="each", least=1)


@dataclass(frozen=True)
class Compared:
    """A quantity and the rule that judges it.

    metric: the quantity in words. null: values for which the sentence is not true, from a control in the same run or by a
    formula; `control` says what they are. Methods take the confidence of the interval.
    """

    metric: str
    column: Column
    rule: Rule
    _: KW_ONLY
    null: Column | float
    control: str

    def verdict(self, confidence: float = 0.95) -> Verdict:
        """The verdict on this quantity alone."""
        return self.rule.verdict(self.column.values, confidence)

    def measured(self, confidence: float = 0.95) -> str:
        """Mean ± standard deviation, the interval, the number of values, and the control's mean."""
        values = self.column.values
        if not values:
            return "no values"
        text = mean_and_spread(values)
        if len(values) > 1:
            low, high = self.rule.interval(values, confidence)
            of = "range" if self.rule.of == "each" else f"{100 * confidence:.3g} %"
            text += f" ({of} {low:.3g} to {high:.3g}, n = {len(values)})"
        return text

    @property
    def controls(self) -> list[float]:
        """The control's values."""
        return self.null.values if isinstance(self.null, Column) else [self.null]

    def record(self, confidence: float = 0.95) -> dict[str, Any]:
        """The entry of claims.json."""
        values = self.column.values
        limits = self.rule.interval(values, confidence) if values else ()
        return {
            "metric": self.metric, "verdict": self.verdict(confidence), "rule": self.rule.text,
            "measured": self.measured(confidence), "values": values, "control": self.control,
            "control_values": self.controls, "interval": [v if math.isfinite(v) else None for v in limits] or None,
        }  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """One sentence and what is compared to judge it. With m intervals, each has the confidence 1 - .05 / m (Bonferroni).

    id: the row of the paper's ledger, which has sentence and source; for a finding, a short name.
    needs: how many of the comparisons have to hold; None for all. It fails when this can no longer be reached.
    paper: the value that the paper reports. sentence, source: of a finding.
    differences: how the run deviates from the paper's setting, each in words ("SqueezeNet 1.1 instead of VGG-16").
    reason: why there is no verdict, such as sizes that are too small; the values are shown beside it.
    """

    id: str
    compared: Sequence[Compared]
    _: KW_ONLY
    needs: int | None = None
    paper: float | str | None = None
    sentence: str = ""
    source: str = ""
    differences: Sequence[str] = ()
    reason: str = ""

    def __post_init__(self) -> None:
        if not self.sentence:
            row = ledger()[self.id]
            object.__setattr__(self, "sentence", row["sentence"])
            object.__setattr__(self, "source", row["where"])

    def in_precision(self, precision: str) -> "Claim":
        """Return the claim as a run in this precision may judge it: one about exactness is not measured in mixed."""
        if precision != "mixed" or all(each.rule.of != "each" for each in self.compared):
            return self
        why = "precision=mixed rounds backward passes, and the sentence is about exactness: use float32 or float64"
        return replace(self, reason=f"{self.reason}; {why}" if self.reason else why)

    @property
    def name(self) -> str:
        return self.id

    @property
    def kind(self) -> Kind:
        """A paper's sentence at the paper's setting, elsewhere, or a finding of the project."""
        if self.id not in ledger():
            return "finding"
        return "replication" if self.differences else "reproduction"

    @property
    def verdict(self) -> Verdict:
        return "not measured" if self.reason else self.judged

    @property
    def confidence(self) -> float:
        """The confidence of each interval, so that all of them together have 95 %."""
        return 1 - 0.05 / max(1, sum(each.rule.of != "each" for each in self.compared))

    @property
    def judged(self) -> Verdict:
        """The verdict of the numbers alone."""
        verdicts = [each.verdict(self.confidence) for each in self.compared]
        if not verdicts or "not measured" in verdicts:
            return "not measured"
        needs = len(verdicts) if self.needs is None else self.needs
        if verdicts.count("holds") >= needs:
            return "holds"
        return "fails" if verdicts.count("fails") > len(verdicts) - needs else "undecided"

    @property
    def rule(self) -> str:
        """The rule in words."""
        texts = list(dict.fromkeys(each.rule.text for each in self.compared))
        how_many = f"{'all' if self.needs is None else f'at least {self.needs}'} of {len(self.compared)}: "
        intervals = " | " + f"intervals at {100 * self.confidence:.3g} %"
        exact = all(each.rule.of == "each" for each in self.compared)
        return how_many * (len(self.compared) > 1) + " | ".join(texts) + intervals * (not exact)

    @property
    def measured(self) -> str:
        """What was measured, after the reason if there is no verdict."""
        several = len(self.compared) > 1
        measured = [each.measured(self.confidence) for each in self.compared]
        texts = [f"{each.metric}: {m}" if several else m for each, m in zip(self.compared, measured, strict=True)]
        here = "; ".join(texts)
        return f"{self.reason}; here {here}" if self.reason and here else self.reason or here or "no values"

    def record(self) -> dict[str, Any]:
        """The entry of claims.json."""
        return {
            "id": self.id, "kind": self.kind, "verdict": self.verdict, "differences": list(self.differences),
            "sentence": self.sentence, "source": self.source, "paper": self.paper, "measured": self.measured,
            "metric": "; ".join(each.metric for each in self.compared), "rule": self.rule, "reason": self.reason,
            "control": "; ".join(dict.fromkeys(each.control for each in self.compared)),
            "needs": self.needs, "compared": [each.record(self.confidence) for each in self.compared],
        }  # fmt: skip


@cache
def ledger() -> dict[str, dict[str, str]]:
    """The checkable sentences of all papers: {id: {paper, sentence, where, scope, ...}}.

    sentence: the paper's words (`quote`), or an equation or a number in ours (`statement`). not_checkable: why there is no claim.
    """
    found: dict[str, dict[str, str]] = {}
    for file in sorted((HOME / "experiments").glob("*/ledger.yaml")):
        for id_, row in yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader).items():
            found[id_] = row | {"sentence": row.get("quote") or row["statement"], "paper": file.parent.name}
    return found


# -- The paper's setting -----------------------------------------------------------------------------------------------


def replicated(claims: Sequence[Claim], differences: Sequence[str], reason: str = "") -> list[Claim]:
    """Add differences from the paper's setting, and a reason for having no verdict, to the claims of the paper."""
    return [
        c if c.kind == "finding" else replace(c, differences=[*c.differences, *differences], reason=c.reason or reason)
        for c in claims
    ]


def departures(config: Mapping[str, Any], paper: Mapping[str, Any]) -> list[str]:
    """List the options that differ from the paper's, such as `models.cnn.stride = 1 instead of 2`.

    paper: only what the paper itself states; a choice of ours has no place there.
    """
    return list(_departures(config, paper, ""))


def _departures(config: Mapping[str, Any], paper: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in paper.items():
        given = config.get(key)
        if isinstance(value, Mapping):
            yield from _departures(given or {}, value, f"{prefix}{key}.")
        elif (list(given) if isinstance(value, list) and given is not None else given) != value:
            yield f"{prefix}{key} = {given} instead of {value}"


def at_small_sizes(config: Mapping[str, Any]) -> str:
    """The reason for no verdict on a sentence that depends on the size, in a run at a reduced size; otherwise ""."""
    preset = config.get("preset")
    return f"it takes the full sizes: leave out preset={preset}" if preset in ("small", "tiny") else ""


def on_digits(config: Mapping[str, Any]) -> str:
    """The reason for no verdict on a sentence about a trained network, in a run at `preset=tiny`; otherwise ""."""
    return "a network trained on digits says nothing: leave out preset=tiny" if config.get("preset") == "tiny" else ""
