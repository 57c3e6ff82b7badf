"""The typed client of the REST interface."""

import ipaddress
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from client.errors import (
    UNAVAILABLE,
    BitpressProblem,
    ServiceUnreachable,
    UnexpectedAnswer,
    UnusableFile,
    raise_for_problem,
)
from client.types import CompressSpec, Dataset, Job, Model, Predictions, Report
from client.upload import Progress, Upload, dataset_name, dataset_upload, file_upload

DEFAULT_URL = "http://127.0.0.1:8000"

# A dataset is unpacked and checked before it is answered for; everything else answers soon.
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_UPLOAD_TIMEOUT = httpx.Timeout(60.0, connect=10.0, read=1800.0)

_WireT = TypeVar("_WireT", bound=BaseModel)


class Client:
    """One bitpress service, over HTTP.

    Every method raises `BitpressProblem` where the service refuses, `ServiceUnreachable` where
    nothing answers, and `UnexpectedAnswer` where something else does. A client holds connections:
    close it, or use it in a ``with`` statement.

    Args:
        url: where the service is, for example ``http://127.0.0.1:8000``.
        transport: another way to the service than the network, for tests.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        try:
            self._http = httpx.Client(
                base_url=self.url,
                timeout=_TIMEOUT,
                transport=transport,
                # A proxy of the environment cannot reach this machine's own services.
                trust_env=not _is_loopback(self.url),
                headers={"accept": "application/json"},
            )
        except httpx.InvalidURL as error:
            raise ServiceUnreachable(f"{url!r} is not an address: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # Jobs

    def compress(
        self, spec: CompressSpec, checkpoint: Path | None = None, progress: Progress | None = None
    ) -> Job:
        """Queue a job; ``checkpoint`` is sent along unless ``spec`` names an earlier upload."""
        parts: dict[str, Any] = {"spec": (None, spec.to_json(), "application/json")}
        if checkpoint is not None:
            parts["checkpoint"] = _part(file_upload(checkpoint), progress)
        answer = self._request("POST", "/compress", files=parts, timeout=_UPLOAD_TIMEOUT)
        return _parsed(Job, answer)

    def jobs(self) -> list[Job]:
        """Return the latest jobs, newest first."""
        return self._listed(Job, "/jobs", "jobs")

    def job(self, job_id: str) -> Job:
        """Return a job as it stands."""
        return _parsed(Job, self._request("GET", f"/jobs/{_segment(job_id)}"))

    def report(self, job_id: str) -> Report:
        """Return what a finished job measured."""
        answer = self._request("GET", f"/jobs/{_segment(job_id)}/report")
        document = _json(answer)
        return _validated(Report, {**document, "document": document}, answer)

    def report_page(self, job_id: str) -> str:
        """Return the report of a finished job as an HTML page, which needs no other file."""
        path = f"/jobs/{_segment(job_id)}/report"
        answer = self._request("GET", path, headers={"accept": "text/html"})
        if not answer.headers.get("content-type", "").startswith("text/html"):
            raise _unexpected(answer, "no page")
        return answer.text

    def wait(
        self,
        job_id: str,
        on_update: Callable[[Job], None] | None = None,
        *,
        interval_s: float = 0.5,
        patience_s: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> Job:
        """Return the job once it is finished, however it ended; tell ``on_update`` meanwhile.

        The job lives on while its service restarts or its database is away, so silence, and the
        answer that the service is unavailable, is borne for ``patience_s``.
        """
        last_answer = clock()
        while True:
            try:
                job = self.job(job_id)
            except (ServiceUnreachable, BitpressProblem) as error:
                if isinstance(error, BitpressProblem) and error.type != UNAVAILABLE:
                    raise
                if clock() - last_answer >= patience_s:
                    raise
            else:
                last_answer = clock()
                if on_update is not None:
                    on_update(job)
                if job.finished:
                    return job
            sleep(interval_s)

    # Datasets

    def datasets(self) -> list[Dataset]:
        """Return the registered datasets."""
        return self._listed(Dataset, "/datasets", "datasets")

    def upload_dataset(
        self, source: Path | Upload, name: str, progress: Progress | None = None
    ) -> Dataset:
        """Register an archive, or a local folder (sent as a tar stream), under ``name``."""
        upload = source if isinstance(source, Upload) else dataset_upload(source)
        answer = self._request(
            "POST",
            "/datasets",
            data={"name": name},
            files={"archive": _part(upload, progress)},
            timeout=_UPLOAD_TIMEOUT,
        )
        return _parsed(Dataset, answer)

    def ensure_dataset(
        self, source: Path, name: str | None = None, progress: Progress | None = None
    ) -> Dataset:
        """Return the dataset of this very archive, and upload it only where there is none.

        Without ``name`` a dataset of any name will do, and a new one is named after ``source``.
        """
        upload = dataset_upload(source)
        digest = upload.digest()
        for dataset in self.datasets():
            if dataset.archive_digest == digest and name in (None, dataset.name):
                return dataset
        return self.upload_dataset(upload, name or dataset_name(source), progress)

    # Models

    def models(self) -> list[Model]:
        """Return the published models."""
        return self._listed(Model, "/models", "models")

    def model(self, name: str) -> Model:
        """Return one published model."""
        return _parsed(Model, self._request("GET", f"/models/{_segment(name)}"))

    def download_artifact(
        self, name: str, version: int, target: Path, progress: Progress | None = None
    ) -> Path:
        """Write a version's artifact to ``target``, which appears only when it is whole."""
        path = f"/models/{_segment(name)}/versions/{version}/artifact"
        partial = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with self._streamed(path) as answer, partial.open("wb") as file:
                total = int(answer.headers.get("content-length", "0"))
                received = 0
                for chunk in answer.iter_bytes():
                    received += file.write(chunk)
                    if progress is not None:
                        progress(received, total)
            partial.replace(target)
        except OSError as error:
            raise UnusableFile(f"{target}: {error.strerror}") from None
        finally:
            partial.unlink(missing_ok=True)
        return target

    # Predictions

    def predict(
        self,
        model: str,
        images: Sequence[tuple[str, bytes]],
        *,
        version: int | None = None,
        top_k: int | None = None,
    ) -> Predictions:
        """Classify encoded images (file name, bytes of the file) in one request.

        The answer has one entry per image, in the given order; an image that cannot be used has
        its problem there and does not disturb the others.
        """
        fields = {"model": model, "version": version, "top_k": top_k}
        answer = self._request(
            "POST",
            "/predict",
            data={key: str(value) for key, value in fields.items() if value is not None},
            files=[("images", (name, data, "application/octet-stream")) for name, data in images],
        )
        found = _parsed(Predictions, answer)
        if len(found.predictions) != len(images):
            raise UnexpectedAnswer(
                f"{len(images)} images were sent, and {len(found.predictions)} answers came"
            )
        return found

    # The wire

    def _request(self, method: str, path: str, **content: Any) -> httpx.Response:
        with self._transport_errors():
            answer = self._http.request(method, path, **content)
        raise_for_problem(answer)
        return answer

    @contextmanager
    def _streamed(self, path: str) -> Iterator[httpx.Response]:
        with self._transport_errors(), self._http.stream("GET", path) as answer:
            if not answer.is_success:
                answer.read()
            raise_for_problem(answer)
            yield answer

    @contextmanager
    def _transport_errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise ServiceUnreachable(f"No service answers at {self.url} ({error})") from None
        except httpx.TimeoutException:
            raise ServiceUnreachable(f"The service at {self.url} did not answer in time") from None
        except httpx.TransportError as error:
            raise ServiceUnreachable(f"The connection to {self.url} broke: {error}") from None
        except httpx.InvalidURL as error:
            raise ServiceUnreachable(f"{self.url} is not an address: {error}") from None

    def _listed(self, kind: type[_WireT], path: str, member: str) -> list[_WireT]:
        answer = self._request("GET", path)
        entries = _json(answer).get(member)
        if not isinstance(entries, list):
            raise _unexpected(answer, f"no list of {member}")
        return [_validated(kind, entry, answer) for entry in entries]


def _part(upload: Upload, progress: Progress | None) -> tuple[str, Any, str]:
    return (upload.filename, upload.open(progress), "application/octet-stream")


def _segment(name: str) -> str:
    return quote(name, safe="")


def _is_loopback(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        raise _unexpected(answer, "no JSON") from None
    if not isinstance(document, dict):
        raise _unexpected(answer, "no JSON object")
    return document


def _parsed(kind: type[_WireT], answer: httpx.Response) -> _WireT:
    return _validated(kind, _json(answer), answer)


def _validated(kind: type[_WireT], document: Any, answer: httpx.Response) -> _WireT:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise _unexpected(answer, f"a {kind.__name__} with {where}: {fault['msg']}") from None


def _unexpected(answer: httpx.Response, what: str) -> UnexpectedAnswer:
    request = answer.request
    return UnexpectedAnswer(f"{request.method} {request.url} answered with {what}")
