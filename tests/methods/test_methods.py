"""The contract of every method, against references written from the papers."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import cams
import networks
import pytest
import relevances
import torch
from checks import Accident, close, fail, last_layer, state
from references import covered, expected_gradients, fem, guided_ig, integrated, replaced, smoothed, times_the_image
from torch import Tensor, nn

import vis.methods
from vis.methods import (
    CAM,
    DECONVNET,
    FEM,
    GUIDED,
    LIME,
    LRP,
    PDA,
    RISE,
    SALIENCY,
    AblationCAM,
    ActivationMap,
    AdversarialGenerators,
    DeconvNet,
    DeepLIFT,
    DeepTaylor,
    EigenCAM,
    EigenGradCAM,
    ExpectedGradients,
    FullGrad,
    GradCAM,
    GradCAMGradient,
    GradCAMPlusPlus,
    GuidedBackprop,
    GuidedGradCAM,
    GuidedIG,
    HiResCAM,
    InputXGradient,
    IntegratedGradients,
    KernelSHAP,
    LayerCAM,
    MeaningfulPerturbation,
    Method,
    NotApplicable,
    Occlusion,
    OptiCAM,
    PDAFast,
    PDAGradient,
    RectGrad,
    Saliency,
    ScoreCAM,
    SmoothGrad,
    XGradCAM,
)

# --- what a method promises besides its reference --------------------------------------------------------------------


def sums_to_the_logit(method: Method) -> None:
    """Without biases the network is homogeneous: sum_i x_i dS/dx_i = S (Euler)."""
    net, x = networks.build("overlapping_pools"), networks.images()
    assert close((x * method(net, x, 2)).sum((1, 2, 3)), net(x)[:, 2].detach())


def does_not_see_the_image(method: Method) -> None:
    """Without max-pools no switch depends on the image: DeconvNet's map is the same for all."""
    maps = method(networks.build("batch_norm"), networks.images(), 2)
    assert close(maps[1:], maps[:1].expand_as(maps[1:]))


def is_the_gradient_where_weights_are_positive(method: Method) -> None:
    """No gradient is negative there, so that there is nothing to rectify."""
    net, x = networks.build("overlapping_pools"), networks.images().abs()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_()
    assert close(method(net, x, 2), Saliency()(net, x, 2))


def is_an_overlay(method: Method) -> None:
    """One map, not negative, for all channels of the image."""
    x = networks.images()
    maps = method(networks.build("vgg_like"), x, 2)
    assert maps.shape == x[:, :1].shape
    assert maps.min() >= 0
    assert maps.max() > 0


def keeps_its_axiom(method: Method) -> None:
    """Without biases: relevance sums to the logit, and to its difference from the logit of an image of zeros."""
    net, x = networks.build("overlapping_pools"), networks.images()
    maps = method(net, x, 2)
    assert close(maps.sum((1, 2, 3)), net(x)[:, 2].detach())
    assert method.axiom_error(net, x, 2, maps).max() < 1e-10


def keeps_its_sum(method: Method) -> None:
    net, x = networks.build("overlapping_pools"), networks.images()
    assert close(method(net, x, 2).sum((1, 2, 3)), net(x)[:, 2].detach())


def approaches_integrated_gradients(method: ExpectedGradients) -> None:
    """The mean of those of its baselines; 25 times as many draws have a fifth of the error."""
    net, x = networks.build("gelu"), networks.images()[:1]
    limit = IntegratedGradients(80, baseline=method.baseline)(net, x, 2)
    errors = [
        torch.stack([ExpectedGradients(n, method.baseline, seed)(net, x, 2) - limit for seed in range(8)]).norm()
        for n in (10, 250)
    ]
    assert 2.5 < errors[0] / errors[1] < 10


def is_integrated_gradients_on_the_straight_line(method: Method) -> None:
    """Without leave to deviate, at the left ends of its steps: those of Riemann's rule are at the right ends."""
    net, x = networks.build("functional"), networks.images()
    left = x * sum(Saliency()(net, t / 8 * x, 2) for t in range(8)) / 8
    assert close(GuidedIG(8, max_dist=0, baseline="zero")(net, x, 2), left)


def loses_relevance(method: LRP) -> None:
    """A larger epsilon takes a larger part (ayyar2021, section 5.1)."""
    net, x = networks.build("overlapping_pools"), networks.images()
    errors = [
        m.axiom_error(net, x, 2, m(net, x, 2)).mean().item()
        for m in (LRP("epsilon", epsilon=e) for e in (1e-9, 0.01, 1))
    ]
    assert errors == sorted(errors)
    assert errors[0] < 1e-6 < errors[1]


def is_its_base_without_noise(method: SmoothGrad) -> None:
    net, x = networks.build("vgg_like"), networks.images()
    for base in (GuidedBackprop(), GradCAM(), LRP()):
        assert close(SmoothGrad(base, samples=3, noise_level=0)(net, x), base(net, x))


def has_the_sign_of(other: Method) -> Callable[[Method], None]:
    def promise(method: Method) -> None:
        net, x = networks.build("residual"), networks.images()
        maps = method(net, x, 2)
        assert maps.ne(0).any()
        assert (maps * other(net, x, 2)).min() >= 0

    return promise


def does_not_see_the_class(method: Method) -> None:
    net, x = networks.build("vgg_like"), networks.images()
    assert torch.equal(method(net, x, 1), method(net, x, 3))
    is_an_overlay(method)


def finds_nothing_where_nothing_is_covered(method: Method) -> None:
    x = networks.images()
    x[:, :, :6] = 0
    maps = method(networks.build("vgg_like"), x, 2)
    assert maps[:, :, :4].abs().max() < 1e-12 < maps[:, :, 6:].abs().min()


# --- the list that a new method joins --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A method, its reference (net, images, logit) -> maps, a promise of its own, and the networks it refuses."""

    method: Method
    reference: Callable[[nn.Module, Tensor, int], Tensor]
    promise: Callable[[Method], None]
    refuses: tuple[str, ...] = field(default=())


CASES = [
    Case(Saliency(), replaced(SALIENCY), sums_to_the_logit),
    Case(InputXGradient(), times_the_image, keeps_its_sum),
    Case(DeconvNet(), replaced(DECONVNET), does_not_see_the_image, refuses=("gelu", "mixed")),
    Case(GuidedBackprop(), replaced(GUIDED), is_the_gradient_where_weights_are_positive, refuses=("gelu", "mixed")),
    Case(GradCAM(), cams.gradcam, is_an_overlay),
    Case(GradCAMPlusPlus(), cams.gradcam_pp, is_an_overlay),
    Case(XGradCAM(), cams.xgradcam, is_an_overlay),
    Case(HiResCAM(), cams.hirescam, is_an_overlay),
    Case(LayerCAM(), cams.layercam, is_an_overlay),
    Case(EigenCAM(), cams.eigencam, is_an_overlay),
    Case(EigenGradCAM(), cams.eigen_gradcam, is_an_overlay),
    Case(ScoreCAM(), cams.scorecam, is_an_overlay),
    Case(AblationCAM(), cams.ablationcam, is_an_overlay),
    Case(OptiCAM(iterations=10, baseline="zero"), cams.opticam(10), is_an_overlay),
    Case(Occlusion(window=3, fill="zero"), covered, finds_nothing_where_nothing_is_covered),
    Case(IntegratedGradients(steps=7, baseline="zero"), integrated, keeps_its_axiom),
    Case(ExpectedGradients(6, ["zero", "mean"]), expected_gradients, approaches_integrated_gradients),
    Case(GuidedIG(5, 0.3, 0.3, "zero"), guided_ig(5, 0.3, 0.3), is_integrated_gradients_on_the_straight_line),
    Case(SmoothGrad(samples=5, noise_level=0.2), smoothed, is_its_base_without_noise),
    Case(
        GuidedGradCAM(),
        lambda net, x, unit: cams.gradcam(net, x, unit) * replaced(GUIDED)(net, x, unit),
        has_the_sign_of(GuidedBackprop()),
        refuses=("gelu", "mixed"),
    ),
    Case(
        GradCAMGradient(),
        lambda net, x, unit: cams.gradcam(net, x, unit) * replaced(SALIENCY)(net, x, unit),
        has_the_sign_of(Saliency()),
    ),
    Case(LRP("zero"), relevances.lrp("zero"), keeps_its_axiom),
    Case(LRP("epsilon", epsilon=0.1), relevances.lrp("epsilon", epsilon=0.1), loses_relevance),
    Case(DeepTaylor("image", "image"), relevances.lrp("zplus", first="zb"), keeps_its_axiom),
    Case(DeepLIFT(baseline="zero"), relevances.deeplift(False), keeps_its_axiom),
    Case(DeepLIFT("reveal_cancel", "zero"), relevances.deeplift(True), keeps_its_axiom),
    Case(FEM(), fem, does_not_see_the_class),
]
ELSEWHERE = {  # the tests of the others
    AdversarialGenerators: "test_generators.py",
    CAM: "test_cam.py",
    FullGrad: "test_peers.py",
    KernelSHAP: "test_peers.py",
    LIME: "test_masking.py",
    RISE: "test_peers.py",
    RectGrad: "test_flow.py",
    MeaningfulPerturbation: "test_masking.py",
    PDA: "test_pda.py",
    PDAFast: "test_pda.py",
    PDAGradient: "test_pda.py",
}
every_method = pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case.method))
every_network = pytest.mark.parametrize("network", networks.APPLICABLE)


# --- the contract ----------------------------------------------------------------------------------------------------


def test_every_method_has_a_reference():
    known = {each for each in vars(vis.methods).values() if isinstance(each, type) and issubclass(each, Method)}
    missing = known - {Method, ActivationMap} - {type(case.method) for case in CASES} - ELSEWHERE.keys()
    assert not missing, f"without a reference: add a Case to CASES for {', '.join(each.__name__ for each in missing)}"


@every_network
@every_method
def test_it_equals_its_reference(case, network):
    net, x = networks.build(network), networks.images()
    units = range(networks.CLASSES)
    maps = torch.stack([case.method(net, x, unit) for unit in units])
    assert close(maps, torch.stack([case.reference(net, x, unit) for unit in units]))


@every_method
def test_it_keeps_its_promise(case):
    case.promise(case.method)


@every_network
@every_method
def test_a_batch_gives_what_its_images_give_one_by_one(case, network):
    net, x = networks.build(network), networks.images()
    units = [4, 0, 2]
    one_by_one = torch.cat([case.method(net, x[i : i + 1], unit) for i, unit in enumerate(units)])
    assert close(case.method(net, x, units), one_by_one)


@every_method
def test_maps_are_plain_tensors_at_input_resolution(case):
    x = networks.images(dtype=torch.float32)
    maps = case.method(networks.build("residual", dtype=torch.float32), x)
    assert maps.shape in (x.shape, x[:, :1].shape)
    assert (maps.dtype, maps.device, maps.requires_grad) == (x.dtype, x.device, False)


@pytest.mark.parametrize("accident", [None, "in the forward pass", "in the target"])
@every_network
@every_method
def test_the_model_is_left_as_it_was_found(case, network, accident):
    net, x = networks.build(network), networks.images()
    parameters = list(net.parameters())
    net.train()
    next(net.children()).eval()
    parameters[0].requires_grad_(False)
    parameters[-1].grad = torch.ones_like(parameters[-1])
    if accident == "in the forward pass":
        last_layer(net).register_forward_hook(fail)
    before, pixels = state(net), x.clone()
    if accident is None:
        case.method(net, x, 1)
    else:
        with pytest.raises(Accident if accident == "in the forward pass" else IndexError):
            case.method(net, x, 1 if accident == "in the forward pass" else 99)
    assert state(net) == before
    assert torch.equal(x, pixels)
    assert not x.requires_grad
    assert x.grad is None
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("accident", [False, True])
@every_network
@every_method
def test_no_tensor_outlives_the_call(case, network, accident):
    """Without the help of the garbage collector: there is no reference cycle."""
    net, x = networks.build(network), networks.images()
    outputs: list[weakref.ref] = []
    for module in net.modules():
        module.register_forward_hook(lambda module, inputs, output: outputs.append(weakref.ref(output)))
    if accident:
        last_layer(net).register_forward_hook(fail)
    gc.disable()
    try:
        try:
            case.method(net, x)
        except Accident:  # the hook's, where the case has one
            assert accident
        assert outputs
        assert not [ref for ref in outputs if ref() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@every_method
def test_the_caller_may_have_switched_autograd_off(case, mode):
    net, x = networks.build("residual"), networks.images()
    expected = case.method(net, x, 1)
    with mode():
        assert close(case.method(net, x.clone(), 1), expected)
        inside = x.clone()
    assert close(case.method(net, inside, 1), expected)  # an inference tensor, used outside


@every_method
def test_images_of_another_type_are_an_error(case):
    net = networks.build("vgg_like", dtype=torch.float32)
    with pytest.raises(TypeError, match=r"Sequential computes in torch.float32, the images are torch.float64"):
        case.method(net, networks.images())
    with pytest.raises(TypeError, match=r"torch.uint8"):
        case.method(net, networks.images().to(torch.uint8))
    with pytest.raises(ValueError, match=r"\[B, C, H, W\]"):
        case.method(net, networks.images(dtype=torch.float32)[0])


@pytest.mark.parametrize(
    ("case", "network"),
    [(case, name) for case in CASES for name in case.refuses],
    ids=lambda value: value if isinstance(value, str) else repr(value.method),
)
def test_a_network_it_is_not_defined_for_is_an_error(case, network):
    with pytest.raises(NotApplicable, match=r"(rules for ReLUs, and|no rule for \w+) in (Gelu|Mixed)"):
        case.method(networks.build(network), networks.images())


@every_method
def test_what_is_no_classifier_is_an_error(case):
    with pytest.raises(NotApplicable, match=r"returned \[3, 2, 12, 12\]"):
        case.method(nn.ReLU(), networks.images())
