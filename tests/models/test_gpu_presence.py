"""Whether there is a GPU to run on, asked of a driver that a test stands in for."""

import ctypes
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from models import runtime
from models.runtime import gpu_presence
from models.runtime.cuda import CudaRuntime
from store.errors import Unavailable

ROOT = Path(__file__).parents[2]


class Driver:
    """Stands in for libcuda.so.1."""

    def __init__(self, capability=(9, 0), devices=1, status=0):
        self._capability, self._devices, self._status = capability, devices, status

    def cuInit(self, flags):
        return self._status

    def cuDeviceGetCount(self, count):
        count._obj.value = self._devices
        return 0

    def cuDeviceGet(self, device, ordinal):
        return 0

    def cuDeviceGetAttribute(self, number, attribute, device):
        number._obj.value = dict(zip((75, 76), self._capability, strict=True))[attribute]
        return 0


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """``machine(driver, torch_cuda=True, triton=True)``: what is found on it."""

    def forget():
        gpu_presence.capability.cache_clear()
        runtime._cuda_is_here.cache_clear()

    def build(driver, torch_cuda=True, triton=True):
        def load(name):
            if driver is None:
                raise OSError(f"{name}: cannot open shared object file")
            return driver

        (tmp_path / "lib").mkdir()
        if torch_cuda:
            (tmp_path / "lib/libtorch_cuda.so").touch()
        found = {
            "torch": SimpleNamespace(origin=str(tmp_path / "__init__.py")),
            "triton": SimpleNamespace() if triton else None,
        }
        monkeypatch.setattr(gpu_presence, "find_spec", found.__getitem__)
        monkeypatch.setattr(ctypes, "CDLL", load)
        forget()

    yield build
    monkeypatch.undo()
    forget()


def test_the_kernels_of_a_gpu_are_those_of_its_architecture(machine):
    machine(Driver((9, 0)))
    assert gpu_presence.gpu_architecture() == "sm_90" == runtime.kernels_of("cuda")
    assert runtime.choose() == "cuda" == runtime.available()[0]
    __import__("models.runtime.gpu_kernels")
    assert runtime.kernels_of("cuda") == "sm_90"


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"driver": None}, "no NVIDIA GPU here.*not installed"),
        ({"driver": Driver(devices=0)}, "no NVIDIA GPU here.*finds none"),
        ({"driver": Driver(status=100)}, "no NVIDIA GPU here.*finds none"),
        ({"driver": Driver((7, 5))}, r"capability 7\.5"),
        ({"driver": Driver(), "torch_cuda": False}, "torch was installed without CUDA"),
        ({"driver": Driver(), "triton": False}, "Triton"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_refused_with_reason_and_remedy(
    machine, small_artifact, parts, reason
):
    machine(**parts)
    asked = (
        lambda: runtime.choose("cuda"),
        lambda: runtime.load(small_artifact, "cuda"),
        lambda: CudaRuntime(small_artifact),
    )
    for ask in asked:
        with pytest.raises(Unavailable, match=reason) as caught:
            ask()
        assert caught.value.field == "runtime" and "'cpu'" in caught.value.remedy
    assert "cuda" not in runtime.available()
    assert runtime.load(small_artifact).name != "cuda"


def test_a_gpu_that_is_there_in_vain_is_warned_about_once(machine, caplog):
    machine(Driver(), torch_cuda=False)
    assert [runtime.choose(), runtime.choose()].count("cuda") == 0
    assert ["without CUDA" in record.message for record in caplog.records] == [True]


def test_no_gpu_is_nothing_to_warn_about(machine, caplog):
    machine(None)
    assert runtime.choose() != "cuda"
    assert not caplog.records


def test_a_network_that_the_gpu_cannot_run_is_served_by_the_next_runtime(
    machine, small_artifact, monkeypatch, caplog
):
    machine(Driver())

    def refuse(artifact, threads):
        raise Unavailable("The GPU's memory has no room for this network.")

    monkeypatch.setattr(runtime, "RUNTIMES", {**runtime.RUNTIMES, "cuda": refuse})
    assert runtime.load(small_artifact).name == runtime.available()[1]
    assert "no room" in caplog.text
    with pytest.raises(Unavailable, match="no room"):
        runtime.load(small_artifact, "cuda")


def test_it_is_found_out_without_torch_and_triton():
    code = (
        "import sys; from models import runtime; runtime.available(); "
        "print({'torch', 'triton', 'cuda'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, cwd=ROOT, text=True).strip() == "set()"
