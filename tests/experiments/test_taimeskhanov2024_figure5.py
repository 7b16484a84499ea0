"""taimeskhanov2024, Figure 5: two trainings, one figure at any time, a reproduction at the paper's settings only."""

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
TINY = (FIGURE5, "preset=tiny", "device=cpu", "dataset.limit=20", "experiment.recipe.epochs=2")


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
    assert (claims["T-F4-b"]["verdict"], claims["T-F4-b"]["kind"]) == ("holds", "replication")
    assert len(claims["T-F4-b"]["compared"][0]["values"]) == 2, "after each epoch"
    assert claims["T-3.1-g"]["verdict"] == "holds"
    for id_ in ("T-3.1-e", "T-3.1-f"):
        assert claims[id_]["verdict"] == "not measured"
        assert claims[id_]["differences"] == ["trained on stacked_digits instead of ImageNet-1k"]
    masked, unmasked = (torch.load(folder / f"weights_{name}.pt") for name in ("masked", "unmasked"))
    rows = [weights["classifier.0.weight"].view(128, 64, 14, 7) for weights in (masked, unmasked)]
    assert (rows[0][:, :, 9:] == 0).all()
    assert (rows[1][:, :, 9:] != 0).any()


def claims(tmp_path, accuracy: dict[str, tuple[float, float]], *overrides: str, seeds: int = 3, **images: int) -> dict:
    """The claims of stored results with these accuracies, the same for each seed up to 0.002."""
    register()
    config = compose_config([FIGURE5, f"dataset.path={tmp_path}", *overrides])
    table = [
        {"network": name, "seed": s, "epoch": config.experiment.recipe.epochs, "wall": 0.0}
        | {"val_top1": top1 + 0.001 * s, "val_top5": top5 + 0.001 * s}
        for name, (top1, top5) in accuracy.items()
        for s in range(seeds)
    ]
    networks = [{"network": name, "seed": 0, **IMAGES, **images} for name in accuracy]
    found = Results({}, {"table": table, "networks": networks}, config, tmp_path)
    experiment = Figure5(models={}, recipe=RECIPE)
    found.tables |= experiment.summaries(found)
    return {claim.id: claim for claim in experiment.claims(found)}


PAPERS = {"masked": (0.664, 0.869), "unmasked": (0.714, 0.903)}


def test_the_papers_claims_at_its_settings(tmp_path):
    found = claims(tmp_path, PAPERS)
    assert {id_: (c.verdict, c.kind) for id_, c in found.items()} == dict.fromkeys(
        ("T-3.1-e", "T-3.1-f", "T-F4-b", "T-3.1-g"), ("holds", "reproduction")
    )
    swapped = claims(
        tmp_path, {"masked": PAPERS["unmasked"], "unmasked": PAPERS["masked"]}
    )  # as the paper's caption has it
    assert (swapped["T-3.1-e"].verdict, swapped["T-3.1-f"].verdict) == ("fails", "fails")
    assert claims(tmp_path, PAPERS, seeds=2)["T-3.1-e"].verdict == "undecided"


@pytest.mark.parametrize(
    ("departure", "words"),
    [
        ("experiment.recipe.epochs=2", "experiment.recipe.epochs = 2 instead of 90"),
        ("experiment.recipe.lr=0.1", "experiment.recipe.lr = 0.1 instead of 0.03"),
        ("dataset.limit=1000", "dataset.limit = 1000 instead of None"),
        ("batch_size=8", "batch_size = 8 instead of auto"),
    ],
)
def test_elsewhere_they_are_replications(tmp_path, departure, words):
    found = claims(tmp_path, PAPERS, departure)
    assert (found["T-3.1-e"].kind, list(found["T-3.1-e"].differences)) == ("replication", [words])


def test_a_part_of_imagenet_is_not_imagenet(tmp_path):
    found = claims(tmp_path, PAPERS, train_images=1000)
    assert "masked: 1000 train images instead of 1281167" in found["T-3.1-f"].differences


def test_the_config_is_the_papers():
    register()
    config = compose_config([FIGURE5, "dataset.path=."])
    assert OmegaConf.to_container(config.experiment.recipe) == RECIPE | {"amp": "fp16", "compile": False}
    assert Recipe(**config.experiment.recipe) == Recipe(**RECIPE, amp="fp16")
    assert PAPER["experiment"]["recipe"] is RECIPE
