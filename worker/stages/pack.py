"""The stage of packing: the binarized network becomes a plan with packed bits."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from models import artifact
from models.lowering import lower
from worker.networks import PACKED, input_spec
from worker.stage_context import Progress, StageContext, Step
from worker.stages.surroundings import dataset_of, deterministic, networks_of


def pack(context: StageContext) -> Mapping[str, Step]:
    """Make the stage's one step, ``pack``."""

    def pack(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        dataset = dataset_of(context)
        network = networks_of(context, dataset).binarized(arguments["files"])
        fed = input_spec(context.spec)
        plan, tensors = lower(network, fed.shape)
        packed = artifact.Artifact(plan, tensors, fed, dataset.classes, {}, {})
        ref = context.files.write("packed.safetensors", partial(write_artifact, packed))
        return {"files": {PACKED: ref.to_json()}}

    return {"pack": deterministic(context, pack)}


def write_artifact(content: artifact.Artifact, path: Path) -> None:
    """Write an artifact where `worker.job_files` wants it, which sees to the disk."""
    path.write_bytes(artifact.encode(content))
