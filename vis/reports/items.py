"""Experiments with their runs, for the pages over several runs."""

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vis.claims import KINDS
from vis.config.options import collected, describe, load_option
from vis.errors import UserError
from vis.store.run_folder import RunFolder, labels
from vis.store.stored import ClaimRecord, Status, Stored, stored
from vis.store.sweep_plan import plan
from vis.store.tables import Rows


@dataclass
class Item:
    """An experiment on a page: its config name, a title from its config, and the folder of the run that counts, if any.

    others: its other runs, in the order of `rank`. A run with a damaged file has the state `damaged` and shows nothing else.
    """

    name: str
    title: str
    folder: Path | None
    others: Sequence["Item"] = ()

    @cached_property
    def stored(self) -> Stored:
        """The contents of the run's files; only the status if the run is not done."""
        found = stored(self.folder) if self.folder else Stored()
        done = found.status.state == "done"
        try:
            _ = done and self.config
        except UserError as error:
            found.damaged.append(str(error))
        if found.damaged:
            return Stored(Status("damaged", error=found.damaged[0]))
        return found if done else Stored(found.status)

    @property
    def status(self) -> Status:
        return self.stored.status

    @property
    def state(self) -> str:
        return self.status.state

    @property
    def claims(self) -> list[ClaimRecord]:
        return self.stored.claims

    @property
    def verdicts(self) -> Counter[tuple[str, str]]:
        """The number of its claims of each kind with each verdict."""
        return Counter((claim.kind, claim.verdict) for claim in self.claims)

    @property
    def methods(self) -> list[str]:
        """The methods that the run explained with, by the rows of its tables; without these, those of its config."""
        rows = (row for table in self.stored.tables.values() for row in table)
        used = dict.fromkeys(name for row in rows if (name := row.get("method")))
        return [name for name in self.config.get("methods") or {} if not used or name in used]

    @property
    def facts(self) -> Rows:
        """The rows of its provenance."""
        return [{"what": key, "value": _words(value)} for key, value in self.stored.provenance.entries.items() if value]

    @property
    def labels(self) -> dict[str, str]:
        """The name, the note and the tags that the user gave the run, once it is done."""
        return labels(self.config) if self.state == "done" else {}

    @cached_property
    def config(self) -> DictConfig:
        """The run's resolved config. Raises UserError if there is none."""
        if self.folder is None:
            raise UserError(f"{self.name} has no run")
        config = RunFolder(self.folder).config()
        if not isinstance(config.experiment, DictConfig) or not isinstance(config.experiment.get("name"), str):
            raise UserError(f"{self.folder / 'config.yaml'} is damaged: it names no experiment")
        return config

    @property
    def small(self) -> bool:
        """True if the run is done and used a preset of reduced sizes."""
        return self.state == "done" and self.config.get("preset", "paper") != "paper"

    @property
    def rank(self) -> tuple[bool, int, float, str]:
        """The run with the highest rank counts: finished, then by size (the paper's, small, tiny), then the newest."""
        done = self.state == "done"
        size = {"paper": 2, "tiny": 0}.get(self.config.get("preset", "paper"), 1) if done else 0
        return done, size, self.when, str(self.folder)

    @cached_property
    def reduced(self) -> str:
        """How the run is reduced compared with the paper, in words; "" if it is not."""
        standin = self.stored.provenance.standin
        return ", ".join(["reduced sizes"] * self.small + ["on a stand-in"] * standin)

    @cached_property
    def command(self) -> str:
        """The command that runs the experiment, or runs it again."""
        whole = plan(self.folder.parent) if self.folder else None
        number = self.folder.name.partition("_")[0] if self.folder else ""
        if whole is None or not number.isdecimal() or int(number) >= len(whole["jobs"]):
            return self.status.command or f"vis-run experiment={self.name}"
        words = [*whole["jobs"][int(number)], *(f"--config-dir={folder}" for folder in whole["config_dirs"])]
        return shlex.join(["vis-run", *words])

    @property
    def when(self) -> float:
        """When the run finished, or when its state last changed if it has not; seconds since 1970."""
        assert self.folder is not None
        finished = self.stored.provenance.finished
        return finished.timestamp() if finished else os.path.getmtime(self.folder / "status.json")


def item_of(folder: Path, files: Mapping[str, Path]) -> Item:
    """Read the item of a run; files: experiment configs, for the title. Raises UserError if the run is damaged or missing."""
    item = Item("", "", folder)
    if item.state == "damaged":
        raise UserError(item.status.error or "")
    item.name = item.config.experiment.name
    item.title = describe(files[item.name]) if item.name in files else item.name
    return item


@dataclass
class Section:
    """Items that belong together, such as a paper's.

    findings: experiment configs that each extend another experiment and select some of its claims.
    """

    title: str
    items: Sequence[Item]
    findings: Sequence[Path] = ()

    @property
    def verdicts(self) -> Counter[tuple[str, str]]:
        """The number of claims of each kind with each verdict."""
        return sum((item.verdicts for item in self.items), Counter())

    def claims_of_findings(self) -> Iterator[tuple[str, str, list[ClaimRecord]]]:
        """Yield the title of each finding, the item that it extends, and the claims that it selects."""
        for finding in self.findings:
            config = load_option(finding)
            base = str(config.defaults[0]).removeprefix("/experiment/")
            patterns = config.experiment.get("claims", ["*"])
            claims = [claim for item in self.items if item.name == base for claim in item.claims]
            yield (
                describe(finding),
                base,
                [c for c in claims if any(fnmatchcase(c.id, pattern) for pattern in patterns)],
            )


def groups(claims: Sequence[ClaimRecord]) -> Iterator[tuple[str, list[str], list[ClaimRecord]]]:
    """Group claims by kind and by what differs from the paper's setting; yield kind, differences, claims."""
    for kind in KINDS:
        own = [claim for claim in claims if claim.kind == kind]
        for differences in dict.fromkeys(tuple(map(str, claim.differences)) for claim in own):
            yield kind, list(differences), [c for c in own if tuple(map(str, c.differences)) == differences]


_PLACES = {
    "reproduction": "at the paper's setting",
    "replication": "on other networks or data",
    "finding": "of this project's findings",
}
_VERBS = {"holds": ("holds", "hold"), "fails": ("fails", "fail"), "undecided": ("is undecided", "are undecided")}


def opening(verdicts: Counter[tuple[str, str]]) -> str:
    """Say in a few sentences how many claims of each kind have each verdict: {(kind, verdict): how many}. Kinds stay apart."""
    said = []
    for kind, place in _PLACES.items():
        words, noun = [], "" if kind == "finding" else " claim"  # the first number says of what
        for verdict, (one, more) in _VERBS.items():
            if n := verdicts[kind, verdict]:
                words.append(f"{n}{noun} {one}" if n == 1 else f"{n}{noun and noun + 's'} {more}")
                noun = ""
        if words or kind == "reproduction":
            said.append(f"{place.capitalize()}, {_and(words) or 'nothing was measured'}.")
    if missing := _and([f"{n} {p}" for k, p in _PLACES.items() if (n := verdicts[k, "not measured"])]):
        said.append(f"Not measured: {missing}.")
    return " ".join(said) if verdicts else "These runs make no claims."


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def runs_in(root: Path) -> Iterator[Path]:
    """Find the folders of runs and of sweeps over a key, including sweeps with a damaged plan.

    The jobs of a sweep are not searched: their settings are those of the sweep, not those of an experiment.
    """
    for place, folders, files in os.walk(root):
        try:
            whole = plan(Path(place))
            sweep = whole is not None and not whole.get("collection")
        except UserError:  # the caller reports it when it reads this plan
            sweep = True
        if "status.json" in files or sweep:
            folders.clear()
            yield Path(place)
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))


def by_paper(found: Mapping[str, Item], files: Mapping[str, Path]) -> Iterator[Section]:
    """Make a section for each paper that has a run, with all items of `<paper>/all`, and a last one for other experiments.

    files: the experiments' configs; a paper is a folder of them.
    """
    papers = dict.fromkeys(name.partition("/")[0] for name in files if "/" in name)
    groups = {name: paper if (paper := name.partition("/")[0]) in papers else "" for name in found}
    for group in [*papers, ""]:
        own = {name for name in found if groups[name] == group}
        if not own:
            continue
        collection = load_option(files[f"{group}/all"]).experiment if f"{group}/all" in files else {}
        listed = collected(collection, files)
        names = [n for n in dict.fromkeys([*listed, *files, *sorted(own)]) if n in own or n in listed]
        items = [found.get(n) or Item(n, describe(files[n]), None) for n in names]
        title = items[0].title.partition(",")[0] or group
        for item in items if group else []:
            own_title = item.title.removeprefix(f"{title}, ")
            item.title = own_title[:1].upper() + own_title[1:]
        findings = [files[n] for n in collected(collection, files, "findings")]
        yield Section(title if group else "Other experiments", items, findings)


def summary_rows(item: Item) -> Rows:
    """Return an item's rows in report.md, one for each claim; the first also has the command that runs it again."""
    again, what = f"`{item.command}`", item.reduced or (item.state if item.state != "done" else "")
    claims: Rows = [
        {
            "item": item.name,
            "claim": c.sentence,
            "kind": c.kind,
            "paper": c.paper,
            "metric": c.metric,
            "here": c.measured,
            "verdict": c.verdict,
        }
        for c in item.claims
    ] or [{"item": item.name, "claim": item.title} | dict.fromkeys(("kind", "paper", "metric", "here", "verdict"))]
    return [row | {"note": what, "run again": again if number == 0 else None} for number, row in enumerate(claims)]


def _words(value: Any) -> str:
    """Format a JSON value as text."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_words(each)}" for key, each in value.items() if each is not None)
    return "; ".join(map(_words, value)) if isinstance(value, list) else str(value)
