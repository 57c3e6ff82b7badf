"""The bit step of calibration over one block of rows: one kernel, a filter to each thread.

A filter's bits are decided one after the other, each knowing those before it; filters know nothing
of each other. So a program takes `FILTERS` filters, one for each thread of a single warp, and goes
through the block's rows in turn. A thread keeps its filter's column of ``(G B)`` for the whole
block in registers: the row whose turn it is, is picked by a sum over zeros, which rounds nothing,
and the rows behind it are corrected where it turned. No two threads ever have to wait for each
other, and what the next row needs is fetched while this one is decided.

Every operation is rounded as it stands here, in the order of `worker.descent.decide`: given equal
numbers the two decide alike, bit by bit.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
# Triton finds out the types of device code, each time that it is compiled.

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.triton.launching import blocks, launch

# Filters of a program: a warp's threads.
FILTERS = 32

# Rows of a program: the block may have fewer, which costs less than another compiled kernel.
ROWS = 64

# Nor is there one for every number of filters, and of rows that all begin at multiples of 16 Triton
# would have threads read four neighbours at once, and so lay a column over several threads. That
# neighbours lie side by side it has to know, for the same reason.
_ANY_NUMBER = ["count", "filters", "codes_row", "rows_row", "projection_row", "gram_row"]


@triton.jit(do_not_specialize=_ANY_NUMBER)
def _turn_bits(
    codes,
    rows,
    projection,
    gram,
    scales,
    correlation,
    response,
    change,
    count,
    filters,
    codes_row,
    codes_column,
    rows_row,
    rows_column,
    projection_row,
    projection_column,
    gram_row,
    gram_column,
    GROWTH: tl.constexpr,
    ELIMINATE: tl.constexpr,
    ROWS: tl.constexpr,
    FILTERS: tl.constexpr,
):
    filter = tl.program_id(0) * FILTERS + tl.arange(0, FILTERS)
    inside = filter < filters
    row = tl.arange(0, ROWS)
    block = (row[:, None] < count) & inside[None, :]
    place = row[:, None] * rows_row + filter[None, :] * rows_column
    answers = tl.load(rows + place, mask=block, other=0.0)
    along = tl.load(correlation + filter, mask=inside, other=0.0)
    energy = tl.load(response + filter, mask=inside, other=0.0)
    growth = tl.full([FILTERS], GROWTH, tl.float64)
    if not ELIMINATE:
        scale = tl.load(scales + filter, mask=inside, other=0.0)
    # Of the row that is decided next.
    bits = codes + filter * codes_column
    shares = projection + filter * projection_column
    column = gram + row * gram_row
    next_old = tl.load(bits, mask=inside, other=1.0)
    next_share = tl.load(shares, mask=inside, other=0.0)
    next_diagonal = tl.load(gram)
    next_column = tl.load(column, mask=row < count, other=0.0)
    for j in range(count):
        old, share, diagonal, answered = next_old, next_share, next_diagonal, next_column
        more = j + 1 < count
        shares += projection_row
        column += gram_column
        next_old = tl.load(bits + codes_row, mask=inside & more, other=1.0)
        next_share = tl.load(shares, mask=inside & more, other=0.0)
        next_diagonal = tl.load(gram + (j + 1) * (gram_row + gram_column), mask=more, other=0.0)
        next_column = tl.load(column, mask=(row < count) & more, other=0.0)

        answer = tl.sum(tl.where(row[:, None] == j, answers, 0.0), axis=0)
        if ELIMINATE:
            after = along - (2.0 * (old * share)).to(tl.float64)
            reached = energy + (4.0 * (diagonal - old * answer)).to(tl.float64)
            turned = (after * after) * energy > (growth * (along * along)) * reached
            turned = turned & (reached > 0.0)
        else:
            gain = (share - (answer - diagonal * old) * scale) * scale
            turned = gain * old < 0.0
        step = tl.where(turned, -2.0 * old, 0.0)
        along += (step * share).to(tl.float64)
        energy += (step * (2.0 * answer + step * diagonal)).to(tl.float64)
        tl.store(bits, old + step, mask=inside)
        tl.store(change + j * filters + filter, step, mask=inside)
        answers += tl.where(row > j, answered, 0.0)[:, None] * step[None, :]
        bits += codes_row
    tl.store(correlation + filter, along, mask=inside)
    tl.store(response + filter, energy, mask=inside)


@torch.library.custom_op("bitpress::turn_bits", mutates_args=("codes", "correlation", "response"))
def turn_bits(
    codes: Tensor,
    rows: Tensor,
    projection: Tensor,
    gram: Tensor,
    scales: Tensor | None,
    correlation: Tensor,
    response: Tensor,
    least_gain: float,
) -> Tensor:
    """Apply the bit step to one block of ``r`` rows of ``n`` filters, in place.

    Each bit is decided knowing all decisions on the rows before it; one whose two values are
    equally good keeps its value.

    Args:
        codes: -1 or +1, (r, n), float32 or float64, which the other tensors are too, but for the
            last two. Matrices may have any strides.
        rows: ``(G B)[block]``, (r, n); unchanged.
        projection: ``P[block]``, (r, n).
        gram: ``G[block, block]``, (r, r).
        scales: (n,), or None where a bit is turned if ``(b^T p)^2 / b^T G b`` grows by more than
            the share ``least_gain``.
        correlation: ``b^T p``, (n,), float64, brought up to date.
        response: ``b^T G b``, (n,), float64, brought up to date.

    Returns:
        by how much ``codes`` changed: -2, 0 or +2, (r, n), of the dtype of ``codes``.
    """
    count, filters = codes.shape
    change = codes.new_empty(count, filters)
    launch(
        _turn_bits,
        (blocks(filters, FILTERS),),
        codes,
        rows,
        projection,
        gram,
        correlation if scales is None else scales,  # then never read
        correlation,
        response,
        change,
        count,
        filters,
        *codes.stride(),
        *rows.stride(),
        *projection.stride(),
        *gram.stride(),
        GROWTH=1.0 + least_gain,
        ELIMINATE=scales is None,
        ROWS=max(ROWS, triton.next_power_of_2(count)),
        FILTERS=FILTERS,
        warps=1,
    )
    return change


@turn_bits.register_fake
def _(
    codes: Tensor,
    rows: Tensor,
    projection: Tensor,
    gram: Tensor,
    scales: Tensor | None,
    correlation: Tensor,
    response: Tensor,
    least_gain: float,
) -> Tensor:
    return codes.new_empty(codes.shape)
