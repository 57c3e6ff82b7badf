"""What Prometheus scrapes: requests and predictions are counted here, and the rest is read at the
moment of a scrape (`app.store_collector`). `app.metric_catalogue` declares all of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from app import metric_catalogue as catalogue
from app.batcher import Timing
from app.metric_catalogue import MOST_MODELS, MetricSpec

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "other"
_REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
_PHASE_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
_PHASES = ("decode", "queue", "compute")


class Metrics:
    """The app's own registry and the counters that requests feed.

    ``reasons`` are the codes of all problems there are: each is present from the start at 0, so
    that its first occurrence is a rise. ``version`` is that of the app.
    """

    def __init__(self, reasons: frozenset[str] = frozenset(), version: str = "0") -> None:
        # When each series began is of no use to anybody here, and would double their number.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = self._counter(catalogue.HTTP_REQUESTS)
        self._durations = self._histogram(catalogue.HTTP_DURATION, _REQUEST_BUCKETS)
        self._active = self._gauge(catalogue.HTTP_ACTIVE)
        self._streams = self._gauge(catalogue.EVENT_STREAMS)
        self._errors = self._counter(catalogue.ERRORS)
        self._phases = self._histogram(catalogue.PREDICTION_DURATION, _PHASE_BUCKETS)
        self._images = self._counter(catalogue.PREDICTION_IMAGES)
        self._gauge(catalogue.BUILD).labels(version).set(1)
        self._reasons = reasons
        self._models: set[str] = set()
        for reason in sorted({*reasons, _OTHER}):
            self._errors.labels(reason)
        for phase in _PHASES:
            self._phases.labels(phase)

    @contextmanager
    def active_request(self) -> Iterator[None]:
        """Count a request as being answered for as long as the block lasts."""
        with self._active.track_inprogress():
            yield

    @contextmanager
    def event_stream(self) -> Iterator[None]:
        """Count an open stream of a job's events for as long as the block lasts."""
        with self._streams.track_inprogress():
            yield

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request. ``route`` is a template, never a path."""
        labels = (method if method in _METHODS else _OTHER, route, str(status))
        self._requests.labels(*labels).inc()
        self._durations.labels(*labels).observe(seconds)

    def count_error(self, reason: str) -> None:
        """Count an answer that was a problem, by the problem's code."""
        self._errors.labels(reason if reason in self._reasons else _OTHER).inc()

    def observe_prediction(self, decode_s: float, timing: Timing) -> None:
        """Record where one prediction request's time went."""
        seconds = (decode_s, timing.queue_s, timing.compute_s)
        for phase, taken in zip(_PHASES, seconds, strict=True):
            self._phases.labels(phase).observe(taken)

    def count_images(self, model: str, *, usable: int, refused: int) -> None:
        """Count images that were decoded for ``model``, and images that could not be."""
        if model not in self._models:
            if len(self._models) >= MOST_MODELS:
                model = _OTHER
            self._models.add(model)
        self._images.labels(model, "usable").inc(usable)
        self._images.labels(model, "refused").inc(refused)

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Return a scrape in the format that ``accept`` asks for, and its Content-Type."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError, LookupError):
            # The library trips over versions that are no numbers.
            encode, content_type = choose_encoder("")
        return encode(self.registry), content_type

    def _counter(self, spec: MetricSpec) -> Counter:
        return Counter(spec.name, spec.meaning, spec.label_names, registry=self.registry)

    def _gauge(self, spec: MetricSpec) -> Gauge:
        return Gauge(spec.name, spec.meaning, spec.label_names, registry=self.registry)

    def _histogram(self, spec: MetricSpec, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            spec.name, spec.meaning, spec.label_names, buckets=buckets, registry=self.registry
        )
