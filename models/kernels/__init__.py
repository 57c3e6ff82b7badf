"""The native kernels: where the compiled library is. Sources and interface are in `cpu/`."""

from pathlib import Path
from typing import Final

LIBRARY_NAME: Final = "libbitpress_cpu.so"


def library_path() -> Path | None:
    """Return where the CPU engine's library is, or None where none was built.

    An editable install has two folders of this package: that of the sources and, beside the other
    installed packages, the one that the build wrote to. Of two libraries the later one counts.
    """
    found = [path for folder in __path__ if (path := Path(folder, LIBRARY_NAME)).is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
