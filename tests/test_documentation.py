"""Written pages and pictures are those of the code, links lead somewhere, the costs that docstrings state are counted."""

import inspect
import pkgutil
import re
import runpy
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vis import methods
from vis.config.options import options

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "document_methods.py"))
PACKAGES = runpy.run_path(str(ROOT / "scripts" / "draw_packages.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_page_is_what_the_script_writes():
    written = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert written == SCRIPT["page"](), "docs/methods.md is out of date: make docs"


def test_the_package_exports_every_method():
    assert SCRIPT["INIT"].read_text(encoding="utf-8") == SCRIPT["exports"](), "vis.methods is out of date: make docs"


def test_the_readme_lists_every_method():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == SCRIPT["readme"](), "README.md is out of date: make docs"


def test_the_picture_of_the_packages_is_of_the_code():
    picture = PACKAGES["PICTURE"].read_text(encoding="utf-8")
    drawn = set(re.findall(r'id="(\w+)-imports-(\w+)"', picture))
    assert drawn == PACKAGES["arrows"](PACKAGES["imports"]()), "docs/images/packages.svg is out of date: make docs"
    names = {path.stem for path in (ROOT / "vis").iterdir() if re.fullmatch(r"[a-z]\w*(\.py)?", path.name)}
    assert names <= set(re.findall(r">(\w+)</text>", picture))


def test_arrows_leave_out_what_a_chain_implies():
    edges = {("a", "b"), ("b", "c"), ("c", "d"), ("a", "d"), ("a", "c"), ("e", "d")}
    assert PACKAGES["arrows"](edges) == {("a", "b"), ("b", "c"), ("c", "d"), ("e", "d")}


def test_every_method_has_a_section_and_a_picture():
    names = set(options("method"))
    pictures = {file.stem: file.stat().st_size for file in (ROOT / "docs" / "images" / "methods").glob("*.png")}
    assert set(pictures) == names, "make docs"
    assert max(pictures.values()) < 15_000
    assert sum(pictures.values()) < 500_000
    assert {name for _, _, own in SCRIPT["families"]() for name, *_ in own} == names


def test_pictures_are_drawn_again_where_config_or_code_changed(tmp_path, monkeypatch):
    few = {name: options("method")[name] for name in ("gradcam", "xgradcam", "rise", "lrp")}
    fingerprint = SCRIPT["fingerprint"]
    monkeypatch.setitem(SCRIPT["outdated"].__globals__, "options", lambda group: few)
    for name in set(few) - {"rise"}:
        facts = SCRIPT["PngImagePlugin"].PngInfo()
        facts.add_text("method", fingerprint(name))
        Image.new("L", (1, 1)).save(tmp_path / f"{name}.png", pnginfo=facts)
    assert SCRIPT["outdated"](tmp_path) == ["rise"], "its picture is missing"

    code = SCRIPT["inspect"].getsource

    def changed(old, new):
        monkeypatch.setattr(SCRIPT["inspect"], "getsource", lambda module: code(module).replace(old, new))
        return set(SCRIPT["outdated"](tmp_path)) - {"rise"}

    docstring = methods.XGradCAM.__doc__.partition("\n")[0]
    assert docstring in code(inspect.getmodule(methods.XGradCAM))
    assert not changed(docstring, "Other words.")
    assert changed("class XGradCAM(", "x = 1\nclass XGradCAM(") == {"gradcam", "xgradcam"}, "a module's own values"
    assert changed('title = "XGradCAM"', 'title = "X"') == {"xgradcam"}


def test_a_commit_is_checked_as_make_lint_checks():
    hooks = OmegaConf.load(ROOT / ".pre-commit-config.yaml").repos[0].hooks
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    assert [hook.entry for hook in hooks] == recipe.replace("\t$(BIN)", ".venv/bin").splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if fragment:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.M)
            assert fragment in map(SCRIPT["anchor"], headings), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:vis|conf|experiments|tests|scripts)/[\w/]*(?:\.\w+)?)[ `]", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(vis\.[\w.]+)", text):
        if name != "vis.run":
            pkgutil.resolve_name(name)


def test_the_lines_of_an_addition_are_counted():
    text = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[.*?\]\(#(.*?)\).*\| (\d+) \| (\d+) \|$", text, flags=re.M)
    assert len(rows) == 5
    for anchor, *stated in rows:
        section = next(part for part in text.split("\n## ") if SCRIPT["anchor"](part.partition("\n")[0]) == anchor)
        first = {
            kind: next(iter(re.findall(rf"```{kind}\n(.*?)```", section, flags=re.S)), "")
            for kind in ("python", "yaml")
        }
        assert [sum(map(bool, map(str.strip, block.splitlines()))) for block in first.values()] == [
            *map(int, stated)
        ], anchor


def test_docstrings_say_what_is_needed():
    for _, _, own in SCRIPT["families"]():
        for name, _, class_ in own:
            doc = class_.__doc__
            assert re.search(r"\n\n {8}\S.*\n\n", doc, flags=re.S), f"{name}: no equation"
            assert re.search(r"\b\w*20\d\d\b", doc), f"{name}: no source"
            assert re.search(r"^    Costs\b", doc, flags=re.M), f"{name}: no cost"


PASSES = {  # as the docstrings say, the shared forward pass among them
    "Saliency()": 2,
    "DeconvNet()": 2,
    "GuidedBackprop()": 2,
    "IntegratedGradients(steps=7, baseline='zero')": 1 + 2 * 7,
    "IntegratedGradients(steps=7, baseline=['zero', 'mean'])": 1 + 2 * 2 * 7,
    "InputXGradient()": 2,
    "ExpectedGradients(samples=3, baseline=['zero', 'mean'])": 1 + 2 * 2 * 3,
    "GuidedIG(steps=7, baseline='zero')": 1 + 2 * 7,
    "SmoothGrad(samples=7)": 1 + 2 * 7,
    "GradCAM()": 1,
    "EigenCAM()": 1,
    "EigenGradCAM()": 1,
    "CAM()": 1,
    "FEM()": 1,
    "GuidedGradCAM()": 2,
    "GradCAMGradient()": 2,
    "LRP('zero')": 3,
    "LRP('epsilon')": 3,
    "LRP('gamma')": 6,
    "LRP('zplus')": 4,
    "LRP('alpha_beta')": 6,
    "LRP('alpha_beta', alpha=1)": 4,
    "LRP()": 4,
    "DeepTaylor(low=0.0, high=1.0)": 4,
    "DeepLIFT(baseline='mean')": 3,
    "DeepLIFT('reveal_cancel', 'mean')": 11,
    "DeepLIFT(baseline=['mean', 'blur'])": 5,
    "LIME(samples=20, superpixels=4)": 21,
    "KernelSHAP(samples=20, superpixels=4)": 1 + 2**4,
    "RISE(samples=20)": 21,
    "FullGrad()": 3,
}


@pytest.mark.parametrize("method", PASSES)
def test_the_stated_costs_are_counted(method):
    torch.manual_seed(0)
    net: nn.Module = SCRIPT["pooled"]().eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    image = torch.rand(1, 1, 28, 28)
    with torch.no_grad(), FlopCounterMode(display=False) as one_pass:
        net(image)
    with FlopCounterMode(display=False) as counter:
        eval(method, vars(methods))(net, image)
    # The rest: eigenvectors, the dense layer again, and the first layer's signed inputs, which have more products.
    assert counter.get_total_flops() / one_pass.get_total_flops() == pytest.approx(PASSES[method], rel=0.05)


@pytest.mark.parametrize("method", PASSES)
def test_a_plan_knows_the_costs_within_a_factor_of_two(method):
    own, image = eval(method, vars(methods)), torch.rand(1, 1, 28, 28)
    planned = 1 + own.passes(SCRIPT["pooled"]().eval(), image)
    assert planned / 2 <= PASSES[method] <= 2 * planned
