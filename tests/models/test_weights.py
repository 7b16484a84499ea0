"""Weights from files: a matching file loads unchanged; any other raises a one-line error and changes nothing."""

import hashlib
import os
import pickle
import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL as RUN
from torch import nn

from vis.config.home import HOME
from vis.config.options import load_node, options
from vis.data import preprocessing
from vis.errors import UserError
from vis.graph.names import own_name, resolve_layer
from vis.models import build_model
from vis.models.networks import MaskedVGG16, torchvision_classifier, vgg_layer_names
from vis.models.weights import load_state, read_checkpoint, sha256_of, torchvision_weights, trained_modules

SMALL = {"num_filters": 4, "num_classes": 10, "input_size": 32}


def node(name: str, **changes):
    return load_node(options("model")[name]) | changes


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return build_model(node("cnn3_random", **SMALL), seed=77).net.state_dict()


def build_small(path: Path | str, **changes):
    return build_model(node("cnn3_random", weights=str(path), **(SMALL | changes)))


class Evil:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module", "old format", "half"])
def test_checkpoints_load_in_every_common_form(tmp_path, state, wrap):
    path = tmp_path / "weights.pt"
    content = {
        "state_dict": {"state_dict": state, "epoch": 3},
        "model": {"model": state},
        "module": {f"module.{key}": value for key, value in state.items()},
        "half": {key: value.half() for key, value in state.items()},
    }.get(wrap, state)
    torch.save(content, path, _use_new_zipfile_serialization=wrap != "old format")
    model = build_small(path)
    for key, value in model.net.state_dict().items():
        torch.testing.assert_close(
            value, state[key], rtol=1e-3 if wrap == "half" else 0, atol=1e-4 if wrap == "half" else 0
        )
    assert model.trained
    assert model.weights == f"weights weights.pt (sha256 {model.sha256[:8]})"
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path, state):
    witness = tmp_path / "ran"
    torch.save({"a": Evil(witness)}, tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil(witness)))
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"it contains code or objects \(\w+\.mkdir\), not only weights"):
        build_small(tmp_path / "evil.pt")
    with pytest.raises(UserError, match="cannot load the weights"):
        build_small(tmp_path / "evil.pkl")
    with pytest.raises(UserError, match=r"it contains code or objects .*Linear"):
        build_small(tmp_path / "whole.pt")
    assert not witness.exists()


def test_damaged_and_foreign_files_get_one_clear_line(tmp_path, state):
    for zipped in (True, False):
        torch.save(state, tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
        content = (tmp_path / "whole.pt").read_bytes()
        for length in (0, 3, 100, len(content) // 2, len(content) - 40):
            (tmp_path / "cut.pt").write_bytes(content[:length])
            with pytest.raises(UserError, match=r"cut\.pt: it is damaged or not a checkpoint$"):
                read_checkpoint(tmp_path / "cut.pt")
    (tmp_path / "text.pt").write_text("hello world")
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        read_checkpoint(tmp_path / "text.pt")
    for content in ({}, {"lr": 0.1}, torch.zeros(3)):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(UserError, match="contains no state dict"):
            read_checkpoint(tmp_path / "other.pt")
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(UserError, match="no weights file"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_filters": 8}, "conv1.weight is (4, 3, 7, 7) in the file and (8, 3, 7, 7) in the network"),
        (
            {"num_classes": 11},
            "fc.weight is (10, 1024) in the file and (11, 1024) in the network (set model.num_classes)",
        ),
    ],
)
def test_a_checkpoint_of_the_wrong_shape(tmp_path, state, changes, message):
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(UserError) as caught:
        build_small(tmp_path / "weights.pt", **changes)
    assert str(caught.value).endswith(message)


def test_a_checkpoint_of_another_network(tmp_path, state):
    torch.save(state | {"fc2.weight": torch.zeros(1)}, tmp_path / "more.pt")
    with pytest.raises(UserError, match=r"more\.pt is not a checkpoint of CNN3: it has fc2\.weight, which the network"):
        build_small(tmp_path / "more.pt")
    torch.save({key: value for key, value in state.items() if "fc" not in key}, tmp_path / "less.pt")
    with pytest.raises(UserError, match=r"it is missing fc\.weight and 1 more$"):
        build_small(tmp_path / "less.pt")


def test_a_wrong_checkpoint_changes_nothing():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    wrong = {key: value + 1 for key, value in before.items()} | {"1.bias": torch.zeros(4)}
    with pytest.raises(UserError):
        load_state(net, wrong, "file", only=lambda name: True)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_streamed_layer_loads_no_weights_but_its_neighbours_do(tmp_path, state):
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"layer fc has 12\.8 GB of weights, .* cannot come from a file"):
        build_model(node("cnn3_random", weights=str(tmp_path / "weights.pt")))
    # at 2000x2000 pixels, the dense layer after four filters is streamed
    values = node(
        "cnn3_random", num_filters=4, input_size=2000, weights=str(tmp_path / "weights.pt"), trained_up_to="conv1"
    )
    model = build_model(values)
    assert torch.equal(model.net.conv1.weight, state["conv1.weight"])
    assert model.net.fc.source is not None


# --- partly trained ---------------------------------------------------------------------------------------------------


def test_layer_names_are_those_of_the_paper():
    with torch.device("meta"):
        net = torchvision_classifier("vgg16")
    names = vgg_layer_names()
    convolutions = [f"conv{block}_{i + 1}" for block, count in enumerate([2, 2, 3, 3, 3], 1) for i in range(count)]
    assert list(names) == [*convolutions, "fc1", "fc2", "fc3"]
    kinds = [type(net.get_submodule(name)) for name in names.values()]
    assert kinds == [nn.Conv2d] * 13 + [nn.Linear] * 3
    assert resolve_layer(net, "conv5_1") == resolve_layer(net, "features.24") == "features.24"
    with pytest.raises(UserError, match="Did you mean 'conv5_1'"):
        resolve_layer(net, "conv5_11")


def test_layers_of_a_named_block_have_its_name():
    with torch.device("meta"):
        net = torchvision_classifier("squeezenet1_1")
    for module, name in (
        ("features.0", "conv1"),
        ("features.12.squeeze", "fire9.squeeze"),
        ("features.1", "features.1"),
    ):
        assert own_name(net, module) == name
        assert resolve_layer(net, name) == module


@pytest.mark.parametrize(
    ("up_to", "except_layer", "random"),
    [
        ("conv5_1", None, ["conv5_2", "conv5_3", "fc1", "fc2", "fc3"]),
        ("fc3", None, []),
        (None, "conv3_1", ["conv3_1"]),
    ],
)
def test_partly_trained_vgg(up_to, except_layer, random):
    with torch.device("meta"):
        net = torchvision_classifier("vgg16")
    trained = trained_modules(net, up_to, except_layer)
    assert [name for name, module in vgg_layer_names().items() if not trained(module)] == random


def test_partly_trained_resnet_keeps_whole_blocks_with_their_statistics():
    with torch.device("meta"):
        net = torchvision_classifier("resnet50")
    names = [key.rpartition(".")[0] for key in net.state_dict()]
    up_to, except_ = trained_modules(net, "layer2", None), trained_modules(net, None, "layer3.1")
    assert {n for n in names if up_to(n)} == {n for n in names if n.startswith(("conv1", "bn1", "layer1", "layer2"))}
    assert {n for n in names if not except_(n)} == {n for n in names if n.startswith("layer3.1.")}
    for layer, message in [("layer9", "has no layer 'layer9'"), ("relu", "has no weights")]:
        with pytest.raises(UserError, match=message):
            trained_modules(net, layer, None)
    with pytest.raises(UserError, match="exclude each other"):
        trained_modules(net, "conv1", "fc")


def test_the_rest_is_the_random_network_of_the_same_seed(tmp_path, state):
    torch.save(state, tmp_path / "weights.pt")
    random = build_model(node("cnn3_random", **SMALL), seed=5).net
    partly = build_model(
        node("cnn3_random", weights=str(tmp_path / "weights.pt"), trained_except="fc", **SMALL), seed=5
    )
    assert torch.equal(partly.net.conv1.weight, state["conv1.weight"])
    assert torch.equal(partly.net.fc.weight, random.fc.weight)
    origin = f"weights weights.pt (sha256 {partly.sha256[:8]}) except fc"
    assert partly.weights == f"{origin}, random weights (truncated_normal, std 0.1, seed 5)"
    # a layer that is not loaded may have another shape
    other = build_small(tmp_path / "weights.pt", num_classes=3, trained_up_to="conv1")
    assert other.net.fc.out_features == 3


# --- the authors' masked VGG ------------------------------------------------------------------------------------------


def test_the_authors_state_dict_loads_as_it_is_and_gets_its_wall():
    # Views of one number have all shapes of a 1 GB network at no cost.
    with torch.device("meta"):
        net = MaskedVGG16()
    indices = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    own = [f"features.{i}" for i in indices] + [f"classifier.{i}" for i in (0, 3, 6)]
    theirs = [str(i) for i in indices] + ["31.0", "31.3", "31.6"]
    assert sorted(
        net.adapt_state_dict({f"{n}.{k}": torch.empty(0) for n in theirs for k in ("weight", "bias")})
    ) == sorted(f"{n}.{k}" for n in own for k in ("weight", "bias"))
    assert sorted(net.state_dict()) == sorted(f"{n}.{k}" for n in own for k in ("weight", "bias"))
    assert net.adapt_state_dict(net.state_dict()).keys() == net.state_dict().keys()  # the project's own checkpoints


@pytest.mark.slow
def test_the_authors_file_end_to_end(tmp_path):
    with torch.device("meta"):
        shapes = MaskedVGG16().state_dict()
    state = {
        key.replace("classifier.", "31.").removeprefix("features."): torch.ones(value.shape)
        for key, value in shapes.items()
    }
    torch.save(state, tmp_path / "params_vgg16_masked.pt")
    model = build_model(node("vgg16_masked", weights=str(tmp_path / "params_vgg16_masked.pt")))
    wall = model.net.classifier[0].weight.view(4096, 256, 14, 14)
    assert wall[:, :, :5].eq(1).all()
    assert not wall[:, :, 5:].any()


# --- torchvision's pretrained weights ---------------------------------------------------------------------------------


def test_pretrained_weights_from_the_hub_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    net = torchvision_classifier("mobilenet_v3_small")
    path = torchvision_path("mobilenet_v3_small", tmp_path)
    torch.save(net.state_dict(), path)
    values = node("torchvision", arch="mobilenet_v3_small") | {"name": "mobilenet_v3_small"}
    model = build_model(values)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in model.net.state_dict().items())
    assert model.weights == f"weights {path.name} (sha256 {model.sha256[:8]})"
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.class_name(281) == "tabby (281)"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=f"{path.name}: it is damaged"):
        build_model(values)


def torchvision_path(arch: str, home: Path) -> Path:
    from torchvision import models

    path = home / "hub" / "checkpoints" / Path(models.get_model_weights(arch).DEFAULT.url).name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize("arch", ["densenet121", "vit_b_32"])
def test_old_layer_names_in_torchvisions_files_are_renamed(arch):
    with torch.device("meta"):
        net = torchvision_classifier(arch, input_size=32)
    new = dict(net.state_dict())

    def old(key: str) -> str:
        for part in ("norm1", "norm2", "conv1", "conv2"):
            key = key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.") if "denselayer" in key else key
        return key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")

    renamed = {old(key): value for key, value in new.items()}
    assert renamed.keys() != new.keys()
    assert net.adapt_state_dict(renamed).keys() == new.keys() == net.adapt_state_dict(new).keys()


@pytest.mark.parametrize("error", [urllib.error.URLError("no route to host"), RuntimeError("invalid hash value")])
def test_without_a_network_the_message_names_the_ways_out(tmp_path, monkeypatch, error):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(UserError) as caught:
        build_model(node("vgg16"))
    message = str(caught.value)
    assert str(getattr(error, "reason", error)) in message
    for way in (
        str(tmp_path / "hub/checkpoints/vgg16-397923af.pth"),
        "model.weights=FILE",
        "model.init=truncated_normal",
    ):
        assert way in message
    assert "\n" not in message


def test_a_hub_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"could not be downloaded \(.*Not a directory"):
        torchvision_weights("vgg16")


def test_torchvision_has_no_weights_for_a_users_network():
    with pytest.raises(UserError, match=r"no pretrained weights for 'cnn3_random': give model\.weights=FILE"):
        build_model(node("cnn3_random", weights="torchvision", **SMALL))


def test_building_a_random_vgg_imports_neither_sympy_nor_torchvision():
    code = (
        "import sys; from vis.models import build_model; from vis.config.options import load_node, options\n"
        "values = {**load_node(options('model')['cnn3_random']), 'num_filters': 4}\n"
        "build_model(values); print([m for m in ('sympy', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HOME)
    assert done.stdout.strip() == "[]"  # each import takes half a second or more


@pytest.mark.parametrize(("depth", "least"), [(20, 0.90), (32, 0.91), (56, 0.92)])
def test_resnets_of_cifar_load_their_published_checkpoints(depth, least, data, weights):
    (file,) = weights.glob(f"cifar10_resnet{depth}-*.th")
    node = {"_target_": "vis.models.CifarResNet", "depth": depth, "weights": str(file), "input_size": 32}
    model = build_model(node)
    with np.load(data / "cifar10_lossless_4000.npz") as stored:
        images, labels = torch.from_numpy(stored["images"][:300]), torch.from_numpy(stored["labels"][:300])
    x = preprocessing(model.preprocess)(images.permute(0, 3, 1, 2) / 255)
    with torch.no_grad():
        assert (model.net(x).argmax(1) == labels).double().mean() > least  # training images


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "model._orig_mod.", "net.backbone."])
def test_what_wrappers_put_before_the_names_is_stripped(prefix, tmp_path):
    net, other = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2)) for _ in range(2))
    for each in (net, other):
        each(torch.zeros(1, 3, 8, 8))
    state = {prefix + key: value for key, value in net.state_dict().items()}
    torch.save({"state_dict": state | {"loss.weight": torch.ones(2)}}, tmp_path / "a.ckpt")
    load_state(other, read_checkpoint(tmp_path / "a.ckpt")[0], "a.ckpt", lambda name: True)
    assert torch.equal(other[2].weight, net[2].weight)


def test_files_that_are_no_state_dict_are_named_with_what_they_hold(tmp_path):
    torch.save({"net": {"weight": torch.ones(1)}, "epoch": 3}, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"it has net, epoch: save model.state_dict\(\) alone"):
        read_checkpoint(tmp_path / "net.pt")
    with pytest.warns(FutureWarning):
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(UserError, match="TorchScript"):
        read_checkpoint(tmp_path / "script.pt")


def test_safetensors_files_load(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"weight": torch.arange(3.0)}, tmp_path / "a.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "a.safetensors")[0]["weight"], torch.arange(3.0))


@pytest.mark.parametrize("text", ["{}", "[1]", "no JSON", '{"trained_on": 3, "val_top1": null}'])
def test_another_json_beside_the_weights_does_not_matter(tmp_path, vis_run, state, text):
    torch.save(state, tmp_path / "net.pt")
    (tmp_path / "net.json").write_text(text)
    folder = vis_run(*RUN, "model.weights=net.pt").folder
    assert "weights net.pt (sha256" in (folder / "table.csv").read_text()


def test_weights_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UserError, match=f"cannot read the weights {tmp_path}: Is a directory"):
        sha256_of(tmp_path)
