"""Telling images from other files by their first bytes, without decoding anything."""

from pathlib import PurePosixPath

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")
# Two letters prove little: these need the file's name to agree.
_WEAK_MAGIC = {
    ".bmp": (b"BM",),
    ".dib": (b"BM",),
    ".pbm": (b"P1", b"P4"),
    ".pgm": (b"P2", b"P5"),
    ".ppm": (b"P3", b"P6"),
    ".pnm": (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"),
}
_IMAGE_SUFFIXES = frozenset(_WEAK_MAGIC) | {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp"),
    *(".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".tga", ".ico", ".svg"),
}


def is_image(name: str, data: bytes) -> bool:
    """Whether ``data`` begins as a JPEG, PNG, GIF, WebP, BMP or PPM file does."""
    if data.startswith(_MAGIC) or (data.startswith(b"RIFF") and data[8:12] == b"WEBP"):
        return True
    return data.startswith(_WEAK_MAGIC.get(_suffix(name), ()))


def claims_to_be_image(name: str) -> bool:
    """Whether the file's name says that it is an image, of a supported kind or another."""
    return _suffix(name) in _IMAGE_SUFFIXES


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
