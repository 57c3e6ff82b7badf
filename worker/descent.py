"""Cyclic descent over the bits of binary filters: what BWNH's alternation comes down to.

Every filter is coded as ``a b``, b in {-1, +1}^S, with the loss (see `worker.statistics`)

    L(a, b) = e - 2 a b^T p + a^2 b^T G b

The *scale step* ``a = b^T p / b^T G b`` and the *bit step*, over j = 1..S, alternate, and neither
can raise L. There are two tests for a bit:

*   with the scale fixed for a whole sweep, as the paper has it,
    ``b_j = sign(a (p_j - a (G b)_j + a G_jj b_j))``;
*   with the scale *eliminated*: at its best scale a filter loses ``e - (b^T p)^2 / b^T G b``, so a
    bit is turned where the quotient grows. Both of its parts are known, and a turned bit changes
    them by ``-2 b_j p_j`` and ``4 G_jj - 4 b_j (G b)_j``. The scale follows every single bit.

All filters are solved side by side; the rows j are taken in blocks, with one matrix product per
block for ``(G B)`` and a small sequential part inside the block. The decisions are those of the row
by row order: only the grouping of the arithmetic differs.

Everything takes place where the statistics are. On a GPU a block's sequential part is one kernel,
which decides as `decide` does, and nothing is asked of the GPU from the start of a sweep to its
end.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from store.errors import Unavailable
from worker.statistics import LayerStatistics

# Rows per block: the matrix product gains with size, the sequential part loses (measured: 32 to
# 128 lie within a few percent).
BLOCK_ROWS = 64

# A filter that answers the layer's input with less than this share of what a random filter would
# is dead: its scale has no meaning and stays what it was.
DEAD_SHARE = 1e-12

# A quotient has to grow by this share, so that rounding cannot turn a bit for ever.
LEAST_GAIN = 1e-7

# Takes what `decide` takes, as tensors, brings the same up to date but for the rows, and returns by
# how much the codes changed, (rows, n).
BlockStep = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor], Tensor]


@dataclass
class Solution:
    """Codes (S, N), like the statistics, and, per filter in float64, a, ``b^T p``, ``b^T G b``.

    ``dead_below`` is the response below which a filter is dead. Without ``learn_scale`` every scale
    stays what it is.
    """

    codes: Tensor
    scales: Tensor
    correlation: Tensor
    response: Tensor
    energy: Tensor
    dead_below: float
    learn_scale: bool

    @classmethod
    def start(
        cls, statistics: LayerStatistics, codes: Tensor, scales: Tensor, *, learn_scale: bool = True
    ) -> "Solution":
        """Take up ``codes`` (S, N), which are changed in place, and ``scales`` (N,)."""
        products = statistics.products(codes)
        response = torch.zeros(codes.shape[1], dtype=torch.float64, device=codes.device)
        for block in row_blocks(len(codes)):
            response += (codes[block] * products.rows(block)).sum(dim=0, dtype=torch.float64)
        correlation = (codes * statistics.projection).sum(dim=0, dtype=torch.float64)
        energy = statistics.energy.double()
        # Random signs respond with the trace of G on average.
        dead_below = DEAD_SHARE * len(codes) * statistics.mean_diagonal()
        return cls(codes, scales.double(), correlation, response, energy, dead_below, learn_scale)

    @property
    def alive(self) -> Tensor:
        """Which filters (N,) answer the layer's input at all."""
        return self.response > self.dead_below

    def fit_scales(self) -> None:
        """Set every scale to its best value for the present codes."""
        if not self.learn_scale:
            return
        best = self.correlation / torch.where(self.alive, self.response, 1.0)
        self.scales = torch.where(self.alive, best, self.scales)

    def losses(self) -> Tensor:
        """Return the squared error of each filter (N,), float64."""
        error = (
            self.energy - 2 * self.scales * self.correlation + self.scales.square() * self.response
        )
        return error.clamp(min=0)

    def loss(self) -> float:
        """Return the squared error of all filters over the energy of their targets."""
        total = self.energy.sum()
        return float(self.losses().sum() / total) if total > 0 else 0.0

    def make_scales_positive(self) -> None:
        """Move the sign of a negative scale into its codes, which changes no loss."""
        flip = torch.where(self.scales < 0, -1.0, 1.0).double()
        self.codes *= flip.float()
        self.scales = self.scales * flip
        self.correlation = self.correlation * flip


def descend(
    statistics: LayerStatistics, solution: Solution, sweeps: int, *, eliminate: bool = False
) -> Iterator[float]:
    """Improve ``solution`` in place; yield its loss at the start and after every sweep.

    ``eliminate`` chooses the second test, which needs scales that are learnt. A filter of which no
    bit turned during a sweep keeps its scale and so can never change again: it is left out of
    later sweeps, which changes no result.
    """
    eliminate = eliminate and solution.learn_scale
    yield solution.loss()
    active = torch.arange(solution.codes.shape[1], device=solution.codes.device)
    for _ in range(sweeps):
        solution.fit_scales()  # only the first time does this change anything
        codes = solution.codes[:, active]
        turned = _sweep(statistics, solution, codes, active, eliminate)
        solution.codes[:, active] = codes
        solution.fit_scales()
        yield solution.loss()
        active = active[turned]
        if len(active) == 0:
            return


def _sweep(
    statistics: LayerStatistics, solution: Solution, codes: Tensor, active: Tensor, eliminate: bool
) -> Tensor:
    """Pass once over all bits of ``codes`` (S, n); return which of the n filters changed."""
    projection = statistics.projection[:, active]
    scales = None if eliminate else solution.scales[active].to(codes.dtype)
    correlation, response = solution.correlation[active], solution.response[active]
    turned = torch.zeros(len(active), dtype=torch.bool, device=codes.device)
    products, step = statistics.products(codes), block_step(codes.device)
    for block in row_blocks(len(codes)):
        change = step(
            codes[block],
            products.rows(block),
            projection[block],
            statistics.gram_block(block),
            scales,
            correlation,
            response,
        )
        turned |= change.any(dim=0)
        products.update(block, change)
    solution.correlation[active], solution.response[active] = correlation, response
    return turned


def block_step(device: torch.device) -> BlockStep:
    """Return what applies the bit step to a block whose tensors are on ``device``.

    Raises:
        Unavailable: that is a GPU, and Triton is not installed.
    """
    if device.type == "cpu":
        return _decide_in_place
    try:
        from models.kernels.triton.bit_updates import turn_bits
    except ImportError:
        raise Unavailable(
            "Calibration on a GPU needs Triton, which is not installed here.",
            remedy="Ask the operator to install it, or to set BITPRESS_DEVICE=cpu.",
        ) from None
    return partial(turn_bits, least_gain=LEAST_GAIN)


def _decide_in_place(
    codes: Tensor,
    rows: Tensor,
    projection: Tensor,
    gram: Tensor,
    scales: Tensor | None,
    correlation: Tensor,
    response: Tensor,
) -> Tensor:
    before = codes.clone()
    # numpy, since a block is thousands of tiny vectors: its calls cost a fifth of torch's.
    decide(
        codes.numpy(),
        rows.numpy(),
        projection.numpy(),
        gram.numpy(),
        None if scales is None else scales.numpy(),
        correlation.numpy(),
        response.numpy(),
    )
    return codes - before


def decide(
    codes: NDArray[np.float32],
    rows: NDArray[np.float32],
    projection: NDArray[np.float32],
    gram: NDArray[np.float32],
    scales: NDArray[np.float32] | None,
    correlation: NDArray[np.float64],
    response: NDArray[np.float64],
) -> None:
    """Apply the bit step to one block, row by row, each row knowing all decisions before it.

    ``codes``, ``rows`` = ``(G B)[block]`` and ``projection`` have shape (rows, n), ``gram`` is
    (rows, rows); ``scales`` (n,), or None where they are eliminated. ``correlation`` and
    ``response`` are ``b^T p`` and ``b^T G b``, (n,). All but ``projection``, ``gram`` and
    ``scales`` are brought up to date in place. A bit whose two values are equally good keeps its
    value.
    """
    for j in range(len(codes)):
        old = codes[j]
        if scales is None:
            turned = _grown_quotients(
                old * projection[j], old * rows[j], gram[j, j], correlation, response
            )
        else:
            gain = rows[j] - gram[j, j] * old
            gain *= scales
            np.subtract(projection[j], gain, out=gain)
            gain *= scales
            # A gain of the bit's own sign keeps it, and so does none at all.
            gain *= old
            (turned,) = (gain < 0).nonzero()
        if len(turned) == 0:
            continue
        step = -2 * old[turned]
        correlation[turned] += step * projection[j, turned]
        response[turned] += step * (2 * rows[j, turned] + step * gram[j, j])
        codes[j, turned] += step
        if 4 * len(turned) < len(old):
            rows[j + 1 :, turned] += np.outer(gram[j + 1 :, j], step)
        else:
            change = np.zeros_like(old)
            change[turned] = step
            rows[j + 1 :] += np.outer(gram[j + 1 :, j], change)


def _grown_quotients(
    share: NDArray[np.float32],
    answer: NDArray[np.float32],
    diagonal: np.float32,
    correlation: NDArray[np.float64],
    response: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Return for which filters ``(b^T p)^2 / b^T G b`` grows where bit j is turned.

    ``share`` is ``b_j p_j``, ``answer`` is ``b_j (G b)_j``, both (n,). Quotients are compared
    crosswise, so that nothing is divided by a vanishing response.
    """
    after = correlation - 2.0 * share
    energy = response + 4.0 * (float(diagonal) - answer)
    grown = after**2 * response > (1 + LEAST_GAIN) * correlation**2 * energy
    turned: NDArray[np.int64] = (grown & (energy > 0)).nonzero()[0]
    return turned


def row_blocks(count: int) -> Iterator[slice]:
    """Divide ``count`` rows into blocks of `BLOCK_ROWS`."""
    for start in range(0, count, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, count))
