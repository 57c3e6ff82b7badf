"""The steps of whole networks with the kernels that a GPU runs, here in Triton's interpreter."""

import copy
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models.runtime.compilation import compile_plan
from models.runtime.gpu_compilation import gpu_program
from models.runtime.gpu_execution import GpuExecution
from models.runtime.reference import ReferenceRuntime

pytest.importorskip("triton", reason="needs Triton, of the extra gpu")

from models.runtime.gpu_kernels import GpuKernels

CPU = torch.device("cpu")
POISON = 0x7B
PLAIN = runpy.run_path(str(Path(__file__).with_name("plain_gpu_kernels.py")))
NETWORKS = runpy.run_path(str(Path(__file__).with_name("gpu_networks.py")))


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


@pytest.mark.parametrize("rounded", [False, True])
def test_a_plain_network_answers_as_the_reference_does(rounded, randomise, binarize, make_artifact):
    shape = (3, 8, 8)
    net = NETWORKS["network"]("vgg9", shape, {"width": 0.04}, randomise, binarize)
    x = NETWORKS["images"](shape, 1)
    assert_answers_alike(net, x, rounded, make_artifact)


@pytest.mark.parametrize("rounded", [False, True])
def test_a_residual_network_answers_as_the_reference_does(
    rounded, small_net, small_images, binarize, make_artifact
):
    """Sums of three kinds, prelu, channels padded and rows left out; float weights in one case."""
    net = copy.deepcopy(small_net)
    if rounded:  # sums with float weights are rounded in another way than the reference's
        binarize(net)
    assert_answers_alike(net, small_images[:2], rounded, make_artifact)


def assert_answers_alike(net, x, rounded, make_artifact):
    if rounded:
        NETWORKS["quantize_activations"](net, x)
    artifact = make_artifact(net, tuple(x.shape[1:]))
    wanted = ReferenceRuntime(artifact).run(x)
    found = executed(artifact.plan, artifact.tensors, x).flatten(1)
    if rounded:
        assert torch.equal(found, wanted)
    else:
        assert torch.allclose(found, wanted, atol=0.01 * wanted.abs().max().item())


def test_signs_between_layers_of_bits_give_the_very_numbers():
    """Bits that one product writes and the next reads, past a threshold per channel."""
    plan, tensors = NETWORKS["sign_network"]()
    x = NETWORKS["images"](plan.input_shape, 2)
    wanted = ReferenceRuntime(SimpleNamespace(plan=plan, tensors=tensors)).run(x)
    assert torch.equal(executed(plan, tensors, x).flatten(1), wanted)
