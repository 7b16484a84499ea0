"""The folder of a run: reserved for one run, written atomically, and readable as Python objects.

During a run, `parts/` is its journal, with one file for each finished task. A killed run resumes after the last of them.
At the end the parts are merged and removed.
"""

import base64
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import shlex
import shutil
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from vis.errors import Incomplete, InUse, UserError, did_you_mean, said
from vis.store.stored import ClaimRecord, claims_of, read_json
from vis.store.tables import Rows
from vis.system.files import intact, write_bytes, write_json, write_text
from vis.system.locks import lock

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger(__name__)


@dataclass
class Output:
    """The results of one task: named arrays, and rows for named tables."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    tables: dict[str, Rows] = field(default_factory=dict)


@dataclass(repr=False)
class Results:
    """The results of a whole run: arrays by name (loaded on access), rows of its tables, its config, its claims."""

    arrays: Mapping[str, np.ndarray]
    tables: dict[str, Rows]
    config: DictConfig
    folder: Path

    @property
    def claims(self) -> list[ClaimRecord]:
        """The run's claims as its folder has them. Raises UserError if the file is damaged."""
        return claims_of(self.folder)

    def rows(self, table: str = "table", **where: Any) -> Rows:
        """Return the rows of a table whose columns have the given values.

        table: one of `tables`; `claims`, a row for each claim; or `comparisons`, a row for each quantity that a claim compares.
        """
        if table == "claims":
            rows = [claim.row() for claim in self.claims]
        elif table == "comparisons":
            rows = [row for claim in self.claims for row in claim.comparisons()]
        else:
            rows = self.tables.get(table, [])
        return [r for r in rows if all(r.get(k) == v for k, v in where.items())]

    def to_frame(self, table: str = "claims") -> "DataFrame":
        """Return the rows of a table (see `rows`) as a pandas DataFrame. Raises UserError for an unknown table."""
        known = ["claims", "comparisons", *self.tables]
        if table not in known:
            raise UserError(f"{self.folder} has no table {table!r}.{did_you_mean(table, known)}")
        return frame(self.rows(table))

    def __repr__(self) -> str:
        tables = ", ".join(f"{name} ({len(rows)} rows)" for name, rows in self.tables.items())
        return f"<{title(self.config)}: {verdicts(self.claims)}; tables: {tables or 'none'}; {self.folder}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the run's name, its verdicts, its note and a small picture."""
        lines = [f"<b>{escape(title(self.config))}</b>: {verdicts(self.claims)}", escape(self.config.get("note") or "")]
        return "<br>".join([*filter(None, lines), *thumbnail(self.folder, 480)])


def reserve(root: Path, name: str) -> Path:
    """Create a folder `root/<date>/<time>_<name>`, one for each run even in the same second. Raises UserError."""
    try:
        while True:
            now = time.localtime()
            day = root / time.strftime("%Y-%m-%d", now)
            day.mkdir(parents=True, exist_ok=True)
            stem = time.strftime("%H-%M-%S", now) + "_" + name
            for suffix in ("", *(f"_{i}" for i in range(2, 100))):
                try:
                    (day / (stem + suffix)).mkdir()
                except FileExistsError:  # another run started in the same second
                    continue
                return (day / (stem + suffix)).resolve()
    except OSError as error:
        reason = "it is a link to a folder that is gone" if root.is_symlink() and not root.exists() else error.strerror
        raise UserError(f"cannot create a folder in outputs={root}: {reason}") from error


class RunFolder:
    """The folder of one run, in which only one process works at a time."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._parts = self.path / "parts"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder. Raises InUse if another process holds the lock."""
        with (self.path / ".lock").open("w") as file:
            try:
                lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InUse(f"another process is working in {self.path}") from error
            yield

    @property
    def status(self) -> dict[str, Any]:
        """Return the contents of status.json; {} before the run began, or if the file is damaged."""
        try:
            status = json.loads((self.path / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # missing or damaged: config and tasks are enough to resume
            return {}
        return status if isinstance(status, dict) else {}

    def set_status(self, **changes: Any) -> None:
        """Update entries of status.json."""
        write_json(self.path / "status.json", self.status | changes)

    @property
    def in_use(self) -> bool:
        """True if a process works in the folder."""
        try:
            with (self.path / ".lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def config(self) -> DictConfig:
        """Return the run's resolved config. Raises UserError if the folder is not a run, or if the config was changed."""
        path = self.path / "config.yaml"
        if not path.is_file():
            raise UserError(f"{self.path} is not the folder of a run: it has no config.yaml")
        try:
            config = OmegaConf.load(path)
        except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
        if not isinstance(config, DictConfig) or "experiment" not in config:
            raise UserError(f"{path} is damaged: it names no experiment")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if (self.status.get("config") or digest) != digest:
            raise UserError(
                f"{path} is damaged or was edited after the run wrote it: start a new run for another config"
            )
        return config

    def begin(self, config: DictConfig, **status: Any) -> None:
        """Store the config of a run that begins."""
        self.replace_config(config, state="running", error=None, **status)

    def replace_config(self, config: DictConfig, **status: Any) -> None:
        """Store a config, with the checksum by which `config` detects changes, and entries of status.json."""
        text = OmegaConf.to_yaml(config, resolve=True)
        if (self.path / "config.yaml").exists():
            self.set_status(config=None)  # a process that ends between the two files must leave no wrong checksum
        write_text(self.path / "config.yaml", text)
        self.set_status(config=hashlib.sha256(text.encode()).hexdigest(), **status)

    def done(self) -> set[int]:
        """Return the numbers of the finished tasks."""
        return {int(m[1]) for f in self._parts.glob("*.npz") if (m := re.fullmatch(r"(\d+)\.npz", f.name))}

    def drop_damaged(self, leftovers: bool = True) -> None:
        """Remove tasks with a wrong checksum, so that they are computed again, and (leftovers) temporary files."""
        for number in self.done():
            path = self._parts / f"{number:06d}.npz"
            if not intact(path):
                log.warning("%s is damaged: computing it again", path)
                path.unlink(missing_ok=True)
        for leftover in [*self.path.glob(".*.tmp"), *self._parts.glob(".*.tmp")] if leftovers else []:
            leftover.unlink(missing_ok=True)

    def add(self, number: int, output: Output) -> None:
        """Write the output of task `number` to the journal."""
        self._parts.mkdir(exist_ok=True)
        tables = np.frombuffer(json.dumps(output.tables).encode(), dtype=np.uint8)
        data = io.BytesIO()
        np.savez(data, allow_pickle=False, **output.arrays, __tables__=tables)
        write_bytes(self._parts / f"{number:06d}.npz", data.getvalue())

    def merge(self) -> Results:
        """Merge all parts into maps.npz and tables.json in the order of the tasks, whatever order they finished in."""
        tables: dict[str, Rows] = {}
        temporary = self.path / f".maps.npz.{os.getpid()}.tmp"
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as merged:
            for number in sorted(self.done()):
                with zipfile.ZipFile(self._parts / f"{number:06d}.npz") as part:
                    for entry in part.infolist():
                        data = part.read(entry)
                        if entry.filename == "__tables__.npy":
                            rows = json.loads(np.load(io.BytesIO(data)).tobytes())
                            for table, more in rows.items():
                                tables.setdefault(table, []).extend(more)
                        else:
                            merged.writestr(zipfile.ZipInfo(entry.filename), data)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(self.path / "maps.npz")
        # NaN in Python's notation: an undefined number differs from an empty cell, and claims about it fail
        write_text(self.path / "tables.json", json.dumps(tables, indent=2, ensure_ascii=False) + "\n")
        return self.results()

    def clear_parts(self) -> None:
        """Remove the journal, once its contents are stored elsewhere."""
        shutil.rmtree(self._parts, ignore_errors=True)

    def results(self) -> Results:
        """Read the stored results. Raises UserError if the run has none yet."""
        tables = self.tables()
        try:
            arrays = np.load(self.path / "maps.npz")
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise self._unreadable(error) from error
        return Results(arrays, tables, self.config(), self.path)

    def tables(self) -> dict[str, Rows]:
        """Read the stored tables. Raises UserError if the run has none yet."""
        try:
            tables: dict[str, Rows] = json.loads((self.path / "tables.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        return tables

    def _unreadable(self, error: Exception) -> UserError:
        return UserError(f"{self.path} has no readable results ({error}): finish it with vis-run --resume")


def load_run(folder: str | Path) -> Results:
    """Load a finished run for analysis in Python: `.arrays[name]`, `.tables`, `.claims`, `.config`. Raises UserError."""
    run = RunFolder(Path(folder).expanduser())
    if not run.path.is_dir():
        raise UserError(f"there is no folder {folder}")
    if (run.path / "sweep.json").is_file():
        raise UserError(f"{folder} is a sweep: load its runs with vis.load_runs")
    run.config()
    return run.results()


def enter(cwd: str | None) -> None:
    """Change to the directory a run was started from, which relative paths in its config refer to. Raises UserError."""
    if cwd and not Path(cwd).is_dir():
        raise UserError(
            f"the folder {cwd}, from which this run was started, no longer exists: create it, or start a new run"
        )
    os.chdir(cwd or ".")


def labels(config: DictConfig) -> dict[str, str]:
    """Return the name, the note and the tags that the user gave a run; without those that the user did not give."""
    tags = ", ".join(config.get("tags") or [])
    given = {"name": config.get("name"), "note": config.get("note"), "tags": tags}
    return {key: value for key, value in given.items() if value}


def title(config: DictConfig) -> str:
    """Return the experiment of a run, with the run's own name and tags in quotes behind it."""
    words = [config.get("name"), *(config.get("tags") or [])]
    return " ".join([str(config.experiment.name), *(f'"{word}"' for word in words if word)])


def verdicts(claims: Sequence[ClaimRecord]) -> str:
    """Count claims by kind and verdict: `reproduction: 3 hold, 1 fails`."""
    counts: dict[str, Counter[str]] = {}
    for claim in claims:
        counts.setdefault(claim.kind, Counter())[claim.verdict] += 1
    plural = {"holds": "hold", "fails": "fail"}
    texts = {
        kind: ", ".join(f"{n} {v if n == 1 else plural.get(v, v)}" for v, n in each.most_common())
        for kind, each in counts.items()
    }
    return "; ".join(f"{kind}: {text}" for kind, text in texts.items()) or "no claims"


def thumbnail(folder: Path, width: int) -> list[str]:
    """Return an HTML image of a run's first figure, at most `width` pixels wide; [] if it has none."""
    names = read_json(folder / "figures.json", list, "") or []
    try:
        with Image.open(folder / f"{names[0]}.png") as image:
            small = image.convert("RGB")
    except (IndexError, OSError, Image.DecompressionBombError):
        return []
    small.thumbnail((width, 4 * width))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=80)
    return [f'<img alt="{escape(names[0])}" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">']


def frame(rows: Rows) -> "DataFrame":
    """Return rows as a pandas DataFrame. Raises ImportError if pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise ImportError("to_frame() needs pandas: pip install pandas; rows() does without") from None
    return pandas.DataFrame(rows)


def failure(error: BaseException, folder: Path) -> str:
    """Return one line that says why a run failed, and what to do next."""
    if isinstance(error, UserError):
        return str(error)
    resume = f"go on with vis-run --resume {shlex.quote(str(folder))}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full ({folder}). Make room and {resume}"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        if error.filename and not Path(error.filename).is_relative_to(folder):
            return f"cannot open {error.filename}: {error.strerror}"
        return f"cannot write in {folder}: {error.strerror}"
    reason = said(error) if isinstance(error, Incomplete) else f"the run failed: {said(error)}"
    what_next = [f"see {folder / 'traceback.txt'}"] * (folder / "traceback.txt").exists()
    if any((folder / name).exists() for name in ("config.yaml", "sweep.json")):
        what_next.append(resume)
    return f"{reason} ({'; '.join(what_next)})" if what_next else reason
