"""Small networks and artifacts that several tests of the models look at."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.artifact import Artifact
from models.layers import binarizable_layers, binarize_layer, replace_layer
from models.lowering import lower
from models.preprocessing import InputSpec


class SmallResidualNet(nn.Module):
    """8 x 8 colour images, three residual sums of different kinds, dropout, a batch norm last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 10, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(10)
        self.side = nn.Conv2d(10, 10, 1)
        self.slope = nn.PReLU(10)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(40, 5)
        self.head_norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem_norm(self.stem(x)))
        x = functional.relu(self.norm1(self.conv1(x)) + x)
        shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = functional.relu(self.norm2(self.conv2(x)) + shortcut)
        x = self.slope(x + self.side(x))
        x = torch.flatten(functional.max_pool2d(x, 2), 1)
        return self.head_norm(self.head(self.drop(x)))


def randomise_batch_norm(module: nn.Module, seed: int = 0) -> None:
    """Give every batch norm statistics and factors that folding cannot get right by luck."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.running_mean.copy_(draw(layer.running_mean, -0.5, 0.5))
                layer.running_var.copy_(draw(layer.running_var, 0.5, 2.0))
                layer.weight.copy_(draw(layer.weight, -1.0, 1.5))
                layer.bias.copy_(draw(layer.bias, -0.5, 0.5))


def binarize_net(module: nn.Module, keep_float: tuple[str, ...] = (), seed: int = 0) -> None:
    """Replace every layer but those of ``keep_float`` by a binary one with random codes."""
    generator = torch.Generator().manual_seed(seed)
    for name, layer in binarizable_layers(module).items():
        if name not in keep_float:
            weight = layer.weight
            codes = torch.where(torch.rand(weight.shape, generator=generator) < 0.5, -1, 1)
            # About the gain that keeps activations from growing or fading with depth.
            scale = torch.rand(len(weight), generator=generator) + 0.5
            replace_layer(
                module, name, binarize_layer(layer, codes, scale / weight[0].numel() ** 0.5)
            )


def artifact_of(module: nn.Module, shape: tuple[int, int, int]) -> Artifact:
    """Lower ``module`` and wrap the plan as an artifact with numbered labels."""
    plan, tensors = lower(module, shape)
    channels = shape[0]
    return Artifact(
        plan=plan,
        tensors=tensors,
        input=InputSpec(*shape, (0.5,) * channels, (0.25,) * channels),
        labels=tuple(f"class {index}" for index in range(plan.output_shape[0])),
        provenance={"seed": 0, "versions": {"bitpress": "0.1.0"}},
        accuracy={"packed": 0.5},
    )


@pytest.fixture(scope="session")
def small_net() -> nn.Module:
    """`SmallResidualNet` in eval mode, all layers binary but ``side``."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        net = SmallResidualNet().eval()
    randomise_batch_norm(net)
    binarize_net(net, keep_float=("side",))
    return net


@pytest.fixture(scope="session")
def small_artifact(small_net: nn.Module) -> Artifact:
    return artifact_of(small_net, (3, 8, 8))


@pytest.fixture(scope="session")
def small_images() -> Tensor:
    """float32 (16, 3, 8, 8)."""
    return torch.from_numpy(np.random.default_rng(1).normal(size=(16, 3, 8, 8)).astype(np.float32))


@pytest.fixture(scope="session")
def make_artifact() -> Callable[[nn.Module, tuple[int, int, int]], Artifact]:
    return artifact_of


@pytest.fixture(scope="session")
def random_plan() -> Callable[..., Any]:
    """`random_plan` of tests/models/random_plans.py."""
    found = runpy.run_path(str(Path(__file__).with_name("random_plans.py")))
    function: Callable[..., Any] = found["random_plan"]
    return function


@pytest.fixture(scope="session")
def randomise() -> Callable[..., None]:
    return randomise_batch_norm


@pytest.fixture(scope="session")
def binarize() -> Callable[..., None]:
    return binarize_net
