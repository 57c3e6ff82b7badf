"""From a kernel's source to machine code, compiled once on a machine and remembered.

A program is a few source files one after the other behind the constants that they leave open; it
includes nothing, as the compiler brings no headers. NVRTC compiles it where it is first needed. The
result is kept in the folder ``cubins`` of ``BITPRESS_CACHE_DIR``, under a name that tells the whole
program, the device's architecture and the compiler's version; what does not bear its own digest is
damaged, and compiled anew.
"""

import contextlib
import hashlib
import importlib
import os
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Final

from models.kernels.cuda.constants import Constants, definitions
from models.kernels.product_shape import Pair
from models.runtime.kernel_choice import cache_folder
from store.errors import Unavailable

# The files that a kernel's program is made of, by the kernel's name.
PROGRAMS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "tensor_product": (
            "device.cu",
            "finishing.cu",
            "tensor_counting.cu",
            "tensor_finishing.cu",
            "tensor_product.cu",
        ),
        "popcount_product": ("device.cu", "finishing.cu", "popcount_product.cu"),
    }
)

_FOLDER: Final = "cubins"
_DIGEST_BYTES: Final = 32


def cuda_core() -> ModuleType:
    """Return the package cuda.core.

    Raises:
        Unavailable: it is not installed.
    """
    # Where it stood before its first stable release comes last.
    for name in ("cuda.core", "cuda.core.experimental"):
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            if hasattr(module, "Program"):
                return module
    raise Unavailable(
        "The kernels for single bits need the Python packages cuda-core and nvidia-cuda-nvrtc.",
        field="runtime",
        remedy="Install bitpress with its extra 'gpu'.",
    )


def architecture(capability: Pair) -> str:
    """Return what the compiler calls devices of that compute capability, as ``sm_90a``."""
    major, minor = capability
    return f"sm_{major}{minor}" + ("a" if capability == (9, 0) else "")


def program_text(kernel: str, constants: Constants) -> str:
    """Return the whole program of one kernel."""
    parts = [definitions(constants)]
    for name in PROGRAMS[kernel]:
        source = _source(name)
        parts.append(f'#line 1 "{name}"\n{source}')
    return "".join(parts)


def cubin(kernel: str, constants: Constants, arch: str) -> bytes:
    """Return the machine code of a kernel, from the cache where it is there.

    Raises:
        Unavailable: there is no compiler.
    """
    text = program_text(kernel, constants)
    key = "\n".join((_compiler_version(), arch, text))
    name = f"{kernel}-{hashlib.sha256(key.encode()).hexdigest()[:40]}.cubin"
    code = _kept(name)
    if code is None:
        code = compiled(text, arch)
        _keep(name, code)
    return code


def compiled(text: str, arch: str) -> bytes:
    """Compile a program, which needs no device.

    Raises:
        Unavailable: there is no compiler.
    """
    core = cuda_core()
    options = core.ProgramOptions(arch=arch, std="c++17")
    program = core.Program(text, "c++", options)
    return bytes(program.compile("cubin").code)


@cache
def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@cache
def _compiler_version() -> str:
    cuda_core()  # brings the bindings, and says what is missing
    nvrtc: Any = importlib.import_module("cuda.bindings.nvrtc")
    _, major, minor = nvrtc.nvrtcVersion()
    return f"nvrtc {major}.{minor}"


def _kept(name: str) -> bytes | None:
    """Return what is in the cache under ``name``, or None where that is nothing, or damaged."""
    try:
        entry = (cache_folder() / _FOLDER / name).read_bytes()
    except (OSError, RuntimeError):  # the latter where there is no home
        return None
    digest, code = entry[:_DIGEST_BYTES], entry[_DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _keep(name: str, code: bytes) -> None:
    """Add machine code to the cache; where that cannot be written, nothing is kept."""
    with contextlib.suppress(OSError, RuntimeError):
        folder = cache_folder() / _FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(temporary, folder / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
