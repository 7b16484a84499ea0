"""what-holds.md: what was measured about each method, for a person who has to choose one; from stored runs.

An experiment's config declares, under `experiment.about`, which column of which table speaks about which property of a method:

    about:
      faithfulness: {table: flips, column: drop, better: more, means: "probability lost by pixel flipping"}

table: a stored table with a column `method`, `table` by default; where: values that its rows must have; better: more or less;
per: the column that tells independent units apart, `image` by default. There is no score over properties: each is a column.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vis.claims import Column, interval, mean
from vis.config.options import load_option
from vis.reports.items import Item
from vis.store.run_folder import RunFolder
from vis.store.tables import Rows, markdown_text

HEAD = """# What holds, by method

What was measured about each method, made by `vis-report` from stored runs. The first table has a column for each property, each
in its own unit: no number adds them up, since a method that is good at one is often bad at another. Below it, each property
has its intervals (95 %, over images, or over the grids or rounds that an item draws), its network, and the item that measured
it. Names that are no method, such as `white_noise`, are controls: they explain nothing, and a method that is no better says
nothing either.
"""


def what_holds_page(items: Iterable[Item], files: Mapping[str, Path]) -> str:
    """Return the page in Markdown. items: the runs that count; files: the experiments' configs."""
    whole: dict[str, dict[str, Any]] = {}
    parts: list[str] = []
    for item in items:
        about = load_option(files[item.name]).get("experiment", {}).get("about") if item.name in files else None
        if not about or item.state != "done" or item.config.get("preset") == "tiny":
            continue
        for property_, declared in OmegaConf.to_container(about).items():  # type: ignore[union-attr]  # a mapping
            rows = measured(item, **{"table": "table", "where": {}, "per": "image", **declared})
            if rows:
                for row in rows:
                    whole.setdefault(row["method"], {})[str(property_)] = row["mean"]
                parts += [f"## {str(property_).capitalize()}\n", _said(item, declared), markdown_text(rows)]
    if not parts:
        return HEAD
    properties = list(dict.fromkeys(name for row in whole.values() for name in row))
    table = [{"method": method} | {name: row.get(name) for name in properties} for method, row in whole.items()]
    return "\n".join([HEAD, markdown_text(table), *parts]).replace("<", "\\<")


def measured(item: Item, table: str, column: str, where: Mapping[str, Any], better: str, per: str, means: str) -> Rows:
    """Return mean, interval and number of units of a column, a row for each method, the best first."""
    assert item.folder is not None
    stored = RunFolder(item.folder).results().rows(table, **where)
    found: Rows = []
    for method in dict.fromkeys(row["method"] for row in stored if row.get("method")):
        values = Column([row for row in stored if row["method"] == method], column, per).values
        if values:
            low, high = interval(values)
            row = {"method": f"`{method}`", "mean": mean(values), "from": low, "to": high, "n": len(values)}
            found.append(row)
    return sorted(found, key=lambda row: row["mean"], reverse=better == "more")


def _said(item: Item, declared: Mapping[str, Any]) -> str:
    """Return what a number means, where it was measured and the command that measures it again."""
    network = (item.config.get("model") or {}).get("name", "several networks")
    where = f"{network}{', ' * bool(item.reduced)}{item.reduced}"
    return f"{declared['means']}; {declared['better']} is better. {where}. `vis-run experiment={item.name}`\n"
