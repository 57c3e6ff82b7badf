"""The memory that a loaded network holds, measured in a process that has only its runtime.

``python -m benchmarks.latency.resident RUNTIME FILE CHANNELS HEIGHT WIDTH`` imports the runtime,
loads the file, runs one image, and prints after each how much memory is resident, as JSON.
"""

import gc
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.latency.runtimes import loader

_MIB = 1 << 20
_THREADS = 1


@dataclass(frozen=True)
class Memory:
    """MiB that a network adds to its runtime's process, by loading and after one image as well.

    ``resident`` counts all pages in memory, also those of the runtime's own code that running
    touches for the first time; ``private`` only those that no file could give back.
    """

    loaded: float
    resident: float
    private: float


def added_memory(runtime: str, file: Path, input_shape: tuple[int, int, int]) -> Memory:
    """Measure in a new process, in one thread.

    Raises:
        subprocess.CalledProcessError: the process failed.
    """
    arguments = [runtime, str(file), *map(str, input_shape)]
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.latency.resident", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": str(_THREADS)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    before, loaded, ran = json.loads(process.stdout.splitlines()[-1])
    return Memory(
        loaded=(loaded["Rss"] - before["Rss"]) / _MIB,
        resident=(ran["Rss"] - before["Rss"]) / _MIB,
        private=(ran["Anonymous"] - before["Anonymous"]) / _MIB,
    )


def _memory() -> dict[str, int]:
    """Return the bytes that are resident, and those of them that are of no file (Linux)."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    fields = (line.split() for line in lines)
    return {field[0].rstrip(":"): 1024 * int(field[1]) for field in fields}


def _measure(runtime: str, file: Path, input_shape: tuple[int, ...]) -> None:
    load = loader(runtime)
    image = np.random.default_rng(0).standard_normal((1, *input_shape), dtype=np.float32)
    readings = [_memory()]
    run = load(file, _THREADS)
    readings.append(_memory())
    run(image)
    readings.append(_memory())
    kept = ("Rss", "Anonymous")
    print(json.dumps([{field: reading[field] for field in kept} for reading in readings]))


if __name__ == "__main__":
    _measure(sys.argv[1], Path(sys.argv[2]), tuple(map(int, sys.argv[3:])))
