"""Writes that survive a power cut, locks that die with their process, and the full disk by name."""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from store.errors import StorageExhausted

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

# Between two attempts at a lock that somebody else has.
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.002, 0.05


@contextmanager
def full_disk_named() -> Iterator[None]:
    """Turn "no space left on device" and "quota exceeded" into `StorageExhausted`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageExhausted(
                "The server has no space left to store this.",
                remedy="Ask the operator to free space, then send the request again.",
            ) from error
        raise


@contextmanager
def locked(
    path: Path, *, shared: bool = False, waiting: Callable[[], object] | None = None
) -> Iterator[None]:
    """Hold the lock file ``path`` (made where missing), against threads and processes alike.

    The kernel drops the lock when the process dies, so a crash never blocks anybody; a process that
    is frozen does. ``waiting`` is called again and again while another one holds the lock, and ends
    the waiting by whatever it raises; without it there is no end. A lock file, not a folder,
    because NFS grants exclusive locks on writable descriptors only.
    """
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if waiting is None:
            fcntl.flock(descriptor, mode)
        else:
            _attempt(descriptor, mode, waiting)
        yield
    finally:
        os.close(descriptor)


def _attempt(descriptor: int, mode: int, waiting: Callable[[], object]) -> None:
    wait_s = _SHORTEST_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            waiting()
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (a rename, a new file) durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the file's bytes durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and its bytes to the disk. Not atomic: for files that a rename publishes."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
