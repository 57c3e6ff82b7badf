"""The members of an archive: which names are safe, and what all of them may cost together."""

import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from store.errors import InvalidDataset, TooLarge

_MIB = 2**20
_GIB = 2**30
_MAX_PATH_CHARACTERS = 1024
_MAX_PART_CHARACTERS = 255
_DRIVE = re.compile(r"[A-Za-z]:")
# Control characters, halves of surrogate pairs (bytes that were not UTF-8), line separators.
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
_JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir"})


@dataclass(frozen=True)
class DatasetLimits:
    """The limits of `StoreSettings`, which also holds the defaults' meaning. Sizes in bytes.

    ``ratio_free_bytes`` may unpack from an archive of any size before ``max_ratio`` counts: small
    drawings compress a thousandfold without malice.
    """

    max_unpacked_bytes: int = 32 * _GIB
    max_ratio: float = 200.0
    ratio_free_bytes: int = 64 * _MIB
    max_members: int = 2_000_000
    max_images: int = 1_000_000
    max_classes: int = 10_000
    max_member_bytes: int = 64 * _MIB


Proceed = Callable[[], None]
"""Called again and again by long work, which it ends by raising: whoever waited has gone away."""


@dataclass(frozen=True)
class Member:
    """A file or folder of an archive.

    ``parts`` are those of `safe_parts`; ``size`` is the declared one, in bytes. ``read`` gives a
    file's bytes, ``pieces`` gives them piece by piece where they are too many for the memory: one
    of both, once, until the next member. Only ``read`` keeps to the limit of a single file.
    """

    parts: tuple[str, ...]
    is_folder: bool
    read: Callable[[], bytes]
    size: int = 0
    pieces: Callable[[], Iterator[bytes]] = lambda: iter(())


class Meter:
    """Counts what really comes out of an archive; what the archive declares is never trusted."""

    def __init__(
        self, limits: DatasetLimits, archive_bytes: int, proceed: Proceed = lambda: None
    ) -> None:
        self.limits = limits
        self._archive_bytes = archive_bytes
        self.proceed = proceed
        self._bytes = 0
        self._members = 0

    def count_member(self) -> None:
        """Count one entry. Raises `TooLarge` past ``max_members``."""
        self._members += 1
        if self._members > self.limits.max_members:
            raise too_large(f"The archive has more than {self.limits.max_members:,} entries.")

    def count_bytes(self, count: int) -> None:
        """Count unpacked bytes. Raises `TooLarge` past the total or the ratio."""
        self.proceed()
        self._bytes += count
        if self._bytes > self.limits.max_unpacked_bytes:
            raise too_large(
                f"The archive unpacks to more than {self.limits.max_unpacked_bytes:,} bytes."
            )
        if (
            self._bytes > self.limits.ratio_free_bytes
            and self._bytes > self.limits.max_ratio * self._archive_bytes
        ):
            raise too_large(
                f"The archive unpacks to more than {self.limits.max_ratio:g} times its size."
            )

    def check_member_size(self, name: str, size: int) -> None:
        """Check the size of one member, declared or seen. Raises `TooLarge`."""
        if size > self.limits.max_member_bytes:
            raise too_large(
                f"{shown(name)} in the archive is larger than "
                f"{self.limits.max_member_bytes:,} bytes."
            )


def too_large(detail: str) -> TooLarge:
    """An archive over a limit."""
    return TooLarge(
        detail,
        field="archive",
        remedy="Send fewer or smaller images, or ask the operator to raise the limit.",
    )


def broken(
    detail: str, remedy: str = "Pack the archive again and send it whole."
) -> InvalidDataset:
    """An archive that cannot be read, or must not be."""
    return InvalidDataset(detail, field="archive", remedy=remedy)


def shown(name: str) -> str:
    """Return an untrusted name fit for a message: quoted, printable, at most 120 characters."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name[:121])
    return f'"{clean}"' if len(clean) <= 120 else f'"{clean[:119]}…"'


def safe_parts(name: str, place: str = "archive") -> tuple[str, ...]:
    """Return the parts of a member's path, without empty ones and ``.``.

    ``place`` is what has the member, for the message.

    Raises:
        InvalidDataset: an absolute path, one with ``..``, a drive letter or a backslash, control
            characters, bytes that are not UTF-8, or an excessive length.
    """
    remedy = "Pack the folder again with relative paths, without links."
    if len(name) > _MAX_PATH_CHARACTERS:
        raise broken(f"The {place} has a path of {len(name):,} characters: {shown(name)}.", remedy)
    if "\\" in name or _DRIVE.match(name):
        raise broken(f"{shown(name)} in the {place} is a Windows path.", "Use / between folders.")
    if name.startswith("/"):
        raise broken(f"{shown(name)} in the {place} is an absolute path.", remedy)
    if any(unicodedata.category(c) in _UNPRINTABLE for c in name):
        raise broken(
            f"{shown(name)} in the {place} has characters that cannot be printed.",
            "Rename the file, with UTF-8 names throughout.",
        )
    # Interned because a million paths share a few folders.
    parts = tuple(sys.intern(part) for part in name.split("/") if part not in ("", "."))
    for part in parts:
        if part == "..":
            raise broken(f"{shown(name)} in the {place} points to a parent folder.", remedy)
        if len(part) > _MAX_PART_CHARACTERS:
            raise broken(f"The {place} has a name of {len(part):,} characters.", remedy)
    return parts


def is_junk(parts: tuple[str, ...]) -> bool:
    """Whether a path is what desktops leave behind: ``__MACOSX``, dotfiles, ``Thumbs.db``."""
    return any(part.startswith(".") or part.lower() in _JUNK for part in parts)
