"""Checks and measures the GPU engine where there is a GPU: ``make gpu-check``.

Runs with the ``python3`` that is there, from a checkout that is not installed: all tests that need
a GPU, small networks, their layers under compute-sanitizer where that works, and then the benchmark
with what is left of eight minutes. A step that fails keeps none of the others from
running; the exit status tells whether one did.
"""

import argparse
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from store.errors import BitpressError

ROOT = Path(__file__).resolve().parents[1]

LIMIT_S = 460.0  # of everything, with some seconds to spare
_TESTS_S = 180.0
_SMALL_S = 80.0
_SANITIZER_S = 40.0
_PROBE_S = 20.0
# What is over its time is interrupted, and has so long to say what it has found.
_GRACE_S = 10.0
_SMALL = "benchmarks.gpu_measuring.small_shapes"
# A checker then knows where each tensor ends.
_TENSORS_OF_THEIR_OWN = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
# Of the benchmark's time: for tables and files, and for what takes longer than it was thought to.
_SPARE_S = 25.0
# On a line of code; a string that speaks of it marks nothing.
_MARK = re.compile(r"^[^#\n\"']*pytest\.mark\.gpu\b", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """A program to run, for at most ``limit_s`` seconds; without a command it is left out.

    ``environment`` is added to that of this process.
    """

    name: str
    command: Sequence[str] | None
    limit_s: float
    environment: Mapping[str, str] = field(default_factory=dict)


def steps(left_s: Callable[[], float], json: Path | None) -> list[Callable[[], Step]]:
    """Return what makes each step, when its turn has come."""
    return [
        lambda: Step("tests", tests_command(ROOT / "tests", _side_by_side()), _TESTS_S),
        # Also compiles what the steps behind it take, which no checker need watch.
        lambda: Step("small networks", [sys.executable, "-m", _SMALL], _SMALL_S),
        *(partial(_sanitizer_step, tool) for tool in ("memcheck", "racecheck")),
        lambda: Step("benchmark", benchmark_command(left_s() - _SPARE_S, json), left_s()),
    ]


def tests_command(tests: Path, options: Sequence[str] = ()) -> list[str]:
    """Return what runs all tests that need a GPU: of files that have none not even the imports."""
    files = [
        str(path.relative_to(tests.parent))
        for path in sorted(tests.rglob("test_*.py"))
        if _MARK.search(path.read_text(encoding="utf-8"))
    ]
    # Warnings are errors for the versions that the project pins. These are the machine's own.
    chosen = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    return [sys.executable, "-m", "pytest", *chosen, *options, *files]


def _side_by_side() -> list[str]:
    """Return what makes pytest use several processes: most of the tests' time goes to compiling."""
    return ["-n", "8"] if importlib.util.find_spec("xdist") else []


def sanitizer_command(tool: str, watched: Sequence[str]) -> list[str] | None:
    """Return what runs a program under compute-sanitizer, or None where there is none."""
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if sanitizer is None:
        return None
    return [sanitizer, "--tool", tool, "--error-exitcode", "9", *watched]


def _sanitizer_step(tool: str) -> Step:
    """Return the step that watches small layers; where the sanitizer does not work there is none.

    Some virtual machines have one that refuses their GPU, which is no fault of what it watches.
    """
    probe = [sys.executable, "-c", "import torch; torch.zeros(1, device='cuda')"]
    tried = sanitizer_command(tool, probe)
    works = tried is not None and run(Step("probe", tried, _PROBE_S), _PROBE_S) == "passed"
    command = sanitizer_command(tool, [sys.executable, "-m", _SMALL, "--layers"])
    return Step(tool, command if works else None, _SANITIZER_S, _TENSORS_OF_THEIR_OWN)


def benchmark_command(limit_s: float, json: Path | None) -> list[str]:
    """Return what measures as much as there is time for, with the choices of kernels there are.

    Choosing by measuring first compiles every candidate, which takes longer than all there is.
    """
    kept = [] if json is None else ["--json", str(json)]
    limit = ["--limit", f"{max(limit_s, 0):.0f}", "--no-autotune"]
    return [sys.executable, "-m", "benchmarks.gpu", *limit, *kept]


def run(step: Step, left_s: float) -> str:
    """Run a step; return what became of it: ``passed``, ``FAILED`` and why, or ``left out``."""
    if step.command is None:
        return "left out: there is no compute-sanitizer that works here"
    limit = min(step.limit_s, left_s)
    if limit <= 0:
        return "FAILED: no time was left"
    # In a group of its own: what it has started, compilers among them, ends with it.
    process = subprocess.Popen(
        step.command,
        cwd=ROOT,
        env={**os.environ, **step.environment},
        start_new_session=True,
        preexec_fn=_heed_interrupts,
    )
    try:
        status = process.wait(max(limit - _GRACE_S, limit / 2))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(_GRACE_S, limit / 2))
        return f"FAILED: not done within {limit:.0f} s"
    finally:
        # Also where it has ended by itself: its children may not have, and would disturb the next.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return "passed" if status == 0 else f"FAILED with status {status}"


def _heed_interrupts() -> None:
    # What a shell runs in the background ignores them, and hands that down.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def check(
    made: Sequence[Callable[[], Step]],
    left_s: Callable[[], float],
    run_step: Callable[[Step, float], str] = run,
) -> int:
    """Run all steps, whatever becomes of each; return the exit status."""
    found: dict[str, str] = {}
    for make in made:
        step = make()
        print(f"\n=== {step.name}", flush=True)
        found[step.name] = run_step(step, left_s())
    print("\n=== what became of it")
    for name, outcome in found.items():
        print(f"{name}: {outcome}")
    return int(any(outcome.startswith("FAILED") for outcome in found.values()))


def main(given: Sequence[str] | None = None) -> int:
    """Check and measure the GPU here; return the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu_check")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    asked = parser.parse_args(given)
    end = time.monotonic() + LIMIT_S
    try:
        from benchmarks.gpu_measuring.card import require_card  # needs torch

        require_card()
    except ImportError as error:
        print(f"This python3 cannot check a GPU: {error}", file=sys.stderr)
        return 1
    except BitpressError as error:
        print(f"{error.title}: {error.detail} {error.remedy or ''}", file=sys.stderr)
        return 1

    def left_s() -> float:
        return end - time.monotonic()

    # Steps run in the repository's folder, wherever this was asked for.
    json = None if asked.json is None else asked.json.resolve()
    return check(steps(left_s, json), left_s)


if __name__ == "__main__":
    sys.exit(main())
