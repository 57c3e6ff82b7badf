"""Which kernel computes a product: the fastest one here, measured once and remembered.

On one processor a table look-up per few weights beats expanding bits to bytes, on the next one it
is the other way around, and it depends on a layer's shape. Where several kernels can compute a
product, each is run a few times on made-up data when a model is loaded. What was found is kept in
a file, ``cpu-kernels.json`` in ``BITPRESS_CACHE_DIR``, so that a layer is measured once on a
machine and not once per start.

Only products of codes are measured: their sums are exact, and the choice cannot be seen in the
result. Kernels for float32 add in different orders; the first one is taken, so that a result does
not depend on how busy the machine was.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Final

from models.runtime.flat_program import NONE, FlatProgram, Kind, Step, Type, Value
from models.runtime.native import ABI_VERSION, NativeLibrary

CACHE_DIR_VARIABLE: Final = "BITPRESS_CACHE_DIR"

_FILE: Final = "cpu-kernels.json"
_MOST_ENTRIES: Final = 10_000  # of the file: about a megabyte
# Kernels take turns, so that what else the machine does slows down none of them alone.
_ROUNDS: Final = 3
_REPEATS: Final = 3

# What of a step decides about its speed: these members, and which of the others are there.
_GEOMETRY: Final = (
    "kernel_rows", "kernel_columns", "stride_rows", "stride_columns", "padding_rows",
    "padding_columns", "dilation_rows", "dilation_columns", "groups", "filters", "bases",
)  # fmt: skip

_MODEL: Final = ("model name", "cpu family", "model", "stepping")  # lines of /proc/cpuinfo

# From a product and the value it reads to the number of a kernel.
ChooseKernel = Callable[[Step, Value], int]


def with_kernels(program: FlatProgram, choose: ChooseKernel) -> FlatProgram:
    """Return ``program`` with a kernel chosen for each product."""
    steps = [
        replace(step, kernel=choose(step, program.values[step.in0]))
        if step.kind == Kind.PRODUCT
        else step
        for step in program.steps
    ]
    return replace(program, steps=tuple(steps))


@contextlib.contextmanager
def measured_kernels(
    library: NativeLibrary, kernel_set: str, threads: int
) -> Iterator["MeasuredKernels"]:
    """Choose by measurement; what was measured is in the cache afterwards."""
    chosen = MeasuredKernels(library, kernel_set, threads)
    yield chosen
    chosen.save()


class MeasuredKernels:
    """Chooses the kernel that was fastest when it was measured, on this machine or now."""

    def __init__(self, library: NativeLibrary, kernel_set: str, threads: int) -> None:
        self._library = library
        self._kernel_set = kernel_set
        self._threads = threads
        self._machine = "/".join(
            (processor_name(), kernel_set, f"abi{ABI_VERSION}", _digest(library.path))
        )
        self._known = _read_cache()
        self._found: dict[str, str] = {}

    def __call__(self, step: Step, source: Value) -> int:
        names = self._library.kernel_names(self._kernel_set, step, source)
        if len(names) < 2 or source.type != Type.U8:
            return 0
        key = self._key(step, source)
        name = self._found.get(key) or self._known.get(key)
        if name not in names:
            fastest = self._measure(step, source, len(names))
            if fastest is None:  # not kept: the next start may be luckier
                return 0
            name = self._found[key] = names[fastest]
        return names.index(name)

    def save(self) -> None:
        """Add what was measured to the cache; where it cannot be written, nothing is kept."""
        if self._found:
            # Anew: another process may have added to it in the meantime.
            _write_cache({**_read_cache(), **self._found})

    def _measure(self, step: Step, source: Value, kernels: int) -> int | None:
        """Return the fastest of ``kernels``, or None where none could be measured."""
        best = [math.inf] * kernels
        for kernel in [*range(kernels)] * _ROUNDS:
            seconds = self._library.time_product(
                self._kernel_set, self._threads, step, source, kernel, images=1, repeats=_REPEATS
            )
            if seconds >= 0:
                best[kernel] = min(best[kernel], seconds)
        return best.index(min(best)) if min(best) < math.inf else None

    def _key(self, step: Step, source: Value) -> str:
        geometry = ",".join(str(getattr(step, member)) for member in _GEOMETRY)
        shape = ",".join(str(int(size)) for size in asdict(source).values())
        return f"{self._machine}/{self._threads}/{shape}/{geometry}/{_presence(step)}"


def _presence(step: Step) -> str:
    """Tell what a product has to do besides: a border of codes that are not 0, and its results."""
    return "".join(
        letter if present else "-"
        for letter, present in {
            "z": step.in_zero != 0,
            "s": step.base_scale is not None,
            "r": step.in1 != NONE,
            "f": step.out_f32 != NONE,
            "q": step.out_u8 != NONE,
        }.items()
    )


def cache_folder() -> Path:
    """Return where what was measured is kept; it need not exist."""
    folder = os.environ.get(CACHE_DIR_VARIABLE)
    if folder:
        return Path(folder)
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path("~/.cache").expanduser()) / "bitpress"


@cache
def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return what tells this model of a processor from others, as far as the system knows.

    Its name is not enough: under a hypervisor several generations may bear the same one.
    """
    members: dict[str, str] = {}
    with contextlib.suppress(OSError):
        first = cpuinfo.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        for line in first.splitlines():
            name, _, value = line.partition(":")
            members[name.strip()] = value.strip()
    known = [members[name] for name in _MODEL if name in members]
    return " ".join(known) or platform.processor() or platform.machine()


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _read_cache() -> dict[str, str]:
    """Return what is known, nothing where the file is missing or damaged."""
    try:
        text = (cache_folder() / _FILE).read_text(encoding="utf-8")
        known = json.loads(text)
    except (OSError, ValueError, RuntimeError):  # no home, or JSON nested too deep, are the latter
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: name for key, name in known.items() if isinstance(name, str)}


def _write_cache(known: Mapping[str, str]) -> None:
    newest = dict(list(known.items())[-_MOST_ENTRIES:])
    with contextlib.suppress(OSError, RuntimeError):
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{_FILE}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(newest, file, indent=0)
            os.replace(temporary, folder / _FILE)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
