"""All finished runs below a folder as one Python object: `vis.load_runs("outputs").to_frame()`."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from omegaconf import DictConfig, ListConfig, OmegaConf

from vis.errors import UserError, did_you_mean
from vis.store.run_folder import Results, RunFolder, frame, load_run, thumbnail, title, verdicts
from vis.store.stored import ClaimRecord, claims_of
from vis.store.sweep_plan import plan, swept_values
from vis.store.tables import Rows

if TYPE_CHECKING:
    from pandas import DataFrame

_ABSENT = object()
_SHOWN = 20  # runs in a notebook, with a picture each


@dataclass(frozen=True)
class _Entry:
    """A finished run: its folder, its config, and its values of the keys that its sweep varies."""

    folder: Path
    config: DictConfig
    swept: Mapping[str, Any] = field(default_factory=dict)


class Runs(Sequence[Results]):
    """Finished runs, oldest first. `runs[0]` and a loop load one run at a time, `runs[:3]` is again a `Runs`."""

    def __init__(self, root: Path, entries: Sequence[_Entry]) -> None:
        self.root, self._entries = root, list(entries)

    @property
    def folders(self) -> list[Path]:
        """The folders of the runs."""
        return [entry.folder for entry in self._entries]

    @property
    def claims(self) -> list[ClaimRecord]:
        """The claims of all runs."""
        return [claim for folder in self.folders for claim in claims_of(folder)]

    def rows(self, table: str = "table", **where: Any) -> Rows:
        """Return the rows of a table of all runs that have it, with columns in front that tell the runs apart.

        These are `run` (its folder), `experiment`, `run_name`, `run_note`, `run_tags` and the keys that its sweep varies.
        table: as in `Results.rows`; where: values of columns. Raises UserError if no run has such a table.
        """
        found: Rows = []
        tables = {"claims", "comparisons"}
        for entry in self._entries:
            facts = {
                "run": str(entry.folder.relative_to(self.root)),
                "experiment": entry.config.experiment.name,
                "run_name": entry.config.get("name"),
                "run_note": entry.config.get("note"),
                "run_tags": ", ".join(entry.config.get("tags") or []),
                **entry.swept,
            }
            run = Results({}, {}, entry.config, entry.folder)
            if table not in ("claims", "comparisons"):
                run.tables = RunFolder(entry.folder).tables()
                tables |= run.tables.keys()
            found += [facts | row for row in run.rows(table)]
        if table not in tables and self._entries:
            raise UserError(f"no run in {self.root} has a table {table!r}.{did_you_mean(table, tables)}")
        return [row for row in found if all(row.get(key) == value for key, value in where.items())]

    def to_frame(self, table: str = "claims") -> "DataFrame":
        """Return the rows of a table of all runs (see `rows`) as a pandas DataFrame."""
        return frame(self.rows(table))

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Results: ...
    @overload
    def __getitem__(self, index: slice) -> "Runs": ...
    def __getitem__(self, index: int | slice) -> "Results | Runs":
        if isinstance(index, slice):
            return Runs(self.root, self._entries[index])
        return load_run(self._entries[index].folder)

    def __repr__(self) -> str:
        return f"<{len(self)} runs in {self.root}: {verdicts(self.claims)}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a row for each of the newest runs, with its verdicts and a small picture."""
        rows = []
        for entry in self._entries[: -_SHOWN - 1 : -1]:
            what = [title(entry.config), *(f"{key}={value}" for key, value in entry.swept.items())]
            texts = [" ".join(what), verdicts(claims_of(entry.folder)), str(entry.folder.relative_to(self.root))]
            cells = [*map(escape, texts), "".join(thumbnail(entry.folder, 160))]
            rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        older = f"<p>and {len(self) - _SHOWN} older runs</p>" if len(self) > _SHOWN else ""
        return f"<p>{escape(repr(self)[1:-1])}</p><table>{''.join(rows)}</table>{older}"


def load_runs(root: str | Path = "outputs", **where: Any) -> Runs:
    """Load all finished runs below a folder, the jobs of sweeps among them.

    where: values that a run's config must have: `seed=3`, `experiment="nie2018/*"`, `tags="talk"`, `methods="gbp"`,
    `**{"model.num_filters": 8}`. A text is a pattern; of a list, or of several methods, one has to match. A damaged run gives
    a warning and is left out. Raises UserError for a missing folder, and for a key that no run has.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: runs go to outputs/, or where outputs= said")
    found: dict[Path, _Entry] = {}
    for entry in _entries(root, {}):
        found.setdefault(entry.folder.resolve(), entry)  # a link to a run, such as `latest`, is not another run
    entries = list(found.values())
    for key in where:
        if entries and not any(
            OmegaConf.select(entry.config, key, default=_ABSENT) is not _ABSENT for entry in entries
        ):
            raise UserError(f"no run in {root} has the key {key} in its config")
    return Runs(root, [e for e in entries if all(_is(OmegaConf.select(e.config, k), v) for k, v in where.items())])


def _entries(folder: Path, swept: Mapping[str, Any]) -> Iterator[_Entry]:
    """Find the finished runs in a folder and below."""
    try:
        if (folder / "status.json").is_file():
            if RunFolder(folder).status.get("state") == "done":
                yield _Entry(folder, RunFolder(folder).config(), swept)
            return
        whole = plan(folder)
    except UserError as error:
        warnings.warn(str(error), stacklevel=4)
        return
    values = swept_values(whole["jobs"]) if whole and not whole.get("collection") else []
    below = [each for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")]
    for each in sorted(below, key=lambda path: [int(n) if n.isdecimal() else n for n in re.split(r"(\d+)", path.name)]):
        number = each.name.partition("_")[0]
        yield from _entries(each, values[int(number)] if number.isdecimal() and int(number) < len(values) else {})


def _is(value: Any, wanted: Any) -> bool:
    """Return True if a config's value is the wanted one, matches its pattern, or contains it."""
    if isinstance(value, DictConfig):  # a model or an experiment goes by its name, methods by theirs
        return any(_is(name, wanted) for name in ([value.name] if "name" in value else value))
    if isinstance(value, ListConfig):
        return any(_is(each, wanted) for each in value) or value == wanted
    return fnmatchcase(value, wanted) if isinstance(value, str) and isinstance(wanted, str) else bool(value == wanted)
