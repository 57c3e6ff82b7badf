"""The runtime ``cuda`` as its callers meet it: on a GPU, and its batches rehearsed without one."""

import copy
import gc
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models import runtime
from models.runtime import Runtime, cuda, cuda_graphs, gpu_dispatch
from models.runtime.compilation import compile_plan
from models.runtime.cuda import CudaRuntime
from models.runtime.cuda_graphs import sizes_up_to
from models.runtime.gpu_compilation import gpu_program
from models.runtime.gpu_execution import GpuExecution
from models.runtime.gpu_memory import most_images, place_values
from models.runtime.gpu_program import GpuProgram, GpuValue, InputStep
from models.runtime.reference import ReferenceRuntime
from store.errors import Unavailable

HERE = Path(__file__)
NETWORKS = runpy.run_path(str(HERE.with_name("gpu_networks.py")))
PLAIN = runpy.run_path(str(HERE.with_name("plain_gpu_kernels.py")))
SIMULATED = runpy.run_path(str(HERE.with_name("simulated_gpu.py")))

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]


def on_gpu(test):
    for mark in needs_gpu:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def binary_net(small_net, binarize):
    """`small_net` without float layers, whose sums any order of adding may round."""
    net = copy.deepcopy(small_net)
    binarize(net)
    return net


@pytest.fixture(scope="module")
def rounded_artifact(binary_net, small_images, make_artifact):
    net = copy.deepcopy(binary_net)
    NETWORKS["quantize_activations"](net, small_images)
    return make_artifact(net, (3, 8, 8))


@pytest.fixture(scope="module")
def vgg(randomise, binarize):
    return NETWORKS["network"]("vgg9", (3, 8, 8), {"width": 0.25}, randomise, binarize)


def close(found, wanted):
    return torch.allclose(found, wanted, atol=0.01 * wanted.abs().max().item())


def gpu_kernels_module():
    pytest.importorskip("triton", reason="needs Triton, of the extra gpu")
    from models.runtime import gpu_kernels

    return gpu_kernels


@pytest.fixture
def replayed(monkeypatch):
    """A GPU that is simulated, its kernels too; the sizes of the graphs that are replayed."""
    plain = PLAIN["PlainKernels"]
    monkeypatch.setattr(gpu_kernels_module(), "GpuKernels", lambda **choice: plain())
    yield SIMULATED["install"](monkeypatch)
    # Nobody else is to meet the stand-ins.
    gpu_dispatch._dispatch.cache_clear()
    cuda_graphs._stream.cache_clear()


@pytest.fixture
def rehearsed(replayed, rounded_artifact):
    return CudaRuntime(rounded_artifact, max_batch_images=4)


@pytest.mark.parametrize(
    ("images", "batches"), [(0, []), (1, [1]), (3, [4]), (4, [4]), (11, [4, 4, 4]), (10, [4, 4, 2])]
)
def test_requests_are_rounded_up_to_a_graph_and_cut_to_the_largest(
    rehearsed, replayed, rounded_artifact, small_images, images, batches
):
    x = small_images[:images]
    assert torch.equal(rehearsed.run(x), ReferenceRuntime(rounded_artifact).run(x))
    assert replayed == batches


def test_callers_may_be_in_inference_mode_and_on_several_threads(
    rehearsed, rounded_artifact, small_images
):
    wanted = ReferenceRuntime(rounded_artifact).run(small_images)

    def ask(count):
        with torch.inference_mode(count % 2 == 0):
            return rehearsed.run(small_images[:count])

    with ThreadPoolExecutor(4) as threads:
        for count, found in enumerate(threads.map(ask, range(12))):
            assert torch.equal(found, wanted[:count])


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


def test_only_graphs_that_there_are_can_be_replayed(rehearsed, replayed):
    rehearsed.replay(2)
    assert rehearsed.static_input(2).shape == (2, 3, 8, 8) and replayed == [2]
    for ask in (rehearsed.static_input, rehearsed.replay):
        with pytest.raises(ValueError, match="1, 2, 4"):
            ask(3)


def test_what_a_model_takes_of_the_device_is_told(rehearsed):
    assert isinstance(rehearsed, Runtime)
    assert (rehearsed.name, rehearsed.kernels) == ("cuda", "sm_90")
    assert rehearsed.resident_bytes > 0
    buffers = rehearsed.device_bytes - rehearsed.resident_bytes - SIMULATED["POOL_BYTES"]
    assert buffers == 4 * rehearsed.activation_bytes > 0


def test_batches_are_smaller_where_memory_is_short(monkeypatch, replayed, rounded_artifact):
    image_bytes = CudaRuntime(rounded_artifact, batch_sizes=(1,)).activation_bytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (7 * image_bytes, 1 << 40))
    assert CudaRuntime(rounded_artifact).batch_sizes == (1, 2, 3)
    assert CudaRuntime(rounded_artifact, batch_sizes=(5, 8)).batch_sizes == (5, 8)


def test_a_device_without_room_is_refused_and_says_so(monkeypatch, replayed, rounded_artifact):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    with pytest.raises(Unavailable, match="no room") as caught:
        CudaRuntime(rounded_artifact)
    assert "'cpu'" in caught.value.remedy


def test_a_gpu_that_torch_cannot_use_is_refused(monkeypatch, replayed, rounded_artifact):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unavailable, match="torch cannot use it") as caught:
        CudaRuntime(rounded_artifact)
    assert "'cpu'" in caught.value.remedy


def test_whatever_goes_wrong_while_a_network_is_prepared_another_runtime_serves_it(
    monkeypatch, replayed, rounded_artifact, caplog
):
    def fail(*arguments):
        raise RuntimeError("Failed to find C compiler in /some/where")

    monkeypatch.setattr(cuda, "GpuExecution", fail)
    monkeypatch.setattr(runtime, "gpu_architecture", lambda: "sm_90")
    runtime._cuda_is_here.cache_clear()
    try:
        assert runtime.choose() == "cuda"
        assert runtime.load(rounded_artifact).name == runtime.available()[1]
        with pytest.raises(Unavailable, match="could not prepare") as caught:
            runtime.load(rounded_artifact, "cuda")
    finally:
        monkeypatch.undo()
        runtime._cuda_is_here.cache_clear()
    assert "/some/where" not in caught.value.detail and "/some/where" in caplog.text


def test_kernels_are_measured_for_the_least_and_the_largest_batch(
    monkeypatch, replayed, rounded_artifact
):
    made = []

    def kernels(**choice):
        made.append(choice)
        return PLAIN["PlainKernels"]()

    monkeypatch.setattr(gpu_kernels_module(), "GpuKernels", kernels)
    CudaRuntime(rounded_artifact, max_batch_images=8)
    CudaRuntime(rounded_artifact, batch_sizes=(4,), autotune=False)
    assert made == [
        {"autotune": True, "measured": {1, 8}},
        {"autotune": False, "measured": {4}},
    ]


def test_a_product_is_measured_for_the_sizes_that_are_asked_for(monkeypatch, rounded_artifact):
    module = gpu_kernels_module()
    measured = []

    def choose(x, *arguments, measure):
        measured.append((len(x), measure))

    monkeypatch.setattr(module.tuning, "choose", choose)
    program = gpu_program(compile_plan(rounded_artifact.plan, rounded_artifact.tensors))
    for autotune, sizes in ((True, {1, 4}), (True, None), (False, None)):
        kernels = module.GpuKernels(autotune=autotune, measured=sizes)
        execution = GpuExecution(program, torch.device("cpu"), kernels, 4)
        for count in (1, 2, 4):
            execution.bind(count)
    products = len(measured) // 9
    expected = [True, False, True, True, True, True, False, False, False]
    assert [found for _, found in measured[::products]] == expected


def test_a_gpu_that_has_failed_says_so_from_then_on(
    monkeypatch, rehearsed, rounded_artifact, small_images, caplog
):
    def fail(self, size):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(cuda_graphs.Graphs, "replay", fail)
        for _ in range(2):
            with pytest.raises(Unavailable, match="GPU has failed") as caught:
                rehearsed.run(small_images)
    assert "anew" in caught.value.remedy
    with pytest.raises(Unavailable, match="GPU has failed"):  # whichever network asks
        CudaRuntime(rounded_artifact, batch_sizes=(1,)).run(small_images)
    assert [record.message for record in caplog.records] == ["the GPU failed"]


def test_numbers_too_large_for_half_precision_are_no_answer(replayed, small_artifact):
    served = CudaRuntime(small_artifact, batch_sizes=(2,))
    with pytest.raises(Unavailable, match="half precision") as caught:
        served.run(torch.full((2, 3, 8, 8), 1e5))
    assert "'cpu'" in caught.value.remedy


def test_a_batch_of_no_images_is_no_batch(rounded_artifact):
    for sizes in ({"max_batch_images": 0}, {"batch_sizes": (0, 4)}):
        with pytest.raises(ValueError, match="an image"):
            CudaRuntime(rounded_artifact, **sizes)


def test_graphs_are_made_for_powers_of_two_and_the_cap():
    assert sizes_up_to(1) == (1,)
    assert sizes_up_to(2) == (1, 2)
    assert sizes_up_to(6) == (1, 2, 4, 6)
    assert sizes_up_to(64) == (1, 2, 4, 8, 16, 32, 64)


def test_a_batch_is_bounded_by_memory_and_by_what_kernels_can_count():
    program = GpuProgram(
        (GpuValue(1 << 20, 32, 2, "i8"),), (InputStep(out=0, shape=(1 << 20, 32, 2)),), 0
    )
    assert place_values(program).bytes == 1 << 26
    assert most_images(program, 20 << 26) == 4  # with the images as they come, float32
    assert most_images(program, 1 << 50) == 31
    assert most_images(program, 0) == 1


@on_gpu
@pytest.mark.parametrize("rounded", [False, True])
def test_every_batch_size_answers_as_the_reference_does(
    rounded, binary_net, vgg, small_images, make_artifact
):
    # Few sizes of the larger one: every new pair of a size and a layer may compile a kernel.
    for source, sizes in ((binary_net, (1, 2, 4)), (vgg, (8,))):
        net = copy.deepcopy(source)
        if rounded:
            NETWORKS["quantize_activations"](net, small_images)
        artifact = make_artifact(net, (3, 8, 8))
        served = CudaRuntime(artifact, batch_sizes=sizes, autotune=False)
        wanted = ReferenceRuntime(artifact).run(small_images)
        for count in (0, 1, 2, 3, 5, 13):
            found = served.run(small_images[:count])
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
    served = CudaRuntime(artifact, batch_sizes=(4,), autotune=False)
    assert torch.equal(served.run(x), ReferenceRuntime(artifact).run(x))


@on_gpu
def test_threads_share_a_runtime_and_others_are_loaded_meanwhile(
    randomise, binarize, small_images, make_artifact
):
    """With a float layer last, for which cuBLAS has working memory that graphs must not share."""
    shape = (3, 8, 8)
    build = NETWORKS["network"]
    net = build("vgg9", shape, {"width": 0.1}, randomise, binarize, keep_float=("classifier",))
    artifact = make_artifact(net, shape)
    served = CudaRuntime(artifact, batch_sizes=(4,), autotune=False)
    wanted = ReferenceRuntime(artifact).run(small_images)

    def ask(first):
        with torch.inference_mode(first % 2 == 0):
            return [served.run(small_images[first:]) for _ in range(50)]

    with ThreadPoolExecutor(6) as threads:
        asked = [threads.submit(ask, first) for first in range(4)]
        loads = [
            threads.submit(CudaRuntime, artifact, batch_sizes=(2,), autotune=False)
            for _ in range(2)
        ]
        for first, answers in enumerate(asked):
            assert all(close(found, wanted[first:]) for found in answers.result())
        for loaded in loads:
            assert close(loaded.result().run(small_images), wanted)


@on_gpu
def test_memory_is_taken_when_a_model_is_loaded_and_given_back_with_it(
    rounded_artifact, small_images
):
    def memory():
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    def load_and_drop():
        served = CudaRuntime(rounded_artifact, max_batch_images=4, autotune=False)
        assert served.device_bytes > served.resident_bytes > 0 < served.activation_bytes
        served.run(small_images)
        loaded = memory()
        for count in (1, 16, 3, 7) * 10:
            served.run(small_images[:count])
        assert memory() == loaded

    load_and_drop()  # libraries keep what they have taken for the first one
    before = memory()
    for _ in range(3):
        load_and_drop()
    assert memory() == before


@on_gpu
def test_a_graph_can_be_replayed_on_the_device_alone(rounded_artifact, small_images):
    served = CudaRuntime(rounded_artifact, batch_sizes=(8,), autotune=False)
    wanted = served.run(small_images[:8])
    served.static_input(8).copy_(small_images[:8])
    served.replay(8)
    torch.cuda.synchronize()
    found = served._execution.result(8).flatten(1).cpu()
    assert torch.equal(found, wanted)
