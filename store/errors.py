"""One exception tree for every expected failure of the app and the worker.

::

    BitpressError
    |-- InvalidInput                what the caller sent cannot be used
    |   |-- InvalidSpec             the job specification
    |   |-- InvalidCheckpoint       damaged, unsafe or foreign checkpoint
    |   |   `-- CheckpointMismatch  a sound checkpoint of another network
    |   |-- InvalidDataset          an archive, or a dataset that does not fit the job
    |   |-- InvalidImage            an image that cannot be decoded within the limits
    |   |-- InvalidArtifact         a damaged or unsupported artifact or plan
    |   `-- IdempotencyKeyReused    the key of an earlier request that asked for something else
    |-- TooLarge                    a body, file or archive over its limit
    |-- NotFound                    no such job, model, dataset or checkpoint
    |-- Conflict                    the name is taken by something else
    |-- Overloaded                  try again later
    |-- Unavailable                 a requested runtime or service is missing here
    |-- StorageExhausted            the disk is full
    |-- GateFailed                  a job's model lost more accuracy than the job allows
    |-- JobCancelled                a job was cancelled
    `-- JobCrashed                  a job's process died (memory, signal) or met an unexpected error

Every error knows its stable ``code``, a ``title`` that never changes, a ``detail`` for this
occurrence, the ``field`` of the request it is about and the ``remedy`` that the user can apply.
``problem()`` gives the JSON members of RFC 9457 that do not depend on HTTP; ``from_problem``
brings an error back, so that a failed job carries the very problem a direct answer would have had.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

TYPE_PREFIX = "urn:bitpress:problem:"


class BitpressError(Exception):
    """Base of every expected failure.

    ``detail`` is shown to the user as it is: it never holds a server path, a secret or a traceback.
    """

    code: ClassVar[str] = "error"
    title: ClassVar[str] = "The request failed"

    def __init__(self, detail: str, *, field: str | None = None, remedy: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.remedy = remedy

    def problem(self) -> dict[str, Any]:
        """Return ``type``, ``title``, ``detail`` and, where known, ``field`` and ``remedy``."""
        members = {
            "type": TYPE_PREFIX + self.code,
            "title": self.title,
            "detail": self.detail,
            "field": self.field,
            "remedy": self.remedy,
        }
        return {name: value for name, value in members.items() if value is not None}

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments do not survive the default pickling between processes.
        return (from_problem, (self.problem(),))


class InvalidInput(BitpressError):
    code = "invalid-input"
    title = "The request is not valid"


class InvalidSpec(InvalidInput):
    code = "invalid-spec"
    title = "The job specification is not valid"


class InvalidCheckpoint(InvalidInput):
    code = "invalid-checkpoint"
    title = "The checkpoint cannot be used"


class CheckpointMismatch(InvalidCheckpoint):
    code = "checkpoint-mismatch"
    title = "The checkpoint does not fit the architecture"


class InvalidDataset(InvalidInput):
    code = "invalid-dataset"
    title = "The dataset cannot be used"


class InvalidImage(InvalidInput):
    code = "invalid-image"
    title = "The image cannot be used"


class InvalidArtifact(InvalidInput):
    code = "invalid-artifact"
    title = "The artifact cannot be used"


class IdempotencyKeyReused(InvalidInput):
    code = "idempotency-key-reused"
    title = "The idempotency key belongs to another request"


class TooLarge(BitpressError):
    code = "too-large"
    title = "Larger than the limit"


class NotFound(BitpressError):
    code = "not-found"
    title = "Not found"


class Conflict(BitpressError):
    code = "conflict"
    title = "In conflict with what exists"


class Overloaded(BitpressError):
    code = "overloaded"
    title = "Too busy right now"

    retry_after_s: float = 1.0


class Unavailable(BitpressError):
    code = "unavailable"
    title = "Not available here"


class StorageExhausted(BitpressError):
    code = "storage-exhausted"
    title = "No space left"


class GateFailed(BitpressError):
    code = "accuracy-gate"
    title = "The model lost more accuracy than the job allows"


class JobCancelled(BitpressError):
    code = "cancelled"
    title = "The job was cancelled"


class JobCrashed(BitpressError):
    code = "job-crashed"
    title = "The job stopped unexpectedly"


def _tree(root: type[BitpressError]) -> dict[str, type[BitpressError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


def error_kinds() -> frozenset[type[BitpressError]]:
    """Return every kind of error that is known by now, the base included."""
    return frozenset(_tree(BitpressError).values())


def from_problem(problem: Mapping[str, Any]) -> BitpressError:
    """Return the error that ``problem()`` described; an unknown type gives a `BitpressError`."""
    code = str(problem.get("type", "")).removeprefix(TYPE_PREFIX)
    kind = _tree(BitpressError).get(code, BitpressError)
    return kind(
        str(problem.get("detail", "")),
        field=problem.get("field"),
        remedy=problem.get("remedy"),
    )
