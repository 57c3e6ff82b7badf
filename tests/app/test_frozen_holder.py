"""A process that holds a lock of the store and is frozen: what waits for it is in nobody's way."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

# More than the threads that all routes share.
REQUESTS = 45


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Hold a lock file, as a process that was stopped in the middle of a change does."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("folder", "path"),
    [
        ("models_dir", "/models/one/versions/1"),
        ("models_dir", "/models/one/aliases/live"),
        ("datasets_dir", "/datasets/pets"),
    ],
)
def test_changes_that_wait_leave_the_other_requests_alone(
    serve: Any, publish: Any, archive: bytes, folder: str, path: str
) -> None:
    service = serve()
    publish(service, "one")
    service.http.post("/datasets", data={"name": "pets"}, files={"archive": archive})
    answers: list[int] = []

    def delete() -> None:
        url = str(service.http.base_url.join(path))
        answers.append(httpx.delete(url, timeout=60, trust_env=False).status_code)

    threads = [threading.Thread(target=delete) for _ in range(REQUESTS)]
    changes = service.app.state.services.changes
    with held(getattr(service.settings, folder) / ".lock"):
        for thread in threads:
            thread.start()
        waiting = -1
        # Until all of them are in, and long before the first gives up.
        while waiting + changes.borrowed_tokens < REQUESTS:
            waiting = changes._limiter.statistics().tasks_waiting
            for asked in ("/health/ready", "/jobs", "/models", "/datasets", "/metrics"):
                assert service.http.get(asked, timeout=5).status_code == 200
        assert answers == []
    for thread in threads:
        thread.join(60)
    # One found it, unless it was never there; the others came too late.
    assert sorted(answers) == ([404] * 45 if "alias" in path else [204] + [404] * 44)
