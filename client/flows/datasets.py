"""Datasets: register, look at, remove."""

from pathlib import Path
from urllib.parse import quote

from client.answers import json_object, listed, of_media_type, parsed
from client.exchange import UPLOAD_SILENCE_S, Flow, Request, Work
from client.session import Session
from client.types import Dataset, DatasetDetail
from client.upload import Progress, Upload, dataset_name, dataset_upload


def every(session: Session) -> Flow[list[Dataset]]:
    """Return all datasets, by name, page after page."""
    found: list[Dataset] = []
    cursor: str | None = None
    while True:
        request = Request("GET", "/datasets", params={"cursor": cursor})
        answer = yield from session.answer(request)
        found += listed(Dataset, answer, "datasets")
        # A service that knows no pages sends all at once.
        cursor = json_object(answer).get("next")
        if not isinstance(cursor, str):
            return found


def dataset(session: Session, name: str) -> Flow[DatasetDetail]:
    """Return one dataset with its counts and sizes."""
    return parsed(DatasetDetail, (yield from session.answer(Request("GET", _path(name)))))


def upload(
    session: Session, source: Path | Upload, name: str, progress: Progress | None
) -> Flow[Dataset]:
    """Register an archive or folder; a second attempt finds the very same content there."""
    request = Request(
        "POST",
        "/datasets",
        form={"name": name},
        parts=[_upload(source).part("archive", progress)],
        silence_s=UPLOAD_SILENCE_S,
        safe_to_repeat=True,
    )
    return parsed(Dataset, (yield from session.answer(request)))


def known(session: Session, source: Path | Upload, name: str | None) -> Flow[Dataset | None]:
    """Return the dataset of this very archive, None where there is none."""
    archive: Upload = yield Work(lambda: _upload(source))
    digest: str = yield Work(archive.digest)
    for found in (yield from every(session)):
        if found.archive_digest == digest and name in (None, found.name):
            return found
    return None


def ensure(
    session: Session, source: Path, name: str | None, progress: Progress | None
) -> Flow[Dataset]:
    """Return the dataset of this very archive, and upload it only where there is none."""
    archive: Upload = yield Work(lambda: dataset_upload(source))
    found = yield from known(session, archive, name)
    if found is not None:
        return found
    return (yield from upload(session, archive, name or dataset_name(source), progress))


def register_root(session: Session, name: str, root: str) -> Flow[Dataset]:
    """Register a folder that the operator offers, in place."""
    request = Request(
        "POST",
        "/datasets",
        json={"name": name, "root": root},
        silence_s=UPLOAD_SILENCE_S,
        safe_to_repeat=True,
    )
    return parsed(Dataset, (yield from session.answer(request)))


def sheet(session: Session, name: str, classes: int | None, samples: int | None) -> Flow[bytes]:
    """Return samples of each class as a PNG image."""
    params = {"classes": classes, "samples": samples}
    request = Request("GET", _path(name, "sheet"), params=params, headers={"accept": "image/png"})
    return of_media_type((yield from session.answer(request)), "image/png").content


def delete(session: Session, name: str) -> Flow[None]:
    """Remove a dataset."""
    yield from session.answer(Request("DELETE", _path(name)))


def _upload(source: Path | Upload) -> Upload:
    return source if isinstance(source, Upload) else dataset_upload(source)


def _path(name: str, *below: str) -> str:
    return "/".join(["/datasets", quote(name, safe=""), *below])
