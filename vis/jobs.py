"""One job: what Hydra calls for each run, alone or in a sweep, in this process or (pickled) in another."""

import logging
import os
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vis.errors import UserError


class Job:
    """Runs a composed config in the folder that Hydra made for it."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.__name__ = "job"  # hydra.main wraps functions

    def __call__(self, config: DictConfig) -> str:
        from vis.compose import check, register
        from vis.execute import execute

        register()
        check(config)
        folder = Path(HydraConfig.get().runtime.output_dir)
        execute(config, folder, self.command)
        return str(folder)


def resume(folder: Path, command: str) -> None:
    """Go on with a run that was stopped, in the folder where it was started. Raises UserError where there is none."""
    from vis.console import TqdmHandler
    from vis.execute import execute
    from vis.record import RunFolder

    run = RunFolder(folder)
    config = run.config()
    status = run.status
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[TqdmHandler()])
    if status.get("state") == "done":
        print("vis-run: this run is complete; --redraw draws its figures again", file=sys.stderr)
        return
    cwd = status.get("cwd")
    if cwd:  # relative paths in the config were meant from there
        if not Path(cwd).is_dir():
            raise UserError(f"the folder {cwd}, from which this run was started, is gone")
        os.chdir(cwd)
    execute(config, folder, status.get("command", command))
