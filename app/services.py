"""What the routes work with: opened once when the app starts, closed when it stops."""

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
from anyio.to_thread import run_sync
from fastapi import Depends
from starlette.requests import Request

from app.event_streams import EventStreams
from app.forecast import Forecaster
from app.metrics import Metrics
from app.places import Places
from app.pool import ModelPool
from app.predictor import Predictor
from app.settings import AppSettings
from app.store_collector import StoreCollector
from store.artifacts import ModelStore
from store.database import open_engine, prepare_database
from store.datasets import DatasetStore
from store.job_events import JobEvents
from store.jobs import JobStore
from store.uploads import UploadStore

_INGESTIONS_AT_ONCE, _MOST_INGESTIONS_WAITING = 2, 16
_DRAWINGS_AT_ONCE, _MOST_DRAWINGS_WAITING = 2, 16
_CHANGES_AT_ONCE, _MOST_CHANGES_WAITING = 8, 56
_WATCH_S = 1.0
"""How often loaded models are looked up in the store, for those that were deleted meanwhile."""
_log = logging.getLogger("bitpress.app")


@dataclass(frozen=True)
class Services:
    """The stores, the loaded models and the settings of one running app.

    ``ingestion`` keeps the unpacking of archives, which takes minutes, from occupying the threads
    that every other route needs; ``drawing`` does that for looking into a dataset's images, and
    ``changes`` for what waits for a lock of the store, which another process may hold.
    """

    settings: AppSettings
    uploads: UploadStore
    datasets: DatasetStore
    models: ModelStore
    jobs: JobStore
    pool: ModelPool
    predictor: Predictor
    ingestion: Places
    drawing: Places
    changes: Places
    forecaster: Forecaster
    streams: EventStreams


@asynccontextmanager
async def open_services(settings: AppSettings, metrics: Metrics) -> AsyncIterator[Services]:
    """Open everything below ``settings.data_dir``, and the job database; close it at the end."""
    await run_sync(prepare_database, settings.database_url)
    models = ModelStore(settings.models_dir)
    jobs = JobStore(settings.database_url)
    # Of their own, so that whoever follows jobs keeps nobody from asking for one.
    event_engine = open_engine(settings.database_url, pool_size=1)
    streams = EventStreams(jobs, JobEvents(event_engine), max_streams=settings.max_event_streams)
    compute = ThreadPoolExecutor(
        max_workers=1,
        thread_name_prefix="compute",
        # The reference runtime computes on as many threads as torch has.
        initializer=torch.set_num_threads,
        initargs=(settings.predict_threads,),
    )
    pool = ModelPool(
        models,
        runtime=settings.runtime,
        threads=settings.predict_threads,
        max_resident_models=settings.max_resident_models,
        batch_limits=settings.batch_limits,
        compute=compute,
    )
    _log.info(
        "runtime chosen",
        extra={
            "asked": settings.runtime,
            "runtime": pool.engine.runtime,
            "kernels": pool.engine.kernels,
            "threads": settings.predict_threads,
        },
    )
    datasets = DatasetStore.of(settings)
    ingestion = Places(
        _INGESTIONS_AT_ONCE,
        _MOST_INGESTIONS_WAITING,
        "Too many datasets are being taken in right now.",
    )
    collector = StoreCollector(jobs, models, pool, datasets, ingestion, settings.data_dir)
    metrics.registry.register(collector)
    watching = asyncio.create_task(pool.watch(_WATCH_S))
    try:
        yield Services(
            settings=settings,
            uploads=UploadStore(settings.uploads_dir, settings.max_checkpoint_bytes),
            datasets=datasets,
            models=models,
            jobs=jobs,
            pool=pool,
            predictor=Predictor(
                pool, settings.image_limits, settings.max_prediction_requests, metrics
            ),
            ingestion=ingestion,
            drawing=Places(
                _DRAWINGS_AT_ONCE,
                _MOST_DRAWINGS_WAITING,
                "Too many datasets are being looked into right now.",
            ),
            changes=Places(
                _CHANGES_AT_ONCE,
                _MOST_CHANGES_WAITING,
                "Too many changes wait for another one to end.",
            ),
            forecaster=Forecaster(pool.engine.runtime),
            streams=streams,
        )
    finally:
        await streams.close()
        watching.cancel()
        metrics.registry.unregister(collector)
        # The batch under way is not waited for: its requests have been given up already.
        compute.shutdown(wait=False, cancel_futures=True)
        await run_sync(jobs.close)
        await run_sync(event_engine.dispose)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _jobs(services: "ServicesDep") -> JobStore:
    return services.jobs


def _datasets(services: "ServicesDep") -> DatasetStore:
    return services.datasets


def _models(services: "ServicesDep") -> ModelStore:
    return services.models


def _pool(services: "ServicesDep") -> ModelPool:
    return services.pool


ServicesDep = Annotated[Services, Depends(_services)]
JobsDep = Annotated[JobStore, Depends(_jobs)]
DatasetsDep = Annotated[DatasetStore, Depends(_datasets)]
ModelsDep = Annotated[ModelStore, Depends(_models)]
PoolDep = Annotated[ModelPool, Depends(_pool)]
