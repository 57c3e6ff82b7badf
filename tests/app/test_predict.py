"""POST /predict in its three forms, against the runtime asked directly."""

import asyncio
import base64
import json
import socket
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from app import predictor
from app.schemas import PredictionRequest
from models import artifact as artifacts
from models import runtime
from models.preprocessing import decode_image, normalise

MODEL = "three"


@pytest.fixture
def model(service: Any, publish: Any) -> Any:
    # The same job publishes once, however many tests ask for it.
    return publish(service, MODEL)


def expected(model: Any, images: list[bytes]) -> list[dict[str, float]]:
    """Probability by label, from the reference runtime and torch's softmax."""
    artifact = artifacts.read(model.artifact_path)
    pixels = np.stack([decode_image(data, artifact.input) for data in images])
    logits = runtime.load(artifact, "reference").run(normalise(pixels, artifact.input))
    probabilities = torch.softmax(logits.double(), dim=1)
    return [dict(zip(artifact.labels, row, strict=True)) for row in probabilities.tolist()]


def check(answer: dict[str, Any], probabilities: list[dict[str, float]]) -> None:
    assert answer["model"] == MODEL
    assert len(answer["predictions"]) == len(probabilities)
    for prediction, wanted in zip(answer["predictions"], probabilities, strict=True):
        found = {entry["label"]: entry["probability"] for entry in prediction["top"]}
        # Six decimals, of sums in whatever order the runtime adds.
        assert found == pytest.approx(wanted, abs=2e-6)
        order = [entry["probability"] for entry in prediction["top"]]
        assert order == sorted(order, reverse=True)


def test_multipart_equals_the_runtime(service: Any, model: Any, images: list[bytes]) -> None:
    files = [("images", (f"{index}.png", data)) for index, data in enumerate(images)]
    answer = service.http.post("/predict", data={"model": MODEL}, files=files)
    assert answer.status_code == 200
    check(answer.json(), expected(model, images))
    names = [prediction["filename"] for prediction in answer.json()["predictions"]]
    assert names == ["0.png", "1.png", "2.png", "3.png", "4.png"]


def test_json_equals_the_runtime(service: Any, model: Any, images: list[bytes]) -> None:
    encoded = [base64.b64encode(data).decode() for data in images]
    answer = service.http.post("/predict", json={"model": MODEL, "images": encoded})
    assert answer.status_code == 200
    check(answer.json(), expected(model, images))


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream"])
def test_raw_image_equals_the_runtime(
    service: Any, model: Any, images: list[bytes], content_type: str
) -> None:
    answer = service.http.post(
        "/predict",
        params={"model": MODEL, "version": 1},
        content=images[4],
        headers={"Content-Type": content_type},
    )
    assert answer.status_code == 200
    check(answer.json(), expected(model, images[4:]))


def test_top_k_is_bounded_by_the_classes(service: Any, model: Any, images: list[bytes]) -> None:
    for asked, given in ((1, 1), (2, 2), (1000, 3)):
        answer = service.http.post(
            "/predict",
            params={"model": MODEL, "top_k": asked},
            content=images[0],
            headers={"Content-Type": "image/png"},
        )
        assert len(answer.json()["predictions"][0]["top"]) == given


def test_bad_images_do_not_spoil_good_ones(service: Any, model: Any, images: list[bytes]) -> None:
    files = [
        ("images", ("bad.png", b"no image")),
        ("images", ("good.png", images[0])),
        ("images", ("empty.png", b"")),
    ]
    answer = service.http.post("/predict", data={"model": MODEL}, files=files)
    assert answer.status_code == 200
    first, second, third = answer.json()["predictions"]
    assert first["error"]["field"] == "images[0]"
    assert "top" not in first
    assert second["top"][0]["probability"] > 0
    assert third["error"]["type"] == "urn:bitpress:problem:invalid-image"
    assert third["error"]["remedy"]


def test_several_bad_images_each_get_their_problem(service: Any, model: Any) -> None:
    encoded = [base64.b64encode(b"nothing").decode(), "%%%"]
    answer = service.http.post("/predict", json={"model": MODEL, "images": encoded})
    assert answer.status_code == 200
    errors = [prediction["error"] for prediction in answer.json()["predictions"]]
    assert [error["field"] for error in errors] == ["images[0]", "images[1]"]
    assert "base64" in errors[1]["detail"]


def test_a_single_bad_image_is_a_problem_in_every_form(service: Any, model: Any) -> None:
    http = service.http
    answers = [
        http.post("/predict", json={"model": MODEL, "images": ["%%%"]}),
        http.post("/predict", data={"model": MODEL}, files=[("images", ("a.png", b"x"))]),
    ]
    for answer in answers:
        assert answer.status_code == 422
        assert answer.json()["field"] == "images[0]"


def claiming_png(width: int, height: int) -> bytes:
    """A PNG whose header claims any size, and whose content is next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"", 422, "0 bytes"),
        (b"GIF89a", 422, "no image"),
        (claiming_png(8, 8), 422, "damaged or truncated"),
        (b"%PDF-1.7", 422, "no image"),
        (claiming_png(1, 1), 422, "1 x 1"),
        (claiming_png(400, 400), 422, "more than 100,000 pixels"),
        (claiming_png(40_000, 25_000), 422, "pixels"),
        (b"\x89PNG\r\n\x1a\n" + bytes(60_000), 413, "larger than 50,000 bytes"),
    ],
    ids=[
        "empty",
        "header only",
        "no pixels",
        "pdf",
        "one pixel",
        "many pixels",
        "10^9 pixels",
        "many bytes",
    ],
)
def test_an_unusable_raw_image_is_a_problem(
    service: Any, model: Any, data: bytes, status: int, said: str
) -> None:
    answer = service.http.post(
        "/predict",
        params={"model": MODEL},
        content=data,
        headers={"Content-Type": "image/png"},
    )
    assert answer.status_code == status
    assert said in answer.json()["detail"]
    assert answer.json()["field"] == "body"
    assert answer.json()["remedy"]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"images": ["AA=="]}, 422, "model"),
        ({"model": "../three", "images": ["AA=="]}, 422, "model"),
        ({"model": "absent", "images": ["AA=="]}, 404, "model"),
        ({"model": MODEL, "version": 7, "images": ["AA=="]}, 404, "version"),
        ({"model": MODEL, "version": 0, "images": ["AA=="]}, 422, "version"),
        ({"model": MODEL, "top_k": 0, "images": ["AA=="]}, 422, "top_k"),
        ({"model": MODEL, "images": []}, 422, "images"),
        ({"model": MODEL, "images": ["AA=="] * 9}, 413, "images"),
        ({"model": MODEL, "images": ["AA=="], "topk": 3}, 422, "topk"),
        (["AA=="], 422, None),
    ],
)
def test_a_bad_request_names_its_field(
    service: Any, model: Any, body: Any, status: int, field: str | None
) -> None:
    answer = service.http.post("/predict", json=body)
    assert answer.status_code == status
    assert answer.json().get("field") == field
    assert answer.json()["remedy"]


def test_bad_form_fields_are_named(service: Any, model: Any, images: list[bytes]) -> None:
    image = ("images", ("a.png", images[0]))
    cases: list[tuple[dict[str, Any], list[Any], int, str]] = [
        ({"model": MODEL}, [("model2", (None, "x")), image], 422, "model2"),
        ({"model": [MODEL, MODEL]}, [image], 422, "model"),
        ({"model": MODEL, "top_k": "many"}, [image], 422, "top_k"),
        ({"model": MODEL}, [("top_k", (None, "2"))], 422, "images"),
        ({"model": MODEL}, [image] * 9, 413, "images"),
    ]
    for data, files, status, field in cases:
        answer = service.http.post("/predict", data=data, files=files)
        assert (answer.status_code, answer.json()["field"]) == (status, field)


def test_a_body_of_another_kind_is_refused(service: Any) -> None:
    answer = service.http.post("/predict", content=b"x", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    assert answer.json()["field"] == "Content-Type"


def test_a_body_over_the_limit_is_refused_however_it_is_sent(service: Any) -> None:
    def pieces() -> Any:
        for _ in range(30):
            yield bytes(10_000)

    for content in (bytes(300_000), pieces()):
        answer = service.http.post(
            "/predict?model=three", content=content, headers={"Content-Type": "image/png"}
        )
        assert answer.status_code == 413
        assert answer.json()["type"] == "urn:bitpress:problem:too-large"


def test_a_new_version_serves_at_once_and_the_old_one_on_request(
    service: Any, publish: Any, images: list[bytes]
) -> None:
    def ask(**params: Any) -> Any:
        answer = service.http.post(
            "/predict",
            params={"model": "twice", **params},
            content=images[0],
            headers={"Content-Type": "image/png"},
        )
        assert answer.status_code == 200
        return answer.json()

    publish(service, "twice", seed=1)
    old = ask()
    publish(service, "twice", seed=2)
    new = ask()
    assert (old["version"], new["version"]) == (1, 2)
    assert old["predictions"] != new["predictions"]
    assert ask(version=1) == old


def test_a_damaged_artifact_is_the_services_fault_not_the_callers(
    service: Any, publish: Any, images: list[bytes]
) -> None:
    version = publish(service, "damaged")
    with version.artifact_path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    answer = service.http.post(
        "/predict?model=damaged", content=images[0], headers={"Content-Type": "image/png"}
    )
    assert answer.status_code == 503
    assert str(service.settings.data_dir) not in answer.text


def test_too_many_images_at_once_get_429_and_a_time(serve: Any, publish: Any) -> None:
    service = serve(max_images_per_request=1, max_queue_images=1, max_prediction_requests=1)
    publish(service, MODEL)
    # A first request that is under way for as long as its body is not complete.
    with socket.create_connection(service.address) as slow:
        slow.sendall(
            b"POST /predict?model=three HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        )
        # The app has asked for the body, so it has admitted the request.
        assert b"100 Continue" in slow.recv(1000)
        answer = service.http.post(
            "/predict?model=three", content=b"abcd", headers={"Content-Type": "image/png"}
        )
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json()["remedy"]
        slow.sendall(b"abcd")
        assert b" 422 " in slow.recv(10_000)
    answer = service.http.post(
        "/predict?model=three", content=b"abcd", headers={"Content-Type": "image/png"}
    )
    assert answer.status_code == 422


def test_a_body_that_takes_too_long_gives_its_place_up(serve: Any, publish: Any) -> None:
    # It never pauses for long, but it does not end either.
    service = serve(predict_body_s=0.5, body_idle_s=60, max_prediction_requests=1)
    publish(service, MODEL)
    with socket.create_connection(service.address, timeout=30) as slow:
        slow.sendall(
            b"POST /predict?model=three HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 100000\r\n\r\n"
        )
        slow.settimeout(0.05)
        answer = b""
        while not answer:
            slow.sendall(b"x")
            with suppress(TimeoutError):
                answer = slow.recv(10_000)
        slow.settimeout(30)
        head, _, body = answer.partition(b"\r\n\r\n")
        # The body may come after the head; it ends with the only object that it holds.
        while not body.endswith(b"}") and (more := slow.recv(10_000)):
            body += more
    assert head.startswith(b"HTTP/1.1 408 ")
    problem = json.loads(body)
    assert problem["type"] == "urn:bitpress:problem:request-timeout"
    assert "0.5 seconds" in problem["detail"]
    again = service.http.post(
        "/predict?model=three", content=b"abcd", headers={"Content-Type": "image/png"}
    )
    assert again.status_code == 422


def test_the_answer_is_made_where_it_keeps_nobody_waiting(
    service: Any, model: Any, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_loop: list[bool] = []
    top_labels = predictor.top_labels

    def observed(*arguments: Any) -> Any:
        on_the_loop.append(asyncio._get_running_loop() is not None)
        return top_labels(*arguments)

    monkeypatch.setattr(predictor, "top_labels", observed)
    files = [("images", (str(index), data)) for index, data in enumerate(images)]
    answer = service.http.post("/predict", data={"model": MODEL}, files=files)
    assert answer.headers["content-type"] == "application/json"
    check(answer.json(), expected(model, images))
    assert on_the_loop == [False] * len(images)


def test_broken_json_is_malformed(service: Any) -> None:
    answer = service.http.post(
        "/predict", content=b'{"model": ', headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["type"] == "urn:bitpress:problem:malformed-body"
    assert json.loads(answer.text)["remedy"]


@pytest.mark.parametrize(
    "members",
    [
        '"images": [' + ",".join(["1"] * 60_000) + "]",
        '"images": [' + ",".join(['""'] * 40_000) + "]",
        '"images": ["AA=="], ' + ",".join(f'"{number}": 1' for number in range(10_000)),
    ],
)
def test_a_body_of_too_many_pieces_is_not_parsed(
    service: Any, monkeypatch: pytest.MonkeyPatch, members: str
) -> None:
    monkeypatch.setattr(PredictionRequest, "model_validate_json", None)
    answer = service.http.post(
        "/predict",
        content=f'{{"model": "{MODEL}", {members}}}',
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 413
    assert answer.json()["field"] == "images"
    assert answer.json()["remedy"]


def test_the_first_of_many_faults_ends_the_reading() -> None:
    with pytest.raises(ValidationError) as caught:
        PredictionRequest.model_validate({"model": MODEL, "images": [1] * 1000})
    assert caught.value.error_count() == 1


def test_data_urls_are_told_apart_from_too_many_images(service: Any, model: Any) -> None:
    images = ["data:image/png;base64,AA=="] * 8
    answer = service.http.post("/predict", json={"model": MODEL, "images": images, "top_k": 1})
    assert answer.status_code == 200
    faults = [prediction["error"] for prediction in answer.json()["predictions"]]
    assert len(faults) == 8
    assert all("data: prefix" in fault["remedy"] for fault in faults)
