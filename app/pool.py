"""Loaded models: a bounded number of them resident, each with its own batcher.

Every request asks the store which version is meant, so a newly published one serves at once.
Loading happens on a thread, once however many requests wait for it.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from anyio.to_thread import run_sync
from numpy.typing import NDArray

from app.batcher import Batcher, BatchLimits
from models import artifact as artifacts
from models import runtime as runtimes
from models.preprocessing import InputSpec, normalise
from models.runtime import Runtime
from store.artifacts import ModelStore, ModelVersion
from store.digests import file_digest
from store.errors import InvalidArtifact, Unavailable

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]

_MOST_CARDS = 4096
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
        self._loading: dict[tuple[str, int, str], asyncio.Task[LoadedModel]] = {}
        self._cards: OrderedDict[str, Card] = OrderedDict()

    async def get(self, name: str, version: int | None = None) -> LoadedModel:
        """Return the version (by default the latest), loading it where it is not resident.

        Raises:
            NotFound: there is no such model or version.
            Unavailable: its file is missing or damaged, or the configured runtime cannot run it.
        """
        wanted = await run_sync(self._store.resolve, name, version)
        key = _key(wanted)
        if key in self._resident:
            self._resident.move_to_end(key)
            return self._resident[key]
        if key not in self._loading:
            task = asyncio.create_task(self._load_and_keep(key, wanted))
            # Marked as seen: when every waiting request was cancelled nobody fetches the failure.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._loading[key] = task
        # Shielded: one request that goes away must not take the model from the others.
        return await asyncio.shield(self._loading[key])

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

    def card(self, version: ModelVersion) -> Card:
        """Return the card of ``version``. Blocking; any thread may call it.

        Only the artifact's header is read, once; damage further on shows when the model is used.

        Raises:
            Unavailable: its file is missing, of another size than it was, or its header is damaged.
        """
        with _faults_named(version):
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
            artifact, runtime = await run_sync(self._load, version)
        finally:
            del self._loading[key]
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
                "seconds": round(time.monotonic() - begun, 3),
            },
        )
        return model

    def _load(self, version: ModelVersion) -> tuple[artifacts.Artifact, Runtime]:
        artifact = _read_checked(version)
        return artifact, runtimes.load(artifact, self._runtime, self._threads)


def _key(version: ModelVersion) -> tuple[str, int, str]:
    return (version.name, version.version, version.digest)


def _read_checked(version: ModelVersion) -> artifacts.Artifact:
    with _faults_named(version):
        if file_digest(version.artifact_path) != version.digest:
            raise InvalidArtifact("The file's digest is not the recorded one.")
        return artifacts.read(version.artifact_path)


@contextmanager
def _faults_named(version: ModelVersion) -> Iterator[None]:
    """Turn a file that cannot be used into `Unavailable`: the caller did nothing wrong."""
    fault = f"The stored file of {version.name}, version {version.version}, is"
    remedy = "Use another version, or compress the model again."
    try:
        yield
    except OSError:
        raise Unavailable(f"{fault} missing.", field="model", remedy=remedy) from None
    except InvalidArtifact as error:
        raise Unavailable(
            f"{fault} damaged: {error.detail}", field="model", remedy=remedy
        ) from error
