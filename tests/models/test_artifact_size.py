"""What is foreseen of an artifact, held against artifacts that were made."""

from collections.abc import Collection, Mapping
from typing import Any

import pytest
import torch

from models import artifact, registry
from models.artifact_size import artifact_bytes, packed_layer
from models.layers import binarizable_layers, binarize_layer, float32_bytes, replace_layer
from models.lowering import lower
from models.preprocessing import InputSpec
from models.quantization import Scale, quantize_inputs
from models.workload import workload

HEADING: Mapping[str, Any] = {
    "labels": [f"class {number}" for number in range(10)],
    "provenance": {"seed": 0, "digests": {"checkpoint": "sha256:" + "0" * 64}},
    "accuracy": {"full_precision": 0.8863, "packed": 0.8719},
}
CASES = {
    "digits_cnn": ("digits_cnn", (1, 8, 8), {}, ()),
    "vgg9": ("vgg9", (3, 32, 32), {}, ()),
    "vgg9, narrow": ("vgg9", (3, 32, 32), {"width": 0.25}, ()),
    "vgg9, narrowest": ("vgg9", (3, 32, 32), {"width": 0.125}, ("features.0",)),
    "resnet20": ("resnet20", (3, 32, 32), {}, ("conv1", "linear")),
    "resnet20, B": ("resnet20", (3, 32, 32), {"shortcut": "B"}, ("conv1",)),
    "resnet18": ("resnet18", (3, 64, 64), {}, ("conv1", "fc")),
}


def made(
    name: str,
    shape: tuple[int, int, int],
    parameters: Mapping[str, Any],
    kept: Collection[str],
    bases: Mapping[str, int],
    activation_bits: int,
) -> tuple[artifact.Artifact, torch.nn.Module]:
    """Return an artifact of drawn bits, and the float network."""
    torch.manual_seed(0)
    size = dict(zip(("channels", "height", "width"), shape, strict=True))
    network = registry.build(name, **size, classes=10, parameters=parameters).eval()
    original = registry.build(name, **size, classes=10, parameters=parameters)
    with torch.no_grad():
        for parameter in network.parameters():  # where training leaves no bias at 0
            parameter.add_(0.01)
    for layer_name, layer in binarizable_layers(network).items():
        if layer_name in kept:
            continue
        count = bases.get(layer_name, 1)
        codes = torch.randint(0, 2, (count, *layer.weight.shape)) * 2 - 1
        scale, offset = torch.rand(count, len(layer.weight)) + 0.1, torch.rand(len(layer.weight))
        replace_layer(network, layer_name, binarize_layer(layer, codes, scale, offset))
    if activation_bits < 32:
        rounded = [one for one in binarizable_layers(network) if one not in kept]
        quantize_inputs(network, {one: Scale.covering(-0.37, 2.91) for one in rounded})
    plan, tensors = lower(network, shape)
    fed = InputSpec(*shape, mean=(0.0,) * shape[0], std=(1.0,) * shape[0])
    made = artifact.Artifact(
        plan, tensors, fed, tuple(HEADING["labels"]), HEADING["provenance"], HEADING["accuracy"]
    )
    return made, original


@pytest.mark.parametrize("activation_bits", [32, 8])
@pytest.mark.parametrize("case", CASES)
def test_the_bytes_foreseen_are_within_two_percent(case: str, activation_bits: int) -> None:
    name, shape, parameters, kept = CASES[case]
    size = dict(zip(("channels", "height", "width"), shape, strict=True))
    work = workload(name, **size, classes=10, parameters=parameters)
    order = [layer.name for layer in work.layers]
    bases = {next(one for one in order if one not in kept): 3}
    packed, original = made(name, shape, parameters, kept, bases, activation_bits)
    assert work.float_bytes == float32_bytes(original)
    assert work.parameters == sum(parameter.numel() for parameter in original.parameters())
    layers = [
        packed_layer(layer, bases=0 if layer.name in kept else bases.get(layer.name, 1))
        for layer in work.layers
    ]
    for one in layers:
        own = f"{one.layer.name}."
        tensors = [value for key, value in packed.tensors.items() if key.startswith(own)]
        assert one.bytes == sum(tensor.nbytes for tensor in tensors)
    heading = {**HEADING, "input": packed.input.to_json()}
    foreseen = artifact_bytes(work, layers, activation_bits=activation_bits, heading=heading)
    assert foreseen == pytest.approx(len(artifact.encode(packed)), rel=0.02)
    # A layer counts for each basis in the plan's multiply-accumulates.
    assert packed.plan.macs == sum(layer.macs * bases.get(layer.name, 1) for layer in work.layers)


@pytest.mark.parametrize("name", registry.ARCHITECTURES)
def test_layers_stand_in_the_order_of_execution(name: str) -> None:
    channels, height, width = registry.ARCHITECTURES[name].default_input
    size = {"channels": channels, "height": height, "width": width}
    work = workload(name, **size, classes=7, parameters={})
    expected = registry.layer_names(name, **size, classes=7, parameters={})
    assert sorted(layer.name for layer in work.layers) == sorted(expected)
    network = registry.build(name, **size, classes=7, parameters={}).eval()
    order: list[str] = []
    for layer_name, layer in binarizable_layers(network).items():
        layer.register_forward_pre_hook(lambda *_, found=layer_name: order.append(found))
    with torch.inference_mode():
        network(torch.zeros(1, channels, height, width))
    assert [layer.name for layer in work.layers] == order


def test_a_network_that_no_memory_could_hold_is_told() -> None:
    work = workload(
        "vgg9",
        channels=3,
        height=1024,
        width=1024,
        classes=65_536,
        parameters={"width": 16},
    )
    assert work.float_bytes > 10**13
    assert work.layers[-1].shape == (65_536, 8192 * 128 * 128)
