"""What every benchmark writes: its figures, and on what and with what they were measured."""

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("bitpress", "numpy", "pillow", "safetensors", "torch")


def hardware() -> dict[str, Any]:
    """Return the processor's name, the cores this process may use and the memory in GiB."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages * page_bytes / 2**30, 1),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the figures depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def make_record(*, seed: int | list[int], figures: dict[str, float]) -> dict[str, Any]:
    """Return one benchmark's JSON object; ``figures`` maps dotted names to numbers."""
    return {
        "hardware": hardware(),
        "versions": versions(),
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "seed": seed,
        "date": datetime.now(UTC).date().isoformat(),
        "figures": figures,
    }


def write_record(file: Path, *, seed: int | list[int], figures: dict[str, float]) -> None:
    """Write what `make_record` returns."""
    file.write_text(json.dumps(make_record(seed=seed, figures=figures), indent=2) + "\n")


def reset_peak_memory() -> None:
    """Begin a new measurement of `peak_mib` (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_mib() -> float:
    """Return the memory that this process holds now, in MiB (Linux)."""
    return _status_mib("VmRSS")


def peak_mib() -> float:
    """Return the most memory that this process held since `reset_peak_memory`, in MiB (Linux)."""
    return _status_mib("VmHWM")


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _module() -> str:
    """Return the name that ``python -m`` was given."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("benchmarks."):
        return str(spec.name).removesuffix(".__main__")
    return "benchmarks." + Path(sys.argv[0]).stem
