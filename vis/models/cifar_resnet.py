"""The ResNets of He et al. 2016 (section 4.2) for CIFAR-10: three stages of 16, 32, 64 channels, 6n + 2 layers.

Shortcuts are theirs (option A): where a stage begins, the image is subsampled and padded with channels of zeros, so that
they have no weights. Names are those of the checkpoints by Yerlan Idelbayev (akamaster/pytorch_resnet_cifar10).
"""

from torch import Tensor, nn
from torch.nn.functional import pad


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, and the shortcut."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            more = y.shape[1] - x.shape[1]
            x = pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more // 2, more - more // 2))
        return self.relu2(y + x)


class CifarResNet(nn.Module):
    """[B, 3, 32, 32] -> logits [B, num_classes]. Raises ValueError if `depth` is not 6n + 2."""

    def __init__(self, depth: int = 20, num_classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth={depth} is not 6n + 2: give 20, 32, 44, 56 or 110")
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        blocks = (depth - 2) // 6
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(Block(before, after), *(Block(after, after) for _ in range(blocks - 1)))
            for before, after in ((16, 16), (16, 32), (32, 64))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))
