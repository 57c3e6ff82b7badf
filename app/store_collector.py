"""What a scrape reads of the store: jobs, workers, published and loaded models, datasets, the disk.

What cannot be read is left out and shown in `bitpress_store_up`: a scrape must not fail as a whole
because the database is away.
"""

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from app import metric_catalogue as catalogue
from app.metric_catalogue import MOST_MODELS, MOST_WORKERS, MetricSpec
from app.pool import LoadedModel, ModelPool
from store.artifacts import ModelStore, ModelVersion
from store.datasets import DatasetStore
from store.errors import NotFound, Unavailable
from store.jobs import JobStore

_FORMS = ("full_precision", "calibrated", "fine_tuned", "packed", "packed_float_activations")
_LATENCIES = {"packed": "packed_ms", "float": "float_ms"}
_log = logging.getLogger("bitpress.app")


class _Ingestions(Protocol):
    """A limiter of `anyio`, of which only the number of holders matters here."""

    @property
    def borrowed_tokens(self) -> int: ...


class StoreCollector(Collector):
    """Reads the metrics of everything below ``data_dir`` and of the job database."""

    def __init__(
        self,
        jobs: JobStore,
        models: ModelStore,
        pool: ModelPool,
        datasets: DatasetStore,
        ingestions: _Ingestions,
        data_dir: Path,
    ) -> None:
        self._jobs = jobs
        self._models = models
        self._pool = pool
        self._datasets = datasets
        self._ingestions = ingestions
        self._data_dir = data_dir
        self._rising = _Rising()
        # A published version never changes, and reading its report takes milliseconds.
        self._figures: dict[tuple[str, int, str], _ModelFigures | None] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield the families of what can be read."""
        up = _gauge(catalogue.STORE_UP)
        parts: Mapping[str, Callable[[], Sequence[Metric]]] = {
            "jobs": self._job_families,
            "workers": self._worker_families,
            "models": self._model_families,
            "datasets": self._dataset_families,
            "disk": self._disk_families,
        }
        for part, read in parts.items():
            try:
                families = read()
            except Exception as error:
                _log.warning("scrape incomplete", exc_info=error, extra={"part": part})
                up.add_metric([part], 0)
            else:
                up.add_metric([part], 1)
                yield from families
        yield from _loaded_families(self._pool.resident())
        ingestions = _gauge(catalogue.INGESTIONS)
        ingestions.add_metric([], self._ingestions.borrowed_tokens)
        yield ingestions
        yield up

    def _job_families(self) -> Sequence[Metric]:
        jobs = _gauge(catalogue.JOBS)
        for state, count in self._jobs.counts().items():
            jobs.add_metric([state], count)
        finished = CounterMetricFamily(
            catalogue.JOBS_FINISHED.name,
            catalogue.JOBS_FINISHED.meaning,
            labels=catalogue.JOBS_FINISHED.label_names,
        )
        for state, count in self._jobs.finished_totals().items():
            finished.add_metric([state], self._rising(("finished", state), count))
        stages = SummaryMetricFamily(
            catalogue.JOB_STAGES.name,
            catalogue.JOB_STAGES.meaning,
            labels=catalogue.JOB_STAGES.label_names,
        )
        for stage, total in self._jobs.stage_totals().items():
            stages.add_metric(
                [stage],
                count_value=int(self._rising(("stage", stage), total.count)),
                sum_value=self._rising(("seconds", stage), total.seconds),
            )
        return [jobs, finished, stages]

    def _worker_families(self) -> Sequence[Metric]:
        seen = self._jobs.watch.look()
        families = [
            _gauge(catalogue.QUEUE_AGE, seen.queued_age_s),
            _gauge(catalogue.PROGRESS_AGE, seen.progress_age_s),
            _gauge(catalogue.WORKERS_ALIVE, seen.alive),
            _gauge(catalogue.WORKERS_LOST, seen.lost),
        ]
        beat, memory = _gauge(catalogue.WORKER_BEAT), _gauge(catalogue.WORKER_MEMORY)
        at_work = _gauge(catalogue.WORKER_JOB)
        for worker in seen.workers[:MOST_WORKERS]:
            key, figures = worker.executor_id, worker.figures
            beat.add_metric([key], worker.beat_age_s)
            for part, member in (("worker", "memory_bytes"), ("stages", "stage_memory_bytes")):
                if figures.get(member) is not None:
                    memory.add_metric([key, part], figures[member])
            if figures.get("job") and not worker.lost:
                at_work.add_metric([key, figures["job"], figures.get("stage") or ""], 1)
        return [*families, beat, memory, at_work]

    def _model_families(self) -> Sequence[Metric]:
        versions = self._models.list()
        shown = versions[:MOST_MODELS]
        known = {_key(version): self._figures_of(version) for version in shown}
        self._figures = known
        return [
            _gauge(catalogue.MODELS, len(versions)),
            *_published_families({k: f for k, f in known.items() if f is not None}),
        ]

    def _figures_of(self, version: ModelVersion) -> "_ModelFigures | None":
        found = self._figures.get(_key(version))
        if found is not None:
            return found
        try:
            return _ModelFigures(version)
        except (Unavailable, NotFound, LookupError, TypeError, ValueError, AttributeError):
            # GET /models leaves it out as well, and logs why.
            return None

    def _dataset_families(self) -> Sequence[Metric]:
        datasets = self._datasets.list()
        return [
            _gauge(catalogue.DATASETS, len(datasets)),
            _gauge(catalogue.DATASET_BYTES, sum(dataset.bytes for dataset in datasets)),
        ]

    def _disk_families(self) -> Sequence[Metric]:
        usage = shutil.disk_usage(self._data_dir)
        return [_gauge(catalogue.DISK_FREE, usage.free), _gauge(catalogue.DISK_SIZE, usage.total)]


class _Rising:
    """Keeps what counts from falling for a moment, which Prometheus would take for a restart.

    The total of what was deleted and the count of what is there are not read in one transaction.
    """

    def __init__(self) -> None:
        self._highest: dict[tuple[str, str], float] = {}

    def __call__(self, key: tuple[str, str], value: float) -> float:
        self._highest[key] = max(value, self._highest.get(key, 0))
        return self._highest[key]


class _ModelFigures:
    """What the metrics tell of a published version, read from its report."""

    def __init__(self, version: ModelVersion) -> None:
        report = version.report
        accuracy = report["accuracy"]
        self.packed_bytes = float(report["bytes"]["packed"])
        self.float_bytes = float(report["bytes"]["float"])
        self.compression_ratio = float(report["compression_ratio"])
        self.created_s = datetime.fromisoformat(version.created_at).timestamp()
        self.accuracies = {
            form: float(accuracy[form]) for form in _FORMS if accuracy.get(form) is not None
        }
        # Of models that were evaluated before latency was measured there is none.
        latency: Mapping[str, Any] = report.get("latency") or {}
        self.latencies_s = {
            form: float(latency[member]) / 1000
            for form, member in _LATENCIES.items()
            if latency.get(member) is not None
        }


def _key(version: ModelVersion) -> tuple[str, int, str]:
    return (version.name, version.version, version.digest)


def _published_families(known: Mapping[tuple[str, int, str], _ModelFigures]) -> list[Metric]:
    packed, floats = _gauge(catalogue.MODEL_PACKED), _gauge(catalogue.MODEL_FLOAT)
    ratio, created = _gauge(catalogue.MODEL_RATIO), _gauge(catalogue.MODEL_CREATED)
    accuracy, latency = _gauge(catalogue.MODEL_ACCURACY), _gauge(catalogue.MODEL_LATENCY)
    for (name, number, _), figures in known.items():
        key = [name, str(number)]
        packed.add_metric(key, figures.packed_bytes)
        floats.add_metric(key, figures.float_bytes)
        ratio.add_metric(key, figures.compression_ratio)
        created.add_metric(key, figures.created_s)
        for form, value in figures.accuracies.items():
            accuracy.add_metric([*key, form], value)
        for form, value in figures.latencies_s.items():
            latency.add_metric([*key, form], value)
    return [packed, floats, ratio, created, accuracy, latency]


def _loaded_families(models: Iterable[LoadedModel]) -> list[Metric]:
    resident, activations = _gauge(catalogue.MODEL_RESIDENT), _gauge(catalogue.MODEL_ACTIVATION)
    waiting, info = _gauge(catalogue.MODEL_WAITING), _gauge(catalogue.MODEL_RUNTIME)
    device = _gauge(catalogue.MODEL_DEVICE)
    for model in models:
        runtime = model.runtime
        key = [model.version.name, str(model.version.version), runtime.name]
        resident.add_metric(key, runtime.resident_bytes)
        activations.add_metric(key, runtime.activation_bytes)
        device.add_metric(key, runtime.device_bytes)
        waiting.add_metric(key, model.batcher.admitted)
        info.add_metric([*key, runtime.kernels], 1)
    return [resident, activations, device, waiting, info]


def _gauge(spec: MetricSpec, value: float | None = None) -> GaugeMetricFamily:
    """Return the family of a gauge; with ``value`` it is one without labels and complete."""
    if value is not None:
        return GaugeMetricFamily(spec.name, spec.meaning, value=value)
    return GaugeMetricFamily(spec.name, spec.meaning, labels=spec.label_names)
