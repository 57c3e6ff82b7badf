"""Which models are loaded, how often, and what becomes of a prediction nobody waits for."""

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.batcher import BatchLimits
from app.pool import Engine, ModelPool
from models import artifact as artifacts
from models import runtime
from models.preprocessing import InputSpec
from store.artifacts import ModelStore
from store.errors import NotFound, Unavailable

INPUT_SPEC = InputSpec(3, 8, 8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture
def place(tmp_path: Path) -> Any:
    """What `publish` needs of a service: a folder for models."""
    return SimpleNamespace(settings=SimpleNamespace(models_dir=tmp_path / "models"))


@pytest.fixture
def pool(place: Any) -> Iterator[ModelPool]:
    place.settings.models_dir.mkdir()
    with ThreadPoolExecutor(1) as compute:
        yield ModelPool(
            ModelStore(place.settings.models_dir),
            runtime="reference",
            threads=1,
            max_resident_models=2,
            batch_limits=BatchLimits(4, 0.0, 8),
            compute=compute,
        )


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The artifacts that were loaded into a runtime, in order."""
    artifacts: list[Any] = []
    load = runtime.load

    def counted(artifact: Any, name: str, threads: int) -> Any:
        artifacts.append(artifact)
        return load(artifact, name, threads)

    monkeypatch.setattr(runtime, "load", counted)
    return artifacts


def names(pool: ModelPool) -> list[tuple[str, int]]:
    return [(model.version.name, model.version.version) for model in pool.resident()]


def test_concurrent_requests_load_a_model_once(
    pool: ModelPool, place: Any, publish: Any, loaded: list[Any]
) -> None:
    publish(place, "one")

    async def test() -> None:
        models = await asyncio.gather(*(pool.get("one") for _ in range(5)))
        assert len({id(model) for model in models}) == 1
        assert await pool.get("one", 1) is models[0]

    asyncio.run(test())
    assert len(loaded) == 1


def test_a_request_that_goes_away_does_not_take_the_model_along(
    pool: ModelPool, place: Any, publish: Any, loaded: list[Any]
) -> None:
    publish(place, "one")

    async def test() -> None:
        leaving = asyncio.create_task(pool.get("one"))
        staying = asyncio.create_task(pool.get("one"))
        await asyncio.sleep(0)
        leaving.cancel()
        assert (await staying).version.name == "one"

    asyncio.run(test())
    assert len(loaded) == 1


def test_the_least_recently_used_model_makes_room(
    pool: ModelPool, place: Any, publish: Any, loaded: list[Any]
) -> None:
    for name in ("a", "b", "c"):
        publish(place, name)

    async def test() -> None:
        for name in ("a", "b", "a", "c"):
            await pool.get(name)
        assert names(pool) == [("a", 1), ("c", 1)]
        await pool.get("b")
        assert names(pool) == [("c", 1), ("b", 1)]

    asyncio.run(test())
    assert len(loaded) == 4


def test_the_latest_version_is_asked_for_anew_each_time(
    pool: ModelPool, place: Any, publish: Any
) -> None:
    publish(place, "one", seed=1)

    async def test() -> None:
        assert (await pool.get("one")).version.version == 1
        await asyncio.to_thread(publish, place, "one", seed=2)
        assert (await pool.get("one")).version.version == 2
        assert (await pool.get("one", 1)).version.version == 1

    asyncio.run(test())


def test_a_failed_load_is_tried_again(pool: ModelPool, place: Any, publish: Any) -> None:
    version = publish(place, "one")
    whole = version.artifact_path.read_bytes()

    async def test() -> None:
        with pytest.raises(NotFound):
            await pool.get("absent")
        version.artifact_path.write_bytes(whole[:-1])
        with pytest.raises(Unavailable, match="damaged"):
            await pool.get("one")
        version.artifact_path.write_bytes(whole)
        assert (await pool.get("one")).card.labels == ("cat", "dog", "owl")

    asyncio.run(test())


def test_a_card_is_the_header_alone_and_read_once(
    pool: ModelPool, place: Any, publish: Any, loaded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = publish(place, "one")
    card = pool.card(version)
    assert card.labels == ("cat", "dog", "owl")
    assert card.input == INPUT_SPEC
    monkeypatch.setattr(artifacts, "read_heading", None)
    assert pool.card(version) is card
    assert loaded == []
    assert pool.engine_of(version) == pool.engine == Engine("reference", "torch")


def test_a_file_that_is_gone_or_cut_off_has_no_card(
    pool: ModelPool, place: Any, publish: Any
) -> None:
    version = publish(place, "one")
    pool.card(version)
    version.artifact_path.write_bytes(version.artifact_path.read_bytes()[:-1])
    with pytest.raises(Unavailable, match="damaged"):
        pool.card(version)
    version.artifact_path.unlink()
    with pytest.raises(Unavailable, match="missing"):
        pool.card(version)
    with pytest.raises(Unavailable, match="missing"):
        asyncio.run(pool.get("one"))


def waiting_line(service: Any) -> str:
    lines = service.http.get("/metrics").text.splitlines()
    return next((line for line in lines if line.startswith("bitpress_model_waiting_images{")), "")


def test_a_prediction_nobody_waits_for_is_dropped(
    serve: Any, publish: Any, images: list[bytes]
) -> None:
    # A batch of one never fills and never times out, so the request stays in the queue.
    service = serve(max_batch_wait_ms=1e9, max_batch_images=2)
    publish(service, "one")
    head = (
        "POST /predict?model=one HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        f"Content-Length: {len(images[0])}\r\n\r\n"
    )

    def poll(count: float) -> bool:
        return any(waiting_line(service).endswith(f"}} {count}") for _ in range(2000))

    with socket.create_connection(service.address) as connection:
        connection.sendall(head.encode() + images[0])
        assert poll(1.0)
    assert poll(0.0)
    assert 'route="/predict",status="499"' in service.http.get("/metrics").text
    # The place is free again, and what was dropped is in nobody's batch.
    files = [("images", ("a", images[0])), ("images", ("b", images[1]))]
    answer = service.http.post("/predict", data={"model": "one"}, files=files)
    assert len(answer.json()["predictions"]) == 2
