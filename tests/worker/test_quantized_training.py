"""8-bit activations trained in: what training makes of quantizers, and what comes out as a plan."""

import pytest
import torch

from benchmarks.digits import load as load_digits
from benchmarks.digits.training import INPUT
from models import registry, runtime
from models.artifact import Artifact
from models.layers import binarizable_layers, binarize_layer, replace_layer
from models.lowering import lower
from models.preprocessing import normalise
from models.quantization import Scale, input_scales, quantize_inputs
from worker.activation_ranges import activation_scales
from worker.calibration_images import CalibrationImages
from worker.training.images import CachedImages
from worker.training.recipe import Recipe
from worker.training.rules import ScaledSignRule
from worker.training.trainer import Trainer

TRAINED = 512


class Pixels:
    """The first digits, as calibration reads them."""

    def __init__(self, pixels):
        self._pixels = pixels

    def __len__(self):
        return len(self._pixels)

    def pixels(self, start, stop):
        return self._pixels[start:stop]


def silent(_fraction, _message, _details=None):
    """Report to nobody."""


def network(seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return registry.build(
            "digits_cnn", channels=1, height=8, width=8, classes=10, parameters={}
        ).eval()


def binarized(full):
    binary = network()
    binary.load_state_dict(full.state_dict())
    for name, layer in list(binarizable_layers(binary).items()):
        codes = torch.where(layer.weight >= 0, 1.0, -1.0)
        scale = layer.weight.detach().abs().flatten(1).mean(dim=1)
        replace_layer(binary, name, binarize_layer(layer, codes, scale))
    return binary.eval()


def trainer_of(student, full, **recipe):
    digits = load_digits()
    images = CachedImages(
        digits.pixels[:TRAINED], digits.labels[:TRAINED], INPUT, seed=5, augmentation="none"
    )
    layers = {} if full is None else binarizable_layers(full)
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    recipe = Recipe(batch_size=32, learning_rate=3e-3, distillation=0.0, **recipe)
    rule = ScaledSignRule()
    return Trainer(student, None, images, recipe, rule, seed=1, float_weights=weights, device="cpu")


def packed(net):
    plan, tensors = lower(net, INPUT.shape)
    labels = tuple(map(str, range(10)))
    return runtime.load(Artifact(plan, tensors, INPUT, labels, {}, {}), "reference")


@pytest.fixture(scope="module")
def images():
    return CalibrationImages(Pixels(load_digits().pixels[:100]), INPUT)


@pytest.fixture(scope="module")
def narrow(images):
    """A trained net, binarized, that sees no more than half of each layer's range."""
    trainer = trainer_of(network(), None, epochs=3, precision="float32")
    for epoch in range(3):
        trainer.epoch(epoch, silent)
    full = trainer.finished()
    student = binarized(full)
    scales = activation_scales(student, images, "minmax", silent)
    half = {
        name: Scale.covering(scale.low / 2, (scale.low + 255 * scale.step) / 2)
        for name, scale in scales.items()
    }
    quantize_inputs(student, half)
    return full, student, half


@pytest.mark.parametrize("recipe", [{"precision": "float32"}, {"precision": "bfloat16"}])
def test_network_learns_behind_its_quantizers(narrow, images, recipe):
    full, student, scales = narrow
    digits = load_digits()
    held_out = normalise(digits.pixels[TRAINED:], INPUT)

    def accuracy(predict):
        with torch.no_grad():
            answers = predict(held_out).argmax(dim=1).numpy()
        return float((answers == digits.labels[TRAINED:]).mean())

    trainer = trainer_of(student, full, epochs=2, average=0.9, batch_norm="reestimate", **recipe)
    for epoch in range(2):
        trainer.epoch(epoch, silent)
    trained = trainer.finished()
    # Training leaves scales alone, also where weights are averaged.
    assert input_scales(trained) == scales
    assert accuracy(trained) > max(accuracy(student) + 0.2, 0.6)
    # It has learned with the quantizers, not around them.
    assert abs(accuracy(packed(trained).run) - accuracy(trained)) < 0.02
    quantize_inputs(trained, activation_scales(trained, images, "mse", silent))
    assert input_scales(trained) != scales
    packed(trained)


def test_training_with_quantizers_resumes_exactly(narrow):
    full, student, _ = narrow
    recipe = {"epochs": 2, "precision": "float32"}
    whole = trainer_of(student, full, **recipe)
    whole.epoch(0, silent)
    state = whole.state()
    whole.epoch(1, silent)
    resumed = trainer_of(student, full, **recipe)
    resumed.load_state(state)
    resumed.epoch(1, silent)
    expected, found = whole.state(), resumed.state()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert any(name.endswith("input_quantizer.step") for name in expected)
