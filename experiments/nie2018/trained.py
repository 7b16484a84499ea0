"""Shared by nie2018's figures on trained weights: networks with optional weights, and their captions.

The paper's weights are torchvision's, or those of a checkpoint that the user gives. Without them, and on a stand-in that the
project trained itself, the paper's claims have no verdict; the project's own claims describe the stand-in.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from vis.oldclaims import departures, other_network
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Results

NETWORK = {
    "vgg16": {"_target_": "vis.models.VGG16", "num_classes": 1000, "pool": "max", "input_size": 224},
    "resnet50": {"_target_": "vis.models.torchvision_classifier", "num_classes": 1000, "input_size": 224},
}
LABELS = {"saliency": "Saliency map", "deconvnet": "DeconvNet", "gbp": "GBP"}


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


def not_the_papers(results: Results, network: str | None = None, random: bool = False) -> str:
    """Say how a network (None: the run's model) differs from the paper's trained (or random) one; "" if it does not."""
    node = results.config.experiment.models[network] if network else results.config.model
    missing = results.config.experiment.get("missing") or {}
    if network in missing:
        return str(missing[network])
    if random:
        return departures(node, {"weights": None, "init": "truncated_normal", "std": 0.1} | NETWORK[_kind(node)])
    return other_network(node, NETWORK[_kind(node)])


def _kind(node: Mapping[str, Any]) -> str:
    return "resnet50" if node.get("arch") == "resnet50" else "vgg16"


def network_label(results: Results, network: str) -> str:
    """Return a network's title in a figure: random VGG, trained VGG or stand-in."""
    return "stand-in" if results.config.experiment.models[network].weights == "standin" else f"{network} VGG"


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
