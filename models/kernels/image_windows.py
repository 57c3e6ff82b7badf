"""Images of few channels, laid out for the product that reads them.

A product takes the channels of one tap in words of 32, of which the three colours of a pixel leave
29 idle. All pixels that one row of its kernel reads, side by side as the channels of a single tap,
fill a word: 7 x 7 taps of 3 channels become 7 x 1 taps of 21, the bits of the weights in the same
order as before.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageWindows:
    """The ``columns`` pixels from ``column * stride - padding`` on stand at ``column``.

    Channel ``k * C + c`` is channel c of the k-th of them. ``outside`` is what is kept for a pixel
    outside of the image: a number, or a level minus 128.
    """

    columns: int = 1
    stride: int = 1
    padding: int = 0
    outside: float = 0.0

    def count(self, width: int) -> int:
        """Return how many windows stand in a row of ``width`` pixels."""
        return (width + 2 * self.padding - self.columns) // self.stride + 1


WHOLE_PIXELS = ImageWindows()
