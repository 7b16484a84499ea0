"""taimeskhanov2024, section 3.1: what a reproduction needs, the masked VGG with the authors' weights."""

from collections.abc import Mapping
from typing import Any

from vis.claims import departures
from vis.models import Model
from vis.models.published import SOURCES

NETWORK = {"_target_": "vis.models.MaskedVGG16", "num_classes": 1000, "input_size": 224}
ROWS, MAP = 5, 14  # rows of the last feature map that the paper's network reads, and all
DEAD = (170, 223)  # rows of its images that it cannot see
TOP1 = 0.665  # of the authors' weights on ImageNet's validation set


def facts(model: Model) -> dict[str, Any]:
    """Return what a run records about its network, for `other_network`."""
    words = {"network": model.name, "weights": model.weights, "trained": model.trained, "standin": model.standin}
    return words | {"rows": list(model.dead_rows or ()), "height": model.input_size[0]}


def other_architecture(node: Mapping[str, Any], rows: list[int]) -> list[str]:
    """Return how a model's config node differs from the masked VGG, in words. rows: its dead rows."""
    if node["_target_"] != NETWORK["_target_"]:
        return [f"{node['name']} instead of the masked VGG-16"]
    wall = [] if rows == list(DEAD) else [f"dead rows {rows} instead of {list(DEAD)}"]
    return departures(node, NETWORK) + wall


def other_network(node: Mapping[str, Any], network: Mapping[str, Any], top1: float | None = None) -> list[str]:
    """Return how a run's network differs from the paper's, in words.

    network: its `facts`. top1: its measured accuracy on ImageNet's validation set, by which the authors' weights are known.
    """
    other = other_architecture(node, network["rows"])
    if other:
        published = node.get("weights") in ("published", *SOURCES)
        return [*other, network["weights"], *["not trained with its wall"] * (published and bool(network["rows"]))]
    if not network["trained"]:
        return [f"{network['weights']} instead of trained ones"]
    if top1 is None:
        return [
            f"{network['weights']}, not known to be the authors': experiment.imagenet=FOLDER measures their accuracy"
        ]
    return [] if abs(top1 - TOP1) < 0.005 else [f"top-1 accuracy {top1:.1%} instead of {TOP1:.1%}"]
