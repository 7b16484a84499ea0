"""The soak test, shorter: memory stays flat, and a run that is killed again and again has the results of one that is not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "soak.py"


@pytest.mark.slow
def test_a_thousand_images_and_five_kills(tmp_path):
    words = [sys.executable, SCRIPT, "--images", "1000", "--kills", "5", "--folder", "soak"]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    results = json.loads((tmp_path / "soak" / "soak.json").read_text())
    assert list(results) == ["visualize", "figure7"]
    for result in results.values():
        assert result["kills"] == 5
        assert result["files that differ"] == []
