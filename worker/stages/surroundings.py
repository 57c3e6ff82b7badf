"""What the stages share: the job's dataset, splits and networks, and a step's fixed conditions."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from store.datasets import Dataset, DatasetStore
from store.specs import CompressSpec
from worker.calibration_images import CalibrationImages
from worker.data import ImageSet, Splits, calibration_images, in_memory, split_dataset
from worker.image_cache import decode_dataset
from worker.networks import JobNetworks, input_spec
from worker.stage_context import Progress, StageContext, Step
from worker.training.processes import this_device


def deterministic(context: StageContext, step: Step) -> Step:
    """Fix what a step's result could depend on beside its input: threads and random numbers."""

    def fixed(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        torch.set_num_threads(context.settings.worker_threads)
        torch.manual_seed(context.spec.seed)
        return step(arguments, progress)

    return fixed


def without_fraction(progress: Progress) -> Progress:
    """Pass on what is being done, not how far it is: for what comes before the step's own work."""
    return lambda _fraction, message, details=None: progress(0.0, message, details)


def device_of(context: StageContext) -> torch.device:
    """Return where the worker is to compute.

    Raises:
        Unavailable: that is a GPU, and there is none.
    """
    return this_device(context.settings.device)


def datasets_of(context: StageContext) -> DatasetStore:
    """Return the store that has the job's dataset."""
    return DatasetStore.of(context.settings)


def dataset_of(context: StageContext) -> Dataset:
    """Return the job's dataset, its images unread."""
    return datasets_of(context).get(context.spec.dataset)


def splits_of(context: StageContext, progress: Progress) -> Splits:
    """Return the job's decoded images, divided into train, val and test."""
    spec, settings = context.spec, context.settings
    decoded = decode_dataset(
        datasets_of(context),
        spec.dataset,
        input_spec(spec),
        settings.cache_dir,
        progress,
        settings.worker_threads,
        max_cache_bytes=settings.max_cache_bytes,
    )
    return split_dataset(decoded, spec.seed)


def calibration_images_of(context: StageContext, progress: Progress) -> CalibrationImages:
    """Return the images that the job's layers are calibrated on, where the worker computes."""
    train = splits_of(context, without_fraction(progress)).train
    images = chosen_for_calibration(train, context.spec)
    return dataclasses.replace(images, device=device_of(context))


def chosen_for_calibration(train: ImageSet, spec: CompressSpec) -> CalibrationImages:
    """Return the images of ``train`` that a job with ``spec`` calibrates on."""
    chosen, _ = calibration_images(train, spec.seed, spec.calibration_images)
    return CalibrationImages(in_memory(chosen), input_spec(spec), mirror=spec.method.mirror_images)


def networks_of(context: StageContext, dataset: Dataset) -> JobNetworks:
    """Return what rebuilds the job's networks from its files."""
    return JobNetworks(context.spec, len(dataset.classes), context.files)


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file that people can read."""
    path.write_text(json.dumps(content, indent=1) + "\n")
