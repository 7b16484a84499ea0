"""Relevance between layers: against autograd, against the maps, and layer by layer; RectGrad neuron by neuron."""

import networks
import numpy as np
import pytest
import torch
from checks import close
from torch import Tensor, nn

from vis.graph.interpreter import Walk
from vis.methods import (
    LRP,
    DeconvNet,
    DeepLIFT,
    DeepTaylor,
    Forward,
    GradCAM,
    GuidedBackprop,
    InputXGradient,
    NotApplicable,
    RectGrad,
    Saliency,
)
from vis.methods.flow import IMAGE, LOGITS

METHODS = {
    "saliency": Saliency(),
    "gbp": GuidedBackprop(),
    "deconvnet": DeconvNet(),
    "rectgrad": RectGrad(0.7),
    "input_x_gradient": InputXGradient(),
    "lrp_z": LRP("zero"),
    "lrp_alpha2": LRP("alpha_beta", alpha=2),
    "deep_taylor": DeepTaylor(low=-4.0, high=4.0),
    "rescale": DeepLIFT(baseline="zero"),
    "reveal_cancel": DeepLIFT("reveal_cancel", baseline="zero"),
}
LAYERS = ["1", "2", "4", "5"]  # behind ReLUs and poolings


@pytest.mark.parametrize("name", METHODS)
def test_the_map_is_what_flows_from_a_logit(name):
    net, x, unit = networks.build("vgg_like"), networks.images(3), 2
    method = METHODS[name]
    maps = method(net, x, unit)
    with Forward(net, x, LAYERS) as forward:
        flow = method.flow(forward, LAYERS)
        relevance = torch.zeros_like(forward.logits)
        a = flow.activations.get(LOGITS)
        relevance[:, unit] = 1 if a is None else a[:, unit]
        found = flow(LOGITS, relevance)
        assert list(found) == [*LAYERS, IMAGE]
        assert close(found[IMAGE], maps)
        for layer in LAYERS if name != "reveal_cancel" else ():  # and it may stop on the way
            assert close(flow(layer, found[layer])[IMAGE], maps)


def test_the_flow_of_the_gradient_is_autograds():
    net, x = networks.build("residual"), networks.images(2)
    relevance = torch.randn(2, 5, dtype=torch.float64)
    with Forward(net, x) as forward:
        found = Saliency().flow(forward)(LOGITS, relevance)[IMAGE]
    leaf = x.clone().requires_grad_()
    assert close(found, torch.autograd.grad(net(leaf), leaf, relevance)[0])


def test_relevance_by_alpha_beta_layer_by_layer():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        net[1].bias.fill_(10)  # all active
        net[3].weight.copy_(torch.tensor([[1.0, -2.0, 3.0], [-1.0, 0.5, -0.25]]))
    R = torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    with Forward(net, torch.ones(1, 4, 1, 1).double(), ["2"]) as forward:
        a = forward.layers["2"]
        found = LRP("alpha_beta", alpha=2, bias=False).flow(forward, ["2"])(LOGITS, R)["2"]
    c = a[0] * net[3].weight  # [j, i]
    up, down = c.clamp(min=0), c.clamp(max=0)
    share = 2 * up / up.sum(1, keepdim=True) - down / down.sum(1, keepdim=True)
    assert torch.allclose(found[0], torch.einsum("ji,j->i", share, R[0]))


def test_multipliers_start_as_relevance_or_as_multiples_of_the_activation():
    net, x = networks.build("overlapping_pools"), networks.images(1)
    noise = torch.randn(1, 5, dtype=torch.float64)
    with Forward(net, x) as forward:
        by_rescale, by_lrp = DeepLIFT(baseline="zero").flow(forward), LRP("zero").flow(forward)
        a = forward.logits.detach()
        assert close(by_rescale(LOGITS, noise)[IMAGE], by_lrp(LOGITS, noise)[IMAGE])
        assert close(by_rescale(LOGITS, noise, True)[IMAGE], by_lrp(LOGITS, noise * a)[IMAGE])
        assert close(by_lrp(LOGITS, noise, True)[IMAGE], by_lrp(LOGITS, noise * a)[IMAGE])


def test_what_does_not_flow():
    net, x = networks.build("vgg_like"), networks.images(1)
    with Forward(net, x, ["1"]) as forward:
        with pytest.raises(NotApplicable, match=r"Grad-?CAM has no backward pass from layer to layer"):
            GradCAM().flow(forward)
        flow = Saliency().flow(forward, ["1"])
        assert LOGITS not in flow("1", torch.ones_like(forward.layers["1"]))
        with pytest.raises(NotApplicable, match="for one baseline"):
            DeepLIFT(baseline=["zero", "mean"]).flow(forward)


def test_a_walk_keeps_the_outputs_of_blocks_and_single_layers():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
            self.body = networks.build("residual")

        def forward(self, x: Tensor) -> Tensor:
            return self.body(self.block(x)[:, :2])

    net, x = networks.randomise(Net()).double().eval(), networks.images(1)
    walk = Walk(net, keep=["block", "block.0", "block.1", "body.fc"])
    output = walk.run(x)
    assert torch.equal(walk.outputs["body.fc"], output)
    assert close(walk.outputs["block"], net.block(x))
    assert close(walk.outputs["block.1"], net.block[1](net.block[0](x)))
    assert "block.0" not in walk.outputs  # its batch norm is folded into it


def test_padding_moves_relevance():
    net = nn.Sequential(
        nn.ZeroPad2d((1, 0, 2, 0)), nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(60, 2)
    )
    net[4].bias.data.zero_()
    net, x = net.double(), torch.randn(2, 2, 5, 5).double()
    assert close(LRP("zero")(net, x, 0), x * Saliency()(net, x, 0))


# --- RectGrad ---------------------------------------------------------------------------------------------------------


def rectified(z: Tensor, R: Tensor, q: float) -> Tensor:
    """R where z R exceeds the q-quantile of its image, the nearest value."""
    found = torch.zeros_like(R)
    for i, values in enumerate((z * R).flatten(1)):
        bound = np.quantile(values.numpy(), q, method="nearest")
        found[i] = torch.where((z * R)[i] > bound, R[i], 0.0)
    return found


@pytest.mark.parametrize("q", [0.0, 0.4, 0.8])
def test_rectgrad_equals_a_backward_pass_layer_by_layer(q):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    net, x = nn.Sequential(*layers).double(), torch.randn(2, 2, 8, 8).double()
    with torch.no_grad():
        z1 = net[1](net[0](x))
        z2 = net[3](net[2](z1))
        R = net[5].weight[1].view(1, 4, 4, 4).expand(2, -1, -1, -1)
        R = nn.functional.conv_transpose2d(rectified(z2, R, q), net[2].weight)
        expected = nn.functional.conv_transpose2d(rectified(z1, R, q), net[0].weight)
    assert close(RectGrad(q)(net, x, 1), expected)


def test_rectgrad_reads_the_activation_of_every_spelling_of_relu():
    spellings = [torch.relu, lambda y: y.clamp(min=0), nn.Threshold(0, 0), nn.ReLU6(), lambda y: torch.relu_(y.clone())]

    class Net(nn.Module):
        def __init__(self, relu) -> None:
            super().__init__()
            self.relu = relu

        def forward(self, x: Tensor) -> Tensor:
            return (self.relu(x) * torch.arange(1.0, 17).view(1, 1, 4, 4).double()).flatten(1).sum(1, keepdim=True)

    x = torch.linspace(-2, 3, 16).view(1, 1, 4, 4).double()
    maps = [RectGrad(0.8)(Net(relu), x, 0) for relu in spellings]
    assert all(torch.equal(each, maps[0]) for each in maps)
    assert (maps[0] != 0).sum() == 3  # beyond the 0.8-quantile of 16 values


def test_rectgrad_refuses_what_is_no_quantile():
    with pytest.raises(ValueError, match="q is a quantile"):
        RectGrad(1.0)
