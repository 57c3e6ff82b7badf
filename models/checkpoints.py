"""Foreign checkpoints: what they hold, and their tensors, without trusting a byte of them.

`inspect` is cheap and unpickles nothing: the app calls it on every upload. `load` reads the
tensors; a file of ``torch.save`` is read by a child process (`models.unpickle`) under limits.
`check_fit` compares a checkpoint with an architecture and `restore` puts it there.

Names are those of the network itself: a wrapping ``state_dict``, ``model_state_dict``, ``model`` or
``net`` is taken off, and so are the prefixes ``module.`` (data parallel) and ``_orig_mod.``
(compiled), however often they are repeated.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.checkpoint_container import (
    SAVE_SAFELY,
    Format,
    Shape,
    check_zip,
    identify,
    safetensors_shapes,
    short,
)
from models.checkpoint_fit import check_fit, restore
from store.errors import InvalidCheckpoint, StorageExhausted, TooLarge

__all__ = ["Inspection", "check_fit", "clean_shapes", "inspect", "load", "restore"]

_PREFIXES = ("module.", "_orig_mod.")
_ROOT = Path(__file__).resolve().parents[1]

# What the child dies of when it is the limits, not the file, that end it: the system is out of
# memory, an allocation failed where nothing could catch it, the processor time is used up.
_LIMIT_SIGNALS = frozenset({signal.SIGKILL, signal.SIGABRT, signal.SIGXCPU})

_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class Inspection:
    """What can be told of a checkpoint without loading it; ``shapes`` is None for pickles."""

    format: Format
    shapes: dict[str, Shape] | None


def inspect(path: Path) -> Inspection:
    """Return format and, for safetensors, cleaned names and shapes of the file at ``path``.

    Raises:
        InvalidCheckpoint: no known format, truncated, or declaring more than the file holds.
    """
    kind = identify(path)
    if kind == "safetensors":
        return Inspection(kind, clean_shapes(safetensors_shapes(path)))
    if kind == "torch-zip":
        check_zip(path)
    return Inspection(kind, None)


def load(
    path: Path,
    *,
    time_limit_s: float = 120.0,
    memory_margin_bytes: int = 512 * 2**20,
    scratch: Path | None = None,
) -> dict[str, Tensor]:
    """Return the tensors of the checkpoint at ``path`` by cleaned name, on the CPU, finite.

    Weights of any real type become float32; ``num_batches_tracked`` stays int64. Pickles are read
    in a child process that may take ``time_limit_s`` seconds and, beyond what torch itself and the
    file account for, ``memory_margin_bytes``; its result passes through an unnamed file in
    ``scratch`` (default: the system's temporary folder), of which nothing can be left behind.

    Raises:
        InvalidCheckpoint: as `inspect`; or the pickle asks for code or holds something else than
            named tensors; or a tensor holds NaN or infinity.
        TooLarge: reading the pickle takes more time or memory than it may.
        StorageExhausted: ``scratch`` has no room for the tensors.
    """
    inspection = inspect(path)
    if inspection.format == "safetensors":
        return _read(path)
    with tempfile.TemporaryFile(dir=scratch) as result:
        _unpickle(path, result.fileno(), time_limit_s, memory_margin_bytes)
        translated = Path(f"/dev/fd/{result.fileno()}")
        safetensors_shapes(translated)
        return _read(translated)


def clean_shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return ``shapes`` with the prefixes removed from their names.

    Raises:
        InvalidCheckpoint: two names become one.
    """
    return _clean(shapes)


def _clean(entries: Mapping[str, _Entry]) -> dict[str, _Entry]:
    cleaned: dict[str, _Entry] = {}
    for key, entry in entries.items():
        name = key
        while name.startswith(_PREFIXES):
            name = name.split(".", 1)[1]
        if name in cleaned:
            raise InvalidCheckpoint(
                f"Two tensors are called {short(name)} once prefixes are removed.",
                field="checkpoint",
                remedy="Save the state dict of one model only.",
            )
        cleaned[name] = entry
    return cleaned


def _read(path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (the handle is no mapping)
                tensor: Tensor = file.get_tensor(key)
                count = key.endswith("num_batches_tracked")
                # A copy: the tensor as it comes is a view of the mapped file.
                tensors[key] = tensor.to(torch.int64 if count else torch.float32, copy=True)
    except SafetensorError:
        raise InvalidCheckpoint(
            "The safetensors file is damaged.", field="checkpoint", remedy=SAVE_SAFELY
        ) from None
    cleaned = _clean(tensors)
    faulty = [key for key, tensor in cleaned.items() if not torch.isfinite(tensor).all()]
    if faulty:
        others = f" (and {len(faulty) - 1} other tensors)" if len(faulty) > 1 else ""
        raise InvalidCheckpoint(
            f"Tensor {short(faulty[0])}{others} holds NaN, infinity or a value beyond float32.",
            field="checkpoint",
            remedy="Save the checkpoint of a training run that did not diverge.",
        )
    return cleaned


def _unpickle(path: Path, result_fd: int, time_limit_s: float, memory_margin_bytes: int) -> None:
    """Have a child process write the tensors of ``path`` to ``result_fd`` as safetensors."""
    command = [sys.executable, "-P", "-m", "models.unpickle", os.fspath(path.absolute())]
    # Processor time counts the imports as well; the wall clock, checked here, is what decides.
    numbers = (result_fd, os.getpid(), math.ceil(time_limit_s) + 1, memory_margin_bytes)
    child = subprocess.Popen(
        [*command, *map(str, numbers)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=(result_fd,),
        env=_child_environment(),
    )
    try:
        answer = child.communicate(timeout=time_limit_s)[0]
    except subprocess.TimeoutExpired:
        raise _too_large(f"Reading the file took longer than {time_limit_s:g} seconds.") from None
    finally:
        # Also on an interrupt or a cancelled job: no child outlives this call.
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    try:
        refusal = json.loads(answer) if child.returncode == 0 else None
    except ValueError:
        refusal = None
    if refusal is None:
        if -child.returncode in _LIMIT_SIGNALS:
            raise _too_large("Reading the file took more memory or time than its size explains.")
        raise InvalidCheckpoint(
            "The process that read the file broke down: the file is damaged.",
            field="checkpoint",
            remedy=SAVE_SAFELY,
        )
    if "memory" in refusal:
        raise _too_large(str(refusal["memory"]))
    if "full" in refusal:
        raise StorageExhausted(str(refusal["full"]), remedy="Free space where the worker runs.")
    if refusal:
        raise InvalidCheckpoint(
            str(refusal["detail"]), field="checkpoint", remedy=str(refusal["remedy"])
        )


def _too_large(detail: str) -> TooLarge:
    # There is no such limit for safetensors: their size is known before they are read.
    return TooLarge(detail, field="checkpoint", remedy=SAVE_SAFELY)


def _child_environment() -> dict[str, str]:
    """Return what the child needs to start, and none of the service's settings and secrets."""
    kept = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    search = [os.fspath(_ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return environment | {
        "PYTHONPATH": os.pathsep.join(search),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
