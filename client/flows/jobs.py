"""Compression jobs: queue, look up, follow, control."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from client.answers import json_object, of_media_type, parsed, validated
from client.errors import (
    BitpressProblem,
    Overloaded,
    ServiceUnreachable,
    Unavailable,
    UnexpectedAnswer,
)
from client.event_stream import EventStream
from client.exchange import UPLOAD_SILENCE_S, Emit, Flow, Part, Pause, Request
from client.session import Session
from client.types import CompressSpec, Forecast, Job, JobEvent, JobPage, JobState, Report
from client.upload import Progress, file_upload

# A service that restarts, or whose database is away: its jobs live on.
PASSING = (ServiceUnreachable, Unavailable, Overloaded)


def compress(
    session: Session,
    spec: CompressSpec,
    checkpoint: Path | None,
    progress: Progress | None,
    idempotency_key: str | None,
) -> Flow[Job]:
    """Queue a job; the key makes a second attempt to send the same request harmless."""
    request = Request(
        "POST",
        "/compress",
        headers={"idempotency-key": idempotency_key or uuid.uuid4().hex},
        parts=_compress_parts(spec, checkpoint, progress),
        silence_s=UPLOAD_SILENCE_S,
        safe_to_repeat=True,
    )
    return parsed(Job, (yield from session.answer(request)))


def dry_run(
    session: Session, spec: CompressSpec, checkpoint: Path | None, progress: Progress | None
) -> Flow[Forecast]:
    """Check a job and foresee what it comes to; nothing is kept."""
    request = Request(
        "POST",
        "/compress",
        params={"dry_run": "true"},
        parts=_compress_parts(spec, checkpoint, progress),
        silence_s=UPLOAD_SILENCE_S,
        safe_to_repeat=True,
    )
    return parsed(Forecast, (yield from session.answer(request)))


def page(
    session: Session,
    state: JobState | Sequence[JobState] | None,
    model: str | None,
    limit: int | None,
    cursor: str | None,
) -> Flow[JobPage]:
    """Return one page of jobs."""
    params = {"state": state, "model": model, "limit": limit, "cursor": cursor}
    return parsed(JobPage, (yield from session.answer(Request("GET", "/jobs", params=params))))


def every(
    session: Session,
    state: JobState | Sequence[JobState] | None,
    model: str | None,
    page_size: int | None,
) -> Flow[None]:
    """Emit every job, page after page."""
    cursor: str | None = None
    while True:
        found = yield from page(session, state, model, page_size, cursor)
        for job in found.jobs:
            yield Emit(job)
        cursor = found.next
        if cursor is None:
            return


def job(session: Session, job_id: str) -> Flow[Job]:
    """Return a job as it stands."""
    return parsed(Job, (yield from session.answer(Request("GET", _path(job_id)))))


def cancel(session: Session, job_id: str) -> Flow[Job]:
    """Cancel a job; a second request for it changes nothing, and so may be sent."""
    request = Request("POST", _path(job_id, "cancel"), safe_to_repeat=True)
    return parsed(Job, (yield from session.answer(request)))


def retry(session: Session, job_id: str) -> Flow[Job]:
    """Let a job go on that failed or was cancelled. Not repeated: a job may fail once more."""
    return parsed(Job, (yield from session.answer(Request("POST", _path(job_id, "retry")))))


def delete(session: Session, job_id: str) -> Flow[None]:
    """Remove the record of a finished job."""
    yield from session.answer(Request("DELETE", _path(job_id)))


def report(session: Session, job_id: str) -> Flow[Report]:
    """Return what a finished job measured."""
    answer = yield from session.answer(Request("GET", _path(job_id, "report")))
    document = json_object(answer)
    return validated(Report, {**document, "document": document}, answer)


def report_page(session: Session, job_id: str) -> Flow[str]:
    """Return the report as an HTML page."""
    request = Request("GET", _path(job_id, "report"), headers={"accept": "text/html"})
    return of_media_type((yield from session.answer(request)), "text/html").text


def events(session: Session, job_id: str, after: int | None) -> Flow[None]:
    """Emit a job's events until its last, over as many connections as it takes.

    A connection that breaks is made anew behind the last event that came, for as long as the
    service answers at all.
    """
    stream = EventStream(session, _path(job_id, "events"), after)
    fruitless = 0
    while (yield from stream.open()):
        came = False
        while (found := (yield from stream.read())) is not None:
            for event in found:
                came = True
                yield Emit(event)
        fruitless = 0 if came else fruitless + 1
        yield Pause(session.retries.pause_s(fruitless + 1, session.jitter()))


def wait(
    session: Session,
    job_id: str,
    on_update: Callable[[Job], None] | None,
    on_event: Callable[[JobEvent], None] | None,
    interval_s: float,
    patience_s: float,
) -> Flow[Job]:
    """Return the job once it is finished, following its events, or asking now and then.

    Before every connection the job itself is asked for: so the end comes even where events do not
    (an older service, a proxy that holds them back).
    """
    # Its own patience, longer than that of a single request.
    once = replace(session, retries=replace(session.retries, attempts=1))
    follower = _Follower(EventStream(once, _path(job_id, "events"), None), on_update, on_event)
    last_answer = session.clock()
    while True:
        followed = False
        try:
            found = yield from job(once, job_id)
            last_answer = session.clock()
            follower.update(found)
            if found.finished:
                return found
            followed = yield from follower.follow(found)
            last_answer = session.clock()
        except PASSING:
            if session.clock() - last_answer >= patience_s:
                raise
        if not followed:
            yield Pause(interval_s)


@dataclass
class _Follower:
    """Who is told of a job's events; ``stream`` is None where the service has none."""

    stream: EventStream | None
    on_update: Callable[[Job], None] | None
    on_event: Callable[[JobEvent], None] | None

    def update(self, job: Job) -> None:
        if self.on_update is not None:
            self.on_update(job)

    def follow(self, job: Job) -> Flow[bool]:
        """Tell what one connection brings; return whether it brought anything.

        Who joins late hears of what was before, but is shown the job as it is now.
        """
        if self.stream is None:
            return False
        came = False
        try:
            if not (yield from self.stream.open()):
                return False
        except PASSING:
            return False
        except (BitpressProblem, UnexpectedAnswer):
            self.stream = None
            return False
        while (events := (yield from self.stream.read())) is not None:
            for event in events:
                came = True
                if self.on_event is not None:
                    self.on_event(event)
                if job.knows(event):
                    continue
                job = job.after(event)
                self.update(job)
        return came


def _compress_parts(
    spec: CompressSpec, checkpoint: Path | None, progress: Progress | None
) -> Sequence[Part]:
    # The specification first: a mistake in it is then answered before the file has come.
    parts = [Part("spec", None, lambda: spec.to_json().encode(), "application/json")]
    if checkpoint is not None:
        parts.append(file_upload(checkpoint).part("checkpoint", progress))
    return parts


def _path(job_id: str, *below: str) -> str:
    return "/".join(["/jobs", quote(job_id, safe=""), *below])
