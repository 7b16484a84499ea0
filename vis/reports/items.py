"""What was run, as the pages over several runs see it: the items of a paper, each with the run that counts."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vis.config.compose import describe, load_option
from vis.errors import UserError
from vis.store.run_folder import RunFolder
from vis.store.stored import Stored, stored
from vis.store.sweep_plan import plan
from vis.store.tables import Rows


@dataclass
class Item:
    """An experiment: its config name, what its config says of it in a line, the folder of the run that counts, if any.

    others: its other runs, the newest first. A run with a file that is damaged counts for nothing: its state is `damaged`.
    """

    name: str
    title: str
    folder: Path | None
    others: Sequence["Item"] = ()

    @cached_property
    def stored(self) -> Stored:
        """What its run's files say; before it is done, its status alone."""
        found = stored(self.folder) if self.folder else Stored()
        done = found.status.get("state") == "done"
        try:
            _ = done and self.config
        except UserError as error:
            found.damaged.append(str(error))
        if found.damaged:
            return Stored({"state": "damaged", "error": found.damaged[0]})
        return found if done else Stored(found.status)

    @property
    def status(self) -> dict[str, Any]:
        return self.stored.status

    @property
    def state(self) -> str:
        return str(self.status.get("state", "not started"))

    @property
    def claims(self) -> list[dict[str, Any]]:
        """Its claims as claims.json holds them; none where it is not done."""
        return self.stored.claims

    @property
    def figures(self) -> dict[str, str]:
        """{file name: caption}."""
        return self.stored.figures

    @property
    def provenance(self) -> dict[str, Any]:
        return self.stored.provenance

    @cached_property
    def config(self) -> DictConfig:
        """The run's resolved config. Raises UserError where there is none."""
        if self.folder is None:
            raise UserError(f"{self.name} has no run")
        config = RunFolder(self.folder).config()
        if not isinstance(config.experiment, DictConfig) or not isinstance(config.experiment.get("name"), str):
            raise UserError(f"{self.folder / 'config.yaml'} is damaged: it names no experiment")
        return config

    @cached_property
    def reduced(self) -> str:
        """In what it falls short of the paper's setting: its sizes, its weights; nothing where it does not."""
        if self.state != "done":
            return ""
        standin = any(model.get("standin") for model in self.provenance.get("models", {}).values())
        return ", ".join(["reduced sizes"] * (self.config.get("preset") == "small") + ["on a stand-in"] * standin)

    @cached_property
    def command(self) -> str:
        """How to run it again."""
        whole = plan(self.folder.parent) if self.folder else None
        number = self.folder.name.partition("_")[0] if self.folder else ""
        if whole is None or not number.isdecimal() or int(number) >= len(whole["jobs"]):
            return str(self.status.get("command") or f"vis-run experiment={self.name}")
        words = [*whole["jobs"][int(number)]]
        if self.state == "done" and self.config.get("preset") == "small" and "preset=small" not in words:
            words.append("preset=small")
        return shlex.join(["vis-run", *words, *(f"--config-dir={folder}" for folder in whole["config_dirs"])])

    @property
    def when(self) -> float:
        """When it finished, or where it has not, when it last changed its state; seconds since 1970."""
        assert self.folder is not None
        finished = self.provenance.get("finished")
        return (
            datetime.fromisoformat(finished).timestamp() if finished else os.path.getmtime(self.folder / "status.json")
        )


def item_of(folder: Path, files: Mapping[str, Path]) -> Item:
    """The item of a run; files: the experiments' configs, for its title. Raises UserError where the run is damaged, or none."""
    item = Item("", "", folder)
    if item.state == "damaged":
        raise UserError(item.status["error"])
    item.name = item.config.experiment.name
    item.title = describe(files[item.name]) if item.name in files else item.name
    return item


@dataclass
class Section:
    """Items that belong together, such as a paper's.

    findings: files of experiment configs each of which stands on another and selects claims of it.
    """

    title: str
    items: Sequence[Item]
    findings: Sequence[Path] = ()


def runs_in(root: Path) -> Iterator[Path]:
    """The folders of runs, and of sweeps over a key: their jobs show the sweep's values, and count for no item.

    So do those of a sweep whose plan is damaged.
    """
    for place, folders, files in os.walk(root):
        try:
            whole = plan(Path(place))
            sweep = whole is not None and not whole.get("collection")
        except UserError:  # told by whoever asks for the plan of this folder
            sweep = True
        if "status.json" in files or sweep:
            folders.clear()
            yield Path(place)
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))


def by_paper(found: Mapping[str, Item], files: Mapping[str, Path]) -> Iterator[Section]:
    """A section for each paper of which an item was run, with all that `<paper>/all` lists; then the other experiments.

    files: the experiments' configs; a paper is a folder of them.
    """
    papers = dict.fromkeys(name.partition("/")[0] for name in files if "/" in name)
    groups = {name: paper if (paper := name.partition("/")[0]) in papers else "" for name in found}
    for group in [*papers, ""]:
        own = {name for name in found if groups[name] == group}
        if not own:
            continue
        collection = load_option(files[f"{group}/all"]).experiment if f"{group}/all" in files else {}
        listed = list(collection.get("all", []))
        names = [n for n in dict.fromkeys([*listed, *files, *sorted(own)]) if n in own or n in listed]
        items = [found.get(n) or Item(n, describe(files[n]), None) for n in names]
        title = items[0].title.partition(",")[0] or group
        for item in items if group else []:
            item.title = item.title.removeprefix(f"{title}, ")
        findings = [files[n] for n in collection.get("findings", [])]
        yield Section(title if group else "Other experiments", items, findings)


def selected_claims(finding: Path, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
    """The claims that show a finding, out of those of the experiment on which its config stands."""
    config = load_option(finding)
    base = str(config.defaults[0]).removeprefix("/experiment/")
    patterns = config.experiment.get("claims", ["*"])
    for item in items:
        if item.name == base:
            yield from (c for c in item.claims if any(fnmatchcase(c["name"], p) for p in patterns))


def flat_claim(claim: Mapping[str, Any]) -> dict[str, Any]:
    return {key: claim[key] for key in ("name", "verdict", "sentence", "source", "metric", "rule", "paper", "measured")}


def summary_rows(item: Item) -> Rows:
    """An item's lines in report.md: one for each claim; how to run it again in the first."""
    again, what = f"`{item.command}`", item.reduced or (item.state if item.state != "done" else "")
    claims = [
        {"item": item.name, "claim": c["sentence"], "paper": c["paper"], "here": c["measured"], "verdict": c["verdict"]}
        for c in item.claims
    ] or [{"item": item.name, "claim": item.title, "paper": None, "here": None, "verdict": None}]
    return [row | {"note": what, "run again": again if number == 0 else None} for number, row in enumerate(claims)]
