"""Writes that survive a power cut, locks that die with their process, and the full disk by name."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store.errors import StorageExhausted

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


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
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock file ``path`` (made where missing), against threads and processes alike.

    The kernel drops the lock when the process dies, so a crash never blocks anybody. A lock file,
    not a folder, because NFS grants exclusive locks on writable descriptors only.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
