"""What a dataset's images are like: of a sample the heads are read, and no image is decoded.

What was found is kept in the cache, as it belongs to the content and never changes.
"""

from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ValidationError

from app.schemas import ImageSize, ImageSizes
from models.preprocessing import open_image
from store.dataset_cache import keep_file, kept_file
from store.dataset_roots import RootImages
from store.datasets import Dataset, DatasetStore, StoredImages
from store.errors import InvalidDataset, InvalidImage, StorageExhausted

# Part of the entry's name: raised when something else is kept.
_FORM = 1
_FILE = "details.json"
_SAMPLED = 256
_HEAD_BYTES = 64 * 1024
# For images that tell their size further behind, or only as a whole.
_MOST_BYTES_READ_WHOLE = 64 * 2**20

Images = StoredImages | RootImages


class DatasetDetails(BaseModel):
    """Images by split and class, and the sizes of a sample; None where none can be read."""

    counts: dict[str, dict[str, int]]
    image_sizes: ImageSizes | None


def kept_details(dataset: Dataset, cache: Path) -> DatasetDetails | None:
    """Return the details from the cache; None where they are not there."""
    data = kept_file(cache, dataset.digest, _what(), _FILE)
    with suppress(ValidationError):
        return None if data is None else DatasetDetails.model_validate_json(data)
    return None


def find_details(store: DatasetStore, dataset: Dataset, cache: Path) -> DatasetDetails:
    """Look into the images, and keep what was found where all of the sample could be read.

    Raises:
        NotFound: the dataset is gone.
        Unavailable: it lies in a root that is not configured here, or is damaged.
    """
    images = store.stored_images(dataset.name)
    sample = _Sample(images)
    details = DatasetDetails(counts=_counts(dataset, images), image_sizes=sample.sizes())
    if sample.is_complete:
        # They can be found again at any time.
        with suppress(StorageExhausted):
            data = details.model_dump_json().encode()
            keep_file(cache, dataset.digest, _what(), _FILE, data)
    return details


def _what() -> str:
    return f"details-v{_FORM}"


class _Sample:
    """Images evenly spread over all; ``is_complete`` tells whether each file could be read."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._bytes_left = _MOST_BYTES_READ_WHOLE
        self.is_complete = True

    def sizes(self) -> ImageSizes | None:
        sizes = []
        for row in spread(len(self._images), _SAMPLED):
            try:
                sizes.append(self._size(row))
            except InvalidImage:
                continue
            except InvalidDataset:
                self.is_complete = False
        if not sizes:
            return None
        sizes.sort(key=lambda size: (size[0] * size[1], size))
        picked = (sizes[0], sizes[len(sizes) // 2], sizes[-1])
        smallest, median, largest = (ImageSize(height=h, width=w) for w, h in picked)
        return ImageSizes(sampled=len(sizes), smallest=smallest, median=median, largest=largest)

    def _size(self, row: int) -> tuple[int, int]:
        """Return width and height. Raises `InvalidImage`, and `InvalidDataset` for its file."""
        head = self._images.head(row, _HEAD_BYTES)
        try:
            return _size_of(head)
        except InvalidImage:
            whole = self._images.size(row)
            if not len(head) < whole <= self._bytes_left:
                raise
            self._bytes_left -= whole
            return _size_of(self._images.read(row))


def _size_of(data: bytes) -> tuple[int, int]:
    with open_image(data) as image:
        return image.size


def _counts(dataset: Dataset, images: Images) -> dict[str, dict[str, int]]:
    """Return the number of images by split and class, in their order."""
    counts = images.counts(len(dataset.classes))
    return {
        split: dict(zip(dataset.classes, counts[split], strict=True)) for split in dataset.splits
    }


def spread(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the numbers below ``count``, evenly spread from the first on."""
    return [number * count // min(count, most) for number in range(min(count, most))]
