"""What each type of problem means and what to do about it, whatever the occurrence.

An answer's own ``detail`` and ``remedy`` say more; this is what can be said beforehand, and what
docs/API.md lists.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from app.errors import STATUS, status_of
from store.errors import BitpressError, error_kinds

# Not answers to a request, but what a job that ended without a model carries.
JOB_ENDS = frozenset({"accuracy-gate", "cancelled", "job-crashed"})
# What the framework refuses by itself, and what nobody expected.
_OTHER_STATUS = {"bad-request": 400, "method-not-allowed": 405, "internal-error": 500}


@dataclass(frozen=True)
class ProblemType:
    """The meaning of a type of problem, and its remedy."""

    meaning: str
    remedy: str


PROBLEM_TYPES: Mapping[str, ProblemType] = {
    "malformed-body": ProblemType(
        "broken JSON or multipart", "Send what the Content-Type says, whole."
    ),
    "malformed-request": ProblemType(
        "not HTTP: an unreadable request line, header or chunk", "Use an HTTP client."
    ),
    "bad-request": ProblemType(
        "the framework cannot read the request", "Use the form that the route documents."
    ),
    "not-found": ProblemType(
        "no such route, job, dataset, model, version or alias",
        "List what there is; a removed version never comes back.",
    ),
    "method-not-allowed": ProblemType("the route has no such method", "`Allow` lists them."),
    "not-acceptable": ProblemType(
        "`Accept` wants no form that there is", "Accept one of the forms that `remedy` names."
    ),
    "request-timeout": ProblemType(
        "the body stopped arriving, or took too long", "Send it again over a better connection."
    ),
    "conflict": ProblemType(
        "not in the present state of things: the name is taken, the job has ended or still runs, "
        "an alias points there",
        "Look at the thing again, and remove what stands in the way.",
    ),
    "too-large": ProblemType(
        "a body, file, archive or list over its limit",
        "Send less, or let the operator raise the setting that `remedy` names.",
    ),
    "unsupported-media-type": ProblemType(
        "this Content-Type is not taken here", "Use one that the route lists."
    ),
    "range-not-satisfiable": ProblemType(
        "`Range` names bytes that the file does not have", "`Content-Range` tells its length."
    ),
    "invalid-input": ProblemType(
        "a parameter, header, form field or option", "Correct the `field`."
    ),
    "invalid-spec": ProblemType("the job specification", "Correct the `field`."),
    "invalid-checkpoint": ProblemType(
        "a checkpoint that is damaged, unsafe or none at all",
        "Save the state dict again, best as safetensors.",
    ),
    "checkpoint-mismatch": ProblemType(
        "a checkpoint of another network, or of another number of classes",
        "Name the architecture and the dataset that it was trained with.",
    ),
    "invalid-dataset": ProblemType(
        "an archive, or a dataset that does not fit the job", "Mend what `detail` names."
    ),
    "invalid-image": ProblemType(
        "an image that cannot be decoded within the limits",
        "Send a JPEG, PNG, BMP, WebP, GIF or PPM.",
    ),
    "invalid-artifact": ProblemType(
        "a damaged or unsupported artifact or plan", "Compress the model again."
    ),
    "idempotency-key-reused": ProblemType(
        "the `Idempotency-Key` of an earlier request with other content",
        "Use a new key for a new job.",
    ),
    "overloaded": ProblemType(
        "too busy; nothing was done", "Ask again after the seconds in `Retry-After`."
    ),
    "internal-error": ProblemType(
        "a fault of the service", "Report it together with the `instance`."
    ),
    "unavailable": ProblemType(
        "the database does not answer, a stored file is damaged, a runtime is missing, the service "
        "is being stopped",
        "Ask again; where it stays, ask the operator to look at the log.",
    ),
    "storage-exhausted": ProblemType(
        "the disk is full", "Let the operator free space, then ask again, or retry the job."
    ),
    "accuracy-gate": ProblemType(
        "a job's model lost more accuracy than `max_accuracy_drop` allows; its report is kept",
        "Submit another job with fine-tuning, another method or a larger `max_accuracy_drop`.",
    ),
    "cancelled": ProblemType("the job was cancelled", "POST /jobs/{job_id}/retry lets it go on."),
    "job-crashed": ProblemType(
        "a job's process died (memory, signal) or met an unexpected error",
        "POST /jobs/{job_id}/retry; where it comes again, give the worker more memory or look at "
        "its log.",
    ),
}


def status_by_code() -> dict[str, int | None]:
    """Return the status of every type of problem, in its order here; None of those of jobs only."""
    known: dict[str, int | None] = {
        kind.code: status_of(kind("")) for kind in {*error_kinds(), *STATUS}
    }
    known |= _OTHER_STATUS
    known |= dict.fromkeys(JOB_ENDS)
    known.pop(BitpressError.code, None)
    order = list(PROBLEM_TYPES)
    return {code: known[code] for code in sorted(known, key=order.index)}
