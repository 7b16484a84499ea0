"""The models of a run."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from vis.config.check import no_file
from vis.errors import Lacking, UserError
from vis.models import Model, build_model
from vis.models.published import SOURCES, arch_of, first_source, weights_file
from vis.models.weights import sha256_of
from vis.training.standin import StandIn, architecture, standin

log = logging.getLogger(__name__)


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
        values = {str(k): v for k, v in values.items()} | ({"sha256": None} if "weights" in changes else {}) | changes
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
            of_file = f"weights {trained.path.name} (sha256 {str(model.sha256)[:8]})"
            model.weights = model.weights.replace(of_file, trained.words, 1)
        elif values.get("weights") and (words := _trained_here(Path(str(values["weights"])))):
            model.weights = model.weights.replace(f"weights {Path(str(values['weights'])).name}", f"weights {words}", 1)
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


def _trained_here(weights: Path) -> str:
    """Say on what experiments.train trained a network, as NAME.json beside its file says; "" if that is another file or none."""
    try:
        kept = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
        return f"trained by the project on {kept['trained_on']} (top-1 {100 * kept['val_top1']:.1f} %)"
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def missing_weights(node: Mapping[str, Any]) -> str:
    """Say why the weights of a model's config node are unavailable; "" if they are not, or if it needs none."""
    try:
        if node.get("weights") in SOURCES:
            weights_file(arch_of(node), node["weights"])
        elif node.get("weights") == "published":
            first_source(arch_of(node))
        elif node.get("weights") not in (None, "standin"):
            return no_file(str(node["weights"]))
    except Lacking as error:
        return error.reason
    return ""


def choose_sources(config: DictConfig) -> None:
    """Write into the config which checkpoint each model loads: the source in place of `published`, and the file's sha256.

    A resumed run finds both there and takes the same checkpoint. Raises Lacking if weights are unavailable, unless the
    experiment can do without the model (`optional`) and no replication is left that has another in its place.
    """
    experiment = config.experiment
    optional = () if config.preset == "paper" and experiment.get("replication") else experiment.get("optional") or ()
    groups = [group for key in ("models", "networks") if OmegaConf.is_dict(group := experiment.get(key))]
    nodes = [("model", config.get("model")), *(item for group in groups for item in group.items())]
    for name, node in nodes:
        if node is None or not node.get("weights") or node.get("sha256") or name in (experiment.get("missing") or {}):
            continue
        try:
            if node.weights == "published":
                node.weights = first_source(arch_of(node))
            file = weights_file(arch_of(node), node.weights) if node.weights in SOURCES else Path(str(node.weights))
        except Lacking:
            if name not in optional:
                raise
            continue
        if node.weights != "standin" and (file := file.expanduser().absolute()).is_file():
            OmegaConf.update(node, "sha256", sha256_of(file), force_add=True)
            log.info("%s: weights %s with the sha256 %s", name, file.name, node.sha256)
