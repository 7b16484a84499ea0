"""One page over several runs of experiments: verdicts at a glance, findings, then each item with its figures and claims."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from vis.compose import describe
from vis.page import claims_table, document
from vis.record import RunFolder, csv_text, markdown_text, write_text

VERDICTS = ("holds", "fails", "not measured")


@dataclass
class Item:
    """An experiment: its config name, what its config says of it in a line, the folder of its run, if it has begun."""

    name: str
    title: str
    folder: Path | None

    @cached_property
    def status(self) -> dict[str, Any]:
        return RunFolder(self.folder).status if self.folder else {}

    @property
    def state(self) -> str:
        return str(self.status.get("state", "not started"))

    @cached_property
    def claims(self) -> list[dict[str, Any]]:
        """Its claims as claims.json holds them; none where it is not done."""
        return self._json("claims.json") or []

    @cached_property
    def figures(self) -> dict[str, str]:
        """{file name: caption}."""
        return self._json("figures.json") or {}

    @property
    def small(self) -> bool:
        """Whether it ran at reduced sizes or on a stand-in."""
        return self.state == "done" and self.folder is not None and RunFolder(self.folder).config().preset == "small"

    def _json(self, name: str) -> Any:
        path = self.folder / name if self.folder and self.state == "done" else None
        return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else None


def write_report(folder: Path, title: str, items: Sequence[Item], findings: Sequence[Path]) -> None:
    """Write index.html, claims.csv and claims.md over the items into `folder`.

    findings: files of experiment configs each of which stands on another and selects claims of it.
    """
    rows = [{"item": item.name, **_flat(claim)} for item in items for claim in item.claims]
    write_text(folder / "claims.csv", csv_text(rows))
    write_text(folder / "claims.md", markdown_text(rows))
    verdicts = Counter(str(claim["verdict"]) for item in items for claim in item.claims)
    parts = [f"<h1>{escape(title)}</h1>", "<p>" + ", ".join(f"{verdicts[v]} {v}" for v in VERDICTS) + "</p>"]
    parts += ["<h2>Items</h2>", _scoreboard(items)]
    if findings:
        parts.append("<h2>Findings: what the paper says, and what was measured</h2>")
    for finding in findings:
        selected = list(_selected(finding, items))
        parts.append(
            f"<h3>{escape(describe(finding))}</h3>" + (claims_table(selected) if selected else "<p>not measured</p>")
        )
    for item in items:
        parts += _section(item, folder)
    write_text(folder / "index.html", document(title, parts))


def _flat(claim: Mapping[str, Any]) -> dict[str, Any]:
    return {key: claim[key] for key in ("name", "verdict", "sentence", "source", "metric", "rule", "paper", "measured")}


def _selected(finding: Path, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
    """The claims that show a finding, out of those of the experiment on which its config stands."""
    from omegaconf import OmegaConf

    config = OmegaConf.load(finding)
    base = str(config.defaults[0]).removeprefix("/experiment/")
    patterns = config.experiment.get("claims", ["*"])
    for item in items:
        if item.name == base:
            yield from (c for c in item.claims if any(fnmatchcase(c["name"], p) for p in patterns))


def _anchor(item: Item) -> str:
    return escape(item.name.replace("/", "-"))


def _scoreboard(items: Sequence[Item]) -> str:
    rows = []
    for item in items:
        counts = Counter(str(claim["verdict"]) for claim in item.claims)
        cells = "".join(f"<td class={v.split()[0]}>{counts[v] or ''}</td>" for v in VERDICTS)
        state = "done, on a stand-in or at reduced sizes" if item.small else item.state
        if item.status.get("error"):
            state += f": {item.status['error']}"
        seconds = f"{item.status['seconds']:.0f}" if "seconds" in item.status else ""
        rows.append(
            f'<tr><td><a href="#{_anchor(item)}">{escape(item.name)}</a></td><td>{escape(item.title)}</td>{cells}'
            f"<td>{seconds}</td><td>{escape(state)}</td></tr>"
        )
    heads = ("Item", "What", *(v.capitalize() for v in VERDICTS), "Seconds", "State")
    head = "".join(f"<th scope=col>{h}</th>" for h in heads)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _section(item: Item, folder: Path) -> Iterator[str]:
    """An item's heading, figures and claims; links are relative to `folder`."""
    yield f'<h2 id="{_anchor(item)}">{escape(item.title)}</h2>'
    if item.folder is None or item.state != "done":
        yield f"<p class=not>{escape(item.state)}: {escape(str(item.status.get('error', '')))}</p>"
        return
    place = escape(item.folder.relative_to(folder).as_posix())
    command = escape(f"vis-run experiment={item.name}" + (" preset=small" if item.small else ""))
    yield f'<p class=small><a href="{place}/index.html">tables, arrays, provenance</a> · <code>{command}</code></p>'
    for figure, caption in item.figures.items():
        source, alt = f"{place}/{escape(figure)}.png", escape(caption or f"{figure} of {item.name}")
        yield f'<figure><a href="{source}"><img src="{source}" alt="{alt}" loading="lazy"></a></figure>'
    if item.claims:
        yield claims_table(item.claims)
