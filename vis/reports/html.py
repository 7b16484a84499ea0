"""index.html of a run: its figures, claims, tables and provenance on one page, readable from the file system; and the
pieces and the look that pages over several runs share with it."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vis.store.run_folder import RunFolder
from vis.store.stored import ROWS, Stored, stored
from vis.system.files import write_text

log = logging.getLogger(__name__)

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #c4312b; --none: #666; --quiet: #444; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --bad: #ff7b72; --none: #aaa; --quiet: #bbb; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
tbody th { overflow-wrap: anywhere; min-width: 9rem; }
.skip { position: absolute; left: -100rem; } .skip:focus { left: 1rem; top: .2rem; }
:focus-visible { outline: 3px solid #4c8dff; outline-offset: 2px; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; background: #fff; border-radius: 4px; }
.figures { display: grid; gap: 0 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.figures figure { max-width: 40rem; }
figcaption, .small { font-size: .85em; color: var(--quiet); } summary { cursor: pointer; padding: .3rem 0; }
.mark { color: var(--bad); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; max-width: 40rem; }
tbody th { font-weight: normal; } .value { overflow-wrap: anywhere; min-width: 6rem; } table.wide { min-width: 48rem; }
@media (max-width: 40rem) { th, td { padding: .25rem; } table { font-size: .8rem; } table.wide { min-width: 36rem; } }
.holds { color: var(--good); } .fails { color: var(--bad); } .not { color: var(--none); } .verdict { font-weight: 600; }
code, pre { font-size: .85rem; } pre { white-space: pre-wrap; overflow-wrap: anywhere; }
pre { padding: .6rem; border: 1px solid var(--line); border-radius: 4px; }
"""


def run_page(folder: RunFolder) -> None:
    """Write index.html of a finished run."""
    path = folder.path
    name = str(folder.config().experiment.name)
    found = stored(path)
    status, provenance = found.status, found.provenance
    parts = [f"<h1>{escape(name)}</h1>"]
    for line in found.damaged:  # the rest of the page is whole
        log.warning("%s", line)
        parts.append(f"<p class=fails>{escape(line)}</p>")
    parts.append(
        f"<p class=small>{escape(str(status.get('state', '')))} in {status.get('seconds', 0):.1f} s on "
        f"{escape(str(provenance.get('gpu') or provenance.get('device', '')))}, peak memory "
        f"{status.get('peak_memory_gb', 0):.1f} GB</p>"
    )
    for figure, caption in found.figures.items():
        alt = caption or f"{figure} of {name}"
        parts.append(
            f'<figure><a href="{escape(figure)}.png"><img src="{escape(figure)}.png" alt="{escape(alt)}"></a>'
            f'<figcaption><a href="{escape(figure)}.pdf">PDF</a></figcaption></figure>'
        )
    if found.claims:
        parts.append("<h2>Claims</h2>" + claims_table(found.claims, f"Claims of {name}"))
    parts += tables(found, ROWS, 2)
    parts.append("<h2>How to run it again</h2><pre>" + escape(str(provenance.get("command", ""))) + "</pre>")
    # The log may begin with the line that says the run is done, which comes after this page.
    expected = {Path(handler.baseFilename) for handler in log.root.handlers if isinstance(handler, logging.FileHandler)}
    links = " · ".join(
        f'<a href="{f}">{f}</a>'
        for f in ("config.yaml", "provenance.json", "claims.json", "maps.npz", "run.log")
        if (path / f).exists() or path.resolve() / f in expected
    )
    parts.append(f"<p class=small>{links}</p>")
    write_text(path / "index.html", document(name, parts))


def document(title: str, parts: Sequence[str], contents: str = "") -> str:
    """A self-contained page. contents: its table of contents, which the keyboard can skip."""
    skip = '<a class=skip href="#content">Skip to the content</a>' + contents if contents else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{skip}<main id="content">\n'
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def table(label: str, heads: Sequence[str], rows: Sequence[Sequence[str]], wide: bool = True) -> str:
    """A table of cells that are HTML, in a region that scrolls by itself, also with the keyboard.

    label: what it is, for screen readers; wide: its cells are sentences, and it scrolls rather than break them into words.
    """
    head = "".join(f"<th scope=col>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return (
        f'<div class=scroll role=region tabindex=0 aria-label="{escape(label)}"><table{" class=wide" if wide else ""}>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def claims_table(claims: Sequence[Mapping[str, Any]], label: str) -> str:
    """Claims as a table: verdict, sentence, paper's value, ours, metric, rule."""
    rows = []
    for c in claims:
        sentence = f"{escape(c['sentence'])}<br><span class=small>{escape(c['source'])}</span>"
        paper = "" if c["paper"] is None else str(c["paper"])
        others = [f"<td>{escape(text)}</td>" for text in (paper, c["measured"], c["metric"], c["rule"])]
        rows.append([verdict_cell(c), f"<th scope=row>{sentence}</th>", *others])
    return table(label, ("Verdict", "Claim", "Paper", "Here", "Measured as", "Rule"), rows)


def verdict_cell(claim: Mapping[str, Any]) -> str:
    """A claim's verdict as a cell, in words and in colour."""
    verdict = escape(str(claim["verdict"]))
    return f'<td class="verdict {verdict.partition(" ")[0]}">{verdict}</td>'


def html_table(rows: Sequence[Mapping[str, Any]], label: str) -> str:
    """Rows of texts as a table, numbers to four digits."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[f"<td>{escape(_short(row.get(column)))}</td>" for column in columns] for row in rows]
    return table(label, list(map(str, columns)), cells, wide=False)


def tables(found: "Stored", most: int, level: int, place: str = "") -> Iterator[str]:
    """A run's tables, the first `most` rows of each, under headings of a level that link to the files.

    place: the run's folder as the page's links name it, with a slash behind it.
    """
    for name, rows in found.tables.items():
        more = f" <span class=small>its first {most} rows</span>" if len(rows) > most else ""
        link = f'<a href="{place}{escape(name)}.csv">{escape(name)}</a>'
        yield f"<h{level}>{link}{more}</h{level}>" + html_table(rows[:most], name)


def _short(value: Any) -> str:
    text = "" if value is None else str(value)
    if "." in text or "e" in text:
        with contextlib.suppress(ValueError):  # a text, which stays as it is
            return f"{float(text):.4g}"
    return text
