"""The worker: takes jobs from the queue, one at a time, until it is told to stop."""

import logging
import queue
import signal
import threading
from collections.abc import Mapping

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer
from dbos import error as dbos_error
from pydantic import ValidationError

from models import runtime
from models.runtime.gpu_presence import gpu_is_here
from store.database import open_engine, prepare_database
from store.errors import Unavailable
from store.job_record import JobFailed
from store.jobs import APPLICATION_NAME, APPLICATION_VERSION, QUEUE_NAME
from store.leases import WorkerLeases
from store.settings import setting_faults
from worker.full_database import wait_for_space
from worker.housekeeping import Housekeeping
from worker.logs import configure_logs
from worker.pipeline import STAGES, Pipeline, register
from worker.recovery import Lease, Reaper, new_executor_id
from worker.settings import WorkerSettings
from worker.vitals import Vitals

log = logging.getLogger("worker")

# A frozen worker must not hold the database's locks for long: others wait to take over.
_IDLE_TRANSACTION_S = 10.0
_WAKE_S = 0.5
_HOUSEKEEPING_EVERY_S = 300.0

# How a run ends, to DBOS, that failed, or whose job was cancelled or deleted.
_TOLD_BY_PIPELINE = (
    JobFailed,
    dbos_error.DBOSAwaitedWorkflowCancelledError,
    dbos_error.DBOSNonExistentWorkflowError,
)


def main(stages: Mapping[str, str] = STAGES) -> int:
    """Run a worker, set up by the environment, until SIGTERM or SIGINT; return the exit status."""
    configure_logs("INFO")
    try:
        settings = WorkerSettings()
    except ValidationError as error:
        for fault in setting_faults(error):
            log.error("invalid setting", extra=fault)
        return 2
    configure_logs(settings.log_level)
    if not (_device_is_here(settings) and _runtime_is_here(settings)):
        return 2
    logging.getLogger("dbos").addFilter(_is_news)
    stop = threading.Event()
    _stop_on_signals(stop)
    try:
        run(settings, stop, stages)
    except Exception:
        log.exception("worker failed")
        return 1
    return 0


def run(
    settings: WorkerSettings, stop: threading.Event, stages: Mapping[str, str] = STAGES
) -> None:
    """Serve the queue until ``stop`` is set; a job in progress is left to the next worker."""
    prepare_database(settings.database_url)
    wait_for_space()
    engine = open_engine(settings.database_url)
    executor_id = new_executor_id()
    leases = WorkerLeases(engine)
    vitals = Vitals()
    lease = Lease(
        leases,
        executor_id,
        beat_s=settings.lease_beat_s,
        ttl_s=settings.lease_ttl_s,
        vitals=vitals,
    )
    reaper = Reaper(leases, executor_id, every_s=settings.lease_beat_s, ttl_s=settings.lease_ttl_s)
    housekeeping = Housekeeping(settings, engine, every_s=_HOUSEKEEPING_EVERY_S)
    register(Pipeline(settings, engine, executor_id, stop, stages, vitals))
    DBOS(config=_config(settings, executor_id))
    DBOS.listen_queues([QUEUE_NAME])
    lease.take()
    try:
        DBOS.launch()
        DBOS.register_queue(
            QUEUE_NAME,
            worker_concurrency=1,
            polling_interval_sec=settings.queue_poll_s,
            on_conflict="always_update",
        )
        reaper.start()
        housekeeping.start()
        log.info("worker ready", extra={"worker": executor_id})
        # Never one endless wait: of a signal that comes just before it begins, Python would hear
        # only when it ends.
        while not stop.wait(_WAKE_S):
            pass
        log.info("worker stopping", extra={"worker": executor_id})
    finally:
        stop.set()
        housekeeping.stop()
        reaper.stop()
        DBOS.destroy(workflow_completion_timeout_sec=settings.stop_timeout_s)
        lease.release()
        engine.dispose()
    log.info("worker stopped", extra={"worker": executor_id})


def _runtime_is_here(settings: WorkerSettings) -> bool:
    """Tell what models will be measured on, or which setting asks for what is not here.

    A job would find that out too, but only to fail.
    """
    try:
        chosen = runtime.choose(settings.runtime)
        kernels = runtime.kernels_of(chosen)
    except Unavailable as missing:
        setting = f"BITPRESS_{(missing.field or 'runtime').upper()}"
        fault = f"{missing.detail} {missing.remedy or ''}".rstrip()
        log.error("invalid setting", extra={"setting": setting, "fault": fault})
        return False
    measured_with = {"asked": settings.runtime, "runtime": chosen, "kernels": kernels}
    log.info("runtime chosen", extra={**measured_with, "threads": settings.worker_threads})
    return True


def _device_is_here(settings: WorkerSettings) -> bool:
    """Tell whether jobs can be computed where the settings ask for it."""
    if settings.device != "cuda" or gpu_is_here():
        return True
    fault = "There is no NVIDIA GPU here. Give this process one, or use one of: auto, cpu."
    log.error("invalid setting", extra={"setting": "BITPRESS_DEVICE", "fault": fault})
    return False


def _stop_on_signals(stop: threading.Event) -> None:
    # A handler interrupts the main thread anywhere, also where it holds the event's own lock: it
    # may only put into a queue made for that, and another thread sets the event.
    received: queue.SimpleQueue[int] = queue.SimpleQueue()

    def obey() -> None:
        received.get()
        stop.set()

    threading.Thread(target=obey, name="stop", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: received.put(number))


def _config(settings: WorkerSettings, executor_id: str) -> DBOSConfig:
    return {
        "name": APPLICATION_NAME,
        "system_database_url": settings.database_url,
        "executor_id": executor_id,
        "application_version": APPLICATION_VERSION,
        # The default is pickle, which nobody but this very code could read.
        "serializer": DBOSPortableJSONSerializer(),
        "run_migrations": False,
        # At INFO it tells of its own workings; what becomes of jobs, the pipeline logs.
        "log_level": "ERROR" if settings.log_level == "ERROR" else "WARNING",
        "sys_db_idle_transaction_timeout_sec": _IDLE_TRANSACTION_S,
    }


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of DBOS says something that the pipeline has not logged itself."""
    if record.exc_info and isinstance(record.exc_info[1], _TOLD_BY_PIPELINE):
        return False
    # Of a run whose job was cancelled, deleted or taken over.
    return "Waiting for the" not in record.getMessage()
