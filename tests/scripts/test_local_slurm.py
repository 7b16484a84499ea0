"""scripts/local_slurm.sh removes no folder but its own; tests/system/test_slurm.py starts and stops a real Slurm with it."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "local_slurm.sh"


@pytest.mark.parametrize("conf", [None, "ClusterName=work\nStateSaveLocation=/var/spool/slurmctld\n"])
def test_stop_refuses_a_folder_that_is_no_slurm_of_its_own(tmp_path, conf):
    (tmp_path / "thesis.tex").touch()
    if conf:
        (tmp_path / "slurm.conf").write_text(conf)
    before = sorted(tmp_path.iterdir())
    ran = subprocess.run([SCRIPT, "stop", tmp_path], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (2, f"local_slurm: {tmp_path} has no Slurm of this script\n")
    assert sorted(tmp_path.iterdir()) == before
