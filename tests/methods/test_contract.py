"""What every method in conf/method promises on networks as people have them.

A map is finite, not constant and of the image's size; a batch gives what its images give one by one; the network is left as
it was found. `REFUSALS` names the pairs of a method and a network that are an error instead, and what it says: another one is
a failure here, and so is a pair that is none any more.
"""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import randomise
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchvision.models import vgg

import vis.methods
from vis.config.home import CONF
from vis.config.instantiate import construct, locate, parameters_of
from vis.config.signature import completed
from vis.data import preprocessing, samples, to_pixels
from vis.methods import ActivationMap, AdversarialGenerators, Method, NotApplicable
from vis.methods.perturbation import Learnt
from vis.windows.gaussian import PatchGaussian

CLASSES, SIZE, BATCH = 10, 64, 2
NODES = {file.stem: OmegaConf.to_container(OmegaConf.load(file)) for file in sorted((CONF / "method").glob("*.yaml"))}
PREPROCESS = preprocessing("imagenet")


# --- the networks ----------------------------------------------------------------------------------------------------


class Tutorial(nn.Module):
    """The CNN of PyTorch's first tutorial: functional ReLUs, one pooling module for all places, `view`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 13 * 13, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 13 * 13)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class InPlace(nn.Module):
    """Functional ReLUs that overwrite their inputs, in every spelling; a skip connection; global average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 5, stride=2)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 16, 3)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x), inplace=True), 2)
        x = torch.relu_(self.conv2(x) + x)
        x = F.relu_(self.conv3(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def narrow_vgg16() -> nn.Module:
    """torchvision's VGG-16 with an eighth of its channels."""
    net = vgg.VGG(vgg.make_layers([k if k == "M" else k // 8 for k in vgg.cfgs["D"]]), CLASSES, init_weights=False)
    net.classifier[0], net.classifier[3] = nn.Linear(64 * 49, 64), nn.Linear(64, 64)
    net.classifier[6] = nn.Linear(64, CLASSES)
    return net


NETWORKS = {
    "vgg16": narrow_vgg16,
    "resnet18": lambda: torchvision.models.resnet18(num_classes=CLASSES),
    "googlenet": lambda: torchvision.models.googlenet(num_classes=CLASSES, aux_logits=False, init_weights=False),
    "densenet121": lambda: torchvision.models.densenet121(num_classes=CLASSES),
    "squeezenet1_1": lambda: torchvision.models.squeezenet1_1(num_classes=CLASSES),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=CLASSES),
    "tutorial": Tutorial,
    "in_place": InPlace,
}


@dataclass(frozen=True)
class Subject:
    """A network in eval mode, two photographs as it sees them, and the largest logit of each."""

    net: nn.Module
    images: Tensor
    units: list[int]


@cache
def subject(network: str) -> Subject:
    return prepared(NETWORKS[network]())


@torch.no_grad()
def prepared(net: nn.Module) -> Subject:
    """With random weights that keep the activations of all layers at about the same size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        randomise(net).double()
    photographs = samples("all")
    pixels = [to_pixels(photographs.read(i), (SIZE, SIZE), 3) for i in range(len(photographs))]
    images = PREPROCESS(torch.stack(pixels).double())
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1  # statistics of these images
    net(images)
    for norm in norms:
        norm.eval().momentum = 0.1
    images = images[:BATCH]
    return Subject(net, images, net(images).argmax(1).tolist())


# --- the methods -----------------------------------------------------------------------------------------------------

_WINDOWS = {"window": 16, "stride": 16}
_LEARNT = {**_WINDOWS, "patch": 18}
CHEAP = {
    "adversarial_generators": {"width": 2, "steps": 2, "batch": 2},
    "expected_gradients": {"samples": 1},
    "guided_ig": {"steps": 4},
    "integrated_gradients": {"steps": 4},
    "kernel_shap": {"samples": 20, "superpixels": 8},
    "lime": {"samples": 20, "superpixels": 8},
    "meaningful_perturbation": {"iterations": 4, "cells": 8, "jitter": 0},
    "occlusion": _WINDOWS,
    "opticam": {"iterations": 4},
    "pda": {**_LEARNT, "samples": 2},
    "pda_fast": _LEARNT,
    "pda_gradient": _LEARNT,
    "rise": {"samples": 8},
    "smoothgrad": {"samples": 2},
}
FEW_MAPS = {  # a layer for scorecam, which runs a network once for each feature map
    "vgg16": "features.1",
    "resnet18": "layer1",
    "googlenet": "inception3a.branch3.0",
    "densenet121": "features.denseblock1.denselayer1",
    "squeezenet1_1": "features.3.squeeze_activation",
    "mobilenet_v2": "features.1",
}

_NO_CAM = "CAM needs global average pooling of layer .* and one dense layer"
REFUSALS = {("cam", network): _NO_CAM for network in ("vgg16", "squeezenet1_1", "tutorial")}
REFUSALS["fullgrad", "mobilenet_v2"] = "do not add up to the target"  # its ReLU6 is saturated


def build(name: str, network: str, at: Subject) -> Method:
    """A method as its config has it, but for cheap parameters, and after a tiny training where it learns."""
    changes = dict(CHEAP.get(name, {}))
    if name == "scorecam" and network in FEW_MAPS:
        changes["layer"] = FEW_MAPS[network]
    if name == "adversarial_generators":
        first = at.units[0]
        changes["classes"] = [first, next((u for u in at.units if u != first), (first + 1) % CLASSES)]
    method = construct({**NODES[name], **changes}, name)
    if isinstance(method, Learnt):
        method.learnt = gaussian()
    if isinstance(method, AdversarialGenerators):
        method.fit(at.net, at.images)
    return method


@cache
def gaussian() -> PatchGaussian:
    return PatchGaussian.fit(subject("tutorial").images, _LEARNT["patch"])


def traces(net: nn.Module) -> list:
    """What a method could leave behind in a network."""
    found: list = []
    for name, module in net.named_modules():
        hooks = {key: list(value) for key, value in vars(module).items() if key.endswith("_hooks") and value}
        found.append((name, type(module), module.training, sorted(vars(module)), hooks))
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        found.append((name, id(tensor), tensor._version, tensor.requires_grad, tensor.grad is None))
    return found


def keeps_its_promises(name: str, network: str, at: Subject) -> None:
    method = build(name, network, at)
    net, x, units = at.net, at.images, at.units
    net.train()
    next(net.parameters()).requires_grad_(False)
    try:
        before = traces(net)
        if (name, network) in REFUSALS:
            with pytest.raises(NotApplicable, match=REFUSALS[name, network]):
                method(net, x, units, PREPROCESS)
            assert traces(net) == before
            return
        maps = method(net, x, units, PREPROCESS)
        assert traces(net) == before
    finally:
        next(net.parameters()).requires_grad_(True)
        net.eval()
    assert maps.shape in (x.shape, x[:, :1].shape)
    assert maps.isfinite().all()
    assert (maps.amax((1, 2, 3)) > maps.amin((1, 2, 3))).all()
    one_by_one = torch.cat([method(net, x[i : i + 1], units[i], PREPROCESS) for i in range(BATCH)])
    assert (maps - one_by_one).norm() <= 1e-6 * maps.norm()


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", NODES)
def test_a_method_keeps_its_promises(name, network):
    keeps_its_promises(name, network, subject(network))


@pytest.mark.slow
@pytest.mark.parametrize("name", NODES)
def test_a_method_keeps_its_promises_on_the_whole_vgg16(name):
    keeps_its_promises(name, "vgg16", whole_vgg16())


@cache
def whole_vgg16() -> Subject:
    return prepared(torchvision.models.vgg16(num_classes=CLASSES, init_weights=False))


def test_every_method_has_a_config():
    known = {each for each in vars(vis.methods).values() if isinstance(each, type) and issubclass(each, Method)}
    missing = known - {Method, ActivationMap} - {locate(str(node["_target_"]), name) for name, node in NODES.items()}
    assert not missing, f"conf/method has no config of {', '.join(each.__name__ for each in missing)}"


CHANGED = {  # the parameters that a config names
    ("deeplift_reveal_cancel", "rule"),
    ("lrp", "rules"),  # its places, so that methods.lrp.rules.input= can be typed
    ("smoothgrad", "base"),  # the default, as a node that can be overridden
}


@pytest.mark.parametrize("name", NODES)
def test_a_config_names_only_what_it_changes_of_the_constructors_defaults(name):
    node = OmegaConf.create(NODES[name])
    assert {(name, str(key)) for key in node if key != "_target_"} == {each for each in CHANGED if each[0] == name}
    parameters = parameters_of(locate(node._target_, name))
    defaults = {key: list(p.default) if isinstance(p.default, tuple) else p.default for key, p in parameters.items()}
    assert OmegaConf.to_container(completed(node)) == defaults | NODES[name], "read from the source"


def test_the_tables_name_methods_and_networks():
    assert {*CHEAP, *(name for name, _ in REFUSALS)} <= NODES.keys()
    assert {*FEW_MAPS, *(network for _, network in REFUSALS)} <= NETWORKS.keys()
