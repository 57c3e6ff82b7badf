"""What can go wrong between the caller and the service.

::

    ClientError
    |-- BitpressProblem             the service answered with a problem document
    |   |-- InvalidInput            what was sent cannot be used
    |   |   |-- InvalidSpec         the job specification
    |   |   |-- InvalidCheckpoint   a damaged, unsafe or foreign checkpoint
    |   |   |   `-- CheckpointMismatch  a sound checkpoint of another network
    |   |   |-- InvalidDataset      an archive, or a dataset that does not fit the job
    |   |   |-- InvalidImage        an image that cannot be decoded within the limits
    |   |   `-- IdempotencyKeyReused    the key of an earlier request that asked for something else
    |   |-- TooLarge                over a limit of the service
    |   |-- NotFound                no such job, model, dataset or route
    |   |-- Conflict                not in the present state of things
    |   |-- Overloaded              too busy; `retry_after_s` says when to ask again
    |   |-- Unavailable             something that the service needs is away
    |   |-- StorageExhausted        the service's disk is full
    |   |-- InternalError           a fault of the service
    |   `-- JobFailed               a job ended without a model; `job` is its last record
    |       |-- JobCancelled        because somebody wanted it to
    |       |-- GateRejected        because its model lost more accuracy than was allowed
    |       `-- JobCrashed          because its process died
    |-- ServiceUnreachable          no answer: not started, wrong address, connection lost
    |-- UnexpectedAnswer            an answer that is no bitpress answer
    `-- UnusableFile                a local file or folder that cannot be read, written or sent

A problem of a type that is not known here is a plain `BitpressProblem`.
"""

from contextlib import suppress
from typing import ClassVar

import httpx

from client.types import Job, Problem

PROBLEM_MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:bitpress:problem:"


class ClientError(Exception):
    """Base of every failure that the client reports."""


class BitpressProblem(ClientError):
    """The service refused a request, with an RFC 9457 problem document.

    ``type`` is stable (``urn:bitpress:problem:<code>``) and meant for programs; ``detail``,
    ``field`` and ``remedy`` tell a person what was wrong, where, and what to do about it.
    ``codes`` are those that a class stands for; ``retry_after_s`` is 0 where nothing was said.
    """

    codes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail or problem.title)
        self.problem = problem
        self.type = problem.type
        self.title = problem.title
        self.status = problem.status
        self.detail = problem.detail
        self.field = problem.field
        self.remedy = problem.remedy
        self.retry_after_s = 0.0


class InvalidInput(BitpressProblem):
    """What was sent cannot be used."""

    codes: ClassVar[tuple[str, ...]] = (
        *("invalid-input", "malformed-body", "malformed-request", "bad-request"),
        *("unsupported-media-type", "not-acceptable", "range-not-satisfiable"),
        *("method-not-allowed", "request-timeout"),
    )


class InvalidSpec(InvalidInput):
    """The job specification is not valid; ``field`` names the member."""

    codes = ("invalid-spec",)


class InvalidCheckpoint(InvalidInput):
    """The checkpoint is damaged, unsafe or none at all."""

    codes = ("invalid-checkpoint",)


class CheckpointMismatch(InvalidCheckpoint):
    """The checkpoint is one of another network, or of another number of classes."""

    codes = ("checkpoint-mismatch",)


class InvalidDataset(InvalidInput):
    """The archive cannot be used, or the dataset does not fit the job."""

    codes = ("invalid-dataset",)


class InvalidImage(InvalidInput):
    """The image cannot be decoded within the limits."""

    codes = ("invalid-image",)


class IdempotencyKeyReused(InvalidInput):
    """The idempotency key is that of an earlier request, which asked for something else."""

    codes = ("idempotency-key-reused",)


class TooLarge(BitpressProblem):
    """A body, file, archive or list is over its limit."""

    codes = ("too-large",)


class NotFound(BitpressProblem):
    """There is no such job, model, version, dataset or route."""

    codes = ("not-found",)


class Conflict(BitpressProblem):
    """It cannot be done in the present state of things."""

    codes = ("conflict",)


class Overloaded(BitpressProblem):
    """The service is too busy, and did nothing; ``retry_after_s`` says when to ask again."""

    codes = ("overloaded",)


class Unavailable(BitpressProblem):
    """Something that the service needs does not answer, or a stored file is damaged."""

    codes = ("unavailable",)


class StorageExhausted(BitpressProblem):
    """The service's disk is full."""

    codes = ("storage-exhausted",)


class InternalError(BitpressProblem):
    """A fault of the service; report it with the problem's ``instance``."""

    codes = ("internal-error",)


class JobFailed(BitpressProblem):
    """A job ended without a model; ``job`` is its last record."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.problem or Problem(title=f"The job ended as {job.state}"))
        self.job = job


class JobCancelled(JobFailed):
    """The job was cancelled."""

    codes = ("cancelled",)


class GateRejected(JobFailed):
    """The job's model lost more accuracy than the job allows; its report is kept."""

    codes = ("accuracy-gate",)


class JobCrashed(JobFailed):
    """The job's process died (memory, signal) or met an unexpected error."""

    codes = ("job-crashed",)


class ServiceUnreachable(ClientError):
    """Nothing answered at the service's address."""


class UnexpectedAnswer(ClientError):
    """Something answered that does not speak as bitpress does."""


class UnusableFile(ClientError):
    """A local file or folder that cannot be read, written or sent."""


def raise_for_end(job: Job) -> None:
    """Return where the job succeeded or still runs; else raise how it ended.

    Raises:
        JobFailed: `JobCancelled`, `GateRejected` and `JobCrashed` for ends of these kinds.
    """
    if not job.finished or job.state == "succeeded":
        return
    code = "" if job.problem is None else job.problem.type.removeprefix(TYPE_PREFIX)
    raise _JOB_ENDS.get(code, JobFailed)(job)


def raise_for_problem(response: httpx.Response) -> None:
    """Return for a success; else raise what the answer says. The body must have been read.

    Raises:
        BitpressProblem: with the problem document of the answer.
        UnexpectedAnswer: for a redirect, or an error without a problem document.
    """
    if not response.is_success:
        raise error_of(response)


def error_of(response: httpx.Response) -> ClientError:
    """Return the error that an answer other than success is. The body must have been read."""
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == PROBLEM_MEDIA_TYPE:
        # A document that is no such document falls through to what is said about any other answer.
        with suppress(ValueError, TypeError):
            members = {"status": response.status_code, **response.json()}
            return _error_about(Problem.model_validate(members), response)
    return UnexpectedAnswer(
        f"{response.request.method} {response.request.url} answered {response.status_code}"
        f" {response.reason_phrase} without a problem document; is this a bitpress service?"
    )


def _error_about(problem: Problem, response: httpx.Response) -> BitpressProblem:
    kind = _REFUSALS.get(problem.type.removeprefix(TYPE_PREFIX), BitpressProblem)
    error = kind(problem)
    retry_after = response.headers.get("retry-after", "").strip()
    error.retry_after_s = float(retry_after) if retry_after.isdecimal() else 0.0
    return error


def _by_code(root: type[BitpressProblem]) -> dict[str, type[BitpressProblem]]:
    found = dict.fromkeys(root.codes, root)
    for child in root.__subclasses__():
        found |= _by_code(child)
    return found


_JOB_ENDS: dict[str, type[JobFailed]] = {
    code: kind for code, kind in _by_code(JobFailed).items() if issubclass(kind, JobFailed)
}
# A job's end comes with the job, never as the answer to a request.
_REFUSALS = {
    code: kind for code, kind in _by_code(BitpressProblem).items() if code not in _JOB_ENDS
}
