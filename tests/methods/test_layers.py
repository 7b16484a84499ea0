"""The layer that CAMs and FEM look at: which one it is, activations that are no modules, tokens."""

from collections.abc import Callable

import cams
import networks
import pytest
import torch
import torch.nn.functional as F
from checks import close
from torch import Tensor, nn

from vis.graph.outputs import returning, scoring
from vis.methods import (
    CAM,
    FEM,
    AblationCAM,
    EigenCAM,
    Forward,
    GradCAM,
    GradCAMGradient,
    HiResCAM,
    NotApplicable,
    OptiCAM,
    ScoreCAM,
    Target,
)
from vis.methods.layers import OnFeatureMaps, feature_layer, holds_class_maps
from vis.store.run_folder import load_run

TORCHVISION = {
    "alexnet": "features.11",
    "vgg16": "features.29",
    "vgg11_bn": "features.27",
    "resnet18": "layer4",
    "resnet50": "layer4",
    "resnext50_32x4d": "layer4",
    "wide_resnet50_2": "layer4",
    "densenet121": "features:relu",
    "googlenet": "inception5b",
    "inception_v3": "Mixed_7c",
    "squeezenet1_0": "features",
    "squeezenet1_1": "features",  # that is features.12
    "mobilenet_v2": "features",
    "mobilenet_v3_small": "features",
    "efficientnet_b0": "features",
    "efficientnet_v2_s": "features",
    "convnext_tiny": "features",
    "shufflenet_v2_x1_0": "conv5",
    "mnasnet0_5": "layers",
    "regnet_x_400mf": "trunk_output",
    "regnet_y_400mf": "trunk_output",
    "swin_t": "permute",
    "maxvit_t": "blocks.3",
}


def of_torchvision(arch: str) -> nn.Module:
    from torchvision import models

    options = {"init_weights": False} if arch in ("googlenet", "inception_v3") else {}
    if arch.startswith(("regnet", "maxvit", "swin")):  # their constructors compute
        return models.get_model(arch, weights=None).to("meta").eval()
    with torch.device("meta"):
        return models.get_model(arch, weights=None, **options).eval()


@pytest.mark.parametrize("arch", TORCHVISION)
def test_the_layer_of_torchvisions_networks(arch):
    assert feature_layer(of_torchvision(arch), torch.empty(1, 3, 224, 224, device="meta")) == TORCHVISION[arch]


@pytest.mark.parametrize("network", cams.LAYERS)
def test_the_layer_of_small_networks(network):
    """No pooling, no batch norm behind the ReLU; of a reused ReLU its last call; a ReLU that is no module."""
    found = feature_layer(networks.build(network), networks.images())
    assert found == ("relu:2" if network == "residual" else cams.LAYERS[network])


# --- networks of one's own ---------------------------------------------------------------------------------------------


class Written(nn.Module):
    """Two convolutions, what stands between and behind them in one's own words, two dense layers."""

    def __init__(self, words: Callable[["Written", Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.words = words
        self.conv1, self.conv2, self.norm = (
            nn.Conv2d(2, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
        )
        self.drop, self.fc1, self.fc2 = nn.Dropout(), nn.Linear(width, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.words(self, x))))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


def statement(net: Written, x: Tensor) -> Tensor:
    x = net.conv2(F.relu(net.conv1(x)))
    F.relu(x, inplace=True)  # what it returns is not used
    return x.mean((2, 3))


def twice(net: Written, x: Tensor) -> Tensor:
    x = F.relu(net.conv1(x))
    return F.relu(F.relu(net.conv2(x)) - x.mean()).mean((2, 3))


WRITTEN: dict[str, tuple[Callable[[Written, Tensor], Tensor], int, str]] = {
    "tutorial": (
        lambda n, x: F.max_pool2d(F.relu(n.conv2(F.max_pool2d(F.relu(n.conv1(x)), 2))), 2).view(-1, 36), 36, "conv2:relu",
    ),
    "pooled first": (lambda n, x: F.relu(F.max_pool2d(n.drop(n.conv2(F.relu(n.conv1(x)))), 2)).view(-1, 144), 144, "drop:relu"),
    "a sum": (lambda n, x: F.relu(n.conv2(y := n.conv1(x).relu()) + y).mean((2, 3)), 4, "conv2:relu"),
    "called twice": (lambda n, x: F.relu(n.conv2(F.relu(n.conv2(n.conv1(x).relu())))).mean((2, 3)), 4, "conv2:1:relu"),
    "two activations": (twice, 4, "conv2:relu:1"),
    "in place": (statement, 4, "conv2:relu"),
    "silu": (lambda n, x: F.silu(n.norm(n.conv2(F.silu(n.conv1(x))))).mean((2, 3)), 4, "norm:silu"),
    "norm behind it": (lambda n, x: n.norm(F.relu(n.conv2(n.conv1(x)))).mean((2, 3)), 4, "conv2:relu"),
    "linear end": (lambda n, x: n.norm(n.conv2(F.relu(n.conv1(x)))).mean((2, 3)), 4, "conv1:relu"),
    "linear end, skipped": (lambda n, x: n.norm(n.conv2(y := F.relu(n.conv1(x))) + y).mean((2, 3)), 4, "conv1:relu"),
    "branch": (lambda n, x: n.norm(n.conv1(x) + n.conv2(F.relu(n.conv1(x)))).mean((2, 3)), 4, "norm"),
    "side by side": (
        lambda n, x: n.drop(torch.cat([F.relu(n.conv1(x)), F.relu(n.conv2(n.conv1(x)))], 1)).mean((2, 3)), 8, "conv2:relu",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_the_layer_of_networks_with_functional_activations(name):
    words, width, layer = WRITTEN[name]
    net = networks.randomise(Written(words, width)).double()
    assert feature_layer(net, networks.images()) == layer


class AsModules(Written):
    """Written with modules where it calls functions."""

    def __init__(self, words: Callable[["Written", Tensor], Tensor], width: int) -> None:
        super().__init__(words, width)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()


@pytest.mark.parametrize(
    "method",
    [
        GradCAM(),
        HiResCAM(),
        EigenCAM(),
        ScoreCAM(),
        AblationCAM(),
        OptiCAM(iterations=5, baseline="zero"),
        FEM(),
        GradCAMGradient(),
    ],
)
@pytest.mark.parametrize("spelling", ["function", "method in place", "statement"])
def test_an_activation_without_a_module_is_a_layer_like_others(method, spelling):
    spellings: dict[str, Callable[[Written, Tensor], Tensor]] = {
        "function": lambda n, x: F.relu(n.conv2(F.relu(n.conv1(x)))).mean((2, 3)),
        "method in place": lambda n, x: n.conv2(n.conv1(x).relu_()).relu_().mean((2, 3)),
        "statement": statement,
    }
    net = networks.randomise(Written(spellings[spelling], 4)).double()
    same = AsModules(lambda n, x: n.act2(n.conv2(n.act1(n.conv1(x)))).mean((2, 3)), 4).double().eval()  # type: ignore[attr-defined]  # the network has them
    same.load_state_dict(net.state_dict())
    x = networks.images()
    assert (feature_layer(net, x), feature_layer(same, x)) == ("conv2:relu", "act2")
    assert close(method(net, x, 2), method(same, x, 2))
    assert method(net, x, 2).any()


def test_a_unit_behind_a_functional_activation_is_a_target():
    net, x = networks.randomise(Written(statement, 4)).double(), networks.images()
    conv = GradCAM(layer="conv1:relu")(net, x, Target((2, 5, 5), layer="conv2"))
    active = net.conv2(F.relu(net.conv1(x)))[:, 2, 5, 5] > 0
    assert active.any()
    both = GradCAM(layer="conv1:relu")(net, x, Target((2, 5, 5), layer="conv2:relu"))
    assert close(both[active], conv[active])
    assert not both[~active].any()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("conv1:selu", "layer conv1:selu is not called in the forward pass"),
        ("conv1:relu:9", "conv1:relu:9 is not called in the forward pass, or not that often"),
        ("conv1:loud", "the number of a call or an activation function .*, not 'loud'"),
        ("conv2:relu", "layer conv2:relu: conv2 is called several times, conv2:0:relu is the first"),
    ],
)
def test_a_functional_activation_that_is_not_there(layer, message):
    words, width, _ = WRITTEN["called twice"]
    with pytest.raises(NotApplicable, match=message):
        GradCAM(layer=layer)(networks.randomise(Written(words, width)).double(), networks.images())


def test_an_activation_of_ones_own_counts_as_one():
    """Nobody knows what its autograd.Function does; the ReLU before is not taken for the last activation."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, R):
            return 2 * ctx.saved_tensors[0] * R

    class Activation(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Square.apply(x)

    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), Activation(), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip
    assert feature_layer(net.double().eval(), networks.images()) == "3"


def test_the_rectified_map_of_densenet():
    from torchvision import models

    net = networks.randomise(models.DenseNet(8, (2, 2), 16, num_classes=5)).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with Forward(net, x, ["features", "features:relu"]) as forward:
        raw, rectified = forward.layers["features"].detach(), forward.layers["features:relu"].detach()
        assert raw.min() < 0
        assert torch.equal(rectified, raw.relu())
    w = net.classifier.weight.detach()[1]
    expected = F.interpolate(torch.einsum("v,bvhw->bhw", w, raw.relu()).relu()[:, None], x.shape[2:], mode="bilinear")
    assert close(CAM()(net, x, 1), expected)
    assert close(CAM(layer="features")(net, x, 1), expected)
    assert close(GradCAM()(net, x, 1), expected / raw[0, 0].numel())
    assert torch.equal(FEM(layer="features:relu")(net, x), FEM()(net, x))
    assert FEM()(net, x).min() >= 0


# --- class maps --------------------------------------------------------------------------------------------------------


def body() -> list[nn.Module]:
    return [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 5, 1)]


CLASS_MAPS = {
    "rectified": lambda: nn.Sequential(*body(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "linear": lambda: nn.Sequential(*body(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "maximum": lambda: nn.Sequential(*body(), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Softmax(1)),
    "normalised": lambda: nn.Sequential(*body(), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
}


@pytest.mark.parametrize("name", CLASS_MAPS)
def test_class_maps_are_passed_over(name):
    net, x = networks.randomise(CLASS_MAPS[name]()).double(), networks.images()
    assert feature_layer(net, x) == "1"
    if name != "normalised":
        assert holds_class_maps(net, x, "3")
    assert not holds_class_maps(net, x, "1")


def test_as_many_feature_maps_as_classes_are_no_class_maps():
    """A dense layer reads them."""
    net = (
        nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 5))
        .double()
        .eval()
    )
    assert feature_layer(net, networks.images()) == "1"
    assert not holds_class_maps(net, networks.images(), "1")


def test_a_network_of_class_maps_alone_has_no_feature_maps():
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    with pytest.raises(NotApplicable, match="no feature maps"):
        GradCAM()(net, networks.images())


def test_squeezenets_cams_differ():
    """At the class maps GradCAM, XGradCAM and AblationCAM are one map."""
    from torchvision import models

    net, x = models.squeezenet1_1().double().eval(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    at = {
        layer: [method(layer=layer)(net, x, 7) for method in (GradCAM, AblationCAM)] for layer in (None, "classifier.2")
    }
    assert torch.equal(at[None][0], GradCAM(layer="features.12")(net, x, 7))
    correlations = {
        layer: torch.corrcoef(torch.stack([maps.flatten() for maps in each]))[0, 1].item() for layer, each in at.items()
    }
    assert correlations["classifier.2"] == pytest.approx(1)
    assert correlations[None] < 0.999


def test_a_walled_squeezenet_is_explained_at_the_map_before_its_class_maps(vis_run, weights):
    """Where GradCAM sees through the wall and HiResCAM is blind."""
    wall = ("model=torchvision", "model.arch=squeezenet1_1", f"model.weights={weights / 'squeezenet1_1_imagenet.pt'}")
    methods = ("method=[gradcam,ablationcam,hirescam]", "dataset=samples", "dataset.limit=1", "model.wall.rows=4")
    run = load_run(vis_run("experiment=wall_check", *wall, *methods).folder)
    mu = {row["method"]: row["mu"] for row in run.rows()}
    named = [f"methods.{each}.layer=features.12" for each in ("gradcam", "ablationcam", "hirescam")]
    again = load_run(vis_run("experiment=wall_check", *wall, *methods, *named).folder)
    assert {row["method"]: row["mu"] for row in again.rows()} == mu
    assert run.rows("network")[0]["rows"] == [167, 223]
    assert mu["hirescam"] == 0
    assert mu["gradcam"] > mu["ablationcam"] > 0


# --- tokens ------------------------------------------------------------------------------------------------------------


class Transformer(nn.Module):
    """Patches of 4 x 4, two blocks of attention, a class token or the mean."""

    def __init__(self, class_token: bool) -> None:
        super().__init__()
        self.class_token = class_token
        self.patches = nn.Conv2d(2, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, int(class_token), 8))
        self.norm1, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm2, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        y = self.norm1(tokens)
        tokens = tokens + self.attention(y, y, y, need_weights=False)[0]
        tokens = self.norm(tokens + self.mlp(self.norm2(tokens)))
        return self.head(tokens[:, 0] if self.class_token else tokens.mean(1))


def transformer(class_token: bool) -> tuple[nn.Module, Tensor]:
    net = Transformer(class_token).double().eval()
    return net, torch.randn(2, 2, 12, 16, dtype=torch.float64)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("method", [GradCAM, FEM, ScoreCAM, GradCAMGradient])
def test_tokens_without_a_shape_are_an_error(method, class_token):
    net, x = transformer(class_token)
    with pytest.raises(NotApplicable, match=r"Transformer ends in tokens, not in feature maps .*: give their reshape="):
        method()(net, x)


@pytest.mark.parametrize(("class_token", "layer"), [(True, "norm1"), (False, "norm")])
def test_tokens_become_feature_maps(class_token, layer):
    """With a class token: the last ones that it sees."""
    net, x = transformer(class_token)
    assert GradCAM(reshape=[3, 4]).layers(net, x) == [layer]
    with Forward(net, x, [layer]) as forward:
        tokens = forward.layers[layer]
        (G,) = torch.autograd.grad(forward.logits[:, 2].sum(), tokens, retain_graph=True)
        B, G = (each.detach()[:, int(class_token) :].view(2, 3, 4, 8).permute(0, 3, 1, 2) for each in (tokens, G))
    summed = torch.einsum("bv,bvhw->bhw", G.mean((2, 3)), B)
    expected = F.interpolate(summed.relu()[:, None], (12, 16), mode="bilinear")
    assert expected.any()
    assert close(GradCAM(reshape=[3, 4])(net, x, 2), expected)

    def as_maps(tokens: Tensor) -> Tensor:
        return tokens[:, int(class_token) :].unflatten(1, (3, 4)).permute(0, 3, 1, 2)

    assert close(GradCAM(layer=layer, reshape=as_maps)(net, x, 2), expected)


@pytest.mark.parametrize("reshape", [lambda B: 2 * B, lambda B: (B - 0.1).relu(), lambda B: B.mean(1, keepdim=True)])
def test_a_reshape_that_computes_is_an_error(reshape):
    with pytest.raises(NotApplicable, match="reshape computes with the values of layer 3: let it only move them"):
        HiResCAM("3", reshape=reshape)(networks.build("vgg_like"), networks.images(), 2)


def test_ablation_of_tokens_leaves_the_class_token():
    net, x = transformer(True)
    with Forward(net, x, ["norm1"]) as forward:
        y, B = (
            forward.logits[:, 2].detach(),
            forward.layers["norm1"].detach()[:, 1:].view(2, 3, 4, 8).permute(0, 3, 1, 2),
        )
    summed = torch.zeros_like(B[:, 0])
    for v in range(8):

        def without(module: nn.Module, inputs: object, tokens: Tensor, v: int = v) -> Tensor:
            rest = torch.ones_like(tokens)
            rest[:, 1:, v] = 0
            return tokens * rest

        handle = net.norm1.register_forward_hook(without)
        summed += ((y - net(x)[:, 2].detach()) / y)[:, None, None] * B[:, v]
        handle.remove()
    expected = F.interpolate(summed.relu()[:, None], (12, 16), mode="bilinear")
    assert close(AblationCAM(reshape=[3, 4])(net, x, 2), expected)


@pytest.mark.parametrize("method", [EigenCAM, ScoreCAM, HiResCAM, FEM, OptiCAM, GradCAMGradient])
def test_every_cam_takes_tokens(method):
    net, x = transformer(True)
    maps = method(reshape=[3, 4])(net, x, 2, lambda pixels: pixels)
    assert maps.shape[2:] == x.shape[2:]
    assert maps.isfinite().all()
    assert maps.any()


def test_maps_with_their_channels_last():
    """As of Swin: [B, h, w, D]."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.mlp, self.head = (
                nn.Conv2d(2, 6, 4, 4),
                nn.LayerNorm(6),
                nn.Linear(6, 6),
                nn.Linear(6, 5),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(F.gelu(self.mlp(self.conv(x).permute(0, 2, 3, 1)))).mean((1, 2)))

    net, x = Last().double().eval(), torch.randn(2, 2, 12, 16, dtype=torch.float64)
    with pytest.raises(NotApplicable, match=r"ends in tokens, .* reshape=\[3, 4\]"):
        GradCAM()(net, x)
    method = GradCAM(reshape=[3, 4])
    assert method.layers(net, x) == ["norm"]
    with Forward(net, x, ["norm"]) as forward:
        B = forward.layers["norm"].detach().permute(0, 3, 1, 2)
    summed = torch.einsum("v,bvhw->bhw", net.head.weight[2].detach() / 12, B)
    assert close(method(net, x, 2), F.interpolate(summed.relu()[:, None], (12, 16), mode="bilinear"))


def test_tokens_of_other_sizes_are_an_error():
    net, x = transformer(True)
    with pytest.raises(NotApplicable, match=r"no layer with tokens \[B, 20, D\], .* as reshape=\[4, 5\] says"):
        GradCAM(reshape=[4, 5])(net, x)
    with pytest.raises(NotApplicable, match=r"reshape=\[4, 5\] is for tokens .* layer norm1 gives \[2, 13, 8\]"):
        GradCAM(layer="norm1", reshape=[4, 5])(net, x)
    with pytest.raises(NotApplicable, match=r"layer norm1 gives .* tokens take a reshape="):
        GradCAM(layer="norm1")(net, x)


@pytest.mark.parametrize("arch", ["vit_b_16", "vit_b_32"])
def test_torchvisions_transformers(arch):
    net, x = of_torchvision(arch), torch.empty(1, 3, 224, 224, device="meta")
    side = 14 if arch == "vit_b_16" else 7
    with pytest.raises(NotApplicable, match=rf"ends in tokens, .* reshape=\[{side}, {side}\]"):
        feature_layer(net, x)
    assert feature_layer(net, x, reshape=[side, side]) == "encoder.layers.encoder_layer_11.ln_1"


def test_every_method_on_feature_maps_takes_layer_and_reshape():
    def below(class_: type) -> set[type]:
        return {class_}.union(*map(below, class_.__subclasses__()))

    own = [each for each in below(OnFeatureMaps) if each.__module__.startswith("vis.") and not each.__abstractmethods__]
    assert len(own) == 12
    for each in own:
        method = each(layer="norm1", reshape=[3, 4])
        assert (method.layer, method.reshape) == ("norm1", (3, 4))


class SecondHead(nn.Module):
    """A map of its own beside the logits, and a gate of one channel before them."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.gated, self.body, self.side, self.head = gated, nn.Conv2d(2, 6, 3), nn.Conv2d(6, 1, 1), nn.Linear(6, 5)

    def forward(self, x):
        y = self.body(x).relu()
        side = self.side(y).sigmoid()
        logits = self.head((y * side if self.gated else y).mean((2, 3)))
        return logits if self.gated else {"map": side, "logits": logits}


@pytest.mark.parametrize("gated", [False, True])
def test_the_layer_is_one_that_everything_behind_comes_from(gated):
    net = SecondHead(gated).double()
    net = net if gated else returning(net, "logits")
    assert feature_layer(net, networks.images()) == "body:relu"
    assert GradCAM()(net, networks.images(), 1).isfinite().all()


def test_layers_that_were_added_since_count():
    body, x = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2)), networks.images()
    net = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).double()
    assert feature_layer(net, x) == "0.1"
    body.extend(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2)).double())
    assert feature_layer(net, x) == "0.4"


class NormalisesInPlace(nn.Module):
    """Takes no empty batch: `view` cannot infer a size from it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.pool, self.fc = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Linear(100, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv(x.sub_(0.5).div_(0.25))))
        return self.fc(x.view(x.size(0), -1))


@pytest.mark.parametrize("method", [EigenCAM(), GradCAM(), AblationCAM(), FEM()], ids=repr)
def test_a_network_that_changes_its_images_in_place_has_the_same_layer_and_leaves_them(method):
    torch.manual_seed(0)
    net, x = NormalisesInPlace().double().eval(), networks.images()
    before = x.clone()
    maps = method(net, x)
    assert torch.equal(x, before)
    plain = nn.Sequential(net.conv, net.relu, net.pool, nn.Flatten(), net.fc)
    assert (feature_layer(net, x), feature_layer(plain, x)) == ("relu", "1")
    assert close(maps, method(plain, (x - 0.5) / 0.25))


def test_a_target_function_is_no_layer_of_the_network():
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    weights = torch.randn(1, 5, dtype=torch.float64)
    contrast = scoring(net, lambda output: nn.functional.linear(output, weights)[:, 0])
    assert feature_layer(contrast, networks.images()) == feature_layer(net, networks.images()) == "1"


def test_a_target_that_does_not_depend_on_the_layer_is_an_error():
    net = returning(SecondHead(False).double(), "logits")
    with pytest.raises(NotApplicable, match="does not depend on this layer"):
        GradCAM(layer="side")(net, networks.images(), 1)
