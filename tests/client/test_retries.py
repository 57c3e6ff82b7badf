"""What is sent again, and when: by a scripted transport, with time that passes only in pauses."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from client import Client
from client.errors import BitpressProblem, Conflict, NotFound, Overloaded, ServiceUnreachable
from client.session import Retries, retry_after_s
from client.types import CompressSpec

SPEC = CompressSpec(name="vgg9", architecture="vgg9", dataset="pets")
BROKEN = httpx.ReadError("reset")
REFUSED = httpx.ConnectError("refused")
Outcome = httpx.Response | Exception


class Script:
    """Answers of a service in turn; ``received`` and ``slept`` are what came of them."""

    def __init__(self, *outcomes: Outcome, **retries: Any) -> None:
        self.outcomes = list(outcomes)
        self.received: list[httpx.Request] = []
        self.slept: list[float] = []
        self.client = Client(
            "http://service",
            transport=httpx.MockTransport(self.respond),
            sleep=self.slept.append,
            retries=Retries(**retries),
        )

    def respond(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.received.append(request)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def refusal(status: int, code: str, **headers: str) -> httpx.Response:
    document = {"type": f"urn:bitpress:problem:{code}", "title": "No"}
    return httpx.Response(
        status,
        content=json.dumps(document),
        headers={"content-type": "application/problem+json"}
        | {name.replace("_", "-"): value for name, value in headers.items()},
    )


HEALTHY = {"status": "ok"}


@pytest.mark.parametrize(
    "first",
    [
        BROKEN,
        REFUSED,
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut"),
        refusal(503, "unavailable"),
        refusal(429, "overloaded"),
        httpx.Response(502, content=b"a proxy's page"),
    ],
    ids=str,
)
def test_a_passing_failure_of_a_question_is_tried_again(first: Outcome) -> None:
    script = Script(first, httpx.Response(200, json=HEALTHY))
    assert script.client.ready().status == "ok"
    assert len(script.slept) == 1


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422, 500, 507])
def test_a_refusal_that_stays_is_raised_at_once(status: int) -> None:
    script = Script(refusal(status, "x"))
    with pytest.raises(BitpressProblem):
        script.client.ready()
    assert script.slept == []


def test_pauses_double_with_jitter_up_to_the_longest_and_end() -> None:
    script = Script(
        *[REFUSED] * 8, attempts=8, first_pause_s=1.0, longest_pause_s=8.0, patience_s=99.0
    )
    with pytest.raises(ServiceUnreachable, match="No service answers at http://service"):
        script.client.ready()
    for pause, highest in zip(script.slept, [1, 2, 4, 8, 8, 8, 8], strict=True):
        assert highest / 2 <= pause <= highest
    assert len(set(script.slept)) > 1


def test_retry_after_is_obeyed() -> None:
    script = Script(refusal(429, "overloaded", retry_after="7"), httpx.Response(200, json=HEALTHY))
    script.client.ready()
    assert script.slept == [7.0]


def test_more_than_the_patience_is_not_waited_for() -> None:
    script = Script(refusal(429, "overloaded", retry_after="61"), patience_s=60.0)
    with pytest.raises(Overloaded) as caught:
        script.client.ready()
    assert caught.value.retry_after_s == 61.0
    assert script.slept == []


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "12"}, 12.0),
        (
            {
                "retry-after": "Sat, 21 Nov 2026 12:00:30 GMT",
                "date": "Sat, 21 Nov 2026 12:00:00 GMT",
            },
            30.0,
        ),
        ({"retry-after": "Sat, 21 Nov 2026 12:00:30 GMT"}, 0.0),
    ],
)
def test_retry_after_is_read_in_both_forms(headers: dict[str, str], seconds: float) -> None:
    assert retry_after_s(httpx.Response(503, headers=headers)) == seconds


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "net.pth").write_bytes(b"weights")
    return tmp_path / "net.pth"


def test_a_job_is_sent_again_whole_and_under_the_same_key(
    job_record: Callable[..., Any], checkpoint: Path
) -> None:
    script = Script(BROKEN, refusal(503, "unavailable"), httpx.Response(202, json=job_record()))
    script.client.compress(SPEC, checkpoint)
    keys = {request.headers["idempotency-key"] for request in script.received}
    assert len(keys) == 1
    (key,) = keys
    assert 1 <= len(key) <= 255 and key.isascii() and key.isprintable()
    assert all(b"weights" in request.content for request in script.received)


def test_two_jobs_have_two_keys_and_a_given_one_is_kept(job_record: Callable[..., Any]) -> None:
    script = Script(*[httpx.Response(202, json=job_record()) for _ in range(3)])
    spec = SPEC.model_copy(update={"checkpoint": "sha256:" + "0" * 64})
    script.client.compress(spec)
    script.client.compress(spec)
    script.client.compress(spec, idempotency_key="mine")
    first, second, third = (request.headers["idempotency-key"] for request in script.received)
    assert first != second
    assert third == "mine"


def test_a_retry_of_a_job_that_may_have_arrived_is_not_repeated() -> None:
    script = Script(BROKEN)
    with pytest.raises(ServiceUnreachable, match="broke"):
        script.client.retry("job-1")
    script = Script(refusal(503, "unavailable"))
    with pytest.raises(BitpressProblem):
        script.client.retry("job-1")


def test_a_retry_of_a_job_that_never_arrived_is(job_record: Callable[..., Any]) -> None:
    script = Script(REFUSED, refusal(429, "overloaded"), httpx.Response(202, json=job_record()))
    assert script.client.retry("job-1").id == "job-1"


def test_a_removal_whose_answer_was_lost_is_a_removal() -> None:
    script = Script(BROKEN, refusal(404, "not-found"))
    script.client.delete_job("job-1")
    assert [request.method for request in script.received] == ["DELETE", "DELETE"]


@pytest.mark.parametrize("before", [[], [REFUSED], [refusal(503, "unavailable")]])
def test_what_was_not_there_to_be_removed_is_told(before: list[Outcome]) -> None:
    with pytest.raises(NotFound):
        Script(*before, refusal(404, "not-found")).client.delete_job("job-1")


def test_a_conflict_after_a_lost_answer_is_told() -> None:
    with pytest.raises(Conflict):
        Script(BROKEN, refusal(409, "conflict")).client.delete_model("vgg9")


class Cut(httpx.SyncByteStream):
    """A body that breaks off after its first bytes."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"ha"
        raise httpx.ReadError("reset")


def test_a_download_that_breaks_off_is_begun_anew(tmp_path: Path) -> None:
    script = Script(
        httpx.Response(200, stream=Cut()), httpx.Response(200, content=b"whole"), attempts=2
    )
    target = script.client.download_artifact("m", 1, tmp_path / "m.safetensors")
    assert target.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [target]


def test_a_download_that_always_breaks_off_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    script = Script(*[httpx.Response(200, stream=Cut()) for _ in range(2)], attempts=2)
    with pytest.raises(ServiceUnreachable, match="broke: reset"):
        script.client.download_artifact("m", 1, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []
