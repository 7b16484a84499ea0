"""Fixation maps: from the authors' MATLAB file and from pictures, and cropped as their photographs are."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from vis.config.compose import compose_config
from vis.data import osie
from vis.data.gaze import blurred, fixations
from vis.errors import UserError
from vis.runner.experiment import Run


def cell(values: list) -> np.ndarray:
    found = np.empty((len(values), 1), dtype=object)
    found[:, 0] = values
    return found


@pytest.fixture
def published(tmp_path):
    """Three photographs of 80x60, two of which two people looked at, in the authors' layout."""
    for part in ("stimuli", "eye"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for name in ("a", "b", "c"):
        Image.new("RGB", (80, 60)).save(tmp_path / "data" / "stimuli" / f"{name}.jpg")
    people = [{"fix_x": [61.0], "fix_y": [21.0]}, {"fix_x": [61.0, 61.0], "fix_y": [21.0, 21.4]}]
    images = [{"img": name, "subjects": cell(people)} for name in ("a.jpg", "b.jpg")]
    savemat(tmp_path / "data" / "eye" / "fixations.mat", {"fixations": cell(images)})
    return tmp_path


def test_the_authors_fixations_are_read_and_drawn_where_they_lie(published):
    places = fixations(published / "data" / "eye" / "fixations.mat")
    assert places["a.jpg"].tolist() == [[61, 21], [61, 21], [61, 21.4]]
    data = osie(str(published))
    assert list(data.names) == ["a.jpg", "b.jpg"], "nobody looked at c"
    look = np.asarray(data.gaze(1))
    assert look.shape == (60, 80)
    assert look[20, 60] == 255, "MATLAB counts from 1"
    assert look[20, 40] == look[0, 60] < 200, "20 pixels to the left, and above"
    assert look.max() == 255


def test_a_place_outside_lies_on_the_border():
    look = np.asarray(blurred(np.array([[900.0, -5.0]]), (80, 60)))
    assert look[0, 79] == look.max() == 255


def test_pictures_of_fixations_are_cut_as_their_photographs_are(tmp_path):
    for part, name in (("images", "a.jpg"), ("images", "b.jpg"), ("fixation_maps", "a.png")):
        (tmp_path / part).mkdir(exist_ok=True)
        picture = Image.new("L", (64, 32))
        picture.paste(200, (40, 4, 44, 8))
        picture.save(tmp_path / part / name)
    words = ("experiment=ayyar2021/figure4", "model=vgg_small", "model.weights=null", "model.init=kaiming_normal")
    run = Run(compose_config([*words, "dataset=osie", f"dataset.path={tmp_path}", "dataset.resize=null"]))
    found = run.reader.gaze(run.model(), [0])
    assert list(found) == ["a.jpg"]
    assert len(run.dataset) == 1, "b has no fixation map"
    assert found["a.jpg"].nonzero().amin(0).tolist() == [4, 24]
    assert found["a.jpg"].nonzero().amax(0).tolist() == [7, 27]
    first = run.dataset.fingerprint()
    Image.new("L", (64, 32), 9).save(tmp_path / "fixation_maps" / "a.png")
    assert run.dataset.fingerprint() != first
    with pytest.raises(UserError, match="neither data/eye"):
        osie(str(tmp_path / "images"))
