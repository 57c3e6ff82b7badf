"""POST and GET /datasets."""

import io
import socket
import zipfile
from typing import Any

import pytest


def upload(service: Any, name: str, content: Any, **more: Any) -> Any:
    return service.http.post("/datasets", data={"name": name, **more}, files={"archive": content})


def test_a_dataset_is_registered_once(service: Any, archive: bytes) -> None:
    answer = upload(service, "animals", archive)
    assert answer.status_code == 201
    dataset = answer.json()
    assert dataset["classes"] == ["cat", "dog", "owl"]
    assert dataset["splits"] == {"all": 6}
    assert dataset["digest"].startswith("sha256:")
    again = upload(service, "animals", archive)
    assert again.status_code == 200
    assert again.json() == dataset
    assert service.http.get("/datasets").json() == {"datasets": [dataset], "next": None}


def test_a_name_with_other_content_is_a_conflict(service: Any, archive: bytes, images: Any) -> None:
    assert upload(service, "taken", archive).status_code == 201
    before = service.files()
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as other:
        other.writestr("a/1.png", images[0])
        other.writestr("b/1.png", images[1])
    answer = upload(service, "taken", target.getvalue())
    assert answer.status_code == 409
    assert answer.json()["field"] == "name"
    assert service.files() == before


@pytest.mark.parametrize(
    ("name", "content", "status", "field"),
    [
        ("../up", b"PK", 422, "name"),
        ("UPPER", b"PK", 422, "name"),
        ("garbage", b"no archive", 422, "archive"),
        ("empty", b"", 422, "archive"),
        ("large", bytes(1_200_000), 413, "archive"),
        ("huge", bytes(3_000_000), 413, "archive"),
    ],
)
def test_a_refused_dataset_leaves_nothing(
    service: Any, name: str, content: bytes, status: int, field: str
) -> None:
    before = service.files()
    answer = upload(service, name, content)
    assert answer.status_code == status
    assert answer.json()["field"] == field
    assert answer.json()["remedy"]
    assert service.files() == before


def test_missing_and_odd_fields_are_named(service: Any, archive: bytes) -> None:
    http = service.http
    file = {"archive": archive}
    cases = [
        (http.post("/datasets", files=file), "name"),
        (http.post("/datasets", files={"name": (None, "only")}), "archive"),
        (upload(service, "odd", archive, colour="red"), "colour"),
        (http.post("/datasets", data={"name": ["a", "b"]}, files=file), "name"),
        (http.post("/datasets", data={"name": "a" * 2000}, files=file), "name"),
    ]
    for answer, field in cases:
        assert 400 <= answer.status_code < 500
        assert answer.json()["field"] == field


def test_bodies_that_are_no_forms(service: Any) -> None:
    text = service.http.post("/datasets", content="name=a", headers={"Content-Type": "text/plain"})
    assert text.status_code == 415
    for content_type, content in (
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=" + "b" * 500, b"x"),
        ("multipart/form-data; boundary=b", b"x"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="na'),
    ):
        answer = service.http.post(
            "/datasets", content=content, headers={"Content-Type": content_type}
        )
        assert answer.status_code == 400
        assert answer.json()["type"] == "urn:bitpress:problem:malformed-body"


def test_an_upload_that_breaks_off_leaves_nothing(service: Any) -> None:
    before = service.files()
    head = (b"--b\r\nContent-Disposition: form-data; name=archive; filename=a\r\n\r\n") + bytes(
        200_000
    )
    with socket.create_connection(service.address) as connection:
        connection.sendall(
            b"POST /datasets HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\nExpect: 100-continue\r\n\r\n"
        )
        assert b"100 Continue" in connection.recv(1000)
        connection.sendall(head)
    # A request on the same event loop, after the break, and the metric of the broken one.
    for _ in range(1000):
        if 'route="/datasets",status="499"' in service.http.get("/metrics").text:
            break
    else:
        pytest.fail("the broken request was never noticed")
    assert service.files() == before


def test_an_upload_that_stalls_is_given_up(serve: Any) -> None:
    service = serve(body_idle_s=0.05)
    with socket.create_connection(service.address) as connection:
        connection.sendall(
            b"POST /datasets HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\nConnection: close\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        )
        answer = connection.makefile("rb").read()
    assert b" 408 " in answer
    assert b"request-timeout" in answer
