"""More requests than there is room for, and callers that leave: refused or dropped, never lost."""

import base64
import json
import random
import socket
import threading
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

CLIENTS = 12
PLACES = 6
REQUESTS_EACH = 25


def waiting_images(service: Any) -> int:
    lines = service.http.get("/metrics").text.splitlines()
    shown = [line for line in lines if line.startswith("bitpress_model_waiting_images{")]
    return sum(int(float(line.rpartition(" ")[2])) for line in shown)


def leave_halfway(service: Any, body: bytes, generator: random.Random) -> None:
    """Send some of a request, or all of it, and go away without the answer."""
    head = (
        "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    whole = head.encode() + body
    with socket.create_connection(service.address, timeout=30) as connection:
        connection.sendall(whole[: generator.choice([10, len(head), len(whole) - 1, len(whole)])])


def all_places_free(service: Any) -> bool:
    """Whether as many requests as may be under way are let in, all at once."""
    head = (
        b"POST /predict?model=one HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    )
    with ExitStack() as connections:
        said = []
        for _ in range(PLACES):
            connection = socket.create_connection(service.address, timeout=30)
            connections.enter_context(connection)
            connection.sendall(head)
            said.append(connection.recv(1000))
    return all(b"100 Continue" in line for line in said)


@pytest.fixture
def service(serve: Any, publish: Any) -> Any:
    service = serve(
        max_images_per_request=2,
        max_queue_images=4,
        max_prediction_requests=PLACES,
        max_batch_images=2,
        max_batch_wait_ms=5,
    )
    publish(service, "one")
    return service


def test_too_much_at_once_is_refused_and_everything_else_answered(
    service: Any, images: list[bytes], wait_until: Any
) -> None:
    encoded = [base64.b64encode(image).decode() for image in images[:2]]
    body = json.dumps({"model": "one", "images": encoded}).encode()
    wanted = service.http.post("/predict", json={"model": "one", "images": encoded}).json()
    answers: list[httpx.Response] = []
    faults: list[Exception] = []
    together = threading.Barrier(CLIENTS)

    def ask(seed: int) -> None:
        generator = random.Random(seed)
        try:
            with httpx.Client(base_url=service.http.base_url, timeout=60, trust_env=False) as http:
                together.wait(60)
                for _ in range(REQUESTS_EACH):
                    if generator.random() < 0.2:
                        leave_halfway(service, body, generator)
                        continue
                    headers = {"Content-Type": "application/json"}
                    answers.append(http.post("/predict", content=body, headers=headers))
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert faults == []
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 200:
            assert answer.json() == wanted
        else:
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
            problem = answer.json()
            assert problem["type"] == "urn:bitpress:problem:overloaded"
            assert problem["remedy"]
    # Nothing of those who left stays behind: all places are free again.
    wait_until(lambda: waiting_images(service) == 0, "the places to be free")
    wait_until(lambda: all_places_free(service), "room for as many requests as before")
    assert service.http.post("/predict", json={"model": "one", "images": encoded}).json() == wanted
