"""docs/methods.md is what its script writes, every method has a picture, links lead somewhere, stated costs are counted."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vis import methods
from vis.config.compose import options

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "document_methods.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_page_is_what_the_script_writes():
    written = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert written == SCRIPT["page"](), "docs/methods.md is old: run python scripts/document_methods.py"


def test_every_method_has_a_section_and_a_picture():
    names = set(options("method"))
    pictures = {file.stem: file.stat().st_size for file in (ROOT / "docs" / "images" / "methods").glob("*.png")}
    assert set(pictures) == names, "run python scripts/document_methods.py --pictures"
    assert max(pictures.values()) < 15_000
    assert sum(pictures.values()) < 500_000
    assert {name for _, _, own in SCRIPT["families"]() for name, *_ in own} == names


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
    "DeepLIFT(baseline='mean')": 4,
    "DeepLIFT('reveal_cancel', 'mean')": 11,
    "DeepLIFT(baseline=['mean', 'blur'])": 7,
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
