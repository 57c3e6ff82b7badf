"""The runtime ``cuda`` as its callers meet it: on a GPU, and its batches rehearsed without one."""

import copy
import gc
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models.runtime import Runtime
from models.runtime.compilation import compile_plan
from models.runtime.cuda import CudaRuntime
from models.runtime.cuda_graphs import sizes_up_to
from models.runtime.gpu_compilation import gpu_program
from models.runtime.gpu_execution import GpuExecution
from models.runtime.gpu_memory import most_images, place_values
from models.runtime.gpu_program import GpuProgram, GpuValue
from models.runtime.reference import ReferenceRuntime

HERE = Path(__file__)
NETWORKS = runpy.run_path(str(HERE.with_name("gpu_networks.py")))
PLAIN = runpy.run_path(str(HERE.with_name("plain_gpu_kernels.py")))
CPU = torch.device("cpu")

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]


def on_gpu(test):
    for mark in needs_gpu:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def rounded_artifact(small_net, small_images, make_artifact):
    net = copy.deepcopy(small_net)
    NETWORKS["quantize_activations"](net, small_images)
    return make_artifact(net, (3, 8, 8))


@pytest.fixture(scope="module")
def vgg(randomise, binarize):
    return NETWORKS["network"]("vgg9", (3, 8, 8), {"width": 0.25}, randomise, binarize)


def close(found, wanted):
    return torch.allclose(found, wanted, atol=0.01 * wanted.abs().max().item())


class Rehearsal:
    """Stands in for graphs, the dispatching thread and the device."""

    def __init__(self, execution, sizes):
        self.sizes, self.replayed = sizes, []
        self._execution = execution

    def size_for(self, images):
        return next(size for size in self.sizes if size >= images)

    def replay(self, size):
        self.replayed.append(size)
        for launch in self._execution.bind(size):
            launch()

    def run(self, work, then):
        work()
        then()


@pytest.fixture
def rehearsed(rounded_artifact):
    """A runtime whose graphs are plain torch on the processor, for batches of up to 4 images."""
    plan = rounded_artifact.plan
    program = gpu_program(compile_plan(plan, rounded_artifact.tensors))
    runtime = object.__new__(CudaRuntime)
    runtime._device = CPU
    runtime._input_shape, runtime._output_shape = plan.input_shape, plan.output_shape
    runtime._execution = GpuExecution(program, CPU, PLAIN["PlainKernels"](), 4)
    runtime._graphs = Rehearsal(runtime._execution, (1, 2, 4))
    runtime._read = torch.full((4, *plan.input_shape), torch.nan)
    runtime._written = torch.full((4, *plan.output_shape), torch.nan)
    runtime._dispatch = runtime._graphs
    return runtime


@pytest.mark.parametrize(
    ("images", "batches"), [(0, []), (1, [1]), (3, [4]), (4, [4]), (11, [4, 4, 4]), (10, [4, 4, 2])]
)
def test_requests_are_rounded_up_to_a_graph_and_cut_to_the_largest(
    rehearsed, rounded_artifact, small_images, images, batches
):
    x = small_images[:images]
    assert torch.equal(rehearsed.run(x), ReferenceRuntime(rounded_artifact).run(x))
    assert rehearsed._graphs.replayed == batches


def test_images_of_before_have_no_say_in_a_batch_that_is_not_full(rehearsed, small_images):
    wanted = rehearsed.run(small_images[:3])
    rehearsed.static_input(4).fill_(torch.nan)
    assert torch.equal(rehearsed.run(small_images[:3]), wanted)


@pytest.mark.parametrize(
    "x", [torch.zeros(1, 3, 8, 9), torch.zeros(1, 3, 8, 8).double(), torch.zeros(3, 8, 8)]
)
def test_images_of_another_shape_or_dtype_are_refused(rehearsed, x):
    with pytest.raises(ValueError, match="float32"):
        rehearsed.run(x)


def test_only_graphs_that_there_are_can_be_replayed(rehearsed):
    assert rehearsed.static_input(2).shape == (2, 3, 8, 8)
    for ask in (rehearsed.static_input, rehearsed.replay):
        with pytest.raises(ValueError, match="1, 2, 4"):
            ask(3)


def test_graphs_are_made_for_powers_of_two_and_the_cap():
    assert sizes_up_to(1) == (1,)
    assert sizes_up_to(2) == (1, 2)
    assert sizes_up_to(6) == (1, 2, 4, 6)
    assert sizes_up_to(64) == (1, 2, 4, 8, 16, 32, 64)


def test_a_batch_is_bounded_by_memory_and_by_what_kernels_can_count():
    program = GpuProgram((GpuValue(1 << 20, 32, 2, "i8"),), (), 0)
    assert place_values(program).bytes == 1 << 26
    assert most_images(program, 1 << 28) == 4
    assert most_images(program, 1 << 50) == 31
    assert most_images(program, 0) == 1


@on_gpu
@pytest.mark.parametrize("rounded", [False, True])
def test_every_batch_size_answers_as_the_reference_does(
    rounded, small_net, vgg, small_images, make_artifact
):
    for net in map(copy.deepcopy, (small_net, vgg)):
        if rounded:
            NETWORKS["quantize_activations"](net, small_images)
        artifact = make_artifact(net, (3, 8, 8))
        runtime = CudaRuntime(artifact, max_batch_images=8, autotune=False)
        assert isinstance(runtime, Runtime) and runtime.batch_sizes == (1, 2, 4, 8)
        wanted = ReferenceRuntime(artifact).run(small_images)
        for count in (0, 1, 2, 3, 5, 8, 13):
            found = runtime.run(small_images[:count])
            assert found.device.type == "cpu" and found.dtype == torch.float32
            if rounded:
                assert torch.equal(found, wanted[:count])
            else:
                assert count == 0 or close(found, wanted[:count])


@on_gpu
def test_bits_by_bits_give_the_very_numbers():
    plan, tensors = NETWORKS["sign_network"]()
    artifact = SimpleNamespace(plan=plan, tensors=tensors)
    x = NETWORKS["images"](plan.input_shape, 7)
    runtime = CudaRuntime(artifact, batch_sizes=(4,), autotune=False)
    assert torch.equal(runtime.run(x), ReferenceRuntime(artifact).run(x))


@on_gpu
def test_threads_share_a_runtime_and_others_are_loaded_meanwhile(rounded_artifact, small_images):
    runtime = CudaRuntime(rounded_artifact, max_batch_images=4, autotune=False)
    wanted = ReferenceRuntime(rounded_artifact).run(small_images)

    def ask(first):
        with torch.inference_mode(first % 2 == 0):
            return [runtime.run(small_images[first:]) for _ in range(50)]

    with ThreadPoolExecutor(5) as threads:
        asked = [threads.submit(ask, first) for first in range(4)]
        second = threads.submit(CudaRuntime, rounded_artifact, max_batch_images=2, autotune=False)
        for first, answers in enumerate(asked):
            assert all(torch.equal(found, wanted[first:]) for found in answers.result())
        assert torch.equal(second.result().run(small_images), wanted)


@on_gpu
def test_memory_is_taken_when_a_model_is_loaded_and_given_back_with_it(
    rounded_artifact, small_images
):
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    runtime = CudaRuntime(rounded_artifact, max_batch_images=4, autotune=False)
    assert runtime.device_bytes > runtime.resident_bytes > 0 < runtime.activation_bytes
    runtime.run(small_images)
    loaded, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for count in (1, 16, 3, 7) * 10:
        runtime.run(small_images[:count])
    assert torch.cuda.memory_allocated() == loaded
    assert torch.cuda.memory_reserved() == reserved
    del runtime
    gc.collect()
    # But for what libraries keep for a stream.
    assert torch.cuda.memory_allocated() - before <= 64 << 20


@on_gpu
def test_a_graph_can_be_replayed_on_the_device_alone(rounded_artifact, small_images):
    runtime = CudaRuntime(rounded_artifact, batch_sizes=(8,), autotune=False)
    wanted = runtime.run(small_images[:8])
    runtime.static_input(8).copy_(small_images[:8])
    runtime.replay(8)
    torch.cuda.synchronize()
    found = runtime._execution.result(8).flatten(1).cpu()
    assert torch.equal(found, wanted)
