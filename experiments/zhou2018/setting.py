"""What differs from the network of the paper, in words."""

from collections.abc import Mapping
from typing import Any

from vis.claims import departures
from vis.models.published import is_published
from vis.store.run_folder import Results

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "VGG-16": {"_target_": "vis.models.VGG16", "num_classes": 1000, "pool": "max", "input_size": 224},
    "AlexNet": {"arch": "alexnet", "num_classes": 1000, "input_size": 224},
}


def another_network(results: Results, paper: str, weights: str) -> list[str]:
    """Return how a run's network, with weights in words, differs from a network of the paper: one sentence, or none."""
    model = results.config.model
    if is_published(model) and not departures(model, NETWORKS[paper]):
        return []
    return [f"{model.name}, {weights}, instead of {paper} with the paper's weights"]
