"""The wheel in a fresh environment, used from another folder; the library without Hydra; the README's own code."""

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import SMALL

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel; torch and the like are borrowed from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    # A path in a .pth file is added as it is: the editable install of the borrowed environment does not come along.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["--python", str(folder / "env" / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    return folder / "env" / "bin"


def test_the_wheel_runs_from_another_folder(fresh, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)  # which would put a checkout before the wheel
    done = subprocess.run([fresh / "vis-run", *SMALL], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert (folder / "figure.png").is_file()
    where = [fresh / "python", "-c", "import vis; print(vis.__file__)"]
    assert str(fresh.parent) in subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout


def test_the_wheel_lists_what_the_checkout_lists(fresh, tmp_path):
    installed = subprocess.run([fresh / "vis-run", "--list"], cwd=tmp_path, capture_output=True, text=True, check=True)
    here = subprocess.run(
        [sys.executable, "-m", "vis.run", "--list"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert installed.stdout == here.stdout
    assert "nie2018/figure4" in installed.stdout


def test_the_wheel_has_vis_report(fresh, tmp_path):
    done = subprocess.run([fresh / "vis-report"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vis-report: there is no folder outputs")


def test_the_readmes_code_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["maps"].shape == (2, 3, 224, 224)  # type: ignore[attr-defined]  # exec knows no types
    assert set(names["second"]) == {"gbp", "saliency"}  # type: ignore[call-overload]  # nor here


def test_the_library_needs_neither_hydra_nor_matplotlib():
    code = "import sys, vis.methods; assert not {'hydra', 'matplotlib', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_vis_does_not_import_the_experiments():
    for file in (ROOT / "vis").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) experiments", file.read_text(), flags=re.M), file


def test_make_help_lists_the_targets():
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "nie2018-figure4"):
        assert re.search(rf"^\s+{target}\s+\S", text, flags=re.M)


def test_the_methods_are_a_plain_library():
    """They need torch and numpy: nothing of the command line, of figures or of data."""
    code = "import torch, numpy, sys; before = set(sys.modules); import vis.methods; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    packages = {name.partition(".")[0] for name in loaded}
    assert not packages & {
        "hydra",
        "omegaconf",
        "yaml",
        "matplotlib",
        "PIL",
        "scipy",
        "skimage",
        "sklearn",
        "torchvision",
    }
    assert not {
        name for name in loaded if name.startswith(("vis.config", "vis.store", "vis.models", "vis.data", "vis.runner"))
    }
