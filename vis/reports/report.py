"""Pages over several runs: a collection (nie2018/all), all runs in a folder, or runs side by side (`vis-report`)."""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from vis.claims import KINDS, VERDICTS
from vis.config.check import leaves
from vis.config.options import options, slug
from vis.errors import UserError
from vis.reports.export import EXPORTS, deliver
from vis.reports.html import place, write_page
from vis.reports.items import Item, Section, by_paper, item_of, opening, runs_in, summary_rows
from vis.reports.ledger import judged_claims, ledger_page
from vis.reports.results import results_page
from vis.reports.what_holds import what_holds_page
from vis.store.stored import ClaimRecord
from vis.store.sweep_plan import plan
from vis.store.tables import csv_text, markdown_text
from vis.system.files import write_text

HELP = """vis-report - what has been reproduced: one page over all runs, or runs side by side

  vis-report                 report.html, report.md, claims.csv, results.md, what-holds.md and ledger.md over all runs in outputs/
  vis-report FOLDER          the same over the runs in another folder
  vis-report RUN RUN ...     two to six runs side by side: what differs in their configs, their claims, their figures
  --config-dir DIR           configs of your own, for the titles of your own figures
  --export tex|junit|crate   instead of a page: claims.tex (LaTeX macros of the measured values), claims.junit.xml,
                             or ro-crate-metadata.json in every finished run; of a folder of runs, or of one run
  --expect claims.csv        instead of a page: the claims whose verdicts differ from an earlier report's; exit code 1 if any

Of each figure, table or theorem one finished run counts: one at the paper's size before a smaller one, then the newest.
The others are listed with it.
"""

Entries = Sequence[tuple[Path, str]]
LETTERS = "ABCDEF"  # of runs side by side
UNUSED = ("experiment.replication", "experiment.small", "experiment.tiny")  # what presets would merge into a config


# -- The page over all runs --------------------------------------------------------------------------------------------


def write_report(
    page: Path, title: str, sections: Sequence[Section], lists: Mapping[str, Entries] | None = None, note: str = ""
) -> None:
    """Write a page over the sections' items, and beside it report.md and claims.csv.

    lists: {heading: [(folder, text)]} to print after the sections; empty ones are left out. note: a line at the end.
    """
    rows = []
    for item in (item for section in sections for item in section.items):
        run = place(item.folder, page.parent) if item.folder else ""
        head = {"item": item.name, "run": run, "reduced": item.reduced, "again": item.command}
        rows += [head | claim.row() for claim in item.claims]
    write_text(page.with_name("claims.csv"), csv_text(rows))
    text = [f"# {title}\n"]
    for section in sections:
        text.append(f"## {section.title}\n" if len(sections) > 1 else "")
        text.append(f"{opening(section.verdicts)}\n")
        text.append(markdown_text([row for item in section.items for row in summary_rows(item)]))
    write_text(page.with_name("report.md"), "\n".join(text).replace("<", "\\<"))
    write_page(
        page,
        "report.html",
        title=title,
        sections=sections,
        kinds=KINDS,
        verdicts=VERDICTS,
        lists=lists or {},
        note=note,
    )


def report(root: Path, config_dirs: Sequence[Path] = ()) -> Path:
    """Write report.html, report.md, claims.csv, results.md, what-holds.md and ledger.md of a folder; return the page.

    config_dirs: folders of the user's own configs, for titles. Raises UserError where there is no run.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: runs go to outputs/, or where outputs= said")
    if (root / "status.json").is_file():
        raise UserError(f"{root} is a run, its page is index.html: give the folder that holds runs, or two runs")
    if (whole := plan(root)) and not whole.get("collection"):
        raise UserError(f"{root} is a sweep, its page is index.html: give the folder that holds it, or two of its jobs")
    files = options("experiment", config_dirs)
    found, lists = _found(root, files)
    sections = list(by_paper(found, files))
    only = f": {sections[0].title}" if len(sections) == 1 else ""
    note = f"Written on {time.strftime('%Y-%m-%d %H:%M')} from the runs in {root.resolve().name}"
    write_report(root / "report.html", f"Reproduction report{only}", sections, lists, note)
    judged = judged_claims(each for item in found.values() for each in (item, *item.others))
    write_text(root / "ledger.md", ledger_page(judged))
    write_text(root / "results.md", results_page(sections, judged, files, root))
    write_text(root / "what-holds.md", what_holds_page(found.values(), files))
    return root / "report.html"


def counted(root: Path, config_dirs: Sequence[Path]) -> list[Item]:
    """Return the items whose runs count, of a folder of runs or of a single run; print what could not be read."""
    files = options("experiment", config_dirs)
    if (root / "status.json").is_file():
        return [item_of(root, files)]
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: runs go to outputs/, or where outputs= said")
    found, lists = _found(root, files)
    for _, error in lists["Folders that could not be read"]:
        print(f"vis-report: {error}", file=sys.stderr)
    return list(found.values())


def _found(root: Path, files: Mapping[str, Path]) -> tuple[dict[str, Item], dict[str, Entries]]:
    """Read the runs below a folder: the run of each experiment that counts with its others, and lists of other folders."""
    runs: dict[str, list[Item]] = {}
    unreadable: list[tuple[Path, str]] = []
    sweeps: list[tuple[Path, str]] = []
    for folder in runs_in(root):
        try:
            if whole := plan(folder):
                sweeps.append((folder, whole["command"]))
            else:
                item = item_of(folder, files)
                runs.setdefault(item.name, []).append(item)
        except UserError as error:
            unreadable.append((folder, str(error)))
    if not (runs or sweeps or unreadable):
        raise UserError(f"there are no runs in {root}: start one with vis-run, or give the folder that holds them")
    for items in runs.values():
        items.sort(key=lambda item: item.rank, reverse=True)
        items[0].others = items[1:]
    lists: dict[str, Entries] = {"Folders that could not be read": unreadable, "Sweeps": sweeps}
    return {name: items[0] for name, items in runs.items()}, lists


# -- Runs side by side -------------------------------------------------------------------------------------------------


def compare(folders: Sequence[Path]) -> Path:
    """Write a page with finished runs side by side into the parent folder of the first, and return its path."""
    items = [_finished(folder) for folder in folders]
    names = "_".join(slug(folder.name, 200 // len(folders)) for folder in folders)
    page = folders[0].resolve().parent / f"compare_{names}.html"
    claims = _claims(items)
    write_page(
        page,
        "compare.html",
        title=f"{' and '.join(dict.fromkeys(item.name for item in items))}: {len(items)} runs side by side",
        runs={letter: (str(folder), item) for letter, folder, item in zip(LETTERS, folders, items, strict=False)},
        options=_differences(items),
        claims=claims,
        changed=sum(len({claim.verdict for claim in each if claim}) > 1 for each in claims),
        figures=list(dict.fromkeys(figure for item in items for figure in item.stored.figures)),
    )
    return page


def _finished(folder: Path) -> Item:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    if plan(folder):
        raise UserError(f"{folder} is a sweep, its page is index.html: give two of its jobs, the folders in it")
    item = item_of(folder.resolve(), {})
    if item.state != "done":
        raise UserError(f"{folder} is not finished: go on with vis-run --resume {folder}")
    return item


def _differences(items: Sequence[Item]) -> dict[str, list[str]]:
    """Return the options, and (in parentheses) the provenance entries, that differ between runs, with each run's value."""
    values = []
    for item in items:
        facts = {
            f"({k})": str(item.stored.provenance.entries.get(k)) for k in ("git_commit", "version", "device", "gpu")
        }
        used = {k: str(v) for k, v in leaves(item.config) if not k.startswith(UNUSED)}
        values.append(facts | used)
    keys = dict.fromkeys(key for each in values for key in each)
    rows = {key: [each.get(key, "") for each in values] for key in keys}
    return {key: row for key, row in rows.items() if len(set(row)) > 1}


def _claims(items: Sequence[Item]) -> list[list[ClaimRecord | None]]:
    """Return the claims of several runs, those with the same id together; None for a run that does not make the claim."""
    claims = [{claim.id: claim for claim in item.claims} for item in items]
    return [[each.get(key) for each in claims] for key in dict.fromkeys(key for each in claims for key in each)]


# -- The command line --------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser that prints HELP and raises a UserError for a mistake."""

    def format_help(self) -> str:
        return HELP

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see vis-report --help)")


def _folder(word: str) -> Path:
    return Path(os.path.expanduser(word))


def _existing(word: str) -> Path:
    if not (word and _folder(word).is_dir()):
        raise argparse.ArgumentTypeError(f"there is no folder {word!r}")
    return _folder(word)


def main(argv: list[str] | None = None) -> int:
    """Run `vis-report`, print the page's path and return the exit code: 0, or 2 for a mistake of the user."""
    parser = _Parser("vis-report", allow_abbrev=False)
    parser.add_argument("folders", nargs="*", type=_folder)
    parser.add_argument("--config-dir", action="append", default=[], type=_existing)
    parser.add_argument("--export", action="append", default=[], choices=EXPORTS)
    parser.add_argument("--expect", type=_folder)
    try:
        given = parser.parse_intermixed_args(argv)
        folders = given.folders
        if len(folders) > len(LETTERS):
            raise UserError(f"{len(folders)} folders: give one that holds runs, or two to six runs")
        root = folders[0].resolve().parent if len(folders) > 1 else (folders or [Path("outputs")])[0]
        try:
            if given.export or given.expect:
                if len(folders) > 1:
                    raise UserError("--export and --expect read one run, or one folder of runs: give one folder")
                return deliver(root, counted(root, given.config_dir), given.export, given.expect)
            page = compare(folders) if len(folders) > 1 else report(root, given.config_dir)
        except (OSError, ValueError) as error:
            # no permission to write, a full disk; a config of the user that is not text
            raise UserError(f"cannot read or write in {root}: {getattr(error, 'strerror', error)}") from error
    except UserError as error:
        print(f"vis-report: {error}", file=sys.stderr)
        return 2
    print(f"open {page}", file=sys.stderr)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
