"""The papers' networks that torchvision does not have, or whose import from torchvision takes seconds."""

import re
from collections.abc import Sequence

from torch import Tensor, nn

from vis.models.streamed import dense

VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
VGG11_BLOCKS = ((64,), (128,), (256, 256), (512, 512), (512, 512))


Size = int | Sequence[int]  # of an image: the side of a square, or (height, width)


def height_and_width(size: Size) -> tuple[int, int]:
    """Return a size as (height, width). Raises ValueError if it is not one or two positive integers."""
    sides = list(size) if isinstance(size, Sequence) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"input_size={size}: give the side of a square or [height, width]")
    return sides[0], sides[1]


class CNN3(nn.Module):
    """nie2018, section 3.1: convolution, ReLU, (max-pooling,) dense layer; f_k(x) of Eq. (3).

    "SAME" padding, as in the authors' code: 224x224 with stride 2 gives 112x112 positions.
    pool: None, "9x9" (stride 1, the authors' choice for Figure 6) or "2x2" (stride 2).
    """

    def __init__(
        self,
        num_filters: int = 256,
        kernel_size: int = 7,
        stride: int = 2,
        pool: str | None = None,
        num_classes: int = 1000,
        input_size: Size = 224,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if min(num_filters, kernel_size, stride) < 1:
            raise ValueError("num_filters, kernel_size and stride must be 1 or more")
        pools = {
            None: nn.Identity(),
            "9x9": nn.MaxPool2d(9, stride=1, padding=4),
            "2x2": nn.MaxPool2d(2, stride=2),
        }
        if pool not in pools:
            raise ValueError(f"pool={pool!r}: give 9x9, 2x2 or null")
        self.conv1 = nn.Conv2d(in_channels, num_filters, kernel_size, stride, padding=kernel_size // 2)
        self.relu = nn.ReLU()
        self.pool = pools[pool]
        height, width = ((n + 2 * (kernel_size // 2) - kernel_size) // stride + 1 for n in height_and_width(input_size))
        if pool == "2x2":
            height, width = height // 2, width // 2
        self.fc = dense(num_filters * height * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.relu(self.conv1(x))).flatten(1))


class FCN3(nn.Module):
    """nie2018, section 4: the fully connected counterpart, dense layer, ReLU, dense layer."""

    def __init__(
        self, hidden: int = 4096, num_classes: int = 1000, input_size: Size = 224, in_channels: int = 3
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError("hidden must be 1 or more")
        height, width = height_and_width(input_size)
        self.fc1 = dense(in_channels * height * width, hidden)
        self.relu = nn.ReLU()
        self.fc2 = dense(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.relu(self.fc1(x.flatten(1))))


def vgg_features(
    last_pool: bool = True,
    last_channels: int = 512,
    pool: str = "max",
    blocks: Sequence[Sequence[int]] = VGG16_BLOCKS,
    in_channels: int = 3,
) -> nn.Sequential:
    """Build VGG-16's convolutions, [B, 3, H, W] -> [B, last_channels, H/32, W/32], or H/16 without the last pool."""
    layers: list[nn.Module] = []
    channels = in_channels
    for block in blocks:
        for width in block:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2))
    if not last_pool:
        layers = layers[:-1]
        layers[-2] = nn.Conv2d(channels, last_channels, 3, padding=1)
    return nn.Sequential(*layers)


def _vgg_classifier(features: int, num_classes: int, hidden: int = 4096) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(hidden, num_classes),
    )


def vgg_layer_names(blocks: Sequence[Sequence[int]] = VGG16_BLOCKS) -> dict[str, str]:
    """Map nie2018's layer names (conv1_1 ... conv5_3, fc1, fc2, fc3) to module names."""
    names, index = {}, 0
    for b, block in enumerate(blocks, start=1):
        for c in range(1, len(block) + 1):
            names[f"conv{b}_{c}"] = f"features.{index}"
            index += 2
        index += 1
    return names | {"fc1": "classifier.0", "fc2": "classifier.3", "fc3": "classifier.6"}


class VGG16(nn.Module):
    """VGG-16 (configuration D) with torchvision's module names, so that torchvision's state dicts load unchanged.

    pool: "max", or "avg" for the ablation of max-pooling's effect on DeconvNet.
    """

    arch = "vgg16"  # the torchvision model whose pretrained weights fit

    def __init__(self, num_classes: int = 1000, pool: str = "max") -> None:
        super().__init__()
        if pool not in ("max", "avg"):
            raise ValueError(f"pool={pool!r}: give max or avg")
        self.features = vgg_features(pool=pool)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = _vgg_classifier(512 * 7 * 7, num_classes)
        self.layer_names = vgg_layer_names()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class VGGSmall(nn.Module):
    """VGG for small images, `width` times as wide, without batch norm, as in the papers; 32x32 ends at one position.

    depth: 11 (configuration A of Simonyan & Zisserman, the default: it has conv1_1 ... conv5_1 and fc1 ... fc3 of
    nie2018's Figure 9, and trains in half the time) or 16 (D). depth=16 with width=1 is VGG-16 for CIFAR-10, 33.6 M weights.
    """

    preprocess = "symmetric"

    def __init__(
        self, depth: int = 11, width: float = 0.125, num_classes: int = 10, in_channels: int = 3, input_size: Size = 32
    ) -> None:
        super().__init__()
        self.input_size = height, breadth = height_and_width(input_size)
        if width <= 0 or min(height, breadth) < 32 or depth not in (11, 16):
            raise ValueError("depth must be 11 or 16, width above 0, input_size 32 or more")
        full = VGG16_BLOCKS if depth == 16 else VGG11_BLOCKS
        blocks = [[max(1, round(filters * width)) for filters in block] for block in full]
        self.features = vgg_features(blocks=blocks, in_channels=in_channels)
        positions = (height // 32) * (breadth // 32)
        self.classifier = _vgg_classifier(blocks[-1][-1] * positions, num_classes, hidden=max(1, round(4096 * width)))
        self.layer_names = vgg_layer_names(blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class MaskedVGG16(nn.Module):
    """taimeskhanov2024, section 3.1: a VGG-16 with a wall (vis.models.wall) below row 5 of its 14 x 14 feature map.

    It has no last max-pool, and 256 channels in the last convolution. At 224x224 it cannot see the lower quarter of its
    image; with all 14 rows live it is the paper's unmasked baseline.
    """

    wall_rows = 5

    def __init__(self, num_classes: int = 1000, input_size: Size = 224) -> None:
        super().__init__()
        self.input_size = height, width = height_and_width(input_size)
        if min(height, width) < 32:
            raise ValueError(f"the masked VGG needs images of 32x32 or more, not {height}x{width}")
        self.features = vgg_features(last_pool=False, last_channels=256)
        self.classifier = _vgg_classifier(256 * (height // 16) * (width // 16), num_classes)
        self.layer_names = vgg_layer_names()

    def adapt_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of the authors' single nn.Sequential: 0..29 are the features, 31.* the classifier."""
        if "0.weight" not in state:
            return state
        return {
            ("classifier." + key[len("31.") :] if key.startswith("31.") else "features." + key): value
            for key, value in state.items()
        }

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class MaskedCNN(nn.Module):
    """Small networks with a wall (vis.models.wall), for two stacked images (taimeskhanov2024).

    variant "stacked":   three 3x3 convolutions, by default on two digits, 1x56x28. A cell of the last feature map sees
                         18x18 pixels, so the wall is two rows above the middle: the lower image is never seen.
    variant "one_layer": the network of Figure 3 at initialisation, [CNN] with L = 1, on a digit padded to 1x29x29.
    """

    def __init__(
        self, variant: str = "stacked", num_classes: int = 10, in_channels: int = 1, input_size: Size | None = None
    ) -> None:
        super().__init__()
        if variant not in ("stacked", "one_layer"):
            raise ValueError(f"variant={variant!r}: give stacked or one_layer")
        one_layer = variant == "one_layer"
        self.input_size = height, width = height_and_width(input_size or (29 if one_layer else (56, 28)))
        if min(height, width) < 24:
            raise ValueError(f"the masked CNN needs images of 24x24 or more, not {height}x{width}")
        if one_layer:
            rows, columns = (height - 1) // 2, (width - 1) // 2
            self.wall_rows = rows // 2
            self.features = nn.Sequential(nn.Conv2d(in_channels, 256, 2, bias=False), nn.ReLU(), nn.MaxPool2d(2))
            self.classifier = nn.Sequential(nn.Linear(256 * rows * columns, num_classes, bias=False))
        else:
            rows, columns = height // 4, width // 4
            self.wall_rows = rows // 2 - 2
            self.features = nn.Sequential(
                nn.Conv2d(in_channels, 32, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(32, 64, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(64, 64, 3, padding=1),
                nn.ReLU(),
            )
            self.classifier = nn.Sequential(
                nn.Linear(64 * rows * columns, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, num_classes)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class CNNMnist(nn.Module):
    """zhou2018's MNIST network, from TensorFlow's tutorial "Deep MNIST for Experts": two 5x5 convolutions with "SAME"
    padding, each followed by 2x2 max-pooling, and two dense layers.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, input_size: Size = 28) -> None:
        super().__init__()
        self.input_size = height, width = height_and_width(input_size)
        if min(height, width) < 4:
            raise ValueError(f"the MNIST network needs images of 4x4 or more, not {height}x{width}")
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(64 * (height // 4) * (width // 4), 1024), nn.ReLU(), nn.Dropout(0.5), nn.Linear(1024, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def torchvision_classifier(arch: str, num_classes: int = 1000, input_size: Size | None = None) -> nn.Module:
    """Build a torchvision classifier by name, with the random weights of its constructor.

    input_size: by default that of the pretrained weights: 224, 299 for inception_v3, ...
    Raises ValueError if torchvision has no such classifier.
    """
    from torchvision import models

    from vis.errors import did_you_mean

    known = models.list_models(module=models)
    if arch not in known:
        raise ValueError(f"torchvision has no classifier {arch!r}.{did_you_mean(arch, known)}")
    published = models.get_model_weights(arch).DEFAULT.transforms.keywords
    size = height_and_width(published["crop_size"] if input_size is None else input_size)
    extra: dict[str, object] = {}
    if arch in ("googlenet", "inception_v3"):
        extra["init_weights"] = True  # avoids a warning. Pretrained files contain the auxiliary heads
    elif arch.startswith("vit_"):  # ViT and MaxViT are built for one input size
        extra["image_size"] = size[0]
    elif arch.startswith("maxvit"):
        extra["input_size"] = size
    net = models.get_model(arch, weights=None, num_classes=num_classes, **extra)
    net.input_size = size
    net.preprocess = "symmetric" if published.get("mean") == (0.5, 0.5, 0.5) else "imagenet"
    net.adapt_state_dict = _current_keys
    if arch == "vgg16":
        net.layer_names = vgg_layer_names()
    elif arch == "squeezenet1_1":
        places = enumerate((3, 4, 6, 7, 9, 10, 11, 12), start=2)
        net.layer_names = {"conv1": "features.0", **{f"fire{n}": f"features.{i}" for n, i in places}}
        net.layer_names["conv10"] = "classifier.1"
    return net


def _current_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename layers of torchvision's older DenseNet and ViT files, as its constructors do."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", key)
        key = re.sub(r"mlp\.linear_([12])\.", lambda match: f"mlp.{3 * (int(match[1]) - 1)}.", key)
        renamed[key] = value
    return renamed
