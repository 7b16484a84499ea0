"""Tiny networks that bring together what goes wrong in large ones. All take [B, 2, 12, 12] and return [B, 5]."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS, SIZE, CLASSES = 2, 12, 5


def vgg_like() -> nn.Sequential:
    """Convolutions, in-place ReLUs, max-pools that do not overlap, dense layers."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 8),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(8, 5),
    )


def overlapping_pools() -> nn.Sequential:
    """A pixel wins in several windows of a max-pool; padding, strides, no bias."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=1, padding=1),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(16, 5, bias=False),
    )


def batch_norm() -> nn.Sequential:
    """Batch norm with statistics of its own, before and after a ReLU."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


class Residual(nn.Module):
    """Skip connections, and one in-place ReLU module for all places, as in torchvision's ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        x = self.relu(self.norm(self.conv2(x)) + x)
        x = self.relu(self.conv3(x) + x)
        return self.fc(x.mean((2, 3)))


class Functional(nn.Module):
    """Every spelling of a ReLU, no module among them; branches that are concatenated, as in GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.conv3 = nn.Conv2d(4, 2, 1)
        self.conv4 = nn.Conv2d(6, 4, 3)
        self.fc1 = nn.Linear(144, 8)
        self.fc2 = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(3 * self.conv1(x))
        x = torch.cat([F.relu(self.conv2(x), inplace=True), self.conv3(x)[..., 1:-1, 1:-1].clamp(min=0)], dim=1)
        x = torch.relu_(self.conv4(x))
        return self.fc2(F.threshold(self.fc1(x.flatten(1)), 0.0, 0.0).relu())


class Gelu(nn.Module):
    """No ReLU at all."""

    activations: tuple[Callable[[Tensor], Tensor], ...] = (F.gelu, F.gelu)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3)
        self.conv2 = nn.Conv2d(4, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.activations
        return second(self.conv2(first(self.conv1(x)))).mean((2, 3))


class Mixed(Gelu):
    """A ReLU and another activation."""

    activations = (F.relu, F.leaky_relu)


APPLICABLE = {
    "vgg_like": vgg_like,
    "overlapping_pools": overlapping_pools,
    "batch_norm": batch_norm,
    "residual": Residual,
    "functional": Functional,
}
WITHOUT_RULE = {"gelu": Gelu, "mixed": Mixed}


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network by name, in eval mode, with random weights, biases and batch-norm statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomise((APPLICABLE | WITHOUT_RULE)[name]()).to(dtype)


def randomise(net: nn.Module) -> nn.Module:
    """Biases and batch norm as a training might leave them (constructors make them 0 and the identity)."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values in (module.weight, module.running_var):
                    values.uniform_(0.5, 1.5)
                for values in (module.bias, module.running_mean):
                    values.normal_(0, 0.3)
            elif getattr(module, "bias", None) is not None and isinstance(module, nn.Conv2d | nn.Linear):
                module.bias.normal_(0, 0.05)
    return net.eval()


def images(batch: int = 3, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, CHANNELS, SIZE, SIZE, generator=generator, dtype=torch.float64).to(dtype)


def preprocess(pixels: Tensor) -> Tensor:
    """What makes images for them of pixels in [0, 1]; black is -2 and -5/3."""
    mean, std = pixels.new_tensor([[0.4, 0.5], [0.2, 0.3]]).view(2, 2, 1, 1)
    return (pixels - mean) / std
