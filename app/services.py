"""What the routes work with: opened once when the app starts, closed when it stops."""

import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Depends
from starlette.requests import Request

from app.metrics import Metrics, StoreCollector
from app.pool import ModelPool
from app.predictor import Predictor
from app.settings import AppSettings
from store.artifacts import ModelStore
from store.database import prepare_database
from store.datasets import DatasetStore
from store.jobs import JobStore
from store.uploads import UploadStore

_INGESTIONS_AT_ONCE = 2
_log = logging.getLogger("bitpress.app")


@dataclass(frozen=True)
class Services:
    """The stores, the loaded models and the settings of one running app.

    ``ingestion`` keeps the unpacking of archives, which takes minutes, from occupying the threads
    that every other route needs.
    """

    settings: AppSettings
    uploads: UploadStore
    datasets: DatasetStore
    models: ModelStore
    jobs: JobStore
    pool: ModelPool
    predictor: Predictor
    ingestion: CapacityLimiter


@asynccontextmanager
async def open_services(settings: AppSettings, metrics: Metrics) -> AsyncIterator[Services]:
    """Open everything below ``settings.data_dir``, and the job database; close it at the end."""
    await run_sync(prepare_database, settings.database_url)
    models = ModelStore(settings.models_dir)
    jobs = JobStore(settings.database_url)
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
    collector = StoreCollector(jobs, models, pool)
    metrics.registry.register(collector)
    try:
        yield Services(
            settings=settings,
            uploads=UploadStore(settings.uploads_dir, settings.max_checkpoint_bytes),
            datasets=DatasetStore(settings.datasets_dir, settings.dataset_limits),
            models=models,
            jobs=jobs,
            pool=pool,
            predictor=Predictor(
                pool, settings.image_limits, settings.max_prediction_requests, metrics
            ),
            ingestion=CapacityLimiter(_INGESTIONS_AT_ONCE),
        )
    finally:
        metrics.registry.unregister(collector)
        # The batch under way is not waited for: its requests have been given up already.
        compute.shutdown(wait=False, cancel_futures=True)
        await run_sync(jobs.close)


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
