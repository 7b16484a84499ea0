"""The three-layer CNN with the extensions of section 3.2: a max-pooling of any size, and more convolutions above it."""

from torch import Tensor, nn

from vis.models import CNN3
from vis.models.streamed import dense


class DeepCNN(CNN3):
    """A deep CNN. window: side of a max-pooling with stride 1, or None; extra: number of 3x3 convolutions, each with a ReLU.

    padding: of the first convolution; None is "SAME", 0 is "VALID".
    """

    def __init__(
        self,
        num_filters: int = 256,
        kernel_size: int = 7,
        stride: int = 2,
        pool: str | None = None,
        window: int | None = None,
        extra: int = 0,
        padding: int | None = None,
        num_classes: int = 10,
        input_size: int = 224,
    ) -> None:
        super().__init__(num_filters, kernel_size, stride, pool, num_classes, input_size)
        if window is not None:
            if window % 2 == 0 or pool is not None:
                raise ValueError("window is an odd number, and takes the place of pool")
            self.pool = nn.MaxPool2d(window, stride=1, padding=window // 2)
        fc = self.fc
        if padding is not None:
            self.conv1.padding = (padding, padding)
            fc = dense(num_filters * ((input_size + 2 * padding - kernel_size) // stride + 1) ** 2, num_classes)
        del self.fc  # it becomes the last layer again, below: its width is the number of logits
        layers = [nn.Conv2d(num_filters, num_filters, 3, padding=1) for _ in range(extra)]
        self.extra = nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))
        self.fc = fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.extra(self.pool(self.relu(self.conv1(x)))).flatten(1))
