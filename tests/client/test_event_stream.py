"""Events as they arrive: however the bytes are cut, and over connections that break."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import Client
from client.errors import NotFound, UnexpectedAnswer
from client.event_stream import EventParser
from client.types import Job, JobEvent

Reply = Callable[[httpx.Request], httpx.Response]


def written(seq: int, kind: str, data: Any, end: str = "\n") -> str:
    return f"id: {seq}{end}event: {kind}{end}data: {json.dumps(data)}{end}{end}"


@given(st.data(), st.sampled_from(["\n", "\r\n", "\r"]))
def test_events_are_the_same_however_their_bytes_are_cut(data: st.DataObject, end: str) -> None:
    sent = [(number, "progress", {"message": f"Straße {number}"}) for number in range(1, 4)]
    stream = "".join([f": sign of life{end}{end}", *(written(*one, end) for one in sent)]).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    parser = EventParser()
    found = [
        event
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)
        for event in parser.feed(stream[start:stop])
    ]
    # The last line end may still be the first half of another.
    found += parser.feed(b"\n") if end == "\r" else []
    assert [(event.seq, event.kind, event.data) for event in found] == sent


@pytest.mark.parametrize(
    "text",
    [
        ": a comment\n\n",
        "retry: 10\n\n",
        "data: {}\n\n",
        "id: 1\n\n",
        "id: x\ndata: {}\n\n",
        "id: 1\ndata: {\n\n",
        "id: 1\ndata: []\n\n",
        "id: 1\ndata: {}\n",
    ],
)
def test_what_is_no_whole_event_gives_none(text: str) -> None:
    assert EventParser().feed(text.encode()) == []


def test_data_over_several_lines_is_joined() -> None:
    (event,) = EventParser().feed(b'id: 5\ndata: {"progress":\ndata: 0.5}\n\n')
    assert (event.seq, event.kind, event.progress) == (5, "message", 0.5)


class Body(httpx.SyncByteStream):
    """Chunks, and then either the end or a break of the connection."""

    def __init__(self, *chunks: str, breaks: bool = False) -> None:
        self.chunks, self.breaks, self.closed = chunks, breaks, False

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            yield chunk.encode()
        if self.breaks:
            raise httpx.ReadError("reset")

    def close(self) -> None:
        self.closed = True


def stream(body: Body) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=body)


class Script:
    """A service whose event streams are given; ``job`` is what it answers for the job."""

    def __init__(self, *replies: httpx.Response | Exception, jobs: list[Any] | None = None) -> None:
        self.replies = list(replies)
        self.jobs = jobs or []
        self.asked: list[str | None] = []
        self.slept: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, json=self.jobs.pop(0))
        self.asked.append(request.headers.get("last-event-id"))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def client(self) -> Client:
        return Client(
            transport=httpx.MockTransport(self),
            sleep=self.slept.append,
            clock=lambda: sum(self.slept),
        )


def test_events_continue_behind_the_last_one_after_every_break() -> None:
    bodies = [
        Body(written(1, "started", {}), written(2, "stage", {})[:-5], breaks=True),
        Body(written(2, "stage", {}), written(3, "succeeded", {})),
    ]
    script = Script(
        stream(bodies[0]),
        httpx.ConnectError("refused"),
        stream(bodies[1]),
        httpx.Response(204),
    )
    with script.client() as client:
        events = list(client.events("job-1"))
    assert [(event.seq, event.kind) for event in events] == [
        (1, "started"),
        (2, "stage"),
        (3, "succeeded"),
    ]
    assert script.asked == [None, "1", "1", "3"]
    assert all(body.closed for body in bodies)


def test_events_begin_behind_the_one_that_is_named_and_none_comes_twice() -> None:
    script = Script(
        stream(Body(written(4, "stage", {}), written(5, "step", {}))), httpx.Response(204)
    )
    with script.client() as client:
        assert [event.seq for event in client.events("job-1", after=4)] == [5]
    assert script.asked == ["4", "5"]


def test_events_of_no_job_are_told(answer_problem: Callable[..., Any]) -> None:
    _, document, media_type = answer_problem(404, "not-found", "Not found", "No such job.")
    refused = httpx.Response(404, json=document, headers={"content-type": media_type})
    with Script(refused).client() as client, pytest.raises(NotFound):
        list(client.events("job-1"))


def test_an_answer_that_is_no_stream_is_told() -> None:
    page = httpx.Response(200, html="<html>")
    with (
        Script(page).client() as client,
        pytest.raises(UnexpectedAnswer, match="text/event-stream"),
    ):
        list(client.events("job-1"))


def test_waiting_follows_the_events_and_asks_for_the_job_at_the_end(
    job_record: Callable[..., Any],
) -> None:
    told = {"stage": "calibrate", "step": "conv1", "progress": 0.5, "message": "loss 0.1"}
    done = job_record(state="succeeded", progress=1.0, model={"name": "m", "version": 1})
    script = Script(
        stream(Body(written(1, "started", {}), written(2, "progress", told))),
        jobs=[job_record(), done],
    )
    seen: list[Job] = []
    heard: list[JobEvent] = []
    with script.client() as client:
        job = client.wait("job-1", seen.append, on_event=heard.append)
    assert job.state == "succeeded"
    assert [one.kind for one in heard] == ["started", "progress"]
    assert [(one.state, one.stage, one.progress) for one in seen] == [
        ("queued", None, 0.0),
        ("running", None, 0.0),
        ("running", "calibrate", 0.5),
        ("succeeded", None, 1.0),
    ]
    # The stream had ended: nothing was left to pause for.
    assert script.slept == []


def test_waiting_late_begins_at_the_present_and_does_not_run_backwards(
    job_record: Callable[..., Any],
) -> None:
    def at(second: int) -> dict[str, str]:
        return {"at": f"2026-11-20T10:00:{second:02}.500000+00:00"}

    present = {
        "state": "running",
        "stage": "evaluate",
        "progress": 0.94,
        "updated_at": "2026-11-20T10:00:30+00:00",
    }
    past = (
        written(1, "queued", at(0)),
        written(2, "stage", {**at(10), "stage": "prepare", "progress": 0.1}),
        written(3, "cancelled", {**at(20), "progress": 0.45}),
        written(4, "retried", at(29)),
    )
    news = (written(5, "stage", {**at(31), "stage": "publish", "progress": 0.99}),)
    done = job_record(state="succeeded", progress=1.0)
    script = Script(stream(Body(*past, *news)), jobs=[job_record(**present), done])
    seen: list[Job] = []
    heard: list[JobEvent] = []
    with script.client() as client:
        client.wait("job-1", seen.append, on_event=heard.append)
    assert [(one.state, one.stage, one.progress) for one in seen] == [
        ("running", "evaluate", 0.94),
        ("running", "publish", 0.99),
        ("succeeded", None, 1.0),
    ]
    assert [one.seq for one in heard] == [1, 2, 3, 4, 5]


def test_waiting_survives_streams_that_bring_nothing(job_record: Callable[..., Any]) -> None:
    script = Script(
        httpx.ReadTimeout("held back by a proxy"),
        stream(Body(": sign of life\n\n", breaks=True)),
        httpx.Response(204),
        jobs=[job_record(state="running")] * 3 + [job_record(state="cancelled")],
    )
    with script.client() as client:
        assert client.wait("job-1", interval_s=0.25).state == "cancelled"
    assert script.slept == [0.25] * 3


def test_an_epoch_that_an_event_tells_is_the_jobs(job_record: Callable[..., Any]) -> None:
    figures = {
        "epoch": 1,
        "loss": 0.5,
        "train_accuracy": 0.75,
        "images_per_second": 100.0,
        "learning_rate": 0.001,
        "seconds": 2.0,
    }
    job = Job.model_validate(job_record(state="running"))
    after = job.after(JobEvent(seq=1, kind="epoch", data=figures))
    assert [one.loss for one in after.epochs] == [0.5]
    assert job.after(JobEvent(seq=2, kind="epoch", data={"epoch": 1})).epochs == ()
