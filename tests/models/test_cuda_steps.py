"""The steps of whole networks with the kernels that a GPU runs, here in Triton's interpreter."""

import copy
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models import bits, registry
from models.layers import BinaryConv2d, BinaryLinear
from models.operators import Conv2d, Flatten, Linear, MaxPool2d, SignPack
from models.plan import Plan
from models.quantization import Scale, quantize_inputs
from models.runtime.compilation import compile_plan
from models.runtime.gpu_compilation import gpu_program
from models.runtime.gpu_execution import GpuExecution
from models.runtime.reference import ReferenceRuntime

pytest.importorskip("triton", reason="needs Triton, of the extra gpu")

from models.runtime.gpu_kernels import GpuKernels

CPU = torch.device("cpu")
POISON = 0x7B
PLAIN = runpy.run_path(str(Path(__file__).with_name("plain_gpu_kernels.py")))


class InterpretedKernels(GpuKernels):
    """Those of a GPU, but for signs, which CUDA C++ multiplies and nothing here can run."""

    def product(self, step, device):
        if step.finish.epilogue.read == "b1":
            return PLAIN["PlainProduct"](step)
        return super().product(step, device)


def executed(plan, tensors, x):
    program = gpu_program(compile_plan(plan, tensors))
    execution = GpuExecution(program, CPU, InterpretedKernels(autotune=False), len(x))
    execution._memory.fill_(POISON)
    execution.images(len(x)).copy_(x)
    with torch.inference_mode():
        for launch in execution.bind(len(x)):
            launch()
    return execution.result(len(x)).float()


def network(name, shape, parameters, randomise, binarize, keep_float=()):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        channels, height, width = shape
        net = registry.build(
            name, channels=channels, height=height, width=width, classes=10, parameters=parameters
        ).eval()
    randomise(net)
    binarize(net, keep_float)
    return net


def images(shape, count=2):
    return torch.from_numpy(np.random.default_rng(0).normal(size=(count, *shape))).float()


def quantize_activations(net, x):
    """Round what every binary layer is fed to 8 bits, over the range that it sees on ``x``."""
    scales = {}
    layers = {
        name: layer
        for name, layer in net.named_modules()
        if isinstance(layer, BinaryConv2d | BinaryLinear)
    }

    def observe(name):
        def hook(layer, inputs):
            scales[name] = Scale.covering(inputs[0].min().item(), inputs[0].max().item())

        return hook

    hooks = [layer.register_forward_pre_hook(observe(name)) for name, layer in layers.items()]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    quantize_inputs(net, scales)


@pytest.mark.parametrize("rounded", [False, True])
def test_a_plain_network_answers_as_the_reference_does(rounded, randomise, binarize, make_artifact):
    shape = (3, 8, 8)
    net, x = network("vgg9", shape, {"width": 0.04}, randomise, binarize), images(shape, 1)
    assert_answers_alike(net, x, rounded, make_artifact)


@pytest.mark.parametrize("rounded", [False, True])
def test_a_residual_network_answers_as_the_reference_does(
    rounded, small_net, small_images, make_artifact
):
    """Sums of three kinds, prelu, a layer with float weights, channels padded and rows left out."""
    assert_answers_alike(copy.deepcopy(small_net), small_images[:2], rounded, make_artifact)


def assert_answers_alike(net, x, rounded, make_artifact):
    if rounded:
        quantize_activations(net, x)
    artifact = make_artifact(net, tuple(x.shape[1:]))
    wanted = ReferenceRuntime(artifact).run(x)
    found = executed(artifact.plan, artifact.tensors, x).flatten(1)
    if rounded:
        assert torch.equal(found, wanted)
    else:
        assert torch.allclose(found, wanted, atol=0.01 * wanted.abs().max().item())


def test_signs_between_layers_of_bits_give_the_very_numbers():
    """Bits that one product writes and the next reads, past a threshold per channel."""
    nodes = (
        SignPack(name="s0", input="input"),
        Conv2d(
            name="one", input="s0", channels=34, kernel=(3, 3), padding=(1, 1), pad_value=1,
        ),
        SignPack(name="s1", input="one", per_channel=True),
        MaxPool2d(name="pool", input="s1", kernel=(2, 2), stride=(2, 2)),
        Conv2d(name="two", input="pool", channels=32, kernel=(3, 3), padding=(1, 1), affine=True),
        SignPack(name="s2", input="two"),
        Flatten(name="flat", input="s2"),
        Linear(name="fc", input="flat", channels=4, affine=True),
    )  # fmt: skip
    plan = Plan((5, 6, 6), nodes, "fc")
    rng = np.random.default_rng(5)
    tensors = {}
    layers = {node.name: node for node in nodes}
    for name, spec in plan.tensors.items():
        if spec.dtype == "F32":
            tensors[name] = rng.integers(-1, 2, spec.shape).astype(np.float32)
            continue
        layer = layers[name.removesuffix(".bits")]
        shape = layer.weight_shape(plan.source_shapes(layer))
        tensors[name] = bits.pack(rng.choice(np.array([-1, 1], np.int8), shape))[None]
    x = images(plan.input_shape)
    wanted = ReferenceRuntime(SimpleNamespace(plan=plan, tensors=tensors)).run(x)
    assert torch.equal(executed(plan, tensors, x).flatten(1), wanted)
