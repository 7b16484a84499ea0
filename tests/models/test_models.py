"""Models: every listed network can be built; random weights have the named distribution and depend on the seed."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vis.config.options import load_node, options
from vis.errors import UserError
from vis.models import _num_classes, build_model, imagenet_classes, skeleton
from vis.models.initialise import initialise
from vis.models.networks import CNN3, FCN3, torchvision_classifier
from vis.models.random_weight import BLOCK, INITIALISATIONS, RandomWeight, parallel
from vis.models.streamed import StreamedLinear

CONFIGS = list(options("model"))
SMALL_CNN = {"num_filters": 4, "num_classes": 10, "input_size": 32}


def node(name: str, **changes):
    values = load_node(options("model")[name]) | changes
    return values | ({"name": values["arch"]} if values["name"] == "${.arch}" else {})


def generate(weight: RandomWeight) -> torch.Tensor:
    rows = [torch.cat([weight.block(r, c) for c in weight.column_tiles()], dim=1) for r in weight.row_tiles()]
    return torch.cat(rows)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# --- the list ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("custom", "torchvision")])
def test_every_config_is_a_network_with_weights_or_a_way_to_them(name):
    values = node(name)
    net, channels, size = skeleton(values)
    digits = ("cnn_masked", "cnn_masked_standin", "cnn_unmasked")
    small = {"vgg_small": (10, 3, (32, 32)), "cnn_mnist": (10, 1, (28, 28))} | dict.fromkeys(digits, (10, 1, (56, 28)))
    small |= dict.fromkeys(("cifar_resnet20", "cifar_resnet32", "cifar_resnet56", "vgg_cifar10"), (10, 3, (32, 32)))
    small["cifar_resnet8"] = (10, 3, (16, 16))
    assert (_num_classes(net), channels, size) == small.get(name, (1000, 3, (224, 224)))
    if name.endswith("_random"):
        assert values["init"] == "truncated_normal"
        assert values["std"] == 0.1
        assert values["preprocess"] == "mean_subtraction"
    else:
        assert values["init"] is None


@pytest.mark.parametrize("name", ["vgg16_masked", "cnn_masked"])
def test_a_network_without_weights_is_never_silently_random(name):
    with pytest.raises(UserError, match=r"model\.weights=FILE .* model\.init="):
        build_model(node(name))


def test_the_three_layer_networks_take_any_size():
    net = CNN3(num_filters=2, num_classes=5, input_size=(20, 12), pool="2x2", in_channels=1)
    assert net(torch.zeros(3, 1, 20, 12)).shape == (3, 5)
    assert CNN3(num_filters=2, num_classes=5, input_size=15, pool="9x9", stride=1)(torch.zeros(1, 3, 15, 15)).shape == (
        1,
        5,
    )
    assert FCN3(hidden=6, num_classes=5, input_size=(4, 7))(torch.zeros(2, 3, 4, 7)).shape == (2, 5)


@pytest.mark.parametrize("init", ["default", "truncated_normal"])
@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_any_classifier_of_torchvision(arch, init):
    model = build_model(node("torchvision", arch=arch, init=init, weights=None))
    with torch.no_grad():
        logits = model.net(torch.rand(2, model.channels, *model.input_size))
    assert logits.shape == (2, 1000)
    assert logits.isfinite().all()
    assert model.classes == imagenet_classes()
    assert not model.trained
    assert model.class_name(281) == "logit 281"  # logits of random weights have no meaning


@pytest.mark.slow
@pytest.mark.parametrize("init", ["default", "truncated_normal"])
@pytest.mark.parametrize(
    "arch",
    [
        "alexnet",
        "googlenet",
        "inception_v3",
        "densenet121",
        "mobilenet_v3_large",
        "convnext_tiny",
        "vit_b_16",
        "swin_t",
    ],
)
def test_larger_classifiers_of_torchvision(arch, init):
    test_any_classifier_of_torchvision(arch, init)


def test_input_size_and_preprocessing_follow_the_architecture():
    assert skeleton(node("torchvision", arch="inception_v3"))[2] == (299, 299)
    assert skeleton(node("torchvision", arch="resnet18"))[2] == (224, 224)
    assert skeleton(node("torchvision", arch="resnet18", input_size=64))[2] == (64, 64)
    net, _, size = skeleton(node("torchvision", arch="vit_b_32", input_size=64))
    assert (net.image_size, size) == (64, (64, 64))
    with torch.device("meta"):
        assert torchvision_classifier("efficientnet_v2_s").preprocess == "imagenet"
        assert torchvision_classifier("efficientnet_v2_l").preprocess == "symmetric"


def test_a_users_network(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def tiny():\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 5))\n"
        "class Wide(nn.Module):\n"
        "    def __init__(self, width=3):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(2, width)\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)  # modules in the current directory are found
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = build_model(node("custom", _target_="my_networks.tiny", init="default", input_size=8))
    assert model.channels == 1
    assert model.net(torch.zeros(1, 1, 8, 8)).shape == (1, 5)
    assert build_model(node("custom", _target_="my_networks.Wide", width=7, init="normal")).net.fc.out_features == 7
    for values, message in [
        ({"_target_": "my_networks.Tiny"}, "has no Tiny. Did you mean 'tiny'"),
        ({"_target_": "my_networks.tiny", "width": 3}, "takes no parameter model.width. Leave it out: ~model.width"),
        ({"_target_": "my_networks.Wide", "widht": 3}, "Did you mean 'width'"),
        ({"_target_": "my_network.Wide"}, "there is no module my_network"),
        ({"_target_": "Wide"}, "is not a dotted path"),
        ({"_target_": "my_networks.number"}, "is of type int, which cannot be called"),
        ({"_target_": "builtins.dict"}, "made a dict, not a torch.nn.Module"),
    ]:
        with pytest.raises(UserError) as caught:
            build_model(node("custom", init="default", **values))
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cnn3_random", {"num_filters": "many"}, "model.num_filters=many is not of type int"),
        ("cnn3_random", {"num_filters": -1}, "1 or more"),
        ("cnn3_random", {"num_classes": 0}, "model.num_classes=0: give 1 or more"),
        ("cnn3_random", {"pool": "3x3"}, "give 9x9, 2x2 or null"),
        ("cnn3_random", {"input_size": [1, 2, 3]}, "give the side of a square or [height, width]"),
        ("vgg16_random", {"init": "glorot"}, "unknown model.init=glorot"),
        ("vgg16_random", {"trained_up_to": "conv1_1"}, "need trained weights"),
        ("vgg16_masked", {"input_size": 16, "init": "normal"}, "32x32 or more"),
        ("cnn_masked", {"input_size": 16, "init": "normal"}, "24x24 or more"),
        ("torchvision", {"arch": "resnet5"}, "Did you mean 'resnet50'"),
        ("cnn3_random", {"init": "default"}, "layer fc has 12.8 GB of weights, which are generated"),
    ],
)
def test_mistakes_get_one_clear_line(name, changes, message):
    with pytest.raises(UserError) as caught:
        build_model(node(name, **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# --- random weights ---------------------------------------------------------------------------------------------------

_FAN_IN, _FAN_OUT = 5 * 9, 4000 * 9  # of Conv2d(5, 4000, 3), counted as in torch.nn.init
_STDS = {
    "truncated_normal": 0.1 * math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))),
    "normal": 0.1,
    "kaiming_normal": math.sqrt(2 / _FAN_IN),
    "kaiming_uniform": math.sqrt(2 / _FAN_IN),
    "xavier_normal": math.sqrt(2 / (_FAN_IN + _FAN_OUT)),
    "xavier_uniform": math.sqrt(2 / (_FAN_IN + _FAN_OUT)),
}


@pytest.mark.parametrize("init", INITIALISATIONS)
def test_initialisations_have_the_named_distribution(init):
    conv = nn.Conv2d(5, 4000, 3)
    initialise(conv, init, 0.1, seed=3)
    w = conv.weight.detach().double().flatten()
    std = _STDS[init]
    assert w.mean().abs() < 5 * std / math.sqrt(len(w))
    assert w.std().item() == pytest.approx(std, rel=0.01)
    bound = {"truncated_normal": 0.2, "kaiming_uniform": std * math.sqrt(3), "xavier_uniform": std * math.sqrt(3)}.get(
        init
    )
    if bound:
        assert 0.999 * bound < w.abs().max() <= bound * (1 + 1e-6)
    kurtosis = (w**4).mean() / (w**2).mean() ** 2
    expected = {"truncated_normal": 2.363, "kaiming_uniform": 1.8, "xavier_uniform": 1.8}.get(init, 3.0)
    assert kurtosis.item() == pytest.approx(expected, abs=0.08)
    assert not conv.bias.any()
    reference = {name: getattr(nn.init, f"{name}_", None) for name in INITIALISATIONS}[init]
    if reference and init not in ("normal", "truncated_normal"):
        options = {"nonlinearity": "relu"} if "kaiming" in init else {}
        assert reference(torch.empty_like(conv.weight), **options).std().item() == pytest.approx(std, rel=0.01)


def test_biases_are_zero_norms_the_identity_and_scales_stay():
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.LayerNorm((3, 4, 4)), nn.PReLU(), nn.MultiheadAttention(4, 2)
    )
    net.scale = nn.Parameter(torch.full((3, 1, 1), 1e-6))
    net[1].running_var.fill_(7)
    for parameter in net[:3].parameters():
        parameter.data.fill_(9)
    initialise(net, "normal", 0.1, seed=0)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(net[1].eval()(x), x, rtol=1e-4, atol=1e-5)
    assert net[2].weight.eq(1).all()
    assert net[3].weight.item() == 0.25
    assert net.scale.eq(1e-6).all()
    assert not net[0].bias.any()
    assert not net[4].in_proj_bias.any()
    assert 0.05 < net[4].in_proj_weight.std() < 0.2


def test_the_same_seed_gives_the_same_weights_for_any_number_of_threads():
    threads = torch.get_num_threads()
    try:
        nets = []
        for count in (1, 3):
            torch.set_num_threads(count)
            nets.append(build_model(node("fcn3_random", hidden=300, input_size=[30, 40], num_classes=7), seed=5).net)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert same(*nets)
    assert not same(
        nets[0], build_model(node("fcn3_random", hidden=300, input_size=[30, 40], num_classes=7), seed=6).net
    )


def test_weights_do_not_depend_on_the_state_or_layout_of_torch():
    a, b = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3).double().to(memory_format=torch.channels_last)
    torch.manual_seed(1)
    initialise(a, "normal", 0.1, seed=2)
    before = torch.get_rng_state()
    initialise(b, "normal", 0.1, seed=2)
    assert torch.equal(a.weight.double(), b.weight)
    build_model(node("cnn3_random", init="default", **SMALL_CNN), seed=4)
    assert torch.equal(before, torch.get_rng_state())


def test_weights_of_a_seed_are_fixed_for_good():
    # numpy guarantees the stream of SFC64; these values were recorded once.
    first = RandomWeight("kaiming_uniform", 0.1, 0, "conv1.weight", 2, 3, 2)
    expected = torch.tensor([-1.1321061, -0.7761806, 0.4681889, 1.01837, 1.2804718, 1.3273798])
    torch.testing.assert_close(generate(first).flatten(), expected, rtol=1e-6, atol=0)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 90), columns=st.integers(1, 70_000), order=st.randoms(use_true_random=False))
def test_blocks_tile_the_matrix_in_any_order(rows, columns, order):
    weight = RandomWeight("kaiming_uniform", 0.1, 1, "w", rows, columns, rows)
    tiles = [(r, c) for r in weight.row_tiles() for c in weight.column_tiles()]
    order.shuffle(tiles)
    matrix = torch.full((rows, columns), math.nan)
    for r, c in tiles:
        assert matrix[r, c].isnan().all()  # no element is covered twice
        block = weight.block(r, c)
        assert block.numel() <= BLOCK
        matrix[r, c] = block
    assert torch.equal(matrix, generate(weight))  # no element is left out


def test_blocks_weights_and_seeds_are_independent():
    def row(seed=0, name="w", rows=slice(0, 8), columns=slice(0, BLOCK // 8)):
        return RandomWeight("normal", 1, seed, name, 16, BLOCK, 16).block(rows, columns).flatten()

    others = [row(seed=1), row(name="v"), row(rows=slice(8, 16)), row(columns=slice(BLOCK // 8, BLOCK // 4))]
    for other in others:
        assert torch.corrcoef(torch.stack([row(), other]))[0, 1].abs() < 5 / math.sqrt(BLOCK)


def test_an_error_in_a_thread_propagates_and_the_thread_count_is_restored():
    threads = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        parallel(lambda i: 1 // i, [1, 0, 2])
    assert torch.get_num_threads() == threads


# --- streamed layers --------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    batch=st.integers(1, 3),
    inputs=st.sampled_from([7, 2_000, 40_000]),
    outputs=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_streamed_layer_is_the_dense_layer_with_the_same_seed(batch, inputs, outputs, dtype):
    streamed, dense = nn.Sequential(StreamedLinear(inputs, outputs)), nn.Sequential(nn.Linear(inputs, outputs))
    for net in (streamed, dense):
        initialise(net, "truncated_normal", 0.1, seed=8)
    generator = torch.Generator().manual_seed(inputs + outputs)
    x = torch.randn(batch, inputs, dtype=dtype, generator=generator, requires_grad=True)
    R = torch.randn(batch, outputs, dtype=dtype, generator=generator) * (torch.arange(outputs) % 3 == 0)
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    y, y_dense = streamed(x), dense.to(dtype)(x)
    torch.testing.assert_close(y, y_dense, **tolerance)
    torch.testing.assert_close(torch.autograd.grad(y, x, R)[0], torch.autograd.grad(y_dense, x, R)[0], **tolerance)


def test_the_gradient_of_one_logit_generates_the_blocks_of_its_row_only(monkeypatch):
    layer = nn.Sequential(StreamedLinear(40_000, 64))
    initialise(layer, "normal", 0.1, seed=0)
    x = torch.randn(2, 40_000, requires_grad=True)
    y = layer(x)
    rows = []
    block = RandomWeight.block
    monkeypatch.setattr(RandomWeight, "block", lambda self, r, c: (rows.append(r), block(self, r, c))[1])
    torch.autograd.grad(y[:, 17].sum(), x)
    assert set(map(str, rows)) == {str(r) for r in layer[0].source.row_tiles() if r.start <= 17 < r.stop}


def test_a_large_network_streams_and_a_small_one_does_not():
    assert isinstance(skeleton(node("cnn3_random"))[0].fc, StreamedLinear)
    assert isinstance(skeleton(node("fcn3_random", hidden=70_000, input_size=64))[0].fc1, StreamedLinear)
    assert isinstance(skeleton(node("fcn3_random"))[0].fc1, nn.Linear)
    assert isinstance(skeleton(node("cnn3_random", num_filters=16))[0].fc, nn.Linear)


@pytest.mark.slow
def test_the_real_vgg_builds_from_any_number_of_threads():
    a, b = build_model(node("vgg16_random")).net, build_model(node("vgg16_random")).net
    assert same(a, b)
    assert a.features[28].weight.std().item() == pytest.approx(0.088, rel=0.01)
