"""``dataset.json``: what a registered dataset is, written once and read with care.

A record that is missing or damaged takes no other dataset with it, and members that a later release
wrote are passed over.
"""

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from store.dataset_archives import Source
from store.durable import write_synced
from store.errors import Unavailable

RECORD = "dataset.json"
_SCHEMA = 2
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Dataset:
    """A registered dataset.

    ``digest`` is that of the images and their names; ``archive_digest`` that of the archive's file,
    None where there was none; ``splits`` the number of images of each split (``all`` where there
    are none); ``bytes`` the size of all encoded images; ``created_at`` ISO 8601 in UTC; ``source``
    what it was made from, and ``root`` the name of the root where that is one.
    """

    name: str
    digest: str
    archive_digest: str | None
    classes: tuple[str, ...]
    splits: dict[str, int]
    bytes: int
    created_at: str
    source: Source = "folders"
    root: str | None = None


def write_record(folder: Path, dataset: Dataset) -> None:
    """Write the record of ``dataset`` into ``folder``, and to the disk."""
    record = {"schema": _SCHEMA, **asdict(dataset)}
    write_synced(folder / RECORD, json.dumps(record, indent=1).encode())


def read_record(folder: Path) -> Dataset | None:
    """Return the dataset of ``folder``, which bears its name; `None` where there is no folder.

    Raises:
        Unavailable: its record is missing or damaged.
    """
    try:
        return _dataset(folder.name, json.loads((folder / RECORD).read_bytes()))
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        # Asked only now: a dataset that is deleted between two questions is no damaged one.
        if folder.is_dir():
            raise damaged(folder.name, RECORD) from None
        return None


def damaged(name: str, file: str) -> Unavailable:
    """Say that a file of a registered dataset cannot be used."""
    return Unavailable(
        f"{file} of the dataset {name} is missing or damaged.",
        field="spec.dataset",
        remedy="Use another dataset, or delete this one and register it again.",
    )


def _dataset(name: str, record: dict[str, Any]) -> Dataset:
    # Records of schema 1 have neither source nor root; a later one may have more members.
    known = {field.name: record[field.name] for field in fields(Dataset) if field.name in record}
    dataset = Dataset(**known | {"name": name, "classes": tuple(record["classes"])})
    is_sound = (
        _is_digest(dataset.digest)
        and (dataset.archive_digest is None or _is_digest(dataset.archive_digest))
        and len(dataset.classes) > 0
        and all(type(label) is str for label in dataset.classes)
        and len(dataset.splits) > 0
        and all(type(count) is int and count > 0 for count in dataset.splits.values())
        and type(dataset.bytes) is int
        and type(dataset.created_at) is str
        and dataset.source in get_args(Source)
        and (dataset.root is None or type(dataset.root) is str)
    )
    if not is_sound:
        raise ValueError("a member has no value that was ever written")
    return dataset


def _is_digest(value: Any) -> bool:
    return type(value) is str and _DIGEST.fullmatch(value) is not None
