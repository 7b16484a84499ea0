"""Where the configs (`conf/`) and the experiments' code (`experiments/`) lie: beside `vis/` in a checkout, inside it in
an installed wheel. They are always taken from there, never from the folder in which the user happens to stand."""

import importlib.util
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
HOME = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
CONF = HOME / "conf"


def provide_experiments() -> None:
    """Make `import experiments` mean the folder that belongs to this installation.

    Without it, a folder `experiments/` where the user stands would shadow ours (`python -m` puts it first on the
    path), and in a wheel the package would not be found at all.
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
