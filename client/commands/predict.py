"""``bitpress predict``: images in, one line per image out."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from client.client import Client
from client.commands.options import DEFAULT_URL, Url
from client.errors import BitpressProblem, UnusableFile
from client.types import Prediction

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".pnm")
)
IMAGE_PROBLEMS = frozenset(("urn:bitpress:problem:invalid-image", "urn:bitpress:problem:too-large"))
Image = tuple[Path, bytes]
BATCH_IMAGES = 32
BATCH_BYTES = 8 << 20


def predict(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Image files, or folders with images in them."),
    ],
    model: Annotated[str, typer.Option(help="Name of a published model.")],
    version: Annotated[
        str | None,
        typer.Option(help="Version of the model: a number or an alias.", show_default="the latest"),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Labels for each image.")] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per image.")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Classify images with a published model."""
    failed = 0
    with Client(url) as client:
        for batch in _batches(_files(images)):
            answers = _classify(client, batch, model, version, top_k)
            for (path, _), found in zip(batch, answers, strict=True):
                failed += found.error is not None
                typer.echo(_as_json(path, found) if as_json else _as_text(path, found))
    if failed:
        typer.echo(f"{failed} of the images could not be used", err=True)
        raise typer.Exit(1)


def _classify(
    client: Client, batch: Sequence[Image], model: str, version: str | None, top_k: int
) -> Sequence[Prediction]:
    try:
        sent = [(path.name, data) for path, data in batch]
        return client.predict(model, sent, version=version, top_k=top_k).predictions
    except BitpressProblem as refused:
        # A single image that cannot be used is refused as a request; among others it is one answer.
        if len(batch) > 1 or refused.type not in IMAGE_PROBLEMS:
            raise
        return [Prediction(error=refused.problem)]


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield files as given, and the images in folders in the order of their names."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = [
            file
            for file in sorted(path.rglob("*"))
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        ]
        if not found:
            raise UnusableFile(f"{path} holds no images")
        yield from found


def _batches(files: Iterator[Path]) -> Iterator[list[Image]]:
    """Group images so that a request holds a bounded count and a bounded number of bytes."""
    batch: list[Image] = []
    size = 0
    for path in files:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UnusableFile(f"{path}: {error.strerror}") from None
        if batch and (len(batch) == BATCH_IMAGES or size + len(data) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((path, data))
        size += len(data)
    if batch:
        yield batch


def _as_text(path: Path, found: Prediction) -> str:
    if found.error is not None:
        return f"{path}\terror: {found.error.detail or found.error.title}"
    labels = (f"{label.label}\t{label.probability:.4f}" for label in found.top)
    return "\t".join([str(path), *labels])


def _as_json(path: Path, found: Prediction) -> str:
    answer = found.model_dump(include={"top", "error"}, exclude_none=True, mode="json")
    if found.error is not None:
        del answer["top"]
    return json.dumps({"image": str(path), **answer}, ensure_ascii=False)
