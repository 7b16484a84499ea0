"""Draw docs/images/packages.svg: the packages of vis/ in their layers, and the imports between them.

python scripts/draw_packages.py     in the repository; needs import-linter, a development tool
"""

import ast
import itertools
import re
import textwrap
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import grimp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Path_

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "packages.svg"
_WIDTH, _HEIGHT, _GAP, _ROW = 2.75, 0.78, 0.6, 1.3  # inches: size of a box, gap between boxes, distance of row centres

Edge = tuple[str, str]
Point = tuple[float, float]


def layers() -> list[list[str]]:
    """Return the rows of the picture from top to bottom: the layers of import-linter's contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (rows,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [re.split(r" [|:] ", row) for row in rows]


def imports() -> set[Edge]:
    """Return the pairs (importer, imported) of the packages of vis/."""
    graph = grimp.build_graph("vis", cache_dir=None)
    found = {
        (module.split(".")[1], other.split(".")[1])
        for module in graph.modules - {"vis"}
        for other in graph.find_modules_directly_imported_by(module) - {"vis"}
    }
    return {(a, b) for a, b in found if a != b}


def arrows(edges: set[Edge]) -> set[Edge]:
    """Remove the imports that are implied by a chain of other imports."""
    reached = set(edges)
    while more := {(a, d) for a, b in reached for c, d in reached if b == c} - reached:
        reached |= more
    return {(a, c) for a, c in edges if not any((a, b) in reached and (b, c) in reached for _, b in edges)}


def purpose(package: str) -> str:
    """Return the first sentence of a package's docstring, without its full stop."""
    file = ROOT / "vis" / package / "__init__.py"
    source = (file if file.is_file() else ROOT / "vis" / f"{package}.py").read_text(encoding="utf-8")
    doc = " ".join((ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0].split())
    return re.split(r"[.:;](?= |$)", doc.removeprefix(f"{package.capitalize()}: "))[0]


def places(rows: list[list[str]], edges: set[Edge]) -> dict[str, Point]:
    """Return the centre of each box, with the order within the rows that makes the arrows shortest."""

    def centres(order: tuple[tuple[str, ...], ...]) -> dict[str, Point]:
        return {
            name: ((i - (len(row) - 1) / 2) * (_WIDTH + _GAP), -depth * _ROW)
            for depth, row in enumerate(order)
            for i, name in enumerate(row)
        }

    def length(order: tuple[tuple[str, ...], ...]) -> float:
        at = centres(order)
        return sum((at[a][0] - at[b][0]) ** 2 for a, b in edges)

    return centres(min(itertools.product(*map(itertools.permutations, rows)), key=length))


def spread(keys: list[Any], distance: float) -> dict[Any, float]:
    """Return offsets around 0, in the order of `keys`, that separate arrows at the same side of a box or in the same gap."""
    return {key: (i - (len(keys) - 1) / 2) * distance for i, key in enumerate(keys)}


def routes(at: dict[str, Point], edges: set[Edge]) -> dict[Edge, list[Point]]:
    """Return the corners of each arrow, which crosses rows in between through the gap nearest to the straight line."""
    through: dict[Edge, list[Point]] = {}
    for a, b in edges:
        (x0, y0), (x1, y1) = at[a], at[b]
        through[a, b] = []
        for y in sorted({y for _, y in at.values() if y1 < y < y0}, reverse=True):
            half = (_WIDTH + _GAP) / 2
            gaps = {x + side * half for x, other in at.values() if other == y for side in (-1, 1)}
            straight = x0 + (x1 - x0) * (y - y0) / (y1 - y0)
            inside = min(gaps) < straight < max(gaps)  # there is room anywhere beyond the outermost boxes
            nearest = min(gaps, key=lambda x: (round(abs(x - straight), 6), -abs(x), x))
            through[a, b].append((nearest if inside else straight, y))
    lines: dict[Edge, list[Point]] = {}
    sides: dict[tuple[str, int], list[Edge]] = defaultdict(list)
    gaps_used: dict[Point, list[Edge]] = defaultdict(list)
    for a, b in sorted(edges, key=lambda edge: (at[edge[1]][0], edge)):
        sides[a, 0].append((a, b))
        sides[b, 1].append((a, b))
        for point in through[a, b]:
            gaps_used[point].append((a, b))
    for (_, end), users in sides.items():
        users.sort(key=lambda e: ((through[e] or [at[e[1 - end]]])[-end][0], at[e[1 - end]][0]))
    start = {key: spread(users, 0.3) for key, users in sides.items()}
    aside = {point: spread(users, 0.11) for point, users in gaps_used.items()}
    for a, b in edges:
        (x0, y0), (x1, y1) = at[a], at[b]
        corners = [(x + aside[x, y][a, b], y + side * _HEIGHT / 2) for x, y in through[a, b] for side in (1, -1)]
        first, last = start[a, 0][a, b], start[b, 1][a, b]
        lines[a, b] = [(x0 + first, y0 - _HEIGHT / 2), *corners, (x1 + last, y1 + _HEIGHT / 2)]
    return lines


def draw(rows: list[list[str]], edges: set[Edge], file: Path) -> None:
    """Draw the picture and save it. Each arrow has the id `importer-imports-imported`."""
    at = places(rows, edges)
    lines = routes(at, edges)
    width = max(abs(x) for line in lines.values() for x, _ in [*line, *at.values()]) + _WIDTH / 2 + 0.1
    height = (len(rows) - 1) * _ROW + _HEIGHT + 0.2
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "packages"}):
        figure = plt.figure(figsize=(2 * width, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(-width, width), ylim=(_HEIGHT / 2 + 0.1 - height, _HEIGHT / 2 + 0.1))
        axes.axis("off")
        for (a, b), corners in sorted(lines.items()):
            style: dict[str, Any] = {
                "arrowstyle": "-|>",
                "mutation_scale": 11,
                "shrinkA": 0,
                "shrinkB": 0,
                "color": "#3b4a5a",
            }
            arrow = FancyArrowPatch(path=Path_(corners), linewidth=1.2, joinstyle="round", **style)
            arrow.set_gid(f"{a}-imports-{b}")
            axes.add_patch(arrow)
        for name, (x, y) in at.items():
            corner = (x - _WIDTH / 2 + 0.06, y - _HEIGHT / 2 + 0.06)
            box: dict[str, Any] = {"boxstyle": "round,pad=0.06", "facecolor": "#eef3f8", "edgecolor": "#5b7794"}
            axes.add_patch(FancyBboxPatch(corner, _WIDTH - 0.12, _HEIGHT - 0.12, zorder=3, **box))
            words = "\n".join(textwrap.wrap(purpose(name), 38))
            axes.text(x, y + 0.2, name, ha="center", va="center", weight="bold", size=12, zorder=4)
            axes.text(x, y - 0.12, words, ha="center", va="center", size=8.5, zorder=4, color="#333333")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, facecolor="white")
        plt.close(figure)


if __name__ == "__main__":
    draw(layers(), arrows(imports()), PICTURE)
