"""The path of a machine with a network: a server of this machine stands in for torchvision's weights and data sets.

Its weights are random, so torchvision's own check of the sha256 passes, but no claim may call them the paper's.
"""

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from skimage import data as photographs
from skimage.io import imsave

from vis.config.home import HOME
from vis.models import VGG16, torchvision_classifier
from vis.models.published import PUBLISHED, is_published

DATA = ("dataset=imagenette", "dataset.path=downloaded", "preset=paper", "device=cpu")


def serve_weights(folder, arch, state):
    """Write a checkpoint under the name that torchvision would give it, `<arch>-<first digits of the sha256>.pth`."""
    whole = folder / "whole.pth"
    torch.save(state, whole)
    with whole.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return whole.rename(folder / f"{arch}-{sha256[:8]}.pth"), sha256


def serve_imagenette(folder, tmp_path):
    """Write an archive of Imagenette with one photograph; return its md5, which torchvision checks."""
    place = tmp_path / "imagenette2-320/val/n02102040"
    place.mkdir(parents=True)
    imsave(place / "cat.JPEG", photographs.chelsea()[:, 75:375])
    with tarfile.open(folder / "imagenette2-320.tgz", "w:gz") as file:
        file.add(tmp_path / "imagenette2-320", "imagenette2-320")
    return hashlib.md5((folder / "imagenette2-320.tgz").read_bytes()).hexdigest()


def judged_as_a_replication(folder, file, sha256):
    """Check what a run records about its weights: which checkpoint, and that it is not the published one."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["model"]["weights"], config["model"]["sha256"]) == ("torchvision", sha256)
    assert not is_published(config["model"])
    (used,) = json.loads((folder / "provenance.json").read_text())["models"].values()
    assert (used["weights"], used["sha256"]) == (f"weights {file.name} (sha256 {sha256[:8]})", sha256)
    claims = json.loads((folder / "claims.json").read_text())
    assert "replication" in {claim["kind"] for claim in claims} <= {"replication", "finding"}
    return claims


def nothing_half_written(home):
    assert not [file for file in home.rglob("*") if file.is_file()]


def flip_a_byte(file):
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        byte = opened.read(1)
        opened.seek(-1, 1)
        opened.write(bytes([byte[0] ^ 1]))


def test_a_run_downloads_checks_and_names_its_weights(served, tmp_path, monkeypatch, vis_run):
    folder, address = served
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # no wheel in its place
    archives = {"320px": (f"{address}/imagenette2-320.tgz", serve_imagenette(folder, tmp_path))}
    monkeypatch.setattr(torchvision.datasets.Imagenette, "_ARCHIVES", archives)
    torch.manual_seed(0)
    file, sha256 = serve_weights(folder, "squeezenet1_1", torchvision_classifier("squeezenet1_1").state_dict())
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.value
    monkeypatch.setattr(weights, "url", f"{address}/{file.name}")
    words = ("experiment=nie2018/figure8", "model=squeezenet", "model.input_size=64", *DATA)

    flip_a_byte(file)
    ran = vis_run(*words)
    assert ran.code == 2
    (line,) = [line for line in ran.err.splitlines() if line.startswith("vis-run:")]
    assert f'invalid hash value (expected "{sha256[:8]}"' in line
    assert not list(tmp_path.glob("outputs/*/*"))
    nothing_half_written(tmp_path / "home")

    flip_a_byte(file)
    ran = vis_run(*words)
    assert f'"GET /{file.name} HTTP/1.1" 200' in ran.err
    assert f"model: weights {file.name} with the sha256 {sha256}" in (ran.folder / "run.log").read_text()
    judged_as_a_replication(ran.folder, file, sha256)
    downloaded = tmp_path / "home/hub/checkpoints" / file.name
    assert downloaded.read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_an_item_of_a_trained_vgg16_runs_on_what_is_served(served, tmp_path, monkeypatch, command, capsys):
    folder, address = served
    md5 = serve_imagenette(folder, tmp_path)
    with torch.device("meta"):
        shapes = VGG16().state_dict()
    values, state = torch.randn(10**6, generator=torch.Generator().manual_seed(0)), {}
    for name, tensor in shapes.items():
        scale = (2 / tensor[0].numel()) ** 0.5 if tensor.dim() > 1 else 0.0  # He et al.; biases are 0
        many = scale * values.repeat(-(-tensor.numel() // len(values)))
        state[name] = many[: tensor.numel()].reshape(tensor.shape)
    file, sha256 = serve_weights(folder, "vgg16", state)
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(  # Python runs it when the process starts
        "import torchvision\n"
        f"torchvision.models.VGG16_Weights.IMAGENET1K_V1.value.url = '{address}/{file.name}'\n"
        f"torchvision.datasets.Imagenette._ARCHIVES = {{'320px': ('{address}/imagenette2-320.tgz', '{md5}')}}\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{HOME}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    words = ("experiment=nie2018/figure8", *DATA)

    flip_a_byte(file)
    ran = command(*words)
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = [line for line in ran.stderr.splitlines() if line.startswith("vis-run:")]
    assert "torchvision's weights could not be downloaded (invalid hash value" in line
    nothing_half_written(tmp_path / "home")

    flip_a_byte(file)
    ran = command(*words)
    assert ran.returncode == 0, ran.stderr
    assert f'"GET /{file.name} HTTP/1.1" 200' in capsys.readouterr().err  # the server's log
    words = f"weights of torchvision with the sha256 {sha256[:8]} instead of the published {PUBLISHED['vgg16']}"
    for claim in judged_as_a_replication(Path(ran.stdout.strip()), file, sha256):
        assert claim["kind"] == "finding" or words in claim["differences"]
    assert [path.name for path in (tmp_path / "home").rglob("*.pth")] == [file.name]
