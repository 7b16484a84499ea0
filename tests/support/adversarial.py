"""Networks with what incremental inference gets wrong when it assumes too much. All take [B, 2, H, W] and return [B, 5]."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, prune


class Body(nn.Module):
    """A stem, what is tried, another convolution, and a head that knows where things are (a wrong row cannot average out)."""

    def __init__(self, middle: nn.Module | Callable[[Tensor], Any], channels: int = 4) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(channels, 4, 3, stride=2)
        self.middle, self.fc = middle, nn.Linear(4 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.middle(F.relu(self.stem(x)))).sigmoid()
        return self.fc(F.adaptive_avg_pool2d(x, 3).flatten(1))


class Conv2d(nn.Conv2d):
    """Weight standardisation, as many write it: the class keeps its name."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ReLU(nn.ReLU):
    """Of the deviation from each image's mean."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x - x.mean((2, 3), keepdim=True))


class Linear(nn.Linear):
    """Of values that it scales."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(3 * x, self.weight, self.bias)


def sigmoid(x: Tensor) -> Tensor:
    return x - x.mean((2, 3), keepdim=True)


fx.wrap("sigmoid")  # a function of ours by the name of one that treats each position on its own


def conv(k: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, k, **options)


def hooked(module: nn.Module, hook: Any = None, before: Any = None) -> nn.Module:
    if hook:
        module.register_forward_hook(hook)
    if before:
        module.register_forward_pre_hook(before)
    return module


def patched() -> nn.Module:
    """A convolution whose `forward` was put into the object."""
    module = conv(padding=1)
    module.forward = lambda x: 2 * F.conv2d(x, module.weight, padding=1)  # type: ignore[method-assign]  # as users do
    return module


def pruned() -> nn.Module:
    return prune.l1_unstructured(conv(padding=1), "weight", 0.5)


def legacy(norm: Callable[..., nn.Module]) -> nn.Module:
    """Whose weight is not what its parameters say before the next pass."""
    module = norm(conv(padding=1))
    with torch.no_grad():
        next(p for name, p in module.named_parameters() if name in ("weight_v", "weight_orig")).mul_(3).add_(0.1)
    return module


def alias(same: Callable[[Tensor], Tensor]) -> nn.Module:
    class Alias(nn.Module):
        """A map under two names is changed in place."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu, self.same = conv(padding=1), nn.ReLU(inplace=True), same

        def forward(self, x: Tensor) -> Tensor:
            first = self.conv(x)
            second = self.same(first)
            return self.relu(first) + 2 * second

    return Alias()


def of(function: Callable[..., Any], *modules: nn.Module) -> nn.Module:
    class Of(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = nn.ModuleList(modules)

        def forward(self, x: Tensor) -> Any:
            return function(x, *self.m)

    return Of()


def in_place_sum(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = a(x)
    y.add_(b(x))  # whose rectangle is larger
    return y.relu()


def augmented(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    """fx takes y += b for y = y + b."""
    y = z = a(x)
    y += b(x)
    return z.relu() + y


def in_place_on_a_part(x: Tensor, a: nn.Module) -> Tensor:
    y = a(x)
    y[:, :2].mul_(3)
    return y.relu()


def in_place_and_read_before(x: Tensor, a: nn.Module) -> Tensor:
    y = a(x)
    before = 2 * y
    F.relu_(y)
    return before + y


def padded_and_changed(x: Tensor, a: nn.Module) -> Tensor:
    y = a(x)
    z = F.pad(y, (1, 1, 1, 1))
    F.relu_(z)
    return z[:, :, 1:-1, 1:-1] + y


def shuffle(x: Tensor) -> Tensor:
    B, C, H, W = x.shape
    return x.view(B, 2, C // 2, H, W).transpose(1, 2).contiguous().view(B, C, H, W)


def gate(x: Tensor, squeeze: nn.Module, excite: nn.Module) -> Tensor:
    return x * excite(squeeze(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()


def dynamic(x: Tensor, a: nn.Module) -> Tensor:
    """Weights of each image's own, as groups of one convolution."""
    B, C, H, W = x.shape
    weights = a.weight * x.mean((2, 3)).view(B, 1, C, 1, 1)
    return F.conv2d(x.reshape(1, B * C, H, W), weights.flatten(0, 1), padding=1, groups=B).view(B, -1, H, W)


def dynamic_for_the_batch(x: Tensor, a: nn.Module) -> Tensor:
    return F.conv2d(x, a.weight * x.mean(), padding=1)


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.max_pool2d(x, 2), F.avg_pool2d(x, 2)


def two_outputs(x: Tensor, a: nn.Module) -> Tensor:
    large, mean = a(x)
    return large - mean


def unpooled(x: Tensor, pool: nn.Module, unpool: nn.Module) -> Tensor:
    y, at = pool(x)
    return unpool(y, at)


def functional(x: Tensor, a: nn.Module) -> Tensor:
    y = torch.conv2d(input=x, weight=a.weight, bias=a.bias, padding=1)
    y = F.hardswish(F.leaky_relu(y, 0.2)).clamp(max=2)
    y = F.max_pool2d(y, 3, 1, 1) - F.avg_pool2d(y, kernel_size=3, stride=1, padding=1)
    return torch.cat([y.abs().sqrt(), torch.maximum(x, -x)], dim=1)[:, ::2]


class Viewed(nn.Module):
    """A plain CNN of a tutorial: `.view` of a map that no pooling has made contiguous."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 3, 3, 2, 1)
        self.fc = nn.Linear(3 * pixels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.avg_pool2d(self.conv2(x).tanh(), 2)
        return self.fc(x.view(x.size(0), -1))


class PoolOfASize(nn.Module):
    """The head of old ResNets for CIFAR."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3, stride=4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.fc(F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1))


class Pair(nn.Module):
    """A tuple of outputs, of which a wrapper takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Body(conv())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x), x.mean((1, 2, 3))


class First(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x)[0]


class InPlaceFirst(nn.Module):
    """Changes the image itself, and reads it again."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body(conv())

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        y = F.relu_(x)
        return self.body(y + x)


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Body(conv())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if x.mean() < 9 else self.body(-x)


RECTANGLES = ""  # no line in the log
# name: (network, what the log says, side of the image or (height, width))
TABLE: dict[str, tuple[Callable[[], nn.Module], str, int | tuple[int, int]]] = {
    "weight standardisation in class Conv2d": (lambda: Body(Conv2d(4, 4, 3, padding=1)), RECTANGLES, 160),
    "class Linear with a forward of its own": (lambda: _with_fc(Linear(36, 5)), RECTANGLES, 96),
    "class ReLU with a forward of its own": (lambda: Body(ReLU()), "no rule for sub in middle", 96),
    "function called sigmoid": (lambda: Body(lambda x: sigmoid(x)), "no rule for adversarial.sigmoid in Body", 96),
    "forward put into a convolution": (lambda: Body(patched()), "no rule for middle (Conv2d), hooked", 96),
    "hook that scales a convolution": (
        lambda: Body(hooked(conv(), lambda m, i, y: 3 * y)), "no rule for middle (Conv2d), hooked", 96),
    "hook that changes in place": (
        lambda: Body(hooked(nn.ReLU(), lambda m, i, y: y.mul_(2).sub_(1))), "no rule for middle (ReLU), hooked", 96),
    "hook with statistics of the image": (
        lambda: Body(hooked(nn.ReLU(), lambda m, i, y: y - y.mean((2, 3), keepdim=True))), "middle (ReLU), hooked", 96),
    "hook before a convolution": (lambda: Body(hooked(conv(), None, lambda m, i: (i[0].abs() + 1,))), "hooked", 96),
    "hook on a block": (lambda: Body(hooked(nn.Sequential(conv(), nn.ReLU()), lambda m, i, y: 3 * y)), RECTANGLES, 96),
    "hook on the classifier": (lambda: _with_fc(hooked(nn.Linear(36, 5), lambda m, i, y: y**3)), RECTANGLES, 96),
    "weight norm, legacy": (lambda: Body(legacy(nn.utils.weight_norm)), RECTANGLES, 96),
    "spectral norm, legacy": (lambda: Body(legacy(nn.utils.spectral_norm)), RECTANGLES, 96),
    "weight norm, legacy, and batch norm": (
        lambda: Body(nn.Sequential(legacy(nn.utils.weight_norm), nn.BatchNorm2d(4))), RECTANGLES, 96),
    "weight norm": (lambda: Body(parametrizations.weight_norm(conv(padding=1))), RECTANGLES, 96),
    "spectral norm and batch norm": (
        lambda: Body(nn.Sequential(parametrizations.spectral_norm(conv()), nn.BatchNorm2d(4))), RECTANGLES, 96),
    "pruned": (lambda: Body(pruned()), RECTANGLES, 96),
    "in-place ReLU under an Identity": (lambda: Body(alias(nn.Identity())), RECTANGLES, 96),
    "in-place ReLU under a Dropout": (lambda: Body(alias(nn.Dropout())), RECTANGLES, 96),
    "in-place ReLU under contiguous()": (lambda: Body(alias(lambda x: x.contiguous())), RECTANGLES, 96),
    "in-place ReLU under detach()": (lambda: Body(alias(lambda x: x.detach())), RECTANGLES, 96),
    "in-place ReLU under view_as": (lambda: Body(alias(lambda x: x.view_as(x))), "no rule for viewas", 96),
    "in-place ReLU, read before": (lambda: Body(of(in_place_and_read_before, conv())), RECTANGLES, 96),
    "in-place sum of rectangles": (lambda: Body(of(in_place_sum, conv(1), conv(5, padding=2))), RECTANGLES, 96),
    "+= under another name": (
        lambda: Body(of(augmented, conv(1), conv(5, padding=2))), "each window takes a full pass: Body has effects", 96),
    "in place on a part": (lambda: Body(of(in_place_on_a_part, conv())), "mul in middle changes", 96),
    "in place behind a padding": (lambda: Body(of(padded_and_changed, conv())), "no rule for getitem", 96),
    "in place on the image": (InPlaceFirst, RECTANGLES, 96),
    "F.pad": (lambda: Body(lambda x: F.pad(x, (1, 2, 3, 0))), RECTANGLES, 96),
    "F.pad with a value": (lambda: Body(lambda x: F.pad(x, [2, 1], "constant", -1.5)), RECTANGLES, 96),
    "F.pad by keywords": (lambda: Body(lambda x: F.pad(input=x, pad=(0, 3, 1, 1), value=0.5)), RECTANGLES, 96),
    "ZeroPad2d": (lambda: Body(nn.Sequential(nn.ZeroPad2d((0, 1, 2, 3)), conv(5, stride=2))), RECTANGLES, 97),
    "ConstantPad2d": (lambda: Body(nn.ConstantPad2d(2, 0.7)), RECTANGLES, (96, 128)),
    "padding and cutting": (lambda: Body(lambda x: F.pad(x, (-1, 2, 0, -3))), "no rule for pad in Body", 96),
    "F.pad, reflected": (lambda: Body(lambda x: F.pad(x, (2, 2, 2, 2), "reflect")), "no rule for pad in Body", 96),
    "ReflectionPad2d": (lambda: Body(nn.ReflectionPad2d(2)), "no rule for middle (ReflectionPad2d)", 96),
    "CircularPad2d": (lambda: Body(nn.CircularPad2d(2)), "no rule for middle (CircularPad2d)", 96),
    "padding_mode reflect": (lambda: Body(conv(padding=1, padding_mode="reflect")), "no rule for middle (Conv2d)", 96),
    "padding same, even kernel": (lambda: Body(conv(4, padding="same")), RECTANGLES, 96),
    "dilation": (lambda: Body(conv(dilation=3, padding=2)), RECTANGLES, 96),
    "groups": (lambda: Body(conv(groups=2, stride=2)), RECTANGLES, 101),
    "depthwise": (lambda: Body(conv((5, 3), groups=4)), RECTANGLES, 96),
    "stride beyond the kernel": (lambda: Body(conv(2, stride=5)), RECTANGLES, 112),
    "max-pool, ceil mode": (lambda: Body(nn.MaxPool2d(3, 2, 1, ceil_mode=True)), RECTANGLES, 97),
    "max-pool, dilation": (lambda: Body(nn.MaxPool2d(2, 1, dilation=3)), RECTANGLES, 96),
    "average pool, ceil mode": (lambda: Body(nn.AvgPool2d(3, 2, ceil_mode=True)), "no rule for middle (AvgPool2d)", 96),
    "average pool, padded": (lambda: Body(nn.AvgPool2d(3, 2, 1)), RECTANGLES, 96),
    "average pool without its padding": (
        lambda: Body(nn.AvgPool2d(3, 2, 1, count_include_pad=False)), "no rule for middle (AvgPool2d)", 96),
    "pool of the image's size": (PoolOfASize, RECTANGLES, 96),
    "transposed convolution": (lambda: Body(nn.ConvTranspose2d(4, 4, 3, 2)), "middle (ConvTranspose2d)", 96),
    "interpolation": (lambda: Body(lambda x: F.interpolate(x, scale_factor=1.5)), "interpolate in Body", 96),
    "channel shuffle": (lambda: Body(shuffle), "no rule for view in Body", 96),
    "ChannelShuffle": (lambda: Body(nn.ChannelShuffle(2)), "no rule for middle (ChannelShuffle)", 96),
    "PixelShuffle": (lambda: Body(nn.PixelShuffle(2), 1), "no rule for middle (PixelShuffle)", 96),
    "GroupNorm": (lambda: Body(nn.GroupNorm(2, 4)), "no rule for middle (GroupNorm)", 128),
    "InstanceNorm": (lambda: Body(nn.InstanceNorm2d(4, affine=True)), "no rule for middle (InstanceNorm2d)", 96),
    "batch norm": (lambda: Body(nn.Sequential(conv(), nn.BatchNorm2d(4))), RECTANGLES, 96),
    "batch norm of the batch": (
        lambda: Body(lambda x: F.batch_norm(x, None, None, training=True)), "mixes the images of a batch", 96),
    "LocalResponseNorm": (lambda: Body(nn.LocalResponseNorm(3)), RECTANGLES, 96),
    "softmax over channels": (lambda: Body(nn.Softmax2d()), "no rule for middle (Softmax2d)", 96),
    "squeeze and excitation": (lambda: Body(of(gate, conv(1), conv(1))), "no rule for mul in middle", 96),
    "weights of each image": (lambda: Body(of(dynamic, conv())), "no rule for", 96),
    "weights of the batch": (lambda: Body(of(dynamic_for_the_batch, conv())), "mixes the images of a batch", 96),
    ".view of a map": (lambda: Viewed(36), RECTANGLES, 96),
    ".view of a map, not square": (lambda: Viewed(6 * 8), RECTANGLES, (96, 128)),
    "block with two outputs": (lambda: Body(of(two_outputs, TwoOutputs())), RECTANGLES, 96),
    "a tuple of outputs": (First, RECTANGLES, 96),
    "max-pool with its places": (
        lambda: Body(of(unpooled, nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2))), "middle.m.0 (MaxPool2d)", 96),
    "chunks": (lambda: Body(lambda x: torch.cat([x.chunk(2, 1)[0], x], 1), 6), "no rule for chunk in Body", 96),
    "functions": (lambda: Body(of(functional, conv())), "no rule for getitem in middle", 96),
    "rolled": (lambda: Body(lambda x: x.roll(5, 3) + x), "no rule for roll in Body", 96),
    "branch on a value": (Branch, "each window takes a full pass: Branch cannot be traced", 96),
    "narrow image": (lambda: Body(conv(padding=2)), RECTANGLES, (160, 24)),
}  # fmt: skip


def _with_fc(fc: nn.Module) -> Body:
    body = Body(conv())
    body.fc = fc  # type: ignore[assignment]  # as users do
    return body
