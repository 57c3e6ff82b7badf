"""The report that a job keeps of its own: ``<jobs_dir>/<job id>/report.json``.

It is the published version's report, but it outlasts the version.
"""

import json
from pathlib import Path
from typing import Any

from store.artifacts import REPORT
from store.errors import NotFound, Unavailable
from store.job_folders import is_folder_name


def read_job_report(jobs_dir: Path, job_id: str) -> dict[str, Any]:
    """Return the report of a job that succeeded.

    Raises:
        NotFound: there is none, or not any more.
        Unavailable: the file is damaged.
    """
    if not is_folder_name(job_id):
        raise _gone()
    try:
        report = json.loads((jobs_dir / job_id / REPORT).read_bytes())
    except FileNotFoundError:
        raise _gone() from None
    except (OSError, ValueError, RecursionError):
        raise _damaged() from None
    if not isinstance(report, dict):
        raise _damaged()
    return report


def _gone() -> NotFound:
    return NotFound(
        "The job's files are not kept any more, and its report was among them.",
        remedy="GET /models/{name} has the figures of the model, while that exists.",
    )


def _damaged() -> Unavailable:
    return Unavailable(
        "The file of the job's report is damaged.",
        remedy="GET /models/{name} has the figures of the model, while that exists.",
    )
