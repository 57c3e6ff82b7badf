"""What the body of a stage is given, and the shape of its steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from store.specs import CompressSpec
from worker.job_files import JobFiles
from worker.progress import Progress
from worker.settings import WorkerSettings

# A step takes and returns small JSON objects; what is large goes through `JobFiles`.
Step = Callable[[Mapping[str, Any], Progress], dict[str, Any]]


@dataclass(frozen=True)
class StageContext:
    """The job that a stage works on."""

    job_id: str
    spec: CompressSpec
    settings: WorkerSettings
    files: JobFiles


__all__ = ["Progress", "Stage", "StageContext", "Step"]

# A stage is named by "module:function"; the function makes the stage's steps, by name. It is
# called in the stage's own process, and what the steps share they keep between calls.
Stage = Callable[[StageContext], Mapping[str, Step]]
