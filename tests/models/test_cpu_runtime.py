"""The CPU runtime as its callers meet it: choice, batches, threads, memory, whole networks."""

import gc
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from models import registry, runtime
from models.cores import usable_cores
from models.layers import BinaryConv2d, BinaryLinear
from models.operators import Quantize
from models.plan import Plan
from models.quantization import Scale, quantize_inputs
from models.runtime import Runtime, cpu, kernel_sets, native
from models.runtime.cpu import CpuRuntime
from models.runtime.reference import ReferenceRuntime
from store.errors import Unavailable

ROOT = Path(__file__).parents[2]
LIBRARY = native.library()
KERNEL_SETS = LIBRARY.kernel_sets() if LIBRARY else ()

needs_library = pytest.mark.skipif(not KERNEL_SETS, reason="the native library was not built")
every_set = pytest.mark.parametrize("kernels", KERNEL_SETS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BITPRESS_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("BITPRESS_CPU_KERNELS", raising=False)
    monkeypatch.setattr(runtime, "_cuda_is_here", lambda: False)  # it would come first


@pytest.fixture
def no_library(monkeypatch):
    """An installation without the native library."""
    monkeypatch.setattr(kernel_sets, "library", lambda: None)
    monkeypatch.setattr(native.kernels, "library_path", lambda: None)
    runtime._cpu_is_here.cache_clear()
    yield
    runtime._cpu_is_here.cache_clear()


def quantize_activations(net, x, signed=False):
    """Round what every binary layer is fed to 8 bits, over the range that it sees on ``x``."""
    scales, hooks = {}, []
    for name, layer in net.named_modules():
        if isinstance(layer, BinaryConv2d | BinaryLinear):

            def observe(layer, inputs, name=name):
                least = -1.0 if signed else 0.0
                scales[name] = Scale.covering(
                    min(least, inputs[0].min().item()), inputs[0].max().item()
                )

            hooks.append(layer.register_forward_pre_hook(observe))
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    quantize_inputs(net, scales)


def images(shape, count, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(count, *shape)).astype(np.float32))


ZOO = [
    ("digits_cnn", (1, 8, 8), {}),
    ("vgg9", (3, 32, 32), {"width": 0.25}),
    ("vgg9", (3, 19, 23), {"width": 0.2}),
    ("resnet20", (3, 16, 16), {"shortcut": "A"}),
    ("resnet20", (3, 15, 13), {"shortcut": "B"}),
    pytest.param(("resnet18", (3, 64, 64), {}), marks=pytest.mark.slow),
    pytest.param(("resnet50", (3, 48, 48), {}), marks=pytest.mark.slow),
    pytest.param(("alexnet", (3, 67, 63), {}), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=ZOO, ids=lambda case: case[0])
def network(request, randomise, binarize):
    """A network of the zoo with random bits in all layers, and images for it."""
    name, (channels, height, width), parameters = request.param
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = registry.build(
            name, channels=channels, height=height, width=width, classes=10, parameters=parameters
        ).eval()
    randomise(net)
    binarize(net)
    return net, images((channels, height, width), 5)


@pytest.fixture(scope="module")
def real_artifact(network, make_artifact):
    net, x = network
    return make_artifact(net, tuple(x.shape[1:]))


@pytest.fixture(scope="module")
def rounded_artifact(network, real_artifact, make_artifact):
    net, x = network
    quantize_activations(net, x)
    return make_artifact(net, tuple(x.shape[1:]))


@needs_library
@every_set
def test_network_of_real_activations_answers_alike(network, real_artifact, kernels):
    x = network[1]
    wanted = ReferenceRuntime(real_artifact).run(x)
    found = CpuRuntime(real_artifact, kernels=kernels, threads=2).run(x)
    assert torch.allclose(found, wanted, atol=1e-4 * wanted.abs().max().item())


@needs_library
@every_set
def test_network_of_8_bit_activations_answers_the_very_same(network, rounded_artifact, kernels):
    x = network[1]
    assert any(isinstance(node, Quantize) for node in rounded_artifact.plan.nodes)
    wanted = ReferenceRuntime(rounded_artifact).run(x)
    for threads in (1, 2):
        found = CpuRuntime(rounded_artifact, kernels=kernels, threads=threads)
        assert torch.equal(found.run(x), wanted)
        # No image has any influence on another, and none a cap on the batch.
        assert torch.equal(torch.cat([found.run(image[None]) for image in x]), wanted)
    capped = CpuRuntime(rounded_artifact, kernels=kernels, threads=2, activation_bytes=1)
    assert torch.equal(capped.run(x), wanted)


@pytest.fixture(scope="module")
def small_rounded(small_net, small_images, make_artifact):
    """`small_net` with 8-bit activations, signed ones among them."""
    import copy

    net = copy.deepcopy(small_net)
    quantize_activations(net, small_images, signed=True)
    return make_artifact(net, (3, 8, 8))


@needs_library
@every_set
@pytest.mark.parametrize("count", [0, 1, 2, 16])
def test_batches_of_any_size(small_artifact, small_images, kernels, count):
    x = small_images[:count]
    found = CpuRuntime(small_artifact, kernels=kernels).run(x)
    assert found.shape == (count, 5) and found.dtype == torch.float32
    assert torch.allclose(found, ReferenceRuntime(small_artifact).run(x), atol=1e-4)


@needs_library
def test_a_large_batch_is_cut_up(small_rounded):
    x = images((3, 8, 8), 301)
    wanted = ReferenceRuntime(small_rounded).run(x)
    for most_bytes in (1, 100_000, cpu.ACTIVATION_BYTES):
        found = CpuRuntime(small_rounded, activation_bytes=most_bytes).run(x)
        assert torch.allclose(found, wanted, atol=1e-4 * wanted.abs().max().item())


@needs_library
def test_neither_threads_nor_batch_change_a_bit(small_artifact, small_rounded, small_images):
    """Also where real numbers are summed up: artifacts record what was measured, for ever."""
    for artifact in (small_artifact, small_rounded):
        alone = CpuRuntime(artifact, threads=1)
        wanted = torch.cat([alone.run(image[None]) for image in small_images])
        for threads in (1, 2, 3, 7):
            assert torch.equal(CpuRuntime(artifact, threads=threads).run(small_images), wanted)


@needs_library
def test_several_threads_may_ask_at_once(small_rounded):
    found = CpuRuntime(small_rounded, threads=2)
    batches = [images((3, 8, 8), 1 + seed % 5, seed) for seed in range(40)]
    wanted = [found.run(x) for x in batches]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(found.run, batches))
    assert all(map(torch.equal, answers, wanted))


@needs_library
def test_two_runtimes_may_compute_at_once(small_rounded, small_artifact, small_images):
    runtimes = [CpuRuntime(each, threads=2) for each in (small_rounded, small_artifact)]
    wanted = [each.run(small_images) for each in runtimes]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: runtimes[i % 2].run(small_images), range(40)))
    assert all(torch.equal(answer, wanted[i % 2]) for i, answer in enumerate(answers))


@needs_library
def test_inputs_need_not_be_contiguous_and_results_carry_no_gradient(small_artifact, small_images):
    found = CpuRuntime(small_artifact)
    wanted = found.run(small_images)
    channels_last = small_images.clone(memory_format=torch.channels_last).requires_grad_()
    with_gradient = found.run(channels_last)
    assert torch.equal(with_gradient, wanted) and not with_gradient.requires_grad
    assert torch.equal(found.run(small_images[::2]), wanted[::2])
    with torch.inference_mode():
        assert torch.equal(found.run(small_images), wanted)


@needs_library
@pytest.mark.parametrize(
    "x", [torch.zeros(1, 3, 8, 9), torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8).double(),
          torch.zeros(1, 3, 8, 8, device="meta")]
)  # fmt: skip
def test_input_of_another_shape_or_dtype_is_an_error(small_artifact, x):
    with pytest.raises(ValueError, match="float32"):
        CpuRuntime(small_artifact).run(x)


@needs_library
@every_set
def test_a_map_as_output_has_its_channels_first(kernels):
    quantizer = Quantize(name="q", input="input", bits=8, low=0.0, step=0.5)
    case = SimpleNamespace(plan=Plan((5, 3, 4), (quantizer,), "q"), tensors={})
    x = images((5, 3, 4), 3)
    found = CpuRuntime(case, kernels=kernels).run(x)
    assert found.shape == (3, 5, 3, 4)
    assert torch.equal(found, ReferenceRuntime(case).run(x))


@needs_library
@every_set
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_numbers_that_are_none_harm_no_other_image(small_artifact, small_rounded, kernels, odd):
    x = images((3, 8, 8), 4)
    for artifact in (small_artifact, small_rounded):
        found = CpuRuntime(artifact, kernels=kernels, threads=2)
        wanted = found.run(x)
        damaged = x.clone()
        damaged[1] = odd
        assert torch.equal(found.run(damaged)[[0, 2, 3]], wanted[[0, 2, 3]])


@needs_library
def test_memory_is_told(small_artifact, small_rounded):
    real, rounded = CpuRuntime(small_artifact), CpuRuntime(small_rounded)
    for each in (real, rounded):
        assert small_artifact.packed_bytes / 2 < each.resident_bytes < 1 << 20
        assert 0 < each.activation_bytes < 1 << 20
    assert CpuRuntime(small_rounded, threads=1).threads == 1
    assert rounded.threads == usable_cores()


@needs_library
def test_a_runtime_that_nobody_holds_gives_its_memory_back(small_artifact, monkeypatch):
    closed = []
    close = native.NativeProgram.close
    monkeypatch.setattr(
        native.NativeProgram, "close", lambda program: (closed.append(1), close(program))
    )
    found = CpuRuntime(small_artifact)
    assert not closed
    del found
    gc.collect()
    assert closed == [1]


@needs_library
def test_kernels_are_forced_by_argument_or_environment(small_artifact, monkeypatch):
    assert CpuRuntime(small_artifact).kernels == KERNEL_SETS[0] == runtime.kernels_of("cpu")
    for name in KERNEL_SETS:
        assert CpuRuntime(small_artifact, kernels=name).kernels == name
        monkeypatch.setenv("BITPRESS_CPU_KERNELS", name)
        assert CpuRuntime(small_artifact).kernels == name == runtime.kernels_of("cpu")
    monkeypatch.setenv("BITPRESS_CPU_KERNELS", "mmx")
    with pytest.raises(Unavailable, match="'mmx'") as caught:
        runtime.choose("cpu")
    assert "portable" in caught.value.remedy
    with pytest.raises(Unavailable, match="'mmx'"):
        runtime.load(small_artifact, "cpu")
    assert CpuRuntime(small_artifact, kernels="portable").kernels == "portable"


@needs_library
def test_the_set_portable_runs_everywhere():
    assert KERNEL_SETS[-1] == "portable"


@needs_library
def test_auto_is_the_cpu_engine(small_artifact, caplog):
    assert runtime.choose() == "cpu" == runtime.available()[0]
    found = runtime.load(small_artifact, threads=1)
    assert found.name == "cpu" and isinstance(found, Runtime) and found.threads == 1
    assert not caplog.records


def test_without_the_library_the_reference_serves_and_a_warning_says_so_once(
    no_library, small_artifact, caplog
):
    with caplog.at_level(logging.WARNING, "bitpress.models"):
        assert runtime.load(small_artifact).name == "reference" == runtime.choose()
        assert runtime.available() == ("reference",)
    assert len(caplog.records) == 1
    assert "C++ compiler" in caplog.text


def test_the_cpu_engine_by_name_is_an_error_without_the_library(no_library, small_artifact):
    for ask in (runtime.choose, lambda name: runtime.load(small_artifact, name)):
        with pytest.raises(Unavailable, match="native library") as caught:
            ask("cpu")
        assert "C++ compiler" in caught.value.remedy


@needs_library
def test_a_plan_that_the_library_cannot_run_is_served_by_the_reference(
    small_artifact, monkeypatch, caplog
):
    def refuse(*arguments):
        raise native.NativeError(native.Status.UNSUPPORTED, "Step 3: it is too large.")

    monkeypatch.setattr(native.NativeLibrary, "create", refuse)
    assert runtime.load(small_artifact).name == "reference"
    assert "Step 3: it is too large." in caplog.text
    with pytest.raises(Unavailable, match="Step 3") as caught:
        runtime.load(small_artifact, "cpu")
    assert "reference" in caught.value.remedy


@needs_library
def test_a_run_without_memory_says_so(small_artifact, small_images, monkeypatch):
    def fail(*arguments):
        raise native.NativeError(native.Status.NO_MEMORY, "no memory")

    found = CpuRuntime(small_artifact)
    monkeypatch.setattr(native.NativeProgram, "run", fail)
    with pytest.raises(MemoryError):
        found.run(small_images)


def test_a_file_that_is_no_library_counts_as_none(tmp_path, monkeypatch, caplog):
    path = tmp_path / "libbitpress_cpu.so"
    path.write_bytes(b"not a library")
    monkeypatch.setattr(native.kernels, "library_path", lambda: path)
    assert native.library.__wrapped__() is None
    assert "cannot be used" in caplog.text


@needs_library
def test_a_library_of_another_release_counts_as_none(monkeypatch, caplog):
    monkeypatch.setattr(native, "ABI_VERSION", 0)
    assert native.library.__wrapped__() is None
    assert "interface" in caplog.text


@needs_library
@every_set
def test_flushing_tiny_numbers_to_zero_is_the_callers_own_affair(kernels):
    """Torch has it set for the caller's thread alone: the engine's other threads do not know."""
    quantizer = Quantize(name="q", input="input", bits=8, low=0.0, step=2e-38)
    case = SimpleNamespace(plan=Plan((64, 32, 32), (quantizer,), "q"), tensors={})
    x = torch.full((8, 64, 32, 32), 1.1e-38)  # below the smallest that float32 holds in full
    found = CpuRuntime(case, kernels=kernels, threads=2)
    wanted = found.run(x)
    assert wanted.min() == wanted.max() > 0
    assert torch.set_flush_denormal(True)
    try:
        answer, mine = found.run(x), (x[0, 0, 0, 0] * 1).item()
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(answer, wanted)
    assert mine == 0  # as the caller wants it


FORKED = """
import os, signal, threading, time, torch
from types import SimpleNamespace
from models.operators import Quantize
from models.plan import Plan
from models.runtime.cpu import CpuRuntime
node = Quantize(name="q", input="input", bits=8, low=0.0, step=0.5)
case = SimpleNamespace(plan=Plan((64, 32, 32), (node,), "q"), tensors={})
x = torch.rand(8, 64, 32, 32)
runtime = CpuRuntime(case, threads=2)
wanted = runtime.run(x)


def succeeds_in_child(make):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # rather than wait for ever
        os._exit(0 if torch.equal(make().run(x), wanted) else 1)
    return os.waitpid(child, 0)[1] == 0

"""

FORKS = {
    "a runtime of its own": """
assert succeeds_in_child(lambda: CpuRuntime(case, threads=2))
""",
    "its parent's runtime": """
assert succeeds_in_child(lambda: runtime)
""",
    "a runtime that another thread is running": """
stopped = False

def keep_running():
    while not stopped:
        runtime.run(x)

busy = threading.Thread(target=keep_running)
busy.start()
try:
    for _ in range(20):
        assert succeeds_in_child(lambda: runtime)
        time.sleep(0.003)
finally:
    stopped = True
    busy.join()
""",
}


@needs_library
@pytest.mark.parametrize("what", FORKS)
def test_a_forked_process_can_run(what):
    result = subprocess.run(
        [sys.executable, "-c", f"{FORKED}{FORKS[what]}assert torch.equal(runtime.run(x), wanted)"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@needs_library
def test_layers_in_float_run_too(make_artifact, randomise, binarize):
    net = nn.Sequential(
        nn.Conv2d(3, 20, 5, stride=2, padding=2), nn.BatchNorm2d(20), nn.ReLU(),
        nn.Conv2d(20, 24, 3, groups=4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(216, 7),
    ).eval()  # fmt: skip
    randomise(net)
    binarize(net, keep_float=("0", "6"))
    artifact = make_artifact(net, (3, 16, 16))
    x = images((3, 16, 16), 4)
    wanted = ReferenceRuntime(artifact).run(x)
    for kernels in KERNEL_SETS:
        found = CpuRuntime(artifact, kernels=kernels).run(x)
        assert torch.allclose(found, wanted, atol=1e-4 * wanted.abs().max().item())
