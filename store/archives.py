"""Reading untrusted archives: zip, tar, tar.gz, tar.xz and tar.bz2, told apart by their bytes."""

from collections.abc import Iterator
from pathlib import Path

from store.archive_members import DatasetLimits, Member, Meter, Proceed, broken
from store.tarballs import tar_members
from store.zipfiles import zip_members


def members(path: Path, limits: DatasetLimits, proceed: Proceed = lambda: None) -> Iterator[Member]:
    """Yield the files and folders of the archive at ``path``, in its own order.

    ``proceed`` is called with every piece that is unpacked, and may raise to end it. Every name is
    safe, nothing is a link, and the limits hold for what was read, not for what the archive
    declares.

    Raises:
        InvalidDataset: the archive is damaged, or has something in it that must not be there.
        TooLarge: the archive is over a limit.
    """
    size = path.stat().st_size
    if size == 0:
        raise broken("The archive is a file of 0 bytes.")
    with open(path, "rb") as file:
        magic = file.read(4)
    read = zip_members if magic.startswith(b"PK") else tar_members
    for member in read(path, Meter(limits, size, proceed)):
        if member.parts:
            yield member
        elif not member.is_folder:
            raise broken("The archive has a file without a name.")
