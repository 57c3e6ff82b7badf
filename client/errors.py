"""What can go wrong between the caller and the service.

::

    ClientError
    |-- BitpressProblem      the service answered with a problem document
    |   `-- JobFailed        a job ended without a model, and carries the problem
    |-- ServiceUnreachable   no answer: not started, wrong address, connection lost
    |-- UnexpectedAnswer     an answer that is no bitpress answer
    `-- UnusableFile         a local file or folder that cannot be sent
"""

from contextlib import suppress

import httpx

from client.types import Job, Problem

PROBLEM_MEDIA_TYPE = "application/problem+json"

# What a service answers that cannot reach a part of itself for the moment.
UNAVAILABLE = "urn:bitpress:problem:unavailable"


class ClientError(Exception):
    """Base of every failure that the client reports."""


class BitpressProblem(ClientError):
    """The service refused a request, with an RFC 9457 problem document.

    ``type`` is stable (``urn:bitpress:problem:<code>``) and meant for programs; ``detail``,
    ``field`` and ``remedy`` tell a person what was wrong, where, and what to do about it.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail or problem.title)
        self.problem = problem
        self.type = problem.type
        self.title = problem.title
        self.status = problem.status
        self.detail = problem.detail
        self.field = problem.field
        self.remedy = problem.remedy


class JobFailed(BitpressProblem):
    """A job ended in ``failed``, ``cancelled`` or ``rejected``; ``job`` is its last record."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.problem or Problem(title=f"The job ended as {job.state}"))
        self.job = job


class ServiceUnreachable(ClientError):
    """Nothing answered at the service's address."""


class UnexpectedAnswer(ClientError):
    """Something answered that does not speak as bitpress does."""


class UnusableFile(ClientError):
    """A local file or folder that cannot be read or sent."""


def raise_for_problem(response: httpx.Response) -> None:
    """Return for a success; else raise what the answer says. The body must have been read.

    Raises:
        BitpressProblem: with the problem document of the answer.
        UnexpectedAnswer: for a redirect, or an error without a problem document.
    """
    if response.is_success:
        return
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == PROBLEM_MEDIA_TYPE:
        # A document that is no such document falls through to what is said about any other answer.
        with suppress(ValueError, TypeError):
            members = {"status": response.status_code, **response.json()}
            raise BitpressProblem(Problem.model_validate(members))
    raise UnexpectedAnswer(
        f"{response.request.method} {response.request.url} answered {response.status_code}"
        f" {response.reason_phrase} without a problem document; is this a bitpress service?"
    )
