"""The typed client of the REST interface, for code that waits."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from client.connection import Connection
from client.flows import datasets, jobs, models, operation, predictions
from client.session import DEFAULT_URL, Retries, Session
from client.types import (
    AliasSet,
    CompressSpec,
    Dataset,
    DatasetDetail,
    Forecast,
    Health,
    Job,
    JobEvent,
    JobPage,
    JobState,
    Model,
    ModelVersion,
    Predictions,
    Report,
)
from client.upload import Progress, Upload

__all__ = ["DEFAULT_URL", "Client"]


class Client:
    """One bitpress service, over HTTP.

    Every method raises `BitpressProblem` (or a class below it) where the service refuses,
    `ServiceUnreachable` where nothing answers, and `UnexpectedAnswer` where something else does.
    What may be sent again without harm is, as `Retries` says. A client holds connections: close it,
    or use it in a ``with`` statement. `AsyncClient` has the same methods.

    Args:
        url: where the service is, for example ``http://127.0.0.1:8000``.
        retries: how often and how long a request is tried.
        transport: another way to the service than the network, for tests.
        sleep: lets seconds pass.
        clock: counts seconds.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url.rstrip("/")
        self._session = Session(self.url, retries or Retries(), clock)
        self._connection = Connection(self._session, transport, sleep)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    # Jobs

    def compress(
        self,
        spec: CompressSpec,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> Job:
        """Queue a job; ``checkpoint`` is sent along unless ``spec`` names an earlier upload.

        Requests with the same key (1 to 255 visible ASCII characters) and content queue one job.
        Without one a key is made for this call, so that it can be tried again after a broken
        connection.
        """
        return self._connection.result(
            jobs.compress(self._session, spec, checkpoint, progress, idempotency_key)
        )

    def dry_run(
        self,
        spec: CompressSpec,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ) -> Forecast:
        """Check a job as `compress` would, and return its sizes, seconds and memory; keep nothing.

        That a dataset is not registered is told last: after everything else was found right.
        """
        return self._connection.result(jobs.dry_run(self._session, spec, checkpoint, progress))

    def jobs(
        self,
        *,
        state: JobState | Sequence[JobState] | None = None,
        model: str | None = None,
        page_size: int | None = None,
    ) -> Iterator[Job]:
        """Yield jobs, the newest first, fetching page after page as they are wanted.

        ``state`` and ``model`` (the name that the specification has) choose among them.
        """
        return self._connection.emitted(jobs.every(self._session, state, model, page_size))

    def job_page(
        self,
        *,
        state: JobState | Sequence[JobState] | None = None,
        model: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> JobPage:
        """Return one page of jobs, newest first; ``cursor`` is `JobPage.next` of the one before."""
        return self._connection.result(jobs.page(self._session, state, model, limit, cursor))

    def job(self, job_id: str) -> Job:
        """Return a job as it stands."""
        return self._connection.result(jobs.job(self._session, job_id))

    def events(self, job_id: str, after: int | None = None) -> Iterator[JobEvent]:
        """Yield what happens to a job until its end, from its first event or behind ``after``.

        A connection that breaks is made anew, and no event is lost or comes twice.
        """
        return self._connection.emitted(jobs.events(self._session, job_id, after))

    def wait(
        self,
        job_id: str,
        on_update: Callable[[Job], None] | None = None,
        *,
        on_event: Callable[[JobEvent], None] | None = None,
        interval_s: float = 0.5,
        patience_s: float = 60.0,
    ) -> Job:
        """Return the job once it is finished, however it ended (`raise_for_end` raises for that).

        Meanwhile ``on_event`` is told every event from the job's first, and ``on_update`` the job
        as it stands, from now on. The job lives on while its service restarts or its database is
        away, so silence, and the answer that the service is unavailable, is borne for
        ``patience_s``. Where there are no events, it is asked for every ``interval_s``.
        """
        return self._connection.result(
            jobs.wait(self._session, job_id, on_update, on_event, interval_s, patience_s)
        )

    def cancel(self, job_id: str) -> Job:
        """Cancel a job that is queued or running; `Conflict` where it has ended otherwise."""
        return self._connection.result(jobs.cancel(self._session, job_id))

    def retry(self, job_id: str) -> Job:
        """Let a failed or cancelled job go on, from the step that it did not finish."""
        return self._connection.result(jobs.retry(self._session, job_id))

    def delete_job(self, job_id: str) -> None:
        """Remove a finished job's record, events and report; the model it published stays."""
        self._connection.result(jobs.delete(self._session, job_id))

    def report(self, job_id: str) -> Report:
        """Return what a job measured that succeeded or was rejected."""
        return self._connection.result(jobs.report(self._session, job_id))

    def report_page(self, job_id: str) -> str:
        """Return the report as an HTML page, which needs no other file."""
        return self._connection.result(jobs.report_page(self._session, job_id))

    # Datasets

    def datasets(self) -> list[Dataset]:
        """Return the registered datasets, by name."""
        return self._connection.result(datasets.every(self._session))

    def dataset(self, name: str) -> DatasetDetail:
        """Return a dataset with its counts by split and class and the sizes of its images."""
        return self._connection.result(datasets.dataset(self._session, name))

    def upload_dataset(
        self, source: Path | Upload, name: str, progress: Progress | None = None
    ) -> Dataset:
        """Register an archive, or a local folder (sent as a tar stream), under ``name``."""
        return self._connection.result(datasets.upload(self._session, source, name, progress))

    def known_dataset(self, source: Path | Upload, name: str | None = None) -> Dataset | None:
        """Return the dataset of this very archive (named ``name``, where given), or None."""
        return self._connection.result(datasets.known(self._session, source, name))

    def ensure_dataset(
        self, source: Path, name: str | None = None, progress: Progress | None = None
    ) -> Dataset:
        """Return the dataset of this very archive, and upload it only where there is none.

        Without ``name`` a dataset of any name will do, and a new one is named after ``source``.
        """
        return self._connection.result(datasets.ensure(self._session, source, name, progress))

    def register_root(self, name: str, root: str) -> Dataset:
        """Register the operator's folder ``root`` under ``name``; its images stay where they are.

        ``root`` is the name in BITPRESS_DATASET_ROOTS, not a path.
        """
        return self._connection.result(datasets.register_root(self._session, name, root))

    def dataset_sheet(
        self, name: str, *, classes: int | None = None, samples: int | None = None
    ) -> bytes:
        """Return samples of each class as one PNG image."""
        return self._connection.result(datasets.sheet(self._session, name, classes, samples))

    def delete_dataset(self, name: str) -> None:
        """Remove a dataset; `Conflict` while an unfinished job uses it."""
        self._connection.result(datasets.delete(self._session, name))

    # Models

    def models(self) -> list[Model]:
        """Return the published models, by name."""
        return self._connection.result(models.every(self._session))

    def model(self, name: str) -> Model:
        """Return one published model."""
        return self._connection.result(models.model(self._session, name))

    def model_versions(self, name: str) -> list[ModelVersion]:
        """Return every version of a model, newest first."""
        return self._connection.result(models.versions(self._session, name))

    def model_version(self, name: str, version: int) -> ModelVersion:
        """Return one version of a model."""
        return self._connection.result(models.version(self._session, name, version))

    def aliases(self, name: str) -> dict[str, int]:
        """Return the version that each alias of a model points to."""
        return self._connection.result(models.aliases(self._session, name))

    def set_alias(self, name: str, alias: str, version: int) -> AliasSet:
        """Point an alias to a version; the next prediction that names the alias is made by it."""
        return self._connection.result(models.set_alias(self._session, name, alias, version))

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias."""
        self._connection.result(models.delete_alias(self._session, name, alias))

    def delete_version(self, name: str, version: int) -> None:
        """Remove a version; `Conflict` while an alias points to it."""
        self._connection.result(models.delete_version(self._session, name, version))

    def delete_model(self, name: str) -> None:
        """Remove a model with all its versions; `Conflict` while it has an alias."""
        self._connection.result(models.delete(self._session, name))

    def download_artifact(
        self, name: str, version: int, target: Path, progress: Progress | None = None
    ) -> Path:
        """Write an artifact to ``target``, which appears only when it is whole and checked."""
        return self._connection.result(
            models.download(self._session, name, version, target, progress)
        )

    # Predictions

    def predict(
        self,
        model: str,
        images: Sequence[tuple[str, bytes]],
        *,
        version: int | str | None = None,
        top_k: int | None = None,
    ) -> Predictions:
        """Classify encoded images (file name, bytes of the file) in one request.

        ``version`` is a number, an alias or ``latest``. The answer has one entry per image, in the
        given order; an image that cannot be used has its problem there and does not disturb the
        others.
        """
        return self._connection.result(
            predictions.predict(self._session, model, images, version, top_k)
        )

    # The service

    def live(self) -> Health:
        """Return that the process answers."""
        return self._connection.result(operation.live(self._session))

    def ready(self) -> Health:
        """Return that the service can work; `Unavailable` where it cannot."""
        return self._connection.result(operation.ready(self._session))

    def metrics(self) -> str:
        """Return the service's figures as Prometheus text."""
        return self._connection.result(operation.metrics(self._session))
