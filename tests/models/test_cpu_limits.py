"""The CPU runtime at its limits: another build, too many threads or steps, the end of a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import runtime
from models.runtime import cpu, kernel_sets, native
from models.runtime.cpu import CpuRuntime
from models.runtime.reference import ReferenceRuntime
from models.runtime.structures import SIZES
from store.errors import Unavailable

ROOT = Path(__file__).parents[2]

needs_library = pytest.mark.skipif(native.library() is None, reason="the library was not built")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITPRESS_CACHE_DIR", str(tmp_path))


# Ends in the middle of a run: the program's memory must not be gone before the thread. The library
# is called past torch, whose own functions abort where a thread is ended inside of them.
ENDED = """
import threading, torch
from types import SimpleNamespace
from models.operators import Quantize
from models.plan import Plan
from models.runtime.cpu import CpuRuntime
node = Quantize(name="q", input="input", bits=8, low=0.0, step=0.5)
case = SimpleNamespace(plan=Plan((64, 64, 64), (node,), "q"), tensors={})
x = torch.rand(32, 64, 64, 64)
y = torch.empty_like(x)
runtime, begun = CpuRuntime(case, threads=THREADS), threading.Event()
def work():
    while True:
        runtime._program.run(x.data_ptr(), len(x), y.data_ptr())
        begun.set()
threading.Thread(target=work, daemon=True).start()
begun.wait()
"""


@needs_library
@pytest.mark.parametrize("threads", [1, 2])
def test_a_process_may_end_while_a_daemon_thread_computes(threads):
    for _ in range(3):
        result = subprocess.run(
            [sys.executable, "-c", ENDED.replace("THREADS", str(threads))],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert result.returncode == 0, result.stderr


@needs_library
def test_more_threads_than_the_library_takes_are_not_used(
    small_artifact, small_images, monkeypatch
):
    monkeypatch.setattr(cpu, "MAX_THREADS", 2)
    found = CpuRuntime(small_artifact, threads=5000)
    assert found.threads == 2
    assert torch.equal(found.run(small_images), CpuRuntime(small_artifact).run(small_images))


@needs_library
def test_the_most_threads_are_the_librarys(small_artifact, monkeypatch):
    create, asked = native.NativeLibrary.create, []

    def recorded(library, program, arena, kernels, threads, images):
        asked.append(threads)
        return create(library, program, arena, kernels, 1, images)

    monkeypatch.setattr(native.NativeLibrary, "create", recorded)
    choose = {"choose_kernel": lambda step, source: 0}
    CpuRuntime(small_artifact, threads=cpu.MAX_THREADS + 1, **choose)
    assert asked == [1024]


@needs_library
def test_a_plan_of_too_many_steps_is_served_by_the_reference(
    small_artifact, small_images, monkeypatch, caplog
):
    monkeypatch.setattr(cpu, "MAX_STEPS", 4)
    with pytest.raises(Unavailable, match="steps") as caught:
        runtime.load(small_artifact, "cpu")
    assert "reference" in caught.value.remedy
    found = runtime.load(small_artifact)
    assert found.name == "reference" and "steps" in caplog.text
    assert torch.equal(found.run(small_images), ReferenceRuntime(small_artifact).run(small_images))


@needs_library
def test_sizes_of_structs_are_those_that_the_library_was_built_with():
    assert native.library().abi_sizes == SIZES


@needs_library
@pytest.mark.parametrize("name", ["ABI_VERSION", "SIZES"])
def test_a_library_of_another_header_is_refused(name, small_artifact, monkeypatch, caplog):
    monkeypatch.setattr(native, name, 7)
    monkeypatch.setattr(kernel_sets, "library", native.library.__wrapped__)
    with pytest.raises(Unavailable, match="another release") as caught:
        CpuRuntime(small_artifact)
    assert "again" in caught.value.remedy and "interface" in caplog.text


def test_a_runtime_that_is_not_here_is_not_suggested(monkeypatch):
    monkeypatch.setattr(runtime, "available", lambda: ("reference",))
    with pytest.raises(Unavailable, match="'gpu'") as caught:
        runtime.choose("gpu")
    assert caught.value.remedy == "Use one of: auto, reference"
