"""The typed client of the REST interface, for asynchronous code."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import httpx

from client.connection import AsyncConnection
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

__all__ = ["DEFAULT_URL", "AsyncClient"]


class AsyncClient:
    """One bitpress service, over HTTP: `Client` with every method to be awaited.

    `jobs` and `events` are iterated over with ``async for``. Callbacks are plain functions; those
    that tell of an upload are called from a worker thread. Runs on asyncio and on trio.

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
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url.rstrip("/")
        self._session = Session(self.url, retries or Retries(), clock)
        self._connection = AsyncConnection(self._session, transport, sleep)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.close()

    # Jobs

    async def compress(
        self,
        spec: CompressSpec,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> Job:
        """As `Client.compress`."""
        return await self._connection.result(
            jobs.compress(self._session, spec, checkpoint, progress, idempotency_key)
        )

    async def dry_run(
        self,
        spec: CompressSpec,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ) -> Forecast:
        """As `Client.dry_run`."""
        return await self._connection.result(
            jobs.dry_run(self._session, spec, checkpoint, progress)
        )

    def jobs(
        self,
        *,
        state: JobState | Sequence[JobState] | None = None,
        model: str | None = None,
        page_size: int | None = None,
    ) -> AsyncIterator[Job]:
        """As `Client.jobs`."""
        return self._connection.emitted(jobs.every(self._session, state, model, page_size))

    async def job_page(
        self,
        *,
        state: JobState | Sequence[JobState] | None = None,
        model: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> JobPage:
        """As `Client.job_page`."""
        return await self._connection.result(jobs.page(self._session, state, model, limit, cursor))

    async def job(self, job_id: str) -> Job:
        """As `Client.job`."""
        return await self._connection.result(jobs.job(self._session, job_id))

    def events(self, job_id: str, after: int | None = None) -> AsyncIterator[JobEvent]:
        """As `Client.events`."""
        return self._connection.emitted(jobs.events(self._session, job_id, after))

    async def wait(
        self,
        job_id: str,
        on_update: Callable[[Job], None] | None = None,
        *,
        on_event: Callable[[JobEvent], None] | None = None,
        interval_s: float = 0.5,
        patience_s: float = 60.0,
    ) -> Job:
        """As `Client.wait`."""
        return await self._connection.result(
            jobs.wait(self._session, job_id, on_update, on_event, interval_s, patience_s)
        )

    async def cancel(self, job_id: str) -> Job:
        """As `Client.cancel`."""
        return await self._connection.result(jobs.cancel(self._session, job_id))

    async def retry(self, job_id: str) -> Job:
        """As `Client.retry`."""
        return await self._connection.result(jobs.retry(self._session, job_id))

    async def delete_job(self, job_id: str) -> None:
        """As `Client.delete_job`."""
        await self._connection.result(jobs.delete(self._session, job_id))

    async def report(self, job_id: str) -> Report:
        """As `Client.report`."""
        return await self._connection.result(jobs.report(self._session, job_id))

    async def report_page(self, job_id: str) -> str:
        """As `Client.report_page`."""
        return await self._connection.result(jobs.report_page(self._session, job_id))

    # Datasets

    async def datasets(self) -> list[Dataset]:
        """As `Client.datasets`."""
        return await self._connection.result(datasets.every(self._session))

    async def dataset(self, name: str) -> DatasetDetail:
        """As `Client.dataset`."""
        return await self._connection.result(datasets.dataset(self._session, name))

    async def upload_dataset(
        self, source: Path | Upload, name: str, progress: Progress | None = None
    ) -> Dataset:
        """As `Client.upload_dataset`."""
        return await self._connection.result(datasets.upload(self._session, source, name, progress))

    async def known_dataset(self, source: Path | Upload, name: str | None = None) -> Dataset | None:
        """As `Client.known_dataset`."""
        return await self._connection.result(datasets.known(self._session, source, name))

    async def ensure_dataset(
        self, source: Path, name: str | None = None, progress: Progress | None = None
    ) -> Dataset:
        """As `Client.ensure_dataset`."""
        return await self._connection.result(datasets.ensure(self._session, source, name, progress))

    async def register_root(self, name: str, root: str) -> Dataset:
        """As `Client.register_root`."""
        return await self._connection.result(datasets.register_root(self._session, name, root))

    async def dataset_sheet(
        self, name: str, *, classes: int | None = None, samples: int | None = None
    ) -> bytes:
        """As `Client.dataset_sheet`."""
        return await self._connection.result(datasets.sheet(self._session, name, classes, samples))

    async def delete_dataset(self, name: str) -> None:
        """As `Client.delete_dataset`."""
        await self._connection.result(datasets.delete(self._session, name))

    # Models

    async def models(self) -> list[Model]:
        """As `Client.models`."""
        return await self._connection.result(models.every(self._session))

    async def model(self, name: str) -> Model:
        """As `Client.model`."""
        return await self._connection.result(models.model(self._session, name))

    async def model_versions(self, name: str) -> list[ModelVersion]:
        """As `Client.model_versions`."""
        return await self._connection.result(models.versions(self._session, name))

    async def model_version(self, name: str, version: int) -> ModelVersion:
        """As `Client.model_version`."""
        return await self._connection.result(models.version(self._session, name, version))

    async def aliases(self, name: str) -> dict[str, int]:
        """As `Client.aliases`."""
        return await self._connection.result(models.aliases(self._session, name))

    async def set_alias(self, name: str, alias: str, version: int) -> AliasSet:
        """As `Client.set_alias`."""
        return await self._connection.result(models.set_alias(self._session, name, alias, version))

    async def delete_alias(self, name: str, alias: str) -> None:
        """As `Client.delete_alias`."""
        await self._connection.result(models.delete_alias(self._session, name, alias))

    async def delete_version(self, name: str, version: int) -> None:
        """As `Client.delete_version`."""
        await self._connection.result(models.delete_version(self._session, name, version))

    async def delete_model(self, name: str) -> None:
        """As `Client.delete_model`."""
        await self._connection.result(models.delete(self._session, name))

    async def download_artifact(
        self, name: str, version: int, target: Path, progress: Progress | None = None
    ) -> Path:
        """As `Client.download_artifact`."""
        return await self._connection.result(
            models.download(self._session, name, version, target, progress)
        )

    # Predictions

    async def predict(
        self,
        model: str,
        images: Sequence[tuple[str, bytes]],
        *,
        version: int | str | None = None,
        top_k: int | None = None,
    ) -> Predictions:
        """As `Client.predict`."""
        return await self._connection.result(
            predictions.predict(self._session, model, images, version, top_k)
        )

    # The service

    async def live(self) -> Health:
        """As `Client.live`."""
        return await self._connection.result(operation.live(self._session))

    async def ready(self) -> Health:
        """As `Client.ready`."""
        return await self._connection.result(operation.ready(self._session))

    async def metrics(self) -> str:
        """As `Client.metrics`."""
        return await self._connection.result(operation.metrics(self._session))
