"""AlexNet in one column, with batch norm after every layer.

Krizhevsky, Sutskever and Hinton, NIPS 2012, without the split over two GPUs and with its local
response normalisation replaced by batch norm: 96-256-384-384-256 filters and two linear layers of
4096. This is the shape in which the literature on binary weights (XNOR-Net and those who compare
with it, BWNH among them) states AlexNet figures; torchvision's narrower 64-192-384-256-256 has no
batch norm, so none of its checkpoints would fit either way. As in BWNH batch norm follows every
layer, the last one included.
"""

from torch import Tensor, nn

from models.zoo.geometry import Size, require_size, window_size
from models.zoo.initialization import initialize

_HIDDEN = 4096


class AlexNet(nn.Module):
    """Five convolutions and three linear layers, none with a bias, each with its batch norm.

    The first linear layer takes the map as it is (256 x 6 x 6 for 224 pixels): nothing is pooled
    up or down to a fixed size.
    """

    def __init__(self, channels: int, size: Size, classes: int, *, dropout: float = 0.5) -> None:
        """Build for images of ``size``; ``dropout`` acts before the two hidden linear layers.

        Raises:
            InvalidSpec: an edge of ``size`` is below 63 pixels.
        """
        super().__init__()
        require_size("alexnet", size, 63)
        self.features = nn.Sequential(
            *_convolution(channels, 96, 11, stride=4, padding=2),
            nn.MaxPool2d(3, 2),
            *_convolution(96, 256, 5, padding=2),
            nn.MaxPool2d(3, 2),
            *_convolution(256, 384, 3, padding=1),
            *_convolution(384, 384, 3, padding=1),
            *_convolution(384, 256, 3, padding=1),
            nn.MaxPool2d(3, 2),
        )
        size = window_size(size, 11, stride=4, padding=2)
        for _ in range(3):
            size = window_size(size, 3, stride=2)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            *_linear(256 * size[0] * size[1], _HIDDEN),
            nn.Dropout(dropout),
            *_linear(_HIDDEN, _HIDDEN),
            nn.Linear(_HIDDEN, classes, bias=False),
            nn.BatchNorm1d(classes),
        )
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, C, H, W)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def _convolution(
    inputs: int, filters: int, kernel: int, *, stride: int = 1, padding: int
) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, filters, kernel, stride=stride, padding=padding, bias=False)
    return [convolution, nn.BatchNorm2d(filters), nn.ReLU()]


def _linear(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
