"""Which sets of the CPU engine's kernels there are here, found out without importing torch."""

import os
from typing import Final

from models import kernels as native_kernels
from models.runtime.native import NativeLibrary, library
from store.errors import Unavailable

KERNELS_VARIABLE: Final = "BITPRESS_CPU_KERNELS"


def native_library() -> NativeLibrary:
    """Return the library of this installation.

    Raises:
        Unavailable: it was not built, or is another release's.
    """
    found = library()
    if found is None and native_kernels.library_path() is not None:
        raise Unavailable(
            "The native library of this installation, for the runtime 'cpu', is of another "
            "release or damaged.",
            field="runtime",
            remedy="Install bitpress again, or use the runtime 'reference'.",
        )
    if found is None or not found.kernel_sets():
        raise Unavailable(
            "The runtime 'cpu' needs a native library, which this installation lacks.",
            field="runtime",
            remedy="Install a C++ compiler and install bitpress again, or use the runtime "
            "'reference'.",
        )
    return found


def kernel_set(name: str | None = None) -> str:
    """Return the kernel set that ``name`` means here: itself, or by default the best one.

    The environment variable BITPRESS_CPU_KERNELS stands in for a missing ``name``.

    Raises:
        Unavailable: there is no native library, or this processor or build lacks the set.
    """
    available = native_library().kernel_sets()
    wanted = name or os.environ.get(KERNELS_VARIABLE) or available[0]
    if wanted not in available:
        raise Unavailable(
            f"There are no kernels {wanted!r:.40} for this processor.",
            field="cpu_kernels",
            remedy=f"Set {KERNELS_VARIABLE} to one of: " + ", ".join(available) + "; or unset it.",
        )
    return wanted
