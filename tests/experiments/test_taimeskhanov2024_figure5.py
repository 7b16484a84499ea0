"""taimeskhanov2024, Figure 5: two trainings, one figure at any time, verdicts at the paper's settings only."""

import json

import pytest
import torch
from omegaconf import OmegaConf

import vis
from experiments.taimeskhanov2024.figure5 import IMAGES, PAPER, RECIPE, Figure5
from vis.config.compose import compose_config, register
from vis.store.run_folder import Results
from vis.training.loop import Training
from vis.training.recipe import Recipe

FIGURE5 = "experiment=taimeskhanov2024/figure5"
TINY = (FIGURE5, "preset=small", "device=cpu", "dataset.limit=20", "experiment.recipe.epochs=2")


def verdicts(claims: list) -> dict[str, str]:
    return {claim.name: claim.verdict for claim in claims}


def test_two_trainings_drawn_while_they_work_and_resumed_after_a_kill(vis_run, tmp_path, monkeypatch):
    learn = Training._learn

    def killed(self: Training, *rest: object) -> None:
        if len(self.rows) == 1:
            raise RuntimeError("killed")
        learn(self, *rest)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(Training, "_learn", killed)
    assert vis_run(*TINY).code == 1
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (folder,) = (tmp_path / "outputs").glob("*/*")
    assert vis_run("--redraw", str(folder)).folder == folder
    assert "after 1 of 2 epochs" in json.loads((folder / "figures.json").read_text())["figure"]

    assert vis_run("--resume", str(folder)).folder == folder
    assert "of 2 epochs" not in json.loads((folder / "figures.json").read_text())["figure"]
    run = vis.load_run(folder)
    assert [(row["network"], row["epoch"]) for row in run.rows()] == [
        ("masked", 1), ("masked", 2), ("unmasked", 1), ("unmasked", 2)
    ]  # fmt: skip
    claims = {claim["id"]: claim for claim in json.loads((folder / "claims.json").read_text())}
    assert claims["wall"]["verdict"] == "holds"
    assert claims["masked_top1"]["verdict"] == "not measured"
    assert "trained on stacked_digits, not on ImageNet-1k" in claims["masked_top1"]["measured"]
    masked, unmasked = (torch.load(folder / f"weights_{name}.pt") for name in ("masked", "unmasked"))
    rows = [weights["classifier.0.weight"].view(128, 64, 14, 7) for weights in (masked, unmasked)]
    assert (rows[0][:, :, 5:] == 0).all()
    assert (rows[1][:, :, 5:] != 0).any()


def results(tmp_path, accuracy: dict[str, tuple[float, float]], *overrides: str, **images: int) -> Results:
    register()
    config = compose_config([FIGURE5, f"dataset.path={tmp_path}", *overrides])
    epochs = config.experiment.recipe.epochs
    table = [
        {"network": name, "seed": 0, "epoch": epochs, "val_top1": top1, "val_top5": top5}
        for name, (top1, top5) in accuracy.items()
    ]
    networks = [{"network": name, "seed": 0, "wall": 0.0, **IMAGES, **images} for name in accuracy]
    return Results({}, {"table": table, "networks": networks}, config, tmp_path)


def claims(found: Results) -> list:
    return Figure5(models={}, recipe=RECIPE).claims(found)


def test_the_papers_claims_are_judged_at_its_settings(tmp_path):
    paper = {"masked": (0.66, 0.868), "unmasked": (0.71, 0.9)}
    found = verdicts(claims(results(tmp_path, paper)))
    assert set(found.values()) == {"holds"}
    assert len(found) == 7
    swapped = {"masked": paper["unmasked"], "unmasked": paper["masked"]}  # as the paper's caption has it
    assert verdicts(claims(results(tmp_path, swapped)))["masked_top1"] == "fails"


@pytest.mark.parametrize(
    "departure", ["experiment.recipe.epochs=2", "experiment.recipe.lr=0.1", "dataset.limit=1000", "batch_size=8"]
)
def test_elsewhere_they_are_not(tmp_path, departure):
    found = verdicts(claims(results(tmp_path, {"masked": (0.66, 0.868), "unmasked": (0.71, 0.9)}, departure)))
    assert found["masked_top1"] == found["drop_top5"] == "not measured"
    assert found["here_drop_top1"] == "holds"


def test_a_part_of_imagenet_is_not_imagenet(tmp_path):
    few = results(tmp_path, {"masked": (0.66, 0.868), "unmasked": (0.71, 0.9)}, train_images=1000)
    (claim,) = (each for each in claims(few) if each.name == "masked_top1")
    assert claim.verdict == "not measured"
    assert "1000 of ImageNet's 1281167 train images" in claim.measured


def test_the_config_is_the_papers():
    register()
    config = compose_config([FIGURE5, "dataset.path=."])
    assert OmegaConf.to_container(config.experiment.recipe) == RECIPE | {"amp": "fp16", "compile": False}
    assert Recipe(**config.experiment.recipe) == Recipe(**RECIPE, amp="fp16")
    assert PAPER["experiment"]["recipe"] is RECIPE
