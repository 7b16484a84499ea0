"""nie2018's theory: each experiment from command to verdict at a small size, and its vocabulary against plain arithmetic."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vis import load_run


def claims(folder) -> dict:
    return {c["name"]: c for c in json.loads((Path(folder) / "claims.json").read_text(encoding="utf-8"))}


def test_lemma_1_eq_4_eq_6_and_eq_8_are_what_autograd_computes(vis_run):
    found = claims(vis_run("experiment=nie2018/lemma1", "seeds=1", "experiment.models.cnn.num_filters=4").folder)
    assert set(found) == {f"{e}_{m}" for e in ("eq4", "eq6", "eq8") for m in ("saliency", "deconvnet", "gbp")}
    assert {c["verdict"] for c in found.values()} == {"holds"}


def test_lemma_1_is_judged_in_double_precision_only(vis_run):
    small = ("seeds=1", "target=3", "experiment.models.cnn.num_filters=4", "precision=float32")
    found = claims(vis_run("experiment=nie2018/lemma1", *small).folder)
    assert {c["verdict"] for c in found.values()} == {"not measured"}


def test_the_constants_are_half_of_those_printed(vis_run):
    small = ("seeds=2", "experiment.samples=1000000", "experiment.models.cnn.input_size=48")
    found = claims(vis_run("experiment=nie2018/constants", *small).folder)
    assert {found[f"finding5_{i}"]["verdict"] for i in range(1, 6)} == {"holds"}
    assert found["Z_k"]["mean"] == pytest.approx(0.204, rel=0.15)
