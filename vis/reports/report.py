"""Pages over several runs: of a collection (nie2018/all), of all runs in a folder (`vis-report`), of two side by side.

Static pages that work from the file system. Style and thumbnails are inside, so that a page can be read where it is sent
alone; full figures, PDFs and tables are links to the run folders beside it (all of them inside would be tens of megabytes).
"""

import base64
import io
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from vis.config.check import leaves
from vis.config.compose import describe, options, slug
from vis.errors import UserError
from vis.reports.html import claims_table, document, html_table, table, tables, verdict_cell
from vis.reports.items import Item, Section, by_paper, flat_claim, item_of, runs_in, selected_claims, summary_rows
from vis.store.sweep_plan import plan
from vis.store.tables import csv_text, markdown_text
from vis.system.files import write_text

VERDICTS = ("holds", "fails", "not measured")
HELP = """vis-report - what has been reproduced: one page over all runs, or two runs side by side

  vis-report                 report.html, report.md and claims.csv over all runs in outputs/
  vis-report FOLDER          the same over the runs in another folder
  vis-report RUN RUN         two runs side by side: what differs in their configs, their claims, their figures
  --config-dir DIR           configs of your own, for the titles of your own figures

Of each figure, table or theorem the newest finished run counts; older ones are listed behind it.
"""


# -- The pages ---------------------------------------------------------------------------------------------------------


def write_report(page: Path, title: str, sections: Sequence[Section], rest: Sequence[str] = ()) -> None:
    """Write a page over the sections' items, and beside it report.md and claims.csv.

    rest: pieces of HTML that come last. A single section needs no heading of its own.
    """
    items = [item for section in sections for item in section.items]
    rows = [
        {
            "item": item.name,
            "run": _place(item, page),
            "reduced": item.reduced,
            "again": item.command,
            **flat_claim(claim),
        }
        for item in items
        for claim in item.claims
    ]
    write_text(page.with_name("claims.csv"), csv_text(rows))
    text = [f"# {title}\n"]
    for section in sections:
        text.append(f"## {section.title}\n" if len(sections) > 1 else "")
        text.append(markdown_text([row for item in section.items for row in summary_rows(item)]))
    write_text(page.with_name("report.md"), "\n".join(text).replace("<", "\\<"))

    parts, level, contents = [f"<h1>{escape(title)}</h1>"], 2, ""
    if len(sections) > 1:
        level = 3
        links = "".join(f'<li><a href="#{_anchor(s.title)}">{escape(s.title)}</a></li>' for s in sections)
        contents = f'<nav aria-label="Papers"><ul>{links}</ul></nav>'
        parts.append(_overview(sections))
    for section in sections:
        parts += _section(section, page.parent, level)
    write_text(page, document(title, [*parts, *rest], contents))


def report(root: Path, config_dirs: Sequence[Path] = ()) -> Path:
    """Write report.html, report.md and claims.csv over all runs in a folder; returns the page.

    config_dirs: folders of the user's own configs, for titles. Raises UserError where there is no run.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: runs go to outputs/, or where outputs= said")
    if (root / "status.json").is_file():
        raise UserError(f"{root} is a run, its page is index.html: give the folder that holds runs, or two runs")
    if (whole := plan(root)) and not whole.get("collection"):
        raise UserError(f"{root} is a sweep, its page is index.html: give the folder that holds it, or two of its jobs")
    found: dict[str, list[Item]] = {}
    unreadable: list[tuple[Path, str]] = []
    sweeps: list[tuple[Path, str]] = []
    files = options("experiment", config_dirs)
    for folder in runs_in(root):
        try:
            if whole := plan(folder):
                sweeps.append((folder, whole["command"]))
            else:
                item = item_of(folder, files)
                found.setdefault(item.name, []).append(item)
        except UserError as error:
            unreadable.append((folder, str(error)))
    if not (found or sweeps or unreadable):
        raise UserError(f"there are no runs in {root}: start one with vis-run, or give the folder that holds them")
    for runs in found.values():
        runs.sort(key=lambda run: (run.state == "done", run.when, str(run.folder)), reverse=True)
    for first, *others in found.values():
        first.others = others
    page = root / "report.html"
    rest = [f"<p class=small>Written on {time.strftime('%Y-%m-%d %H:%M')} from the runs in {escape(str(root))}</p>"]
    for heading, entries in {"Sweeps": sweeps, "Folders that could not be read": unreadable}.items():
        if entries:
            lines = "".join(f"<li>{_link(folder, root)} {escape(text)}</li>" for folder, text in entries)
            rest.insert(0, f"<h2>{heading}</h2><ul>{lines}</ul>")
    sections = list(by_paper({name: runs[0] for name, runs in found.items()}, files))
    only = f": {sections[0].title}" if len(sections) == 1 else ""
    write_report(page, f"Reproduction report{only}", sections, rest)
    return page


def compare(first: Path, second: Path) -> Path:
    """Write a page with two finished runs side by side, beside the first; returns it. Raises UserError."""
    pair = []
    for folder in (first, second):
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
        if plan(folder):
            raise UserError(f"{folder} is a sweep, its page is index.html: give two of its jobs, the folders in it")
        item = item_of(folder.resolve(), {})
        if item.state != "done":
            raise UserError(f"{folder} is not finished: go on with vis-run --resume {folder}")
        pair.append(item)
    page = pair[0].folder.parent / f"compare_{slug(first.name)}_{slug(second.name)}.html"  # type: ignore[union-attr]  # set above
    title = f"{' and '.join(dict.fromkeys(item.name for item in pair))}: two runs side by side"
    parts = [f"<h1>{escape(title)}</h1>"]
    for letter, item, folder in zip("AB", pair, (first, second), strict=True):
        link = f'<a href="{_place(item, page)}/index.html">{escape(str(folder))}</a> {escape(item.reduced)}'
        parts.append(f"<p><strong>{letter}</strong> {link}<br>Run again: <code>{escape(item.command)}</code></p>")

    facts = [
        {f"({k})": str(item.provenance.get(k)) for k in ("git_commit", "version", "device", "gpu")} for item in pair
    ]
    for item, values in zip(pair, facts, strict=True):
        values |= {k: str(v) for k, v in leaves(item.config) if not k.startswith("experiment.small")}
    keys = [k for k in dict.fromkeys([*facts[0], *facts[1]]) if facts[0].get(k) != facts[1].get(k)]
    rows = [
        [f"<th scope=row>{escape(k)}</th>", *(f"<td class=value>{escape(c.get(k, ''))}</td>" for c in facts)]
        for k in keys
    ]
    parts += [
        "<h2>What differs</h2>",
        table("What differs", ["Option", "A", "B"], rows, wide=False) if rows else "<p>nothing</p>",
    ]

    claims = [{claim["name"]: claim for claim in item.claims} for item in pair]
    rows, changed = [], 0
    for name in dict.fromkeys([*claims[0], *claims[1]]):
        both = [c.get(name) for c in claims]
        claim = next(c for c in both if c)
        what = f"{escape(claim['sentence'])}<br><span class=small>{escape(claim['metric'])}, {escape(claim['rule'])}</span>"
        cells = [f"{verdict_cell(c)}<td>{escape(c['measured'])}</td>" if c else "<td></td><td></td>" for c in both]
        rows.append([f"<th scope=row>{what}</th>", *cells])
        changed += all(both) and len({c["verdict"] for c in both if c}) == 2
    if rows:
        heads = ["Claim", "Verdict of A", "A measured", "Verdict of B", "B measured"]
        parts.append(
            f"<h2>Claims, {changed} of {len(rows)} with another verdict</h2>"
            + table("Claims of both runs", heads, rows)
        )

    parts.append("<h2>Figures</h2>")
    for figure in dict.fromkeys([*pair[0].figures, *pair[1].figures]):
        sides = [_figure(item, figure, page.parent) for item in pair]
        parts.append(f"<h3>{escape(figure)}</h3><div class=figures>{''.join(sides)}</div>")
    write_text(page, document(title, parts))
    return page


# -- Pieces of the pages -----------------------------------------------------------------------------------------------


def _anchor(text: str) -> str:
    return slug(text.replace("/", "-"), 200)


def _place(item: Item, page: Path) -> str:
    """The run's folder as a page's link names it."""
    return _relative(item.folder, page.parent) if item.folder else ""


def _relative(folder: Path, start: Path) -> str:
    return quote(Path(os.path.relpath(folder, start)).as_posix(), safe="/=,")


def _link(folder: Path, start: Path) -> str:
    """A link to a folder's page, or where it has none, to the folder."""
    place = _relative(folder, start)
    target = f"{place}/index.html" if (folder / "index.html").is_file() else f"{place}/"
    return f'<a href="{target}">{escape(os.path.relpath(folder, start))}</a>'


def _counts(items: Sequence[Item]) -> list[str]:
    """Cells with how many claims have each verdict."""
    counts = Counter(str(claim["verdict"]) for item in items for claim in item.claims)
    return [f"<td class={v.split()[0]}>{counts[v] or ''}</td>" for v in VERDICTS]


def _overview(sections: Sequence[Section]) -> str:
    rows = [
        [
            f'<th scope=row><a href="#{_anchor(s.title)}">{escape(s.title)}</a></th>',
            *_counts(s.items),
            f"<td>{sum(item.state == 'done' for item in s.items)} of {len(s.items)}</td>",
        ]
        for s in sections
    ]
    heads = ["Paper", *(v.capitalize() for v in VERDICTS), "Items done"]
    return table("Claims and items of each paper", heads, rows, wide=False)


def _section(section: Section, folder: Path, level: int) -> Iterator[str]:
    """A scoreboard, the findings, then each item; headings from `level` on, links relative to `folder`."""
    if level > 2:
        yield f'<h{level - 1} id="{_anchor(section.title)}">{escape(section.title)}</h{level - 1}>'
    counts = Counter(str(claim["verdict"]) for item in section.items for claim in item.claims)
    yield "<p>" + ", ".join(f"{counts[v]} {v}" for v in VERDICTS) + "</p>"
    rows = []
    for item in section.items:
        state = ", ".join(filter(None, [item.state, item.reduced, str(item.status.get("error") or "")]))
        seconds = f"{item.status['seconds']:.0f}" if "seconds" in item.status else ""
        what = f"<br><span class=small>{escape(item.title)}</span>"
        name = f'<th scope=row><a href="#{_anchor(item.name)}">{escape(item.name)}</a>{what}</th>'
        rows.append([name, *_counts([item]), *(f"<td>{escape(text)}</td>" for text in (state, seconds))])
    heads = ["Item", *(v.capitalize() for v in VERDICTS), "State", "Seconds"]
    yield f"<h{level}>Scoreboard</h{level}>" + table(f"Scoreboard: {section.title}", heads, rows, wide=False)
    if section.findings:
        yield f"<h{level}>Findings: what the paper says, and what was measured</h{level}>"
    for finding in section.findings:
        chosen = list(selected_claims(finding, section.items))
        yield f"<h{level + 1}>{escape(describe(finding))}</h{level + 1}>" + (
            claims_table(chosen, describe(finding)) if chosen else "<p>not measured</p>"
        )
    for item in section.items:
        yield from _item(item, folder, level)


def _item(item: Item, folder: Path, level: int) -> Iterator[str]:
    """An item's heading, figures, claims, tables, provenance and other runs."""
    yield f'<h{level} id="{_anchor(item.name)}">{escape(item.title)}</h{level}>'
    again = (
        f"Run again: <code>{escape(item.command)}</code>"
        if item.folder
        else f"Run: <code>{escape(item.command)}</code>"
    )
    if item.folder is None or item.state != "done":
        yield f"<p class=not>{escape(item.state)} {escape(str(item.status.get('error') or ''))}</p><p class=small>{again}</p>"
        return
    mark = f" <strong class=mark>{escape(item.reduced)}</strong>" if item.reduced else ""
    yield f'<p class=small><a href="{_relative(item.folder, folder)}/index.html">The run\'s page</a>{mark}<br>{again}</p>'
    yield f"<div class=figures>{''.join(_figure(item, figure, folder) for figure in item.figures)}</div>"
    if item.claims:
        yield claims_table(item.claims, f"Claims of {item.name}")
    if shown := "".join(tables(item.stored, 20, level + 1, _relative(item.folder, folder) + "/")):
        yield f"<details><summary>Tables of {escape(item.name)}</summary>{shown}</details>"
    facts = [{"what": key, "value": _words(value)} for key, value in item.provenance.items() if value]
    yield f"<details><summary>Provenance of {escape(item.name)}</summary>{html_table(facts, 'Provenance')}</details>"
    if item.others:
        lines = [f"<li>{_other(item, other, folder)}</li>" for other in item.others]
        yield f"<details><summary>Other runs of {escape(item.name)}: {len(lines)}</summary><ul>{''.join(lines)}</ul></details>"


def _other(item: Item, other: Item, folder: Path) -> str:
    """A line on another run of an item: its page, how it was run, the command that sets it beside the one that counts."""
    assert other.folder is not None
    line = f"{_link(other.folder, folder)} {escape(', '.join(filter(None, [other.state, other.reduced])))}"
    words = [
        other.command,
        *([shlex.join(["vis-report", str(item.folder), str(other.folder)])] * (other.state == "done")),
    ]
    return line + "".join(f"<br><code>{escape(text)}</code>" for text in words)


def _figure(item: Item, figure: str, folder: Path) -> str:
    """A thumbnail that opens the full figure, with the figure's caption; nothing where the run has no such figure."""
    if item.folder is None or figure not in item.figures:
        return "<p>none</p>"
    file = item.folder / f"{figure}.png"
    name, place = escape(f"{figure} of {item.name}"), _relative(item.folder, folder)
    caption = f"<figcaption>{escape(item.figures[figure])}</figcaption>"
    try:
        source = _thumbnail(file, file.stat().st_mtime_ns)
    except (OSError, Image.DecompressionBombError):  # said in the picture's place: one run does not hide the others
        return f"<figure><p>{name}: its file is missing or damaged</p>{caption}</figure>"
    image = f'<img src="{source}" alt="{name}: open it at full size">'
    return f'<figure><a href="{place}/{quote(figure)}.png">{image}</a>{caption}</figure>'


@cache  # the page of a collection is written after each of its items
def _thumbnail(file: Path, changed: int) -> str:
    """A figure, 640 pixels wide at most, as a data URI. changed: when the file was, so that a redrawn one is read again."""
    with Image.open(file) as image:
        small = image.convert("RGB")
    small.thumbnail((640, 1280))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _words(value: Any) -> str:
    """A piece of JSON as words."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_words(each)}" for key, each in value.items() if each is not None)
    return "; ".join(map(_words, value)) if isinstance(value, list) else str(value)


# -- The command line --------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """`vis-report`; the exit code: 0, or 2 where the command was wrong. The page's path is what stdout says."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if {"-h", "--help"} & set(words):
            print(HELP, end="")
            return 0
        folders, config_dirs = [], []
        rest = iter(words)
        for word in rest:
            name, _, value = word.partition("=")
            if name == "--config-dir":
                if not (value := value or next(rest, "")):
                    raise UserError("--config-dir needs a folder")
                config_dirs.append(Path(value).expanduser())
                if not config_dirs[-1].is_dir():
                    raise UserError(f"there is no folder {config_dirs[-1]} for --config-dir")
            elif word.startswith("-"):
                raise UserError(f"unknown option {word}: see vis-report --help")
            else:
                folders.append(Path(word).expanduser())
        if len(folders) > 2:
            raise UserError(f"{len(folders)} folders: give one that holds runs, or two runs")
        root = folders[0].resolve().parent if len(folders) == 2 else (folders or [Path("outputs")])[0]
        try:
            page = compare(*folders) if len(folders) == 2 else report(root, config_dirs)
        except (OSError, ValueError) as error:
            # no right to write there, a full disk; a config of the user's that is no text
            raise UserError(f"cannot read or write in {root}: {getattr(error, 'strerror', error)}") from error
    except UserError as error:
        print(f"vis-report: {error}", file=sys.stderr)
        return 2
    print(f"open {page}", file=sys.stderr)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
