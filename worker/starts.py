"""Where the search for a layer's bits begins: codes (S, N) float32 and scales (N,) float64.

Descent ends in a local minimum, so that better starts, or several of them, give better ends.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from worker.statistics import GramStatistics, LayerStatistics

# Of the mean diagonal of G: keeps the greedy start's inverse finite where inputs repeat each other.
GREEDY_DAMPING = 0.01

# Rows that the greedy start finishes before it lets all rows behind them know, by one product.
GREEDY_BLOCK = 128

Start = tuple[Tensor, Tensor]
StartMaker = Callable[[LayerStatistics, Tensor, torch.Generator], Start]


def sign_start(statistics: LayerStatistics, weight: Tensor, generator: torch.Generator) -> Start:
    """``sign(w)`` and ``mean |w|`` of ``weight`` (S, N): the start of the paper."""
    return _signs(weight), weight.abs().mean(dim=0, dtype=torch.float64)


def random_start(statistics: LayerStatistics, weight: Tensor, generator: torch.Generator) -> Start:
    """Fair coins, and ``mean |w|``."""
    codes = torch.randint(0, 2, weight.shape, generator=generator).float() * 2 - 1
    return codes.to(weight.device), weight.abs().mean(dim=0, dtype=torch.float64)


def greedy_start(statistics: LayerStatistics, weight: Tensor, generator: torch.Generator) -> Start:
    """Round one input after the other and let the inputs that are left make up for the error.

    GPTQ (Frantar, Ashkboos, Hoefler and Alistarh, ICLR 2023) with one bit: the rows of the
    real-valued solution ``v = (G + d I)^-1 (P + d w)``, the strongest inputs first, become
    ``a sign(v_j)`` with ``a = mean |v|``, and the rows behind change by ``-(v_j - a b_j) / U_jj *
    U_j``, where U is the upper Cholesky factor of ``(G + d I)^-1``. Where there are fewer samples
    than inputs the signs have to do: G is not at hand, and would leave most of v open.
    """
    damping = GREEDY_DAMPING * statistics.mean_diagonal()
    if damping <= 0 or not isinstance(statistics, GramStatistics):
        return sign_start(statistics, weight, generator)
    real = statistics.real_weights(damping, weight)
    scales = real.abs().mean(dim=0)
    order = statistics.diagonal().argsort(descending=True, stable=True)
    left = real[order]
    factor = _inverse_factor(statistics, order, damping)
    codes = torch.empty_like(left)
    for start in range(0, len(left), GREEDY_BLOCK):
        block = slice(start, min(start + GREEDY_BLOCK, len(left)))
        errors = torch.empty_like(left[block])
        for j in range(block.start, block.stop):
            codes[j] = _signs(left[j])
            error = (left[j] - scales * codes[j]) / factor[j, j]
            errors[j - block.start] = error
            left[j : block.stop] -= torch.outer(factor[j, j : block.stop], error)
        left[block.stop :] -= factor[block, block.stop :].T @ errors
    result = torch.empty_like(codes)
    result[order] = codes
    return result, scales.double()


def _inverse_factor(statistics: GramStatistics, order: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of ``(G + d I)^-1`` with rows and columns in ``order``."""
    gram = statistics.gram[order][:, order].double()
    gram.diagonal().add_(damping)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True).float()
    return factor


def _signs(values: Tensor) -> Tensor:
    return torch.where(values >= 0, 1.0, -1.0)


STARTS: Mapping[str, StartMaker] = {
    "sign": sign_start,
    "greedy": greedy_start,
    "random": random_start,
}
