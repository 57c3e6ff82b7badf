"""Names for versions of a model that can be moved from one version to another.

All aliases of a model stand in ``aliases.json`` in its folder, which is replaced by one rename: who
reads it sees the aliases before a change or after it. Who writes it holds the store's lock.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from store.durable import sync_folder, write_synced
from store.errors import InvalidInput, NotFound, Unavailable
from store.model_version import json_bytes, read_json

ALIAS_PATTERN = r"^[a-z][a-z0-9._-]{0,63}$"
LATEST = "latest"
"""What always means the newest version, and so cannot be the name of an alias."""
MOST_ALIASES = 100
"""Most aliases of one model."""
ALIASES = "aliases.json"


def check_alias(alias: str) -> None:
    """Raise `InvalidInput` where no alias may have this name."""
    if alias == LATEST or not re.fullmatch(ALIAS_PATTERN, alias):
        raise InvalidInput(
            "This is no name for an alias.",
            field="alias",
            remedy=f"Use a lower-case letter, then up to 63 lower-case letters, digits, '.', '_' "
            f"and '-', but not '{LATEST}'.",
        )


def read_aliases(folder: Path, name: str) -> dict[str, int]:
    """Return the versions that the aliases of the model in ``folder`` point to, by alias.

    Raises:
        Unavailable: their file is damaged.
    """
    try:
        aliases = read_json(folder / ALIASES)["aliases"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        raise _damaged(name) from None
    if not isinstance(aliases, dict) or not all(
        re.fullmatch(ALIAS_PATTERN, alias) and type(version) is int and version > 0
        for alias, version in aliases.items()
    ):
        raise _damaged(name)
    return {alias: aliases[alias] for alias in sorted(aliases)}


def write_aliases(folder: Path, work: Path, aliases: Mapping[str, int]) -> None:
    """Replace the aliases of the model in ``folder``. ``work`` is a folder to write in before."""
    if len(aliases) > MOST_ALIASES:
        raise InvalidInput(
            f"A model has at most {MOST_ALIASES} aliases.",
            field="alias",
            remedy="Delete an alias that is no longer used.",
        )
    write_synced(work / ALIASES, json_bytes({"schema": 1, "aliases": dict(aliases)}))
    os.rename(work / ALIASES, folder / ALIASES)
    sync_folder(folder)


def unknown_alias(name: str, alias: str, known: Mapping[str, int], field: str) -> NotFound:
    """Return the error for an alias that a model does not have."""
    there_are = "Use one of: " + ", ".join([*known, LATEST]) if known else "It has no aliases"
    return NotFound(f"The model {name} has no alias {alias}.", field=field, remedy=f"{there_are}.")


def _damaged(name: str) -> Unavailable:
    return Unavailable(
        f"{ALIASES} of {name} is damaged.",
        field="version",
        remedy="Use a version's number. Setting an alias writes the file anew, without the others.",
    )
