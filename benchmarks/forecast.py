"""How far a dry run's forecast is from the job: seconds of each stage, bytes, memory.

``python -m benchmarks.forecast`` starts a service of its own, foresees each job by
``POST /compress?dry_run=true``, has it done, and prints what was foreseen beside what was measured,
and their quotient. The constants of `store.job_cost` were fitted to the first three of these jobs;
run it on an idle machine, as whatever else runs is measured too.

===============  ===================================================================================
digits           the bundled digits, as `benchmarks.demo` compresses them
digits-tuned     the same, with three epochs of fine-tuning, 8-bit activations and a gate
vgg9             the shipped VGG-9 on CIFAR-10 (needs ``BITPRESS_SHARED``)
vgg9-tuned       the same with one epoch of fine-tuning
===============  ===================================================================================
"""

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file

from benchmarks import digits
from benchmarks.digits.training import ARCHITECTURE, INPUT, train
from benchmarks.record import write_record
from benchmarks.service import Service, ServiceFailed
from client.client import Client
from client.errors import ClientError
from client.types import CompressSpec, Forecast, InputShape, Job

SHARED: Final = Path(os.environ.get("BITPRESS_SHARED", "../shared"))
_SAMPLE_S: Final = 0.05

_DIGITS: Final[Mapping[str, Any]] = {
    "name": "digits",
    "architecture": ARCHITECTURE,
    "dataset": "digits",
    "input": InputShape(
        channels=INPUT.channels,
        height=INPUT.height,
        width=INPUT.width,
        mean=INPUT.mean,
        std=INPUT.std,
    ),
}
_VGG9: Final[Mapping[str, Any]] = {
    "name": "vgg9",
    "architecture": "vgg9",
    "dataset": "cifar10",
    "input": InputShape(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
}
_TUNED: Final[Mapping[str, Any]] = {
    "fine_tune": {"epochs": 3},
    "activation_bits": 8,
    "max_accuracy_drop": 0.5,
}
JOBS: Final[Mapping[str, CompressSpec]] = {
    "digits": CompressSpec(**_DIGITS),
    "digits-tuned": CompressSpec(**_DIGITS, **_TUNED),
    "vgg9": CompressSpec(**_VGG9),
    "vgg9-tuned": CompressSpec(**_VGG9, fine_tune={"epochs": 1}),
}


class JobFailed(Exception):
    """A job did not succeed; the message says why."""


class StageMemory:
    """The most memory that a process of a stage below this one has taken, in bytes (Linux)."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at the processes over and over while the block runs."""
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            parents = dict(_processes())
            for process in parents:
                if _is_below(process, os.getpid(), parents) and _is_stage(process):
                    self.peak_bytes = max(self.peak_bytes, _peak_bytes(process))


def _processes() -> Iterator[tuple[int, int]]:
    """Yield every process and its parent."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        yield int(folder.name), int(state[1])


def _is_below(process: int, ancestor: int, parents: Mapping[int, int]) -> bool:
    while process in parents and process != ancestor:
        process = parents[process]
    return process == ancestor


def _is_stage(process: int) -> bool:
    try:
        return b"worker.stage_server" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def _peak_bytes(process: int) -> int:
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0


def run(client: Client, name: str, checkpoint: Path) -> tuple[Forecast, Job, int, int]:
    """Foresee job ``name`` and have it done; return both, the artifact's bytes and the memory.

    Raises:
        JobFailed: it did not succeed.
    """
    spec = JOBS[name]
    foreseen = client.dry_run(spec, checkpoint)
    memory = StageMemory()
    with memory.watched():
        job = client.wait(client.compress(spec, checkpoint).id)
    if job.state != "succeeded" or job.model is None:
        reason = f": {job.problem.detail}" if job.problem else ""
        raise JobFailed(f"{name} ended as {job.state}{reason}")
    return foreseen, job, client.report(job.id).bytes.packed, memory.peak_bytes


def compared(
    foreseen: Forecast, job: Job, packed: int, memory: int
) -> dict[str, tuple[float, float]]:
    """Return what was foreseen and what was measured, by figure."""
    rows = {
        f"{stage}_s": (seconds, job.stage_seconds.get(stage, 0.0))
        for stage, seconds in foreseen.seconds.items()
    }
    return {
        **rows,
        "total_s": (foreseen.total_seconds, sum(job.stage_seconds.values())),
        "packed_bytes": (foreseen.packed_bytes, packed),
        "memory_bytes": (foreseen.memory_bytes, memory),
    }


def main() -> int:
    """Run the jobs that are asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", default="digits,digits-tuned", help="some of " + ", ".join(JOBS))
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    names = arguments.jobs.split(",")
    if unknown := set(names) - set(JOBS):
        parser.error(f"there is no job {unknown.pop()!r}")
    figures: dict[str, float] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="bitpress-forecast-") as folder:
            for name, rows in _measured(Path(folder), names):
                print(f"\n{name:<16}{'foreseen':>16}{'measured':>16}{'quotient':>10}")
                for row, (foreseen, measured) in rows.items():
                    print(f"{row:<16}{foreseen:>16,.1f}{measured:>16,.1f}", end="")
                    print(f"{foreseen / measured:>10.2f}" if measured else f"{'-':>10}", flush=True)
                    figures[f"{name}.foreseen.{row}"] = foreseen
                    figures[f"{name}.measured.{row}"] = measured
    except (JobFailed, ServiceFailed, ClientError) as error:
        print(f"forecast: failed: {error}", file=sys.stderr)
        return 1
    if arguments.json is not None:
        write_record(arguments.json, seed=0, figures=figures)
    return 0


def _measured(
    folder: Path, names: list[str]
) -> Iterator[tuple[str, dict[str, tuple[float, float]]]]:
    checkpoints = {"vgg9": SHARED / "checkpoints/vgg9_cifar10.safetensors"}
    with Service(folder / "service") as service, Client(service.wait_until_ready()) as client:
        if any(name.startswith("digits") for name in names):
            training, test = digits.split(digits.load(), seed=0)
            checkpoints["digits"] = folder / "digits_cnn.safetensors"
            save_file(train(training, seed=0).state_dict(), checkpoints["digits"])
            digits.write_images(training, folder / "images" / "train")
            digits.write_images(test, folder / "images" / "test")
            client.upload_dataset(folder / "images", "digits")
        if any(name.startswith("vgg9") for name in names):
            client.upload_dataset(SHARED / "data/cifar10-jpeg.tar.xz", "cifar10")
        for name in names:
            yield name, compared(*run(client, name, checkpoints[name.partition("-")[0]]))


if __name__ == "__main__":
    sys.exit(main())
