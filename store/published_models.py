"""Reading the published models: which versions there are, and which one is meant.

No lock is taken. A version that is deleted between two looks is looked up again, so that whoever
asks gets what was right at some moment while it asked.

A version whose ``version.json`` is missing or damaged is no reason to lose the others: it is logged
and passed over wherever it was not asked for by its number. Its number is not given again.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from store.aliases import LATEST, read_aliases, unknown_alias
from store.errors import NotFound, Unavailable
from store.model_version import ModelVersion, read_version
from store.specs import NAME_PATTERN

_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_log = logging.getLogger("bitpress.store")


class PublishedModels:
    """Lists and resolves the versions below ``root``, while any process changes them."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def resolve(self, name: str, version: int | str | None = None) -> ModelVersion:
        """Return a version of a model: by its number, by an alias, or (by default) the latest.

        Raises:
            NotFound: there is no such model, version or alias.
            Unavailable: the version's record is damaged, or that of all versions, or the aliases.
        """
        if version is None or version == LATEST:
            return self._latest(name)
        if isinstance(version, str):
            return self._aliased(name, version)
        found = self._read(name, version)
        if found is None:
            raise self._unknown(name, version)
        return found

    def versions(self, name: str) -> list[ModelVersion]:
        """Return the versions of a model, oldest first; none where there is no such model.

        Raises:
            Unavailable: there are versions, but the records of all of them are damaged.
        """
        found = self._readable(name, self.numbers(name))
        return [version for version in found if version is not None]

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of a model's versions, ascending, damaged ones included."""
        return sorted(int(entry.name) for entry in self._numbered(name) if entry.is_dir())

    def taken(self, name: str) -> list[int]:
        """Return the numbers that no folder of a next version can have: also of stray files."""
        return [int(entry.name) for entry in self._numbered(name)]

    def aliases(self, name: str) -> dict[str, int]:
        """Return the versions that the aliases of a model point to, by alias.

        Raises:
            NotFound: there is no such model.
            Unavailable: the aliases are damaged.
        """
        if not self.numbers(name):
            raise _no_model()
        return read_aliases(self._root / name, name)

    def _numbered(self, name: str) -> list["os.DirEntry[str]"]:
        folder = self._root / name
        if not re.fullmatch(NAME_PATTERN, name) or not folder.is_dir():
            return []
        with os.scandir(folder) as entries:
            return [entry for entry in entries if _VERSION.fullmatch(entry.name)]

    def _names(self) -> list[str]:
        folders = (entry.name for entry in self._root.iterdir() if entry.is_dir())
        return sorted(name for name in folders if re.fullmatch(NAME_PATTERN, name))

    def _read(self, name: str, number: int) -> ModelVersion | None:
        if not re.fullmatch(NAME_PATTERN, name) or not _VERSION.fullmatch(str(number)):
            return None
        return read_version(self._root / name, name, number)

    def _latest(self, name: str) -> ModelVersion:
        before: list[int] = []
        while numbers := self.numbers(name):
            found = next(self._readable(name, reversed(numbers)))
            if found is not None:
                return found
            if numbers == before:
                raise Unavailable(
                    f"The versions of {name} cannot be read.",
                    field="model",
                    remedy="Try again; if it persists, ask the operator to look at its folder.",
                )
            # Deleted since. The one before it need not be the latest: another may have come.
            before = numbers
        raise _no_model()

    def _aliased(self, name: str, alias: str) -> ModelVersion:
        gone = None
        while True:
            aliases = self.aliases(name)
            number = aliases.get(alias)
            if number is None:
                raise unknown_alias(name, alias, aliases, "version")
            found = self._read(name, number)
            if found is not None:
                return found
            if number == gone:
                raise Unavailable(
                    f"The alias {alias} of {name} points to version {number}, which is missing.",
                    field="version",
                    remedy="Point it to another version, or use a version's number.",
                )
            # The alias may have been moved, and the version deleted, since it was read: look again.
            gone = number

    def _readable(self, name: str, numbers: Iterable[int]) -> Iterator[ModelVersion | None]:
        """Yield those of the versions that can be read. Raises `Unavailable` where none can.

        `None` stands for a version that has been deleted since its number was looked up.
        """
        found = False
        fault: Unavailable | None = None
        for number in numbers:
            try:
                version = self._read(name, number)
            except Unavailable as error:
                fault = error
                _log.warning(
                    "model version left out",
                    extra={"model": name, "version": number, "fault": error.detail},
                )
            else:
                found = True
                yield version
        if fault is not None and not found:
            raise fault

    def _unknown(self, name: str, version: int) -> NotFound:
        known = self.numbers(name)
        if not known:
            return _no_model()
        return NotFound(
            f"The model {name} has no version {version}.",
            field="version",
            remedy="Use one of: " + ", ".join(str(number) for number in known[-20:]),
        )

    # Last in the class: below it, "list" in an annotation would mean this method.
    def list(self) -> list[ModelVersion]:
        """Return the latest version of every model, by name."""
        latest: list[ModelVersion] = []
        for name in self._names():
            # What stands in the way of a model is logged where its versions are read.
            with suppress(Unavailable, NotFound):
                latest.append(self._latest(name))
        return latest


def _no_model() -> NotFound:
    return NotFound(
        "There is no model of this name.",
        field="model",
        remedy="GET /models lists the models.",
    )
