"""Which configuration computes a product fastest: measured once on a device, and remembered.

What was measured on a device is in a file of ``BITPRESS_CACHE_DIR``, ``gpu-kernels-*.json``, whose
name tells the device, Triton's version and the kernels' sources. The choices that this package
brings along, in ``tuned``, are such files too, named by the device alone. Where neither knows a
product it is measured, or else the rule of `configurations` decides.

Products of levels give the same bits in every configuration. Sums of real numbers are added in
different orders, so that two devices may differ by what float32 rounds.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

from models.kernels.product_shape import Epilogue, ProductShape, ProductTensors
from models.kernels.triton.configurations import Configuration, candidates
from models.kernels.triton.operators import launch_product
from models.runtime.kernel_choice import cache_folder

TUNED: Final = Path(__file__).with_name("tuned")

# Of launches in a row, so that what is measured is the device at work and not waiting for any.
_REPEATS: Final = 10
# Configurations take turns: a clock that changes changes for all of them.
_ROUNDS: Final = 3

_log: Final = logging.getLogger("bitpress.models")

Seconds = Callable[[Sequence[Configuration]], Sequence[float]]


def choose(
    x: Tensor,
    words: Tensor,
    tensors: ProductTensors,
    shape: ProductShape,
    epilogue: Epilogue,
    out: Tensor,
    *,
    measure: bool,
) -> Configuration:
    """Return a configuration for `launch_product` with these arguments.

    With ``measure`` it may be found out now: ``out`` is written to then, and the current stream
    must not be one that is being captured.
    """
    if not x.is_cuda:
        return candidates(shape, epilogue, len(x))[0]
    possible = candidates(shape, epilogue, len(x), torch.cuda.get_device_capability(x.device))
    # What is done with the sums takes the same time in every configuration.
    plain = Epilogue(epilogue.read, epilogue.kept, epilogue.read_levels, epilogue.kept_levels)
    given = ProductTensors(offsets=tensors.offsets, places=tensors.places)

    run = partial(launch_product, x, words, given, shape, plain, out)

    def seconds(configs: Sequence[Configuration]) -> Sequence[float]:
        return device_seconds([partial(run, config) for config in configs])

    machine = device_file_name(torch.cuda.get_device_name(x.device))
    work = work_name(shape, epilogue, len(x))
    return remembered_choice(machine, work, possible, seconds if measure else None)


def remembered_choice(
    machine: str, work: str, possible: Sequence[Configuration], seconds: Seconds | None
) -> Configuration:
    """Return which of ``possible`` is known to do ``work`` best, measuring where nothing is.

    Without ``seconds``, which gives infinity for what cannot run, the first one stands in. What is
    measured is kept for the next time; an unreadable file, or an entry that makes no sense, counts
    as none.
    """
    own = f"gpu-kernels-{machine}-{triton.__version__}-{_sources()}.json"
    for found in (_read_own(own), _read(TUNED / f"{machine}.json")):
        known = _configuration(found.get(work))
        if known is not None and known in possible:
            return known
    if seconds is None or len(possible) == 1:
        return possible[0]
    measured = list(seconds(possible))
    if min(measured) == math.inf:
        return possible[0]
    fastest = possible[measured.index(min(measured))]
    # Anew: another process may have added to it in the meantime.
    _write_own(own, {**_read_own(own), work: list(astuple(fastest))})
    return fastest


def work_name(shape: ProductShape, epilogue: Epilogue, images: int) -> str:
    """Return what tells apart products that may want different configurations."""
    return json.dumps([*astuple(shape), epilogue.read, epilogue.kept, images]).replace(" ", "")


def device_file_name(device: str) -> str:
    """Return a device's name as part of a file's, ``nvidia-h200`` for instance."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def device_seconds(launches: Sequence[Callable[[], None]]) -> list[float]:
    """Return how long each takes on the device, infinity where it cannot run."""
    graphs = [_captured(launch) for launch in launches]
    best = [math.inf] * len(launches)
    for index in [*range(len(launches))] * _ROUNDS:
        graph = graphs[index]
        if graph is not None:
            start, end = _event(), _event()
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            best[index] = min(best[index], start.elapsed_time(end) / 1e3 / _REPEATS)
    return best


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _captured(launch: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
    try:
        launch()
    except (RuntimeError, TritonError) as error:  # too large for the device, or for the compiler
        _log.info("A configuration of a GPU kernel cannot be used: %s", type(error).__name__)
        return None
    torch.cuda.synchronize()  # an error of the device itself comes out here
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on with what a recording of the whole process would not stand.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(_REPEATS):
            launch()
    graph.replay()
    return graph


@cache
def _sources() -> str:
    """Return a digest of the kernels: a choice among others says nothing about these."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _configuration(members: Any) -> Configuration | None:
    try:
        return Configuration(*members)
    except TypeError:
        return None


def _read_own(name: str) -> dict[str, Any]:
    try:
        return _read(cache_folder() / name)
    except RuntimeError:  # there is no home
        return {}


def _read(path: Path) -> dict[str, Any]:
    """Return the choices in a file, none where it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_own(name: str, choices: Mapping[str, Any]) -> None:
    """Keep choices; where that cannot be done, nothing is kept."""
    with contextlib.suppress(OSError, RuntimeError):
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(choices, file, indent=0, sort_keys=True)
            os.replace(temporary, folder / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
