"""Methods learn from images that the run does not explain."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vis.config.compose import compose_config
from vis.data import backgrounds, digits, folder, samples
from vis.errors import UserError
from vis.runner.experiment import Run
from vis.training.fit import ModelOfRun, without


def photographs(root: Path, count: int) -> Path:
    root.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{i:02d}.png")
    return root


def subject(*words: str) -> ModelOfRun:
    run = Run(
        compose_config(["model=cnn3_random", "model.num_filters=2", "model.input_size=32", "method=pda_fast", *words])
    )
    model = run.model()
    return run.explainer.subject(model, run.batch(model, [0]).x, [])


def test_a_file_is_known_by_its_content_and_a_digit_by_its_name(tmp_path):
    own = folder(str(photographs(tmp_path / "own", 3)))
    shutil.copy(tmp_path / "own" / "01.png", tmp_path / "own" / "another name.png")
    assert list(without(folder(str(tmp_path / "own")), own.part([1])).names) == ["00.png", "02.png"]
    assert without(own, samples("all")) is own
    rest = without(digits(), digits().first(3))
    assert (len(rest), rest.names[0]) == (1794, "digit_0003")


def test_the_others_of_a_folder_are_learnt_from_or_if_they_are_few_bundled_photographs(tmp_path):
    many, few = photographs(tmp_path / "many", 25), photographs(tmp_path / "few", 10)
    found = subject("dataset=folder", f"dataset.path={many}", "dataset.limit=2").pictures().data
    assert list(found.names) == [f"{i:02d}.png" for i in range(2, 25)]
    assert found.origin == f"23 other images of folder {many}"
    assert len(subject("dataset=folder", f"dataset.path={few}", "dataset.limit=2").pictures()) == len(backgrounds())
    bundled = subject("dataset=photographs").pictures().data
    assert "astronaut" in bundled.names
    assert not {"tabby", "coffee"} & {*bundled.names}


def test_a_folder_of_which_all_is_explained_is_an_error(tmp_path):
    images = photographs(tmp_path / "all", 3)
    with pytest.raises(UserError, match=r"explains every image.*gaussian=FOLDER"):
        subject("dataset=folder", f"dataset.path={images}").pictures(str(images))
