"""What every benchmark writes: its figures, and on what and with what they were measured."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
# Options that say where something is kept, which is nobody else's business.
_PLACES = ("--cache", "--json", "--output")
_PACKAGES = ("bitpress", "numpy", "onnx", "onnxruntime", "pillow", "safetensors", "torch")


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


def make_record(
    *,
    seed: int | list[int],
    figures: dict[str, float],
    circumstances: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return one benchmark's JSON object; ``figures`` maps dotted names to numbers.

    ``circumstances`` are further members: what else the figures depend on.
    """
    return {
        "hardware": hardware(),
        "versions": versions(),
        "command": shlex.join(["python", "-m", _module(), *portable(sys.argv[1:])]),
        "seed": seed,
        "date": datetime.now(UTC).date().isoformat(),
        **(circumstances or {}),
        "figures": figures,
    }


def write_record(
    file: Path,
    *,
    seed: int | list[int],
    figures: dict[str, float],
    circumstances: Mapping[str, Any] | None = None,
) -> None:
    """Write what `make_record` returns."""
    record = make_record(seed=seed, figures=figures, circumstances=circumstances)
    file.write_text(json.dumps(record, indent=2) + "\n")


def portable(arguments: Iterable[str]) -> list[str]:
    """Return a command's arguments as they can be given elsewhere, in the repository's folder.

    Absolute paths become relative, those below ``BITPRESS_SHARED`` as if it were ``../shared``; of
    any other only the last name is kept. Where results and decoded images went is left out.
    """
    return list(_portable(iter(arguments)))


def _portable(arguments: Iterator[str]) -> Iterator[str]:
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option in _PLACES:
            if not equals:
                next(arguments, None)
        elif option.startswith("--") and equals:
            yield f"{option}={_without_machine(value)}"
        else:
            yield _without_machine(argument)


def _without_machine(value: str) -> str:
    path = Path(value)
    if not path.is_absolute():
        return value
    shared = os.path.abspath(os.environ.get("BITPRESS_SHARED", _ROOT.parent / "shared"))
    for folder, shown in ((Path(shared), Path("../shared")), (_ROOT, Path())):
        if path.is_relative_to(folder):
            return str(shown / path.relative_to(folder))
    return path.name


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
    """Return the processor's name and generation, which a rented one's name leaves out."""
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    name = fields.get("model name", platform.processor())
    if "cpu family" not in fields:
        return name
    return f"{name} (family {fields['cpu family']}, model {fields.get('model')})"


def _module() -> str:
    """Return the name that ``python -m`` was given."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("benchmarks."):
        return str(spec.name).removesuffix(".__main__")
    return "benchmarks." + Path(sys.argv[0]).stem
