"""What GET /models tells: the figures of each version's report, artifact and runtime."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from app.pool import ModelPool
from app.schemas import (
    Accuracies,
    GateAnswer,
    InputAnswer,
    LatencyAnswer,
    ModelAnswer,
    Sizes,
    VersionAnswer,
)
from store.artifacts import ModelStore, ModelVersion
from store.errors import NotFound, Unavailable

_log = logging.getLogger("bitpress.app")


class Catalogue:
    """Describes the models of ``store`` as ``pool`` serves them. Blocking; any thread may use it.

    Versions come and go meanwhile: one that was deleted while it was described is looked up again,
    or left out of a list.
    """

    def __init__(self, store: ModelStore, pool: ModelPool) -> None:
        self._store = store
        self._pool = pool

    def models(self) -> list[ModelAnswer]:
        """Describe every model by its latest version, by name; damaged ones are left out."""
        answers = []
        for latest in self._store.list():
            try:
                answers.append(self.model(latest.name))
            except Unavailable as fault:
                _left_out(latest.name, latest.version, fault)
            except NotFound:
                continue
        return answers

    def model(self, name: str) -> ModelAnswer:
        """Describe a model by its latest version.

        Raises:
            NotFound: there is no such model.
            Unavailable: files of its latest version are damaged.
        """
        while True:
            latest = self._store.resolve(name)
            try:
                numbers = [n for n in self._store.numbers(name) if n <= latest.version]
                aliases = self._aliases(name)
                with _faults_named(latest):
                    return ModelAnswer(
                        name=name,
                        latest=latest.version,
                        versions=numbers,
                        aliases=aliases,
                        **self._figures(latest),
                    )
            except NotFound:
                # Deleted meanwhile; the next look-up says whether with the whole model.
                continue

    def versions(
        self, name: str, limit: int, before: int | None
    ) -> tuple[list[VersionAnswer], int | None]:
        """Describe ``limit`` versions of a model below ``before``, the newest first.

        Damaged ones are left out. Returned beside them is the ``before`` of those that follow.

        Raises:
            NotFound: there is no such model.
        """
        aliases = self._aliases(name)
        numbers = [
            number
            for number in reversed(self._store.numbers(name))
            if before is None or number < before
        ]
        answers = []
        for number in numbers[:limit]:
            try:
                version = self._store.resolve(name, number)
                answers.append(self._version_answer(version, aliases))
            except Unavailable as fault:
                _left_out(name, number, fault)
            except NotFound:
                continue
        return answers, numbers[limit - 1] if len(numbers) > limit else None

    def version(self, name: str, number: int) -> VersionAnswer:
        """Describe a version.

        Raises:
            NotFound: there is no such model or version.
            Unavailable: its files are damaged.
        """
        return self._version_answer(self._store.resolve(name, number), self._aliases(name))

    def _version_answer(
        self, version: ModelVersion, aliases: Mapping[str, int] | None
    ) -> VersionAnswer:
        with _faults_named(version):
            return VersionAnswer(
                name=version.name,
                version=version.version,
                aliases=None
                if aliases is None
                else [alias for alias, number in aliases.items() if number == version.version],
                **self._figures(version),
            )

    def _aliases(self, name: str) -> dict[str, int] | None:
        try:
            return self._store.aliases(name)
        except Unavailable as fault:
            _log.warning("aliases left out", extra={"model": name, "fault": fault.detail})
            return None

    def _figures(self, version: ModelVersion) -> dict[str, Any]:
        """Return the members of `VersionFigures`, as the report has them."""
        report = version.report
        card = self._pool.card(version)
        engine = self._pool.engine_of(version)
        latency, gate = report.get("latency"), report.get("gate")
        return {
            "architecture": report["spec"]["architecture"],
            "method": report["spec"]["method"]["name"],
            "accuracy": Accuracies.model_validate(report["accuracy"]),
            "bytes": Sizes.model_validate(report["bytes"]),
            "compression_ratio": float(report["compression_ratio"]),
            "latency": None if latency is None else LatencyAnswer.model_validate(latency),
            "gate": None if gate is None else GateAnswer.model_validate(gate),
            "input": InputAnswer.model_validate(card.input.to_json()),
            "labels": list(card.labels),
            "runtime": engine.runtime,
            "kernels": engine.kernels,
            "digest": version.digest,
            "job": version.job_id,
            "created_at": version.created_at,
        }


@contextmanager
def _faults_named(version: ModelVersion) -> Iterator[None]:
    """Turn a report that an answer cannot be made of into `Unavailable`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ValidationError):
        raise Unavailable(
            f"The report of {version.name}, version {version.version}, is not what it should be.",
            field="version",
            remedy="Compress the model again.",
        ) from None


def _left_out(name: str, version: int, fault: Unavailable) -> None:
    _log.warning("model left out", extra={"model": name, "version": version, "fault": fault.detail})
