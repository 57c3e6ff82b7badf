"""A small network for the bundled 8 x 8 handwritten digits."""

from torch import Tensor, nn

from models.zoo.geometry import Size, require_size, window_size
from models.zoo.initialization import initialize


class DigitsCNN(nn.Module):
    """64C3-(128C3)-MP2-(128C3)-MP2-FC with batch norm and ReLU after every convolution.

    For one 8 x 8 grey channel and ten classes it has 227,530 parameters. It is wide for its task:
    a filter's 1-bit error averages out over the channels of the next layer, which lets it go
    through calibration without fine-tuning.
    """

    def __init__(self, channels: int, size: Size, classes: int) -> None:
        """Build for images of ``size``.

        Raises:
            InvalidSpec: an edge of ``size`` is below 4 pixels.
        """
        super().__init__()
        require_size("digits_cnn", size, 4)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, padding=1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(128, 128, 3, padding=1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        height, width = window_size(window_size(size, 2, stride=2), 2, stride=2)
        self.classifier = nn.Linear(128 * height * width, classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, C, H, W)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits
