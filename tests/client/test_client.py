import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.client import Client
from client.errors import BitpressProblem, ServiceUnreachable, UnexpectedAnswer, UnusableFile
from client.session import Retries
from client.types import CompressSpec, Job
from client.upload import dataset_upload

SPEC = CompressSpec(name="vgg9", architecture="vgg9", dataset="pets")


@pytest.fixture
def client(service: Any) -> Iterator[Client]:
    with Client(service.url) as opened:
        yield opened


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "pets.zip").write_bytes(b"an archive")
    return tmp_path / "pets.zip"


def test_compress_sends_the_specification_and_the_file(
    client: Client, service: Any, job_record: Callable[..., Any], tmp_path: Path
) -> None:
    service.answers["POST /compress"] = (202, job_record())
    (tmp_path / "net.pth").write_bytes(b"weights")
    sent: list[tuple[int, int]] = []
    job = client.compress(SPEC, tmp_path / "net.pth", lambda *counts: sent.append(counts))
    assert (job.id, job.state, job.finished) == ("job-1", "queued", False)
    (request,) = service.received
    assert request.parts == [
        ("spec", None, b'{"name":"vgg9","architecture":"vgg9","dataset":"pets"}'),
        ("checkpoint", "net.pth", b"weights"),
    ]
    assert sent == [(7, 7)]


def test_compress_of_an_earlier_upload_sends_no_file(
    client: Client, service: Any, job_record: Callable[..., Any]
) -> None:
    service.answers["POST /compress"] = (202, job_record())
    client.compress(SPEC.model_copy(update={"checkpoint": "sha256:" + "0" * 64}))
    assert [name for name, _, _ in service.received[0].parts] == ["spec"]


def test_a_refusal_raises_its_problem(
    client: Client, service: Any, answer_problem: Callable[..., Any]
) -> None:
    service.answers["POST /compress"] = answer_problem(
        422,
        "invalid-spec",
        "Not valid",
        "There is no such architecture.",
        field="spec.architecture",
    )
    with pytest.raises(BitpressProblem) as caught:
        client.compress(SPEC)
    assert (caught.value.status, caught.value.field) == (422, "spec.architecture")


def test_jobs_and_single_jobs_are_read(
    client: Client, service: Any, job_record: Callable[..., Any]
) -> None:
    running = job_record(
        id="b/c",
        state="running",
        stage="calibrate",
        step="features.0",
        progress=0.25,
        layers=[{"name": "features.0", "losses": [0.5, 0.25]}],
        started_at="2026-11-20T10:00:01+00:00",
        field_of_a_newer_service=1,
    )
    service.answers["GET /jobs"] = (200, {"jobs": [running, job_record()]})
    service.answers["GET /jobs/b%2Fc"] = (200, running)
    listed = list(client.jobs())
    assert [job.id for job in listed] == ["b/c", "job-1"]
    assert listed[0] == client.job("b/c")
    assert listed[0].layers[0].losses == (0.5, 0.25)
    assert listed[0].started_at is not None
    assert listed[0].started_at.second == 1


def test_the_report_is_typed_and_whole(
    client: Client, service: Any, report_document: dict[str, Any]
) -> None:
    service.answers["GET /jobs/job-1/report"] = (200, report_document)
    report = client.report("job-1")
    assert (report.accuracy.packed, report.bytes.packed, report.compression_ratio) == (
        0.625,
        125_000,
        32.0,
    )
    assert report.document == report_document


def test_an_answer_of_another_form_names_the_member(client: Client, service: Any) -> None:
    service.answers["GET /jobs/job-1"] = (200, {"id": "job-1", "state": "melted"})
    with pytest.raises(UnexpectedAnswer, match=r"GET .*/jobs/job-1 answered with a Job with state"):
        client.job("job-1")


@pytest.mark.parametrize("answer", [(200, b"{"), (200, []), (200, {"jobs": {}})])
def test_an_answer_that_is_no_list_of_jobs_is_told(
    client: Client, service: Any, answer: tuple[int, Any]
) -> None:
    service.answers["GET /jobs"] = answer
    with pytest.raises(UnexpectedAnswer, match=r"GET .*/jobs answered with (no|a JobPage)"):
        list(client.jobs())


def test_waiting_tells_every_state_until_the_last(
    service: Any, job_record: Callable[..., Any]
) -> None:
    service.answers["GET /jobs/job-1"] = [
        (200, job_record()),
        (200, job_record(state="running", stage="prepare")),
        (200, job_record(state="rejected")),
    ]
    seen: list[Job] = []
    slept: list[float] = []
    with Client(service.url, sleep=slept.append) as client:
        job = client.wait("job-1", seen.append, interval_s=0.25)
    assert job.state == "rejected"
    assert [job.state for job in seen] == ["queued", "running", "rejected"]
    assert slept == [0.25, 0.25]


class Clock:
    """Time that passes only while somebody sleeps."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def interrupted(clock: Clock, answers: list[httpx.Response | None]) -> Client:
    """Return a client that gets these answers, no connection for None, and never an event."""

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return problem(404, "not-found")
        answer = answers.pop(0)
        if answer is None:
            raise httpx.ConnectError("refused", request=request)
        return answer

    return Client(transport=httpx.MockTransport(respond), sleep=clock.sleep, clock=clock)


def test_waiting_bears_a_restart_of_the_service(job_record: Callable[..., Any]) -> None:
    clock = Clock()
    running = httpx.Response(200, json=job_record(state="running"))
    done = httpx.Response(200, json=job_record(state="succeeded"))
    # Two pauses, each shorter than the patience, and together longer.
    answers = [running, *[None] * 8, running, *[None] * 8, done]
    with interrupted(clock, answers) as client:
        job = client.wait("job-1", interval_s=1.0, patience_s=10.0)
    assert job.state == "succeeded"


def test_waiting_ends_when_nothing_answers_any_more(job_record: Callable[..., Any]) -> None:
    clock = Clock()
    answers = [httpx.Response(200, json=job_record(state="running")), *[None] * 50]
    with interrupted(clock, answers) as client, pytest.raises(ServiceUnreachable):
        client.wait("job-1", interval_s=1.0, patience_s=10.0)
    assert clock.now == 10.0


def problem(status: int, code: str) -> httpx.Response:
    return httpx.Response(
        status,
        headers={"content-type": "application/problem+json"},
        content=json.dumps({"type": f"urn:bitpress:problem:{code}", "title": "Not now"}),
    )


def test_waiting_bears_a_service_whose_database_is_away(job_record: Callable[..., Any]) -> None:
    clock = Clock()
    answers = [problem(503, "unavailable") for _ in range(8)]
    done = httpx.Response(200, json=job_record(state="succeeded"))
    with interrupted(clock, [*answers, None, done]) as client:
        job = client.wait("job-1", interval_s=1.0, patience_s=10.0)
    assert job.state == "succeeded"


def test_waiting_ends_when_the_service_stays_unavailable() -> None:
    clock = Clock()
    answers: list[httpx.Response | None] = [problem(503, "unavailable") for _ in range(50)]
    with interrupted(clock, answers) as client, pytest.raises(BitpressProblem):
        client.wait("job-1", interval_s=1.0, patience_s=10.0)
    assert clock.now == 10.0


def test_waiting_ends_at_once_with_any_other_problem() -> None:
    clock = Clock()
    with interrupted(clock, [problem(404, "not-found")]) as client, pytest.raises(BitpressProblem):
        client.wait("job-1")
    assert clock.now == 0.0


def test_a_new_dataset_is_uploaded_under_the_name_of_its_file(
    client: Client, service: Any, dataset_record: Callable[..., Any], archive: Path
) -> None:
    service.answers["GET /datasets"] = (200, {"datasets": [dataset_record(name="other")]})
    service.answers["POST /datasets"] = (201, dataset_record())
    assert client.ensure_dataset(archive).classes == ("cat", "dog")
    (request,) = service.asked("POST /datasets")
    assert request.parts == [("name", None, b"pets"), ("archive", "pets.zip", b"an archive")]


def test_an_archive_that_is_there_is_not_sent_again(
    client: Client, service: Any, dataset_record: Callable[..., Any], archive: Path
) -> None:
    known = dataset_record(name="animals", archive_digest=dataset_upload(archive).digest())
    service.answers["GET /datasets"] = (200, {"datasets": [dataset_record(), known]})
    assert client.ensure_dataset(archive).name == "animals"
    assert not service.asked("POST /datasets")


def test_a_name_that_was_asked_for_is_kept(
    client: Client, service: Any, dataset_record: Callable[..., Any], archive: Path
) -> None:
    known = dataset_record(name="animals", archive_digest=dataset_upload(archive).digest())
    service.answers["GET /datasets"] = (200, {"datasets": [known]})
    service.answers["POST /datasets"] = (201, dataset_record(name="mine"))
    assert client.ensure_dataset(archive, "mine").name == "mine"
    assert service.asked("POST /datasets")[0].parts[0] == ("name", None, b"mine")


MODEL = {
    "name": "vgg9",
    "latest": 2,
    "versions": [1, 2],
    "architecture": "vgg9",
    "method": "bwnh",
    "accuracy": {"full_precision": 0.9, "calibrated": 0.8, "packed": 0.8},
    "bytes": {"float": 320, "packed": 10},
    "compression_ratio": 32.0,
    "input": {
        "channels": 3,
        "height": 32,
        "width": 32,
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "value_range": [0, 1],
    },
    "labels": ["cat", "dog"],
    "runtime": "cpu",
    "kernels": "avx512",
    "digest": "sha256:" + "3" * 64,
    "job": "job-1",
    "created_at": "2026-11-20T10:00:00+00:00",
}


def test_models_are_read(client: Client, service: Any) -> None:
    service.answers["GET /models"] = (200, {"models": [MODEL]})
    service.answers["GET /models/vgg9"] = (200, MODEL)
    assert client.models() == [client.model("vgg9")]
    assert client.model("vgg9").versions == (1, 2)
    assert client.model("vgg9").kernels == "avx512"


def test_a_model_of_a_service_that_does_not_tell_kernels_is_read(
    client: Client, service: Any
) -> None:
    older = {name: value for name, value in MODEL.items() if name != "kernels"}
    service.answers["GET /models/vgg9"] = (200, older)
    assert client.model("vgg9").kernels is None


def test_versions_are_read_over_all_pages_with_their_aliases(client: Client, service: Any) -> None:
    figures = {name: value for name, value in MODEL.items() if name not in ("latest", "versions")}
    pages = {
        "GET /models/vgg9/versions": ([{**figures, "version": 2, "aliases": ["stable"]}], 2),
        "GET /models/vgg9/versions?before=2": ([{**figures, "version": 1, "aliases": []}], None),
    }
    for asked, (versions, before) in pages.items():
        service.answers[asked] = (200, {"model": "vgg9", "versions": versions, "next": before})
    found = client.model_versions("vgg9")
    assert [(one.version, one.aliases) for one in found] == [(2, ("stable",)), (1, ())]


def test_an_artifact_of_another_digest_is_not_kept(tmp_path: Path) -> None:
    answer = httpx.Response(200, content=b"bits", headers={"etag": '"sha256:' + "0" * 64 + '"'})
    transport = httpx.MockTransport(lambda request: answer)
    target = tmp_path / "vgg9.safetensors"
    with Client(transport=transport) as client, pytest.raises(UnexpectedAnswer, match="ETag"):
        client.download_artifact("vgg9", 1, target)
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_is_downloaded_whole(client: Client, service: Any, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4_096
    service.answers["GET /models/vgg9/versions/2/artifact"] = (
        200,
        content,
        "application/octet-stream",
    )
    counts: list[tuple[int, int]] = []
    target = tmp_path / "vgg9.safetensors"
    assert client.download_artifact("vgg9", 2, target, lambda *c: counts.append(c)) == target
    assert target.read_bytes() == content
    assert counts[-1] == (len(content), len(content))
    assert list(tmp_path.iterdir()) == [target]


def test_a_refused_download_leaves_nothing_and_keeps_what_was_there(
    client: Client, tmp_path: Path
) -> None:
    target = tmp_path / "vgg9.safetensors"
    target.write_bytes(b"the last one")
    with pytest.raises(BitpressProblem, match="no such page"):
        client.download_artifact("vgg9", 9, target)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"the last one"]


def test_a_download_that_cannot_be_written_says_so(
    client: Client, service: Any, tmp_path: Path
) -> None:
    service.answers["GET /models/vgg9/versions/1/artifact"] = (200, b"x")
    with pytest.raises(UnusableFile, match="No such file or directory"):
        client.download_artifact("vgg9", 1, tmp_path / "missing" / "vgg9.safetensors")


def test_images_are_sent_and_answered_in_order(client: Client, service: Any) -> None:
    cat = {"label": "cat", "index": 0, "probability": 0.75}
    service.answers["POST /predict"] = (
        200,
        {
            "model": "pets",
            "version": 3,
            "predictions": [
                {"filename": "a.png", "top": [cat], "error": None},
                {"filename": "b.png", "top": None, "error": {"type": "t", "title": "Bad image"}},
            ],
        },
    )
    answer = client.predict("pets", [("a.png", b"1"), ("b.png", b"2")], version=3, top_k=1)
    assert [name for name, _, _ in service.received[0].parts[:3]] == ["model", "version", "top_k"]
    assert service.received[0].parts[3:] == [("images", "a.png", b"1"), ("images", "b.png", b"2")]
    assert answer.predictions[0].top[0].label == "cat"
    assert answer.predictions[1].error is not None
    assert answer.predictions[1].top == ()


def test_an_answer_with_too_few_predictions_is_not_believed(client: Client, service: Any) -> None:
    service.answers["POST /predict"] = (200, {"model": "pets", "version": 1, "predictions": []})
    with pytest.raises(UnexpectedAnswer, match="1 images were sent, and 0 answers came"):
        client.predict("pets", [("a.png", b"1")])


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "http://[", "ftp://127.0.0.1", "http://127.0.0.1:1"]
)
def test_an_address_where_nothing_answers_is_told(url: str) -> None:
    patience = Retries(attempts=1)
    with pytest.raises(ServiceUnreachable), Client(url, retries=patience) as client:
        client.models()


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    service.answers["GET /jobs"] = (200, {"jobs": []})
    with Client(service.url) as client:
        assert list(client.jobs()) == []
