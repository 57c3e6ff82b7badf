"""The networks: keys that the world's checkpoints have, sizes, and what each forward pass does."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from models import registry
from models.zoo.alexnet import AlexNet
from models.zoo.digits import DigitsCNN
from models.zoo.resnet import Bottleneck, resnet18, resnet34, resnet50
from models.zoo.resnet_cifar import SubsamplePad, resnet20, resnet56
from models.zoo.vgg import VGG9
from store.errors import InvalidSpec

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("BITPRESS_SHARED", ROOT / "../shared"))
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the shared checkpoints (BITPRESS_SHARED) are not here"
)
SMALL_INPUT = {"alexnet": (64, 64), "digits_cnn": (8, 8)}


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", registry.ARCHITECTURES)
def test_every_net_takes_other_sizes_channels_and_class_counts(name: str) -> None:
    height, width = SMALL_INPUT.get(name, (32, 32))
    width += 9
    module = registry.build(
        name, channels=1, height=height, width=width, classes=7, parameters={}
    ).eval()
    with torch.inference_mode():
        logits = module(torch.randn(2, 1, height, width))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    assert logits.std() > 0


@pytest.mark.parametrize("name", registry.ARCHITECTURES)
def test_equal_seeds_build_equal_nets(name: str) -> None:
    height, width = SMALL_INPUT.get(name, (32, 32))
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        module = registry.build(
            name, channels=3, height=height, width=width, classes=3, parameters={}
        )
        states.append(module.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.cifar
@needs_shared
def test_vgg9_has_the_keys_and_shapes_of_the_shared_checkpoint() -> None:
    with safe_open(SHARED / "checkpoints/vgg9_cifar10.safetensors", "pt") as file:
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    assert found == registry.expected_shapes(
        "vgg9", channels=3, height=32, width=32, classes=10, parameters={}
    )


def test_vgg9_has_no_pool_after_its_last_convolution() -> None:
    module = VGG9(3, (32, 32), 10)
    pools = [i for i, layer in enumerate(module.features) if isinstance(layer, nn.MaxPool2d)]
    assert pools == [6, 13, 20]
    assert isinstance(module.features[-1], nn.ReLU)
    assert module.classifier.in_features == 512 * 4 * 4


def test_vgg9_width_multiplies_every_layer() -> None:
    module = VGG9(3, (32, 32), 10, width=0.25)
    convolutions = [layer for layer in module.features if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [16, 16, 32, 32, 64, 64, 128, 128]


@pytest.mark.parametrize(
    ("build", "count"), [(resnet20, 269_722), (resnet56, 853_018)], ids=["resnet20", "resnet56"]
)
def test_cifar_resnets_have_the_published_parameter_count(
    build: Callable[..., nn.Module], count: int
) -> None:
    assert parameter_count(build(3, (32, 32), 10)) == count


def test_option_a_subsamples_and_pads_channels_with_zeros() -> None:
    x = torch.arange(2 * 2 * 5 * 4, dtype=torch.float32).reshape(2, 2, 5, 4)
    y = SubsamplePad(2)(x)
    assert y.shape == (2, 4, 3, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, 0].any()
    assert not y[:, 3].any()


def test_option_b_has_a_convolution_where_a_stage_begins() -> None:
    option_a = set(resnet20(3, (32, 32), 10).state_dict())
    option_b = set(resnet20(3, (32, 32), 10, shortcut="B").state_dict())
    added = {key.removesuffix(".weight") for key in option_b - option_a if "weight" in key}
    assert added == {f"layer{i}.0.shortcut.{j}" for i in (2, 3) for j in (0, 1)}
    assert option_a <= option_b


@pytest.mark.parametrize(
    ("build", "count"),
    [(resnet18, 11_689_512), (resnet34, 21_797_672), (resnet50, 25_557_032)],
    ids=["resnet18", "resnet34", "resnet50"],
)
def test_imagenet_resnets_have_torchvisions_parameter_count(
    build: Callable[..., nn.Module], count: int
) -> None:
    with torch.device("meta"):
        assert parameter_count(build(3, (224, 224), 1000)) == count


def test_imagenet_resnets_have_torchvisions_keys() -> None:
    with torch.device("meta"):
        small = {
            key: tuple(value.shape)
            for key, value in resnet18(3, (224, 224), 1000).state_dict().items()
        }
        large = {
            key: tuple(value.shape)
            for key, value in resnet50(3, (224, 224), 1000).state_dict().items()
        }
    assert list(small)[:6] == [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "bn1.running_mean",
        "bn1.running_var",
        "bn1.num_batches_tracked",
    ]
    assert list(small)[-2:] == ["fc.weight", "fc.bias"]
    assert "layer1.0.downsample.0.weight" not in small
    assert small["layer2.0.downsample.0.weight"] == (128, 64, 1, 1)
    assert small["layer2.0.downsample.1.running_var"] == (128,)
    assert small["layer4.1.conv2.weight"] == (512, 512, 3, 3)
    assert large["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert large["layer3.5.conv3.weight"] == (1024, 256, 1, 1)
    assert large["fc.weight"] == (1000, 2048)


def test_a_bottleneck_strides_in_its_3x3_convolution() -> None:
    with torch.device("meta"):
        module = resnet50(3, (224, 224), 10)
    first = module.layer2[0]
    assert isinstance(first, Bottleneck)
    assert (first.conv1.stride, first.conv2.stride) == ((1, 1), (2, 2))


def test_alexnet_normalises_after_every_layer() -> None:
    with torch.device("meta"):
        module = AlexNet(3, (224, 224), 1000)
    layers = [*module.features, *module.classifier]
    weighted = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d | nn.Linear)]
    norms = [nn.BatchNorm2d] * 5 + [nn.BatchNorm1d] * 3
    assert [type(layers[i + 1]) for i in weighted] == norms
    assert [layers[i].bias for i in weighted] == [None] * 8
    assert layers[-1] is layers[weighted[-1] + 1]
    assert [layers[i].weight.shape[0] for i in weighted] == [
        96,
        256,
        384,
        384,
        256,
        4096,
        4096,
        1000,
    ]
    assert layers[weighted[5]].in_features == 256 * 6 * 6


def test_alexnet_drops_out_in_training_only() -> None:
    with torch.device("meta"):
        module = AlexNet(3, (64, 64), 10, dropout=0.25)
    assert [layer.p for layer in module.classifier if isinstance(layer, nn.Dropout)] == [0.25, 0.25]


def test_digits_cnn_has_more_than_a_hundred_thousand_weights() -> None:
    module = DigitsCNN(1, (8, 8), 10)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert sum(layer.weight.numel() for layer in layers) >= 100_000
    assert parameter_count(module) == 227_530


@pytest.mark.parametrize(("name", "least"), [("vgg9", 8), ("alexnet", 63), ("digits_cnn", 4)])
def test_the_smallest_input_works_and_a_smaller_one_is_refused(name: str, least: int) -> None:
    module = registry.build(
        name, channels=1, height=least, width=least, classes=2, parameters={}
    ).eval()
    with torch.inference_mode():
        assert module(torch.randn(2, 1, least, least)).shape == (2, 2)
    for height, width in ((least - 1, 100), (100, least - 1)):
        with pytest.raises(InvalidSpec, match=f"{height} x {width}") as caught:
            registry.build(name, channels=1, height=height, width=width, classes=2, parameters={})
        assert caught.value.field == "spec.input"
        assert f"{least} x {least}" in str(caught.value.remedy)


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50"])
def test_residual_nets_take_the_smallest_image_that_a_job_may_have(name: str) -> None:
    module = registry.build(name, channels=3, height=4, width=5, classes=2, parameters={}).eval()
    with torch.inference_mode():
        assert module(torch.randn(1, 3, 4, 5)).shape == (1, 2)
