"""What Prometheus scrapes: requests and predictions counted here, jobs and models read on a scrape.

Labels are bounded: routes by their template, models by their latest version and `_MOST_MODELS`.
Units are base units: seconds, bytes, ratios from 0 to 1.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import (
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from app.batcher import Timing
from app.pool import LoadedModel, ModelPool
from store.artifacts import ModelStore, ModelVersion
from store.errors import Unavailable
from store.jobs import JobStore

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_MOST_MODELS = 200
_FORMS = ("full_precision", "calibrated", "packed")
# Of some models only.
_MORE_FORMS = ("fine_tuned", "packed_float_activations")
_REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
_STEP_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
_log = logging.getLogger("bitpress.app")


class Metrics:
    """The app's own registry and the counters that requests feed."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        by_request = ("method", "route", "status")
        self._requests = Counter(
            "bitpress_http_requests",
            "Answered requests.",
            by_request,
            registry=self.registry,
        )
        self._durations = Histogram(
            "bitpress_http_request_duration_seconds",
            "Time from a request's head to the end of its answer.",
            by_request,
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self._predictions = Histogram(
            "bitpress_prediction_duration_seconds",
            "Time of a prediction request by step: decode, queue, compute.",
            ("step",),
            buckets=_STEP_BUCKETS,
            registry=self.registry,
        )
        self._images = Counter(
            "bitpress_prediction_images",
            "Images sent for prediction, by result: usable or refused.",
            ("result",),
            registry=self.registry,
        )
        for step in ("decode", "queue", "compute"):
            self._predictions.labels(step)
        for result in ("usable", "refused"):
            self._images.labels(result)

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request. ``route`` is a template, never a path."""
        labels = (method if method in _METHODS else "other", route, str(status))
        self._requests.labels(*labels).inc()
        self._durations.labels(*labels).observe(seconds)

    def observe_prediction(self, decode_s: float, timing: Timing) -> None:
        """Record where one prediction request's time went."""
        self._predictions.labels("decode").observe(decode_s)
        self._predictions.labels("queue").observe(timing.queue_s)
        self._predictions.labels("compute").observe(timing.compute_s)

    def count_images(self, *, usable: int, refused: int) -> None:
        """Count images that were decoded, and images that could not be."""
        self._images.labels("usable").inc(usable)
        self._images.labels("refused").inc(refused)

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Return a scrape in the format that ``accept`` asks for, and its Content-Type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class StoreCollector(Collector):
    """Reads jobs, published models and loaded models at the moment of a scrape."""

    def __init__(self, jobs: JobStore, models: ModelStore, pool: ModelPool) -> None:
        self._jobs = jobs
        self._models = models
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        """Yield the families; what cannot be read is left out and shown in bitpress_store_up."""
        up = GaugeMetricFamily(
            "bitpress_store_up", "1 where the store could be read.", labels=("part",)
        )
        for part, read in (("jobs", self._job_families), ("models", self._model_families)):
            try:
                families = read()
            except Exception as error:
                # A scrape must not fail as a whole because the database is away.
                _log.warning(
                    "scrape incomplete", extra={"part": part, "error": type(error).__name__}
                )
                up.add_metric([part], 0)
            else:
                up.add_metric([part], 1)
                yield from families
        yield from _resident_families(self._pool.resident())
        yield up

    def _job_families(self) -> Sequence[Metric]:
        jobs = GaugeMetricFamily("bitpress_jobs", "Jobs by state.", labels=("state",))
        for state, count in self._jobs.counts().items():
            jobs.add_metric([state], count)
        stages = SummaryMetricFamily(
            "bitpress_job_stage_seconds", "Finished stages and their time.", labels=("stage",)
        )
        for stage, total in self._jobs.stage_totals().items():
            stages.add_metric([stage], count_value=total.count, sum_value=total.seconds)
        workers = GaugeMetricFamily(
            "bitpress_workers_alive", "Workers with a live lease.", value=self._jobs.workers_alive()
        )
        return [jobs, stages, workers]

    def _model_families(self) -> Sequence[Metric]:
        return _published_families(self._models.list()[:_MOST_MODELS])


def _published_families(versions: Iterable[ModelVersion]) -> list[Metric]:
    labels = ("model", "version")
    packed = GaugeMetricFamily(
        "bitpress_model_packed_bytes", "Bytes of the latest version's artifact.", labels=labels
    )
    floats = GaugeMetricFamily(
        "bitpress_model_float_bytes", "Bytes of the float32 network before.", labels=labels
    )
    ratio = GaugeMetricFamily(
        "bitpress_model_compression_ratio", "Float bytes over packed bytes.", labels=labels
    )
    accuracy = GaugeMetricFamily(
        "bitpress_model_accuracy_ratio",
        "Accuracy on the test images: full_precision before, calibrated, fine_tuned, packed as "
        "served, packed_float_activations where the packed network rounds them.",
        labels=(*labels, "form"),
    )
    for version in versions:
        key = [version.name, str(version.version)]
        try:
            report = version.report
            sizes = (report["bytes"]["packed"], report["bytes"]["float"])
            compression = report["compression_ratio"]
            accuracies = {form: report["accuracy"][form] for form in _FORMS}
            more = {form: report["accuracy"].get(form) for form in _MORE_FORMS}
            accuracies |= {form: value for form, value in more.items() if value is not None}
        except (Unavailable, LookupError, TypeError, AttributeError):
            # GET /models leaves it out as well, and logs why.
            continue
        packed.add_metric(key, sizes[0])
        floats.add_metric(key, sizes[1])
        ratio.add_metric(key, compression)
        for form, value in accuracies.items():
            accuracy.add_metric([*key, form], value)
    return [packed, floats, ratio, accuracy]


def _resident_families(models: Iterable[LoadedModel]) -> list[Metric]:
    labels = ("model", "version", "runtime")
    resident = GaugeMetricFamily(
        "bitpress_model_resident_bytes", "Memory that a loaded model's weights take.", labels=labels
    )
    activations = GaugeMetricFamily(
        "bitpress_model_activation_bytes",
        "Memory that computing one image takes besides: activations and scratch memory.",
        labels=labels,
    )
    waiting = GaugeMetricFamily(
        "bitpress_model_waiting_images", "Images admitted and not yet answered.", labels=labels
    )
    # Becomes bitpress_model_runtime_info, of value 1.
    info = InfoMetricFamily(
        "bitpress_model_runtime", "What a loaded model runs on.", labels=labels[:2]
    )
    for model in models:
        runtime = model.runtime
        key = [model.version.name, str(model.version.version), runtime.name]
        resident.add_metric(key, runtime.resident_bytes)
        activations.add_metric(key, runtime.activation_bytes)
        waiting.add_metric(key, model.batcher.admitted)
        info.add_metric(key[:2], {"runtime": runtime.name, "kernels": runtime.kernels})
    return [resident, activations, waiting, info]
