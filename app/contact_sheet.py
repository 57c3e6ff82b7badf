"""A dataset at a glance: some images of some classes, one row for each class, as one PNG.

Which images are shown is settled by the dataset alone: evenly spread over those of a class in the
first split that there is. An image that cannot be shown, or is too large to be decoded for this,
leaves its place grey.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from app.dataset_details import Images, spread
from models.preprocessing import flat_colours, open_image
from store.dataset_cache import entry_name, keep_file, kept_file
from store.datasets import Dataset, DatasetStore
from store.errors import InvalidDataset, InvalidImage

# Part of the entry's name: raised when sheets look different.
_DRAWING = 2
_FILE = "sheet.png"
_TILE, _GAP, _NAME_WIDTH = 64, 4, 160
_MOST_NAME_CHARACTERS = 24
# What one image, and all of a sheet, may have: an image of 25 million pixels takes 100 MB, and the
# coefficients of a progressive JPEG of that size 150 MB.
_MOST_IMAGE_PIXELS = 25_000_000
_MOST_PIXELS = 400_000_000
_PAPER, _INK, _EMPTY = "white", "black", (224, 224, 224)


@dataclass(frozen=True)
class SheetSize:
    """How many classes a sheet shows, the first ones, and how many images of each."""

    classes: int
    samples: int


def sheet_name(dataset: Dataset, size: SheetSize) -> str:
    """Return what tells this sheet from every other: its name in the cache, and its tag."""
    return entry_name(dataset.digest, _what(size))


def kept_sheet(dataset: Dataset, size: SheetSize, cache: Path) -> bytes | None:
    """Return the sheet as a PNG from the cache; None where it is not there."""
    return kept_file(cache, dataset.digest, _what(size), _FILE)


def draw_sheet(
    store: DatasetStore, dataset: Dataset, size: SheetSize, cache: Path
) -> tuple[bytes, bool]:
    """Draw the sheet as a PNG, and keep it where it is complete: every file could be read.

    Returns the sheet, and whether it is complete.

    Raises:
        NotFound: the dataset is gone.
        Unavailable: it lies in a root that is not configured here, or is damaged.
        StorageExhausted: the disk is full.
    """
    # Another one may have drawn it while this one waited.
    kept = kept_sheet(dataset, size, cache)
    if kept is not None:
        return kept, True
    sheet = _Sheet(dataset, store.stored_images(dataset.name), size)
    data = sheet.draw()
    if sheet.is_complete:
        keep_file(cache, dataset.digest, _what(size), _FILE, data)
    return data, sheet.is_complete


def _what(size: SheetSize) -> str:
    return f"sheet-{size.classes}x{size.samples}-v{_DRAWING}"


class _Sheet:
    """One sheet while it is drawn; ``is_complete`` tells whether every image could be read."""

    def __init__(self, dataset: Dataset, images: Images, size: SheetSize) -> None:
        self._names = dataset.classes[: size.classes]
        self._images = images
        self._samples = size.samples
        self._pixels_left = _MOST_PIXELS
        self.is_complete = True

    def draw(self) -> bytes:
        """Return the whole sheet as a PNG."""
        step = _TILE + _GAP
        width = _NAME_WIDTH + self._samples * step
        paper = Image.new("RGB", (width, _GAP + len(self._names) * step), _PAPER)
        pen = ImageDraw.Draw(paper)
        font = ImageFont.load_default()
        for label, name in enumerate(self._names):
            top = _GAP + label * step
            pen.text((_GAP, top + _TILE // 2 - 6), _short(name), fill=_INK, font=font)
            for place, row in enumerate(self._rows(label)):
                paper.paste(self._tile(row), (_NAME_WIDTH + place * step, top))
        target = BytesIO()
        paper.save(target, "PNG")
        return target.getvalue()

    def _rows(self, label: int) -> list[int]:
        rows = np.flatnonzero(self._images.labels == label).tolist()
        split = self._images.split(rows[0])
        rows = [row for row in rows if self._images.split(row) == split]
        return [rows[number] for number in spread(len(rows), self._samples)]

    def _tile(self, row: int) -> Image.Image:
        try:
            data = self._images.read(row)
        except InvalidDataset:
            self.is_complete = False
            return Image.new("RGB", (_TILE, _TILE), _EMPTY)
        try:
            return self._shrunk(data)
        except InvalidImage:
            return Image.new("RGB", (_TILE, _TILE), _EMPTY)

    def _shrunk(self, data: bytes) -> Image.Image:
        """Return the image in a tile, whole and undistorted. Raises `InvalidImage`."""
        with open_image(data) as image:
            pixels = image.width * image.height
            if pixels > min(_MOST_IMAGE_PIXELS, self._pixels_left):
                raise InvalidImage("The image is too large for a sheet.")
            self._pixels_left -= pixels
            # A JPEG is decoded at a fraction of its size where that is enough. That saves time; the
            # coefficients of a progressive one are held all the same, so the limits are on the
            # size that it has.
            image.draft("RGB", (2 * _TILE, 2 * _TILE))
            image.load()
            colours = flat_colours(image, 3)
        colours.thumbnail((_TILE, _TILE))
        scale = min(_TILE / colours.width, _TILE / colours.height)
        if scale > 1:
            size = (max(1, int(colours.width * scale)), max(1, int(colours.height * scale)))
            # Small images are shown as they are, pixel by pixel.
            colours = colours.resize(size, Image.Resampling.NEAREST)
        tile = Image.new("RGB", (_TILE, _TILE), _EMPTY)
        tile.paste(colours, ((_TILE - colours.width) // 2, (_TILE - colours.height) // 2))
        return tile


def _short(name: str) -> str:
    if len(name) <= _MOST_NAME_CHARACTERS:
        return name
    return name[: _MOST_NAME_CHARACTERS - 1] + "…"
