"""BWNH: binary weights by hashing (Hu, Wang and Cheng, "From Hashing to CNNs", AAAI 2018).

Every filter is coded as ``a b``, b in {-1, +1}^S, such that its responses on the input that the
binarized network really sees come close to the full-precision responses (Eq. 13):

    min over a, b   L = ||t - a Xt^T b||^2 = e - 2 a b^T p + a^2 b^T G b

by alternation, from ``b = sign(w)``, ``a = mean|w|``:

    a   = b^T p / b^T G b                                      (scale step, in closed form)
    b_j = sign(a (p_j - a (G b)_j + a G_jj b_j)),  j = 1..S     (bit step, cyclic descent)

Neither step can raise L. All filters are solved side by side; the rows j are taken in blocks, with
one matrix product per block for ``(G B)`` and a small sequential part inside the block. The
decisions are those of the row by row order: only the grouping of the arithmetic differs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.methods.protocol import BinaryFilters, LayerProblem, Target, sign_and_mean_magnitude
from worker.statistics import LayerStatistics

# Rows per block: the matrix product gains with size, the sequential part loses (measured: 32 to
# 128 lie within a few percent).
BLOCK_ROWS = 64

# A filter that answers the layer's input with less than this share of what a random filter would
# is dead: its scale has no meaning and stays what it was.
DEAD_SHARE = 1e-12


def binarize(
    problem: LayerProblem,
    /,
    *,
    sweeps: int = 20,
    target: Target = "full_precision",
    scale: bool = True,
    ridge: float = 0.0,
    positions: int = 65_536,
) -> BinaryFilters:
    """Binarize one layer by BWNH.

    Args:
        sweeps: most passes over all bits; it stops earlier once no bit flips. With 0 the start
            (sign and mean magnitude) is the result.
        target: the network whose input the target responses are computed on.
        scale: learn one scale per filter; False fixes it at 1 (the paper's Figure 3).
        ridge: adds ``ridge * mean(diag G) * ||w - a b||^2`` to the loss; ours, off by default.
        positions: most samples (output positions) that enter the statistics.
    """
    statistics = problem.statistics(target, positions)
    if ridge > 0:
        statistics = statistics.with_ridge(ridge * statistics.mean_diagonal(), problem.weight.T)
    codes, scales = sign_and_mean_magnitude(problem.weight)
    if not scale:
        scales = torch.ones_like(scales)
    solution = _Solution.start(statistics, codes.T.contiguous(), scales.double(), learn_scale=scale)
    losses = []
    for done, loss in enumerate(descend(statistics, solution, sweeps)):
        losses.append(loss)
        problem.report(done / max(sweeps, 1), f"sweep {done} of at most {sweeps}, loss {loss:.4f}")
    codes, scales = solution.with_positive_scales()
    return BinaryFilters(codes.T.contiguous(), scales.float(), tuple(losses))


@dataclass
class _Solution:
    """Codes (S, N) float32 and, per filter in float64, a, ``b^T p`` and ``b^T G b``.

    ``dead_below`` is the response below which a filter is dead.
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
        cls, statistics: LayerStatistics, codes: Tensor, scales: Tensor, *, learn_scale: bool
    ) -> "_Solution":
        products = statistics.products(codes)
        response = torch.zeros_like(scales)
        for block in _blocks(len(codes)):
            response += (codes[block] * products.rows(block)).sum(dim=0, dtype=torch.float64)
        correlation = (codes * statistics.projection).sum(dim=0, dtype=torch.float64)
        energy = statistics.energy.double()
        # Random signs respond with the trace of G on average.
        dead_below = DEAD_SHARE * len(codes) * statistics.mean_diagonal()
        return cls(codes, scales, correlation, response, energy, dead_below, learn_scale)

    def fit_scales(self) -> None:
        """Set every scale to its best value for the present codes."""
        if not self.learn_scale:
            return
        alive = self.response > self.dead_below
        best = self.correlation / torch.where(alive, self.response, 1.0)
        self.scales = torch.where(alive, best, self.scales)

    def loss(self) -> float:
        """Return the squared error of all filters over the energy of their targets."""
        error = (
            self.energy - 2 * self.scales * self.correlation + self.scales.square() * self.response
        )
        total = self.energy.sum()
        return float(error.clamp(min=0).sum() / total) if total > 0 else 0.0

    def with_positive_scales(self) -> tuple[Tensor, Tensor]:
        """Return codes and scales with the sign of a negative scale moved into its codes."""
        flip = torch.where(self.scales < 0, -1.0, 1.0)
        return self.codes * flip.float(), self.scales * flip


def descend(statistics: LayerStatistics, solution: _Solution, sweeps: int) -> Iterator[float]:
    """Improve ``solution`` in place; yield its loss at the start and after every sweep.

    A filter of which no bit flipped during a sweep keeps its scale and so can never change again:
    it is left out of later sweeps, which changes no result.
    """
    yield solution.loss()
    active = torch.arange(solution.codes.shape[1])
    for _ in range(sweeps):
        solution.fit_scales()  # only the first time does this change anything
        codes = solution.codes[:, active]
        flipped = _sweep(statistics, solution, codes, active)
        solution.codes[:, active] = codes
        solution.fit_scales()
        yield solution.loss()
        active = active[flipped]
        if len(active) == 0:
            return


def _sweep(
    statistics: LayerStatistics, solution: _Solution, codes: Tensor, active: Tensor
) -> Tensor:
    """Pass once over all bits of ``codes`` (S, n); return which of the n filters changed."""
    projection = statistics.projection[:, active]
    scales = solution.scales[active].float()
    correlation, response = solution.correlation[active], solution.response[active]
    flipped = torch.zeros(len(active), dtype=torch.bool)
    products = statistics.products(codes)
    for block in _blocks(len(codes)):
        before = codes[block].clone()
        # numpy, since a block is thousands of tiny vectors: its calls cost a fifth of torch's.
        decide(
            codes[block].numpy(),
            products.rows(block).numpy(),
            projection[block].numpy(),
            statistics.gram_block(block).numpy(),
            scales.numpy(),
            correlation.numpy(),
            response.numpy(),
        )
        change = codes[block] - before
        flipped |= change.any(dim=0)
        products.update(block, change)
    solution.correlation[active], solution.response[active] = correlation, response
    return flipped


def decide(
    codes: NDArray[np.float32],
    rows: NDArray[np.float32],
    projection: NDArray[np.float32],
    gram: NDArray[np.float32],
    scales: NDArray[np.float32],
    correlation: NDArray[np.float64],
    response: NDArray[np.float64],
) -> None:
    """Apply the bit step to one block, row by row, each row knowing all decisions before it.

    ``codes``, ``rows`` = ``(G B)[block]`` and ``projection`` have shape (rows, n), ``gram`` is
    (rows, rows), ``scales`` (n,); ``correlation`` and ``response`` are ``b^T p`` and ``b^T G b``,
    (n,). All but ``projection``, ``gram`` and ``scales`` are brought up to date in place. A bit
    whose two values are equally good keeps its value.
    """
    for j in range(len(codes)):
        old = codes[j]
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


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, count))
