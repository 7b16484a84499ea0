"""Models: classifiers with named layers and a named initialisation or checkpoint.

`build_model` makes one from a config node such as conf/model/vgg16_random.yaml. Every node has the keys below; what
else it holds goes to the constructor `_target_`.

    init          a named random initialisation (vis.models.initialise), "default" (the constructor's own), or null
    std           of the initialisations truncated_normal and normal
    weights       null, "torchvision" (pretrained), or a checkpoint file
    trained_up_to, trained_except   keep the loaded weights only there (nie2018, Figure 9); init fills the rest
    preprocess    what images go through before they enter (vis.data.preprocess)
    input_size    side of the square images it takes, or [height, width]
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vis.errors import UserError
from vis.instantiate import construct, locate
from vis.models.initialise import INITIALISATIONS, initialise
from vis.models.networks import CNN3, FCN3, VGG16, MaskedCNN, MaskedVGG16, torchvision_classifier
from vis.models.weights import load_state, read_checkpoint, resolve_layer, torchvision_state, trained_modules

__all__ = [
    "CNN3",
    "FCN3",
    "VGG16",
    "MaskedCNN",
    "MaskedVGG16",
    "Model",
    "build_model",
    "imagenet_classes",
    "resolve_layer",
    "torchvision_classifier",
]

_OWN_KEYS = ("name", "init", "std", "weights", "trained_up_to", "trained_except", "preprocess", "input_size")


@dataclass
class Model:
    """A network in eval mode with what is known about it.

    weights: where they come from, in words for captions; sha256 of the file, if any.
    trained: whether a file filled any of them, i.e. whether its classes mean something.
    classes: their names, one for each logit, where known.
    input_size: (height, width); channels: 3 or 1.
    """

    name: str
    net: nn.Module
    weights: str
    sha256: str | None
    trained: bool
    input_size: tuple[int, int]
    channels: int
    preprocess: str
    classes: list[str] | None

    def class_name(self, index: int) -> str:
        """`logit 281`, with the name of the class where trained weights give it a meaning."""
        if self.trained and self.classes and index < len(self.classes):
            return f"{self.classes[index]} ({index})"
        return f"logit {index}"


def imagenet_classes() -> list[str]:
    """The 1000 class names of ImageNet-1k in the order of the logits, as torchvision names them."""
    return resources.files("vis.data").joinpath("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()


def build_model(config: Mapping[str, Any], seed: int = 0, device: torch.device | str = "cpu") -> Model:
    """The model of a config node on a device, in eval mode, in channels_last.

    Raises UserError where it has neither weights nor an initialisation, or its weights do not fit.
    """
    node = dict(config)
    own = {key: node.pop(key, None) for key in _OWN_KEYS}
    name = own["name"] or str(node.get("_target_", "model")).rpartition(".")[2]
    init, std, weights = own["init"], own["std"] if own["std"] is not None else 0.1, own["weights"]
    if init is None and weights is None:
        raise UserError(
            f"model {name} has no weights. Ways out: model.weights=FILE (a checkpoint), model.init=truncated_normal "
            "(random; model.init=default keeps what the constructor makes), or another model (vis-run --list)"
        )
    if init not in (None, "default", *INITIALISATIONS):
        raise UserError(f"unknown model.init={init}; there is default, {', '.join(INITIALISATIONS)}")
    partly = own["trained_up_to"] is not None or own["trained_except"] is not None
    if partly and weights is None:
        raise UserError("model.trained_up_to and model.trained_except need trained weights: use model.weights=")

    size = own["input_size"] or 224
    net: Any
    net, channels = _construct(node, init, seed, size)
    trained = trained_modules(net, own["trained_up_to"], own["trained_except"])
    words, sha256 = [], None
    if weights is None or partly:
        init = init or "truncated_normal"
        if init != "default":
            initialise(
                net, init, std, seed, only=(lambda module: not trained(module)) if partly else lambda module: True
            )
        detail = f", std {std}" if init in ("truncated_normal", "normal") else ""
        words.append(f"random weights ({init}{detail}, seed {seed})")
    if weights is not None:
        if weights == "torchvision":
            state, sha256, origin = torchvision_state(str(node.get("arch") or getattr(net, "arch", name)))
            if hasattr(net, "transform_input"):
                net.transform_input = True  # those files of googlenet and inception_v3 expect another normalisation
        else:
            origin = str(weights)
            state, sha256 = read_checkpoint(Path(origin).expanduser())
        load_state(net, state, origin, only=trained)
        part = ""
        if partly:
            part = f" up to {own['trained_up_to']}" if own["trained_up_to"] else f" except {own['trained_except']}"
        words.insert(0, f"weights {Path(origin).name}{part}")
    if hasattr(net, "apply_wall"):
        net.apply_wall()
    net = net.eval().to(device, memory_format=torch.channels_last)
    count = _num_classes(net)
    return Model(
        name=name,
        net=net,
        weights=", ".join(words),
        sha256=sha256,
        trained=weights is not None,
        input_size=(size, size) if isinstance(size, int) else (int(size[0]), int(size[1])),
        channels=channels,
        preprocess=own["preprocess"] or "imagenet",
        classes=imagenet_classes() if count == 1000 else None,
    )


def _construct(node: dict[str, Any], init: str | None, seed: int, size: Any) -> tuple[nn.Module, int]:
    """The network, and the number of channels of its images."""
    target = node.get("_target_")
    if target and "input_size" in inspect.signature(locate(str(target), "model._target_")).parameters:
        node = {**node, "input_size": size}
    if str(node.get("_target_", "")).startswith("vis.models.") and init != "default" and "arch" not in node:
        # Our own networks hold nothing but parameters: no need to draw weights that are overwritten at once.
        with torch.device("meta"):
            net = construct(node, "model")
        net = net.to_empty(device="cpu")
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = construct(node, "model")
    if not isinstance(net, nn.Module):
        raise UserError(f"model._target_={node.get('_target_')} made a {type(net).__name__}, not a torch.nn.Module")
    first = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    return net, int(first.in_channels) if first is not None else int(node.get("in_channels", 3))


def _num_classes(net: nn.Module) -> int | None:
    """The width of the last dense layer."""
    widths = [getattr(module, "out_features", None) for module in net.modules()]
    return next((int(width) for width in reversed(widths) if width), None)
