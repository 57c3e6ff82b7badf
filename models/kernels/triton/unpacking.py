"""Device code: packed weights to numbers -1 and +1, in the order of `word_order`."""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
# Triton finds out the types of device code, each time that it is compiled.

import triton
import triton.language as tl


@triton.jit
def unpack(words, READ: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return the weights ``(ROWS, CHANNELS)`` of ``words (ROWS, CHANNELS / 32)``.

    They have the type in which the other factor is read: int8, float16 or float32.
    """
    if READ == "i8":
        # Bytes of 0 and 1 become those of 1 and -1, and 0xFF ^ 0xFE is 1: no carry anywhere.
        shifts = tl.arange(0, 8)[None, None, :]
        four = (((words[:, :, None] >> shifts) & 0x01010101) * 0xFE) ^ -1
        even = tl.join(four.to(tl.int8), (four >> 16).to(tl.int8))
        odd = tl.join((four >> 8).to(tl.int8), (four >> 24).to(tl.int8))
        return tl.reshape(tl.join(even, odd), [ROWS, CHANNELS])
    elif READ == "f16":
        # The bit goes to the sign of 1.0 = 0x3C00 twice, inverted.
        shifts = 15 - tl.arange(0, 16)[None, None, :]
        two = ((words[:, :, None] << shifts) & -0x7FFF8000) ^ -0x43FF4400
        low = two.to(tl.int16).to(tl.float16, bitcast=True)
        high = (two >> 16).to(tl.int16).to(tl.float16, bitcast=True)
        return tl.reshape(tl.join(low, high), [ROWS, CHANNELS])
    else:
        shifts = 31 - tl.arange(0, 32)[None, None, :]
        one = ((words[:, :, None] << shifts) & -0x80000000) ^ -0x40800000
        return tl.reshape(one.to(tl.float32, bitcast=True), [ROWS, CHANNELS])


@triton.jit
def bit_of(channels, READ: tl.constexpr):
    """Return which bit of its word holds the weight of each of ``channels``."""
    within = channels % 32
    if READ == "i8":
        return within % 4 * 8 + within // 4
    elif READ == "f16":
        return within % 2 * 16 + within // 2
    else:
        return within
