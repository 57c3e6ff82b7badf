"""Every method through the trainer: learns, and leaves a network that is packed as it was trained.

The images are made up: each class is a colour pattern under noise.
"""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.artifact import Artifact
from models.binarize import sign_straight_through
from models.layers import BinaryConv2d, BinaryLinear, binarizable_layers
from models.lowering import lower
from models.preprocessing import InputSpec, normalise
from models.runtime import load
from worker import calibration
from worker.activations import layer_order
from worker.calibration_images import CalibrationImages
from worker.methods import METHODS
from worker.training.images import CachedImages
from worker.training.recipe import Recipe
from worker.training.trainer import Trainer

INPUT = InputSpec(3, 8, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CLASSES = 4


class Pixels:
    """Images in memory, (N, H, W, C) uint8."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def pixels(self, start: int, stop: int) -> np.ndarray:
        return self.array[start:stop]


def made_up_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    patterns = np.random.default_rng(99).integers(60, 196, (CLASSES, 8, 8, 3))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    noise = rng.normal(0, 40, (count, 8, 8, 3))
    return (patterns[labels] + noise).clip(0, 255).astype(np.uint8), labels


def float_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 16, CLASSES),
    ).eval()


def calibrated(net: nn.Module, method: str, pixels: np.ndarray) -> nn.Module:
    binary = copy.deepcopy(net)
    images = CalibrationImages(Pixels(pixels[:64]), INPUT)
    for name in layer_order(net, INPUT.shape):
        layer = calibration.calibrate_layer(
            net,
            binary,
            name,
            images,
            method=method,
            parameters={},
            seed=0,
            progress=lambda *_: None,
        )
        calibration.apply_layer(binary, layer)
    return binary


def trained(method: str, epochs: int = 4) -> tuple[Trainer, nn.Module, list[float]]:
    """The trainer, the network it began with, and the losses of its epochs."""
    pixels, labels = made_up_images(512, 0)
    net = float_net().requires_grad_(False)  # as what loads a checkpoint leaves it
    binary = calibrated(net, method, pixels)
    weights = {name: layer.weight.detach() for name, layer in binarizable_layers(net).items()}
    recipe = Recipe(
        epochs=epochs,
        batch_size=32,
        learning_rate=1e-3 if method == "binary_connect" else 1e-2,
        distillation=0.0,
        precision="float32",
        augmentation="none",
        binary_fractions=METHODS[method].binary_fractions,
    )
    images = CachedImages(pixels, labels, INPUT, seed=0, augmentation="none")
    trainer = Trainer(
        binary, None, images, recipe, METHODS[method].rule, seed=0, float_weights=weights
    )
    losses = [trainer.epoch(index, lambda *_: None).loss for index in range(epochs)]
    return trainer, binary, losses


@pytest.fixture(scope="module", params=sorted(METHODS))
def run(request: pytest.FixtureRequest) -> tuple[str, Trainer, nn.Module, list[float]]:
    return request.param, *trained(request.param)


def test_training_learns_the_classes(
    run: tuple[str, Trainer, nn.Module, list[float]],
) -> None:
    _, trainer, _, losses = run
    assert losses[-1] < losses[0]
    pixels, labels = made_up_images(400, 1)
    with torch.no_grad():
        right = trainer.finished()(normalise(pixels, INPUT)).argmax(dim=1).numpy() == labels
    assert right.mean() > 0.8


def test_bits_are_trained(run: tuple[str, Trainer, nn.Module, list[float]]) -> None:
    _, trainer, started, _ = run
    for one, other in zip(
        binarizable_layers(started).values(),
        binarizable_layers(trainer.finished()).values(),
        strict=True,
    ):
        assert isinstance(one, BinaryConv2d | BinaryLinear)
        assert isinstance(other, BinaryConv2d | BinaryLinear)
        assert not torch.equal(one.codes, other.codes)


def test_all_else_is_trained_too(run: tuple[str, Trainer, nn.Module, list[float]]) -> None:
    method, trainer, started, _ = run
    after = dict(trainer.finished().named_parameters())
    for name, before in started.named_parameters():
        if method == "binary_connect" and name.endswith("scale"):
            continue  # fixed, as the paper has it
        assert not torch.equal(before, after[name]), f"{method} {name}"


def test_packed_network_answers_as_the_trained_one(
    run: tuple[str, Trainer, nn.Module, list[float]],
) -> None:
    method, trainer, started, _ = run
    batch: Tensor = normalise(made_up_images(16, 2)[0], INPUT)
    in_training = copy.deepcopy(started)
    in_training.load_state_dict(
        {
            name.removeprefix("student/"): tensor
            for name, tensor in trainer.state().items()
            if name.startswith("student/")
        }
    )
    for layer in binarizable_layers(in_training).values():
        assert isinstance(layer, BinaryConv2d | BinaryLinear)
        layer.quantizer = METHODS[method].rule.quantizer(layer, sign_straight_through)
    with torch.no_grad():
        expected = in_training.eval()(batch)
    plan, tensors = lower(trainer.finished(), INPUT.shape)
    answered = load(Artifact(plan, tensors, INPUT, tuple("abcd"), {}, {}), "reference").run(batch)
    assert (answered - expected).abs().max() <= 1e-4 * expected.abs().max(), method


def test_binary_connect_keeps_one_scale_per_layer() -> None:
    trainer, _, _ = trained("binary_connect", epochs=1)
    for layer in binarizable_layers(trainer.finished()).values():
        assert isinstance(layer, BinaryConv2d | BinaryLinear)
        assert len(layer.scale.unique()) == 1
