"""What is kept of datasets in ``cache/`` because it can be made again: decoded pixels, sheets.

Every entry is named after the content that it was made from: the first 32 digits of the dataset's
digest, a minus, and what it is. So an entry serves every dataset of that content, and belongs to
nobody once there is none.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

from store.datasets import DatasetStore
from store.durable import write_synced
from store.scratch import Scratch

_DIGITS = 32
_ENTRY = re.compile(rf"[0-9a-f]{{{_DIGITS}}}-.+")


def entry_name(digest: str, what: str) -> str:
    """Return the name of the entry ``what`` of the content ``sha256:<hex>``."""
    return f"{digest.removeprefix('sha256:')[:_DIGITS]}-{what}"


def kept_file(cache: Path, digest: str, what: str, file: str) -> bytes | None:
    """Return the file of the entry ``what``; None where there is no such entry."""
    with suppress(FileNotFoundError):
        return (cache / entry_name(digest, what) / file).read_bytes()
    return None


def keep_file(cache: Path, digest: str, what: str, file: str, data: bytes) -> None:
    """Make the entry ``what``, with this one file; whoever was faster kept the same.

    Raises:
        StorageExhausted: the disk is full.
    """
    # A folder as all entries are, so that publishing one never replaces what is being read.
    entry = cache / entry_name(digest, what)
    with Scratch(cache / ".tmp").folder() as work:
        write_synced(work / file, data)
        try:
            os.rename(work, entry)
        except OSError:
            if not (entry / file).exists():
                raise


def remove_orphans(cache: Path, datasets: DatasetStore) -> int:
    """Remove the entries whose content no registered dataset has; return how many there were.

    Who has an entry open, or mapped, goes on with it. What else lies in ``cache`` stays.
    """
    entries = [entry for entry in _entries(cache) if _ENTRY.fullmatch(entry.name)]
    if not entries:
        return 0
    # Asked after the listing: whoever makes an entry has registered its dataset before.
    kept = {entry_name(dataset.digest, "") for dataset in datasets.list()}
    orphans = [entry for entry in entries if entry.name[: _DIGITS + 1] not in kept]
    for orphan in orphans:
        # Moved away whole: nobody must meet an entry of which a part is gone.
        with Scratch(cache / ".tmp").folder() as work, suppress(FileNotFoundError):
            os.rename(orphan, work / orphan.name)
    return len(orphans)


def _entries(cache: Path) -> list[Path]:
    try:
        return list(cache.iterdir())
    except FileNotFoundError:
        return []
