"""The models of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from vis.errors import Lacking, UserError
from vis.models import Model, build_model
from vis.models.published import SOURCES, first_source, weights_file
from vis.training.standin import StandIn, architecture, standin


class Models:
    """Builds the models of a run on its device and caches the last one.

    used: the description and sha256 of the weights, by model and seed, for the provenance.
    """

    def __init__(self, config: DictConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        self.used: dict[str, dict[str, Any]] = {}
        self._last: tuple[Any, Model] | None = None
        self._standins: dict[str, StandIn] = {}

    def get(self, node: Mapping[str, Any] | None = None, seed: int | None = None, **changes: Any) -> Model:
        """Return the model of a config node (by default the run's own) with some values changed."""
        if node is None:
            node = self.config.get("model")
            if node is None:
                raise UserError("this experiment needs a model: model=vgg16_random, ...")
        values = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else dict(node)
        assert isinstance(values, dict)
        values = {str(k): v for k, v in values.items()} | changes
        seed = self.config.seed if seed is None else seed
        key = (values, seed)
        if self._last is None or self._last[0] != key:
            self._last = None  # free it before the next is built
            self._last = (key, self._build(values, seed))
        return self._last[1]

    def _build(self, values: Mapping[str, Any], seed: int) -> Model:
        trained = self._standin(values) if values.get("weights") == "standin" else None
        model = build_model({**values, **({"weights": str(trained.path)} if trained else {})}, seed, self.device)
        if trained:
            model.standin = True
            model.weights = model.weights.replace(f"weights {trained.path.name}", trained.words, 1)
        model.net.to(self.dtype)
        facts = {"weights": model.weights, "sha256": model.sha256, "standin": model.standin}
        self.used[model.name + f" seed {seed}"] = facts
        return model

    def _standin(self, node: Mapping[str, Any]) -> StandIn:
        """Return the stand-in for published weights, from the cache in `outputs` or trained now."""
        key = repr((node.get("trained_on"), sorted(architecture(node).items())))
        if key not in self._standins:
            data = self.config.get("dataset")
            same = data is not None and str(data._target_).endswith(f".{node.get('trained_on')}")
            folder = str(data.get("path") or "data") if same else "data"
            cache = Path(self.config.outputs).expanduser() / "standins"
            self._standins[key] = standin(node, cache, self.device, folder)
        return self._standins[key]


def missing_weights(node: Mapping[str, Any]) -> str:
    """Say why the published weights of a model's config node are unavailable; "" if they are not, or if it needs none."""
    try:
        if node.get("weights") in SOURCES:
            weights_file(_arch(node), node["weights"])
        elif node.get("weights") == "published":
            first_source(_arch(node))
    except Lacking as error:
        return error.reason
    return ""


def choose_sources(config: DictConfig) -> None:
    """Replace `published` by the source that has the weights, so that a resumed run takes the same checkpoint.

    Raises Lacking if no source has them.
    """
    for node in [config.get("model"), *(config.experiment.get("models") or {}).values()]:
        if node is not None and node.get("weights") == "published":
            node.weights = first_source(_arch(node))


def _arch(node: Mapping[str, Any]) -> str:
    return str(node.get("arch") or node["name"])
