"""The stage of evaluation: every form of the network on the test images, and the report."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from models import artifact, runtime
from models.layers import float32_bytes
from store.artifacts import ARTIFACT, PREDICTIONS
from store.specs import CompressSpec
from worker.data import ImageSet
from worker.evaluation import Logits, Predict, accuracy, parity, predict_logits, predictions
from worker.job_files import STAGED, FileRef
from worker.networks import PACKED, input_spec
from worker.report import SCHEMA, layer_figures, provenance
from worker.stage_context import Progress, StageContext, Step
from worker.stages.pack import write_artifact
from worker.stages.surroundings import (
    dataset_of,
    deterministic,
    networks_of,
    splits_of,
    without_fraction,
    write_json,
)

# Bounds the activation maps of an evaluation.
_PIXELS_PER_BATCH = 1_000_000
_MOST_IMAGES_PER_BATCH = 250


def evaluate(context: StageContext) -> Mapping[str, Step]:
    """Make the stage's one step, ``evaluate``."""

    def evaluate(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        refs, prepared = arguments["files"], arguments["prepared"]
        dataset = dataset_of(context)
        test = splits_of(context, without_fraction(progress)).test
        networks = networks_of(context, dataset)
        full = networks.full_precision(refs)
        calibrated = networks.calibrated(refs)
        packed = artifact.read(context.files.resolve(FileRef.from_json(refs[PACKED])))
        # The runtime, and so the arithmetic, that will serve.
        served = runtime.load(packed, context.settings.runtime)
        forms: dict[str, Predict] = {
            "full_precision": full,
            "calibrated": calibrated,
            "packed": served.run,
        }
        logits = _logits_of(forms, test, context.spec, progress)
        accuracies = {form: accuracy(found, test.labels) for form, found in logits.items()}
        origin = provenance(context.spec, prepared["digests"])
        final = dataclasses.replace(packed, provenance=origin, accuracy=accuracies)
        answers = predictions(logits["packed"], test, dataset.classes, "test")
        write = context.files.write
        artifact_ref = write(f"{STAGED}/{ARTIFACT}", partial(write_artifact, final))
        path = context.files.resolve(artifact_ref)
        float_bytes = float32_bytes(full)
        measured = {
            "schema": SCHEMA,
            "spec": context.spec.model_dump(mode="json"),
            "accuracy": accuracies,
            "test_images": len(test),
            "calibration": prepared["calibration"],
            "layers": layer_figures(calibrated, prepared["order"], arguments["layers"]),
            "bytes": {"float": float_bytes, "packed": path.stat().st_size},
            "compression_ratio": artifact.compression_ratio(float_bytes, path),
            "parity": parity(logits["calibrated"], logits["packed"]).to_json(),
            "runtime": served.name,
            "seed": context.spec.seed,
            "digests": {**prepared["digests"], "artifact": artifact_ref.digest},
            "versions": origin["versions"],
        }
        return {
            "accuracy": accuracies,
            "files": {
                "artifact": artifact_ref.to_json(),
                "predictions": write(
                    f"{STAGED}/{PREDICTIONS}", partial(write_json, answers)
                ).to_json(),
                "measured": write("measured.json", partial(write_json, measured)).to_json(),
            },
        }

    return {"evaluate": deterministic(context, evaluate)}


def _logits_of(
    forms: Mapping[str, Predict], images: ImageSet, spec: CompressSpec, progress: Progress
) -> dict[str, Logits]:
    """Run every form of the network over the images, each a third of the step's progress."""
    pixels = spec.input.height * spec.input.width
    batch = min(max(_PIXELS_PER_BATCH // pixels, 1), _MOST_IMAGES_PER_BATCH)
    logits: dict[str, Logits] = {}
    for index, (form, predict) in enumerate(forms.items()):

        def report(fraction: float, message: str, index: int = index) -> None:
            progress((index + fraction) / len(forms), message)

        logits[form] = predict_logits(
            predict,
            images,
            input_spec(spec),
            report,
            batch_images=batch,
            network=form.replace("_", " ") + " network",
        )
    return logits
