"""Every metric of the service, declared once: the code takes its names from here, and
docs/METRICS.md is written from here (`app.metrics_reference`).

Units are base units: seconds, bytes, ratios from 0 to 1. Labels are bounded: routes by their
template, reasons by the error tree, models and workers by a cap. ``job_id`` and not ``job``, which
Prometheus keeps for itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["counter", "gauge", "histogram", "summary"]

MOST_MODELS = 200
MOST_WORKERS = 50

_MODEL = {
    "model": f"name; the {MOST_MODELS} first by name where there are more",
    "version": "the latest one",
}
_LOADED = {"model": "name", "version": "number", "runtime": "`cuda`, `cpu`, `reference`"}
_WORKER = {"worker": f"host, process id and a random part; the latest {MOST_WORKERS}"}


@dataclass(frozen=True)
class MetricSpec:
    """A metric: ``labels`` maps each label to what its values are, in words."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels, in their order."""
        return tuple(self.labels)


_REQUEST = {
    "method": "`GET`, `POST`, ...; `other` for what is none of HTTP's",
    "route": "template such as `/jobs/{job_id}`; `unmatched` where there is no such route",
    "status": "HTTP status; 499 where the caller went away first",
}
HTTP_REQUESTS = MetricSpec(
    "bitpress_http_requests_total", "counter", "requests", "Answered requests.", _REQUEST
)
HTTP_DURATION = MetricSpec(
    "bitpress_http_request_duration_seconds",
    "histogram",
    "seconds",
    "Time from a request's head to the end of its answer; event streams last as long as their job.",
    _REQUEST,
)
HTTP_ACTIVE = MetricSpec(
    "bitpress_http_requests_active", "gauge", "requests", "Requests that are being answered now."
)
EVENT_STREAMS = MetricSpec(
    "bitpress_event_streams_open", "gauge", "streams", "Callers that follow the events of a job."
)
ERRORS = MetricSpec(
    "bitpress_errors_total",
    "counter",
    "answers",
    "Requests that were answered with a problem document, by its code.",
    {"reason": "code of the problem, the end of its `type`; `other` for any that is not listed"},
)

PREDICTION_DURATION = MetricSpec(
    "bitpress_prediction_duration_seconds",
    "histogram",
    "seconds",
    "Where the time of a prediction request goes.",
    {
        "phase": "`decode`: check and decode the images; `queue`: wait for a batch; `compute`: the "
        "batch itself"
    },
)
PREDICTION_IMAGES = MetricSpec(
    "bitpress_prediction_images_total",
    "counter",
    "images",
    "Images that were sent for prediction.",
    {
        "model": f"name; `other` from the {MOST_MODELS}th on",
        "result": "`usable`, or `refused`: it could not be decoded within the limits",
    },
)

MODELS = MetricSpec("bitpress_models", "gauge", "models", "Published models, by name.")
MODEL_PACKED = MetricSpec(
    "bitpress_model_packed_bytes", "gauge", "bytes", "Size of the packed artifact.", _MODEL
)
MODEL_FLOAT = MetricSpec(
    "bitpress_model_float_bytes",
    "gauge",
    "bytes",
    "Size of all parameters and buffers of the network before, as float32.",
    _MODEL,
)
MODEL_RATIO = MetricSpec(
    "bitpress_model_compression_ratio",
    "gauge",
    "ratio",
    "Compression ratio: float bytes over packed bytes.",
    _MODEL,
)
MODEL_ACCURACY = MetricSpec(
    "bitpress_model_accuracy_ratio",
    "gauge",
    "ratio",
    "Accuracy on the test images, 0 to 1.",
    {
        **_MODEL,
        "form": "`full_precision`: the network before; `calibrated`; `packed`: as it is served; of "
        "some models `fine_tuned`, and `packed_float_activations` where the packed network rounds "
        "them",
    },
)
MODEL_LATENCY = MetricSpec(
    "bitpress_model_latency_seconds",
    "gauge",
    "seconds",
    "Time of one image on the machine that evaluated the model, lower quartile of the runs; not of "
    "every model.",
    {**_MODEL, "form": "`packed`: as it is served; `float`: the network before"},
)
MODEL_CREATED = MetricSpec(
    "bitpress_model_created_timestamp_seconds",
    "gauge",
    "seconds since 1970",
    "When the version was published.",
    _MODEL,
)
MODEL_RESIDENT = MetricSpec(
    "bitpress_model_resident_bytes",
    "gauge",
    "bytes",
    "Memory that a loaded model's weights take.",
    _LOADED,
)
MODEL_ACTIVATION = MetricSpec(
    "bitpress_model_activation_bytes",
    "gauge",
    "bytes",
    "Memory that computing one image takes besides: activations and scratch memory of all threads.",
    _LOADED,
)
MODEL_DEVICE = MetricSpec(
    "bitpress_model_device_bytes",
    "gauge",
    "bytes",
    "Memory of a GPU that a loaded model takes in all: weights, the activations of the largest "
    "batch, and what its graphs hold; 0 where it runs on the processor.",
    _LOADED,
)
MODEL_WAITING = MetricSpec(
    "bitpress_model_waiting_images",
    "gauge",
    "images",
    "Images that were admitted and are not yet answered.",
    _LOADED,
)
MODEL_RUNTIME = MetricSpec(
    "bitpress_model_runtime_info",
    "gauge",
    "",
    "What a loaded model runs on; always 1.",
    {**_LOADED, "kernels": "set of kernels, such as `avx512`; of a GPU its kind, such as `sm_90`"},
)

JOBS = MetricSpec(
    "bitpress_jobs",
    "gauge",
    "jobs",
    "Jobs on record by state; `queued` is the length of the queue.",
    {"state": "`queued`, `running`, `succeeded`, `rejected`, `failed`, `cancelled`"},
)
JOBS_FINISHED = MetricSpec(
    "bitpress_jobs_finished_total",
    "counter",
    "jobs",
    "Jobs that came to an end; deleting or retrying one takes nothing back.",
    {"state": "`succeeded`, `rejected` (by the accuracy gate), `failed`, `cancelled`"},
)
JOB_STAGES = MetricSpec(
    "bitpress_job_stage_seconds",
    "summary",
    "seconds",
    "Completed stages of all jobs and the time they took; `_sum` over `_count` is the mean.",
    {"stage": "`prepare`, `calibrate`, `fine_tune`, `pack`, `evaluate`, `publish`"},
)
QUEUE_AGE = MetricSpec(
    "bitpress_job_queue_age_seconds",
    "gauge",
    "seconds",
    "How long the job that has waited for longest is in the queue; 0 where none waits.",
)
PROGRESS_AGE = MetricSpec(
    "bitpress_job_progress_age_seconds",
    "gauge",
    "seconds",
    "How long ago the running job that has stood still for longest got on; 0 where none runs.",
)

WORKERS_ALIVE = MetricSpec(
    "bitpress_workers_alive", "gauge", "workers", "Workers with a live lease."
)
WORKERS_LOST = MetricSpec(
    "bitpress_workers_lost",
    "gauge",
    "workers",
    "Workers whose lease ran out within the last hour without having been given up: killed, frozen "
    "or cut off from the database.",
)
WORKER_BEAT = MetricSpec(
    "bitpress_worker_beat_age_seconds",
    "gauge",
    "seconds",
    "Time since a worker's last sign of life, by the database's clock.",
    _WORKER,
)
WORKER_MEMORY = MetricSpec(
    "bitpress_worker_resident_memory_bytes",
    "gauge",
    "bytes",
    "Resident memory at the last sign of life.",
    {**_WORKER, "part": "`worker`: the process itself; `stages`: all processes below it, together"},
)
WORKER_JOB = MetricSpec(
    "bitpress_worker_job_info",
    "gauge",
    "",
    "What a worker works on, absent while it is idle; always 1.",
    {**_WORKER, "job_id": "the job", "stage": "the job's stage"},
)

DATASETS = MetricSpec("bitpress_datasets", "gauge", "datasets", "Registered datasets.")
DATASET_BYTES = MetricSpec(
    "bitpress_datasets_bytes", "gauge", "bytes", "Size of the images of all registered datasets."
)
INGESTIONS = MetricSpec(
    "bitpress_dataset_ingestions_active",
    "gauge",
    "archives",
    "Datasets that are being checked and stored now.",
)
DISK_FREE = MetricSpec(
    "bitpress_disk_free_bytes", "gauge", "bytes", "Free space where the data directory lies."
)
DISK_SIZE = MetricSpec(
    "bitpress_disk_size_bytes", "gauge", "bytes", "All space where the data directory lies."
)
STORE_UP = MetricSpec(
    "bitpress_store_up",
    "gauge",
    "",
    "1 where this part of the store could be read for the scrape, else 0 and its metrics are away.",
    {"part": "`jobs`, `workers`, `models`, `datasets`, `disk`"},
)
BUILD = MetricSpec(
    "bitpress_build_info", "gauge", "", "The running app; always 1.", {"version": "of bitpress"}
)

# prometheus_client's own, of the app's process.
_PROCESS = (
    MetricSpec(
        "process_resident_memory_bytes", "gauge", "bytes", "Resident memory of the app's process."
    ),
    MetricSpec(
        "process_virtual_memory_bytes", "gauge", "bytes", "Virtual memory of the app's process."
    ),
    MetricSpec(
        "process_cpu_seconds_total", "counter", "seconds", "Processor time of the app's process."
    ),
    MetricSpec(
        "process_start_time_seconds", "gauge", "seconds since 1970", "When the app was started."
    ),
    MetricSpec("process_open_fds", "gauge", "files", "Open files and connections of the app."),
    MetricSpec("process_max_fds", "gauge", "files", "Most files and connections it may open."),
)

SECTIONS: Mapping[str, tuple[MetricSpec, ...]] = {
    "Requests": (HTTP_REQUESTS, HTTP_DURATION, HTTP_ACTIVE, ERRORS, EVENT_STREAMS),
    "Predictions": (PREDICTION_DURATION, PREDICTION_IMAGES),
    "Published models": (
        *(MODELS, MODEL_RATIO, MODEL_PACKED, MODEL_FLOAT, MODEL_ACCURACY, MODEL_LATENCY),
        MODEL_CREATED,
    ),
    "Loaded models": (MODEL_RUNTIME, MODEL_RESIDENT, MODEL_ACTIVATION, MODEL_DEVICE, MODEL_WAITING),
    "Jobs": (JOBS, JOBS_FINISHED, JOB_STAGES, QUEUE_AGE, PROGRESS_AGE),
    "Workers": (WORKERS_ALIVE, WORKERS_LOST, WORKER_JOB, WORKER_BEAT, WORKER_MEMORY),
    "Datasets and storage": (DATASETS, DATASET_BYTES, INGESTIONS, DISK_FREE, DISK_SIZE, STORE_UP),
    "The app": (BUILD, *_PROCESS),
}
CATALOGUE: Mapping[str, MetricSpec] = {
    spec.name: spec for specs in SECTIONS.values() for spec in specs
}
