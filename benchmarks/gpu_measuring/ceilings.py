"""What the card does at most, measured on it: copies, and products of every kind of number.

Half precision and bytes are multiplied by the vendor's library, whose square products of this size
are as fast as any program's; of signs it has none, so the bare instruction is timed.
"""

import ctypes
from pathlib import Path
from statistics import median
from typing import Final

import torch

from benchmarks.gpu_measuring.laps import Run, event_laps
from benchmarks.gpu_measuring.roofline import Ceilings
from models.kernels.cuda.compilation import architecture, compiled, cuda_core

_COPIED_BYTES: Final = 1 << 31
_SIDE: Final = 8192  # of the square matrices
_LAPS: Final = 10

# Of the bare instruction on signs: operations of one, those under way in a warp, and the work.
_SIGN_OPERATIONS: Final = 2 * 16 * 8 * 256
_CHAINS: Final = 8
_ROUNDS: Final = 4096
_THREADS: Final = 256
_BLOCKS_PER_PROCESSOR: Final = 4
# Compute capabilities whose tensor cores count bits.
_SIGNS_FROM, _SIGNS_BEFORE = (8, 0), (10, 0)


def ceilings() -> Ceilings:
    """Measure the current GPU."""
    operations = {"f16": _half_operations_per_s(), "i8": _byte_operations_per_s()}
    if _SIGNS_FROM <= torch.cuda.get_device_capability() < _SIGNS_BEFORE:
        operations["b1"] = _sign_operations_per_s()
    return Ceilings(_copied_bytes_per_s(), operations)


def _copied_bytes_per_s() -> float:
    """Return the bytes per second that a copy reads and writes."""
    source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * _COPIED_BYTES / _usual_seconds(lambda: target.copy_(source))


def _half_operations_per_s() -> float:
    # Random numbers: with zeros the card draws less power and runs faster than it ever will.
    a, b = (torch.randn(_SIDE, _SIDE, dtype=torch.float16, device="cuda") for _ in range(2))
    return 2 * _SIDE**3 / _usual_seconds(lambda: torch.mm(a, b))


def _byte_operations_per_s() -> float:
    a, b = (
        torch.randint(-128, 128, (_SIDE, _SIDE), dtype=torch.int8, device="cuda") for _ in range(2)
    )
    return 2 * _SIDE**3 / _usual_seconds(lambda: torch._int_mm(a, b.t()))


def sign_program() -> str:
    """Return the source of the kernel that does nothing but multiply signs."""
    return Path(__file__).with_name("sign_ceiling.cu").read_text(encoding="utf-8")


def _sign_operations_per_s() -> float:
    core = cuda_core()
    code = compiled(sign_program(), architecture(torch.cuda.get_device_capability()))
    core.Device(torch.cuda.current_device()).set_current()
    kernel = core.ObjectCode.from_cubin(code).get_kernel("sign_ceiling")
    processors = torch.cuda.get_device_properties().multi_processor_count
    blocks = processors * _BLOCKS_PER_PROCESSOR
    results = torch.zeros(_THREADS, dtype=torch.int32, device="cuda")
    config = core.LaunchConfig(grid=blocks, block=_THREADS)
    torch_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    torch_stream.wait_stream(torch.cuda.current_stream())
    stream = core.Stream.from_handle(torch_stream.cuda_stream)
    rounds = ctypes.c_int32(_ROUNDS)
    operations = blocks * _THREADS // 32 * _ROUNDS * _CHAINS * _SIGN_OPERATIONS
    with torch.cuda.stream(torch_stream):
        return operations / _usual_seconds(
            lambda: core.launch(stream, config, kernel, rounds, results.data_ptr())
        )


def _usual_seconds(run: Run) -> float:
    """Return the median seconds of a lap; the first ones do not count."""
    return median(event_laps(run, 2 * _LAPS)[_LAPS:])
