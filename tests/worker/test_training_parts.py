"""The parts of fine-tuning, each against something computed in another way."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from models import registry
from models.binarize import sign_straight_through
from models.layers import BinaryLinear, binarize_layer
from models.preprocessing import InputSpec, normalise
from store.specs import FineTuning
from worker.methods.mean_magnitude import MeanMagnitudeRule
from worker.training.averaging import MovingAverage
from worker.training.batch_norm import reestimate
from worker.training.distillation import (
    BlockResults,
    block_names,
    feature_distance,
    logit_distance,
)
from worker.training.forms import teacher_form, training_form
from worker.training.images import SHIFT_PIXELS, CachedImages, flip_and_shift
from worker.training.optimizers import Optimizer
from worker.training.precision import uses_bfloat16
from worker.training.processes import Share
from worker.training.recipe import Recipe
from worker.training.rules import ScaledSignRule, latent_start
from worker.training.schedule import learning_rate_factor
from worker.training.stochastic import StochasticQuantizer, sign_errors

RULE = ScaledSignRule()
GREY = InputSpec(channels=1, height=6, width=5, mean=(0.25,), std=(0.5,))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# --- the recipe


def test_a_recipe_has_exactly_the_fields_and_defaults_of_the_specification():
    fields = {field.name: field.default for field in dataclasses.fields(Recipe)}
    specified = {name: field.default for name, field in FineTuning.model_fields.items()}
    assert set(fields) == set(specified)
    assert all(fields[name] == specified[name] for name in fields if name != "epochs")
    specification = FineTuning(epochs=3, binary_fractions=(0.5, 1.0))
    recipe = Recipe(**specification.model_dump())
    assert dataclasses.asdict(recipe) == specification.model_dump()


# --- the learning rate


def test_learning_rate_rises_and_then_falls_along_a_cosine():
    factors = [learning_rate_factor(step, 24, 4, "cosine", ()) for step in range(24)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[14] == pytest.approx(0.5)
    assert factors[9] == pytest.approx(math.cos(math.pi / 8) ** 2)
    assert 0 < factors[23] < 0.01
    assert factors[4:] == sorted(factors[4:], reverse=True)


def test_learning_rate_falls_to_a_tenth_at_each_drop():
    factors = [learning_rate_factor(step, 20, 0, "steps", (0.5, 0.75)) for step in range(20)]
    assert factors == pytest.approx([1.0] * 10 + [0.1] * 5 + [0.01] * 5)


def test_constant_learning_rate_only_warms_up():
    factors = [learning_rate_factor(step, 10, 2.5, "constant", ()) for step in range(10)]
    assert factors == pytest.approx([0.4, 0.8, 1.0] + [1.0] * 7)


# --- latent weights


@pytest.mark.parametrize("latent", ["magnitude", "mean_magnitude", "code"])
def test_latent_weights_have_the_signs_of_the_codes_and_mean_magnitude_one(latent):
    weight = torch.randn(5, 3, 2, 2) * torch.tensor([0.1, 1, 2, 3, 4]).reshape(5, 1, 1, 1)
    weight[1, 0, 0, 0] = 0.0
    codes = torch.where(torch.rand(weight.shape) < 0.5, 1.0, -1.0)
    start = latent_start(codes, weight, latent)
    assert torch.equal(torch.where(start >= 0, 1.0, -1.0), codes)
    assert start.abs().mean() == pytest.approx(1.0, rel=1e-4)


def test_latent_starts_differ_in_what_they_keep_of_the_magnitudes():
    weight = torch.tensor([[1.0, -3.0], [2.0, 6.0]])
    codes = torch.tensor([[-1.0, -1.0], [1.0, -1.0]])
    starts = {
        name: latent_start(codes, weight, name) for name in ("magnitude", "mean_magnitude", "code")
    }
    assert torch.allclose(starts["magnitude"], torch.tensor([[-0.5, -1.5], [0.5, -1.5]]))
    assert torch.allclose(
        starts["mean_magnitude"], torch.tensor([[-2 / 3, -2 / 3], [4 / 3, -4 / 3]])
    )
    assert torch.equal(starts["code"], codes)


def test_a_dead_filter_starts_from_its_codes():
    codes = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    weight = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    for latent in ("magnitude", "mean_magnitude"):
        assert torch.equal(latent_start(codes, weight, latent)[0], codes[0])


def test_negative_scales_end_up_in_the_bits():
    layer = binarize_layer(nn.Conv2d(2, 3, 3), torch.ones(3, 2, 3, 3), torch.ones(3))
    RULE.start(layer, torch.randn(3, 2, 3, 3), "magnitude")
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight))
        layer.scale.copy_(torch.tensor([0.5, -2.0, 0.0]))
    layer.quantizer = RULE.quantizer(layer, sign_straight_through)
    images = torch.randn(2, 2, 5, 5)
    before = layer(images)
    RULE.finish(layer)
    assert layer.scale.tolist() == [0.5, 2.0, 0.0]
    assert layer.quantizer is sign_straight_through
    assert torch.allclose(layer(images), before)
    assert set(layer.weight.unique().tolist()) <= {-1.0, 1.0}


def test_further_bases_keep_their_codes_and_their_scales_become_positive():
    codes = torch.where(torch.rand(2, 3, 4) < 0.5, 1.0, -1.0)
    layer = binarize_layer(nn.Linear(4, 3), codes, torch.tensor([[1.0, 1, 1], [-0.5, 0.5, -0.25]]))
    RULE.start(layer, torch.randn(3, 4), "magnitude")
    fed = torch.randn(5, 4)
    before = layer(fed)
    RULE.finish(layer)
    assert (layer.scales >= 0).all()
    assert torch.allclose(layer(fed), before)


# --- optimizers


class Mixed(nn.Module):
    """One binary and one float layer, and batch norm."""

    def __init__(self):
        super().__init__()
        self.first = binarize_layer(nn.Conv2d(1, 4, 3), torch.ones(4, 1, 3, 3), torch.ones(4))
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).mean((2, 3)))


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_only_weights_of_float_layers_decay(name):
    network = Mixed()
    before = {key: value.clone() for key, value in network.named_parameters()}
    recipe = Recipe(epochs=1, optimizer=name, weight_decay=0.1, momentum=0.0)
    optimizer = Optimizer(network, recipe, RULE)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.5)
    for key, value in network.named_parameters():
        shrunk = 1 - 0.5 * 0.1 if key == "last.weight" else 1.0
        assert torch.allclose(value, before[key] * shrunk, atol=1e-7), key


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_an_optimizer_steps_as_the_papers_say(name):
    weight = np.array([[0.5, -2.0]])
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor(weight, dtype=torch.float32)
    optimizer = Optimizer(layer, Recipe(epochs=1, optimizer=name, momentum=0.9), RULE)
    first, second = np.zeros((1, 2)), np.zeros((1, 2))
    for step in range(1, 4):
        gradient = np.array([[0.3 * step, -1.0]])
        layer.weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step(0.01)
        if name == "adam":  # Kingma and Ba, algorithm 1
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            corrected = np.sqrt(second / (1 - 0.999**step)) + 1e-8
            weight = weight - 0.01 * first / (1 - 0.9**step) / corrected
        else:
            first = 0.9 * first + gradient
            weight = weight - 0.01 * first
        assert np.allclose(layer.weight.detach().numpy(), weight, atol=1e-6)


def test_a_rule_sets_the_pace_of_its_latent_weights():
    class Slow(ScaledSignRule):
        def learning_rate_factor(self, layer, steps):
            return 0.25

    network = Mixed()
    before = {key: value.clone() for key, value in network.named_parameters()}
    optimizer = Optimizer(network, Recipe(epochs=1), Slow())
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.4)
    for key, value in network.named_parameters():
        assert torch.allclose(
            before[key] - value, torch.tensor(0.1 if key == "first.weight" else 0.4)
        )


@pytest.mark.parametrize(("steps", "factor"), [(7, 1.0), (70, 1.5), (700, 15.0), (9000, 15.0)])
def test_bits_turn_slower_where_few_steps_are_left_to_settle(steps, factor):
    assert RULE.learning_rate_factor(Mixed().first, steps) == pytest.approx(factor)
    network = Mixed()
    before = network.first.weight.detach().clone()
    optimizer = Optimizer(network, Recipe(epochs=1), RULE, steps=steps)
    network.first.weight.grad = torch.ones_like(before)
    optimizer.step(0.01)
    assert torch.allclose(before - network.first.weight, torch.tensor(0.01 * factor), rtol=1e-3)


def test_a_recipe_may_set_another_pace():
    class Slow(ScaledSignRule):
        def learning_rate_factor(self, layer, steps):
            return 0.25

    network = Mixed()
    before = {key: value.clone() for key, value in network.named_parameters()}
    recipe = Recipe(epochs=1, latent_rate_factor=3.0)
    optimizer = Optimizer(network, recipe, Slow())
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.1)
    for key, value in network.named_parameters():
        assert torch.allclose(
            before[key] - value, torch.tensor(0.3 if key == "first.weight" else 0.1)
        )


@pytest.mark.parametrize(
    "rule", [ScaledSignRule(), MeanMagnitudeRule()], ids=lambda rule: type(rule).__name__
)
@pytest.mark.parametrize("size", [0.006, 1.0, 20.0])
def test_sgd_moves_latent_weights_as_the_weights_they_stand_for(rule, size):
    float_weight = size * torch.tensor([[1.0, -2.0, 3.0, -2.0], [0.5, 1.5, -2.0, 4.0]])
    layer = binarize_layer(nn.Linear(4, 2, bias=False), torch.sign(float_weight), torch.ones(2))
    layer.scale.data = float_weight.abs().mean(dim=1)
    rule.start(layer, float_weight, "magnitude")
    layer.quantizer = rule.quantizer(layer, sign_straight_through)
    optimizer = Optimizer(layer, Recipe(epochs=1, optimizer="sgd", momentum=0.0), rule)
    before = layer.weight.detach().clone()
    fed, wanted = torch.randn(5, 4), torch.randn(5, 2)
    (layer(fed) * wanted).sum().backward()
    optimizer.step(0.05)
    moved = 2 * size * (before - layer.weight.detach())
    assert torch.allclose(moved, 0.05 * wanted.T @ fed, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [0.006, 1.0, 20.0])
def test_adam_moves_scales_by_a_share_of_their_size(size):
    layer = BinaryLinear(5, 3, further_bases=1)
    layer.scale.data = size * torch.tensor([0.5, -1.5, 1.0])
    layer.extra_scale.data = size / 10 * torch.tensor([[1.0, 1.0, 1.0]])
    before = {key: value.clone() for key, value in layer.named_parameters()}
    optimizer = Optimizer(layer, Recipe(epochs=1, latent_rate_factor=2.0), RULE)
    for parameter in layer.parameters():
        parameter.grad = 1e-3 + torch.rand_like(parameter)
    optimizer.step(0.01)
    moved = {key: before[key] - value for key, value in layer.named_parameters()}
    # Adam's first step is the learning rate, whatever the gradient.
    assert torch.allclose(moved["scale"], torch.tensor(0.01 * size), rtol=1e-3)
    assert torch.allclose(moved["extra_scale"], torch.tensor(0.001 * size), rtol=1e-3)
    assert torch.allclose(moved["weight"], torch.tensor(0.02), rtol=1e-3)


def test_further_scales_that_are_all_0_move_by_shares_of_the_first():
    layer = BinaryLinear(5, 3, further_bases=1)
    layer.scale.data = torch.full((3,), 0.006)
    layer.extra_scale.data.zero_()
    optimizer = Optimizer(layer, Recipe(epochs=1), RULE)
    layer.extra_scale.grad = torch.ones_like(layer.extra_scale)
    optimizer.step(0.01)
    assert torch.allclose(layer.extra_scale, torch.tensor(-0.006 * 0.01), rtol=1e-3)


def test_scales_that_are_all_0_still_move():
    layer = BinaryLinear(5, 3, further_bases=1)
    layer.scale.data.zero_()
    layer.extra_scale.data.zero_()
    optimizer = Optimizer(layer, Recipe(epochs=1), RULE)
    layer.extra_scale.grad = torch.ones_like(layer.extra_scale)
    optimizer.step(0.01)
    assert bool((layer.extra_scale < 0).all())


# --- the moving average


def test_moving_average_follows_the_weights_closely_at_first():
    weight = torch.randn(3)
    count = torch.tensor(0)
    average = MovingAverage({"weight": weight, "count": count}, decay=0.3)
    expected = weight.numpy().astype(np.float64)
    for step in range(6):
        weight.normal_()
        count += 1
        average.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.numpy()
    assert np.allclose(average.tensors["weight"], expected, atol=1e-6)
    assert int(average.tensors["count"]) == 6


# --- distillation


def softmax(x):
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_logit_distance_is_the_divergence_from_the_teacher():
    student, teacher = torch.randn(7, 5), torch.randn(7, 5)
    p, q = softmax(teacher.double().numpy() / 3), softmax(student.double().numpy() / 3)
    expected = 9 * (p * np.log(p / q)).sum(axis=1).mean()
    assert float(logit_distance(student, teacher, 3.0)) == pytest.approx(expected, rel=1e-5)
    assert float(logit_distance(teacher, teacher, 3.0)) == pytest.approx(0.0, abs=1e-6)


def test_feature_distance_is_the_mean_relative_squared_error():
    student = {"a": torch.randn(2, 3, 4, 4), "b": torch.randn(2, 5)}
    teacher = {"a": torch.randn(2, 3, 4, 4), "b": 100 * torch.randn(2, 5)}
    expected = np.mean(
        [
            ((student[k] - teacher[k]).square().sum() / teacher[k].square().sum()).item()
            for k in "ab"
        ]
    )
    assert float(feature_distance(student, teacher, Share())) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("architecture", "size", "expected"),
    [
        ("vgg9", 32, ["features.6", "features.13", "features.20", "features"]),
        ("digits_cnn", 8, ["features.6", "features.10"]),
        ("alexnet", 64, ["features.3", "features.7", "features.17"]),
        ("resnet20", 32, [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]),
        ("resnet18", 32, [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in range(2)]),
    ],
)
def test_blocks_of_the_registered_networks(architecture, size, expected):
    network = registry.build(
        architecture, channels=3, height=size, width=size, classes=10, parameters={}
    ).eval()
    assert block_names(network) == expected
    results = BlockResults(network, expected)
    network(torch.zeros(2, 3, size, size))
    assert set(results.take()) == set(expected)
    assert results.take() == {}


# --- stochastic quantisation


def test_all_filters_binary_is_the_plain_quantizer():
    weight = torch.randn(6, 2, 3, 3)
    quantizer = StochasticQuantizer(sign_straight_through, seed=1, layer=0)
    assert torch.equal(quantizer(weight), sign_straight_through(weight))


def test_spared_filters_pass_with_the_magnitude_of_binary_ones():
    weight = torch.randn(8, 2, 3, 3, requires_grad=True)
    quantizer = StochasticQuantizer(sign_straight_through, seed=1, layer=0)
    quantizer.fraction = 0.7
    result = quantizer(weight)
    binary = (result.detach().abs() == 1).flatten(1).all(dim=1)
    assert int(binary.sum()) == 8 - int(0.3 * 8)
    spared = result[~binary]
    assert torch.allclose(spared.abs().flatten(1).mean(dim=1), torch.ones(len(spared)))
    cosine = functional.cosine_similarity(spared.flatten(1), weight[~binary].flatten(1))
    assert torch.allclose(cosine, torch.ones(len(spared)))
    result.sum().backward()
    assert torch.equal(weight.grad[binary], torch.ones_like(weight[binary]))


def test_filters_that_lose_more_are_spared_more_often():
    weight = torch.ones(4, 40)
    for row, outlier in enumerate((1.0, 2.0, 8.0, 30.0)):
        weight[row, 0] = outlier
    chances = sign_errors(weight).numpy().astype(np.float64)
    assert list(chances) == sorted(chances) and chances[0] == 0
    quantizer = StochasticQuantizer(sign_straight_through, seed=3, layer=0)
    quantizer.fraction = 0.75  # one filter of the four
    draws = 2000
    counts = np.zeros(4)
    for step in range(draws):
        quantizer.step = step
        counts += (quantizer(weight).abs() != 1).any(dim=1).numpy()
    expected = draws * chances / chances.sum()
    assert counts[0] == 0
    # Chi-square with two degrees of freedom: 13.8 is passed once in a thousand seeds.
    assert (((counts - expected)[1:] ** 2) / expected[1:]).sum() < 13.8


def test_the_draw_depends_on_seed_layer_and_step_alone():
    weight = torch.randn(64, 9)

    def drawn(seed, layer, step):
        quantizer = StochasticQuantizer(sign_straight_through, seed, layer)
        quantizer.step, quantizer.fraction = step, 0.5
        return (quantizer(weight).abs() != 1).any(dim=1).tolist()

    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    assert drawn(1, 2, 3) != drawn(1, 2, 4) != drawn(1, 3, 3) != drawn(2, 2, 3)


# --- training images


def images(count=23, **options):
    pixels = np.arange(count * 30, dtype=np.uint64).astype(np.uint8).reshape(count, 6, 5, 1)
    return CachedImages(pixels, np.arange(count), GREY, seed=7, **options), pixels


def test_an_epoch_has_every_image_at_most_once_in_whole_batches():
    source, pixels = images(augmentation="none")
    batches = list(source.epoch(0, 5))
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5]
    labels = torch.cat([labels for _, labels in batches]).numpy()
    assert labels.dtype == np.int64 and len(set(labels)) == 20
    inputs = torch.cat([inputs for inputs, _ in batches])
    assert torch.equal(inputs, normalise(pixels[labels], GREY))


def test_rows_choose_the_images():
    source, _ = images(rows=np.array([3, 4, 20]))
    assert len(source) == 3
    ((_, labels),) = source.epoch(0, 3)
    assert sorted(labels.tolist()) == [3, 4, 20]


def test_epochs_differ_and_are_repeatable():
    def all_of(source, epoch):
        return torch.cat([inputs for inputs, _ in source.epoch(epoch, 4)])

    source, _ = images()
    again, _ = images()
    list(again.epoch(0, 4))  # reading one epoch changes no other
    assert torch.equal(all_of(source, 1), all_of(again, 1))
    assert not torch.equal(all_of(source, 1), all_of(source, 2))


def test_processes_share_the_batches():
    source, _ = images()
    whole = list(source.epoch(3, 6))
    parts = [list(source.epoch(3, 6, rank=rank, world=3)) for rank in range(3)]
    for number, (inputs, labels) in enumerate(whole):
        assert torch.equal(inputs, torch.cat([part[number][0] for part in parts]))
        assert torch.equal(labels, torch.cat([part[number][1] for part in parts]))
    with pytest.raises(ValueError, match="divided"):
        next(source.epoch(0, 5, world=2))


def test_images_are_mirrored_and_moved_and_the_border_is_black():
    random = np.random.default_rng(0)
    pixels = random.integers(1, 256, (50, 6, 5, 3), dtype=np.uint8)
    mirrored = random.random(50) < 0.5
    down, right = random.integers(-SHIFT_PIXELS, SHIFT_PIXELS + 1, (2, 50))
    moved = flip_and_shift(pixels, mirrored, down, right)
    for n in range(50):
        picture = pixels[n, :, ::-1] if mirrored[n] else pixels[n]
        for y in range(6):
            for x in range(5):
                inside = 0 <= y - down[n] < 6 and 0 <= x - right[n] < 5
                expected = picture[y - down[n], x - right[n]] if inside else np.zeros(3)
                assert np.array_equal(moved[n, y, x], expected)


def test_what_cached_images_cannot_do_is_refused():
    with pytest.raises(ValueError, match="whole images"):
        images(augmentation="random_resized_crop")
    with pytest.raises(ValueError, match="labels"):
        CachedImages(np.zeros((2, 6, 5, 1), np.uint8), np.arange(3), GREY, seed=0)


# --- forms of a network, batch norm, precision


@pytest.mark.parametrize("architecture", ["digits_cnn", "resnet20"])
def test_forms_are_copies_that_compute_the_same(architecture):
    network = registry.build(
        architecture, channels=1, height=8, width=8, classes=10, parameters={}
    ).eval()
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2.0)
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    batch = torch.randn(3, 1, 8, 8)
    expected = network(batch)
    assert torch.allclose(teacher_form(network)(batch), expected, atol=1e-5)
    trained = training_form(network)
    assert trained.training
    assert torch.allclose(trained.eval()(batch), expected, atol=1e-5)
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())
    assert not any(getattr(module, "inplace", False) for module in network.modules())


def test_reestimated_statistics_are_the_mean_over_batches():
    norm = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).train()
    batches = [torch.randn(4, 1, 3, 3) + shift for shift in range(3)]
    with torch.no_grad():
        maps = [norm[0](batch) for batch in batches]
    reestimate(norm, batches)
    mean = torch.stack([one.mean((0, 2, 3)) for one in maps]).mean(dim=0)
    variance = torch.stack([one.transpose(0, 1).flatten(1).var(dim=1) for one in maps]).mean(dim=0)
    assert torch.allclose(norm[1].running_mean, mean, atol=1e-6)
    assert torch.allclose(norm[1].running_var, variance, atol=1e-6)
    assert not norm[1].training and norm[1].momentum == 0.1


def test_precision_is_what_was_asked_for():
    cpu = torch.device("cpu")
    assert uses_bfloat16("bfloat16", cpu) and not uses_bfloat16("float32", cpu)
    with open("/proc/cpuinfo") as file:
        flags = file.read()
    assert uses_bfloat16("auto", cpu) == ("avx512_bf16" in flags or "amx_bf16" in flags)
