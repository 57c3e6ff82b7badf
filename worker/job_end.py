"""How a job ends: the problem that it has then, and which of its files stay."""

import logging
from collections.abc import Mapping
from typing import Any

from store.database import lacks_space
from store.errors import (
    BitpressError,
    GateFailed,
    InvalidInput,
    JobCrashed,
    NotFound,
    StorageExhausted,
    TooLarge,
    from_problem,
)

log = logging.getLogger("worker.job_end")


def problem_of(error: BaseException, job_id: str) -> dict[str, Any]:
    """Return the problem document of whatever ended a step."""
    if isinstance(error, StorageExhausted) or lacks_space(error):
        # Not as whoever sent a request would be told.
        return StorageExhausted(
            "The server has no space left for the job.",
            remedy="Ask the operator to free space, then try again with POST /jobs/{id}/retry.",
        ).problem()
    if isinstance(error, BitpressError):
        return error.problem()
    # `JobFailed`, or what DBOS made of one that an earlier worker recorded.
    data = getattr(error, "data", None)
    if isinstance(data, Mapping) and "problem" in data:
        return dict(data["problem"])
    log.error("job met an unexpected error", exc_info=error, extra={"job": job_id})
    return JobCrashed(
        f"The job met an error that nobody expected ({type(error).__name__}).",
        remedy="Look for the job's id in the worker's log, then try again with "
        "POST /jobs/{id}/retry.",
    ).problem()


def rejection(gate: Mapping[str, Any]) -> GateFailed:
    """Return why a model is not published whose ``gate``, measured by `evaluate`, it failed."""
    drop, allowed = gate["drop"], gate["max_accuracy_drop"]
    return GateFailed(
        f"Of {gate['images']:,} validation images the packed model classifies "
        f"{_percent(gate['packed'])} rightly, the original {_percent(gate['full_precision'])}: "
        f"a drop of {_points(drop)}, where the job allows {_points(allowed)}.",
        field="spec.max_accuracy_drop",
        remedy="Submit a job with a larger max_accuracy_drop, another method, or fine-tuning. "
        "GET /jobs/{id}/report has what was measured.",
    )


def can_go_on(problem: Mapping[str, Any]) -> bool:
    """Whether a failed job may succeed when tried again, and so needs its steps' files.

    After a crash, or on a full disk, it may; not where what was sent is at fault.
    """
    return not isinstance(from_problem(problem), InvalidInput | TooLarge | NotFound)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _points(share: float) -> str:
    return f"{100 * share:.2f} points"
