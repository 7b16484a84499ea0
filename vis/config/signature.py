"""Complete the configs of methods with their constructors' defaults, read from source: importing a method loads torch."""

import ast
import os
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from itertools import accumulate
from typing import Any

from hydra._internal.core_plugins import file_config_source
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's reader of config files; to a method's config it adds the parameters that the file leaves out.

    It has the name of Hydra's own, which Hydra would otherwise register beside it in a launcher's process, an error.
    """

    def load_config(self, config_path: str) -> ConfigResult:
        result = super().load_config(config_path)
        if config_path.startswith("method/") and isinstance(result.config, DictConfig):
            result.config = completed(result.config)
        return result


def completed(node: DictConfig) -> DictConfig:
    """Return a method's config with the defaults of its constructor for the parameters that it does not name."""
    values: Any = OmegaConf.to_container(node)
    target = values.get("_target_")
    known = constructor_defaults(target) if isinstance(target, str) else {}
    if not known:
        return node
    whole = OmegaConf.create({"_target_": target, **known})
    whole.merge_with(node)
    return whole


def constructor_defaults(target: str) -> dict[str, Any]:
    """Return the literal defaults of a class's constructor by parameter; an empty dict if there is no source to read.

    target: the class's dotted path. Tuples become lists, integers that are annotated as float become floats.
    """
    module, _, name = target.rpartition(".")
    for node in _statements(module):
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return constructor_defaults(f"{node.module}.{alias.name}")
        if isinstance(node, ast.ClassDef) and node.name == name:
            for statement in node.body:
                if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                    return _literals(statement.args)
            return constructor_defaults(f"{module}.{ast.unparse(node.bases[0])}") if node.bases else {}
    return {}


def _statements(module: str) -> list[ast.stmt]:
    """Parse a module without importing it or its packages."""
    path: Sequence[str] = [*sys.path, os.getcwd()]
    spec = None
    for package in accumulate(module.split("."), "{}.{}".format):
        spec = getattr(sys.modules.get(package), "__spec__", None) or PathFinder.find_spec(package, path)
        path = (spec and spec.submodule_search_locations) or []
    try:
        with open((spec and spec.origin) or "", encoding="utf-8") as file:
            return ast.parse(file.read()).body
    except (OSError, SyntaxError, ValueError):  # none, or no Python: `locate` says why
        return []


def _literals(arguments: ast.arguments) -> dict[str, Any]:
    positional = [*arguments.posonlyargs, *arguments.args]
    named = [*positional[len(positional) - len(arguments.defaults) :], *arguments.kwonlyargs]
    found = {}
    for argument, default in zip(named, [*arguments.defaults, *arguments.kw_defaults], strict=True):
        try:
            value = ast.literal_eval(default)  # type: ignore[arg-type]  # None, without a default, is a ValueError
        except (ValueError, TypeError):  # an expression: the constructor evaluates it
            continue
        if isinstance(value, bool | int | float | str | list | tuple | dict | None):  # what YAML can hold
            if type(value) is int and argument.annotation and ast.unparse(argument.annotation) == "float":
                value = float(value)
            found[argument.arg] = list(value) if isinstance(value, tuple) else value
    return found
