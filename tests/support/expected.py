"""Expected values of the literature and of peers: small networks whose maps follow by hand.

    name, network, image, target, source: {method: the map, from its first channel to its last}

A vector x is an image with a channel for each value, [1, n, 1, 1]. Methods are in short: `METHODS`; @ names a CAM's layer,
x0 is the reference of integrated gradients and DeepLIFT and the fill of occlusion. The networks are captum's, whose tests
(captum: tests/attr, BSD licence) have many of these numbers, or are written here after the paper that has the example.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp, tanh
from typing import Any

import torch
import torch.nn.functional as F
from captum.testing.helpers import basic_models as captums
from torch import Tensor, nn

from vis import methods as m

Numbers = Sequence[float] | Tensor


def reference(x0: Sequence[float]) -> dict[str, Any]:
    """The parameters that make x0, a number for all or one for each channel, the reference of a method."""
    return {"baseline": torch.tensor(x0, dtype=torch.float64).view(-1, 1, 1)}


def covered(x0: Sequence[float]) -> dict[str, Any]:
    """The parameters that cover windows with x0."""
    return {"fill": torch.tensor(x0, dtype=torch.float64).view(-1, 1, 1)}


METHODS: dict[str, Callable[[Sequence[float]], m.Method]] = {
    "saliency": lambda x0: m.Saliency(),
    "deconvnet": lambda x0: m.DeconvNet(),
    "gbp": lambda x0: m.GuidedBackprop(),
    "smoothgrad": lambda x0: m.SmoothGrad(noise_level=0.1),
    "ig": lambda x0: m.IntegratedGradients(**reference(x0)),
    "rescale": lambda x0: m.DeepLIFT("rescale", **reference(x0)),
    "reveal_cancel": lambda x0: m.DeepLIFT("reveal_cancel", **reference(x0)),
    "occlusion": lambda x0: m.Occlusion(window=1, per_channel=True, **covered(x0)),
    "occlusion_2x2": lambda x0: m.Occlusion(window=2, stride=2, per_channel=True, **covered(x0)),
    "occlusion_4x4": lambda x0: m.Occlusion(window=4, per_channel=True, **covered(x0)),
    "lrp_0": lambda x0: m.LRP(rule="zero"),
    "lrp_0_no_bias": lambda x0: m.LRP(rule="zero", bias=False),
    "lrp_epsilon_7": lambda x0: m.LRP(rule="epsilon", epsilon=7.0),
    "lrp_epsilon_12": lambda x0: m.LRP(rule="epsilon", epsilon=12.0),
    "lrp_gamma_1": lambda x0: m.LRP(rule="gamma", gamma=1.0),
    "lrp_gamma_1/4": lambda x0: m.LRP(rule="gamma", gamma=0.25),
    "lrp_alpha1_beta0": lambda x0: m.LRP(rule="alpha_beta", alpha=1.0),
    "lrp_alpha2_beta1": lambda x0: m.LRP(rule="alpha_beta", alpha=2.0),
    "lrp_zplus": lambda x0: m.LRP(rule="zplus"),
}
CAMS: dict[str, Callable[[str], m.Method]] = {
    "cam": m.CAM,
    "gradcam": m.GradCAM,
    "gradcam_pp": m.GradCAMPlusPlus,
    "xgradcam": m.XGradCAM,
    "hirescam": m.HiResCAM,
    "layercam": m.LayerCAM,
    "scorecam": m.ScoreCAM,
    "ablationcam": m.AblationCAM,
    "guided_gradcam": m.GuidedGradCAM,
    "fem": lambda layer: m.FEM(layer=layer),
    "fem_K0": lambda layer: m.FEM(K=0.0, layer=layer),
}


@dataclass(frozen=True)
class Value:
    """A map that is known. alone: the methods that captum does not have for this network."""

    name: str
    network: Callable[[], nn.Module]
    image: Tensor
    target: int
    x0: Sequence[float]
    source: str
    method: str
    expected: Tensor
    alone: Sequence[str]

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return self.network().double().eval()

    def explained(self) -> Tensor:
        method, _, layer = self.method.partition("@")
        own = CAMS[method](layer) if layer else METHODS[method](self.x0)
        return own(self.build(), self.image, self.target)


VALUES: list[Value] = []
FUNCTIONS = (
    "deconvnet",
    "gbp",
    "rescale",
    "lrp_0",
    "lrp_alpha1_beta0",
)  # captum's rules are hooks on modules, used once
ADDITION = (
    "lrp_0",
)  # captum counts the relevance of what is added twice, as in its lrp_multi_inputs, which is left out


def expect(
    name: str,
    network: Callable[[], nn.Module],
    image: Tensor,
    source: str,
    found: Mapping[str, Numbers],
    target: int = 0,
    x0: Sequence[float] = (0.0,),
    alone: Sequence[str] = (),
) -> None:
    for method, numbers in found.items():
        expected = torch.as_tensor(numbers, dtype=torch.float64).reshape(1, -1, *image.shape[2:])
        VALUES.append(Value(name, network, image, target, x0, source, method, expected, alone))


class OfImages(nn.Module):
    """A network of vectors as one of images: `logits(net, x)` [B, K]."""

    def __init__(self, net: nn.Module, logits: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.net, x)


def of_vectors(net: Callable[[], nn.Module], widths: Sequence[int] = ()) -> Callable[[], nn.Module]:
    """A network of one vector, or of several of these widths."""
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]

    def logits(net: Any, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return net(*(flat[:, end - width : end] for width, end in zip(widths, ends, strict=True)))

    return lambda: OfImages(net(), logits if widths else lambda net, x: net(x.flatten(1)))


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


def dense(*weights: Sequence[float], bias: Sequence[float] = ()) -> nn.Linear:
    layer = nn.Linear(len(weights[0]), len(weights), bias=bool(bias))
    layer.weight.data = torch.tensor(weights)
    if bias:
        layer.bias.data = torch.tensor(bias)
    return layer


def box(row: int, column: int, side: int = 4) -> Tensor:
    """1 in the 3x3 window whose corner is there."""
    mask = torch.zeros(side, side, dtype=torch.float64)
    mask[row : row + 3, column : column + 3] = 1
    return mask


def upsampled(map_: Sequence[Sequence[float]]) -> Tensor:
    """2x2 to 4x4, bilinear between the centres of the pixels."""
    U = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], dtype=torch.float64)
    return U @ torch.tensor(map_, dtype=torch.float64) @ U.T


# --- captum's BasicModel, 1 - ReLU(1 - x) = min(x, 1); the output is the sum. Sensitivity, Sundararajan et al. 2017, section 2.1

least = partial(OfImages, captums.BasicModel(), lambda net, x: net(x.flatten(1)).sum(1, keepdim=True))
SENSITIVITY = "captum test_saliency, test_gradient, test_feature_ablation; Sundararajan et al. 2017, section 2.1"
expect(
    "min(x,1)",
    least,
    vector(1, 2, 3, 0, -1, 7),
    SENSITIVITY,
    {
        "saliency": [0, 0, 0, 1, 1, 0],
        "rescale": [1, 1, 1, 0, -1, 1],  # a function of each value alone: its difference
        "occlusion": [1, 1, 1, 0, -1, 1],
        "lrp_0": [0, 0, 0, 0, -1, 0],  # the gradient times the input
        "deconvnet": [0] * 6,  # -1 arrives at the ReLU
        "gbp": [0] * 6,
    },
    alone=FUNCTIONS,
)
expect("min(x,1) at 5", least, vector(5), "captum test_gradient", {"saliency": [0]})
expect("min(x,1) at -3", least, vector(-3), "captum test_gradient", {"saliency": [1], "occlusion": [-3]})
expect("min(x,1), kink half-way", least, vector(2, 0.5, -3), SENSITIVITY, {"ig": [1, 0.5, -3]})  # the kink is half-way

# --- two networks that compute the same: Sundararajan et al. 2017, Figure 8; captum's BasicModel2 and BasicModel3 -------

two = partial(of_vectors, widths=(1, 1))
INVARIANCE = "captum test_integrated_gradients_basic; Sundararajan et al. 2017, Figure 8"
# relu(x1 - 1 - x2) for x > 0. On the way t x it is 2 t - 1, alive from t = 1/2. DeepLIFT: from -1 to 1 gives 1, m = 1/2.
# RevealCancel: dy = 3 - 1 from -1: dz+ = (2 - 0 + 1 - 0)/2, dz- = (0 - 0 + 1 - 2)/2.
expect(
    "relu(x1-1-x2)",
    two(captums.BasicModel2),
    vector(3, 1),
    INVARIANCE,
    {
        "saliency": [1, -1],
        "deconvnet": [1, 0],  # -1 arrives at relu(x2)
        "gbp": [1, 0],
        "ig": [1.5, -0.5],
        "rescale": [1.5, -0.5],
        "reveal_cancel": [1.5, -0.5],
        "lrp_0": [3, -1],
        "occlusion": [1, -1],
    },
    alone=FUNCTIONS,
)
# relu(relu(x1 - 1) - x2): the same output. Inner slope 2/3 (from -1 to 2 gives 2); outer: from 0 to 1 gives 1, m = 1.
# RevealCancel: dy = 2 - 1 from 0: dz+ = (2 + 1)/2 by 2, dz- = (0 + 1 - 2)/2 by -1.
expect(
    "relu(relu(x1-1)-x2)",
    two(captums.BasicModel3),
    vector(3, 1),
    INVARIANCE + "; captum test_occlusion",
    {
        "saliency": [1, -1],
        "deconvnet": [1, 0],
        "gbp": [1, 0],
        "ig": [1.5, -0.5],
        "rescale": [2, -1],  # not that of the other network
        "reveal_cancel": [1.5, -0.5],
        "lrp_0": [3, -1],
        "occlusion": [1, -1],
    },
    alone=FUNCTIONS,
)
expect(
    "relu(relu(x1-1)-x2), dead",
    two(captums.BasicModel3),
    vector(-10, -5),
    "captum test_occlusion",
    {"saliency": [0, 0], "gbp": [0, 0], "deconvnet": [1, 0], "ig": [0, 0], "rescale": [0, 0], "occlusion": [0, 0]},
    alone=FUNCTIONS,
)


def with_arguments(net: nn.Module, *arguments: Any) -> Callable[[], nn.Module]:
    return lambda: OfImages(net, lambda net, x: net(x[:, :1, 0, 0], x[:, 1:, 0, 0], *arguments)[:, None])


# relu(relu(x1 - 1) - x2 / 2): on the way 2 t - 1 again
expect(
    "relu(relu(x1-1)-x2/2)",
    with_arguments(captums.BasicModel4_MultiArgs(), 2.0),
    vector(3, 2),
    "captum test_integrated_gradients_basic: multi-argument",
    {"saliency": [1, -0.5], "ig": [1.5, -0.5], "rescale": [2, -1], "occlusion": [1, -1]},
    alone=FUNCTIONS,
)
# relu(2 relu(x1 - 1) - 3 x2): DeepLIFT 3 * 2/3 * 2 and -3
expect(
    "relu(2relu(x1-1)-3x2)",
    with_arguments(captums.BasicModel5_MultiArgs(), [2, 3]),
    vector(3, 1),
    "captum test_integrated_gradients_basic: multi-argument",
    {"saliency": [2, -3], "rescale": [4, -3], "occlusion": [1, -3]},
    alone=FUNCTIONS,
)

# --- captum's BasicModel_MultiLayer: relu(s - 10) + 3 relu(s + 1) - 1 (+ 1: class 1), s the sum of three values ---------

multilayer = of_vectors(captums.BasicModel_MultiLayer)
MULTILAYER = "captum: BasicModel_MultiLayer in test_gradient, test_feature_ablation, test_occlusion, test_lrp"
expect("multilayer, s=17", multilayer, vector(5, -11, 23), MULTILAYER, {"saliency": [4, 4, 4], "gbp": [4, 4, 4]})
expect(
    "multilayer, s=8",
    multilayer,
    vector(5, 2, 1),
    MULTILAYER,
    {"saliency": [3, 3, 3], "gbp": [3, 3, 3], "deconvnet": [4, 4, 4]},  # through the dead neuron
    target=1,
)
# s = 6: neurons 0, 7, 7, 7, the logit is 20 = 21 - 1
expect(
    "multilayer, s=6",
    multilayer,
    vector(1, 2, 3),
    MULTILAYER,
    {
        "lrp_0": [3, 6, 9],
        "lrp_0_no_bias": [10 / 3, 20 / 3, 10],  # 20 shared out as 1 : 2 : 3
        "lrp_zplus": [10 / 3, 20 / 3, 10],
        "lrp_alpha1_beta0": [20 / 7, 40 / 7, 60 / 7],  # a seventh goes to the bias 1
        "lrp_gamma_1": [120 / 41, 240 / 41, 360 / 41],  # 14/41 of 20 to a neuron, 2 x/14 of it to a value
        "lrp_epsilon_7": [x / (x + 7) * x * 10 / 9 for x in (1, 2, 3)],  # 7/27 of 20, x/14 of it, x/(x + 7) of that
    },
)
expect("multilayer, s=20", multilayer, vector(2, 10, 8), MULTILAYER, {"ig": [7, 35, 28]})  # gradient 3, half-way 4
expect(
    "multilayer, s=100",
    multilayer,
    vector(20, 50, 30),
    MULTILAYER,
    {
        "rescale": [78, 195, 117],  # the first neuron: from -10 to 90 gives 90, m = .9; 3.9 in all
        "reveal_cancel": [78, 195, 117],  # nothing negative
        "occlusion": [80, 200, 120],
        "smoothgrad": [4, 4, 4],  # noise of a tenth of the range never comes near s = 10
    },
)
expect("multilayer, covered by 4", multilayer, vector(20, 50, 30), MULTILAYER, {"occlusion": [64, 184, 104]}, x0=(4.0,))
expect("multilayer, s=15", multilayer, vector(2, 10, 3), MULTILAYER, {"occlusion": [8, 35, 12]})
expect("multilayer, s from 60", multilayer, vector(20, 50, 30), MULTILAYER, {"ig": [40, 120, 0]}, x0=(10.0, 20.0, 30.0))
# RevealCancel, neurons from -10 and from 1 by +50 - 5: dz+ = (40 + 35)/2 and (50 + 46)/2, dz- = (0 - 5)/2 and (-1 - 5)/2
expect(
    "multilayer, s=45",
    multilayer,
    vector(20, -5, 30),
    "ayyar2021, Eq. 23-25",
    {"reveal_cancel": [20 * 3.63, -5 * 2.3, 30 * 3.63]},
)
expect(
    "three inputs",
    of_vectors(lambda: OfImages(captums.BasicModel_MultiLayer_MultiInput(), lambda net, x: net(*x.chunk(3, 1), 1))),
    vector(20, 50, 30, 0, 100, 0, 2, 10, 3),
    "captum test_feature_ablation, test_occlusion",
    {"saliency": [4] * 9, "occlusion": [80, 200, 120, 0, 400, 0, 8, 40, 12]},
)

# --- captum's networks for DeepLIFT -----------------------------------------------------------------------------------

# 2 relu(x1) + 2 relu(x2 - 1.5): the second from 0 to .5, by 2
expect(
    "2relu(x1)+2relu(x2-1.5)",
    two(captums.ReLUDeepLiftModel),
    vector(1, 2),
    "captum test_deeplift_basic",
    {"rescale": [2, 1], "saliency": [2, 2], "occlusion": [2, 1], "deconvnet": [2, 2], "gbp": [2, 2]},
)
separate = [2 * tanh(-1), 2 * (tanh(-3.5) - tanh(-1.5))]  # a function of each value alone: its difference
expect(
    "2tanh(x1)+2tanh(x2-1.5)",
    two(captums.TanhDeepLiftModel),
    vector(-1, -2),
    "captum test_deeplift_basic",
    {"rescale": separate, "ig": separate, "occlusion": separate},
)
# relu(3 x1 + x2) + relu(2 x4 + 3 x5): -29 and 15
relu_linear = of_vectors(captums.ReLULinearModel, (3, 3))
expect(
    "relu linear",
    relu_linear,
    vector(-10, 1, -5, 3, 3, 1),
    "captum test_deeplift_basic",
    {
        "saliency": [0, 0, 0, 2, 3, 0],
        "gbp": [0, 0, 0, 2, 3, 0],
        "deconvnet": [3, 1, 0, 2, 3, 0],
        "ig": [0, 0, 0, 6, 9, 0],
        "rescale": [0, 0, 0, 6, 9, 0],
        "lrp_0": [0, 0, 0, 6, 9, 0],
        "lrp_alpha1_beta0": [0, 0, 0, 6, 9, 0],
        "occlusion": [-1, 0, 0, 6, 9, 0],
    },
)
near = [0, 0, 0, 2 * 2.9999, 3 * 2.9999, 0]
expect(
    "relu linear, from 1e-4",
    relu_linear,
    vector(-10, 1, -5, 3, 3, 1),
    "captum test_deeplift_basic",
    {"rescale": near, "ig": near},
    x0=(0.0, 0.0, 0.0, 1e-4, 1e-4, 1e-4),
)
expect(
    "relu(3x1+x2), dead",
    of_vectors(lambda: nn.Sequential(dense([3.0, 1.0]), nn.ReLU())),
    vector(-10, 1),
    "ayyar2021, Eq. 23-25",
    {"saliency": [0, 0], "deconvnet": [3, 1], "gbp": [0, 0], "rescale": [0, 0],
     "reveal_cancel": [-0.5, 0.5]},  # dy = 1 - 30 from 0: dz+ = (1 + 0)/2, dz- = (0 - 1)/2
)  # fmt: skip
largest = of_vectors(captums.LinearMaxPoolLinearModel)
for x0, found in {(1.0, 2.0, 3.0, 9.0): [0, 0, 0, -8], (4.0, 8.0, 6.0, 7.0): [0, -7, 0, 0]}.items():
    expect(
        f"max of 4 ones, from {x0}",
        largest,
        vector(1, 1, 1, 1),
        "captum test_deeplift_basic",
        {"rescale": found},
        x0=x0,
    )

# --- examples of DeepLIFT's paper -------------------------------------------------------------------------------------


class Least(nn.Module):
    """min(x1, x2) = x1 - relu(x1 - x2)."""

    def __init__(self) -> None:
        super().__init__()
        self.difference = dense([1.0, -1.0])
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return x[:, :1] - self.relu(self.difference(x))


LEAST = "Shrikumar et al. 2017, section 3.5.3: min(x1, x2)"
expect(
    "min(x1,x2)",
    Least,
    vector(5, 2),
    LEAST,
    {
        "saliency": [0, 1],
        "rescale": [0, 2],
        "reveal_cancel": [1, 1],
        "ig": [0, 2],
        "lrp_0": [0, 2],
        "occlusion": [2, 2],
    },
    alone=ADDITION,
)
expect(
    "min(x1,x2), x1<x2",
    Least,
    vector(1, 3),
    LEAST,
    {"saliency": [1, 0], "rescale": [1, 0], "reveal_cancel": [0.5, 0.5]},
)
expect(
    "1-relu(1-x1-x2)",
    of_vectors(lambda: nn.Sequential(dense([-1.0, -1.0], bias=[1.0]), nn.ReLU(), dense([-1.0], bias=[1.0]))),
    vector(1, 1),
    "Shrikumar et al. 2017, Figure 1: saturation",
    {"saliency": [0, 0], "rescale": [0.5, 0.5], "reveal_cancel": [0.5, 0.5], "ig": [0.5, 0.5], "occlusion": [0, 0]},
)
expect(
    "relu(x-10)",
    of_vectors(lambda: nn.Sequential(dense([1.0], bias=[-10.0]), nn.ReLU())),
    vector(12),
    "Shrikumar et al. 2017, Figure 2: the gradient times the input jumps from 0 to 10",
    {"saliency": [1], "lrp_0": [12], "lrp_0_no_bias": [2], "rescale": [2], "reveal_cancel": [2], "occlusion": [2]},
)

# --- captum's SimpleLRPModel: three neurons 2 (x1 + x2 + x3), the output three times their sum ----------------------------

simple = of_vectors(partial(captums.SimpleLRPModel, inplace=False))
SIMPLE = "captum: SimpleLRPModel in test_lrp, test_layer_lrp"
expect(
    "simple",
    simple,
    vector(1, 2, 3),
    SIMPLE,
    {
        "lrp_0": [18, 36, 54],
        "lrp_epsilon_12": [8.1, 16.2, 24.3],  # 36/120 of 108 to a neuron, 2 x/24 of it to a value
        "lrp_gamma_1": [18, 36, 54],
        "lrp_alpha1_beta0": [18, 36, 54],
        "lrp_zplus": [18, 36, 54],
        "lrp_alpha2_beta1": [72, 144, 216],  # twice in each layer: nothing negative takes its part
        "saliency": [18, 18, 18],
        "ig": [18, 36, 54],
        "rescale": [18, 36, 54],
        "occlusion": [18, 36, 54],
    },
)
expect("simple, in place", of_vectors(partial(captums.SimpleLRPModel, inplace=True)), vector(1, 2, 3), SIMPLE,
       {"lrp_0": [18, 36, 54], "gbp": [18, 18, 18], "deconvnet": [18, 18, 18]})  # fmt: skip
expect("simple, times 3", simple, vector(3, 6, 9), SIMPLE, {"lrp_0": [54, 108, 162]})


def simple_signed() -> nn.Module:
    net = captums.SimpleLRPModel(inplace=False)
    net.linear.weight.data[0, 0] = -2
    return net


# neurons 8 = -2 + 4 + 6, 12, 12: the output is 96, their relevance 24, 36, 36
expect(
    "simple, w00=-2",
    of_vectors(simple_signed),
    vector(1, 2, 3),
    SIMPLE,
    {
        "saliency": [6, 18, 18],
        "lrp_0": [6, 36, 54],
        "lrp_gamma_1": [28 / 3, 104 / 3, 52],  # -2/18, 8/18, 12/18 of 24; 1/6, 2/6, 3/6 of 72
        "lrp_gamma_1/4": [12 - 48 / 10.5, 24 + 120 / 10.5, 36 + 180 / 10.5],  # -2, 5, 7.5 of 10.5
        "lrp_alpha1_beta0": [12, 33.6, 50.4],  # 0, .4, .6 of 24
        "lrp_zplus": [12, 33.6, 50.4],
        "lrp_alpha2_beta1": [0, 134.4, 201.6],  # 48: minus 48 and .4, .6 of 96; 72: twice
        "rescale": [6, 36, 54],
        "reveal_cancel": [9, 34.8, 52.2],  # dy = 10 - 2 from 0: dz+ = (10 + 8)/2, dz- = (0 - 2)/2
    },
)

# --- linear layers, additions, max-poolings -----------------------------------------------------------------------------

# 2 - 6 + 15 = 11
linear = of_vectors(lambda: dense([1.0, -2.0, 3.0]))
expect(
    "linear",
    linear,
    vector(2, 3, 5),
    "ayyar2021, Eq. 7, 12-15, 19",
    {
        "saliency": [1, -2, 3],
        "smoothgrad": [1, -2, 3],
        "ig": [2, -6, 15],
        "rescale": [2, -6, 15],
        "reveal_cancel": [2, -6, 15],
        "lrp_0": [2, -6, 15],
        "lrp_epsilon_7": [2 * 11 / 18, -6 * 11 / 18, 15 * 11 / 18],
        "lrp_gamma_1": [4 * 11 / 28, -6 * 11 / 28, 30 * 11 / 28],
        "lrp_alpha1_beta0": [2 * 11 / 17, 0, 15 * 11 / 17],
        "lrp_alpha2_beta1": [4 * 11 / 17, -11, 30 * 11 / 17],
        "occlusion": [2, -6, 15],
    },
)
from_ones = {"ig": [1, -4, 12], "rescale": [1, -4, 12], "reveal_cancel": [1, -4, 12], "occlusion": [1, -4, 12]}
expect("linear, from 1", linear, vector(2, 3, 5), "ayyar2021, Eq. 7, 19", from_ones, x0=(1.0,))


def skip() -> nn.Module:
    return OfImages(dense([5.0, 5.0], [5.0, 5.0]), lambda net, x: net(x.flatten(1)) + x.flatten(1))


expect("skip connection", skip, vector(2, 3), "captum test_lrp",
       {"lrp_0": [10, 18], "lrp_alpha1_beta0": [10, 18], "saliency": [5, 6]}, target=1, alone=FUNCTIONS)  # fmt: skip
pooled = lambda: OfImages(  # noqa: E731
    nn.Sequential(dense([2.0, 2.0], [2.0, 2.0]), nn.MaxPool1d(2)), lambda net, x: net(x.flatten(2)).flatten(1)
)
expect("max of lines", pooled, torch.tensor([[[[1.0, 2.0]], [[5.0, 6.0]]]], dtype=torch.float64), "captum test_lrp",
       {"lrp_0": [0, 0, 10, 12], "saliency": [0, 0, 2, 2]}, target=1)  # fmt: skip
expect("max of a square", lambda: OfImages(nn.MaxPool2d(2), lambda net, x: net(x).flatten(1)),
       torch.tensor([[[[1.0, 2.0], [5.0, 6.0]]]], dtype=torch.float64), "captum test_lrp",
       {"lrp_0": [0, 0, 0, 6], "rescale": [0, 0, 0, 6]})  # fmt: skip
threes = lambda: OfImages(  # noqa: E731
    captums.BasicModel_MaxPool_ReLU(), lambda net, x: net(x.flatten(1)[:, None])
)
for target, of_rules in enumerate(
    (
        {"saliency": [0, 0, 1, 0, 0, 0], "gbp": [0, 0, 1, 0, 0, 0], "deconvnet": [0, 0, 1, 0, 0, 0],
         "lrp_0": [0, 0, 3, 0, 0, 0], "rescale": [0, 0, 3, 0, 0, 0]},
        {"saliency": [0] * 6, "gbp": [0] * 6, "deconvnet": [0, 0, 0, 1, 0, 0]},  # the maximum, -4, is dead
    )
):  # fmt: skip
    expect(
        f"relu of maxima, class {target}",
        threes,
        vector(1, 2, 3, -4, -5, -6),
        "captum: BasicModel_MaxPool_ReLU",
        of_rules,
        target,
    )


def reused() -> nn.Module:
    net = captums.BasicModelWithReusedLinear()
    nn.init.ones_(net.lin1.weight)
    nn.init.zeros_(net.lin1.bias)
    return net


def reused_relu() -> nn.Module:
    net = captums.BasicModelWithReusedModules()
    net.lin1, net.lin2 = dense([1.0] * 3, [1.0] * 3), dense([2.0, -1.0], [1.0, 1.0])
    return net


TWICE = "captum refuses modules that are used twice"
expect("one layer twice", of_vectors(reused), vector(1, 2, 3), TWICE,
       {"saliency": [3, 3, 3], "gbp": [3, 3, 3], "lrp_0": [3, 6, 9], "rescale": [3, 6, 9]}, alone=FUNCTIONS)  # fmt: skip
expect("one ReLU twice", of_vectors(reused_relu), vector(1, 2, 3), TWICE,
       {"saliency": [1, 1, 1], "gbp": [2, 2, 2], "deconvnet": [2, 2, 2], "lrp_0": [1, 2, 3], "rescale": [1, 2, 3]},
       alone=FUNCTIONS)  # fmt: skip

# --- Springenberg et al. 2014, Figure 1 c: a ReLU, and a gradient that arrives behind it ----------------------------------

expect(
    "a ReLU and its rules",
    of_vectors(lambda: nn.Sequential(nn.ReLU(), dense([-2.0, 3.0, -1.0, 6.0, -3.0, 1.0, 2.0, -1.0, 3.0]))),
    torch.tensor([[[[1.0, -1.0, 5.0], [2.0, -5.0, -7.0], [-3.0, 2.0, 4.0]]]], dtype=torch.float64),
    "Springenberg et al. 2014, Figure 1",
    {
        "saliency": [-2, 0, -1, 6, 0, 0, 0, -1, 3],
        "deconvnet": [0, 3, 0, 6, 0, 1, 2, 0, 3],
        "gbp": [0, 0, 0, 6, 0, 0, 0, 0, 3],
    },
)

# --- captum's BasicModel_ConvNet_One_Conv on the pixels 0 ... 15 --------------------------------------------------------
#
# Sums of the 3x3 windows: 45, 54, 81, 90. First map: relu(sum - 50) = 0, 4, 31, 40. Second: relu(sum - 75) = 0, 0, 6, 15.
# The output is relu(the first map + the second's first value - its others) = 54.

one_conv = lambda: OfImages(captums.BasicModel_ConvNet_One_Conv(), lambda net, x: net(x))  # noqa: E731
ramp = torch.arange(16, dtype=torch.float64).view(1, 1, 4, 4)
W00, W01, W10, W11 = (box(i, j) for i in (0, 1) for j in (0, 1))
ONE_CONV = (
    "captum: BasicModel_ConvNet_One_Conv in test_guided_backprop, test_deconvolution, test_lrp, layer/test_grad_cam"
)
guided = W01 + W10 + W11
expect(
    "one conv",
    one_conv,
    ramp,
    ONE_CONV,
    {
        "saliency": W01,  # the two maps cancel in the lower windows
        "gbp": guided,
        "deconvnet": 2 * W00 + guided,  # the second map's first value as well
        "lrp_0": W01 * ramp,
        "lrp_alpha1_beta0": ramp * 54 / 75 * (4 * W01 / 54 + 31 * W10 / 81 + 40 * W11 / 90),
        "lrp_zplus": ramp * 54 / 75 * (4 * W01 / 54 + 31 * W10 / 81 + 40 * W11 / 90),
        "occlusion_4x4": [54] * 16,
        # Without the upper left square the sums are 35, 48, 72, 85: 54 - (0 + 0 + 22 + 35 - 10). And so on.
        "occlusion_2x2": [7, 7, 4, 4, 7, 7, 4, 4, 36, 36, 47, 47, 36, 36, 47, 47],
        # alpha = 3/4, -1/2 of -5, 4, 31, 40 and -30, -21, 6, 15
        "gradcam@net.conv1": upsampled([[11.25, 13.5], [20.25, 22.5]]),
        # G = 1 and 1, -1, -1, -1: alpha = 1, -1/2
        "gradcam@net.relu1": upsampled([[0, 4], [28, 32.5]]),
        "hirescam@net.relu1": upsampled([[0, 4], [25, 25]]),
        "layercam@net.relu1": upsampled([[0, 4], [31, 40]]),
        "xgradcam@net.relu1": upsampled([[0, 1], [6.25, 6.25]]),  # alpha = 1/4, -1/4
        "gradcam_pp@net.relu1": upsampled(
            [[0, 4 / 77], [31 / 77 + 6 / 92, 40 / 77 + 15 / 92]]
        ),  # 1/(2 + 75), 1/(2 + 21)/4
        "ablationcam@net.relu1": upsampled([[0, 4], [31 - 6 * 7 / 18, 40 - 15 * 7 / 18]]),  # y_v = 0 and 75 for 54
        "fem@net.relu1": upsampled([[0, 0], [0, 24]]),  # means 18.75, 5.25; deviations 17.1, 6.1
        "fem_K0@net.relu1": upsampled([[0, 0], [24, 24]]),
        "guided_gradcam@net.relu1": guided * upsampled([[0, 4], [28, 32.5]]),
    },
)
# Two images that are added, the second all 1: the sums are 54, 63, 90, 99, the maps 4, 13, 40, 49 and 0, 0, 15, 24.
expect(
    "one conv, two images",
    lambda: OfImages(captums.BasicModel_ConvNet_One_Conv(), lambda net, x: net(x[:, :1], x[:, 1:])),
    torch.cat([ramp, torch.ones_like(ramp)], 1),
    ONE_CONV + ", test_occlusion, test_feature_ablation",
    {
        "saliency": torch.stack([W00 + W01] * 2),
        "gbp": torch.stack([W00 + W01 + W10 + W11] * 2),
        "deconvnet": torch.stack([2 * W00 + W01 + W10 + W11] * 2),
        "lrp_0": torch.stack([ramp[0, 0], torch.ones(4, 4)]) * (W00 + W01),
        "gradcam@net.conv1": upsampled([[14.5, 19], [32.5, 37]]),
        "guided_gradcam@net.conv1": torch.stack([upsampled([[14.5, 19], [32.5, 37]]) * (W00 + W01 + W10 + W11)] * 2),
        "occlusion_4x4": [67] * 16 + [13] * 16,
        "occlusion": [0, 2, 4, 3, 4, 9, 10, 7, 4, 13, 14, 11, 0, 0, 0, 0, *[1, 2, 2, 1] * 3, 0, 0, 0, 0],
    },
    alone=ADDITION,
)

# --- captum's BasicModel_ConvNet with weights 1 and no biases or softmax, on the pixels 0 ... 99 -------------------------
#
# A ramp: the lower right wins in each pooling. The output reads conv2 at (1, 1), that the pooled maps 1 ... 3, those conv1 at
# 3, 5, 7: each pixel as often as windows that begin there hold it, by 8 neurons, 4 and 2 maps. Homogeneous, all positive.


def conv_net() -> nn.Module:
    net = captums.BasicModel_ConvNet()
    for layer in (net.conv1, net.conv2, net.fc1, net.fc2):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    net.softmax = nn.Dropout()  # nothing: the logits
    return OfImages(net, lambda net, x: net(x))


often = torch.tensor([0, 0, 0, 1, 1, 2, 1, 2, 1, 1], dtype=torch.float64)
times = 64 * often[:, None] * often
ramp_100 = torch.arange(100, dtype=torch.float64).view(1, 1, 10, 10)
expect(
    "conv net",
    conv_net,
    ramp_100,
    "captum: BasicModel_ConvNet in test_data_parallel; ayyar2021, Eq. 7, 11, 19",
    dict.fromkeys(("saliency", "gbp", "deconvnet"), times)
    | dict.fromkeys(("ig", "rescale", "reveal_cancel", "lrp_0", "lrp_gamma_1/4", "lrp_alpha1_beta0"), times * ramp_100),
    target=7,
)

# --- integrals in closed form ----------------------------------------------------------------------------------------------

PATHS = "Sundararajan et al. 2017, Eq. 1: the integral in closed form"
product = lambda: OfImages(nn.Identity(), lambda net, x: x[:, :1, 0, 0] * x[:, 1:, 0, 0])  # noqa: E731
square = lambda: OfImages(nn.Identity(), lambda net, x: x[:, :1, 0, 0] ** 2 + x[:, 1:, 0, 0])  # noqa: E731
sigmoid = of_vectors(lambda: nn.Sequential(dense([1.0, -2.0]), nn.Sigmoid()))
expect("x1 x2", product, vector(3, 4), PATHS, {"ig": [6, 6]})  # the integral of 3 t 4 dt, twice
expect(
    "x1 x2, from 1, 2", product, vector(3, 4), PATHS, {"ig": [2 * 3, 2 * 2]}, x0=(1.0, 2.0)
)  # times the mean of the other
expect("x1^2 + x2", square, vector(3, 4), PATHS, {"ig": [9, 4]})
rise = 1 / (1 + exp(1)) - 0.5  # of the sigmoid from 0 to -1, shared out as 3 : -4
expect("sigmoid(x1 - 2 x2)", sigmoid, vector(3, 2), PATHS,
       {"ig": [-3 * rise, 4 * rise], "rescale": [-3 * rise, 4 * rise]})  # fmt: skip

# --- global average pooling: taimeskhanov2024, Definitions 1-7; zhou2016: S = 3 mean(A) - mean(B) --------------------------


class Pooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.fc = dense([3.0, -1.0])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.relu(x), 1).flatten(1))


A, B = ([1, 2, 3, 4], [4, 3, 2, 15])


def weighed(a: float, b: float) -> list[float]:
    """relu(a A + b B)"""
    return [max(0.0, a * x + b * y) for x, y in zip(A, B, strict=True)]


# ScoreCAM: x (A - 1)/3 has the means 5/3, 13/3 and the logit 2/3; x (B - 2)/13 has 14/13, 103/26 and -19/26
scores = exp(2 / 3), exp(-19 / 26)
expect(
    "average pooling",
    Pooling,
    torch.tensor([[A, B]], dtype=torch.float64).view(1, 2, 2, 2),
    "taimeskhanov2024, Definitions 1-7; ayyar2021, Eq. 9, 10, 26",
    {
        "cam@relu": weighed(3, -1),
        "gradcam@relu": weighed(3 / 4, -1 / 4),  # CAM, but for 1/(h w)
        "hirescam@relu": weighed(3 / 4, -1 / 4),
        "layercam@relu": weighed(3 / 4, 0),
        "xgradcam@relu": weighed(3 / 16, -1 / 16),
        "gradcam_pp@relu": weighed(0.75 / 9.5, 0),  # G/(2 + 10 G)
        "scorecam@relu": weighed(*(each / sum(scores) for each in scores)),
        "ablationcam@relu": weighed(5, -4),  # y = 1.5, without A -6, without B 7.5
        "fem@relu": [0, 0, 0, 8.5],  # means 2.5, 6; deviations 1.1, 5.2: only 4 and 15 are rare
        "fem_K0@relu": [0, 0, 2.5, 8.5],
    },
)
