"""A dry run: what a job would make and take, foreseen from its specification, nothing being run.

Shapes come from torch's ``meta`` device, so that neither time nor memory grows with the network.
"""

from collections.abc import Mapping
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from app.forecast_document import Forecast, ForecastBasis, ForecastImages, ForecastLayer
from models.artifact_size import PackedLayer, artifact_bytes, packed_layer
from models.cores import usable_cores
from models.machine_rate import macs_per_second
from models.preprocessing import InputSpec
from models.workload import workload
from store import job_cost
from store.datasets import Dataset
from store.job_cost import ForeseenJob, JobImages, Machine
from store.specs import BwnhParameters, CompressSpec

_AT_ONCE = 2
# As `worker.data` divides what a dataset does not bring divided.
_HELD_OUT, _HELD_OUT_OF_TRAIN = 0.15, 0.1
# What only the job will know, in its usual length.
_VERSIONS = {"bitpress": "0.1.0", "torch": "2.13.0+cpu", "numpy": "2.4.6"}
_DIGEST = "sha256:" + "0" * 64
_SHARE = 0.8123456789012345


class Forecaster:
    """Foresees jobs on a few threads of its own number, so that predictions are not kept waiting.

    ``runtime`` is the name of the one that serves here.
    """

    def __init__(self, runtime: str) -> None:
        self._runtime = runtime
        self._limiter = CapacityLimiter(_AT_ONCE)

    async def foresee(self, spec: CompressSpec, dataset: Dataset) -> Forecast:
        """Return what a job with a checked ``spec`` would make and take."""
        return await run_sync(self._foresee, spec, dataset, limiter=self._limiter)

    def _foresee(self, spec: CompressSpec, dataset: Dataset) -> Forecast:
        threads = usable_cores()
        machine = Machine(threads, threads * macs_per_second())
        return forecast(spec, dataset, self._runtime, machine)


def forecast(spec: CompressSpec, dataset: Dataset, runtime: str, machine: Machine) -> Forecast:
    """Return the forecast of a job on ``machine``."""
    work = workload(
        spec.architecture,
        channels=spec.input.channels,
        height=spec.input.height,
        width=spec.input.width,
        classes=len(dataset.classes),
        parameters=spec.architecture_parameters,
    )
    bases = job_cost.usual_bases(spec, work.layers)
    layers = [packed_layer(layer, bases=bases.get(layer.name, 0)) for layer in work.layers]
    size = artifact_bytes(
        work,
        layers,
        activation_bits=spec.activation_bits,
        heading=_heading(spec, dataset, machine.threads),
    )
    images = job_images(spec, dataset)
    job = ForeseenJob(spec, work, bases, images, runtime)
    seconds = job_cost.stage_seconds(job, machine)
    return Forecast(
        architecture=spec.architecture,
        layers=[_layer(one) for one in layers],
        parameters=work.parameters,
        float_bytes=work.float_bytes,
        packed_bytes=size,
        compression_ratio=work.float_bytes / size,
        seconds={stage: round(value, 1) for stage, value in seconds.items()},
        total_seconds=round(sum(seconds.values()), 1),
        memory_bytes=max(job_cost.stage_memory(job).values()),
        basis=_basis(job, machine),
    )


def job_images(spec: CompressSpec, dataset: Dataset) -> JobImages:
    """Return how many images the job's parts have, within a few of what `worker.data` will do."""
    counts = {split: count for split, count in dataset.splits.items() if count}
    whole = counts.get("all") or (counts["train"] if set(counts) == {"train"} else None)
    if whole is not None:
        val = test = max(round(_HELD_OUT * whole), len(dataset.classes))
        train = max(whole - val - test, 0)
    elif "val" in counts and "test" in counts:
        train, val, test = counts.get("train", 0), counts["val"], counts["test"]
    else:
        given = counts.get("train", 0)
        val = max(round(_HELD_OUT_OF_TRAIN * given), len(dataset.classes))
        train, test = max(given - val, 0), counts.get("test") or counts.get("val", 0)
    calibration = min(spec.calibration_images, train)
    return JobImages(train, val, test, calibration, dataset.bytes)


def _layer(one: PackedLayer) -> ForecastLayer:
    return ForecastLayer(
        name=one.layer.name,
        kind=one.layer.kind,
        shape=list(one.layer.shape),
        weights=one.layer.weights,
        binary=one.is_binary,
        bits=one.bits,
        packed_bytes=one.bytes,
    )


def _heading(spec: CompressSpec, dataset: Dataset, threads: int) -> Mapping[str, Any]:
    """Return the members of the artifact's header beside its plan, of the length they will have."""
    provenance = {
        "spec": spec.model_dump(mode="json", exclude={"checkpoint"}),
        "seed": spec.seed,
        "digests": {"checkpoint": _DIGEST, "dataset": dataset.digest},
        "versions": _VERSIONS,
        "threads": threads,
    }
    forms = ["full_precision", "calibrated", "packed"]
    if spec.fine_tune is not None:
        forms.append("fine_tuned")
        provenance["training"] = [{"device": "cpu", "products": "bfloat16"}]
    if spec.activation_bits < 32:
        forms.append("packed_float_activations")
    return {
        "input": InputSpec(**spec.input.model_dump()).to_json(),
        "labels": list(dataset.classes),
        "provenance": provenance,
        "accuracy": dict.fromkeys(forms, _SHARE),
    }


def _basis(job: ForeseenJob, machine: Machine) -> ForecastBasis:
    return ForecastBasis(
        threads=machine.threads,
        multiply_accumulates_per_second=float(f"{machine.macs_per_second:.3g}"),
        multiply_accumulates_per_image=job.work.macs,
        runtime=job.runtime,
        images=ForecastImages(
            train=job.images.train,
            val=job.images.val,
            test=job.images.test,
            calibration=job.images.calibration,
        ),
        assumptions=list(_assumptions(job)),
    )


def _assumptions(job: ForeseenJob) -> list[str]:
    """Say what was taken for granted."""
    found = [
        "The worker runs on a machine like this one, on as many threads as this has cores, and "
        "alone: jobs that are queued before this one, and predictions, take their time besides.",
        "The worker computes on the processor: on a GPU it is much faster.",
        "Seconds are within a factor of two on the machines where this was tried; the artifact's "
        "bytes within two percent where layers get as many bases as is usual.",
        "The dataset is decoded for this job; one that an earlier job has decoded to the same size "
        "is not decoded again. The worker keeps one of up to "
        f"{job.max_cache_bytes / 2**30:g} GiB decoded, as it does where BITPRESS_MAX_CACHE_BYTES "
        "is not set.",
    ]
    method = job.spec.method
    if isinstance(method, BwnhParameters) and method.bases > 1:
        found.append(
            "How many further bases a layer gets depends on its loss, which only calibration can "
            f"tell; together they take at most {method.bases_budget:.1%} of a bit per weight."
        )
    return found
