"""ResNet-18, 34 and 50 as torchvision has them, key by key.

He, Zhang, Ren and Sun, CVPR 2016, table 1; a bottleneck block strides in its 3x3 convolution, as in
torchvision's checkpoints ("version 1.5"), and not in its first one.
"""

from torch import Tensor, nn
from torch.nn import functional

from models.zoo.geometry import Size
from models.zoo.initialization import initialize

_STAGES = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the sum with the input, which ``downsample`` fits where needed."""

    expansion = 1

    def __init__(
        self, inputs: int, filters: int, *, stride: int, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, filters, ceil(H / stride), ceil(W / stride)) for (N, inputs, H, W)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the last has four times the filters of the others."""

    expansion = 4

    def __init__(
        self, inputs: int, filters: int, *, stride: int, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        outputs = filters * self.expansion
        self.conv1 = nn.Conv2d(inputs, filters, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.conv3 = nn.Conv2d(filters, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 4 filters, ceil(H / stride), ceil(W / stride)) for (N, inputs, H, W)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A 7x7 convolution and a pool, four stages of blocks, the map's mean, and ``fc``.

    Takes images of any size: every stage leaves at least one pixel. Meant for 224 x 224, where the
    last map is 7 x 7.
    """

    def __init__(
        self,
        channels: int,
        size: Size,
        classes: int,
        *,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
    ) -> None:
        """Build with ``blocks`` blocks of the given kind in the four stages."""
        super().__init__()
        inputs = _STAGES[0]
        self.conv1 = nn.Conv2d(channels, inputs, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages: list[nn.Sequential] = []
        for filters, count in zip(_STAGES, blocks, strict=True):
            first_stride = 1 if filters == _STAGES[0] else 2
            outputs = filters * block.expansion
            stage = nn.Sequential()
            for stride in (first_stride, *(1 for _ in range(count - 1))):
                downsample = _downsample(inputs, outputs, stride)
                stage.append(block(inputs, filters, stride=stride, downsample=downsample))
                inputs = outputs
            stages.append(stage)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, C, H, W)."""
        x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
    )


def resnet18(channels: int, size: Size, classes: int) -> ResNet:
    """Build ResNet-18 (11.7 million parameters for 1000 classes)."""
    return ResNet(channels, size, classes, block=BasicBlock, blocks=(2, 2, 2, 2))


def resnet34(channels: int, size: Size, classes: int) -> ResNet:
    """Build ResNet-34 (21.8 million parameters for 1000 classes)."""
    return ResNet(channels, size, classes, block=BasicBlock, blocks=(3, 4, 6, 3))


def resnet50(channels: int, size: Size, classes: int) -> ResNet:
    """Build ResNet-50 (25.6 million parameters for 1000 classes)."""
    return ResNet(channels, size, classes, block=Bottleneck, blocks=(3, 4, 6, 3))
