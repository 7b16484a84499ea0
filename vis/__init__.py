"""The experiment runner for visual explanations of CNNs. `vis-run --help` is the place to start."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vis.store.run_folder import load_run
    from vis.store.runs import load_runs

__version__ = "0.1.0"
__all__ = ["load_run", "load_runs"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported when asked for: numpy and OmegaConf are not needed for `vis-run --help`
        from vis.store import run_folder, runs

        return getattr(run_folder if name == "load_run" else runs, name)
    raise AttributeError(f"module 'vis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
