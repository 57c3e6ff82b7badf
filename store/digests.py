"""The SHA-256 of files, written as it is everywhere: ``sha256:<hex>``."""

import hashlib
from pathlib import Path


def file_digest(path: Path) -> str:
    """Return ``sha256:<hex>`` of the file's bytes."""
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
