"""The folder of a job's files, as those see it who do not run the job.

The worker writes it (`worker.job_files`). Here is told what of it a new attempt could go on from,
and the folder is removed together with its job.
"""

import os
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# What a job's id looks like, wherever one is given.
JOB_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
_REMOVED = ".removed-"


def is_folder_name(job_id: str) -> bool:
    """Whether ``job_id`` is fit for the name of a folder."""
    return re.fullmatch(JOB_ID_PATTERN, job_id) is not None


def restart_step(steps: Iterable[tuple[int, Any, bool]], data_dir: Path) -> int:
    """Return the number of the step at which a job that ended early is to go on.

    ``steps`` are the recorded ones in their order: number (from 1), output, and whether it failed.
    It is the step that failed, or was interrupted; or an earlier one, where files are gone that the
    steps before it have left: the last step whose predecessors' files are all there.
    """
    start = 1
    refs: dict[str, Any] = {}
    for number, output, failed in steps:
        if failed:
            return start
        files = output.get("files") if isinstance(output, Mapping) else None
        refs.update(files if isinstance(files, Mapping) else {})
        if all(_is_there(ref, data_dir) for ref in refs.values()):
            start = number + 1
    return start


def remove_folder(jobs_dir: Path, job_id: str) -> None:
    """Remove a job's files, all at once for whoever looks for them; none is fine."""
    removed = set_aside(jobs_dir, job_id)
    if removed is not None:
        shutil.rmtree(removed, ignore_errors=True)


def set_aside(jobs_dir: Path, job_id: str) -> Path | None:
    """Take a job's files away, and return the folder that is to be removed; None: there is none.

    Should that not happen, `remove_leftovers` does it.
    """
    if not is_folder_name(job_id):
        return None
    removed = jobs_dir / f"{_REMOVED}{uuid.uuid4().hex}"
    try:
        os.rename(jobs_dir / job_id, removed)
    except FileNotFoundError:
        return None
    return removed


def remove_leftovers(jobs_dir: Path) -> None:
    """Finish what an interrupted `remove_folder` began."""
    for path in jobs_dir.glob(f"{_REMOVED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _is_there(ref: Any, data_dir: Path) -> bool:
    # Only whether: the worker checks the content, and removes what is damaged.
    path = ref.get("path") if isinstance(ref, Mapping) else None
    return isinstance(path, str) and (data_dir / path).is_file()
