"""GET /jobs/{id}/events: in order, to the end, again from anywhere, and in nobody's way."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from store.database import open_engine
from store.job_events import JobEvents
from store.job_record import Job
from store.jobs import JobStore
from store.specs import parse_spec

# Of conftest.py, which cannot be imported.
Service = Any
Serve = Any
WaitUntil = Any

SPEC = {
    "name": "digits",
    "architecture": "digits_cnn",
    "dataset": "digits",
    "checkpoint": "sha256:" + "0" * 64,
}
Frame = tuple[int, str, dict[str, Any]]


class Jobs:
    """Jobs in the service's database that do what the test says, as a worker would."""

    def __init__(self, url: str) -> None:
        self._store = JobStore(url)
        self._engine = open_engine(url)
        self.events = JobEvents(self._engine)

    def submit(self) -> Job:
        return self._store.submit(parse_spec(SPEC))

    def tell(self, job_id: str, count: int, first: int = 0) -> None:
        for number in range(first, first + count):
            data = {"layer": "conv1", "base": 1, "sweep": number, "loss": 0.5}
            self.events.append(job_id, "sweep", data)

    def end(self, job_id: str) -> None:
        self._store._client.cancel_workflow(job_id)

    def go_on(self, job_id: str) -> None:
        """Have the job run again after its end."""
        schema = None if self._engine.dialect.name == "sqlite" else "dbos"
        table = sa.table(
            "workflow_status",
            *(sa.column(name) for name in ("workflow_uuid", "status", "completed_at")),
            schema=schema,
        )
        with self._engine.begin() as connection:
            connection.execute(
                table.update()
                .where(table.c.workflow_uuid == job_id)
                .values(status="PENDING", completed_at=None)
            )
        self.events.reopen(job_id)

    def close(self) -> None:
        self._store.close()
        self._engine.dispose()


@pytest.fixture(scope="module")
def jobs(service: Service) -> Iterator[Jobs]:
    jobs = Jobs(service.settings.database_url)
    yield jobs
    jobs.close()


def frames(lines: Iterator[str]) -> Iterator[Frame]:
    """Read server-sent events as the specification of EventSource says."""
    fields: dict[str, str] = {}
    for line in lines:
        if line == "":
            if "data" in fields:
                yield int(fields["id"]), fields["event"], json.loads(fields["data"])
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")


def read(
    http: httpx.Client, job_id: str, after: int | None = None, most: int | None = None
) -> list[Frame]:
    """Read a job's events to the end of the stream, or until there are ``most``."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    found: list[Frame] = []
    with http.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        for frame in frames(answer.iter_lines()):
            found.append(frame)
            if len(found) == most:
                break
    return found


def test_a_queued_job_is_followed_to_its_end(service: Service, jobs: Jobs) -> None:
    job = jobs.submit()
    with service.http.stream("GET", f"/jobs/{job.id}/events") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-accel-buffering"] == "no"
        assert "content-length" not in answer.headers
        found = frames(answer.iter_lines())
        assert next(found)[:2] == (1, "queued")
        jobs.tell(job.id, 3)
        assert [next(found)[:2] for _ in range(3)] == [(2, "sweep"), (3, "sweep"), (4, "sweep")]
        jobs.end(job.id)
        ((seq, kind, data),) = list(found)
    now = service.http.get(f"/jobs/{job.id}").json()
    at = data.pop("at")
    assert (seq, kind, data) == (5, "cancelled", now)
    assert at == now["finished_at"]


def test_a_stream_cut_anywhere_goes_on_exactly_there(service: Service, jobs: Jobs) -> None:
    job = jobs.submit()
    jobs.events.open(job.id, job.created_at)
    jobs.tell(job.id, 20)
    jobs.end(job.id)
    whole = read(service.http, job.id)
    assert [seq for seq, _, _ in whole] == list(range(1, 23))
    assert [data["sweep"] for _, kind, data in whole if kind == "sweep"] == list(range(20))
    for cut in range(1, len(whole)):
        first = read(service.http, job.id, most=cut)
        assert first + read(service.http, job.id, after=first[-1][0]) == whole
    answer = service.http.get(f"/jobs/{job.id}/events", params={"after": 21})
    assert list(frames(iter(answer.text.splitlines()))) == whole[21:]


def test_a_live_stream_cut_again_and_again_misses_nothing(service: Service, jobs: Jobs) -> None:
    job = jobs.submit()

    def work() -> None:
        for first in range(0, 120, 4):
            jobs.tell(job.id, 4, first)
        jobs.end(job.id)

    worker = threading.Thread(target=work)
    worker.start()
    found: list[Frame] = []
    while not found or found[-1][1] != "cancelled":
        found += read(service.http, job.id, after=found[-1][0] if found else None, most=7)
    worker.join()
    # The job was told of before anybody asked: then nobody says any more that it is queued.
    assert [seq for seq, _, _ in found] == list(range(1, len(found) + 1))
    assert [data["sweep"] for _, kind, data in found if kind == "sweep"] == list(range(120))


def test_behind_the_end_there_is_nothing(service: Service, jobs: Jobs) -> None:
    job = jobs.submit()
    jobs.end(job.id)
    last = read(service.http, job.id)[-1][0]
    answer = service.http.get(f"/jobs/{job.id}/events", headers={"Last-Event-ID": str(last)})
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["cache-control"] == "no-store"
    # The header counts, as a browser repeats the address it began with.
    again = service.http.get(
        f"/jobs/{job.id}/events", params={"after": 0}, headers={"Last-Event-ID": str(last)}
    )
    assert again.status_code == 204


def test_a_job_that_is_tried_again_goes_on_with_its_events(service: Service, jobs: Jobs) -> None:
    job = jobs.submit()
    jobs.end(job.id)
    before = read(service.http, job.id)
    jobs.go_on(job.id)
    with service.http.stream(
        "GET", f"/jobs/{job.id}/events", headers={"Last-Event-ID": str(before[-1][0])}
    ) as answer:
        found = frames(answer.iter_lines())
        assert next(found)[1] == "retried"
        jobs.end(job.id)
        assert [kind for _, kind, _ in found] == ["cancelled"]
    kinds = [kind for _, kind, _ in read(service.http, job.id)]
    assert kinds == ["queued", "cancelled", "retried", "cancelled"]


def test_a_stream_ends_when_its_job_is_deleted(service: Service, jobs: Jobs) -> None:
    job = jobs.submit()
    with service.http.stream("GET", f"/jobs/{job.id}/events") as answer:
        found = frames(answer.iter_lines())
        assert next(found)[1] == "queued"
        jobs.end(job.id)
        assert service.http.delete(f"/jobs/{job.id}").status_code == 204
        assert [kind for _, kind, _ in found] in ([], ["cancelled"])
    assert service.http.get(f"/jobs/{job.id}/events").status_code == 404


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "", "1e3", "9" * 16, "٣"])
def test_an_id_that_is_none_is_refused(service: Service, jobs: Jobs, value: str) -> None:
    job = jobs.submit()
    answer = service.http.get(
        f"/jobs/{job.id}/events", headers={"Last-Event-ID": value.encode("utf-8")}
    )
    assert answer.status_code == 422
    assert answer.json()["field"] == "Last-Event-ID"


def test_an_event_that_is_yet_to_come_cannot_be_the_last(service: Service, jobs: Jobs) -> None:
    job = jobs.submit()
    answer = service.http.get(f"/jobs/{job.id}/events", headers={"Last-Event-ID": "2"})
    assert (answer.status_code, answer.json()["field"]) == (422, "Last-Event-ID")


def test_an_unknown_job_has_no_events(service: Service) -> None:
    answer = service.http.get("/jobs/nobody/events")
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:bitpress:problem:not-found")


def test_a_reader_who_leaves_gives_the_place_back(serve: Serve, wait_until: WaitUntil) -> None:
    service = serve(max_event_streams=1)
    jobs = Jobs(service.settings.database_url)
    job = jobs.submit()
    url = f"/jobs/{job.id}/events"
    with service.http.stream("GET", url) as answer:
        found = frames(answer.iter_lines())
        assert next(found)[1] == "queued"
        refused = httpx.get(service.http.base_url.join(url), trust_env=False)
        assert refused.status_code == 429
        assert refused.headers["retry-after"]
        assert refused.json()["type"] == "urn:bitpress:problem:overloaded"
        # Nobody else is kept from anything.
        assert httpx.get(service.http.base_url.join("/jobs"), trust_env=False).status_code == 200
    streams = service.app.state.services.streams
    wait_until(lambda: streams._open == 0, "the stream to be given up")
    assert streams._feeds == {}
    jobs.end(job.id)
    assert read(service.http, job.id)[-1][1] == "cancelled"
    assert streams._open == 0
    jobs.close()


def test_many_readers_get_the_same(service: Service, jobs: Jobs) -> None:
    job = jobs.submit()
    readers = 60

    async def follow(http: httpx.AsyncClient, ready: asyncio.Semaphore) -> list[Frame]:
        async with http.stream("GET", f"/jobs/{job.id}/events") as answer:
            ready.release()
            lines = [line async for line in answer.aiter_lines()]
        return list(frames(iter(lines)))

    async def all_of_them() -> list[list[Frame]]:
        ready = asyncio.Semaphore(0)
        limits = httpx.Limits(max_connections=readers)
        async with httpx.AsyncClient(
            base_url=service.http.base_url, limits=limits, timeout=60, trust_env=False
        ) as http:
            following = [asyncio.create_task(follow(http, ready)) for _ in range(readers)]
            for _ in range(readers):
                await ready.acquire()
            await asyncio.to_thread(jobs.tell, job.id, 50)
            await asyncio.to_thread(jobs.end, job.id)
            return await asyncio.gather(*following)

    found = asyncio.run(all_of_them())
    assert all(one == found[0] for one in found)
    assert [data["sweep"] for _, kind, data in found[0] if kind == "sweep"] == list(range(50))
    assert service.app.state.services.streams._open == 0


def connection_to(service: Service, job_id: str, buffer_bytes: int) -> socket.socket:
    """Ask for the job's events over a connection that takes few bytes unread."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    connection.settimeout(60)
    connection.connect(service.address)
    connection.sendall(f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return connection


def test_a_slow_reader_holds_nobody_up_and_loses_nothing(service: Service, jobs: Jobs) -> None:
    job = jobs.submit()
    padding = "x" * 20_000
    with connection_to(service, job.id, 4_096) as slow:
        assert slow.recv(100).startswith(b"HTTP/1.1 200")
        for number in range(300):
            jobs.events.append(job.id, "sweep", {"sweep": number, "padding": padding})
        jobs.end(job.id)
        # Another one is done long before the slow one has begun.
        quick = read(service.http, job.id)
        assert quick[-1][1] == "cancelled"
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            body += slow.recv(1_000_000)
    sweeps = [json.loads(line[6:])["sweep"] for line in body.splitlines() if b'"sweep"' in line]
    assert sweeps == list(range(300))
