"""One table, one figure and one page over all jobs of a sweep, including those that failed or never ran."""

import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vis.config.options import collected, describe, load_option, options
from vis.errors import UserError
from vis.figures import style
from vis.figures.layout import plot, save, styled
from vis.reports.html import write_page
from vis.reports.items import Item, Section, by_paper
from vis.reports.report import write_report
from vis.store.run_folder import RunFolder
from vis.store.sweep_plan import job_folder, plan, swept_values
from vis.store.tables import Rows, csv_text, markdown_text, numbers
from vis.system.files import write_text


@dataclass
class _Job:
    """A job of a sweep: its folder if it was started, and the rows of its table, or one row with its error."""

    number: int
    folder: Path | None
    state: str
    error: str | None
    rows: Rows
    metrics: Sequence[str] = ()
    series: str = ""

    @property
    def log(self) -> str:
        """The file with the most detail on a failure."""
        assert self.folder is not None
        return next((f for f in ("traceback.txt", "run.log") if (self.folder / f).is_file()), "")


def aggregate(folder: Path) -> list[str]:
    """Write the tables, figure and index.html of a sweep, and return a line for each job that is not done."""
    whole = plan(folder)
    if whole is None:
        raise UserError(f"{folder} is not the folder of a sweep: it has no sweep.json")
    if whole.get("collection"):
        return _collect(folder, whole)
    swept = swept_values(whole["jobs"])
    jobs = [_job(folder, number) for number in range(len(swept))]
    # A swept key of which a job has several values (method=gbp,[gbp,saliency]): each row has its own value.
    own = {key for key in swept[0] for job in jobs if len({str(row.get(key)) for row in job.rows}) > 1}
    rows = []
    for job, values in zip(jobs, swept, strict=True):
        head = {"job": job.number, **values, "state": job.state}
        rows += [head | {k: v for k, v in row.items() if k not in head or k in own} for row in job.rows]
    write_text(folder / "table.csv", csv_text(rows))
    write_text(folder / "table.md", markdown_text(rows))
    done = [row for row in rows if row["state"] == "done"]
    last = next((job for job in reversed(jobs) if job.state == "done"), None)
    keys, caption = list(swept[0]), ""
    if done and keys and last and last.metrics and last.folder:
        style.use(RunFolder(last.folder).config())
        with styled():
            figure = _figure(done, keys, [m for m in last.metrics if m in done[0]], last.series)
        save(figure, folder / "figure")
        caption = figure.caption
    missing = [job for job in jobs if job.state != "done"]
    shown = [row if row["state"] == "done" else {key: row[key] for key in row if key != "error"} for row in rows[:500]]
    write_page(
        folder / "index.html",
        "sweep.html",
        title=f"Sweep over {' and '.join(keys)}" if keys else "Sweep",
        folder=folder,
        command=whole["command"],
        missing=missing,
        again=shlex.join(["vis-run", "--resume", str(folder)]),
        caption=caption,
        rows=shown,
        pages=[page for job in jobs if job.folder and (page := job.folder / "index.html").is_file()],
    )
    return [f"job {job.number} {job.state}" + (f": {job.error}" if job.error else "") for job in missing]


def _job(folder: Path, number: int) -> _Job:
    """Read a job of the sweep in a folder."""
    path = job_folder(folder, number)
    status = RunFolder(path).status if path else {}
    state, error = status.get("state", "not started"), status.get("error")
    if path and state == "done":
        try:
            rows = RunFolder(path).results().tables.get("table", [])
            return _Job(number, path, state, None, rows, status.get("metrics", ()), status.get("series", ""))
        except UserError as damage:
            state, error = "damaged", str(damage)
    return _Job(number, path, state, error, [{"error": error}])


def _collect(folder: Path, whole: dict[str, Any]) -> list[str]:
    """Write the page of a collection, and return a line for each experiment that failed or never ran."""
    files = options("experiment", [Path(d) for d in whole["config_dirs"]])
    names = [job[0].removeprefix("experiment=") for job in whole["jobs"]]
    items = [Item(name, describe(files[name]), job_folder(folder, number)) for number, name in enumerate(names)]
    collection = files[whole["collection"]]
    own = [files[name] for name in collected(load_option(collection).experiment, files, "findings")]
    papers = by_paper({item.name: item for item in items}, files)
    sections = [Section(paper.title, [i for i in paper.items if i in items], own or paper.findings) for paper in papers]
    write_report(folder / "index.html", describe(collection), sections)
    return [f"{item.name} {item.state}" for item in items if item.state not in ("done", "not measured")]


def _figure(rows: Rows, keys: list[str], metrics: list[str], series: str) -> Any:
    """Draw each metric against the swept key with the most values, with one line for each series."""
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
