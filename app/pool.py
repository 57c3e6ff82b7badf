"""Loaded models: a bounded number of them resident, each with its own batcher.

Every request asks the store which version is meant, so a newly published one serves at once, and
a moved alias too, whichever process did it. Loading happens on a thread, once however many requests
wait for it; few may: while a new latest version is loaded, the rest is served by the one before,
for `STAND_IN_S` at most. A loaded model needs its file no more: requests under way finish on it,
whatever becomes of the version.
"""

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from numpy.typing import NDArray

from app.artifact_files import check_intact, faults_named, read_intact
from app.batcher import Batcher, BatchLimits
from models import artifact as artifacts
from models import runtime as runtimes
from models.preprocessing import InputSpec, normalise
from models.runtime import Runtime
from store.aliases import LATEST
from store.artifacts import ModelStore, ModelVersion
from store.errors import InvalidArtifact, NotFound, Unavailable

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]

_MOST_CARDS = 4096
_LOOKUPS_AT_ONCE = 16
"""Not those of the other routes, which a database that hangs may hold all."""
_LOADS_AT_ONCE = 2
"""A load takes the file's memory twice, and measures kernels, which wants cores of its own."""
STAND_IN_S = 1.5
"""Longest time for which the version before stands in for the latest; within two seconds, a new
version is to be seen by everybody."""
_MOST_WAITING = 4
"""Requests that wait for a version while another one can stand in: each holds one of the places."""
_FAULT_REMEMBERED_S = 1.0
"""A damaged file may be large, and asked for often."""
_MOST_FAULTS = 64
_log = logging.getLogger("bitpress.app")


@dataclass(frozen=True)
class Card:
    """What an artifact says about itself that its report does not."""

    input: InputSpec
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Engine:
    """What a model runs on: the names of a runtime and of its set of kernels."""

    runtime: str
    kernels: str


@dataclass
class _Loading:
    """A load under way, and how many requests wait for it."""

    task: "asyncio.Task[LoadedModel]"
    waiting: int = 0


@dataclass(frozen=True)
class _Latest:
    """What was the latest version of a model, and served as such, at a moment (monotonic)."""

    key: tuple[str, int, str]
    at: float


@dataclass(frozen=True)
class LoadedModel:
    """A model version ready to compute; ``batcher`` takes images ``(H, W, C)`` to logits."""

    version: ModelVersion
    card: Card
    runtime: Runtime
    batcher: Batcher[Pixels, Logits]


class ModelPool:
    """Serves model versions from ``store``; the least recently used ones make room.

    ``compute`` is the executor that all batches run on; its one thread keeps two models from
    competing for the same cores. What it runs is on ``threads`` of them.

    Raises:
        Unavailable: there is no such runtime here.
    """

    def __init__(
        self,
        store: ModelStore,
        *,
        runtime: str,
        threads: int,
        max_resident_models: int,
        batch_limits: BatchLimits,
        compute: futures.Executor,
    ) -> None:
        self._store = store
        self._runtime = runtime
        chosen = runtimes.choose(runtime)
        self._engine = Engine(chosen, runtimes.kernels_of(chosen))
        self._threads = threads
        self._max_resident_models = max_resident_models
        self._batch_limits = batch_limits
        self._compute = compute
        self._resident: OrderedDict[tuple[str, int, str], LoadedModel] = OrderedDict()
        self._loading: dict[tuple[str, int, str], _Loading] = {}
        self._faults: OrderedDict[tuple[str, int, str], tuple[float, Unavailable]] = OrderedDict()
        self._latest: dict[str, _Latest] = {}
        self._cards: OrderedDict[str, Card] = OrderedDict()
        self._lookups = CapacityLimiter(_LOOKUPS_AT_ONCE)
        self._loads = CapacityLimiter(_LOADS_AT_ONCE)

    async def get(self, name: str, version: int | str | None = None) -> LoadedModel:
        """Return the version of that number or alias (by default the latest), loaded.

        Raises:
            NotFound: there is no such model, version or alias.
            Unavailable: its file is missing or damaged, or the configured runtime cannot run it.
        """
        # Ends: what has been deleted is not found a second time.
        asked_at = time.monotonic()
        wanted = await self._resolve(name, version)
        while True:
            try:
                if version not in (None, LATEST):
                    return await self._loaded(wanted)
                return await self._loaded_latest(wanted, asked_at)
            except NotFound:
                # Deleted since it was looked up: another one is meant now, or none.
                wanted = await self._resolve(name, version)

    async def prepare(self, name: str, version: int) -> LoadedModel:
        """Return the version, loaded, after its file was checked now. Raises as `get` does."""
        resident = _key(await self._resolve(name, version)) in self._resident
        model = await self.get(name, version)
        if resident:
            await run_sync(check_intact, model.version, limiter=self._loads)
        return model

    async def _resolve(self, name: str, version: int | str | None) -> ModelVersion:
        return await run_sync(self._store.resolve, name, version, limiter=self._lookups)

    async def _loaded_latest(self, wanted: ModelVersion, asked_at: float) -> LoadedModel:
        """Return the version that is the latest, or the one before while many wait for this one."""
        key = _key(wanted)
        if key in self._loading and self._loading[key].waiting >= _MOST_WAITING:
            before = self._latest.get(wanted.name)
            if before is not None and time.monotonic() - before.at < STAND_IN_S:
                stand_in = self._resident.get(before.key)
                if stand_in is not None:
                    return stand_in
        model = await self._loaded(wanted)
        known = self._latest.get(wanted.name)
        if known is None or known.at < asked_at:
            self._latest[wanted.name] = _Latest(key, asked_at)
        return model

    async def _loaded(self, wanted: ModelVersion) -> LoadedModel:
        key = _key(wanted)
        if key in self._resident:
            self._resident.move_to_end(key)
            return self._resident[key]
        at, fault = self._faults.get(key, (-math.inf, None))
        if fault is not None and time.monotonic() - at < _FAULT_REMEMBERED_S:
            # A new one: whoever catches it names its field.
            raise Unavailable(fault.detail, field=fault.field, remedy=fault.remedy)
        loading = self._begin_loading(wanted)
        loading.waiting += 1
        try:
            # Shielded: one request that goes away must not take the model from the others.
            return await asyncio.shield(loading.task)
        finally:
            loading.waiting -= 1

    def _begin_loading(self, wanted: ModelVersion) -> _Loading:
        key = _key(wanted)
        if key not in self._loading:
            task = asyncio.create_task(self._load_and_keep(key, wanted))
            # Marked as seen: when every waiting request was cancelled nobody fetches the failure.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._loading[key] = _Loading(task)
        return self._loading[key]

    @property
    def engine(self) -> Engine:
        """What models are meant to run on."""
        return self._engine

    def engine_of(self, version: ModelVersion) -> Engine:
        """Return what ``version`` runs on, or is meant to where it is not loaded.

        The two differ where the runtime was not asked for by name and cannot run this model. May be
        called from any thread.
        """
        loaded = self._resident.get(_key(version))
        if loaded is None:
            return self._engine
        return Engine(loaded.runtime.name, loaded.runtime.kernels)

    def resident(self) -> list[LoadedModel]:
        """Return what is loaded now. May be called from any thread."""
        return list(self._resident.values())

    async def drop_deleted(self) -> None:
        """Let go of loaded models whose versions have been deleted, by whatever process."""
        gone = await run_sync(_deleted, self.resident(), limiter=self._lookups)
        for model in gone:
            # None where another one made room for a new one meanwhile.
            if self._resident.pop(_key(model.version), None) is not None:
                version = model.version
                _log.info(
                    "model dropped", extra={"model": version.name, "version": version.version}
                )

    async def load_latest(self) -> None:
        """Begin to load the new versions of models whose latest one is in use.

        What could not be loaded is left to those who ask for it.
        """
        for name, known in list(self._latest.items()):
            if known.key not in self._resident:
                # It had to make room: nobody asks for it at present.
                del self._latest[name]
                continue
            begun = time.monotonic()
            with suppress(NotFound, Unavailable):
                latest = await self._resolve(name, None)
                if _key(latest) in self._resident:
                    self._latest[name] = _Latest(_key(latest), begun)
                elif _key(latest) not in self._faults:
                    self._begin_loading(latest)

    async def watch(self, every_s: float) -> None:
        """Drop deleted models and load new versions again and again, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.drop_deleted()
                await self.load_latest()
            except OSError as error:
                _log.warning("models not looked after", extra={"error": type(error).__name__})

    def card(self, version: ModelVersion) -> Card:
        """Return the card of ``version``. Blocking; any thread may call it.

        Only the artifact's header is read, once; damage further on shows when the model is used.

        Raises:
            NotFound: it has been deleted meanwhile.
            Unavailable: its file is missing, of another size than it was, or its header is damaged.
        """
        with faults_named(version):
            if version.artifact_path.stat().st_size != version.artifact_bytes:
                raise InvalidArtifact("The file's size is not the recorded one.")
            card = self._cards.get(version.digest)
            if card is None:
                heading = artifacts.read_heading(version.artifact_path)
                card = self._cards[version.digest] = Card(heading.input, heading.labels)
                while len(self._cards) > _MOST_CARDS:
                    self._cards.popitem(last=False)
        return card

    async def _load_and_keep(self, key: tuple[str, int, str], version: ModelVersion) -> LoadedModel:
        begun = time.monotonic()
        try:
            artifact, runtime = await run_sync(self._load, version, limiter=self._loads)
        except Unavailable as fault:
            self._faults[key] = (time.monotonic(), fault)
            while len(self._faults) > _MOST_FAULTS:
                self._faults.popitem(last=False)
            raise
        finally:
            del self._loading[key]
        self._faults.pop(key, None)
        card = Card(artifact.input, artifact.labels)

        def run(images: Sequence[Pixels]) -> list[Logits]:
            with torch.inference_mode():
                logits = runtime.run(normalise(np.stack(images), card.input))
            return list(logits.numpy())

        model = LoadedModel(version, card, runtime, Batcher(run, self._compute, self._batch_limits))
        self._resident[key] = model
        while len(self._resident) > self._max_resident_models:
            # Requests under way hold their own reference and finish undisturbed.
            self._resident.popitem(last=False)
        _log.info(
            "model loaded",
            extra={
                "model": version.name,
                "version": version.version,
                "runtime": runtime.name,
                "kernels": runtime.kernels,
                "threads": self._threads,
                "resident_bytes": runtime.resident_bytes,
                "activation_bytes": runtime.activation_bytes,
                "device_bytes": runtime.device_bytes,
                "seconds": round(time.monotonic() - begun, 3),
            },
        )
        return model

    def _load(self, version: ModelVersion) -> tuple[artifacts.Artifact, Runtime]:
        with faults_named(version):
            artifact = artifacts.decode(read_intact(version))
        return artifact, runtimes.load(artifact, self._runtime, self._threads)


def _key(version: ModelVersion) -> tuple[str, int, str]:
    return (version.name, version.version, version.digest)


def _deleted(models: Sequence[LoadedModel]) -> list[LoadedModel]:
    return [model for model in models if not model.version.exists]
