"""THE bit contract: how signs become bits, and what a product of bits means.

A weight or activation is -1 or +1. Bit 1 stands for +1, bit 0 for -1, and sign(0) = +1.

**On disk** a filter is one row of bytes. Its S = C * kh * kw bits stand kernel tap by kernel tap
(row by row, ``ky`` before ``kx``), the C input channels of a tap innermost. Bits fill each byte
from the least significant up, and zeros pad the row to a whole byte at the filter's end. A linear
layer is the case kh = kw = 1: bit j is input j.

**At run time** kernels want whole words per tap, so that a tap's channels start at a word's
border: `repack` makes that layout. Its padding bits are 0, in weights and in activations alike,
and a product that looks at them must give what it gives without them.

Everything that packs or reads bits goes through this module or is tested against it. The products
at the end are the plain statements of methods.md section 0 that any kernel must equal.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Packed = NDArray[np.uint8]
Words = NDArray[np.int32] | NDArray[np.int64]


def sign(x: ArrayLike) -> NDArray[np.int8]:
    """Return +1 where ``x >= 0`` and -1 elsewhere, int8 of the same shape."""
    return np.where(np.asarray(x) >= 0, 1, -1).astype(np.int8)


def row_bytes(shape: tuple[int, ...]) -> int:
    """Return the bytes of one packed filter of weights ``(N, C, kh, kw)`` or ``(N, S)``."""
    return (_filter_bits(shape) + 7) // 8


def pack(codes: NDArray[Any]) -> Packed:
    """Pack codes -1 and +1, ``(N, C, kh, kw)`` or ``(N, S)``, to uint8 ``(N, ceil(S / 8))``.

    Raises:
        ValueError: another number of axes, or a code that is neither -1 nor +1.
    """
    if codes.ndim not in (2, 4):
        raise ValueError("codes must be (N, C, kh, kw) or (N, S)")
    if not np.all((codes == 1) | (codes == -1)):
        raise ValueError("codes must be -1 or +1")
    rows = _tap_by_tap(codes).reshape(len(codes), -1)
    return np.packbits(rows > 0, axis=1, bitorder="little")


def unpack(packed: Packed, shape: tuple[int, ...]) -> NDArray[np.int8]:
    """Return the int8 codes of ``shape``, ``(N, C, kh, kw)`` or ``(N, S)``, that `pack` took.

    Raises:
        ValueError: ``packed`` is not uint8 ``(N, ceil(S / 8))``, or a padding bit is set.
    """
    bits = _bits(packed, shape)
    codes = 2 * bits.astype(np.int8) - 1
    if len(shape) == 2:
        return codes
    filters, channels, height, width = shape
    taps_first = codes.reshape(filters, height, width, channels)
    return np.ascontiguousarray(taps_first.transpose(0, 3, 1, 2))


def repack(packed: Packed, shape: tuple[int, ...], word_bits: Literal[32, 64] = 64) -> Words:
    """Return the runtime layout ``(N, taps, words)``, int64 or int32, of packed weights.

    Every tap begins a new word; channel c of a tap is bit ``c % word_bits`` (counted from the
    least significant) of word ``c // word_bits``; the bits past the last channel are 0. Words are
    signed because torch has no shifts on unsigned ones: only their bits matter.

    Raises:
        ValueError: as `unpack`; or words of another size are asked for.
    """
    if word_bits not in (32, 64):
        raise ValueError("words have 32 or 64 bits")
    channels = shape[1]
    taps = _filter_bits(shape) // channels
    bits = _bits(packed, shape).reshape(len(packed), taps, channels)
    return _to_words(bits, word_bits)


def pack_words(codes: NDArray[Any], word_bits: Literal[32, 64] = 64) -> Words:
    """Pack activations -1 and +1, channels last ``(..., C)``, to words ``(..., ceil(C / bits))``.

    The layout is that of one tap in `repack`.
    """
    return _to_words(np.asarray(codes) > 0, word_bits)


def padding_is_zero(packed: Packed, shape: tuple[int, ...]) -> bool:
    """Tell whether the bits after each filter's last one are 0, as the contract demands."""
    used = _filter_bits(shape) % 8
    return used == 0 or not np.any(packed[..., -1] >> used)


def dot_w1a32(x: NDArray[Any], packed: Packed) -> NDArray[np.float64]:
    """Real inputs ``(M, S)`` by packed weights ``(N, bytes)``: float64 ``(M, N)``.

    ``sum_j w_j x_j = 2 * sum over set bits of x_j  -  sum_j x_j``: the second term is shared by
    all filters, and only half of the first needs adding.
    """
    values = np.asarray(x, dtype=np.float64)
    bits = _bits(packed, (len(packed), values.shape[1])).astype(np.float64)
    result: NDArray[np.float64] = 2 * (values @ bits.T) - values.sum(axis=1, keepdims=True)
    return result


def dot_w1ak(x: NDArray[Any], packed: Packed, activation_bits: int) -> NDArray[np.int64]:
    """Unsigned inputs below ``2**activation_bits``, ``(M, S)``, by packed weights: ``(M, N)``.

    Over the bit planes x_p of x and the weight's bits b:
    ``sum_p 2^p * (2 * pop(x_p & b) - pop(x_p))``.

    Raises:
        ValueError: an input is negative or too large.
    """
    if np.any(x < 0) or np.any(x >= 2**activation_bits):
        raise ValueError(f"inputs must be in 0..{2**activation_bits - 1}")
    result = np.zeros((len(x), len(packed)), dtype=np.int64)
    for plane in range(activation_bits):
        ones = np.packbits((x >> plane) & 1 != 0, axis=1, bitorder="little")
        both = _ones(ones[:, None] & packed[None])
        result += 2**plane * (2 * both - _ones(ones)[:, None])
    return result


def dot_w1a1_xnor(a: NDArray[Any], b: NDArray[Any], valid_bits: int) -> NDArray[np.int64]:
    """Signs ``(M, words)`` by signs ``(N, words)``, n valid bits: ``n - 2 * pop(a ^ b)``.

    Padding bits are 0 on both sides, so that they do not differ and do not count.
    """
    return valid_bits - 2 * _ones(a[:, None] ^ b[None])


def dot_w1a1_and(a: NDArray[Any], b: NDArray[Any], valid_bits: int) -> NDArray[np.int64]:
    """The same product for hardware that counts ``a & b`` only.

    ``n - 2 * pop(a) - 2 * pop(b) + 4 * pop(a & b)``.
    """
    own_a, own_b = _ones(a)[:, None], _ones(b)[None]
    return valid_bits - 2 * own_a - 2 * own_b + 4 * _ones(a[:, None] & b[None])


def popcount(words: NDArray[Any]) -> NDArray[np.int64]:
    """Return the number of set bits of each integer, int64 of the same shape."""
    # numpy counts the bits of the absolute value; here the sign bit is one like the others.
    unsigned = words.view(np.dtype(f"u{words.dtype.itemsize}"))
    counts: NDArray[np.int64] = np.bitwise_count(unsigned).astype(np.int64)
    return counts


def _ones(words: NDArray[Any]) -> NDArray[np.int64]:
    """Return the set bits of each row of words, summed over the last axis."""
    counts: NDArray[np.int64] = popcount(words).sum(axis=-1)
    return counts


def _filter_bits(shape: tuple[int, ...]) -> int:
    if len(shape) not in (2, 4) or min(shape[1:]) < 1:
        raise ValueError("a weight's shape is (N, C, kh, kw) or (N, S)")
    bits = 1
    for size in shape[1:]:
        bits *= size
    return bits


def _tap_by_tap(codes: NDArray[Any]) -> NDArray[Any]:
    return codes.transpose(0, 2, 3, 1) if codes.ndim == 4 else codes


def _bits(packed: Packed, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the bits, uint8 ``(N, S)``, in the order on disk."""
    if packed.dtype != np.uint8 or packed.shape != (shape[0], row_bytes(shape)):
        raise ValueError(f"packed must be uint8 {(shape[0], row_bytes(shape))}")
    if not padding_is_zero(packed, shape):
        raise ValueError("a padding bit is set")
    return np.unpackbits(packed, axis=1, count=_filter_bits(shape), bitorder="little")


def _to_words(bits: NDArray[Any], word_bits: int) -> Words:
    channels = bits.shape[-1]
    words = -(-channels // word_bits)
    padded = np.zeros((*bits.shape[:-1], words * word_bits), dtype=bool)
    padded[..., :channels] = bits != 0
    packed = np.packbits(padded, axis=-1, bitorder="little")
    # Little-endian by name: on another machine the bytes would stand the other way around.
    if word_bits == 32:
        return packed.view("<i4").astype(np.int32, copy=False)
    return packed.view("<i8").astype(np.int64, copy=False)
