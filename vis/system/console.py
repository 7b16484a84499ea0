"""Log lines and progress bars, on stderr; stdout carries the path of the result."""

import logging
import sys
from collections.abc import Iterable
from threading import RLock
from typing import Any

from tqdm import tqdm

tqdm.set_lock(RLock())  # tqdm's own is also a semaphore of the system, of which Python warns when its process is ended


class TqdmHandler(logging.Handler):
    """Print log lines above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def start_logging() -> None:
    """Configure logging for --resume and --redraw; Hydra's jobs use conf/hydra/job_logging/vis.yaml."""
    close_logs()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[TqdmHandler()])
    logging.getLogger("fontTools").setLevel(logging.WARNING)


def close_logs() -> None:
    """Close the log files of the previous job, whose folder may no longer exist."""
    for handler in [h for h in logging.root.handlers if isinstance(h, logging.FileHandler)]:
        logging.root.removeHandler(handler)
        handler.close()


class Bar(tqdm):
    """A bar that stays hidden until its delay is over, even if a log line is printed; `close` would not end its line.

    Where stderr is no terminal, it prints a line a minute instead.
    """

    def refresh(self, *options: Any, **more: Any) -> None:
        if self.last_print_t >= self.start_t + self.delay:
            super().refresh(*options, **more)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if sys.stderr.isatty():
            super().display(msg, pos)
        elif self.last_print_t >= self.start_t + self.delay:
            print(str(self), file=sys.stderr, flush=True)


def progress(items: Iterable[Any], total: int | None, unit: str, done: int = 0, **options: Any) -> tqdm:
    """Make a progress bar with rate and remaining time, which appears if the work takes more than a second.

    In a log file it prints a line a minute, and none for work within work (leave=False).
    """
    if sys.stderr.isatty():
        return Bar(items, total=total, unit=unit, initial=done, delay=1, dynamic_ncols=True, smoothing=0.1, **options)
    options["disable"] = options.get("disable", False) or not options.get("leave", True)
    minute: dict[str, Any] = {"delay": 60, "mininterval": 60, "miniters": 1, "ncols": 120}
    return Bar(items, total=total, unit=unit, initial=done, smoothing=0.1, **minute, **options)


def duration(seconds: float) -> str:
    """Format seconds as `12 s`, `34 min` or `5.6 h`."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
