"""The CPU engine's C++ library, by ctypes: models/kernels/cpu/abi.h, function by function.

ctypes lets go of the interpreter lock for as long as a function of the library runs.
"""

import ctypes
import logging
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_int32, c_int64, c_void_p
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any, Final

from models import kernels
from models.runtime.arena import Arena
from models.runtime.flat_program import FlatProgram, Step, Value
from models.runtime.structures import SIZES, CSpec, CStep, CValue, c_step, c_value

ABI_VERSION: Final = 1
KERNEL_SETS: Final = ("portable", "avx2", "avx512")  # by number, slowest first

_ERROR_BYTES: Final = 1024

_log = logging.getLogger("bitpress.models")


class Status(IntEnum):
    """What the library's functions answer."""

    OK = 0
    INVALID = 1
    UNSUPPORTED = 2
    NO_MEMORY = 3


class NativeError(Exception):
    """The library refused, and says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


_FUNCTIONS: Final[dict[str, tuple[Any, Sequence[Any]]]] = {
    "bp_abi_version": (c_int32, ()),
    "bp_abi_sizes": (c_int64, ()),
    "bp_isa_name": (c_char_p, (c_int32,)),
    "bp_isa_available": (c_int32, (c_int32,)),
    "bp_kernel_count": (c_int32, (c_int32, POINTER(CStep), POINTER(CValue))),
    "bp_kernel_name": (c_char_p, (c_int32, POINTER(CStep), POINTER(CValue), c_int32)),
    "bp_time_product": (
        c_double,
        (c_int32, c_int32, POINTER(CStep), POINTER(CValue), c_int32, c_int64, c_int32),
    ),
    "bp_ceiling": (c_double, (c_int32, c_char_p)),
    "bp_program_create": (c_int32, (POINTER(CSpec), POINTER(c_void_p), c_char_p, c_int64)),
    "bp_program_destroy": (None, (c_void_p,)),
    "bp_program_run": (c_int32, (c_void_p, c_void_p, c_int64, c_void_p)),
    "bp_program_weight_bytes": (c_int64, (c_void_p,)),
    "bp_program_arena_bytes": (c_int64, (c_void_p, c_int64)),
    "bp_program_scratch_bytes": (c_int64, (c_void_p,)),
}


class NativeLibrary:
    """The library at ``path``, loaded.

    Raises:
        OSError: it cannot be loaded here.
        AttributeError: it is not that library.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.functions = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self.functions, name)
            function.restype, function.argtypes = result, arguments

    @property
    def abi_version(self) -> int:
        version: int = self.functions.bp_abi_version()
        return version

    @property
    def abi_sizes(self) -> int:
        """The sizes of the structs that it was built with, as in `SIZES`."""
        sizes: int = self.functions.bp_abi_sizes()
        return sizes

    def kernel_sets(self) -> tuple[str, ...]:
        """Return the kernel sets that are built in and that this processor can run, best first."""
        return tuple(
            name
            for number, name in reversed(tuple(enumerate(KERNEL_SETS)))
            if self.functions.bp_isa_available(number)
        )

    def kernel_names(self, kernel_set: str, step: Step, source: Value) -> list[str]:
        """Return the kernels that can compute the product ``step`` of ``source``, by number."""
        arguments = KERNEL_SETS.index(kernel_set), c_step(step), c_value(source)
        count: int = self.functions.bp_kernel_count(*arguments)
        names = (self.functions.bp_kernel_name(*arguments, kernel) for kernel in range(count))
        return [name.decode() for name in names]

    def time_product(
        self,
        kernel_set: str,
        threads: int,
        step: Step,
        source: Value,
        kernel: int,
        *,
        images: int,
        repeats: int,
    ) -> float:
        """Return the median seconds of a product on made-up data; negative if it failed."""
        seconds: float = self.functions.bp_time_product(
            KERNEL_SETS.index(kernel_set),
            threads,
            c_step(step),
            c_value(source),
            kernel,
            images,
            repeats,
        )
        return seconds

    def ceiling(self, kernel_set: str, kernel: str) -> float:
        """Return the MAC/s that the loop behind a kernel reaches in one thread, 0 without one."""
        speed: float = self.functions.bp_ceiling(KERNEL_SETS.index(kernel_set), kernel.encode())
        return speed

    def create(
        self, program: FlatProgram, arena: Arena, kernel_set: str, threads: int, max_images: int
    ) -> "NativeProgram":
        """Return ``program`` with its weights packed for ``kernel_set``, ready to run.

        Raises:
            NativeError: the library cannot run it.
        """
        values = (CValue * len(program.values))(*map(c_value, program.values, arena.offsets))
        steps = (CStep * len(program.steps))(*map(c_step, program.steps))
        spec = CSpec(
            isa=KERNEL_SETS.index(kernel_set),
            threads=threads,
            max_images=max_images,
            arena_bytes=arena.bytes,
            value_count=len(values),
            values=values,
            step_count=len(steps),
            steps=steps,
        )
        handle, error = c_void_p(), ctypes.create_string_buffer(_ERROR_BYTES)
        status = self.functions.bp_program_create(byref(spec), byref(handle), error, _ERROR_BYTES)
        if status != Status.OK or not handle.value:
            raise NativeError(status, error.value.decode(errors="replace"))
        return NativeProgram(self, handle.value)


class NativeProgram:
    """A program inside of the library; `close` gives its memory back, and must come last."""

    def __init__(self, library: NativeLibrary, handle: int) -> None:
        self._functions = library.functions
        self._handle = handle

    def close(self) -> None:
        """Free it."""
        self._functions.bp_program_destroy(self._handle)

    def run(self, x: int, images: int, y: int) -> None:
        """Compute ``images`` at the address ``x``, float32 (N, C, H, W), and write to ``y``.

        Raises:
            NativeError: it could not, for want of memory for instance.
        """
        status = self._functions.bp_program_run(self._handle, x, images, y)
        if status != Status.OK:
            raise NativeError(status, f"a run failed with status {status}")

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed weights and per-channel numbers."""
        count: int = self._functions.bp_program_weight_bytes(self._handle)
        return count

    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch memory of all threads."""
        count: int = self._functions.bp_program_scratch_bytes(self._handle)
        return count

    def arena_bytes(self, images: int) -> int:
        """Bytes of the arena that a batch of ``images`` touches."""
        count: int = self._functions.bp_program_arena_bytes(self._handle, images)
        return count


@cache
def library() -> NativeLibrary | None:
    """Return the library of this installation, or None where there is none that fits."""
    path = kernels.library_path()
    if path is None:
        return None
    try:
        found = NativeLibrary(path)
    except (OSError, AttributeError) as error:
        _log.warning("the native library cannot be used: %s", error)
        return None
    if (found.abi_version, found.abi_sizes) != (ABI_VERSION, SIZES):
        _log.warning(
            "the native library is of interface %d/%x, not %d/%x",
            *(found.abi_version, found.abi_sizes, ABI_VERSION, SIZES),
        )
        return None
    return found
