"""Methods against what stands elsewhere: their definitions, captum, the authors' equations, counts by hand."""

import copy
from itertools import product
from math import factorial

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import InputXGradient as CaptumInputXGradient
from captum.attr import KernelShap
from checks import close
from torch import nn

from vis.errors import NotApplicable
from vis.methods import (
    FEM,
    LRP,
    RISE,
    DeconvNet,
    ExpectedGradients,
    Forward,
    FullGrad,
    GradCAM,
    GuidedIG,
    InputXGradient,
    KernelSHAP,
    Saliency,
    SmoothGrad,
)
from vis.methods.fullgrad import full_gradients

# --- FullGrad


@pytest.mark.parametrize("network", networks.APPLICABLE)
def test_the_full_gradients_sum_to_the_logit(network):
    net, x = networks.build(network), networks.images()
    with Forward(net, x) as forward:
        of_input, of_biases = full_gradients(forward, 3)
        total = sum(part.flatten(1).sum(1) for part in (of_input, *(part for _, part in of_biases)))
    assert torch.allclose(total, net(x)[:, 3], rtol=1e-9)


def test_fullgrad_of_one_convolution_by_hand():
    """S = sum of ReLU(w x + b) over positions: the input's part is x w where the ReLU is active, the bias' part b there."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.fill_(2.0)
        net[0].bias.fill_(-1.0)
        net[3].weight.fill_(1.0)
    x = torch.tensor([[[[1.0, 2.0], [0.0, 3.0]]]], dtype=torch.float64)
    # x * g = [2 4; 0 6], scaled [1/3 2/3; 0 1]; b * g = [-1 -1; 0 -1], scaled [1 1; 0 1]
    assert torch.allclose(FullGrad()(net, x, 0), torch.tensor([[[[4 / 3, 5 / 3], [0, 2]]]], dtype=torch.float64))


def test_fullgrad_refuses_a_network_whose_biases_do_not_account_for_the_logit():
    with pytest.raises(NotApplicable, match="do not add up"):
        FullGrad()(networks.build("gelu"), networks.images(), 0)


# --- Kernel SHAP


class Game(nn.Module):
    """Its logit is any function of which quarters of the image are bright."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward(self, x):
        bright = (x.mean(1).unfold(1, 4, 4).unfold(2, 4, 4).std((3, 4)) > 0).flatten(1)  # a covered quarter is constant
        scores = torch.stack([x.new_tensor(self.values[tuple(row)]) for row in bright.int().tolist()])
        return torch.stack([scores, -scores], 1)


def quarters():
    """An image of four textured quarters of different brightness: SLIC finds them, and a mean colour has no texture."""
    base = torch.tensor([[0.0, 3.0], [6.0, 9.0]], dtype=torch.float64).repeat_interleave(4, 0).repeat_interleave(4, 1)
    return (base + 0.1 * torch.eye(8, dtype=torch.float64).flip(1) + 0.1 * torch.eye(8, dtype=torch.float64))[
        None, None
    ]


def test_kernel_shap_of_all_choices_is_the_shapley_value():
    rng = np.random.default_rng(0)
    values = {z: rng.standard_normal() for z in product((0, 1), repeat=4)}
    x, shap = quarters(), KernelSHAP(samples=16, superpixels=4, output="logit")
    segments = shap.segments(x[0])
    places = [segments[4 * i, 4 * j].item() for i, j in product((0, 1), repeat=2)]
    assert sorted(places) == [0, 1, 2, 3]
    (map_,) = shap(Game(values), x, 0)
    for quarter in range(4):
        shapley = 0.0
        for z in product((0, 1), repeat=4):
            if not z[quarter]:
                k, with_it = sum(z), tuple(1 if i == quarter else v for i, v in enumerate(z))
                shapley += factorial(k) * factorial(3 - k) / factorial(4) * (values[with_it] - values[z])
        i, j = divmod(quarter, 2)
        assert map_[0, 4 * i, 4 * j].item() == pytest.approx(shapley, abs=1e-9)


def test_kernel_shap_of_samples_adds_up_and_approaches_captums():
    net, x = networks.build("vgg_like"), networks.images()[:1]
    shap = KernelSHAP(samples=4000, superpixels=14, output="logit")
    (map_,) = shap(net, x, 2)
    segments = shap.segments(x[0])
    means = torch.stack([x[0][:, segments == s].mean(1) for s in range(int(segments.max()) + 1)], 1)[:, segments][None]
    assert len(means.unique()) > 12
    phi = torch.stack([map_[0][segments == s][0] for s in range(int(segments.max()) + 1)])
    assert phi.sum().item() == pytest.approx((net(x) - net(means))[0, 2].item())
    torch.manual_seed(0)
    theirs = KernelShap(net).attribute(x, means, target=2, feature_mask=segments[None, None], n_samples=4000)
    theirs = torch.stack([theirs[0, 0][segments == s][0] for s in range(len(phi))])
    assert np.corrcoef(phi.numpy(), theirs.numpy())[0, 1] > 0.98


# --- RISE


def test_rise_of_a_network_that_sees_one_pixel_is_brightest_there():
    class Pixel(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, 9, 20], -x[:, 0, 9, 20]], 1)

    map_ = RISE(samples=2000, output="logit")(Pixel(), torch.ones(1, 1, 28, 28), 0)[0, 0]
    assert np.hypot(*(np.array(divmod(map_.argmax().item(), 28)) - (9, 20))) <= 2
    assert map_.max() > 1.2 * map_.median()


def test_rise_is_its_equation():
    net, x = networks.build("vgg_like"), networks.images()
    rise = RISE(samples=30, cells=3, keep=0.4)
    masks = rise._masks(*rise._draws(x), x)
    p = torch.stack([net(x[1] * m).softmax(1)[0, 4] for m in masks[:, None]])
    assert torch.allclose(rise(net, x, 4)[1], (p.view(-1, 1, 1, 1) * masks).sum(0) / (0.4 * 30))


def test_masks_are_smooth_and_as_bright_as_said():
    rise = RISE(samples=3000, cells=5, keep=0.3)
    x = torch.zeros(1, 3, 31, 44, dtype=torch.float64)
    masks = rise._masks(*rise._draws(x), x)
    assert masks.shape == (3000, 1, 31, 44)
    assert masks.min() >= 0
    assert masks.max() <= 1 + 1e-12
    assert masks.mean().item() == pytest.approx(0.3, abs=0.01)
    assert F.avg_pool2d(masks, 3, 1).sub(masks[..., 1:-1, 1:-1]).abs().max() < 0.2


def test_kernel_shap_refuses_samples_that_do_not_determine_the_values():
    net, x = networks.build("vgg_like"), networks.images()[:1]
    S = int(KernelSHAP(superpixels=14).segments(x[0]).max()) + 1
    with pytest.raises(NotApplicable, match=f"at least {2 * (S - 1)}"):
        KernelSHAP(samples=2 * (S - 2), superpixels=14, output="logit")(net, x, 2)


def test_fullgrad_takes_dense_layers_of_tokens_and_small_logits():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc, self.head = nn.Conv2d(2, 6, 4, 4), nn.Linear(6, 7), nn.Linear(7, 5)

        def forward(self, x):
            y = self.fc(self.conv(x).flatten(2).mT).relu()
            return self.head(y.mean(1))

    torch.manual_seed(0)
    net, x = Tokens().double(), networks.images()[:1]
    assert FullGrad()(net, x, 2).isfinite().all()
    with torch.no_grad():
        net.head.bias[2] -= net(x)[0, 2] - 1e-12
    assert FullGrad()(net, x, 2).isfinite().all(), "rounding is no missing part"


def test_the_rounding_of_bfloat16_hides_no_gelu():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 16, 3), nn.GELU(), nn.Conv2d(16, 16, 3), nn.GELU(), nn.Flatten(), nn.Linear(1024, 5)]
    net = nn.Sequential(*layers).bfloat16()
    with pytest.raises(NotApplicable, match="do not add up"):
        FullGrad()(net, networks.images(dtype=torch.bfloat16), 2)


def test_fullgrad_sees_what_a_layer_gives_before_a_hook_changes_it():
    """A unit that a hook removes has no bias in the target."""
    torch.manual_seed(0)
    net, x = (
        nn.Sequential(nn.Conv2d(2, 8, 3), nn.Conv2d(8, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)).double(),
        networks.images(),
    )
    without = copy.deepcopy(net)
    with torch.no_grad():
        without[0].weight[3] = without[0].bias[3] = 0
        net[0].bias[3] = 1e-3
    keep = torch.ones(8, 1, 1, dtype=x.dtype).index_fill(0, torch.tensor(3), 0)
    net[0].register_forward_hook(lambda module, inputs, output: output * keep)
    assert close(FullGrad()(net, x, 2), FullGrad()(without, x, 2))


# --- input x gradient, guided IG


@pytest.mark.parametrize("network", ["vgg_like", "batch_norm", "gelu"])
def test_input_x_gradient_is_captums(network):
    net, x = networks.build(network), networks.images()
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # captum's hooks see the inputs of modules
    theirs = CaptumInputXGradient(net).attribute(x.clone().requires_grad_(), target=3)
    assert close(InputXGradient()(net, x, 3), theirs.detach())


def test_guided_ig_by_hand():
    """f = x1^2 + x2 / 2 at (1, 1), from 0 in two steps without a limit.

    The gradient at 0 is (0, 1/2): x1 moves alone, to (1, 0), which is half the distance. There it is (2, 1/2): x2, as x1 has
    arrived. R = (0 * 1, 1/2 * 1).
    """

    class Net(nn.Module):
        def forward(self, x):
            f = x[:, 0, 0, 0] ** 2 + x[:, 0, 0, 1] / 2
            return torch.stack([f, -f], 1)

    x = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    maps = GuidedIG(steps=2, fraction=0.5, max_dist=1, baseline="zero")(Net(), x, 0)
    assert maps.flatten().tolist() == [0, 0.5]


def test_more_steps_make_guided_ig_complete():
    net, x = networks.build("gelu"), networks.images()
    errors = [m.axiom_error(net, x, 1, m(net, x, 1)).max() for m in (GuidedIG(n, baseline="mean") for n in (10, 160))]
    assert errors[1] < errors[0] / 8


def test_expected_gradients_of_given_images_are_the_mean_over_them():
    net, x = networks.build("vgg_like"), networks.images()
    method = ExpectedGradients(samples=2, baseline=[*x, "mean"])
    assert method.words == "from the image's mean colour and 3 given images"
    alphas = [np.random.default_rng([0, k]).random(2) for k in range(4)]
    starts = [*(each.expand_as(x) for each in x), x.mean((2, 3), keepdim=True).expand_as(x)]
    parts = [
        (x - x0) * Saliency()(net, x0 + a * (x - x0), 2)
        for x0, drawn in zip(starts, alphas, strict=True)
        for a in drawn
    ]
    assert close(method(net, x, 2), torch.stack(parts).mean(0))


# --- SmoothGrad^2 and VarGrad


@pytest.mark.parametrize("base", [Saliency(), GradCAM(), LRP()], ids=repr)
def test_squares_and_variances_are_those_of_the_maps_of_noisy_images(base, monkeypatch):
    net, x = networks.build("residual"), networks.images()
    monkeypatch.setattr("vis.methods.gradients.PASS_VALUES", 4 * x[0].numel())  # several passes
    seen = []
    explain = type(base).explain
    monkeypatch.setattr(type(base), "explain", lambda *args: seen.append(explain(*args).detach()) or seen[-1])
    square, variance = (SmoothGrad(base, 7, 0.3, reduce=reduce)(net, x, 2) for reduce in ("square", "variance"))
    maps = torch.cat(seen[: len(seen) // 2]).view(7, *square.shape)
    assert close(square, (maps**2).mean(0))
    assert close(variance, maps.var(0, correction=0))


def test_variance_is_zero_without_noise():
    net, x = networks.build("residual", dtype=torch.float32), networks.images(dtype=torch.float32)
    assert not SmoothGrad(samples=7, noise_level=0, reduce="variance")(net, x).any()


# --- DeconvNet, as Zeiler and Fergus describe it


@torch.no_grad()
def reconstruction(net, image, unit):
    """Unpooling to the switches, rectification, filtering with transposed weights, layer by layer."""
    record, x = [], image[None]
    for layer in net:
        switches = (
            F.max_pool2d(x, layer.kernel_size, return_indices=True)[1] if isinstance(layer, nn.MaxPool2d) else None
        )
        record.append((layer, x.shape, switches))
        x = layer(x.clone())
    R = torch.zeros_like(x)
    R[0, unit] = 1
    for layer, shape, switches in reversed(record):
        if isinstance(layer, nn.Linear):
            R = R @ layer.weight
        elif isinstance(layer, nn.Flatten):
            R = R.view(shape)
        elif isinstance(layer, nn.MaxPool2d):
            R = F.max_unpool2d(R, switches, layer.kernel_size, output_size=shape)
        elif isinstance(layer, nn.ReLU):
            R = R.relu()
        elif isinstance(layer, nn.Conv2d):
            R = F.conv_transpose2d(R, layer.weight, padding=layer.padding)
    return R[0]


def test_deconvnet_is_the_reconstruction_with_the_switches_of_the_forward_pass():
    """Where no pooling windows overlap: unpooling has one value for each location there."""
    net, x = networks.build("vgg_like"), networks.images()
    for unit in range(networks.CLASSES):
        assert close(DeconvNet()(net, x, unit), torch.stack([reconstruction(net, image, unit) for image in x]))


# --- FEM in 3D


def film() -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 3, 3, padding=1), nn.ReLU(),
        nn.MaxPool3d(2), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip
    return networks.randomise(net).double(), torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("layer", [None, "1"])
def test_fem_explains_films(layer):
    net, x = film()
    A = net[: 5 if layer is None else 2](x).detach()
    kept = torch.stack([sum(a.mean() * (a >= a.mean() + a.std(correction=0)) for a in each) for each in A])
    expected = F.interpolate(kept[:, None], x.shape[2:], mode="trilinear")
    maps = FEM(layer=layer)(net, x, 1)
    assert maps.shape == (2, 1, 4, 8, 8)
    assert maps.any()
    assert close(maps, expected)


def test_the_gradient_of_a_film():
    net, x = film()
    wanted = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(wanted)[:, 1].sum(), wanted)
    assert close(Saliency()(net, x, 1), gradient)


def test_a_method_for_pictures_refuses_a_film():
    with pytest.raises(NotApplicable, match=r"GradCAM explains images \[B, C, H, W\], not \[2, 2, 4, 8, 8\]"):
        GradCAM()(*film(), 1)
