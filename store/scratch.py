"""Private folders for work in progress, gone when the work ends, however it ends.

An entry is a folder with a lock file inside, locked for as long as its owner lives. The kernel
drops the lock with the process, so an entry whose lock can be had belongs to nobody. That holds
between containers on one volume too, where process ids say nothing.
"""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store.durable import full_disk_named, locked

_LOCK = ".lock"


class Scratch:
    """Work folders below ``root``; making one sweeps away what dead processes left there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.sweep()

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Yield an empty folder of one's own; it is removed with all its content at the end.

        What is to last is renamed out of it before. Raises `StorageExhausted` for a full disk.
        """
        owned = self.root / uuid.uuid4().hex
        descriptor: int | None = None
        try:
            with full_disk_named():
                # A sweep between the making and the locking would take the folder for an orphan.
                with locked(self.root / _LOCK, shared=True):
                    owned.mkdir()
                    descriptor = os.open(owned / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                work = owned / "work"
                work.mkdir()
                yield work
        finally:
            shutil.rmtree(owned, ignore_errors=True)
            if descriptor is not None:
                os.close(descriptor)

    def sweep(self) -> int:
        """Remove the folders whose owners are dead; return how many there were."""
        swept = 0
        with locked(self.root / _LOCK):
            for entry in self.root.iterdir():
                if entry.is_dir() and _is_orphan(entry):
                    shutil.rmtree(entry, ignore_errors=True)
                    swept += 1
        return swept


def _is_orphan(entry: Path) -> bool:
    try:
        descriptor = os.open(entry / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        # Its owner died before it made the lock, or is removing the folder right now.
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
