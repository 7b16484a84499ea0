"""RISE, Kernel SHAP and FullGrad, against their definitions and against captum and the authors' equations."""

from itertools import product
from math import factorial

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import KernelShap
from torch import nn

from vis.methods import RISE, Forward, FullGrad, KernelSHAP, NotApplicable
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
