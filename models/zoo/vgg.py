"""VGG-9, the CIFAR network of the BWNH paper.

Hu, Wang and Cheng, "From Hashing to CNNs", AAAI 2018, as its text has it:
(2 x 64C3)-MP2-(2 x 128C3)-MP2-(2 x 256C3)-MP2-(2 x 512C3)-FC, batch norm and ReLU after every
convolution.
"""

from torch import Tensor, nn

from models.zoo.geometry import Size, require_size, window_size
from models.zoo.initialization import initialize

_STAGES = (64, 128, 256, 512)


class VGG9(nn.Module):
    """Eight 3x3 convolutions and one linear layer.

    ``features`` is one flat `nn.Sequential` (convolution, batch norm, ReLU, and a pool after the
    second, fourth and sixth convolution), so keys count all of these: ``features.0``,
    ``features.1``, ``features.3``, ... ``features.25``. ``classifier`` is linear on the flattened
    map.
    """

    def __init__(self, channels: int, size: Size, classes: int, *, width: float = 1.0) -> None:
        """Build for images of ``size``; ``width`` multiplies every layer's channels.

        Raises:
            InvalidSpec: an edge of ``size`` is below 8 pixels.
        """
        super().__init__()
        require_size("vgg9", size, 8)
        layers: list[nn.Module] = []
        for stage, base in enumerate(_STAGES):
            filters = max(1, round(base * width))
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
                size = window_size(size, 2, stride=2)
            for _ in range(2):
                layers.append(nn.Conv2d(channels, filters, 3, padding=1, bias=False))
                layers.append(nn.BatchNorm2d(filters))
                layers.append(nn.ReLU())
                channels = filters
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * size[0] * size[1], classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, C, H, W)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits
