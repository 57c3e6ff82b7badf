"""Which models are loaded, how often, and what becomes of a prediction nobody waits for."""

import asyncio
import gc
import socket
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import app.pool
from app.batcher import BatchLimits
from app.pool import Engine, ModelPool
from models import artifact as artifacts
from models import runtime
from models.preprocessing import InputSpec
from store.artifacts import ModelStore
from store.errors import NotFound, Unavailable

PIXELS = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
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


def test_another_process_is_heard_at_the_next_request(
    pool: ModelPool, place: Any, publish: Any
) -> None:
    """Publication, alias and deletion."""
    publish(place, "one", seed=1)
    other = ModelStore(place.settings.models_dir)

    async def number(version: int | str | None = None) -> int:
        return (await pool.get("one", version)).version.version

    async def test() -> None:
        assert await number() == 1
        publish(place, "one", seed=2)
        assert await number() == 2
        other.set_alias("one", "live", 1)
        assert await number("live") == 1
        other.set_alias("one", "live", 2)
        assert await number("live") == 2
        other.delete("one", 1)
        with pytest.raises(NotFound):
            await number(1)
        publish(place, "one", seed=3)
        other.set_alias("one", "live", 3)
        other.delete("one", 2)
        assert await number() == await number("live") == 3

    asyncio.run(test())


@pytest.mark.parametrize("version", [None, "latest", "live"])
def test_a_version_deleted_before_it_could_be_loaded_gives_way_to_the_one_meant_now(
    pool: ModelPool, place: Any, publish: Any, version: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(place, "one", seed=1)
    store = ModelStore(place.settings.models_dir)
    store.set_alias("one", "live", 1)
    resolve = pool._store.resolve

    def resolve_then_delete(*asked: Any) -> Any:
        monkeypatch.undo()
        found = resolve(*asked)
        publish(place, "one", seed=2)
        store.set_alias("one", "live", 2)
        store.delete("one", 1)
        return found

    monkeypatch.setattr(pool._store, "resolve", resolve_then_delete)
    assert asyncio.run(pool.get("one", version)).version.version == 2


def test_a_version_deleted_before_it_could_be_loaded_is_not_found_by_its_number(
    pool: ModelPool, place: Any, publish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(place, "one")
    resolve = pool._store.resolve

    def resolve_then_delete(*asked: Any) -> Any:
        monkeypatch.undo()
        found = resolve(*asked)
        ModelStore(place.settings.models_dir).delete("one", 1)
        return found

    monkeypatch.setattr(pool._store, "resolve", resolve_then_delete)
    with pytest.raises(NotFound):
        asyncio.run(pool.get("one", 1))


def test_a_file_damaged_after_it_was_loaded_serves_until_it_is_loaded_anew(
    pool: ModelPool, place: Any, publish: Any
) -> None:
    version = publish(place, "one")
    for name in ("two", "three"):
        publish(place, name)

    async def test() -> None:
        model = await pool.get("one")
        data = bytearray(version.artifact_path.read_bytes())
        data[-1] ^= 1
        version.artifact_path.write_bytes(data)
        assert await pool.get("one") is model
        assert len((await model.batcher.submit([PIXELS]))[0]) == 1
        with pytest.raises(Unavailable, match="digest"):
            await pool.prepare("one", 1)
        for name in ("two", "three"):
            await pool.get(name)
        with pytest.raises(Unavailable, match="digest"):
            await pool.get("one")

    asyncio.run(test())


def test_deleted_and_evicted_models_finish_what_they_have_begun(
    pool: ModelPool, place: Any, publish: Any
) -> None:
    publish(place, "one")
    for name in ("two", "three"):
        publish(place, name)
    store = ModelStore(place.settings.models_dir)

    async def test() -> None:
        model = await pool.get("one")
        expected = (await model.batcher.submit([PIXELS]))[0][0]
        begun = asyncio.create_task(model.batcher.submit([PIXELS]))
        await asyncio.sleep(0)
        store.delete("one", 1)
        await pool.drop_deleted()
        assert names(pool) == []
        for name in ("two", "three"):
            await pool.get(name)
        assert np.array_equal((await begun)[0][0], expected)
        assert np.array_equal((await model.batcher.submit([PIXELS]))[0][0], expected)

    asyncio.run(test())


def test_a_dropped_model_is_freed(pool: ModelPool, place: Any, publish: Any) -> None:
    publish(place, "one")

    async def test() -> Any:
        model = await pool.get("one")
        await model.batcher.submit([PIXELS])
        runtime = weakref.ref(model.runtime)
        ModelStore(place.settings.models_dir).delete("one", 1)
        await pool.drop_deleted()
        return runtime

    runtime = asyncio.run(test())
    gc.collect()
    assert runtime() is None


def test_only_what_was_deleted_is_dropped(
    pool: ModelPool, place: Any, publish: Any, caplog: pytest.LogCaptureFixture
) -> None:
    publish(place, "one")
    publish(place, "two")

    async def test() -> None:
        for name in ("one", "two"):
            await pool.get(name)
        ModelStore(place.settings.models_dir).delete("one", 1)
        await pool.drop_deleted()
        assert names(pool) == [("two", 1)]

    with caplog.at_level("INFO", "bitpress.app"):
        asyncio.run(test())
    dropped = [vars(record) for record in caplog.records if record.message == "model dropped"]
    assert [(one["model"], one["version"]) for one in dropped] == [("one", 1)]


def test_the_watch_goes_on_after_a_fault(
    pool: ModelPool, place: Any, publish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(place, "one")
    looks = 0

    async def broken() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            monkeypatch.undo()
        raise OSError

    async def test() -> None:
        await pool.get("one")
        ModelStore(place.settings.models_dir).delete("one", 1)
        monkeypatch.setattr(pool, "drop_deleted", broken)
        watching = asyncio.create_task(pool.watch(0.001))
        async with asyncio.timeout(30):
            while names(pool):
                await asyncio.sleep(0.001)
        watching.cancel()
        assert looks == 3

    asyncio.run(test())


def test_few_models_are_loaded_at_once(
    place: Any, publish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = runtime.load
    under_way, most = 0, 0
    lock = threading.Lock()
    both = threading.Barrier(2)

    def slow(artifact: Any, name: str, threads: int) -> Any:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        both.wait(30)
        try:
            return load(artifact, name, threads)
        finally:
            with lock:
                under_way -= 1

    place.settings.models_dir.mkdir()
    wanted = [f"model-{number}" for number in range(6)]
    for name in wanted:
        publish(place, name)
    monkeypatch.setattr(runtime, "load", slow)
    with ThreadPoolExecutor(1) as compute:
        pool = ModelPool(
            ModelStore(place.settings.models_dir),
            runtime="reference",
            threads=1,
            max_resident_models=6,
            batch_limits=BatchLimits(4, 0.0, 8),
            compute=compute,
        )

        async def test() -> None:
            await asyncio.gather(*(pool.get(name) for name in wanted))

        asyncio.run(test())
    assert most == 2


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
        async with asyncio.timeout(30):
            while True:
                # The fault is remembered for a moment, so that many requests read the file once.
                with suppress(Unavailable):
                    assert (await pool.get("one")).card.labels == ("cat", "dog", "owl")
                    return
                await asyncio.sleep(0.01)

    asyncio.run(test())


def test_a_damaged_file_is_not_read_by_every_request(
    pool: ModelPool, place: Any, publish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = publish(place, "one")
    version.artifact_path.write_bytes(bytes(version.artifact_bytes))
    monkeypatch.setattr(app.pool, "_FAULT_REMEMBERED_S", 1e9)
    read, reads = app.pool.read_intact, []
    monkeypatch.setattr(app.pool, "read_intact", lambda one: reads.append(one) or read(one))

    async def test() -> None:
        faults = []
        for _ in range(5):
            with pytest.raises(Unavailable, match="digest") as caught:
                await pool.get("one")
            faults.append(caught.value)
        assert len({id(fault) for fault in faults}) == 5
        await pool.load_latest()

    asyncio.run(test())
    assert len(reads) == 1


def test_a_new_version_is_loaded_before_it_is_asked_for(
    pool: ModelPool, place: Any, publish: Any
) -> None:
    publish(place, "one", seed=1)
    publish(place, "two")

    async def test() -> None:
        await pool.get("one")
        publish(place, "one", seed=2)
        watching = asyncio.create_task(pool.watch(0.001))
        async with asyncio.timeout(30):
            while ("one", 2) not in names(pool):
                await asyncio.sleep(0.001)
        watching.cancel()
        # Models that nobody asked for are left alone.
        assert names(pool) == [("one", 1), ("one", 2)]

    asyncio.run(test())


def test_while_a_new_version_is_loaded_few_wait_and_the_one_before_stands_in(
    pool: ModelPool, place: Any, publish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(place, "one", seed=1)
    load, go_on = runtime.load, threading.Event()

    def slow(*arguments: Any) -> Any:
        assert go_on.wait(30)
        return load(*arguments)

    def ask(count: int, version: int | None = None) -> "list[asyncio.Task[Any]]":
        return [asyncio.create_task(pool.get("one", version)) for _ in range(count)]

    async def test() -> None:
        old = await pool.get("one")
        monkeypatch.setattr(app.pool, "STAND_IN_S", 1e9)
        monkeypatch.setattr(runtime, "load", slow)
        publish(place, "one", seed=2)
        by_number = ask(2, 2)
        asked = ask(10)
        async with asyncio.timeout(30):
            while sum(one.done() for one in asked) < 8:
                await asyncio.sleep(0.001)
        assert all(one.result() is old for one in asked if one.done())
        # For so long only: then all of them wait.
        monkeypatch.setattr(app.pool, "STAND_IN_S", 0.0)
        late = ask(3)
        go_on.set()
        for one in (*by_number, *late, *asked):
            await one
        assert {one.result().version.version for one in (*by_number, *late)} == {2}
        assert sum(one.result().version.version == 2 for one in asked) == 2

    asyncio.run(test())


def test_a_version_that_was_asked_for_by_its_number_never_stands_in(
    pool: ModelPool, place: Any, publish: Any
) -> None:
    for seed in (1, 2):
        publish(place, "one", seed=seed)

    async def test() -> None:
        await pool.get("one", 1)
        models = await asyncio.gather(*(pool.get("one") for _ in range(20)))
        assert {model.version.version for model in models} == {2}

    asyncio.run(test())


def test_a_model_used_by_number_does_not_draw_its_latest_version_in(
    pool: ModelPool, place: Any, publish: Any, loaded: list[Any]
) -> None:
    for seed in (1, 2):
        publish(place, "one", seed=seed)

    async def test() -> None:
        await pool.get("one", 1)
        await pool.load_latest()
        assert pool._loading == {}

    asyncio.run(test())
    assert len(loaded) == 1


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
