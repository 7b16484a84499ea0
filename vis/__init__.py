"""The experiment runner for visual explanations of CNNs. `vis-run --help` is the place to start."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load_run":  # imported when asked for: numpy and OmegaConf are not needed for `vis-run --help`
        from vis.store.run_folder import load_run

        return load_run
    raise AttributeError(f"module 'vis' has no attribute {name!r}")
