"""Turning two bits at once, where neither of them may be turned alone.

Turning bits i and j changes a filter's correlation ``b^T p`` by ``-2 (b_i p_i + b_j p_j)`` and its
response ``b^T G b`` by what each bit alone changes, plus ``8 b_i b_j G_ij``: two inputs that say
nearly the same can trade places at little cost. Of all S^2 / 2 pairs of a filter only those among
its *candidates* are tried, the bits whose turning alone costs least; the scale is eliminated, as in
`worker.descent`, and the best pair is turned if the filter's quotient grows.
"""

import torch
from torch import Tensor

from worker.descent import LEAST_GAIN, Solution, row_blocks
from worker.statistics import LayerStatistics

# Pairs that are tried at a time, of as many filters as have no more: 32 MiB for each of their sums.
MOST_PAIRS = 2**22


def turn_pairs(statistics: LayerStatistics, solution: Solution, candidates: int) -> int:
    """Turn the best pair of every filter, in place; return how many filters gained by one.

    The scales have to be fitted; they are so afterwards.
    """
    codes = solution.codes
    count = min(candidates, len(codes))
    if count < 2:
        return 0
    share, cost = _single_turns(statistics, solution)
    rows = _cheapest(share, cost, solution.scales, count)
    share, cost = share.gather(0, rows), cost.gather(0, rows)
    gained = 0
    step = max(MOST_PAIRS // count**2, 1)
    for start in range(0, codes.shape[1], step):
        filters = torch.arange(start, min(start + step, codes.shape[1]), device=codes.device)
        some = share[:, filters].T, cost[:, filters].T
        gained += _turn_best(statistics, solution, filters, rows[:, filters], *some)
    solution.fit_scales()
    return gained


def _turn_best(
    statistics: LayerStatistics,
    solution: Solution,
    filters: Tensor,
    rows: Tensor,
    share: Tensor,
    cost: Tensor,
) -> int:
    """Turn the best pair of each of ``filters`` (n,) among its ``rows`` (K, n), where it gains.

    ``share`` and ``cost`` (n, K) are what turning each of these bits alone changes, see
    `_single_turns`. Returns how many filters gained.
    """
    count = len(rows)
    signs = solution.codes[rows, filters].T
    correlation, response = solution.correlation[filters], solution.response[filters]
    after = correlation[:, None, None] - 2 * _sums(share)
    together = 8 * signs[:, :, None] * signs[:, None, :] * statistics.gram_at(rows)
    energy = response[:, None, None] + _sums(cost) + together
    different = ~torch.eye(count, dtype=torch.bool, device=rows.device)
    possible = (energy > solution.dead_below) & different
    quotient = torch.where(possible, after.square() / energy, -torch.inf)
    best, place = quotient.flatten(1).max(dim=1)
    alive = solution.alive[filters]
    now = correlation.square() / torch.where(alive, response, 1.0)
    (gaining,) = (alive & (best > (1 + LEAST_GAIN) * now)).nonzero(as_tuple=True)
    turned = filters[gaining]
    for half in (place // count, place % count):
        solution.codes[rows[half[gaining], gaining], turned] *= -1
    flat = place[gaining]
    solution.correlation[turned] = after.flatten(1)[gaining, flat]
    solution.response[turned] = energy.flatten(1)[gaining, flat]
    return len(gaining)


def _single_turns(statistics: LayerStatistics, solution: Solution) -> tuple[Tensor, Tensor]:
    """Return per bit, (S, n) float64, ``b_j p_j`` and how much turning it changes ``b^T G b``."""
    codes = solution.codes
    products = statistics.products(codes)
    answers = torch.cat([products.rows(block) for block in row_blocks(len(codes))])
    share = (codes * statistics.projection).double()
    return share, 4 * (statistics.diagonal()[:, None] - codes * answers).double()


def _cheapest(share: Tensor, cost: Tensor, scales: Tensor, count: int) -> Tensor:
    """Return the rows (count, n) of the bits whose turning raises the loss least, scales fixed."""
    rise = 4 * scales * share + scales.square() * cost
    return rise.topk(count, dim=0, largest=False).indices


def _sums(values: Tensor) -> Tensor:
    """Return the sums of all pairs: (n, K) to (n, K, K)."""
    return values[:, :, None] + values[:, None, :]
