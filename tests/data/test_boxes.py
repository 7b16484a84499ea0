"""The boxes drawn by hand lie in their photographs, and their keys are sha256 digests of files."""

import hashlib
import re
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

BOXES = yaml.safe_load((files("vis.data") / "boxes.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("key", BOXES, ids=lambda key: BOXES[key]["name"])
def test_a_box_lies_in_its_photograph_and_holds_its_parts(key: str) -> None:
    entry = BOXES[key]
    assert re.fullmatch("[0-9a-f]{64}", key)
    assert entry["class"] is None or 0 <= entry["class"] < 1000
    top, left, bottom, right = entry["box"]
    assert 0 <= top < bottom <= 1
    assert 0 <= left < right <= 1
    # Both boxes are rounded to two decimals, so a part may stick out by a little.
    for part in entry.get("parts", {}).values():
        assert top - 0.03 <= part[0] < part[2] <= bottom + 0.03
        assert left - 0.03 <= part[1] < part[3] <= right + 0.03
        assert 0 <= min(part) < max(part) <= 1


def test_the_keys_name_photographs_of_imagenet(data: Path) -> None:
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (data / "images" / "imagenet").glob("*.JPEG")}
    assert len(digests & BOXES.keys()) >= 30
