"""Sizes of feature maps, and the refusal of inputs that would leave nothing of them."""

from store.errors import InvalidSpec

Size = tuple[int, int]
"""Height and width of an image or feature map, in pixels."""


def window_size(size: Size, kernel: int, *, stride: int = 1, padding: int = 0) -> Size:
    """Return the map that a convolution or pool with a square window makes of ``size``."""
    height, width = ((edge + 2 * padding - kernel) // stride + 1 for edge in size)
    return height, width


def require_size(architecture: str, size: Size, least: int) -> None:
    """Check that both edges of ``size`` are at least ``least`` pixels.

    Raises:
        InvalidSpec: naming the smallest input that leaves the last feature map a pixel.
    """
    height, width = size
    if min(size) < least:
        raise InvalidSpec(
            f"{architecture} cannot take images of {height} x {width} pixels: "
            "its last feature map would be empty.",
            field="spec.input",
            remedy=f"Use an input of at least {least} x {least} pixels, or a smaller network.",
        )
