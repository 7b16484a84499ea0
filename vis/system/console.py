"""What the user sees while a run works: log lines and progress bars on stderr. stdout carries the path of the result."""

import logging
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


class TqdmHandler(logging.Handler):
    """Log lines above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def start_logging() -> None:
    """For what does not go through Hydra (--resume, --redraw); Hydra's jobs have conf/hydra/job_logging/vis.yaml."""
    close_logs()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[TqdmHandler()])
    logging.getLogger("fontTools").setLevel(logging.WARNING)


def close_logs() -> None:
    """End the log of a job, whose folder may be gone by the next line that this process logs."""
    for handler in [h for h in logging.root.handlers if isinstance(h, logging.FileHandler)]:
        logging.root.removeHandler(handler)
        handler.close()


class Bar(tqdm):
    """A bar that no log line brings up before its delay is over: `close` would not end the line of such a one."""

    def refresh(self, *options: Any, **more: Any) -> None:
        if self.last_print_t >= self.start_t + self.delay:
            super().refresh(*options, **more)


def progress(items: Iterable[Any], total: int | None, unit: str, done: int = 0, **options: Any) -> tqdm:
    """A progress bar with rate and time left that appears only where the work takes more than a second."""
    return Bar(items, total=total, unit=unit, initial=done, delay=1, dynamic_ncols=True, smoothing=0.1, **options)
