"""From a config node with `_target_` to an object, with errors that a user can read."""

import inspect
from collections.abc import Mapping
from typing import Any

from vis.errors import UserError, did_you_mean


def construct(node: Mapping[str, Any], where: str) -> Any:
    """Call the node's `_target_` with its other keys.

    where: the config key of the node, for messages. Raises UserError if the target cannot be imported, does not take
    these parameters, or refuses their values (ValueError, TypeError).
    """
    node = dict(node)
    target = node.pop("_target_", None)
    if not target:
        raise UserError(f"{where} has no _target_: give {where}._target_=package.module.Class")
    function = locate(str(target), f"{where}._target_")
    signature = inspect.signature(function)
    parameters = signature.parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for key in node:
        if key not in parameters and not takes_any:
            raise UserError(f"{target} takes no parameter {where}.{key}.{did_you_mean(key, parameters)}")
    needed = [
        n for n, p in parameters.items() if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    missing = [name for name in needed if name not in node]
    if missing:
        raise UserError(f"{target} needs {where}.{missing[0]}")
    try:
        return function(**node)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from error


def locate(path: str, where: str) -> Any:
    """The object that a dotted path names, e.g. a class. Raises UserError if there is none."""
    import importlib

    module_name, _, attribute = path.rpartition(".")
    if not module_name:
        raise UserError(f"{where}={path} is no dotted path such as package.module.Class")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UserError(f"{where}: there is no module {error.name} on the Python path") from error
        raise
    except AttributeError as error:
        raise UserError(f"{where}: module {module_name} has no {attribute}") from error
