"""The contract of every method, and the rules of nie2018, Eq. (1)-(2), against references written from the paper."""

import gc
import itertools
import math
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import cams
import networks
import numpy as np
import pytest
import relevances
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vis.methods import (
    DECONVNET,
    FEM,
    GUIDED,
    LRP,
    SALIENCY,
    AblationCAM,
    DeconvNet,
    DeepLIFT,
    DeepTaylor,
    EigenCAM,
    Forward,
    GradCAM,
    GradCAMGradient,
    GradCAMPlusPlus,
    GuidedBackprop,
    GuidedGradCAM,
    HiResCAM,
    IntegratedGradients,
    LayerCAM,
    Method,
    NotApplicable,
    Occlusion,
    OptiCAM,
    ReluRule,
    Saliency,
    ScoreCAM,
    SmoothGrad,
    Target,
    XGradCAM,
    explain_all,
)

# --- references ------------------------------------------------------------------------------------------------------


class _RuledRelu(torch.autograd.Function):
    """T = h(R) * g'(y) for clamp(y, 0, high), as a function of its own."""

    @staticmethod
    def forward(ctx, y, high, rule):
        ctx.active, ctx.rule = (y > 0) & (y < high), rule
        return y.clamp(0, high)

    @staticmethod
    def backward(ctx, R):
        T = R.relu() if ctx.rule.rectify_gradient else R
        return T * ctx.active if ctx.rule.mask_by_input else T, None, None


class replaced_relus(TorchFunctionMode):
    """Every call of a ReLU, in modules too, is replaced by `_RuledRelu` while the network runs."""

    RELUS = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.threshold)

    def __init__(self, rule: ReluRule):
        super().__init__()
        self.rule = rule

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.RELUS or (func is Tensor.clamp and kwargs == {"min": 0}):
            return _RuledRelu.apply(args[0], math.inf, self.rule)
        if func is F.relu6 or (func is F.hardtanh and (kwargs["min_val"], kwargs["max_val"]) == (0, 6)):
            return _RuledRelu.apply(args[0], 6.0, self.rule)
        return func(*args, **kwargs)


def replaced(rule: ReluRule) -> Callable[[nn.Module, Tensor, int], Tensor]:
    """The reference for any network: its gradient, after its ReLUs were replaced."""

    def gradient(net: nn.Module, x: Tensor, unit: int) -> Tensor:
        x = x.clone().requires_grad_()
        with replaced_relus(rule):
            logits = net(x)
        return torch.autograd.grad(logits[:, unit].sum(), x)[0]

    return gradient


def naive(net: nn.Sequential, image: np.ndarray, unit: int, rule: ReluRule) -> np.ndarray:
    """The map of one image [C, H, W], neuron by neuron, without autograd: nie2018, Eq. (1)-(3)."""
    record, x = [], torch.from_numpy(image)[None]
    with torch.no_grad():
        for layer in net:
            record.append((layer, x[0].numpy()))
            x = layer(x.clone())
    R = np.zeros(x.shape[1])
    R[unit] = 1
    for layer, y in reversed(record):
        R = _naive_backward(layer, y, R, rule)
    return R


def _naive_backward(layer: nn.Module, y: np.ndarray, R: np.ndarray, rule: ReluRule) -> np.ndarray:
    """What arrives at a layer's input y when R arrives at its output."""
    if isinstance(layer, nn.ReLU):
        T = np.maximum(R, 0) if rule.rectify_gradient else R
        return T * (y > 0) if rule.mask_by_input else T
    if isinstance(layer, nn.Linear):
        return layer.weight.detach().numpy().T @ R
    if isinstance(layer, nn.BatchNorm2d):
        scale = layer.weight.detach() / torch.sqrt(layer.running_var + layer.eps)
        return R * scale.numpy()[:, None, None]
    if isinstance(layer, nn.Flatten | nn.Dropout):
        return R.reshape(y.shape)
    size, stride, padding = (
        v if isinstance(v, int) else v[0] for v in (layer.kernel_size, layer.stride, layer.padding)
    )
    margin = [(0, 0), (padding, padding), (padding, padding)]
    T = np.zeros_like(np.pad(y, margin))
    for k, i, j in np.ndindex(*R.shape):
        window = (slice(i * stride, i * stride + size), slice(j * stride, j * stride + size))
        if isinstance(layer, nn.Conv2d):
            T[:, *window] += layer.weight[k].detach().numpy() * R[k, i, j]
        else:
            assert isinstance(layer, nn.MaxPool2d)
            values = np.pad(y, margin, constant_values=-np.inf)[k][window]
            T[k][window][np.unravel_index(values.argmax(), values.shape)] += R[k, i, j]
    return T[:, padding : T.shape[1] - padding, padding : T.shape[2] - padding]


def integrated(net: nn.Module, x: Tensor, unit: int) -> Tensor:
    """Eq. 7 of ayyar2021 from a baseline of zeros, with 7 nodes of Gauss and Legendre."""
    nodes, weights = np.polynomial.legendre.leggauss(7)
    return x * sum(w / 2 * replaced(SALIENCY)(net, (t + 1) / 2 * x, unit) for t, w in zip(nodes, weights, strict=True))


def smoothed(net: nn.Module, x: Tensor, unit: int) -> Tensor:
    """Eq. 8 of ayyar2021: five noisy images, sigma a fifth of each image's range."""
    total = torch.zeros_like(x)
    for sample in range(5):
        noise = torch.from_numpy(np.random.default_rng([0, sample]).standard_normal(x.shape[1:]))
        for image, maps in zip(x, total, strict=True):
            noisy = image + 0.2 * (image.max() - image.min()) * noise
            maps += replaced(SALIENCY)(net, noisy[None], unit)[0] / 5
    return total


def fem(net: nn.Module, x: Tensor, unit: int) -> Tensor:
    """Eq. 26 of ayyar2021, feature map by feature map."""
    kept: list[Tensor] = []
    cams.with_layer(net, x, cams.layer_of(net), lambda A: kept.append(A.detach().clone()) or A)
    maps = [sum(A.mean() * (A.mean() + A.std(correction=0) <= A) for A in each) for each in kept[0]]
    return F.interpolate(torch.stack(maps)[:, None], x.shape[2:], mode="bilinear", align_corners=False)


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


def loses_relevance(method: LRP) -> None:
    """A larger epsilon takes a larger part (ayyar2021, section 5.1)."""
    net, x = networks.build("overlapping_pools"), networks.images()
    errors = [LRP(epsilon=e).axiom_error(net, x, 2, LRP(epsilon=e)(net, x, 2)).mean().item() for e in (1e-9, 0.01, 1)]
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


def covered(net: nn.Module, x: Tensor, unit: int) -> Tensor:
    """The mean fall of the logit over the 3x3 windows of zeros that hold a pixel."""
    total, counts = torch.zeros_like(x[:, :1]), torch.zeros_like(x[:, :1])
    for top, left in itertools.product(range(x.shape[2] - 2), range(x.shape[3] - 2)):
        window = (..., slice(top, top + 3), slice(left, left + 3))
        changed = x.clone()
        changed[window] = 0
        total[window] += (net(x) - net(changed))[:, unit].view(-1, 1, 1, 1)
        counts[window] += 1
    return (total / counts).detach()


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
    Case(DeconvNet(), replaced(DECONVNET), does_not_see_the_image, refuses=("gelu", "mixed")),
    Case(GuidedBackprop(), replaced(GUIDED), is_the_gradient_where_weights_are_positive, refuses=("gelu", "mixed")),
    Case(GradCAM(), cams.gradcam, is_an_overlay),
    Case(GradCAMPlusPlus(), cams.gradcam_pp, is_an_overlay),
    Case(XGradCAM(), cams.xgradcam, is_an_overlay),
    Case(HiResCAM(), cams.hirescam, is_an_overlay),
    Case(LayerCAM(), cams.layercam, is_an_overlay),
    Case(EigenCAM(), cams.eigencam, is_an_overlay),
    Case(ScoreCAM(), cams.scorecam, is_an_overlay),
    Case(AblationCAM(), cams.ablationcam, is_an_overlay),
    Case(OptiCAM(iterations=10), cams.opticam(10), is_an_overlay),
    Case(Occlusion(window=3), covered, finds_nothing_where_nothing_is_covered),
    Case(IntegratedGradients(steps=7), integrated, keeps_its_axiom),
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
    Case(LRP("zero"), relevances.lrp("zero"), keeps_its_axiom, refuses=("gelu", "mixed")),
    Case(LRP(epsilon=0.1), relevances.lrp("epsilon", epsilon=0.1), loses_relevance, refuses=("gelu", "mixed")),
    Case(DeepTaylor(), relevances.lrp("zplus", first="zb"), keeps_its_axiom, refuses=("gelu", "mixed")),
    Case(DeepLIFT(), relevances.deeplift(False), keeps_its_axiom),
    Case(DeepLIFT("reveal_cancel"), relevances.deeplift(True), keeps_its_axiom),
    Case(FEM(), fem, does_not_see_the_class),
]
RULES = {"saliency": SALIENCY, "deconvnet": DECONVNET, "gbp": GUIDED}
RULED = CASES[:3]  # the methods that are these rules

every_method = pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case.method))
every_network = pytest.mark.parametrize("network", networks.APPLICABLE)
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def error(got: Tensor, expected: Tensor) -> float:
    """The largest error, relative to the largest value."""
    return ((got - expected).abs().max() / expected.abs().max()).item()


def close(got: Tensor, expected: Tensor) -> bool:
    return error(got, expected) < 1e-12


def l2_error(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


# --- the contract ----------------------------------------------------------------------------------------------------


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


class Accident(Exception):
    pass


def fail(module, inputs, output):
    raise Accident


def last_layer(net: nn.Module) -> nn.Module:
    return list(net.modules())[-1]


def state(net: nn.Module) -> list:
    """All that a method could have changed in a network, in comparable form."""
    found: list = []
    for name, module in net.named_modules():
        hooks = {key: list(value) for key, value in vars(module).items() if key.endswith("_hooks") and value}
        found.append((name, type(module), module.training, sorted(vars(module)), hooks))
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        grad = None if tensor.grad is None else (id(tensor.grad), tensor.grad.tolist())
        found.append((name, id(tensor), tensor._version, tensor.tolist(), tensor.requires_grad, grad))
    return found


# --- the three rules -------------------------------------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("network", ["vgg_like", "overlapping_pools", "batch_norm"])
def test_the_rules_equal_a_backward_pass_written_neuron_by_neuron(network, rule):
    net, x = networks.build(network), networks.images(1)
    with Forward(net, x) as forward:
        for unit in (0, 3):
            expected = torch.from_numpy(naive(net, x[0].numpy(), unit, rule))
            assert close(forward.gradient(unit, rule)[0], expected)


def one_relu(y: np.ndarray, R: np.ndarray, rule: ReluRule, relu: Callable[[Tensor], Tensor] = F.relu) -> np.ndarray:
    """What is left of the gradient R behind a ReLU with input y."""

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (relu(x) * torch.from_numpy(R)).flatten(1).sum(1, keepdim=True)

    with Forward(Net(), torch.from_numpy(y)[None, None]) as forward:
        return forward.gradient(0, rule)[0, 0].numpy()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (SALIENCY, [[-2, 0, -1], [6, 0, 0], [0, -1, 3]]),
        (DECONVNET, [[0, 3, 0], [6, 0, 1], [2, 0, 3]]),
        (GUIDED, [[0, 0, 0], [6, 0, 0], [0, 0, 3]]),
    ],
    ids=RULES,
)
def test_the_numeric_example_of_the_relu_rules(rule, expected):
    """Springenberg et al. 2014, Figure 1; ayyar2021, Figure 5."""
    y = np.array([[1.0, -1, 5], [2, -5, -7], [-3, 2, 4]])
    R = np.array([[-2.0, 3, -1], [6, -3, 1], [2, -1, 3]])
    assert one_relu(y, R, rule).tolist() == expected


SPELLINGS = {
    "F.relu": F.relu,
    "in place": lambda x: F.relu(x, inplace=True),
    "Tensor.relu_": Tensor.relu_,
    "clamp": lambda x: x.clamp(min=0),
    "clamp_": lambda x: x.clamp_(min=0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clip": lambda x: x.clip(0, 1e9),
    "threshold": lambda x: F.threshold(x, 0, 0),
    "hardtanh": lambda x: F.hardtanh(x, 0, 1e9),
}


@every_rule
@pytest.mark.parametrize("spelling", SPELLINGS)
@settings(max_examples=15, deadline=None)
@given(values=arrays(np.float64, (2, 3, 3), elements=st.floats(-9, 9).filter(bool)))
def test_every_spelling_of_a_relu_follows_the_rule(spelling, rule, values):
    y, R = values
    T = np.maximum(R, 0) if rule.rectify_gradient else R
    expected = T * (y > 0) if rule.mask_by_input else T
    assert np.array_equal(one_relu(y, R, rule, SPELLINGS[spelling]), expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), scale=st.floats(1e-3, 1e3), network=st.sampled_from(list(networks.APPLICABLE)))
def test_a_larger_logit_gives_a_larger_map_of_the_same_form(seed, scale, network):
    """The rules are positively homogeneous in the gradient."""
    net, x = networks.build(network, seed), networks.images(1, seed)
    before = explain_all({name: Case.method for name, Case in zip(RULES, RULED, strict=True)}, net, x, [0])[0][0]
    with torch.no_grad():
        last_layer(net).weight.mul_(scale)
    for case, maps in zip(RULED, before.values(), strict=True):
        assert torch.allclose(case.method(net, x, 0), scale * maps, rtol=1e-9, atol=1e-12 * scale)


def test_a_gradient_that_two_branches_share_is_not_rectified_twice_or_for_both():
    """x goes through a ReLU and around it; the gradient that arrives at both branches is one tensor for autograd."""

    class Around(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (F.relu(x) + x).flatten(1).neg()[:, :1]

    x = torch.ones(1, 1, 1, 1)
    with Forward(Around(), x) as forward:
        assert [forward.gradient(0, rule).item() for rule in (GUIDED, DECONVNET, SALIENCY)] == [-1, -1, -2]


def test_one_forward_pass_serves_three_methods_and_two_logits():
    net, x = networks.build("residual"), networks.images()
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    maps, _ = explain_all({name: case.method for name, case in zip(RULES, RULED, strict=True)}, net, x, [1, [3, 0, 2]])
    assert len(calls) == 1
    for case, first, second in zip(RULED, maps[0].values(), maps[1].values(), strict=True):
        assert close(first, case.reference(net, x, 1))
        assert close(second[:1], case.reference(net, x[:1], 3))


def test_the_rules_do_not_depend_on_the_order_of_the_backward_passes():
    net, x = networks.build("functional"), networks.images()
    with Forward(net, x) as forward:
        first = {name: forward.gradient(0, rule) for name, rule in RULES.items()}
        again = {name: forward.gradient(0, rule) for name, rule in reversed(RULES.items())}
    assert all(torch.equal(first[name], again[name]) for name in RULES)


@pytest.mark.slow
def test_a_relu_that_is_hidden_in_a_compiled_graph_is_an_error():
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.compile(networks.build("vgg_like"), backend="aot_eager")
        with pytest.raises(NotApplicable, match="CompiledFunction"):
            GuidedBackprop()(net, networks.images())


def test_a_network_that_cuts_its_graph_is_an_error():
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1).relu()

    with pytest.raises(NotApplicable, match="no gradient connects"):
        Saliency()(Cut(), networks.images())


# --- units of other layers -------------------------------------------------------------------------------------------


@every_rule
def test_any_unit_of_any_layer_is_a_target(rule):
    """The map of a layer's unit is the map of the network that ends there; the in-place ReLU behind it changes nothing."""
    net, x = networks.build("vgg_like"), networks.images()
    method = next(case.method for case, each in zip(RULED, RULES.values(), strict=True) if each == rule)
    assert close(method(net, x, Target(5, layer="7")), method(net[:8], x, 5))
    ends_there = nn.Sequential(*net[:4], nn.Flatten())
    assert close(method(net, x, Target((3, 2, 4), layer="3")), method(ends_there, x, 3 * 36 + 2 * 6 + 4))


def test_a_channel_is_the_sum_of_its_neurons():
    net, x = networks.build("vgg_like"), networks.images(1)
    neurons = [Target((3, i, j), layer="3") for i in range(6) for j in range(6)]
    every_neuron = Saliency()(net, x.expand(36, -1, -1, -1), neurons)
    assert close(Saliency()(net, x, Target(3, layer="3")), every_neuron.sum(0, keepdim=True))


def test_each_image_may_have_a_target_in_another_layer():
    net, x = networks.build("residual"), networks.images()
    targets = [Target(1), Target((0, 5, 5), layer="conv2"), Target(3, output="prob")]
    together = GuidedBackprop()(net, x, targets)
    for i, target in enumerate(targets):
        assert close(together[i : i + 1], GuidedBackprop()(net, x[i : i + 1], target))


def test_calls_of_a_reused_module_are_told_apart():
    net, x = networks.build("residual"), networks.images()
    with Forward(net, x, ["relu:0", "relu:2", "conv3"]) as forward:
        first, last = forward.layers["relu:0"], forward.layers["relu:2"]
        assert torch.equal(first, net.conv1(x).relu())
        assert torch.equal(net.fc(last.mean((2, 3))), forward.logits)
        assert forward.layers["conv3"].min() < 0  # before the in-place ReLU
        at_layer = forward.gradient(1, SALIENCY, of=last)
    assert close(at_layer, net.fc.weight[1].detach()[None, :, None, None].expand_as(last) / 144)
    with pytest.raises(NotApplicable, match="relu is called several times: relu:0 is its first call"):
        Saliency()(net, x, Target(0, layer="relu"))
    with pytest.raises(NotApplicable, match="relu:3 is not called in the forward pass, or not that often"):
        Saliency()(net, x, Target(0, layer="relu:3"))
    with pytest.raises(NotApplicable, match="Residual has no layer 'conv9'"):
        Saliency()(net, x, Target(0, layer="conv9"))


def test_a_layer_that_returns_no_tensor_is_an_error():
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = Two()

        def forward(self, x: Tensor) -> Tensor:
            return self.two(x)[0].flatten(1)

    with pytest.raises(NotApplicable, match="layer two returns a tuple, not a tensor"):
        Saliency()(Net(), networks.images(), Target(0, layer="two"))


def test_after_the_forward_pass_its_values_are_left_without_the_graph():
    net, x = networks.build("residual"), networks.images()
    with Forward(net, x, ["conv1"]) as forward:
        logits = forward.logits
    assert torch.equal(forward.logits, logits)
    assert not forward.logits.requires_grad
    assert not forward.layers["conv1"].requires_grad
    with pytest.raises(NotApplicable, match="the forward pass is over"):
        forward.gradient(0, GUIDED)


# --- large networks against other implementations --------------------------------------------------------------------


def large(arch: str) -> nn.Module:
    from vis.models import VGG16, torchvision_classifier

    torch.manual_seed(0)
    return networks.randomise(VGG16() if arch == "vgg16" else torchvision_classifier(arch))


def captum_maps(net: nn.Module, x: Tensor, unit: int) -> dict[str, Tensor]:
    from captum import attr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maps = {
            "saliency": attr.Saliency(net).attribute(x, target=unit, abs=False),
            "deconvnet": attr.Deconvolution(net).attribute(x, target=unit),
            "gbp": attr.GuidedBackprop(net).attribute(x, target=unit),
        }
    return {name: each.detach() for name, each in maps.items()}


def our_maps(net: nn.Module, x: Tensor, unit: int) -> dict[str, Tensor]:
    return explain_all({name: case.method for name, case in zip(RULES, RULED, strict=True)}, net, x, [unit])[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["vgg16", "alexnet", "resnet50"])
def test_maps_equal_captums(arch, record_property):
    net, x = large(arch).double(), torch.randn(2, 3, 128, 128, dtype=torch.float64)
    expected = captum_maps(net, x, 482)
    double = {name: error(maps, expected[name]) for name, maps in our_maps(net, x, 482).items()}
    net, x = net.float(), x.float()
    expected = captum_maps(net, x, 482)
    ours = our_maps(net.to(memory_format=torch.channels_last), x, 482)  # as vis-run has it: other sums, flipped ReLUs
    single = {name: l2_error(maps, expected[name]) for name, maps in ours.items()}
    record_property("errors", {"float64 max": double, "float32 l2": single})
    assert max(double.values()) < 1e-12
    assert max(single.values()) < 2e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch",
    [
        "googlenet",
        "densenet121",
        "resnet18",
        "inception_v3",
        "mobilenet_v2",
        "mnasnet0_5",
        "regnet_x_400mf",
        "regnet_y_400mf",
        "shufflenet_v2_x0_5",
        "squeezenet1_1",
    ],
)
def test_maps_equal_those_of_the_network_with_replaced_relus(arch, record_property):
    """Captum is silently wrong where ReLUs are functional: googlenet, densenet121, inception_v3."""
    net, x = large(arch).double(), torch.randn(1, 3, 128, 128, dtype=torch.float64)
    with torch.no_grad():
        unit = int(net(x).argmax())  # squeezenet ends in a ReLU: other logits may be dead
    maps = our_maps(net, x, unit)
    errors = {name: error(maps[name], replaced(rule)(net, x, unit)) for name, rule in RULES.items()}
    record_property("errors", {"float64 max": errors})
    assert max(errors.values()) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["convnext_tiny", "efficientnet_b0", "mobilenet_v3_small", "vit_b_32"])
def test_large_networks_with_other_activations_are_refused(arch):
    net, x = large(arch), torch.randn(1, 3, 224, 224)
    for method in (DeconvNet(), GuidedBackprop()):
        with pytest.raises(NotApplicable, match="rules for ReLUs"):
            method(net, x)


def test_mixed_precision_is_tf32_in_the_backward_pass_alone(monkeypatch):
    monkeypatch.setattr(Forward, "tf32_backward", True)
    net = networks.build("vgg_like", dtype=torch.float32)
    seen = []
    handle = next(m for m in net.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(
        lambda *_: seen.append(torch.backends.cudnn.allow_tf32)
    )
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with Forward(net, networks.images(dtype=torch.float32)) as forward:
            forward.logits.grad_fn.register_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
            forward.gradient(0, GUIDED)
        assert seen == [False, True]
        assert torch.backends.cudnn.allow_tf32 is False
    finally:
        torch.backends.cudnn.allow_tf32 = before
        handle.remove()
