"""Claims for papers and machines: LaTeX macros, JUnit XML, and a comparison with the verdicts that a file expects."""

import csv
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from vis.claims import mean_and_spread
from vis.errors import UserError
from vis.reports.crate import crate
from vis.reports.items import Item
from vis.store.runs import load_runs
from vis.store.stored import ClaimRecord
from vis.system.files import write_text

Key = tuple[str, str, str]  # item, id and kind of a claim
Verdicts = dict[Key, str]

EXPORTS = ("tex", "junit", "crate")
_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


def each_claim(items: Sequence[Item]) -> Iterator[tuple[Key, ClaimRecord, Item]]:
    """Yield the claims of items, each with its key."""
    for item in items:
        for claim in item.claims:
            yield (item.name, claim.id, claim.kind), claim, item


# -- LaTeX -------------------------------------------------------------------------------------------------------------


def tex(items: Sequence[Item], root: Path) -> Path:
    r"""Write claims.tex, with a LaTeX macro for each number that a claim compares, and return its path.

    `\NieFigureFourNFourTwoA` is `0.763 \pm 0.016`, the mean and standard deviation; with `Value`, `Deviation`, `Count`,
    `Low`, `High` (of the interval) behind it a part of it, with `Verdict` the claim's verdict. A macro is named after the
    item and the claim's id, digits as words; without the year of the paper, unless two papers differ only in it. If a claim
    compares several quantities, a letter (A, B, ...) stands behind the id. Values that do not exist have no macro.
    """
    stems = {item.name: _stem(item.name) for item in items}
    alike = [s for s in stems.values() if len({n.partition("/")[0] for n in stems if stems[n] == s}) > 1]
    lines = ["% Written by vis-report --export tex: the measured values of claims. In the preamble: \\input{claims}"]
    used: dict[str, Key] = {}
    for key, claim, item in each_claim(items):
        name = _letters(f"{item.name if stems[item.name] in alike else stems[item.name]} {claim.id}")
        if name in used:
            raise UserError(f"the claims {used[name][:2]} and {key[:2]} both give the macro \\{name}: rename one")
        used[name] = key
        run = os.path.relpath(item.folder or root, root)
        about = f"{item.name}, {claim.id} ({claim.kind}), {claim.source}: {claim.sentence} [run {run}]"
        lines += ["", "% " + " ".join(about.split()), _macro(name + "Verdict", claim.verdict)]
        for number, (compared, row) in enumerate(zip(claim.compared, claim.comparisons(), strict=True)):
            if row["n"]:
                own = name + _letter(number) * (len(claim.compared) > 1)
                lines += [f"%   {' '.join(row['metric'].split())}", *_values(own, compared["values"], row)]
    write_text(root / "claims.tex", "\n".join(lines) + "\n")
    return root / "claims.tex"


def _values(name: str, values: Sequence[float | None], row: Mapping[str, float | None]) -> Iterator[str]:
    """Yield the macros of a compared quantity; None among its values is undefined."""
    value, _, deviation = mean_and_spread([math.nan if v is None else v for v in values]).partition(" ± ")
    yield _macro(name, _math(f"{value} \\pm {deviation}" if deviation else value))
    yield _macro(name + "Value", _math(value))
    if deviation:
        yield _macro(name + "Deviation", _math(deviation))
    yield _macro(name + "Count", str(len(values)))
    for side in ("low", "high"):
        if (limit := row[side]) is not None:
            yield _macro(name + side.capitalize(), _math(f"{limit:.3g}"))


def _macro(name: str, text: str) -> str:
    return f"\\newcommand{{\\{name}}}{{{text}}}"


def _math(text: str) -> str:
    r"""Format numbers for text and formulas alike; 1.2e-05 becomes 1.2\times10^{-5}."""
    text = re.sub(r"e([+-]?\d+)", lambda m: f"\\times10^{{{int(m[1])}}}", text.replace("nan", "\\mathrm{undefined}"))
    return f"\\ensuremath{{{text.replace('inf', chr(92) + 'infty')}}}"


def _stem(name: str) -> str:
    return re.sub(r"^([a-z]+)\d{4}/", r"\1/", name)


def _letters(text: str) -> str:
    """Turn a name into letters: nie/figure4 N-4.2-a becomes NieFigureFourNFourTwoA."""
    words = re.findall(r"[a-zA-Z]+|\d", text)
    return "".join(_DIGITS[int(word)] if word.isdecimal() else word[0].upper() + word[1:] for word in words)


def _letter(number: int) -> str:
    """Return A, B, ..., Z, AA, AB, ..."""
    return (_letter(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


# -- Continuous integration --------------------------------------------------------------------------------------------


def junit(items: Sequence[Item], root: Path, expected: Verdicts | None = None) -> Path:
    """Write claims.junit.xml, a test suite for each item and a test for each claim, and return its path.

    A claim that fails is a failure. One that is not measured or undecided is skipped: it neither passed nor failed.
    expected: if given, a test fails where the verdict differs from the expected one, and only there.
    """
    suites = ElementTree.Element("testsuites", name="vis claims")
    for item in items:
        suite = ElementTree.SubElement(suites, "testsuite", name=item.name)
        if item.stored.provenance.finished:
            suite.set("timestamp", item.stored.provenance.finished.isoformat())
        for key, claim, _ in each_claim([item]):
            place = item.name.replace("/", ".")
            case = ElementTree.SubElement(
                suite, "testcase", classname=place, name=f"{claim.id} ({claim.kind})", time="0"
            )
            wanted = None if expected is None else expected.get(key, claim.verdict)
            outcome = _outcome(claim.verdict, wanted)
            if outcome:
                because = f", expected {wanted}" if wanted not in (None, claim.verdict) else ""
                node = ElementTree.SubElement(
                    case, outcome, message=_xml(f"{claim.verdict}{because}: {claim.measured}")
                )
                node.text = _xml(f"{claim.sentence} ({claim.source})\n{claim.rule}")
        for outcome, count in (("failure", "failures"), ("skipped", "skipped")):
            suite.set(count, str(len(suite.findall(f"testcase/{outcome}"))))
        suite.set("tests", str(len(suite.findall("testcase"))))
        suite.set("errors", "0")
    for count in ("tests", "failures", "skipped", "errors"):
        suites.set(count, str(sum(int(suite.get(count) or 0) for suite in suites)))
    ElementTree.indent(suites)
    text = ElementTree.tostring(suites, encoding="unicode", xml_declaration=True)
    write_text(root / "claims.junit.xml", text.replace("encoding='us-ascii'", "encoding='utf-8'") + "\n")
    return root / "claims.junit.xml"


def _outcome(verdict: str, wanted: str | None) -> str:
    """Return the element of a test that did not pass; "" if it did."""
    if wanted is not None:
        return "failure" if verdict != wanted else ""
    return {"holds": "", "fails": "failure"}.get(verdict, "skipped")


def _xml(text: str) -> str:
    """Replace the control characters that XML has no notation for."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def expected_verdicts(file: Path) -> Verdicts:
    """Read the verdicts of a claims.csv that an earlier `vis-report` wrote. Raises UserError."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        return {(row["item"], row["id"], row["kind"]): row["verdict"] for row in rows}
    except (KeyError, ValueError, csv.Error) as error:
        raise UserError(
            f"{file} has no columns item, id, kind, verdict: give a claims.csv that vis-report wrote"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def changes(expected: Verdicts, items: Sequence[Item]) -> tuple[list[str], list[str], list[str]]:
    """Compare verdicts with the expected ones: lines on claims that flipped, are missing, are new."""
    flipped, new, here = [], [], set()
    for key, claim, _ in each_claim(items):
        here.add(key)
        if key not in expected:
            new.append(f"{_said(key)} is new: {claim.verdict}")
        elif expected[key] != claim.verdict:
            flipped.append(f"{_said(key)}: {expected[key]} -> {claim.verdict} ({claim.measured})")
    missing = [f"{_said(key)} is missing, expected: {verdict}" for key, verdict in expected.items() if key not in here]
    return flipped, missing, new


def _said(key: Key) -> str:
    return f"{key[0]} {key[1]} ({key[2]})"


# -- The command line --------------------------------------------------------------------------------------------------


def deliver(root: Path, items: Sequence[Item], exports: Sequence[str], expect: Path | None) -> int:
    """Write the exports into a folder, print their paths, compare verdicts, and return the exit code.

    1 if a verdict differs from those in the file `expect`, or is missing. Claims that the file does not have are only named.
    """
    expected = None if expect is None else expected_verdicts(expect)
    for kind in dict.fromkeys(exports):
        if kind == "crate":
            for folder in load_runs(root).folders:
                print(crate(folder))
        else:
            print(tex(items, root) if kind == "tex" else junit(items, root, expected))
    if expected is None:
        return 0
    flipped, missing, new = changes(expected, items)
    for line in (*flipped, *missing, *new):
        print(line)
    print(
        f"vis-report: {len(expected)} verdicts expected: {len(flipped)} flipped, {len(missing)} missing; {len(new)} new",
        file=sys.stderr,
    )
    return 1 if flipped or missing else 0
