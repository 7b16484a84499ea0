"""A sweep as a whole: one table, one figure, one page over its jobs, also over those that failed or never ran."""

import shlex
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vis.config.compose import describe, load_option, options
from vis.errors import UserError
from vis.figures.layout import plot, save, styled
from vis.reports.html import document, html_table
from vis.reports.items import Item, Section, by_paper
from vis.reports.report import write_report
from vis.store.run_folder import RunFolder
from vis.store.sweep_plan import job_folder, plan, swept_values
from vis.store.tables import Rows, csv_text, markdown_text, numbers
from vis.system.files import write_text


def aggregate(folder: Path) -> list[str]:
    """Write the tables, figure and index.html over all jobs of a sweep; returns a line for each that is not done."""
    whole = plan(folder)
    if whole is None:
        raise UserError(f"{folder} is not the folder of a sweep: it has no sweep.json")
    if whole.get("collection"):
        return _collect(folder, whole)
    tables: list[tuple[dict[str, Any], Rows]] = []  # of each job: what stands before its rows, its rows
    problems = []
    metrics: Sequence[str] = ()
    series = ""
    swept = swept_values(whole["jobs"])
    for number, values in enumerate(swept):
        path = job_folder(folder, number)
        status = RunFolder(path).status if path else {}
        state, error = status.get("state", "not started"), status.get("error")
        results = None
        try:
            results = RunFolder(path).results() if path and state == "done" else None
        except UserError as damage:
            state, error = "damaged", str(damage)
        head = {"job": number, **values, "state": state}
        if results is None:
            tables.append((head, [{"error": error}]))
            problems.append(f"job {number} {state}" + (f": {error}" if error else ""))
            continue
        metrics, series = status.get("metrics", metrics), status.get("series", series)
        tables.append((head, results.tables.get("table", [])))
    # A swept key of which a job has several values (method=gbp,[gbp,saliency]): each row knows its own.
    own = {key for key in swept[0] for _, table in tables if len({str(row.get(key)) for row in table}) > 1}
    rows = [
        head | {k: v for k, v in row.items() if k not in head or k in own} for head, table in tables for row in table
    ]
    write_text(folder / "table.csv", csv_text(rows))
    write_text(folder / "table.md", markdown_text(rows))
    done = [row for row in rows if row["state"] == "done"]
    keys, caption = list(swept[0]), ""
    if done and keys and metrics:
        with styled():
            figure = _figure(done, keys, [m for m in metrics if m in done[0]], series)
        save(figure, folder / "figure")
        caption = figure.caption
    _page(folder, whole, keys, rows, caption)
    return problems


def _collect(folder: Path, whole: dict[str, Any]) -> list[str]:
    """The page of a collection of experiments; a line for each that is not done."""
    files = options("experiment", [Path(d) for d in whole["config_dirs"]])
    names = [job[0].removeprefix("experiment=") for job in whole["jobs"]]
    items = [Item(name, describe(files[name]), job_folder(folder, number)) for number, name in enumerate(names)]
    collection = files[whole["collection"]]
    own = [files[name] for name in load_option(collection).experiment.get("findings", [])]
    papers = by_paper({item.name: item for item in items}, files)
    sections = [Section(paper.title, [i for i in paper.items if i in items], own or paper.findings) for paper in papers]
    write_report(folder / "index.html", describe(collection), sections)
    return [f"{item.name} {item.state}" for item in items if item.state != "done"]


def _figure(rows: Rows, keys: list[str], metrics: list[str], series: str) -> Any:
    """Each metric against the swept key with the most values, a line for each series; mean ± std over seeds and images."""
    x = max(keys, key=lambda key: len({row[key] for row in rows}))
    others = [key for key in keys if key != x]
    columns = [c for c in dict.fromkeys([series, *others]) if c and c in rows[0]]
    xs = sorted({row[x] for row in rows}, key=lambda v: (isinstance(v, str), v))
    numeric = all(isinstance(v, int | float) for v in xs)
    caption = [f"{', '.join(metrics)} against {x}: mean over seeds and images, bars ± one standard deviation"]
    figure, axes = plot(3.3 * len(metrics), 2.5, caption, columns=len(metrics))
    for ax, metric in zip(axes, metrics, strict=True):
        for name in dict.fromkeys(tuple(row.get(c) for c in columns) for row in rows):
            own = [r for r in rows if tuple(r.get(c) for c in columns) == name]
            groups = [numbers([r for r in own if r[x] == v], metric) for v in xs]
            points = [(v, g) for v, g in zip(xs, groups, strict=True) if g]
            ax.errorbar(
                [v if numeric else str(v) for v, _ in points],
                [statistics.fmean(g) for _, g in points],
                [statistics.stdev(g) if len(g) > 1 else 0 for _, g in points],
                marker="o",
                capsize=2,
                label=", ".join(map(str, name)),
            )
        if numeric and min(xs) > 0 and max(xs) >= 8 * min(xs):
            ax.set_xscale("log", base=2)
            ax.set_xticks(xs, [f"{v:g}" for v in xs])
            ax.minorticks_off()
        elif numeric:
            ax.set_xticks(xs)
        ax.set_xlabel(x)
        ax.set_ylabel(metric.replace("_", " "))
        ax.axhline(0, color="0.8", linewidth=0.6, zorder=0)
        if columns:
            ax.legend()
    return figure


def _page(folder: Path, whole: dict[str, Any], keys: list[str], rows: Rows, caption: str) -> None:
    """index.html: what was run, what is missing and how to go on, the figure (where it has a caption), table, jobs."""
    title = f"Sweep over {' and '.join(keys)}" if keys else "Sweep"
    parts = [f"<h1>{escape(title)}</h1><p class=small>{escape(folder.name)}</p><pre>{escape(whole['command'])}</pre>"]
    if missing := [row for row in rows if row["state"] != "done"]:
        lines = "".join(f"<li>{_missing(folder, row)}</li>" for row in missing)
        again = escape(shlex.join(["vis-run", "--resume", str(folder)]))
        parts.append(f"<h2>Not done: {len(missing)}</h2><ul>{lines}</ul><p>To go on with them:</p><pre>{again}</pre>")
    if caption:
        image = f'<img src="figure.png" alt="{escape(caption)}">'
        parts.append(f'<figure><a href="figure.png">{image}</a></figure>')
    shown = [row if row["state"] == "done" else {key: row[key] for key in row if key != "error"} for row in rows[:500]]
    parts.append(html_table(shown, "All jobs"))
    paths = [job_folder(folder, number) for number in range(len(whole["jobs"]))]
    links = [_link(path, "index.html", path.name) for path in paths if path and (path / "index.html").is_file()]
    parts.append(f"<h2>Jobs</h2><ul>{''.join(f'<li>{link}</li>' for link in links)}</ul>")
    write_text(folder / "index.html", document(title, parts))


def _missing(folder: Path, row: dict[str, Any]) -> str:
    """A line on a job that is not done, which leads to what it left."""
    path = job_folder(folder, row["job"])
    name = f"job {row['job']}"
    if path:
        file = next((f for f in ("traceback.txt", "run.log") if (path / f).is_file()), "")
        name = _link(path, file, name)
    return f"{name} <span class=fails>{escape(str(row['state']))}</span> {escape(str(row['error'] or ''))}"


def _link(path: Path, file: str, text: str) -> str:
    """A link to a file in a job's folder."""
    return f'<a href="{quote(path.name, safe="=,")}/{file}">{escape(text)}</a>'
