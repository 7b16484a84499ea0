"""Locate the configs (`conf/`) and the experiments' code (`experiments/`): beside `vis/` in a checkout, inside it in a wheel.

The current directory is never searched.
"""

import importlib.util
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
HOME = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
CONF = HOME / "conf"


def provide_experiments() -> None:
    """Make `import experiments` load the package of this installation.

    Otherwise a folder `experiments/` in the current directory would shadow it (`python -m` puts that directory first on
    the path), and a wheel's would not be found.
    """
    folder = HOME / "experiments"
    loaded = sys.modules.get("experiments")
    if loaded is not None and str(folder) in list(loaded.__path__):
        return
    spec = importlib.util.spec_from_file_location(
        "experiments", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["experiments"] = module
    spec.loader.exec_module(module)
