"""Device code: what is done with a product's sums before they are kept.

Everything is float32 and in the order of docs/FORMAT.md, section 4.4. Compiled without fused
multiply-adds, it gives the very bits that the reference gives.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
# Triton finds out the types of device code, each time that it is compiled.

import triton
import triton.language as tl


@triton.jit
def finish(
    product,
    pixel,
    filter,
    inside,
    out,
    affine,
    slope,
    threshold,
    residual,
    read_step,
    lower,
    upper,
    kept_low,
    kept_step,
    filters,
    READ: tl.constexpr,
    KEPT: tl.constexpr,
    KEPT_BITS: tl.constexpr,
    AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    THRESHOLD: tl.constexpr,
    PIXEL_BLOCK: tl.constexpr,
    FILTER_BLOCK: tl.constexpr,
    also=None,
    also_low=0.0,
    also_step=1.0,
    ALSO_BITS: tl.constexpr = 0,
):
    """Keep ``product``, float32 ``(PIXEL_BLOCK, FILTER_BLOCK)``, where ``inside`` says.

    ``pixel`` and ``filter`` number the tile's rows and columns in the result, whose rows have
    ``filters`` numbers. With ``ALSO_BITS`` its levels go to ``also`` besides.
    """
    here = filter < filters
    y = product
    if AFFINE:
        gain = tl.load(affine + filter, mask=here, other=0.0)
        shift = tl.load(affine + filters + filter, mask=here, other=0.0)
        y = gain[None, :] * y
        y = y + shift[None, :]
    elif READ == "i8":
        y = read_step * y
    numbers = pixel.to(tl.int64)[:, None] * filters + filter[None, :]
    if RESIDUAL:
        y = y + tl.load(residual + numbers, mask=inside, other=0.0).to(tl.float32)
    y = activate(y, filter, filters, slope, lower, upper, ACTIVATION)
    if ALSO_BITS > 0:
        level = quantized(y, also_low, also_step, ALSO_BITS)
        tl.store(also + numbers, (level.to(tl.int32) - 128).to(tl.int8), mask=inside)
    if KEPT == "b1":
        if THRESHOLD:
            sense = tl.load(threshold + filter, mask=here, other=0.0)
            least = tl.load(threshold + filters + filter, mask=here, other=0.0)
            positive = sense[None, :] * y >= least[None, :]
        else:
            positive = y >= 0
        keep_signs(positive, pixel, filter, filters, inside, out, PIXEL_BLOCK, FILTER_BLOCK)
    elif KEPT == "i8":
        level = quantized(y, kept_low, kept_step, KEPT_BITS)
        tl.store(out + numbers, (level.to(tl.int32) - 128).to(tl.int8), mask=inside)
    elif KEPT == "f16":
        tl.store(out + numbers, y.to(tl.float16), mask=inside)
    else:
        tl.store(out + numbers, y, mask=inside)


@triton.jit
def activate(y, channel, channels, slope, lower, upper, ACTIVATION: tl.constexpr):
    """Return the activation of ``y``, whose last axis ``channel`` numbers."""
    if ACTIVATION == "relu":
        return tl.where(y < 0, 0.0, y)
    elif ACTIVATION == "hardtanh":
        return tl.where(y < lower, lower, tl.where(y > upper, upper, y))
    elif ACTIVATION == "prelu":
        slopes = tl.load(slope + channel, mask=channel < channels, other=0.0)
        return tl.where(y >= 0, y, slopes[None, :] * y)
    else:
        return y


@triton.jit
def quantized(y, low, step, BITS: tl.constexpr):
    """Return the levels of ``y`` as float32; ``step`` is the threshold where there is one bit."""
    if BITS == 1:
        return (y >= step).to(tl.float32)
    else:
        level = tl.floor(tl.div_rn(y - low, step) + 0.5)
        top: tl.constexpr = 2**BITS - 1
        return tl.where(level < 0, 0.0, tl.where(level > top, top * 1.0, level))


@triton.jit
def keep_signs(
    positive,
    pixel,
    channel,
    channels,
    inside,
    out,
    PIXEL_BLOCK: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
):
    """Keep signs as bits, 32 channels a word; the block's first channel begins a word."""
    WORDS: tl.constexpr = CHANNEL_BLOCK // 32
    row_words = (channels + 31) // 32
    bits = (positive & inside).to(tl.int32)
    split = tl.reshape(bits, [PIXEL_BLOCK, WORDS, 32]) << tl.arange(0, 32)[None, None, :]
    words = tl.sum(split, axis=2)
    word = tl.min(channel, axis=0) // 32 + tl.arange(0, WORDS)
    # Words none of whose channels are the tile's own may be another program's.
    own = tl.max(tl.reshape(inside.to(tl.int32), [PIXEL_BLOCK, WORDS, 32]), axis=2) != 0
    at = pixel.to(tl.int64)[:, None] * row_words + word[None, :]
    tl.store(out + at, words, mask=own)
