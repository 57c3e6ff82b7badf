"""The CIFAR ResNets: 6n + 2 layers in three stages of 16, 32 and 64 filters.

He, Zhang, Ren and Sun, CVPR 2016, section 4.2. Keys as in the checkpoints of
akamaster/pytorch_resnet_cifar10, which the world uses for these nets.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from models.zoo.geometry import Size
from models.zoo.initialization import initialize

Shortcut = Literal["A", "B"]

_STAGES = (16, 32, 64)


class SubsamplePad(nn.Module):
    """Option A: every second pixel, and channels of zeros on both sides; no parameters."""

    def __init__(self, added_channels: int) -> None:
        super().__init__()
        self.before = added_channels // 2
        self.after = added_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C + added, ceil(H / 2), ceil(W / 2)) for (N, C, H, W)."""
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class CifarBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added back."""

    def __init__(self, inputs: int, filters: int, *, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 and shortcut == "A":
            self.shortcut = SubsamplePad(filters - inputs)
        elif stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, filters, 1, stride=stride, bias=False),
                nn.BatchNorm2d(filters),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, filters, ceil(H / stride), ceil(W / stride)) for (N, inputs, H, W)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """``conv1``, three stages of ``blocks`` blocks, the map's mean, and ``linear``.

    Takes images of any size: every stage leaves at least one pixel.
    """

    def __init__(
        self,
        channels: int,
        size: Size,
        classes: int,
        *,
        blocks: int,
        shortcut: Shortcut = "A",
    ) -> None:
        """Build with ``blocks`` blocks a stage (3 for ResNet-20).

        ``shortcut`` says how a block that halves the map passes its input on: ``"A"`` subsamples
        and pads with zeros, ``"B"`` has a 1x1 convolution and batch norm.
        """
        super().__init__()
        inputs = _STAGES[0]
        self.conv1 = nn.Conv2d(channels, inputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        stages: list[nn.Sequential] = []
        for filters in _STAGES:
            stage = nn.Sequential()
            for _ in range(blocks):
                stride = 1 if filters == inputs else 2
                stage.append(CifarBlock(inputs, filters, stride=stride, shortcut=shortcut))
                inputs = filters
            stages.append(stage)
        self.layer1, self.layer2, self.layer3 = stages
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inputs, classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, C, H, W)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


def resnet20(channels: int, size: Size, classes: int, *, shortcut: Shortcut = "A") -> CifarResNet:
    """Build ResNet-20 (0.27 million parameters)."""
    return CifarResNet(channels, size, classes, blocks=3, shortcut=shortcut)


def resnet32(channels: int, size: Size, classes: int, *, shortcut: Shortcut = "A") -> CifarResNet:
    """Build ResNet-32 (0.46 million parameters)."""
    return CifarResNet(channels, size, classes, blocks=5, shortcut=shortcut)


def resnet44(channels: int, size: Size, classes: int, *, shortcut: Shortcut = "A") -> CifarResNet:
    """Build ResNet-44 (0.66 million parameters)."""
    return CifarResNet(channels, size, classes, blocks=7, shortcut=shortcut)


def resnet56(channels: int, size: Size, classes: int, *, shortcut: Shortcut = "A") -> CifarResNet:
    """Build ResNet-56 (0.85 million parameters)."""
    return CifarResNet(channels, size, classes, blocks=9, shortcut=shortcut)
