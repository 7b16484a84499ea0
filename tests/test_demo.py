"""The main job, as a user runs it."""

import subprocess
import sys
from pathlib import Path


def test_gbp_on_a_random_network_from_any_folder(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "vis.run",
            "method=gbp",
            "model=cnn3_random",
            "model.num_filters=8",
            "model.num_classes=10",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder.parent.parent == tmp_path / "outputs"
    for name in (
        "figure.png",
        "figure.pdf",
        "maps.npz",
        "table.csv",
        "claims.json",
        "config.yaml",
        "provenance.json",
        "status.json",
        "run.log",
        "index.html",
    ):
        assert (folder / name).is_file(), name
