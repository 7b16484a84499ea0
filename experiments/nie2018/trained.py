"""Shared by nie2018's figures on trained weights: the networks, their differences from the paper's, and numbers of maps.

The paper's weights are torchvision's. A claim on another network or checkpoint, such as the stand-in that the project trains,
is a replication; a network whose weights are missing has no verdict.

Numbers of a map with energy E (its square, summed over the channels):

    patches      (sum e)^2 / (n sum e^2) of the energies e of n = 16x16 patches: the share of patches that survive
    background   share of E outside the object: outside the fixated area, the 30 % of the image with the largest density of
                 fixations, where the dataset has fixations, else outside the ellipse in the object's box; None without both
    background_other   the same outside the object of the next image, its null
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from vis import metrics
from vis.claims import Claim, Column, Compared, Rule, departures, on_digits, replicated
from vis.models import Model
from vis.models.published import instead_of_published, is_published
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Results

LABELS = {"saliency": "Saliency map", "deconvnet": "DeconvNet", "gbp": "GBP"}
RANDOM: dict[str, Any] = {"weights": None, "init": "truncated_normal", "std": 0.1}  # the paper's random networks
NO_OBJECT = "no photograph has fixations or a box around its object: boxes.NAME=[top,left,bottom,right]"
FIXATED = 0.3  # share of an image in which people are said to look at its object
GIVEN_10K = "10,000 images of ImageNet's test set"


class RandomAndTrained(Experiment):
    """An experiment on several networks, some of whose weights may be missing.

    models: {name: config node}, e.g. random and trained. optional: the networks that the run leaves out if their weights
    are missing. missing: {network: reason}; `resolve` writes it to the config, so that a resumed run leaves out the same.
    """

    def __init__(
        self, models: Mapping[str, Mapping[str, Any]], optional: Sequence[str] = (), missing: Mapping[str, str] = {}
    ) -> None:
        self.models, self.optional, self.missing = models, optional, dict(missing)

    def resolve(self, run: Run) -> None:
        for name in self.optional:
            if name in self.models and name not in self.missing and (why := run.lacks_weights(self.models[name])):
                self.missing[name] = why
                OmegaConf.update(run.config, f"experiment.missing.{name}", why, force_add=True)

    def networks(self) -> list[str]:
        """Return the names of the networks whose weights are available."""
        return [name for name in self.models if name not in self.missing]

    def seeds(self, run: Run, network: str) -> list[int]:
        """The seeds of a network."""
        return seeds_of(run, self.models[network])


def seeds_of(run: Run, node: Mapping[str, Any]) -> list[int]:
    """Return the seeds that give different networks: only the first if all weights come from a file."""
    whole = node.get("weights") and not node.get("trained_up_to") and not node.get("trained_except")
    return run.seeds[:1] if whole else run.seeds


def batches_of_the_model(run: Run) -> list[Task]:
    """Return the tasks of a figure of the run's own model: a seed and a batch of images each."""
    return [
        {"seed": seed, "images": images}
        for seed in seeds_of(run, run.config.model)
        for images in run.batches(len(run.dataset), 4)
    ]


def batches_of_both(run: Run) -> list[Task]:
    """Return the tasks of the run's own model, and of the same network with random weights, its control."""
    return [
        {"network": network, "seed": seed, "images": images}
        for network, seeds in (("trained", seeds_of(run, run.config.model)), ("random", run.seeds))
        for seed in seeds
        for images in run.batches(len(run.dataset), 4)
    ]


def network_of(run: Run, task: Task, node: Mapping[str, Any] | None = None, **changes: Any) -> Model:
    """Return a task's network: the run's model, or that of a node; with random weights if the task says so."""
    if node is None and task.get("network") == "random":
        changes = randomised(run.config.model)
    return run.model(node, task["seed"], **changes)


@contextmanager
def before_last_relu(model: Model) -> Iterator[None]:
    """Take away the ReLU with which SqueezeNet rectifies its class maps, for the time of a `with` block.

    It passes gradients only where the map of the class is positive, which makes every map of a gradient depend on the class.
    """
    if not rectified(model.node):
        yield
        return
    classifier: Any = model.net.classifier
    relu, classifier[2] = classifier[2], nn.Identity()
    try:
        yield
    finally:
        classifier[2] = relu


def rectified(node: Mapping[str, Any]) -> bool:
    """Return True if a network rectifies its class maps before it averages them to logits."""
    return str(node.get("arch") or "").startswith("squeezenet")


def predicted(model: Model, x: Tensor) -> list[int]:
    """Return the class with the largest logit of each image."""
    with torch.no_grad():
        return [int(k) for k in model.net(x).argmax(1)]


def randomised(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes to a config node that make all weights random, by its own initialisation if it names one."""
    return RANDOM | ({"init": node["init"]} if node.get("init") else {})


# -- The paper's setting -----------------------------------------------------------------------------------------------


def judged(
    claims: Sequence[Claim],
    results: Results,
    photographs: str | Sequence[str],
    networks: Sequence[str] = (),
    before_relu: bool = False,
) -> list[Claim]:
    """Add the differences from the paper's setting to claims on trained networks, or the reason for having no verdict.

    photographs: the paper's, by name or in words. networks: of `experiment.models`; by default, the run's own model.
    before_relu: the maps are those of `before_last_relu`.
    """
    nodes = [results.config.experiment.models[n] for n in networks] or [results.config.model]
    missing = results.config.experiment.get("missing") or {}
    unavailable = next((f"{n}: {missing[n]}" for n in networks if n in missing), "")
    reason = unavailable or on_digits(results.config)
    found = [d for node, name in zip(nodes, networks or ["trained"], strict=True) for d in _network(node, name)]
    found += ["maps before the network's last ReLU"] * (before_relu and any(map(rectified, nodes)))
    if photographs and results.rows():
        found += _photographs(results, photographs)
    if unavailable:
        claims = [claim if _values(claim) else replace(claim, compared=[]) for claim in claims]
    return [
        each
        for claim in claims
        for each in replicated([claim], list(dict.fromkeys(found)), reason or NO_OBJECT * _lacks_objects(claim))
    ]


def _values(claim: Claim) -> bool:
    return any(each.column.values for each in claim.compared)


def _lacks_objects(claim: Claim) -> bool:
    return any(each.column.name in ("background", "box") and not each.column.values for each in claim.compared)


def _network(node: Mapping[str, Any], name: str) -> list[str]:
    """How a network differs from the paper's VGG-16: architecture and weights, in words."""
    found = []
    if not (node.get("_target_") == "vis.models.VGG16" or node.get("arch") == "vgg16"):
        found.append(f"{node['name']} instead of VGG-16")
    else:
        found += departures(node, {"num_classes": 1000, "pool": "max", "input_size": 224})
    if name == "random":
        found += departures(node, RANDOM)
    elif node.get("weights") == "standin":
        found.append(f"weights that the project trained on {node['trained_on']} instead of ImageNet's")
    elif not node.get("weights"):
        found.append("random weights instead of trained ones")
    elif not is_published(node) and not found:
        found.append(instead_of_published(node))
    return found


def _photographs(results: Results, paper: str | Sequence[str]) -> list[str]:
    names = images_of(results)
    if not isinstance(paper, str):
        if set(names) == set(paper):
            return []
        paper = ", ".join(paper)
    elif len(names) >= 10_000 and results.config.dataset["_target_"] == "vis.data.imagenet":
        return []
    return [f"{', '.join(names) if len(names) <= 5 else f'{len(names)} photographs'} instead of {paper}"]


# -- Numbers and comparisons -------------------------------------------------------------------------------------------


def energy_of(maps: Tensor) -> Tensor:
    """Return the energy of maps [B, C, H, W]: the square, summed over the channels [B, 1, H, W]."""
    return maps.double().square().sum(1, keepdim=True)


def share(energy: Tensor, where: Tensor) -> Tensor:
    """Return the share of the energy [B, 1, H, W] in a mask, [B]."""
    return (energy * where).flatten(1).sum(1) / energy.flatten(1).sum(1)


def surviving_patches(energy: Tensor) -> Tensor:
    """Return the share of 16x16 patches that hold the energy [B, 1, H, W]: 1 if all hold the same, 1/256 if one holds all."""
    patches = adaptive_avg_pool2d(energy, 16).flatten(1)
    return patches.sum(1) ** 2 / (patches.shape[1] * patches.square().sum(1))


def background(shape: tuple[int, int], box: Sequence[float]) -> Tensor:
    """Return a mask [H, W]: 1 outside the ellipse that fills a box (top, left, bottom, right, as shares of the sides), else 0."""
    top, left, bottom, right = box
    y, x = (torch.arange(n, dtype=torch.float64).add(0.5).div(n) for n in shape)
    radius2 = ((2 * y - top - bottom) / (bottom - top))[:, None] ** 2 + ((2 * x - left - right) / (right - left)) ** 2
    return (radius2 > 1).double()


class Objects(NamedTuple):
    """Where the objects of images are: masks [H, W] by the image's name, and those of the next image of the dataset.

    what: the area that is taken for the object, in words.
    """

    what: str
    own: Mapping[str, Tensor]
    other: Mapping[str, Tensor]

    def backgrounds(
        self, energy: Tensor, names: Sequence[str], where: Tensor | None = None
    ) -> dict[str, list[float | None]]:
        """Return the columns `background` and `background_other` of named images with an energy [B, 1, H, W].

        where: a mask [B, 1, H, W] that the background is restricted to.
        """
        own, other = (in_background(energy, names, areas, where) for areas in (self.own, self.other))
        return {"background": own, "background_other": other}


def objects_of(run: Run, model: Model, indices: Sequence[int]) -> Objects:
    """Return the areas of the objects in images, as a model sees them: by fixations if there are any, else by boxes."""
    count, names = len(run.dataset), run.dataset.names
    following = {i: (i + 1) % count for i in indices if count > 1}
    wanted = sorted({*indices, *following.values()})
    areas = {
        name: metrics.largest(density[None, None], FIXATED)[0, 0].double()
        for name, density in run.reader.gaze(model, wanted).items()
    }
    what = "fixated area" if areas else "object"
    if not areas:
        size = model.input_size
        areas = {name: 1 - background(size, each.box) for name, each in run.drawn(model, wanted).items()}
    other = {names[i]: areas[names[j]] for i, j in following.items() if names[j] in areas}
    return Objects(what, {names[i]: areas[names[i]] for i in indices if names[i] in areas}, other)


def outside(rows: Sequence[Mapping[str, Any]]) -> str:
    """Name the column `background` of a table's rows."""
    what = next((row["object"] for row in rows if row.get("background") is not None), "object")
    return f"share of the energy outside the {what}"


def in_background(
    energy: Tensor, names: Sequence[str], areas: Mapping[str, Tensor], where: Tensor | None = None
) -> list[float | None]:
    """Return the share of each image's energy [B, 1, H, W] outside its area [H, W]; None for an image without one.

    where: a mask [B, 1, H, W] that the background is restricted to.
    """
    found: list[float | None] = []
    for i, name in enumerate(names):
        if name in areas:
            mask = (1 - areas[name]) * (1 if where is None else where[i])
            found.append(share(energy[i : i + 1], mask).item())
        else:
            found.append(None)
    return found


def difference(
    metric: str, a: Column, b: Column | float, rule: Rule, null: Column | float = 0.0, control: str = "equal maps: 0"
) -> Compared:
    """Compare two columns, paired by unit."""
    return Compared(metric, a - b, rule, null=null, control=control)


# -- Captions ----------------------------------------------------------------------------------------------------------


KINDS = {"squeezenet": "SqueezeNet", "vgg_cifar10": "VGG (CIFAR-10)"}


def network_label(results: Results, network: str) -> str:
    """Return a network's title in a figure, such as "trained VGG"."""
    node = results.config.experiment.models[network]
    kind = KINDS.get(node.name) or ("VGG" if "vgg" in str(node.name) else str(node.name))
    how = "stand-in" if node.get("weights") == "standin" else "trained" if node.get("weights") else "random"
    return f"{how} {kind}"


def images_of(results: Results) -> list[str]:
    """The names of the images."""
    return list(dict.fromkeys(row["image"] for row in results.rows()))


def weights_words(results: Results) -> str:
    """Return the caption's sentence on the network."""
    return f"{results.config.model.name}, {results.rows()[0]['weights']}"


def wanted(results: Results, paper: Sequence[str]) -> str:
    """Return the caption's sentence that names the paper's images if the run does not have them."""
    absent = [name for name in paper if name not in images_of(results)]
    return f"The paper's image: {', '.join(absent)}; yours with image=FILE" if absent else ""
