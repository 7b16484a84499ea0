"""Generate docs/methods.md, its pictures, the README's row of methods and the exports of vis.methods.

python scripts/document_methods.py              in the repository; redraws the pictures of changed methods
python scripts/document_methods.py rise fem     redraws these two

A picture stores a fingerprint of its method's config and code, without docstrings and comments. The fingerprint does not cover
code from other modules: after changing that, name the methods to redraw.
"""

import argparse
import ast
import hashlib
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image, PngImagePlugin
from torch import nn

import vis.methods
from vis.config.compose import compose_config
from vis.config.instantiate import locate
from vis.config.options import describe, load_node, options
from vis.config.signature import completed
from vis.figures.display import scaling
from vis.methods import Method, explain_all
from vis.runner.experiment import Run, method_class

ROOT = Path(__file__).resolve().parent.parent
INIT = ROOT / "vis" / "methods" / "__init__.py"
PAGE = ROOT / "docs" / "methods.md"
README = ROOT / "README.md"
PICTURES = ROOT / "docs" / "images" / "methods"

FAMILIES = {  # modules of vis.methods, in the order of the page
    "Gradients": ("backprop", "gradients", "guided_ig", "fullgrad"),
    "Feature maps": ("cam", "fem"),
    "Relevance": ("relevance", "deeplift"),
    "Perturbations": ("perturbation", "superpixels", "rise", "meaningful_perturbation"),
    "Generators": ("generators",),
}
_IMAGE, _SIDE, _GAP = 8, 140, 10  # index of the digit; sizes in pixels
_PATCH = ("window=4", "patch=8")
_WINDOWS = {"occlusion": ("window=4",), "pda": _PATCH, "pda_fast": _PATCH, "pda_gradient": _PATCH}

INTRODUCTION = """\
# Methods

For each method: what it computes, its source, parameters and cost. `vis-run method=lrp` selects a method and
`methods.lrp.rule=gamma` sets one of its parameters; `_target_` is its class in Python. Maps are raw; Display names the scaling
that figures use by default.

Costs are passes through the network for one image and target, measured by torch's FLOP counter: a backward pass to the image
costs about one forward pass. All methods and targets share one forward pass (`vis.methods.explain_all`).
`vis-run experiment=ayyar2021/cost` measures passes and seconds on any model.

The pictures show one of scikit-learn's digits and the map of its largest logit, in zhou2018's small MNIST network, which the
project trained on these digits; `cam` needs global average pooling, so its network has three convolutions that end in it.
Windows are 4 pixels wide (patches 8) on these 28 x 28; all else is as in the configs below. Maps of other networks look
different.

*`make docs` writes this page from docstrings, constructors and configs.*
"""


def families() -> Iterator[tuple[str, list[Any], list[tuple[str, Path, Any]]]]:
    """Yield (title, modules, methods) of each family; methods are (config name, file, class), in the order of their code."""
    found = {name: (file, locate(str(config(name)._target_), name)) for name, file in options("method").items()}
    for title, names in FAMILIES.items():
        modules = [importlib.import_module(f"vis.methods.{name}") for name in names]
        own = [
            (name, *found.pop(name))
            for module in modules
            for class_ in vars(module).values()
            for name in list(found)
            if found[name][1] is class_ and class_.__module__ == module.__name__
        ]
        yield title, modules, own
    if found:
        raise SystemExit(f"FAMILIES does not contain the modules of {', '.join(found)}")


def exports() -> str:
    """Return the text of vis/methods/__init__.py with every class that conf/method names; ruff puts new lines in their place."""
    text = INIT.read_text(encoding="utf-8")
    sources = {file.stem: file.read_text(encoding="utf-8") for file in INIT.parent.glob("*.py")}
    for file in options("method").values():
        package, _, name = load_node(file)["_target_"].rpartition(".")
        if package != "vis.methods" or f'"{name}"' in text:
            continue
        module = next((module for module, source in sources.items() if f"\nclass {name}(" in source), None)
        if module is None:
            raise SystemExit(f"{file}: no module of vis.methods has a class {name}")
        text = text.replace("__all__", f"from vis.methods.{module} import {name}\n\n__all__", 1)
        text = text.replace("__all__ = [", f'__all__ = [\n    "{name}",', 1)
    return text


def markdown(doc: str) -> str:
    """Convert a docstring to Markdown: indented lines are equations; parameters, axiom, errors and costs are paragraphs."""
    parts = []
    for block in re.split(r"\n\n|\n(?=Costs\b|Raises |\w+(?:, \w+)*: )", inspect.cleandoc(doc)):
        if block.startswith("    "):
            parts.append("```text\n" + inspect.cleandoc(block) + "\n```")
        else:  # keep code, escape markup in the rest
            pieces = re.split(r"(`[^`]*`)", block)
            parts.append("".join(p if p.startswith("`") else re.sub(r"([*_<|\[\]])", r"\\\1", p) for p in pieces))
    return "\n\n".join(parts)


def heading(name: str, class_: Any) -> str:
    return f"{name}: {class_.title}"


def anchor(text: str) -> str:
    """Return GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def config(name: str) -> DictConfig:
    """Return the config of a method, with its constructor's defaults."""
    return completed(OmegaConf.create(load_node(options("method")[name])))


def inherited(class_: Any, methods: set[Any]) -> Iterator[str]:
    """Yield the paragraphs on parameters from the docstrings of a method's parents that are not methods themselves."""
    for parent in class_.__mro__[1:]:
        if parent.__module__.startswith("vis.methods.") and parent not in methods:
            paragraphs = inspect.cleandoc(vars(parent).get("__doc__") or "").split("\n\n")
            yield from (markdown(each) for each in paragraphs if re.match(r"\w+(, \w+)*: ", each))


def page() -> str:
    """Return the text of docs/methods.md."""
    index, body = [], []
    first: dict[Any, str] = {}  # link to the section of each class
    found = list(families())
    classes = {class_ for *_, own in found for *_, class_ in own}
    for title, modules, methods in found:
        index.append(f"**{title}**\n")
        body.append(f"## {title}")
        body += [markdown(module.__doc__) for module in modules if "\n\n" in module.__doc__]
        for name, file, class_ in methods:
            link = f"[`{name}`](#{anchor(heading(name, class_))})"
            known = first.setdefault(class_, link)
            text = (
                markdown(class_.__doc__)
                if known == link
                else f"{describe(file)}. The class of {known}, where it is described."
            )
            index.append(f"- {link}: {describe(file)}")
            body += [
                f"### {heading(name, class_)}",
                f"![The digit and the map of {name}](images/methods/{name}.png)",
                text,
                *(inherited(class_, classes) if known == link else ()),
                f"```yaml\n{OmegaConf.to_yaml(config(name)).rstrip()}\n```",
                f"Display: `{class_.display}`, {scaling(class_.display)[1]}.",
            ]
        index.append("")
    return "\n".join([INTRODUCTION, *index]) + "\n" + "\n\n".join(body) + "\n"


def readme() -> str:
    """Return the README with an updated row of methods, one group per family."""
    row = "; ".join(" ".join(f"`{name}`" for name, *_ in own) for _, _, own in families())
    return re.sub(r"^\| methods \|.*$", f"| methods | {row} |", README.read_text(encoding="utf-8"), flags=re.M)


def code(class_: type[Method]) -> Iterator[str]:
    """Yield the code of a method: its class, its parents and the rest of their modules, except for other methods.

    Imports, docstrings and comments are removed, so that rewording them changes nothing.
    """
    for name in sorted({parent.__module__ for parent in class_.__mro__} - {Method.__module__}):
        if not name.startswith("vis.methods."):
            continue
        module = importlib.import_module(name)
        for statement in ast.parse(inspect.getsource(module)).body:
            if isinstance(statement, ast.ClassDef):
                other = getattr(module, statement.name)
                if issubclass(other, Method) and not issubclass(class_, other):
                    continue
            elif isinstance(statement, ast.Import | ast.ImportFrom):
                continue
            for node in ast.walk(statement):
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
            if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                yield ast.unparse(statement)


def fingerprint(name: str) -> str:
    """Return a hash of a method's config and code."""
    node = config(name)
    values = OmegaConf.to_yaml(node, sort_keys=True)
    return hashlib.sha256("\n".join([values, *code(locate(node._target_, name))]).encode()).hexdigest()


def outdated(folder: Path) -> list[str]:
    """List the methods whose picture in a folder is missing or was drawn with another config or code."""
    drawn = {}
    for file in folder.glob("*.png"):
        with Image.open(file) as picture:
            drawn[file.stem] = picture.info.get("method")
    return [name for name in options("method") if drawn.get(name) != fingerprint(name)]


def pooled(num_classes: int = 10) -> nn.Module:
    """Build three convolutions, global average pooling and one dense layer, for digits [B, 1, 28, 28]."""
    layers: list[nn.Module] = []
    for before, after in ((1, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


def draw(methods: list[str], *model: str) -> None:
    """Draw a picture of each method: the digit, and its map for a network trained on digits."""
    small = [f"methods.{m}.{key}" for m, keys in _WINDOWS.items() if m in methods for key in keys]
    words = [f"method=[{','.join(methods)}]", "dataset=digits", f"dataset.limit={_IMAGE + 1}", *small, *model]
    run = Run(compose_config(words))
    network = run.model()
    print(network.weights)
    batch = run.batch(network, [_IMAGE])
    for name in run.methods:
        run.explainer.prepare(name, network, batch.x, [])
    (maps,), _ = explain_all(run.methods, network.net, batch.x, [None], run.preprocess(network))
    PICTURES.mkdir(parents=True, exist_ok=True)
    pixels = batch.pixels[0].numpy()
    for name, values in maps.items():
        show, _ = scaling(method_class(run.config, name).display)
        canvas = Image.new("RGB", (2 * _SIDE + _GAP, _SIDE), "white")
        panels = np.broadcast_to(np.moveaxis(pixels, 0, -1), (*pixels.shape[1:], 3)), show(values[0].numpy(), pixels)
        for column, panel in enumerate(panels):
            shown = Image.fromarray((255 * panel).round().astype(np.uint8)).resize(
                (_SIDE, _SIDE), Image.Resampling.NEAREST
            )
            canvas.paste(shown, (column * (_SIDE + _GAP), 0))
        facts = PngImagePlugin.PngInfo()
        facts.add_text("method", fingerprint(name))
        canvas.quantize(128).save(PICTURES / f"{name}.png", optimize=True, pnginfo=facts)


def export() -> None:
    """Write the missing exports, and reload vis.methods."""
    if (text := exports()) != INIT.read_text(encoding="utf-8"):
        INIT.write_text(text, encoding="utf-8")
        for command in (["check", "--fix"], ["format"]):
            subprocess.run([sys.executable, "-m", "ruff", *command, "--quiet", INIT], check=True)
        importlib.reload(vis.methods)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="redraw these; by default those that changed")
    given = parser.parse_args().methods
    export()
    methods = given or outdated(PICTURES)
    if unknown := set(methods) - set(options("method")):
        parser.error(f"there is no method {', '.join(sorted(unknown))}: vis-run --list names them")
    torch.manual_seed(0)
    if others := [name for name in methods if name != "cam"]:
        draw(others, "model=cnn_mnist", "model.trained_on=digits")
    if "cam" in methods:
        own = ["model=custom", "model._target_=document_methods.pooled", "model.weights=standin"]
        draw(["cam"], *own, "+model.trained_on=digits", "model.preprocess=unit_range", "model.input_size=28")
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")


if __name__ == "__main__":
    main()
