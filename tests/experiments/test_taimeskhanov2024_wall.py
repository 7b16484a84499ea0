"""The walled SqueezeNet of taimeskhanov2024's replication: composed photographs, gray below the wall, both signs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from experiments.taimeskhanov2024.table1 import PAPER, THROUGH, Table1
from vis.config.compose import compose_config, register
from vis.data import folder, stack_photographs, to_pixels
from vis.errors import UserError
from vis.models import build_model, dead_rows
from vis.models.wall import gradient_by_row
from vis.store.run_folder import Results, load_run

ROWS = slice(167, 224)


@pytest.fixture
def photographs(tmp_path):
    random = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(random.integers(0, 256, (240, 300, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_composed_photographs_are_eq_6_with_their_own_rows_others_or_gray(photographs):
    whole = folder(str(photographs))
    pixels = [to_pixels(whole.read(i), (224, 224), 3, 256) for i in range(4)]
    for below in ("same", "different", "gray"):
        data = stack_photographs(str(photographs), below)
        assert data.fingerprint() == stack_photographs(whole, below).fingerprint()
        for i, (first, second) in enumerate(data.sources):
            made = to_pixels(data.read(i), (224, 224), 3)
            assert torch.equal(made[:, :167], pixels[i][:, :167])
            if below == "same":
                assert torch.equal(made[:, ROWS], pixels[i][:, 83:140].flip(2))
            elif below == "different":
                assert second != first
                assert torch.equal(made[:, ROWS], pixels[whole.names.index(second)][:, ROWS])
            else:
                assert (made[:, ROWS] - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)).abs().max() < 0.003
    assert stack_photographs(whole, "different", seed=1).sources != stack_photographs(whole, "different").sources
    with pytest.raises(UserError, match="a single photograph"):
        stack_photographs(whole.part([0]), "different")
    with pytest.raises(ValueError, match="below is same, different, gray"):
        stack_photographs(whole, "above")


def test_the_walled_squeezenet_is_blind_below_row_167_exactly():
    register()
    node = compose_config(["model=squeezenet_masked", "model.weights=null", "model.init=kaiming_normal"]).model
    assert dead_rows(node) == (167, 223)
    values = OmegaConf.to_container(node)
    walled, whole = build_model(values, 0, "cpu"), build_model({**values, "wall": {"rows": None}}, 0, "cpu")
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, :, ROWS] = 0
    with torch.no_grad():
        assert torch.equal(walled.net(x), walled.net(changed))
        class_map = whole.net.classifier[:3](whole.net.features(x))
        assert class_map.shape[2:] == (13, 13)
        assert torch.allclose(walled.net(x), class_map[:, :, :4].mean((2, 3)), rtol=1e-6, atol=1e-6)
    slope = gradient_by_row(walled.net, x)
    assert not slope[ROWS].any()
    assert slope[166] > 0


def test_a_run_composes_the_photographs_that_it_is_given(photographs, vis_run):
    ran = vis_run("experiment=taimeskhanov2024/table1_all_methods", "model.weights=null", "model.init=kaiming_normal",
                  "dataset=folder", f"dataset.path={photographs}", "experiment.least=0", "+experiment.limits.hirescam=2",
                  "method=[gradcam,hirescam]")  # fmt: skip
    run = load_run(ran.folder)
    assert [len(run.rows(method=m)) for m in ("gradcam", "hirescam")] == [4, 2]
    assert {row["images"] for row in run.rows("network")} == {4}
    (claim,) = json.loads((ran.folder / "claims.json").read_text())
    assert (claim["id"], claim["verdict"]) == ("wall", "holds")
    rows = [row for row in run.rows(method="gradcam") if row["mu"] is not None]
    assert all(row["r with unwalled"] == pytest.approx(1, abs=1e-6) for row in rows), "only a factor changes"
    assert (ran.folder / "maps.png").exists()


def composed(mu: dict[str, tuple[float, float]], images: int = THROUGH) -> dict:
    """Return the claims of a run whose methods have these mu x 100 (own rows below, gray below)."""
    register()
    config = compose_config(["experiment=taimeskhanov2024/table1", "preset=small"])
    network = {
        "network": "squeezenet_masked",
        "weights": "weights",
        "trained": True,
        "standin": False,
        "rows": [167, 223],
    }
    network |= {"height": 224, "constant": 0.504, "images": images, "pooled": True, "data": "photographs"}
    tables: dict = {"table": [], "wall": [], "network": [], "validation": []}
    for k, dataset in enumerate(("same", "gray")):
        tables["network"].append(network | {"dataset": dataset})
        for i in range(images):
            tables["wall"].append(
                {"dataset": dataset, "image": i, "blank_live_changes_class": 1, "blank_dead_changes_class": 0}
            )
            for method, values in mu.items():
                value = (values[k] + (i % 3)) / 50.4 if values[k] else 0.0
                row = {
                    "dataset": dataset,
                    "image": i,
                    "method": method,
                    "mu": value / 2,
                    "over constant": value,
                    "seed": 0,
                }
                row |= {"unwalled over constant": 0.6, "r with unwalled": 1.0 if method == "gradcam" else 0.5}
                tables["table"].append(row | {"mu_minmax": value / 2, "highlighted": 1.0, "drop": 0.5})
    results, experiment = Results({}, tables, config, Path()), Table1(samples=1, convention="paper", least=0.5)
    results.tables |= experiment.summaries(results)
    return {c.id: c for c in experiment.claims(results)}


EVERY = dict.fromkeys([*PAPER, "layercam"], (30.0, 14.0)) | {"hirescam": (0.0, 0.0), "layercam": (0.0, 0.0)}


def test_a_method_sees_through_the_wall_if_its_mu_is_above_that_with_gray():
    found = composed(EVERY | {"eigencam_flipped": (60.0, 40.0)})
    assert {c.verdict for id_, c in found.items() if id_.startswith("through_")} == {"holds"}
    assert found["T-3.3-a"].verdict == found["T-T1-hc"].verdict == found["gradcam_same"].verdict == "holds"
    assert found["T-3.3-a"].differences[0] == "squeezenet_masked instead of the masked VGG-16"
    assert "maps by the paper's definitions instead of the code behind its numbers" in found["T-3.3-a"].differences
    assert f"{THROUGH} composed photographs instead of STACK-MIX and STACK-GEN" in found["T-3.3-a"].differences
    fewer = composed(EVERY | {"eigencam_flipped": (60.0, 40.0)}, images=THROUGH - 1)
    assert fewer["through_gradcam"].verdict == "undecided"


def test_activity_that_gray_has_too_is_no_sight():
    found = composed(EVERY | {"gradcam": (14.0, 14.0), "xgradcam": (5.0, 14.0), "eigencam_flipped": (60.0, 60.0)})
    verdicts = [found[f"through_{m}"].verdict for m in ("gradcam", "xgradcam", "eigencam", "gradcam_pp")]
    assert verdicts == ["undecided", "fails", "undecided", "holds"], "the signs of EigenCAM have to agree"
    assert found["eigencam_constant"].verdict == "undecided"


@pytest.mark.slow
def test_the_walled_squeezenet_knows_some_photographs_and_gradcam_does_not_change(data, vis_run):
    """With the trained weights: half of the photographs keep their class; the maps of GradCAM with and without the wall agree."""
    ran = vis_run(
        "experiment=taimeskhanov2024/figure9", "preset=small", "method=[gradcam,hirescam]", "+experiment.unwalled={}"
    )
    run = load_run(ran.folder)
    assert [row["image"] for row in run.rows("wall")] == ["coffee", "motorcycle"]
    assert all(row["blank_dead"] == 0 for row in run.rows("wall"))
    assert all(row["r with unwalled"] == pytest.approx(1, abs=1e-6) for row in run.rows(method="gradcam"))
