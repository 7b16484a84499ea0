"""Build the object that a config node with `_target_` describes; mistakes raise a UserError."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from vis.errors import UserError, did_you_mean, named, said


def construct(node: Mapping[str, Any], where: str) -> Any:
    """Call the node's `_target_` with the node's other keys as arguments, and return the result.

    where: the config key of the node, for messages. Raises UserError if the target cannot be imported, does not take
    these parameters, or rejects their values (ValueError, TypeError). Other exceptions get a note that names the node.
    """
    node = dict(node)
    target = node.pop("_target_", None)
    if not target:
        raise UserError(f"{where} has no _target_: give {where}._target_=package.module.Class")
    function = locate(str(target), f"{where}._target_")
    if not callable(function):
        raise UserError(f"{where}._target_={target} is of type {type(function).__name__}, which cannot be called")
    parameters = parameters_of(function)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in node.items():
        if isinstance(value, Mapping) and "_target_" in value:  # a method that wraps another
            value = node[key] = construct(value, f"{where}.{key}")
        if key not in parameters and not takes_any:
            hint = did_you_mean(key, parameters) or f" Leave it out: ~{where}.{key}"
            raise UserError(f"{target} takes no parameter {where}.{key}.{hint}")
        wanted = parameters[key].annotation if key in parameters else None
        if wanted is str and isinstance(value, int | float):
            value = node[key] = str(value)  # e.g. a folder named 2024
        if wanted in (int, float, bool, str) and not isinstance(value, int | float if wanted is float else wanted):
            raise UserError(f"{where}.{key}={value} is not of type {wanted.__name__}")
    for key, p in parameters.items():
        if key not in node and p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            raise UserError(f"{target} needs {where}.{key}")
    try:
        with named(where):
            return function(**node)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from error


def parameters_of(function: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a callable by name; `**arguments` if it has no signature."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # not callable, or a builtin without a signature
        return {"arguments": inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD)}


def locate(path: str, where: str) -> Any:
    """Import the object that a dotted path names, e.g. a class. Raises UserError if there is none.

    The current directory is searched last.
    """
    module_name, _, attribute = path.rpartition(".")
    if not all(part.isidentifier() for part in path.split(".")) or not module_name:
        raise UserError(f"{where}={path} is not a dotted path such as package.module.Class")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UserError(f"{where}={path}: there is no module {error.name} on the Python path") from error
        raise _failed_import(error, where, path) from error
    except (Exception, SystemExit) as error:
        raise _failed_import(error, where, path) from error
    if not hasattr(module, attribute):
        raise UserError(
            f"{where}={path}: module {module_name} has no {attribute}.{did_you_mean(attribute, vars(module))}"
        )
    return getattr(module, attribute)


def _failed_import(error: BaseException, where: str, path: str) -> UserError:
    """The UserError for a module that fails on import, with the file and line that raised."""
    own = [
        f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename and f.filename != __file__
    ]
    line = (
        f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    )  # the message of a SyntaxError has them already
    return UserError(f"{where}={path} cannot be imported: {said(error)}{line}")
