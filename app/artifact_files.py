"""The files of published artifacts, read whole and as they were published, or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from models import artifact as artifacts
from store.artifacts import ModelVersion
from store.errors import InvalidArtifact, Unavailable


def check_intact(version: ModelVersion) -> None:
    """Read the artifact's file once more. Raises as `faults_named` does."""
    with faults_named(version):
        read_intact(version)


def read_intact(version: ModelVersion) -> bytes:
    """Return the artifact file's bytes. Raises `InvalidArtifact` where they are not as published.

    The file is read once: what is checked is what is used, whatever becomes of it in between.
    """
    with version.artifact_path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != version.artifact_bytes:
            raise InvalidArtifact("The file's size is not the recorded one.")
        data = file.read()
    if artifacts.digest(data) != version.digest:
        raise InvalidArtifact("The file's digest is not the recorded one.")
    return data


@contextmanager
def faults_named(version: ModelVersion) -> Iterator[None]:
    """Turn a file that cannot be used into `Unavailable`: the caller did nothing wrong.

    Raises:
        NotFound: the version has been deleted meanwhile.
        Unavailable: its file is missing or damaged.
    """
    fault = f"The stored file of {version.name}, version {version.version}, is"
    remedy = "Use another version, or compress the model again."
    try:
        yield
    except OSError:
        if not version.exists:
            raise version.deleted() from None
        raise Unavailable(f"{fault} missing.", field="model", remedy=remedy) from None
    except InvalidArtifact as error:
        raise Unavailable(
            f"{fault} damaged: {error.detail}", field="model", remedy=remedy
        ) from error
