"""index.html of a run: its figures, claims, tables and provenance on one page, readable from the file system."""

import csv
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vis.record import RunFolder, write_text

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #c4312b; --none: #777; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; background: #fff; border-radius: 4px; }
figcaption, .small { font-size: .85rem; opacity: .8; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
.holds { color: var(--good); } .fails { color: var(--bad); } .not { color: var(--none); } .verdict { font-weight: 600; }
code, pre { font-size: .85rem; } pre { overflow-x: auto; padding: .6rem; border: 1px solid var(--line); border-radius: 4px; }
"""


def run_page(folder: RunFolder) -> None:
    """Write index.html of a finished run."""
    path = folder.path
    status = folder.status
    name = str(folder.config().experiment.name)
    captions = _json(path / "figures.json") or {}
    claims = _json(path / "claims.json") or []
    provenance = _json(path / "provenance.json") or {}
    parts = [f"<h1>{escape(name)}</h1>"]
    parts.append(
        f"<p class=small>{escape(str(status.get('state', '')))} in {status.get('seconds', 0):.1f} s on "
        f"{escape(str(provenance.get('gpu') or provenance.get('device', '')))}, peak memory "
        f"{status.get('peak_memory_gb', 0):.1f} GB</p>"
    )
    for figure, caption in captions.items():
        alt = caption or f"{figure} of {name}"
        parts.append(
            f'<figure><a href="{escape(figure)}.png"><img src="{escape(figure)}.png" alt="{escape(alt)}"></a>'
            f'<figcaption><a href="{escape(figure)}.pdf">PDF</a></figcaption></figure>'
        )
    if claims:
        parts.append("<h2>Claims</h2>" + claims_table(claims))
    for table in sorted(path.glob("*.csv")):
        if table.name == "timings.csv":
            continue
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        shown = rows[:100]
        more = f" <span class=small>first {len(shown)} of {len(rows)} rows</span>" if len(rows) > len(shown) else ""
        parts.append(f'<h2><a href="{escape(table.name)}">{escape(table.stem)}</a>{more}</h2>' + html_table(shown))
    parts.append("<h2>How to run it again</h2><pre>" + escape(str(provenance.get("command", ""))) + "</pre>")
    links = " · ".join(
        f'<a href="{f}">{f}</a>'
        for f in ("config.yaml", "provenance.json", "claims.json", "maps.npz", "run.log")
        if (path / f).exists()
    )
    parts.append(f"<p class=small>{links}</p>")
    write_text(path / "index.html", document(name, parts))


def document(title: str, parts: Sequence[str]) -> str:
    """A self-contained page."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def claims_table(claims: Sequence[Mapping[str, Any]]) -> str:
    """Claims as a table: verdict, sentence, metric, rule, paper's value, ours."""
    rows = []
    for c in claims:
        verdict = str(c["verdict"])
        rows.append(
            f"<tr><td class='verdict {verdict.split()[0]}'>{escape(verdict)}</td><td>{escape(c['sentence'])}"
            f"<br><span class=small>{escape(c['source'])}</span></td><td>{escape(c['metric'])}</td>"
            f"<td>{escape(c['rule'])}</td><td>{escape('' if c['paper'] is None else str(c['paper']))}</td>"
            f"<td>{escape(c['measured'])}</td></tr>"
        )
    head = "".join(f"<th scope=col>{h}</th>" for h in ("Verdict", "Claim", "Measured as", "Rule", "Paper", "Here"))
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of texts as a table, numbers to four digits."""
    if not rows:
        return ""
    head = "".join(f"<th scope=col>{escape(str(key))}</th>" for key in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(_short(v))}</td>" for v in row.values()) + "</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _short(value: Any) -> str:
    text = "" if value is None else str(value)
    if "." in text or "e" in text:
        try:
            return f"{float(text):.4g}"
        except ValueError:
            pass
    return text


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
