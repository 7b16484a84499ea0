"""Walls and the receptive field: rows that the graph calls unseen have a gradient of exactly 0, the row above does not."""

import copy

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import get_model

from vis.config.options import load_node, options
from vis.errors import UserError
from vis.graph.receptive_field import receptive_field
from vis.graph.trace import NotTraceable, trace
from vis.methods import Forward, GradCAM, HiResCAM
from vis.models import build_model, skeleton
from vis.models.initialise import initialise
from vis.models.networks import MaskedCNN, MaskedVGG16
from vis.models.wall import build_wall, gradient_by_row


@pytest.fixture(autouse=True)
def _seeded():
    """Fix the seed: a ReLU or a maximum may hide a row by chance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def node(name: str, **changes):
    return load_node(options("model")[name]) | changes


def walled(net: nn.Module, rows: int, shape: tuple[int, int, int]) -> tuple[tuple[int, int] | None, torch.Tensor]:
    """Return the dead zone that the wall reports, and the gradient by row over a few images."""
    dead = build_wall(net, rows, shape[0], shape[1:])
    images = 1 if shape[1] > 100 else 16
    x = torch.randn(images, *shape, dtype=next(net.parameters()).dtype)
    return dead, gradient_by_row(net.eval(), x)


def assert_dead(dead: tuple[int, int] | None, gradient: torch.Tensor) -> None:
    assert dead is not None
    first, last = dead
    assert last == len(gradient) - 1
    assert gradient[first:].max() == 0
    assert gradient[first - 1] > 0  # the dead zone is not a row too large


# --- the receptive field ----------------------------------------------------------------------------------------------

LAYERS = {
    "conv": lambda k, s, p, d: nn.Conv2d(2, 2, k, s, min(p, k - 1), d),
    "same": lambda k, s, p, d: nn.Conv2d(2, 2, k | 1, padding="same", dilation=d),
    "mirrored": lambda k, s, p, d: nn.Conv2d(2, 2, k, s, min(p, 2), padding_mode="reflect"),
    "max": lambda k, s, p, d: nn.MaxPool2d(k, s, min(p, k // 2), ceil_mode=p == 1),
    "average": lambda k, s, p, d: nn.AvgPool2d(k, s, min(p, k // 2), ceil_mode=p == 2),
    "adaptive": lambda k, s, p, d: nn.AdaptiveAvgPool2d((k + 2, s + 2)),
    "norm": lambda k, s, p, d: nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(), nn.Sigmoid()),
    "all": lambda k, s, p, d: nn.Softmax(dim=2),
}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(LAYERS)), *(st.integers(1, 3) for _ in range(4))), min_size=1, max_size=4)
)
def test_the_receptive_field_contains_every_pixel_with_a_gradient(layers):
    net = nn.Sequential(*(LAYERS[name](k, s, p, d) for name, k, s, p, d in layers)).double().eval()
    for parameter in net.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)  # positive: nothing cancels, no ReLU dies
    x = torch.rand(2, 2, 15, 13, dtype=torch.float64, requires_grad=True)
    try:
        y = net(x)
    except RuntimeError:  # a window larger than its map
        return
    traced = trace(net, 2, (15, 13))
    output = next(n for n in reversed(traced.graph.nodes) if n.op == "call_module")
    exact = not {name for name, *_ in layers} & {"max", "mirrored", "all"} and all(d == 1 for *_, d in layers)
    for axis in (2, 3):
        seen = receptive_field(traced, axis)[0][output]
        assert len(seen) == y.shape[axis]
        for i, (first, last) in enumerate(seen):
            (gradient,) = torch.autograd.grad(y.select(axis, i).sum(), x, retain_graph=True)
            reached = gradient.abs().amax([a for a in range(4) if a != axis]).nonzero().flatten().tolist()
            if reached:
                assert first <= reached[0]
                assert reached[-1] <= last
                if exact:  # a pool with a stride above its window leaves gaps, but never at its ends
                    assert (reached[0], reached[-1]) == (first, last)


def test_an_unknown_operation_sees_the_whole_image_and_is_named():
    class Flip(nn.Module):
        def forward(self, x):
            return torch.cat([x.flip(2), F.max_pool2d(x, 3, 1, padding=1)[:, :, 1:-1].new_ones(x.shape)], 1) + x[:, :1]

    traced = trace(Flip(), 2, (6, 5))
    seen, mixing = receptive_field(traced)
    assert "flip" in {traced.kind(each) for each in mixing}
    assert (seen[list(seen)[-1]] == (0, 5)).all()


@pytest.mark.parametrize("name", sorted(networks.APPLICABLE))
def test_branches_skips_and_functional_operations(name):
    net = networks.build(name)
    traced = trace(net, networks.CHANNELS, (networks.SIZE, networks.SIZE))
    seen, _ = receptive_field(traced)
    maps = [n for n in seen if n.op == "call_module" and len(seen[n]) > 1]
    with Forward(net, networks.images(), sorted({str(n.target) for n in maps} - {"relu"})) as forward:
        for each in maps:
            if each.target == "relu":  # one module, several calls
                continue
            for i, (first, last) in enumerate(seen[each]):
                (gradient,) = torch.autograd.grad(
                    forward.layers[str(each.target)][:, :, i].sum(), forward.images, retain_graph=True
                )
                reached = gradient.ne(0).any(3).any(1).any(0).nonzero().flatten().tolist()
                assert first <= reached[0] <= reached[-1] <= last


def test_the_error_names_the_module_that_cannot_be_traced():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(NotTraceable, match=r"1 \(Branch\) cannot be traced"):
        trace(nn.Sequential(nn.ReLU(), Branch()), 1, (4, 4))
    with pytest.raises(NotTraceable, match="Branch cannot be traced"):
        trace(Branch(), 1, (4, 4))
    with pytest.raises(UserError, match=r"cannot find the receptive field of Sequential for .*, 1 \(Branch\)"):
        build_wall(nn.Sequential(nn.ReLU(), Branch()), 2, 1, (4, 4))


# --- the paper's networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "channels", "size", "dead"),
    [
        ("stacked", 1, (56, 28), (27, 55)),
        ("stacked", 3, (64, 32), (31, 63)),
        ("one_layer", 1, (29, 29), (15, 28)),
    ],
)
def test_the_masked_cnn_does_not_see_the_lower_image(variant, channels, size, dead):
    changes = {"variant": variant, "in_channels": channels, "input_size": list(size), "init": "normal", "std": 0.1}
    model = build_model(node("cnn_masked", **changes))
    assert model.dead_rows == dead
    assert dead[0] <= (size[0] + 1) // 2  # all of the lower image
    x = torch.randn(2, channels, *size)
    assert_dead(model.dead_rows, gradient_by_row(model.net, x))
    blank = x.clone()
    blank[:, :, dead[0] :] = 0
    assert torch.equal(model.net(x), model.net(blank))


def test_the_masked_vgg_has_the_published_number_of_parameters():
    for name in ("vgg16_masked", "vgg16_unmasked"):
        assert sum(p.numel() for p in skeleton(node(name))[0].parameters()) == 239_938_088


def masked_vgg() -> MaskedVGG16:
    """Build the paper's network with 2 instead of 4096 units in the first dense layer."""
    with torch.device("meta"):
        net = MaskedVGG16()
    net.classifier = nn.Sequential(nn.Linear(256 * 14 * 14, 2))
    net.to_empty(device="cpu")
    initialise(net, "kaiming_normal", 1.0, seed=0)
    return net


def test_the_wall_of_the_masked_vgg_kills_rows_170_to_223():
    net = masked_vgg()
    dead, gradient = walled(net, net.wall_rows, (3, 224, 224))
    assert dead == (170, 223)
    assert_dead(dead, gradient)
    assert not net.classifier[0].weight.view(-1, 256, 14, 14)[:, :, 5:].any()


def test_the_unmasked_vgg_has_no_wall_and_sees_everything():
    net = masked_vgg()
    dead, gradient = walled(net, node("vgg16_unmasked")["wall"]["rows"], (3, 224, 224))
    assert dead is None
    assert gradient.min() > 0
    assert not hasattr(net, "apply_wall")


@pytest.mark.slow
def test_the_real_masked_vgg_in_float64():
    model = build_model(node("vgg16_masked", init="kaiming_normal"))
    assert model.dead_rows == (170, 223)
    assert_dead(model.dead_rows, gradient_by_row(model.net.double(), torch.randn(1, 3, 224, 224, dtype=torch.float64)))


# --- any network ------------------------------------------------------------------------------------------------------


class Spelled(nn.Module):
    """Global pooling in the spellings that users write."""

    def __init__(self, pool, width: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU())
        self.pool, self.fc = pool, nn.Linear(width, 5)

    def forward(self, x):
        return self.fc(self.pool(self.features(x)).flatten(1))


SPELLINGS = {
    "module": nn.AdaptiveAvgPool2d(1),
    "max module": nn.AdaptiveMaxPool2d((1, 1)),
    "function": lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
    "max function": lambda x: F.adaptive_max_pool2d(x, 1),
    "mean": lambda x: x.mean([2, 3]),
    "amax": lambda x: torch.amax(x, dim=(2, 3)),
    "two means": lambda x: x.mean(3).mean(2),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_global_pooling_in_any_spelling(spelling):
    net = Spelled(SPELLINGS[spelling]).double()
    before, image = copy.deepcopy(net), torch.randn(16, 2, 32, 32, dtype=torch.float64)
    keys = list(net.state_dict())
    dead, gradient = walled(net, 5, (2, 32, 32))
    assert dead == (20, 31)
    assert_dead(dead, gradient)
    assert list(net.state_dict()) == keys
    assert isinstance(net, Spelled)
    features = before.features(image)[:, :, :5]  # expected result
    torch.testing.assert_close(net(image), net.fc(SPELLINGS[spelling](features).flatten(1)), rtol=0, atol=0)
    with Forward(net, image, ["features"]) as forward:  # a CAM sees the whole feature map
        assert forward.layers["features"].shape == (16, 4, 8, 8)
    torch.testing.assert_close(copy.deepcopy(net)(image), net(image), rtol=0, atol=0)
    assert_dead((20, 31), gradient_by_row(copy.deepcopy(net), image))


def test_average_and_maximum_side_by_side():
    both = Spelled(lambda x: torch.cat([F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)], 1), width=8).double()
    dead, gradient = walled(both, 5, (2, 32, 32))
    assert dead == (20, 31)
    assert_dead(dead, gradient)


@pytest.mark.parametrize(
    ("arch", "rows", "size", "dead"),
    [
        ("resnet18", 1, 224, (218, 223)),
        ("resnet50", 3, 448, (278, 447)),
        ("squeezenet1_1", 5, 224, (183, 223)),
    ],
)
def test_networks_of_torchvision_with_a_pooling_head(arch, rows, size, dead):
    node = {"_target_": "vis.models.torchvision_classifier", "arch": arch, "init": "kaiming_normal", "input_size": size}
    model = build_model(node | {"wall": {"rows": rows}})
    assert model.dead_rows == dead
    assert_dead(model.dead_rows, gradient_by_row(model.net, torch.randn(1, 3, size, size)))


@pytest.mark.parametrize("size", [224, 160])
def test_vgg_reads_its_map_through_a_7x7_pooling(size):
    with torch.device("meta"):
        net = get_model("vgg11", weights=None, init_weights=False)
    net.classifier = nn.Sequential(nn.Linear(512 * 49, 3))
    initialise(net.to_empty(device="cpu"), "kaiming_normal", 1.0, seed=0)
    dead, gradient = walled(net, 3, (3, size, size))
    assert_dead(dead, gradient)
    assert not net.classifier[0].weight.view(-1, 512, 7, 7)[:, :, 3:].any()


def transposed() -> nn.Module:
    """A network whose dense layer reads the map in another order."""

    class Swap(nn.Module):
        def forward(self, x):
            return x.flatten(2).transpose(1, 2)

    return nn.Sequential(nn.Conv2d(3, 2, 7, 32), nn.ReLU(), Swap(), nn.Flatten(), nn.Linear(2 * 7 * 7, 2))


@pytest.mark.parametrize(
    ("make", "rows", "message"),
    [
        (lambda: get_model("resnet18"), 3, "row 2 of its last feature map .7 rows. reaches .* give 1 or less"),
        (lambda: get_model("resnet18"), 9, "has 7 rows; give 1 to 6"),
        (
            lambda: get_model("densenet121"),
            1,
            r"all rows from features\.denseblock3.* on\. A larger model\.input_size",
        ),
        (lambda: get_model("efficientnet_b0"), 2, r"all rows from mul in features\.1\.0\.block\.1 on$"),
        (lambda: get_model("vit_b_32"), 2, "neither a dense layer nor a global pooling .* reshape"),
        (transposed, 2, "neither a dense layer nor a global pooling .* flatten"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 2)), 2, "no feature map with several rows"),
        (  # built for images of 32 x 32
            lambda: nn.Sequential(nn.Conv2d(3, 2, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 8 * 8, 2)),
            2,
            r"for images of 224 x 224 \(model\.input_size\), .* cannot be traced",
        ),
    ],
)
def test_a_wall_that_hides_nothing_says_why(make, rows, message):
    with pytest.raises(UserError, match=message):
        build_wall(make().eval(), rows, 3, (224, 224))


@pytest.mark.parametrize("wall", [{"rows": "three"}, 3, {"rows": True}, {"rows": 0}])
def test_a_wall_must_be_a_number_of_rows(wall):
    with pytest.raises(UserError, match=r"model\.wall.*rows"):
        build_model(node("cnn_masked", init="normal", wall=wall))


def test_a_failed_wall_leaves_the_network_as_it_was():
    net = get_model("resnet18").train()
    state, kind = {k: v.clone() for k, v in net.state_dict().items()}, type(net)
    with pytest.raises(UserError):
        build_wall(net, 3, 3, (224, 224))
    assert type(net) is kind
    assert net.training
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_the_wall_of_a_dense_layer_is_restored_after_a_step():
    net = MaskedCNN(num_classes=3)
    build_wall(net, net.wall_rows, 1, (56, 28))
    with torch.no_grad():
        net.classifier[0].weight.add_(1)
    other = copy.deepcopy(net)  # the copy has its own wall
    other.apply_wall()
    assert net.classifier[0].weight.view(-1, 64, 14, 7)[:, :, 5:].any()
    assert not other.classifier[0].weight.view(-1, 64, 14, 7)[:, :, 5:].any()
    assert np.all(other.classifier[0].weight.detach().view(-1, 64, 14, 7)[:, :, :5].numpy() != 0)


def test_hirescam_is_zero_from_row_88_on():
    """taimeskhanov2024, section 3.3: "zero out in a larger area than the deadzone. Namely, 89:224" (its rows count from 1)."""
    net = masked_vgg()
    dead = build_wall(net, net.wall_rows, 3, (224, 224))
    x = torch.randn(1, 3, 224, 224)
    map_ = HiResCAM(layer="features.29")(net, x, targets=0)[0, 0]
    assert map_[:88].any(1).sum() > 60
    assert map_[87].any()
    assert not map_[88:].any()
    assert GradCAM(layer="features.29")(net, x, targets=0)[0, 0, dead[0] :].any()
