"""Registered datasets."""

from datetime import datetime

from pydantic import Field

from client.wire.model import Wire


class Dataset(Wire):
    """A registered dataset; ``splits`` counts the images of each split.

    ``archive_digest`` is that of the file that was sent, None where the images stay in an
    operator's ``root``; ``source`` is the form they came in.
    """

    name: str
    digest: str
    archive_digest: str | None = None
    source: str | None = None
    root: str | None = None
    classes: tuple[str, ...]
    splits: dict[str, int]
    bytes: int
    created_at: datetime


class ImageSize(Wire):
    """Pixels of an image's sides."""

    height: int
    width: int


class ImageSizes(Wire):
    """The sizes of some of a dataset's images: ``sampled`` of them were looked at."""

    sampled: int
    smallest: ImageSize
    median: ImageSize
    largest: ImageSize


class DatasetDetail(Dataset):
    """A dataset looked at closely; ``counts`` has the images of each class by split."""

    counts: dict[str, dict[str, int]] = Field(default_factory=dict)
    image_sizes: ImageSizes | None = None
