"""Networks that return more than logits, and networks that take more than images."""

import gc
import weakref
from types import SimpleNamespace
from typing import NamedTuple

import networks
import pytest
import torch
from checks import close, state
from test_methods import CASES
from torch import Tensor, nn

from vis.methods import (
    FEM,
    LIME,
    LRP,
    PDA,
    DeepLIFT,
    Forward,
    GradCAM,
    IntegratedGradients,
    MeaningfulPerturbation,
    NotApplicable,
    Occlusion,
    PDAGradient,
    Saliency,
    ScoreCAM,
    SmoothGrad,
    Target,
    explain_all,
    returning,
)
from vis.models import build_model
from vis.models.wall import build_wall, gradient_by_row
from vis.store.run_folder import load_run


class Fields(NamedTuple):
    features: Tensor
    logits: Tensor


class Object:
    def __init__(self, logits):
        self.loss, self.logits = None, logits


class Returns(nn.Module):
    """A classifier whose output is wrapped in something, with a second head that no method has a rule for."""

    def __init__(self, net, wrap):
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x):
        logits = self.net(x)
        return self.wrap(torch.special.erf(logits), logits)


KINDS = {
    "tuple": (lambda other, logits: (other, logits), 1),
    "list": (lambda other, logits: [other, logits], -1),
    "dict": (lambda other, logits: {"other": other, "logits": logits}, "logits"),
    "named tuple": (Fields, "logits"),
    "object": (lambda other, logits: Object(logits), "logits"),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def both(kind: str, network: str = "residual") -> tuple[nn.Module, nn.Module]:
    """A network, and the same with its output wrapped."""
    net = networks.build(network)
    return net, Returns(net, KINDS[kind][0]).eval()


def as_it_is(pixels: Tensor) -> Tensor:
    """The preprocessing of networks that take pixels."""
    return pixels


def logits_of(output):
    return output["logits"]


# --- what a network returns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case.method))
def test_every_method_explains_a_function_of_a_networks_output(case):
    net, wrapped = both("dict")
    x = networks.images()
    assert close(case.method(wrapped, x, lambda output: output["logits"][:, 2]), case.method(net, x, 2))


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case.method))
def test_every_method_explains_a_part_of_a_networks_output(case):
    net, wrapped = both("dict")
    x = networks.images()
    assert close(case.method(returning(wrapped, "logits"), x), case.method(net, x))


@every_kind
@pytest.mark.parametrize("method", [LRP(), GradCAM(), Occlusion(window=3)])
def test_a_part_is_an_index_a_key_or_an_attribute_or_a_function(method, kind):
    net, wrapped = both(kind)
    x, (_, part) = networks.images(), KINDS[kind]
    assert close(method(returning(wrapped, part), x, [4, 0, 2], as_it_is), method(net, x, [4, 0, 2], as_it_is))
    twice = returning(returning(wrapped, part), lambda logits: -logits)
    assert close(Saliency()(twice, x, 1), -Saliency()(net, x, 1))


def test_a_function_may_be_any_combination_of_scores():
    net, wrapped = both("dict")
    x = networks.images()

    def contrast(output):
        return output["logits"][:, 3] - output["logits"][:, 1]

    difference = Saliency()(net, x, 3) - Saliency()(net, x, 1)
    assert close(Saliency()(wrapped, x, contrast), difference)
    assert close(SmoothGrad(samples=2, noise_level=0)(wrapped, x, contrast), difference)
    one, other = (Occlusion(window=3)(net, x, unit, as_it_is) for unit in (3, 1))
    assert close(Occlusion(window=3)(wrapped, x, contrast, as_it_is), one - other)
    one, other = (IntegratedGradients()(net, x, unit, as_it_is) for unit in (3, 1))
    maps = IntegratedGradients()(wrapped, x, contrast, as_it_is)
    assert close(maps, one - other)
    assert IntegratedGradients().axiom_error(wrapped, x, contrast, maps, as_it_is).max() < 0.05


def test_a_network_that_returns_maps_of_scores_is_explained_by_a_function():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1)).double()
    x = networks.images()
    pixels = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net(pixels)[:, 2].mean((1, 2)).sum(), pixels)
    assert close(Saliency()(net, x, lambda scores: scores[:, 2].mean((1, 2))), expected)


@pytest.mark.parametrize("method", [GradCAM(), ScoreCAM(), FEM()])
def test_a_function_that_picks_a_logit_sees_the_same_layer_as_the_logit(method):
    """Also where the logits are pooled class maps, as in SqueezeNet, which are told by their number."""
    head = [nn.Conv2d(4, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = networks.randomise(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), *head)).double()
    x = networks.images()
    assert close(method(net, x, lambda logits: logits[:, 2]), method(net, x, 2))


def test_functions_stand_beside_other_targets():
    net, x = networks.build("residual"), networks.images()
    targets = [1, lambda logits: logits[:, 2], [0, 1, None]]
    maps, logits = explain_all({"saliency": Saliency(), "cam": GradCAM()}, net, x, targets)
    for found, target in zip(maps, [1, 2, [0, 1, None]], strict=True):
        assert close(found["saliency"], Saliency()(net, x, target))
        assert close(found["cam"], GradCAM()(net, x, target))
    assert close(logits, net(x).detach())
    assert explain_all({}, net, x, targets[1:])[1].shape == (3, 1)


def test_the_network_is_left_as_it_was_found():
    _, wrapped = both("dict")
    wrapped.train()
    seen = []
    wrapped.register_forward_hook(lambda module, inputs, output: seen.append(type(output)))
    before, x = state(wrapped), networks.images()
    for method in (GradCAM(), LRP(), Occlusion(window=3)):
        method(wrapped, x, lambda output: output["logits"][:, 0], as_it_is)
        assert state(wrapped) == before
    assert set(seen) == {dict}  # its own hooks see what it returns


def test_a_forward_that_somebody_put_on_the_network_counts():
    net, x = networks.build("residual"), networks.images()
    expected, own = Saliency()(net, x, 1), net.forward
    net.forward = lambda x: {"logits": own(x)}
    assert close(Saliency()(returning(net, "logits"), x, 1), expected)
    assert close(
        LRP("zero")(net, x, lambda output: output["logits"][:, 1]), LRP("zero")(networks.build("residual"), x, 1)
    )


def test_no_tensor_outlives_the_call():
    _, wrapped = both("dict")
    outputs: list[weakref.ref] = []
    wrapped.net.fc.register_forward_hook(lambda module, inputs, output: outputs.append(weakref.ref(output)))
    gc.disable()
    try:
        for method in (Saliency(), LRP(), GradCAM(), Occlusion(window=3)):
            method(wrapped, networks.images(), lambda output: output["logits"][:, 1], as_it_is)
        assert outputs
        assert not [ref for ref in outputs if ref() is not None]
    finally:
        gc.enable()


@every_kind
def test_without_either_the_error_says_what_was_returned_and_both_ways_out(kind):
    _, wrapped = both(kind)
    part = {"list": 0, "tuple": 0, "named tuple": 0, "dict": "other", "object": "logits"}[kind]
    with pytest.raises(
        NotApplicable, match=rf"Returns returned an object of type \w+ with .*model.output={part} .*targets="
    ):
        Saliency()(wrapped, networks.images())


def test_mistakes_with_outputs_are_named():
    net, wrapped = both("dict")
    x = networks.images()
    with pytest.raises(
        NotApplicable, match="the output of Returns, an object of type dict with other, logits, has no 'logit'"
    ):
        Saliency()(returning(wrapped, "logit"), x)
    with pytest.raises(NotApplicable, match=r"the output of Residual, \[3, 5\], has no 0"):
        Saliency()(returning(net, 0), x)
    with pytest.raises(
        NotApplicable, match=r"must return scores \[B\]; from the output, .* with other, logits, it made \[3, 5\]"
    ):
        Saliency()(wrapped, x, logits_of)
    with pytest.raises(NotApplicable, match=r"returned \[3, 2, 12, 12\], but logits .* give a target function"):
        Saliency()(nn.ReLU(), x)
    with pytest.raises(TypeError, match="a function is one target for all images"):
        Saliency()(wrapped, x, [logits_of] * 3)
    with pytest.raises(TypeError, match="a function is one target for all images"), Forward(net, x) as forward:
        forward.scores(logits_of)


@pytest.mark.parametrize(
    "method", [PDA(window=3, patch=5), PDAGradient(window=3, patch=5), LIME(), MeaningfulPerturbation()]
)
def test_a_probability_of_a_single_score_is_an_error_and_not_a_constant_map(method):
    net, x = networks.build("residual"), networks.images()
    if isinstance(method, PDA | PDAGradient):
        method.fit(x)
    with pytest.raises(NotApplicable, match="the softmax over a single unit is 1 for every image"):
        method(net, x, lambda logits: logits[:, 2])
    with pytest.raises(NotApplicable, match="the softmax over a single unit is 1 for every image"):
        Saliency()(returning(net, lambda logits: logits[:, :1]), x, Target(0, output="prob"))


# --- what a network takes --------------------------------------------------------------------------------------------


class Optional(nn.Module):
    """The same network, which takes more than images: with a default, by keyword, and whatever else there is."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, mask=None, *more, scale=None, flip: bool = False, **others):
        if mask is not None:
            x = x * mask
        if scale is not None or flip or others or len(more) > 0:
            x = x.flip(-1)
        return self.net(x)


@pytest.mark.parametrize("method", [LRP(), DeepLIFT(), GradCAM(), ScoreCAM(), Occlusion(window=3)])
def test_a_network_is_traced_as_it_is_called_with_images_alone(method, caplog):
    net, x = networks.build("residual"), networks.images()
    with caplog.at_level("INFO"):
        assert close(method(Optional(net).eval(), x, 1, as_it_is), method(net, x, 1, as_it_is))
    assert "full pass" not in caplog.text


class Pooled(nn.Module):
    """Its own code pools, takes more than images, and returns more than logits."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(4, 5)

    def forward(self, x, mask=None):
        x = self.conv(x if mask is None else x * mask).relu()
        return {"map": x, "logits": self.fc(x.mean((2, 3)))}


def test_such_a_network_can_have_a_wall():
    net = returning(Pooled().double().eval(), "logits")
    assert build_wall(net, 4, 2, (12, 12)) == (6, 11)
    slope = gradient_by_row(net, networks.images())
    assert (slope[:6] > 0).all()
    assert not slope[6:].any()


# --- on the command line ---------------------------------------------------------------------------------------------


class Two(nn.Module):
    """A network of a user's own with two heads, the wider one last."""

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.other = nn.Conv2d(3, 4, 3), nn.Linear(4, 7), nn.Linear(4, 1000)

    def forward(self, x):
        features = self.conv(x).relu().mean((2, 3))
        return SimpleNamespace(logits=self.head(features), other=self.other(features))


TWO = (
    "model=custom",
    "model._target_=test_outputs.Two",
    "model.init=default",
    "model.input_size=32",
    "dataset.limit=1",
)


def test_a_part_of_the_output_is_named_on_the_command_line(vis_run):
    run = vis_run(*TWO, "model.output=logits", "method=[gradcam,lrp]", "target=[max,random,6]")
    results = load_run(run.folder)
    assert results.config.model.output == "logits"
    assert {row["class"] for row in results.rows()} <= {f"logit {i}" for i in range(7)}
    assert len(results.rows()) == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            (),
            "SimpleNamespace with logits, other, but logits [B, K] are needed: set model.output=logits",
        ),
        (("model.output=logit",), "has no 'logit'"),
        (("model.output=[1]",), "model.output=[1]: give an index, a key or the name of an attribute"),
        (("model.output=logits", "target=7"), "target=7: custom has the classes 0 to 6"),
    ],
)
def test_mistakes_with_it_are_one_line(vis_run, arguments, words):
    for dry in ((), ("--dry-run",)):
        if "target=7" in arguments and dry:
            continue
        run = vis_run(*TWO, "method=saliency", *arguments, *dry)
        assert run.code == 2
        assert words in run.err


def test_the_classes_of_a_part_are_counted_there():
    node = {"_target_": "test_outputs.Two", "name": "two", "init": "default", "input_size": 32}
    assert build_model({**node, "output": "logits"}).num_classes == 7
    assert build_model({**node, "output": "other"}).classes is not None
